"""What other handlers and renderers see of an event: neither payload nor subject_id."""

from __future__ import annotations

import copy
import io
import json
import logging
import logging.config
import logging.handlers
import pickle
import queue
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import structlog

from lorc_eventlog import (
    BigQueryEventHandler,
    BigQueryEventProcessor,
    Envelope,
    RedactionFilter,
)
from lorc_eventlog.testing import capture_events
from scripted_bigquery import ScriptedBigQuery

PRIVATE = "PrivateWord"
EVENT = {"event_type": "a.b", "subject_id": f"{PRIVATE}-1", "payload": {"text": PRIVATE}}


def test_nobody_on_the_way_to_bigquery_logs_the_body_of_a_request(
    scripted: ScriptedBigQuery, logger: logging.Logger
) -> None:
    """As SECURITY.md says of Google's client, requests and urllib3."""
    everything = logging.handlers.BufferingHandler(10_000)
    above = [logging.getLogger(name) for name in ("", "google", "urllib3", "requests")]
    before = [(each, each.level, each.propagate) for each in above]
    for each in above:
        each.setLevel(logging.DEBUG)
        each.propagate = True
    logging.getLogger().addHandler(everything)
    try:
        handler = BigQueryEventHandler(source="s")
        logger.addHandler(handler)
        logger.info("happened", extra=EVENT)
        assert handler.flush(20)
        handler.close()
    finally:
        logging.getLogger().removeHandler(everything)
        for each, level, propagate in before:
            each.setLevel(level)
            each.propagate = propagate
    assert len(scripted.rows) == 1
    said = [str(record.__dict__) for record in everything.buffer]
    assert any("insertAll" in text for text in said)
    assert not any(PRIVATE in text for text in said)


@pytest.fixture
def events() -> Iterator[list[Envelope]]:
    with capture_events() as captured:
        yield captured


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger(f"app.{uuid.uuid4().hex}")
    made.setLevel(logging.INFO)
    made.propagate = False  # pytest keeps records, and prints them where a test fails
    yield made
    made.handlers.clear()


class Everything(logging.Formatter):
    """Formats all that a record holds, as the least careful JSON formatter does."""

    def format(self, record: logging.LogRecord) -> str:
        return str(json.dumps(record.__dict__, default=repr))


def console(*, payload_from_extra: bool = False) -> tuple[logging.Handler, io.StringIO]:
    """A handler that prints everything, redacted, and what it prints."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Everything())
    handler.addFilter(RedactionFilter(payload_from_extra=payload_from_extra))
    return handler, stream


@pytest.fixture(params=["replaces the record", "changes the record"])
def either_python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Filters may replace records since 3.12; the filter can do both on every version."""
    replaces: bool = request.param == "replaces the record"
    monkeypatch.setattr(RedactionFilter, "_replaces", replaces)
    return replaces


class ReplacingHandler(logging.StreamHandler[Any]):
    """A handler that takes what its filters return, as those of Python 3.12 do."""

    def handle(self, record: logging.LogRecord) -> bool:
        for each in self.filters:
            assert isinstance(each, RedactionFilter)
            record = each.filter(record)
        self.emit(record)
        return True


class TestRedactionFilter:
    @pytest.mark.parametrize("events_come", ["before", "after"])
    def test_the_event_is_whole_and_the_line_beside_it_is_not(
        self, logger: logging.Logger, events: list[Envelope], events_come: str
    ) -> None:
        handler, stream = console()
        handlers = [BigQueryEventHandler(source="s"), handler]
        for each in handlers if events_come == "before" else reversed(handlers):
            logger.addHandler(each)
        logger.info("happened", extra={**EVENT, "tenant": "t-1"})
        [event] = events
        assert event["payload"] == EVENT["payload"]
        assert event["subject_id"] == EVENT["subject_id"]
        assert PRIVATE not in stream.getvalue()
        line = json.loads(stream.getvalue())
        assert (line["msg"], line["event_type"], line["tenant"]) == ("happened", "a.b", "t-1")

    def test_it_works_on_every_python(
        self, logger: logging.Logger, events: list[Envelope], either_python: bool
    ) -> None:
        stream = io.StringIO()
        handler = ReplacingHandler(stream)
        handler.setFormatter(Everything())
        handler.addFilter(RedactionFilter())
        handler.addFilter(RedactionFilter())  # twice does no harm
        after = logging.handlers.BufferingHandler(100)
        for each in (handler, BigQueryEventHandler(source="s"), after):
            logger.addHandler(each)
        logger.info("happened", extra=EVENT)
        assert events[0]["payload"] == EVENT["payload"]
        assert events[0]["subject_id"] == EVENT["subject_id"]
        assert PRIVATE not in stream.getvalue()
        assert hasattr(after.buffer[0], "payload") is either_python

    @pytest.mark.usefixtures("either_python")
    def test_a_record_that_travels_on_keeps_its_event(
        self, logger: logging.Logger, events: list[Envelope]
    ) -> None:
        """Through a queue, a pickle and another filter on its way."""
        record = logger.makeRecord("app", logging.INFO, "", 1, "happened", (), None, extra=EVENT)
        redacted = RedactionFilter().filter(record)
        waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        logging.handlers.QueueHandler(waiting).handle(redacted)
        travelled = pickle.loads(pickle.dumps(copy.copy(waiting.get())))
        BigQueryEventHandler(source="s").handle(RedactionFilter().filter(travelled))
        assert events[0]["payload"] == EVENT["payload"]
        assert events[0]["subject_id"] == EVENT["subject_id"]

    def test_lines_that_are_no_events_lose_the_same(self, logger: logging.Logger) -> None:
        handler, stream = console()
        logger.addHandler(handler)
        logger.info("no event", extra={"subject_id": PRIVATE, "payload": PRIVATE, "tenant": "t-1"})
        logger.info("plain")
        assert PRIVATE not in stream.getvalue()
        first, second = map(json.loads, stream.getvalue().splitlines())
        assert first["tenant"] == "t-1"
        assert "_lorc_eventlog_hidden" not in second

    def test_other_extras_are_hidden_where_they_are_the_payload(
        self, logger: logging.Logger, events: list[Envelope]
    ) -> None:
        handler, stream = console(payload_from_extra=True)
        logger.addHandler(handler)
        logger.addHandler(BigQueryEventHandler(source="s", payload_from_extra=True))
        extra = {"event_type": "a.b", "text": PRIVATE, "event": PRIVATE, "extra": {"a": PRIVATE}}
        logger.info("happened", extra=extra)
        logger.info("no event", extra={"tenant": "t-1"})
        first, second = map(json.loads, stream.getvalue().splitlines())
        assert PRIVATE not in str(first)
        assert second["tenant"] == "t-1"
        del extra["event_type"]
        assert events[0]["payload"] == extra

    def test_what_structlog_and_loguru_put_into_a_record_is_redacted(
        self, logger: logging.Logger, events: list[Envelope]
    ) -> None:
        handler, stream = console(payload_from_extra=True)
        logger.addHandler(handler)
        logger.addHandler(BigQueryEventHandler(source="s", payload_from_extra=True))
        bound = {"event_type": "a.b", "subject_id": PRIVATE, "text": PRIVATE}
        logger.info({"event": "happened", "level": "info", **bound})
        logger.info("happened", extra={"extra": bound})
        logger.info({"event": "no event", "tenant": "t-1", "subject_id": PRIVATE})
        assert PRIVATE not in stream.getvalue()
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert lines[0]["msg"] == {"event": "happened", "level": "info", "event_type": "a.b"}
        assert lines[1]["extra"] == {"event_type": "a.b"}
        assert lines[2]["msg"] == {"event": "no event", "tenant": "t-1"}
        payloads = [event["payload"] for event in events]
        assert payloads == [{"event": "happened", "text": PRIVATE}, {"text": PRIVATE}]
        assert [event["subject_id"] for event in events] == [PRIVATE] * 2

    def test_a_dictconfig_may_name_it(self, events: list[Envelope]) -> None:
        name = f"app.{uuid.uuid4().hex}"
        stream = io.StringIO()
        handlers = {
            "console": {
                "class": "logging.StreamHandler",
                "stream": stream,
                "filters": ["private"],
                "formatter": "everything",
            },
            "events": {"class": "lorc_eventlog.BigQueryEventHandler", "source": "s"},
        }
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "filters": {"private": {"()": "lorc_eventlog.RedactionFilter"}},
                "formatters": {"everything": {"()": Everything}},
                "handlers": handlers,
                "loggers": {
                    name: {"level": "INFO", "handlers": list(handlers), "propagate": False}
                },
            }
        )
        logging.getLogger(name).info("happened", extra=EVENT)
        assert events[0]["payload"] == EVENT["payload"]
        assert "happened" in stream.getvalue()
        assert PRIVATE not in stream.getvalue()

    def test_an_attribute_of_that_name_that_is_not_ours_is_left_alone(
        self, logger: logging.Logger, events: list[Envelope]
    ) -> None:
        logger.addHandler(BigQueryEventHandler(source="s"))
        extra = {"event_type": "a.b", "payload": {"a": 1}, "_lorc_eventlog_hidden": "mine"}
        logger.info("happened", extra=extra)
        assert events[0]["payload"] == {"a": 1}


class TestTheProcessor:
    @pytest.fixture
    def redacting(self, events: list[Envelope]) -> BigQueryEventProcessor:  # noqa: ARG002
        return BigQueryEventProcessor(source="s", redact_line=True)

    def test_the_line_is_printed_without_what_the_event_holds(
        self, redacting: BigQueryEventProcessor, events: list[Envelope]
    ) -> None:
        stream = io.StringIO()
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                redacting,
                structlog.processors.JSONRenderer(),
            ],
            logger_factory=structlog.PrintLoggerFactory(stream),
        )
        try:
            log = structlog.get_logger()
            log.info("happened", **EVENT, tenant="t-1")
            log.info("happened", event_type="a.c", text=PRIVATE, subject_id=PRIVATE)
            with structlog.contextvars.bound_contextvars(subject_id=PRIVATE):
                log.info("no event", tenant="t-1")
        finally:
            structlog.reset_defaults()
        assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
            {"event": "happened", "event_type": "a.b", "tenant": "t-1", "level": "info"},
            {"event": "happened", "event_type": "a.c", "level": "info"},
            {"event": "no event", "tenant": "t-1", "level": "info"},
        ]
        assert [event["payload"] for event in events] == [
            EVENT["payload"],
            {"event": "happened", "text": PRIVATE},
        ]

    def test_a_bad_event_is_redacted_too(
        self, redacting: BigQueryEventProcessor, events: list[Envelope]
    ) -> None:
        line = {"event": "happened", "event_type": "", "payload": {"text": PRIVATE}}
        assert redacting(None, "info", line) == {"event": "happened", "event_type": ""}
        assert line["payload"] == {"text": PRIVATE}
        assert events == []

    def test_what_cannot_be_read_is_not_printed_at_all(
        self, redacting: BigQueryEventProcessor
    ) -> None:
        class Unreadable(dict[str, Any]):
            def items(self) -> Any:
                raise RuntimeError(PRIVATE)

        line = Unreadable(event_type="a.b", payload=PRIVATE)
        assert redacting(None, "info", line) == {"event": "a line that cannot be redacted"}

    def test_a_line_that_is_rendered_already_passes_by_and_is_reported(
        self, redacting: BigQueryEventProcessor, caplog: pytest.LogCaptureFixture
    ) -> None:
        line: Any = '{"event": "happened"}'
        assert redacting(None, "info", line) == line
        assert "put the processor before the renderer" in caplog.text

    def test_without_the_option_the_line_stays_as_it_is(self, events: list[Envelope]) -> None:
        line: Mapping[str, Any] = {"event": "happened", **EVENT}
        assert BigQueryEventProcessor(source="s")(None, "info", line) is line  # type: ignore[arg-type]
        assert len(events) == 1

    def test_the_option_is_true_or_false(self) -> None:
        with pytest.raises(ValueError, match=r"^redact_line must be true or false, not 'yes'$"):
            BigQueryEventProcessor(redact_line="yes")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"writer, redact_line, batch_rows, "):
            BigQueryEventProcessor(redact=True)  # type: ignore[call-arg]


def hidden_record() -> logging.LogRecord:
    record = logging.makeLogRecord({"name": "a", "msg": "happened", **EVENT})
    return RedactionFilter().filter(record)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_redacted_record_may_be_pickled_for_a_process_that_delivers(protocol: int) -> None:
    """``SocketHandler`` uses protocol 1, and a queue of multiprocessing a later one."""
    attributes = pickle.loads(pickle.dumps(hidden_record().__dict__, protocol))
    assert PRIVATE not in str(attributes)
    with capture_events() as events:
        BigQueryEventHandler(source="s").handle(logging.makeLogRecord(attributes))
    assert [event["payload"] for event in events] == [{"text": PRIVATE}]


def test_a_redacted_record_that_went_through_json_is_an_event_without_payload() -> None:
    attributes = json.loads(json.dumps(hidden_record().__dict__, default=str))
    with capture_events() as events:
        BigQueryEventHandler(source="s").handle(logging.makeLogRecord(attributes))
    assert [(event["event_type"], event["payload"]) for event in events] == [("a.b", {})]


def test_a_record_that_cannot_be_copied_is_a_lost_event_and_no_exception(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Broken(logging.LogRecord):
        def __copy__(self) -> None:
            raise ValueError

    record = Broken("a", logging.INFO, "p", 1, {"event_type": "a.b"}, None, None)
    record.__dict__.update(hidden_record().__dict__, event_type=None, extra={})
    with capture_events():
        BigQueryEventHandler(source="s").handle(record)
    assert "ValueError" in capsys.readouterr().err
