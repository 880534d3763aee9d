"""What users have for their own tests: `capture_events()` and the fixture `captured_events`."""

from __future__ import annotations

import logging
import logging.config
import multiprocessing
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from clients import make_client
from harness import PACKAGE, make_event
from lorc_eventlog import (
    BigQueryEventHandler,
    BigQueryEventProcessor,
    Envelope,
    EventWriter,
    build_envelope,
    emit,
)
from lorc_eventlog.events import capture
from lorc_eventlog.testing import capture_events
from scripted_bigquery import ScriptedBigQuery

pytest_plugins = ["lorc_eventlog.pytest_plugin"]

PROJECT = Path(__file__).parent.parent.parent
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger without handlers, that tells nobody else."""
    logger = logging.Logger("application")  # noqa: LOG001  nobody else's
    yield logger
    for handler in logger.handlers:
        handler.close()


def log(logger: logging.Logger, event_type: str = "email.received", **payload: Any) -> None:
    extra = {"event_type": event_type, "source": "tests", "payload": payload}
    logger.info("happened", extra=extra)


def types(events: list[Envelope]) -> list[str]:
    return [event["event_type"] for event in events]


# What is captured


def test_a_handler_made_inside_needs_no_variables_and_its_event_is_captured(
    logger: logging.Logger,
) -> None:
    with capture_events() as events:
        logger.addHandler(BigQueryEventHandler(source="ingester"))
        logger.info(
            "email received",
            extra={
                "event_type": "email.received",
                "schema_ref": "email.v1",
                "correlation_id": "trace-0001",
                "subject_id": "patient-17",
                "payload": {"subject": "My results"},
            },
        )

    [event] = events
    assert list(event) == list(Envelope.__annotations__)
    assert len(event["event_id"]) == 36
    assert datetime.fromisoformat(event["created_at"]).tzinfo == UTC
    assert {key: event[key] for key in list(event)[1:] if key != "created_at"} == {  # type: ignore[literal-required]
        "event_type": "email.received",
        "source": "ingester",
        "schema_ref": "email.v1",
        "correlation_id": "trace-0001",
        "subject_id": "patient-17",
        "payload": {"subject": "My results"},
    }


@pytest.mark.parametrize("background", [True, False])
def test_what_dictconfig_makes_inside_is_captured(*, background: bool) -> None:
    with capture_events() as events:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {
                    "events": {
                        "class": "lorc_eventlog.BigQueryEventHandler",
                        "background": background,
                    }
                },
                "loggers": {"configured": {"level": "INFO", "handlers": ["events"]}},
            }
        )
        configured = logging.getLogger("configured")
        try:
            log(configured)
        finally:
            configured.handlers.clear()
    assert types(events) == ["email.received"]


@pytest.mark.parametrize("background", [True, False])
def test_a_handler_made_before_the_block_sends_nothing_during_it(
    scripted: ScriptedBigQuery, logger: logging.Logger, *, background: bool
) -> None:
    handler = BigQueryEventHandler(background=background)
    logger.addHandler(handler)
    log(logger, "before")
    with capture_events() as events:
        log(logger, "during")
    log(logger, "after")

    assert handler.flush()
    assert types(events) == ["during"]
    assert [row["event_type"] for row in scripted.rows] == ["before", "after"]


@pytest.mark.parametrize("background", [True, False])
def test_a_processor_is_captured_and_returns_its_event_dict(*, background: bool) -> None:
    with capture_events() as events:
        processor = BigQueryEventProcessor(source="questionnaires", background=background)
        bound = {"event": "answered", "event_type": "questionnaire.answered", "score": 7}
        assert processor(None, "info", bound) is bound
    assert [event["payload"] for event in events] == [{"event": "answered", "score": 7}]


def test_a_writer_is_captured_by_submit_and_by_emit() -> None:
    envelope = make_event(1)
    with capture_events() as events:
        writer = EventWriter()
        writer.submit(envelope)
        writer.emit("report.sent", {"pages": 3}, source="reports")
    assert events[0] == envelope
    assert types(events) == ["test.happened", "report.sent"]


def test_emit_is_captured_and_does_not_ask_its_client() -> None:
    with capture_events() as events:
        emit("report.sent", {"pages": 3}, source="reports", bq_client=make_client(NOWHERE))
    assert types(events) == ["report.sent"]


def test_the_payload_is_what_bigquery_would_hold() -> None:
    payload: dict[Any, Any] = {
        "at": datetime(2026, 1, 2, tzinfo=UTC),
        "pages": (1, 2),
        3: float("inf"),
    }
    with capture_events() as events:
        EventWriter().emit("report.sent", payload, source="reports")
    payload["pages"] = ()
    assert events[0]["payload"] == {
        "at": "2026-01-02T00:00:00+00:00",
        "pages": [1, 2],
        "3": None,  # Infinity is not JSON
    }


def test_captured_events_are_counted_by_nobody() -> None:
    with capture_events():
        writer = EventWriter()
        writer.submit(make_event(1))
        assert writer.flush(0)
        writer.close()
    assert writer.stats().submitted == 0


# What is not


def test_what_is_no_event_passes_by(logger: logging.Logger) -> None:
    with capture_events() as events:
        logger.addHandler(BigQueryEventHandler(source="ingester"))
        logger.info("connected")
    assert events == []


def test_a_bad_event_is_reported_by_the_handler_as_ever(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with capture_events() as events:
        logger.addHandler(BigQueryEventHandler())
        logger.info("happened", extra={"event_type": "email.received"})
    assert events == []
    assert "source is missing" in capsys.readouterr().err


def test_a_bad_event_is_reported_by_the_processor_as_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with capture_events() as events:
        BigQueryEventProcessor()(None, "info", {"event_type": "email.received"})
    assert events == []
    assert "source is missing" in caplog.text


def test_emit_raises_for_a_bad_event_as_ever() -> None:
    cycle: dict[str, Any] = {}
    cycle["cycle"] = cycle
    with capture_events() as events, pytest.raises(ValueError, match="payload"):
        emit("report.sent", cycle, source="reports", bq_client=make_client(NOWHERE))
    assert events == []


def test_an_option_that_cannot_be_is_refused_as_ever() -> None:
    with capture_events(), pytest.raises(ValueError, match="batch_rows"):
        EventWriter(batch_rows=0)


# More than one thread, block or process


def test_every_event_of_every_thread_is_captured() -> None:
    def work(thread: int) -> None:
        for number in range(200):
            writer.emit("counted", {"number": 1000 * thread + number}, source="tests")

    with capture_events() as events:
        writer = EventWriter()
        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    numbers = [event["payload"]["number"] for event in events]
    assert sorted(numbers) == [1000 * t + n for t in range(4) for n in range(200)]
    assert len({event["event_id"] for event in events}) == 800


def test_nested_blocks_each_collect_what_happens_while_they_are_open() -> None:
    with capture_events() as outer:
        writer = EventWriter()
        writer.emit("first", {}, source="tests")
        with capture_events() as inner:
            writer.emit("second", {}, source="tests")
        writer.emit("third", {}, source="tests")
    assert types(outer) == ["first", "second", "third"]
    assert types(inner) == ["second"]
    assert outer[1] == inner[0]
    assert outer[1]["payload"] is not inner[0]["payload"]


def test_blocks_may_overlap() -> None:
    with ExitStack() as early, ExitStack() as late:
        first = early.enter_context(capture_events())
        writer = EventWriter()
        second = late.enter_context(capture_events())
        early.close()
        writer.emit("happened", {}, source="tests")
    assert types(first) == []
    assert types(second) == ["happened"]


def test_the_block_ends_when_it_raises() -> None:
    with pytest.raises(ZeroDivisionError), capture_events():
        _ = 1 / 0
    assert not capture.is_active()


def test_a_forked_process_captures_into_a_list_of_its_own() -> None:
    def work(counts: Any) -> None:
        writer.emit("in the child", {}, source="tests")
        counts.put(types(events))

    context = multiprocessing.get_context("fork")
    with capture_events() as events:
        writer = EventWriter()
        writer.emit("in the parent", {}, source="tests")
        counts = context.SimpleQueue()
        child = context.Process(target=work, args=(counts,))
        child.start()
        child.join()
        assert counts.get() == ["in the parent", "in the child"]
    assert types(events) == ["in the parent"]


# After the block


@pytest.mark.parametrize("background", [True, False])
def test_a_handler_made_inside_sends_to_bigquery_after_the_block(
    scripted: ScriptedBigQuery, logger: logging.Logger, *, background: bool
) -> None:
    with capture_events() as events:
        handler = BigQueryEventHandler(background=background)
        logger.addHandler(handler)
        log(logger, "during")
    log(logger, "after")
    log(logger, "later")

    assert handler.flush()
    assert types(events) == ["during"]
    assert [row["event_type"] for row in scripted.rows] == ["after", "later"]
    assert handler.writer.stats().delivered == 2


def test_a_handler_made_inside_reports_after_the_block_which_variables_are_missing(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with capture_events():
        handler = BigQueryEventHandler()
        logger.addHandler(handler)
    log(logger)

    assert "RuntimeError: EVENTS_BQ_DATASET and EVENTS_BQ_TABLE not set" in capsys.readouterr().err
    assert handler.flush()
    assert handler.writer.stats().submitted == 0


def test_a_writer_made_inside_raises_after_the_block_until_the_variables_are_set(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture_events():
        writer = EventWriter()
    with monkeypatch.context() as patch:
        patch.delenv("EVENTS_BQ_TABLE")
        with pytest.raises(RuntimeError, match="EVENTS_BQ_TABLE not set"):
            writer.submit(make_event(1))
    writer.submit(make_event(2))
    writer.close()
    assert [event["payload"]["number"] for event in scripted.events()] == [2]


def test_without_a_block_the_variables_are_needed_at_once() -> None:
    with capture_events():
        pass
    with pytest.raises(RuntimeError, match="EVENTS_BQ_DATASET"):
        BigQueryEventHandler()
    with pytest.raises(RuntimeError, match="EVENTS_BQ_DATASET"):
        BigQueryEventHandler(background=False)


def test_a_spool_is_opened_after_the_block_and_no_thread_is_started_before(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    threads = threading.active_count()
    with capture_events():
        writer = EventWriter(spool_dir=tmp_path / "spool")
        writer.submit(make_event(1))
        assert threading.active_count() == threads
        assert not (tmp_path / "spool").exists()
    writer.submit(make_event(2))
    assert (tmp_path / "spool").is_dir()
    writer.close()
    assert [event["payload"]["number"] for event in scripted.events()] == [2]


def test_a_spool_of_a_writer_that_was_made_in_the_block_is_drained_after_it(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    before = EventWriter(spool_dir=tmp_path, close_timeout=0.01)
    scripted.stop()
    before.submit(make_event(1))
    before.close()
    with capture_events() as events:
        writer = EventWriter(spool_dir=tmp_path)
        assert writer.drain_spool(0)  # it has none yet
    scripted.start()
    assert before.flush(30)
    assert writer.drain_spool(30)
    assert events == []
    assert [event["payload"]["number"] for event in scripted.events()] == [1]
    writer.close()


# pytest


def run_pytest(folder: Path, module: str, *options: str, path: str = str(PACKAGE)) -> str:
    """Run the tests of ``module`` outside of this project."""
    (folder / "test_users.py").write_text(module, encoding="utf-8")
    quiet = ("-p", "no:bqemulator", "-p", "no:cacheprovider")
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, *options, "test_users.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return completed.stdout + completed.stderr


def test_the_fixture_holds_the_events_of_its_test(captured_events: list[Envelope]) -> None:
    EventWriter().submit(build_envelope(event_type="report.sent", payload={}, source="reports"))
    assert types(captured_events) == ["report.sent"]


def test_pytest_finds_the_fixture_where_the_package_is_installed(tmp_path: Path) -> None:
    # As an installer writes it, from what this package asks for.
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = tmp_path / "site" / "lorc_eventlog-0.1.0.dist-info"
    installed.mkdir(parents=True)
    metadata = "Metadata-Version: 2.1\nName: lorc_eventlog\nVersion: 0.1.0\n"
    (installed / "METADATA").write_text(metadata)
    points = project["entry-points"]["pytest11"].items()
    lines = ["[pytest11]", *(f"{name} = {module}" for name, module in points)]
    (installed / "entry_points.txt").write_text("\n".join(lines))
    module = (
        "import sys\n"
        "from lorc_eventlog import EventWriter\n\n"
        "def test_one(captured_events):\n"
        "    EventWriter().emit('a.b', {}, source='s')\n"
        "    assert len(captured_events) == 1\n\n"
        "def test_another(captured_events):\n"
        "    assert captured_events == []\n\n"
        "def test_the_plugin_loads_nothing_that_its_user_does_not():\n"
        "    assert not {'google.cloud.bigquery', 'structlog'} & sys.modules.keys()\n"
    )
    path = os.pathsep.join(map(str, (installed.parent, PACKAGE)))
    assert "3 passed" in run_pytest(tmp_path, module, path=path)
