"""The handler: which log records become events, and what a log call never does."""

from __future__ import annotations

import copy
import inspect
import io
import json
import logging
import logging.config
import logging.handlers
import os
import queue
import re
import sys
import traceback
import types
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from asgi_correlation_id import CorrelationIdFilter, correlation_id
from google.cloud import bigquery

import lorc_eventlog.bigquery.insert_all
import lorc_eventlog.delivery.synchronous
from clients import Query
from lorc_eventlog import BigQueryEventHandler, EventWriter, build_envelope
from scripted_bigquery import ScriptedBigQuery, hang, status

PRIVATE = "PrivateWord"

Attach = Callable[..., BigQueryEventHandler]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger that only the test knows."""
    made = logging.getLogger(f"app.{uuid.uuid4().hex}")
    made.setLevel(logging.DEBUG)
    yield made
    made.handlers.clear()


@pytest.fixture
def attach(scripted: ScriptedBigQuery, logger: logging.Logger) -> Iterator[Attach]:
    """Make a handler of ``scripted`` and add it to ``logger``."""
    made = []

    def attach(**options: Any) -> BigQueryEventHandler:
        handler = BigQueryEventHandler(**options)
        logger.addHandler(handler)
        made.append(handler)
        return handler

    yield attach
    scripted.healthy()
    for handler in made:
        handler.close()


@pytest.fixture
def configure() -> Iterator[Callable[..., BigQueryEventHandler]]:
    """Configure logging as an application does: JSON, and the handler at the root, at DEBUG."""
    root, google = logging.getLogger(), logging.getLogger("google")
    before = root.level, root.handlers[:], google.propagate
    google.propagate = True  # google-auth turns it off, unless the application configures it

    def configure(**options: Any) -> BigQueryEventHandler:
        config = {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"events": {"class": "lorc_eventlog.BigQueryEventHandler", **options}},
            "root": {"level": "DEBUG", "handlers": ["events"]},
        }
        logging.config.dictConfig(json.loads(json.dumps(config)))
        [handler] = root.handlers
        assert isinstance(handler, BigQueryEventHandler)
        return handler

    yield configure
    for handler in root.handlers:
        if isinstance(handler, BigQueryEventHandler):
            handler.close()
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    google.propagate = before[2]
    google.setLevel(logging.NOTSET)


def reports(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


# In a dictConfig


@pytest.mark.usefixtures("events_table")
def test_with_only_class_and_level_each_record_with_an_event_type_arrives_once(
    query: Query, configure: Attach
) -> None:
    handler = configure(level="DEBUG")
    for number in range(20):
        logging.getLogger().debug("not an event")
        logging.getLogger("app").info(
            "an event",
            extra={"event_type": "a.b", "source": "app", "payload": {"number": number}},
        )
        # Some events are sent, and what Google's client says of it logged, before the others.
        if number % 5 == 0:
            assert handler.flush(10)
    assert handler.flush(10)
    assert query(
        "SELECT event_type, source, COUNT(*) AS events, COUNT(DISTINCT event_id) AS ids,"
        " COUNT(DISTINCT JSON_VALUE(payload, '$.number')) AS numbers FROM events GROUP BY 1, 2"
    ) == [{"event_type": "a.b", "source": "app", "events": 20, "ids": 20, "numbers": 20}]


@pytest.mark.usefixtures("events_table")
def test_payloads_are_json_objects_to_sql(query: Query, configure: Attach) -> None:
    handler = configure(level="INFO", source="gmail_ingester")
    payload = {"subject": "My results", "labels": ["inbox", "unread"]}
    logging.getLogger().info("an event", extra={"event_type": "email.received", "payload": payload})
    assert handler.flush(10)
    assert query(
        "SELECT payload.subject AS subject, JSON_VALUE(payload, '$.labels[0]') AS label,"
        " JSON_TYPE(payload) AS kind FROM events"
    ) == [{"subject": "My results", "label": "inbox", "kind": "object"}]


def test_every_option_is_a_json_value(
    scripted: ScriptedBigQuery, configure: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = types.ModuleType("app_of_the_test")
    app.bury = lambda _envelope, _reason: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "app_of_the_test", app)
    options = {
        "batch_rows": 10,
        "flush_interval": 0.01,
        "capacity": 1000,
        "capacity_bytes": 1_000_000,
        "overflow": "block",
        "close_timeout": 5.0,
        "on_dead_letter": "ext://app_of_the_test.bury",
        "spool_dir": str(tmp_path),
        "spool_max_bytes": 10_000_000,
        "spool_sync": "normal",
    }
    assert {*options, "bq_client"} == inspect.signature(EventWriter).parameters.keys()
    configure(level="INFO", source="app", background=True, **options)
    logging.getLogger().info("an event", extra={"event_type": "a.b"})
    logging.getLogger().debug("an event below the level", extra={"event_type": "a.b"})
    scripted.wait_for_rows(1)
    logging.shutdown()
    assert [row["source"] for row in scripted.rows] == ["app"]


@pytest.mark.parametrize("background", [True, False])
def test_a_client_is_named_by_ext(
    scripted: ScriptedBigQuery,
    client: bigquery.Client,
    configure: Attach,
    monkeypatch: pytest.MonkeyPatch,
    background: bool,
) -> None:
    app = types.ModuleType("app_of_the_test")
    app.client = client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "app_of_the_test", app)
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    handler = configure(
        bq_client="ext://app_of_the_test.client", source="app", background=background
    )
    logging.getLogger().info("an event", extra={"event_type": "a.b"})
    assert handler.flush(10)
    assert len(scripted.rows) == 1


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["EVENTS_BQ_DATASET"], "RuntimeError: EVENTS_BQ_DATASET not set: set EVENTS_BQ_DATASET"),
        (["EVENTS_BQ_TABLE"], "RuntimeError: EVENTS_BQ_TABLE not set: "),
        (
            ["EVENTS_BQ_DATASET", "EVENTS_BQ_TABLE"],
            "RuntimeError: EVENTS_BQ_DATASET and EVENTS_BQ_TABLE not set: ",
        ),
    ],
)
@pytest.mark.usefixtures("scripted")
def test_a_missing_variable_fails_at_configuration_time_and_the_user_sees_which(
    configure: Attach,
    monkeypatch: pytest.MonkeyPatch,
    background: bool,
    missing: list[str],
    message: str,
) -> None:
    for name in missing:
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match="Unable to configure handler 'events'") as failure:
        configure(background=background)
    assert message in "".join(traceback.format_exception(failure.value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_rows": 0},
            "ValueError: batch_rows must be a whole number from 1 to 50,000, not 0",
        ),
        (
            {"batch_size": 5},
            (
                "TypeError: no such option: batch_size; the options are bq_client, source, "
                "background, writer, level, payload_from_extra, batch_rows, .*, spool_sync$"
            ),
        ),
        (
            {"background": False, "batch_size": 5, "capacity": 5},
            "TypeError: no such option: batch_size; the options are ",
        ),
        (
            {"bq_client": "app.client"},
            (
                r"ValueError: bq_client must be a google\.cloud\.bigquery\.Client \(in a "
                r"dictConfig: ext://package\.client\), not 'app\.client'"
            ),
        ),
        ({"background": False, "bq_client": "app.client"}, "ValueError: bq_client must be a "),
        (
            {"writer": "app.writer"},
            (
                r"ValueError: writer must be an EventWriter \(in a dictConfig: "
                r"ext://package\.writer\), not 'app\.writer'"
            ),
        ),
        ({"background": "false"}, "ValueError: background must be true or false, not 'false'"),
        ({"source": ""}, "ValueError: source must be a string that is not empty, not ''"),
        ({"source": 5}, "ValueError: source must be a string that is not empty, not 5"),
        (
            {"background": False, "overflow": "block", "capacity": 5},
            "ValueError: capacity, overflow would have no effect: background is false, so that ",
        ),
        ({"payload_from_extra": 1}, "ValueError: payload_from_extra must be true or false, not 1"),
        ({"level": "LOUD"}, "ValueError: Unknown level: 'LOUD'"),
    ],
)
@pytest.mark.usefixtures("scripted")
def test_an_option_that_cannot_be_fails_at_configuration_time(
    configure: Attach, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="Unable to configure handler 'events'") as failure:
        configure(**options)
    cause = failure.value.__cause__
    assert cause is not None
    assert re.match(message, traceback.format_exception_only(cause)[-1])


@pytest.mark.usefixtures("scripted")
def test_a_level_where_the_client_belongs_is_refused() -> None:
    """Other handlers take the level first."""
    with pytest.raises(ValueError, match=r"^bq_client must be a .*, not 'INFO'$"):
        BigQueryEventHandler("INFO")  # type: ignore[arg-type]


def test_a_configuration_may_be_replaced_by_another(
    scripted: ScriptedBigQuery, configure: Attach
) -> None:
    """dictConfig holds a lock of logging that the first delivery needs, too."""
    first = configure(source="first", close_timeout=3600)
    logging.getLogger().info("an event", extra={"event_type": "a.b"})
    second = configure(source="second")
    logging.getLogger().info("an event", extra={"event_type": "a.b"})
    assert first.flush(10)
    assert second.flush(10)
    assert sorted(row["source"] for row in scripted.rows) == ["first", "second"]


# What is an event, and what it holds


def test_all_fields_are_read_from_the_record(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    handler = attach(source="not this one")
    fields = {
        "event_type": "email.received",
        "source": "gmail_ingester",
        "schema_ref": "email.v1",
        "correlation_id": "trace-1",
        "subject_id": "patient-17",
        "payload": {"labels": ["inbox"]},
    }
    logger.info("an event", extra=fields)
    assert handler.flush(10)
    [event] = scripted.events()
    assert uuid.UUID(event.pop("event_id")).version == 4
    del event["created_at"]
    assert event == fields


def test_what_the_record_does_not_say_is_none_and_a_missing_payload_is_empty(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    handler = attach(source="app")
    logger.info("an event", extra={"event_type": "a.b"})
    logger.info("an event", extra={"event_type": "a.b", "source": None, "payload": None})
    assert handler.flush(10)
    for event in scripted.events():
        del event["event_id"], event["created_at"]
        assert event == {
            "event_type": "a.b",
            "source": "app",
            "schema_ref": None,
            "correlation_id": None,
            "subject_id": None,
            "payload": {},
        }
    assert len(scripted.rows) == 2


@pytest.mark.parametrize(("source", "found"), [("", "an empty string"), (0, "int")])
def test_a_bad_source_of_a_record_is_reported_and_not_replaced_by_the_handlers(
    scripted: ScriptedBigQuery,
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
    source: Any,
    found: str,
) -> None:
    attach(source="app", background=False)
    logger.info("an event", extra={"event_type": "a.b", "source": source})
    assert scripted.requests == []
    [report] = reports(capsys)
    assert report.endswith(f"ValueError: source must be a non-empty string, not {found}")


def test_records_without_an_event_type_pass_by(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    handler = attach(source="app", background=False)
    logger.info("a line")
    logger.info("a line", extra={"payload": {"a": 1}, "source": "app"})
    logger.info("a line", extra={"event_type": None})
    handler.emit(logging.makeLogRecord({"msg": "a line"}))
    assert handler.writer.stats().submitted == 0
    assert scripted.requests == []


@pytest.mark.parametrize("created", [1763498700.123456, 1763498700.0])
def test_created_at_is_the_records_own_time(
    scripted: ScriptedBigQuery, attach: Attach, created: float
) -> None:
    handler = attach(source="app", background=False)
    record = logging.makeLogRecord({"event_type": "a.b", "created": created})
    assert record.name is None  # so does makeLogRecord
    handler.handle(record)
    [row] = scripted.rows
    assert row["created_at"] == datetime.fromtimestamp(created, UTC).isoformat(
        timespec="microseconds"
    )


def test_the_payload_arrives_as_it_was_at_the_call(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    handler = attach(source="app")
    payload: dict[str, Any] = {"labels": ["inbox"], "nested": {"a": 1}}
    logger.info("an event", extra={"event_type": "a.b", "payload": payload})
    payload["labels"].append("changed")
    payload["nested"].clear()
    payload["more"] = 1
    assert handler.flush(10)
    assert scripted.events()[0]["payload"] == {"labels": ["inbox"], "nested": {"a": 1}}


def test_the_level_of_the_handler_counts(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    handler = attach(level="WARNING", source="app")
    logger.info("an event", extra={"event_type": "too.low"})
    logger.warning("an event", extra={"event_type": "high.enough"})
    assert handler.flush(10)
    assert [row["event_type"] for row in scripted.rows] == ["high.enough"]


# With the other parts of logging


def test_the_correlation_id_filter_of_asgi_correlation_id_works(
    scripted: ScriptedBigQuery, configure: Attach
) -> None:
    handler = configure(source="app")
    handler.addFilter(CorrelationIdFilter(uuid_length=32))
    token = correlation_id.set("0123456789abcdef0123456789abcdef")
    try:
        logging.getLogger().info("an event", extra={"event_type": "a.b"})
    finally:
        correlation_id.reset(token)
    logging.getLogger().info("an event", extra={"event_type": "a.b"})
    assert handler.flush(10)
    assert [row["correlation_id"] for row in scripted.rows] == [
        "0123456789abcdef0123456789abcdef",
        None,
    ]


def test_a_filter_may_set_fields_and_hold_records_back(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    class Request(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            record.correlation_id = "trace-1"
            record.source = "requests"
            return "secret" not in record.getMessage()

    handler = attach()
    handler.addFilter(Request())
    logger.info("an event", extra={"event_type": "a.b"})
    logger.info("a secret event", extra={"event_type": "a.b"})
    assert handler.flush(10)
    [row] = scripted.rows
    assert (row["correlation_id"], row["source"]) == ("trace-1", "requests")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="filters may replace records since 3.12")
def test_a_filter_may_replace_the_record(scripted: ScriptedBigQuery, attach: Attach) -> None:
    def without_subject(record: logging.LogRecord) -> logging.LogRecord:
        replaced = copy.copy(record)
        replaced.subject_id = None
        return replaced

    handler = attach(source="app")
    handler.addFilter(without_subject)  # type: ignore[arg-type, unused-ignore]
    record = logging.makeLogRecord({"event_type": "a.b", "subject_id": "patient-17"})
    assert handler.handle(record) is not record
    assert handler.flush(10)
    assert [row["subject_id"] for row in scripted.rows] == [None]
    assert record.__dict__["subject_id"] == "patient-17"


def test_logger_adapters_work(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    handler = attach()
    adapter = logging.LoggerAdapter(logger, {"event_type": "a.b", "source": "adapter"})
    adapter.info("an event")
    assert handler.flush(10)
    assert [row["source"] for row in scripted.rows] == ["adapter"]


def test_a_queue_in_between_works(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    handler = attach(source="app")
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    logger.handlers = [logging.handlers.QueueHandler(records)]
    listener = logging.handlers.QueueListener(records, handler)
    listener.start()
    logger.info("an event", extra={"event_type": "a.b", "payload": {"a": 1}})
    listener.stop()
    assert handler.flush(10)
    assert [event["payload"] for event in scripted.events()] == [{"a": 1}]


def test_other_handlers_are_not_disturbed(
    logger: logging.Logger, attach: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    attach()
    with caplog.at_level(logging.INFO):
        logger.info("bad", extra={"event_type": ""})
        logger.info("good", extra={"event_type": "a.b", "source": "app"})
    assert [record.message for record in caplog.records if record.name == logger.name] == [
        "bad",
        "good",
    ]


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
    scripted.refuse_row(lambda _: True, "invalid", f"Bad value {PRIVATE}")
    extra = {"event_type": "a.b", "payload": {"x": PRIVATE}, "subject_id": PRIVATE}
    logging.getLogger("app").info("an event", extra=extra)
    assert handler.flush(10)
    assert any("/insertAll" in text for text in said)
    assert any("is rejected" in text for text in said)
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


# In the foreground


def test_in_the_foreground_an_event_is_there_when_the_call_returns(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    handler = attach(source="app", background=False)
    for number in range(3):
        logger.info("an event", extra={"event_type": "a.b", "payload": {"number": number}})
        assert scripted.events()[-1]["payload"] == {"number": number}
    assert handler.flush(0)
    assert [request.insert_ids for request in scripted.requests] == [
        (row["event_id"],) for row in scripted.rows
    ]
    assert scripted.connections == 1  # one client, and one connection, for all


def test_in_the_foreground_what_bigquery_refuses_goes_to_handle_error(
    scripted: ScriptedBigQuery,
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler = attach(source="app", background=False)
    scripted.script(status(400, message=f"Bad value {PRIVATE}"))
    for event_type in ("refused", "taken"):
        fields = {"event_type": event_type, "payload": {"x": PRIVATE}, "subject_id": PRIVATE}
        logger.info("an event", extra=fields)
    assert [row["event_type"] for row in scripted.rows] == ["taken"]
    [report] = reports(capsys)
    assert report.startswith(f"lorc_eventlog: event 'refused' of logger {logger.name!r} (")
    assert "is not recorded: RuntimeError: BigQuery did not take event " in report
    assert report.endswith("(refused): 400 invalid: Bad value …")
    stats = handler.writer.stats()
    assert (stats.submitted, stats.delivered, stats.rejected) == (2, 1, 1)
    assert stats.last_error is not None
    assert "400 invalid" in stats.last_error


def test_in_the_foreground_missing_credentials_go_to_handle_error(
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "missing.json")
    handler = attach(source="app", background=False)
    logger.info("an event", extra={"event_type": "a.b"})
    [report] = reports(capsys)
    why = (
        "RuntimeError: there is no BigQuery client: DefaultCredentialsError: File missing.json was "
        "not found.: check the credentials: "
    )
    assert why in report
    assert (handler.writer.stats().last_error or "").startswith(why)


def test_in_the_foreground_an_error_that_nobody_expects_is_told_by_its_type(
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise LookupError(PRIVATE)

    monkeypatch.setattr(lorc_eventlog.delivery.synchronous, "insert_now", broken)
    handler = attach(source="app", background=False)
    logger.info("an event", extra={"event_type": "a.b"})
    [report] = reports(capsys)
    assert report.endswith(" is not recorded: LookupError")
    assert handler.writer.stats().last_error == "LookupError"


def test_in_the_foreground_an_outage_ends_after_the_timeout(
    scripted: ScriptedBigQuery,
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lorc_eventlog.bigquery.insert_all, "REQUEST_TIMEOUT", 0.5)
    scripted.always(hang())
    attach(source="app", background=False)
    logger.info("an event", extra={"event_type": "a.b"})
    [report] = reports(capsys)
    assert "ReadTimeout" in report


def test_in_the_foreground_the_writer_emits_like_any_other(
    scripted: ScriptedBigQuery, attach: Attach
) -> None:
    handler = attach(background=False)
    handler.writer.emit("a.b", {"a": 1}, source="app", subject_id="patient-17")
    [event] = scripted.events()
    assert (event["payload"], event["subject_id"]) == ({"a": 1}, "patient-17")
    with pytest.raises(ValueError, match="source must be"):
        handler.writer.emit("a.b", {}, source="")


def test_in_the_foreground_the_writer_takes_envelopes_like_any_other(
    scripted: ScriptedBigQuery, attach: Attach
) -> None:
    envelope = build_envelope(event_type="a.b", payload={"a": 1}, source="app")
    attach(background=False).writer.submit(envelope)
    assert scripted.events() == [envelope]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("logged_before", [1, 0], ids=["open connection", "no connection"])
def test_in_the_foreground_a_forked_child_has_connections_and_counters_of_its_own(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach, logged_before: int
) -> None:
    handler = attach(source="app", background=False)
    for _ in range(logged_before):
        logger.info("an event", extra={"event_type": "of.parent"})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            before = handler.writer.stats().submitted
            logger.info("an event", extra={"event_type": "of.child"})
            code = 0 if (before, handler.writer.stats().submitted) == (0, 1) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    logger.info("an event", extra={"event_type": "of.parent"})
    *of_parent, of_child, last = scripted.requests
    ports = {request.client_port for request in (*of_parent, last)}
    assert len(ports) == 1
    assert of_child.client_port not in ports


# Flush, close, and a writer of one's own


def test_flush_says_whether_everything_before_it_is_in_bigquery(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    handler = attach(source="app", flush_interval=3600)
    assert handler.flush(0)
    scripted.always(status(503))
    logger.info("an event", extra={"event_type": "a.b"})
    assert not handler.flush(0.01)
    scripted.healthy()
    assert handler.flush(10)
    assert len(scripted.rows) == 1


def test_flush_without_a_timeout_waits_for_close_timeout_at_most(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    """For logging.shutdown and dictConfig call it so."""
    handler = attach(source="app", close_timeout=0.01)
    scripted.always(status(503))
    logger.info("an event", extra={"event_type": "a.b"})
    assert not handler.flush()
    scripted.healthy()
    assert handler.flush(10)


def test_what_is_logged_after_close_is_still_delivered(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    handler = attach(source="app")
    logger.info("an event", extra={"event_type": "before"})
    handler.close()
    assert [row["event_type"] for row in scripted.rows] == ["before"]
    logger.info("an event", extra={"event_type": "after"})
    assert handler.flush(10)
    assert [row["event_type"] for row in scripted.rows] == ["before", "after"]


def test_logging_shutdown_flushes(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    attach(source="app", flush_interval=3600)
    logger.info("an event", extra={"event_type": "a.b"})
    logging.shutdown()
    assert len(scripted.rows) == 1


def test_handlers_may_share_a_writer(
    scripted: ScriptedBigQuery, client: bigquery.Client, logger: logging.Logger, attach: Attach
) -> None:
    writer = EventWriter(client)
    assert attach(source="first", writer=writer).writer is writer
    attach(source="second", writer=writer)
    logger.info("an event", extra={"event_type": "a.b"})
    writer.close()
    assert sorted(row["source"] for row in scripted.rows) == ["first", "second"]


def test_options_beside_a_writer_would_have_no_effect_and_are_refused(
    client: bigquery.Client,
) -> None:
    writer = EventWriter(client)
    with pytest.raises(
        ValueError,
        match=r"^batch_rows, capacity, bq_client would have no effect: a writer is given, so that "
        "it decides$",
    ):
        BigQueryEventHandler(client, writer=writer, capacity=5, batch_rows=5)


def test_a_log_call_takes_no_lock_of_the_handler(attach: Attach) -> None:
    assert attach().lock is None
