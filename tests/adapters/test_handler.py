"""The handler: which log records become events, and what they hold."""

from __future__ import annotations

import copy
import inspect
import logging
import logging.config
import logging.handlers
import queue
import re
import sys
import traceback
import types
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asgi_correlation_id import CorrelationIdFilter, correlation_id
from google.cloud import bigquery

from clients import Query
from handlers import Attach, reports
from lorc_eventlog import BigQueryEventHandler, EventWriter
from scripted_bigquery import ScriptedBigQuery, status

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
        "spool_only": False,
        "spool_mode": "private",
        "deliver_on_sigterm": False,
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
                "background, writer, level, payload_from_extra, batch_rows, .*, deliver_on_sigterm$"
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
