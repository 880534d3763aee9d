"""What a log call never does: feed itself, or raise."""

from __future__ import annotations

import inspect
import io
import logging
import logging.config
import logging.handlers
import sys
from enum import Enum
from typing import Any

import pytest

from handlers import Attach, reports
from harness import PRIVATE, eventually
from lorc_eventlog import BigQueryEventHandler
from scripted_bigquery import ScriptedBigQuery, status

# It never feeds itself


@pytest.mark.parametrize("background", [True, False])
def test_what_the_delivery_logs_is_never_an_event_whatever_a_filter_puts_on_it(
    scripted: ScriptedBigQuery, configure: Attach, background: bool
) -> None:
    seen = []

    def events_everywhere(record: logging.LogRecord) -> bool:
        seen.append(record.name)
        record.event_type = "of.context"
        return True

    handler = configure(source="app", background=background)
    logging.getLogger("google").setLevel(logging.DEBUG)
    handler.addFilter(events_everywhere)
    scripted.script(status(503))
    logging.getLogger("app").info("an event")
    assert handler.flush(10)
    assert {"app", "urllib3.connectionpool"} <= set(seen)
    assert background == ("lorc_eventlog" in seen)
    assert handler.writer.stats().submitted == 1
    assert [row["event_type"] for row in scripted.rows] == ["of.context"]


def test_nothing_that_is_logged_on_the_way_holds_the_event(
    scripted: ScriptedBigQuery, configure: Attach
) -> None:
    """Google's libraries log their requests at DEBUG, and only by a whim of theirs no bodies."""
    said = []

    class Everything(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name != "app":
                said.append(repr(record.__dict__))

    handler = configure(source="app")
    logging.getLogger().addHandler(Everything())
    logging.getLogger("google").setLevel(logging.DEBUG)
    scripted.script(status(503), status(400, message=f"Bad value {PRIVATE}"))
    scripted.refuse_row(lambda _: True, "invalid", f"Bad value {PRIVATE}", "subject_id")
    extra = {"event_type": "a.b", "payload": {"x": PRIVATE}, "subject_id": PRIVATE}
    logging.getLogger("app").info("an event", extra=extra)
    eventually(lambda: any("lorc-eventlog check" in text for text in said), 60)
    scripted._refused_rows.clear()
    assert handler.flush(60)
    assert any("/insertAll" in text for text in said)
    assert PRIVATE not in "".join(said)


# It never raises


CYCLE: dict[str, Any] = {}
CYCLE["itself"] = CYCLE


class Unreadable(dict[str, Any]):
    def keys(self) -> Any:
        raise KeyError(PRIVATE)

    def items(self) -> Any:
        raise KeyError(PRIVATE)


class Kind(Enum):
    RECEIVED = "received"


class Hostile(str):  # noqa: SLOT000
    """A string that raises whatever it is asked."""

    error: Exception

    def __len__(self) -> int:
        raise self.error

    def __repr__(self) -> str:
        raise self.error


class MuteError(ValueError):
    def __str__(self) -> str:
        raise LookupError(PRIVATE)


BAD_EVENTS = [
    ({"event_type": ""}, "event ''", "event_type must be a non-empty string, not an empty string"),
    ({"event_type": 5}, "an event", "event_type must be a non-empty string, not int"),
    ({"event_type": Kind.RECEIVED}, "an event", "event_type must be a non-empty string, not Kind"),
    ({"source": None}, "event 'bad.one'", "source is missing: it must be a non-empty string"),
    ({"source": 5}, "event 'bad.one'", "source must be a non-empty string, not int"),
    ({"payload": PRIVATE}, "event 'bad.one'", "payload must be a mapping (a dict), not str"),
    (
        {"payload": CYCLE},
        "event 'bad.one'",
        "payload holds a cycle: a container that contains itself",
    ),
]


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(("fields", "what", "why"), BAD_EVENTS)
def test_a_bad_event_is_reported_once_and_the_events_around_it_are_delivered(
    scripted: ScriptedBigQuery,
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
    background: bool,
    fields: dict[str, Any],
    what: str,
    why: str,
) -> None:
    handler = attach(background=background)
    good = {"source": "app", "payload": {"x": PRIVATE}, "subject_id": PRIVATE}
    logger.info("before", extra={**good, "event_type": "before"})
    bad = {**good, "event_type": "bad.one", **fields}
    logger.info("bad %s", PRIVATE, extra=bad)
    line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    logger.info("after", extra={**good, "event_type": "after"})
    assert handler.flush(10)
    assert [row["event_type"] for row in scripted.rows] == ["before", "after"]
    assert reports(capsys) == [
        (
            f"lorc_eventlog: {what} of logger {logger.name!r} ({__file__}:{line}) is not recorded: "
            f"ValueError: {why}"
        )
    ]


def test_an_odd_time_does_not_cost_the_event(scripted: ScriptedBigQuery, attach: Attach) -> None:
    handler = attach(source="app")
    for created in (float("nan"), None, "2025"):
        handler.handle(logging.makeLogRecord({"event_type": "a.b", "created": created}))
    assert handler.flush(10)
    assert len(scripted.rows) == 3


@pytest.mark.parametrize("background", [True, False])
def test_a_payload_that_cannot_be_read_is_reported_without_a_word_of_it(
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
    background: bool,
) -> None:
    handler = attach(source="app", background=background)
    logger.info("bad", extra={"event_type": "a.b", "payload": Unreadable(a=1)})
    assert handler.flush(10)
    assert PRIVATE not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError(PRIVATE), "ValueError"),
        (RuntimeError(PRIVATE), "RuntimeError"),
        (LookupError(PRIVATE), "LookupError"),
        (MuteError(PRIVATE), "MuteError"),
    ],
)
def test_of_an_error_that_is_not_the_packages_own_only_the_type_is_told(
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    name: str,
) -> None:
    attach(background=False)
    source = Hostile("app")
    source.error = error
    logger.info("bad", extra={"event_type": "a.b", "source": source})
    [report] = reports(capsys)
    assert report.endswith(f" is not recorded: {name}")


def test_an_event_type_that_cannot_be_shown_is_reported_as_the_string_that_it_is(
    logger: logging.Logger, attach: Attach, capsys: pytest.CaptureFixture[str]
) -> None:
    attach(background=False)
    event_type = Hostile("a.b")
    event_type.error = LookupError(PRIVATE)
    logger.info("bad", extra={"event_type": event_type, "source": "app"})
    [report] = reports(capsys)
    assert report.startswith("lorc_eventlog: event 'a.b' of logger ")
    assert report.endswith(" is not recorded: LookupError")


def test_a_record_of_which_a_filter_left_little_is_reported_without_its_place(
    attach: Attach, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = attach(background=False)
    record = logging.makeLogRecord({"event_type": "a.b", "name": 5})
    del record.pathname
    handler.handle(record)
    assert reports(capsys) == ["lorc_eventlog: event 'a.b' is not recorded: AttributeError"]


def test_with_raise_exceptions_off_it_is_silent(
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    attach()
    logger.info("bad", extra={"event_type": ""})
    assert capsys.readouterr() == ("", "")


class BrokenStderr(io.StringIO):
    def write(self, text: str) -> int:
        raise LookupError(text)


CLOSED_STDERR = io.StringIO()
CLOSED_STDERR.close()


@pytest.mark.parametrize("stderr", [None, CLOSED_STDERR, BrokenStderr()])
def test_a_report_without_a_stderr_raises_nothing(
    logger: logging.Logger,
    attach: Attach,
    monkeypatch: pytest.MonkeyPatch,
    stderr: io.StringIO | None,
) -> None:
    attach()
    monkeypatch.setattr(sys, "stderr", stderr)
    logger.info("bad", extra={"event_type": ""})


def test_a_subclass_may_handle_errors_in_its_own_way(scripted: ScriptedBigQuery) -> None:
    failed = []

    class Handler(BigQueryEventHandler):
        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
            failed.append((record.getMessage(), type(sys.exception() or 0)))

    handler = Handler(source="app", background=False)
    scripted.script(status(404))
    handler.handle(logging.makeLogRecord({"msg": "lost", "event_type": "a.b"}))
    handler.handle(logging.makeLogRecord({"msg": "bad", "event_type": ""}))
    assert failed == [("lost", RuntimeError), ("bad", ValueError)]
