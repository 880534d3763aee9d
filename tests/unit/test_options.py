"""Options of the writer, as a dictConfig gives them: what is wrong is said at once, and by name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from harness import running_writer
from lorc_eventlog import BigQueryEventHandler, BigQueryEventProcessor, EventWriter
from lorc_eventlog.adapters.base import WriterKeywords
from scripted_bigquery import ScriptedBigQuery

SECONDS = "must be a number of seconds from 0 to 1,000,000"
WHOLE = "must be a whole number from 1 on"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("batch_rows", 0, "must be a whole number from 1 to 50,000, not 0"),
        ("batch_rows", 50_001, "must be a whole number from 1 to 50,000, not 50001"),
        ("batch_rows", "500", "must be a whole number from 1 to 50,000, not '500'"),
        ("batch_rows", 1.5, "must be a whole number from 1 to 50,000, not 1.5"),
        ("batch_rows", True, "must be a whole number from 1 to 50,000, not True"),
        ("flush_interval", -1, SECONDS),
        ("flush_interval", "1", SECONDS),
        ("flush_interval", None, SECONDS),
        ("flush_interval", float("inf"), SECONDS),
        ("flush_interval", float("nan"), SECONDS),
        ("close_timeout", 1e12, SECONDS),
        ("capacity", 0, WHOLE),
        ("capacity", "5", WHOLE),
        ("capacity_bytes", 0.5, WHOLE),
        ("spool_max_bytes", 0, WHOLE),
        ("overflow", "wait", 'must be "drop" or "block"'),
        ("on_dead_letter", "app.bury", "must be a callable"),
        ("spool_dir", "", "must be the path of a directory"),
        ("spool_dir", 5, "must be the path of a directory"),
        ("spool_sync", "always", 'must be "normal" or "full"'),
        ("deliver_on_sigterm", 1, "must be true or false"),
    ],
)
def test_an_option_that_cannot_be_is_named_with_what_it_must_be(
    scripted: ScriptedBigQuery,  # noqa: ARG001
    option: str,
    value: Any,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=f"^{option} {message}"):
        EventWriter(**{option: value})


def test_the_table_must_be_named() -> None:
    with pytest.raises(RuntimeError, match="EVENTS_BQ_DATASET"):
        EventWriter()


def test_flush_takes_any_timeout(scripted: ScriptedBigQuery) -> None:
    with running_writer() as writer:
        writer.emit("a.b", {}, source="s")
        assert writer.flush(float("inf"))
    assert len(scripted.rows) == 1


def test_the_options_that_a_type_checker_knows_are_those_of_the_writer() -> None:
    parameters = inspect.signature(EventWriter).parameters
    of_the_writer = {
        name: parameter.annotation
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    known = WriterKeywords.__annotations__
    assert {name: hint.__forward_arg__ for name, hint in known.items()} == of_the_writer


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("adapter", [BigQueryEventHandler, BigQueryEventProcessor, EventWriter])
@pytest.mark.parametrize("options", [{}, {"background": False}])
def test_the_end_of_a_with_block_closes(adapter: Any, options: dict[str, bool]) -> None:
    with EventWriter() if adapter is EventWriter else adapter(**options).writer as writer:
        writer.emit("a.b", {}, source="s")
    assert writer.stats().delivered == 1
    if adapter is not EventWriter:
        with adapter(**options) as made:
            made.writer.emit("a.b", {}, source="s")
        assert made.writer.stats().delivered == 1
