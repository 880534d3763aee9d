"""Where events come from: extras, loguru, structlog through the standard library, adapters."""

from __future__ import annotations

import json
import logging
import logging.config
import subprocess
import sys
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import loguru
import pytest
import structlog
from asgi_correlation_id import CorrelationIdFilter, correlation_id

from lorc_eventlog import BigQueryEventHandler, BigQueryEventProcessor, Envelope
from scripted_bigquery import ScriptedBigQuery


@pytest.fixture
def events() -> Iterator[list[Envelope]]:
    """The events of the test."""
    from lorc_eventlog.testing import capture_events

    with capture_events() as captured:
        yield captured


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger that only the test knows, below one that it knows, too."""
    made = logging.getLogger(f"app.{uuid.uuid4().hex}.part")
    made.setLevel(logging.INFO)
    yield made
    made.handlers.clear()


class TestPayloadFromExtra:
    @pytest.fixture
    def log(self, logger: logging.Logger, events: list[Envelope]) -> logging.Logger:  # noqa: ARG002
        logger.addHandler(BigQueryEventHandler(source="s", payload_from_extra=True))
        return logger

    def test_all_other_extras_are_the_payload(
        self, log: logging.Logger, events: list[Envelope]
    ) -> None:
        extra = {"event_type": "a.b", "subject_id": "patient-17", "score": 7, "tags": ("x",)}
        log.info("happened", extra=extra)
        [event] = events
        assert event["payload"] == {"score": 7, "tags": ["x"]}
        assert event["subject_id"] == "patient-17"

    def test_a_payload_that_is_given_is_the_payload(
        self, log: logging.Logger, events: list[Envelope]
    ) -> None:
        log.info("happened", extra={"event_type": "a.b", "payload": {"a": 1}, "score": 7})
        log.info("happened", extra={"event_type": "a.b", "payload": {}, "score": 7})
        assert [event["payload"] for event in events] == [{"a": 1}, {}]

    def test_what_logging_knows_and_what_begins_with_an_underscore_is_not(
        self, log: logging.Logger, events: list[Envelope]
    ) -> None:
        console = logging.StreamHandler()
        console.setFormatter(logging.Formatter("%(asctime)s %(message)s"))  # sets both
        log.handlers.insert(0, console)
        try:
            raise KeyError  # noqa: TRY301  for exc_text
        except KeyError:
            log.exception("hap%s", "pened", stack_info=True, extra={"event_type": "a.b", "_x": 1})
        assert events[0]["payload"] == {}

    def test_what_the_factory_of_an_application_sets_is(
        self, log: logging.Logger, events: list[Envelope]
    ) -> None:
        before = logging.getLogRecordFactory()

        def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = before(*args, **kwargs)
            record.tenant = "t-1"
            return record

        logging.setLogRecordFactory(factory)
        try:
            log.info("happened", extra={"event_type": "a.b"})
        finally:
            logging.setLogRecordFactory(before)
        assert events[0]["payload"] == {"tenant": "t-1"}

    def test_it_is_off_unless_it_is_asked_for(
        self, logger: logging.Logger, events: list[Envelope]
    ) -> None:
        logger.addHandler(BigQueryEventHandler(source="s"))
        logger.info("happened", extra={"event_type": "a.b", "score": 7})
        assert events[0]["payload"] == {}

    def test_a_dictconfig_may_ask_for_it(self, events: list[Envelope]) -> None:
        name = f"app.{uuid.uuid4().hex}"
        options = {"source": "s", "payload_from_extra": True}
        handler = {"class": "lorc_eventlog.BigQueryEventHandler", **options}
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {"events": handler},
                "loggers": {name: {"level": "INFO", "handlers": ["events"]}},
            }
        )
        logging.getLogger(name).info("happened", extra={"event_type": "a.b", "score": 7})
        assert events[0]["payload"] == {"score": 7}


class TestLoguru:
    @pytest.fixture
    def add(self) -> Iterator[Any]:
        """Add a handler to loguru, as its users do."""
        made = []

        def add(handler: logging.Handler, **options: Any) -> Any:
            made.append(loguru.logger.add(handler, **options))
            return loguru.logger

        loguru.logger.remove()
        yield add
        for number in made:
            loguru.logger.remove(number)

    def test_what_is_bound_is_the_event(self, add: Any, events: list[Envelope]) -> None:
        log = add(BigQueryEventHandler(source="s"))
        log.bind(
            event_type="a.b",
            source="mine",
            schema_ref="b.v1",
            correlation_id="trace-1",
            subject_id="patient-17",
            payload={"a": 1},
        ).info("happened")
        [event] = events
        assert list(event.values())[1:4] == ["a.b", "mine", "b.v1"]
        assert list(event.values())[5:] == ["trace-1", "patient-17", {"a": 1}]

    @pytest.mark.parametrize("options", [{}, {"serialize": True}, {"enqueue": True}])
    def test_every_way_to_give_extras_is_taken(
        self, add: Any, events: list[Envelope], options: dict[str, bool]
    ) -> None:
        log = add(BigQueryEventHandler(source="s", payload_from_extra=True), **options)
        with log.contextualize(correlation_id="trace-1"):
            log.bind(event_type="a.bound").info("happened")
            log.info("happened to {name}", event_type="a.keyword", name="Ada")
            log.info("no event")
        log.complete()
        assert [event["event_type"] for event in events] == ["a.bound", "a.keyword"]
        assert [event["payload"] for event in events] == [{}, {"name": "Ada"}]
        assert {event["correlation_id"] for event in events} == {"trace-1"}

    def test_other_extras_are_the_payload_only_if_that_is_asked_for(
        self, add: Any, events: list[Envelope]
    ) -> None:
        log = add(BigQueryEventHandler(source="s"))
        log.bind(event_type="a.b", name="Ada").info("happened")
        assert events[0]["payload"] == {}

    def test_an_exception_is_an_event_like_any_other(
        self, add: Any, events: list[Envelope]
    ) -> None:
        log = add(BigQueryEventHandler(source="s"))
        try:
            raise KeyError  # noqa: TRY301
        except KeyError:
            log.bind(event_type="a.b").exception("happened")
        assert len(events) == 1

    def test_a_bad_event_is_reported_and_the_log_call_goes_on(
        self, add: Any, events: list[Envelope], capsys: pytest.CaptureFixture[str]
    ) -> None:
        log = add(BigQueryEventHandler(source="s"))
        log.bind(event_type="a.b", payload="PrivateWord").info("happened")
        log.bind(event_type="a.c").info("happened")
        assert [event["event_type"] for event in events] == ["a.c"]
        said = capsys.readouterr().err
        assert "event 'a.b' of logger " in said
        assert "payload must be a mapping (a dict), not str" in said
        assert "PrivateWord" not in said

    def test_a_filter_of_the_handler_may_set_what_it_sets_elsewhere(
        self, add: Any, events: list[Envelope]
    ) -> None:
        handler = BigQueryEventHandler(source="s")
        handler.addFilter(CorrelationIdFilter())
        token = correlation_id.set("trace-1")
        try:
            add(handler).bind(event_type="a.b", payload={"a": 1}).info("happened")
        finally:
            correlation_id.reset(token)
        assert events[0]["correlation_id"] == "trace-1"
        assert events[0]["payload"] == {"a": 1}

    @pytest.mark.process
    @pytest.mark.parametrize("first", ["loguru", "lorc_eventlog"])
    def test_what_waits_in_a_queue_at_exit_is_delivered(
        self, scripted: ScriptedBigQuery, first: str
    ) -> None:
        """Whichever was imported first: exit functions run in the reverse order."""
        program = f"""
import {first}
from loguru import logger
from lorc_eventlog import BigQueryEventHandler
logger.remove()
logger.add(BigQueryEventHandler(source="s"), enqueue=True)
for number in range(500):
    logger.bind(event_type="a.b", payload={{"number": number}}).info("happened")
"""
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
        )
        assert ended.stderr == ""
        numbers = sorted(event["payload"]["number"] for event in scripted.events())
        assert numbers == list(range(500))


class TestStructlogThroughTheStandardLibrary:
    @pytest.fixture(autouse=True)
    def fresh_structlog(self) -> Iterator[None]:
        yield
        structlog.reset_defaults()

    @pytest.fixture
    def log(self, logger: logging.Logger, events: list[Envelope]) -> Any:  # noqa: ARG002
        """A structlog logger that hands its event dicts to the standard library."""
        structlog.configure(
            processors=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
        logger.addHandler(BigQueryEventHandler(source="s"))
        return structlog.get_logger(logger.name)

    def test_an_event_is_what_the_processor_makes_of_it(
        self, log: Any, events: list[Envelope]
    ) -> None:
        line = {"event_type": "a.b", "subject_id": "patient-17", "score": 7}
        log.info("happened", **line)
        BigQueryEventProcessor(source="s")(None, "info", {"event": "happened", **line})
        by_handler, by_processor = ({**event, "event_id": 0, "created_at": 0} for event in events)
        assert by_handler == by_processor
        assert events[0]["payload"] == {"event": "happened", "score": 7}

    def test_a_payload_that_is_given_is_the_payload(self, log: Any, events: list[Envelope]) -> None:
        log.info("happened", event_type="a.b", payload={"a": 1}, score=7)
        assert events[0]["payload"] == {"a": 1}

    def test_other_lines_pass_by(
        self, log: Any, events: list[Envelope], logger: logging.Logger
    ) -> None:
        log.info("no event", score=7)
        logger.info({"score": 7})
        logger.info(7)
        assert events == []

    def test_a_console_beside_it_prints_the_line(
        self,
        log: Any,
        events: list[Envelope],
        logger: logging.Logger,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        console = logging.StreamHandler(sys.stdout)
        renderer = structlog.processors.JSONRenderer()
        console.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer))
        logger.addHandler(console)
        log.info("happened", event_type="a.b", score=7)
        assert json.loads(capsys.readouterr().out)["score"] == 7
        assert events[0]["payload"] == {"event": "happened", "score": 7}

    def test_a_message_that_is_a_dict_of_any_kind_is_taken(
        self, logger: logging.Logger, events: list[Envelope]
    ) -> None:
        class Odd(OrderedDict[str, Any]):
            def get(self, *_: object) -> Any:
                raise RuntimeError

            copy = get

        logger.addHandler(BigQueryEventHandler(source="s"))
        logger.info(Odd(event_type="a.b", score=7))
        assert events[0]["payload"] == {"score": 7}


class TestNothingArrivesOrTwice:
    """The causes that docs/operate/monitoring.md names."""

    def test_an_adapter_without_merge_extra_replaces_the_extras_of_the_call(
        self, logger: logging.Logger, events: list[Envelope]
    ) -> None:
        logger.addHandler(BigQueryEventHandler(source="s"))
        adapter = logging.LoggerAdapter(logger, {"correlation_id": "trace-1"})
        adapter.info("happened", extra={"event_type": "a.b"})
        assert events == []

        class Merging(logging.LoggerAdapter[logging.Logger]):
            def process(self, msg: Any, kwargs: Any) -> Any:
                kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
                return msg, kwargs

        Merging(logger, {"correlation_id": "trace-1"}).info("happened", extra={"event_type": "a.b"})
        assert events.pop()["correlation_id"] == "trace-1"

        if sys.version_info >= (3, 13):
            merging = logging.LoggerAdapter(logger, {"correlation_id": "t"}, merge_extra=True)
            merging.info("happened", extra={"event_type": "a.b"})
            assert events.pop()["correlation_id"] == "t"

    @pytest.mark.parametrize("hidden_by", ["logger", "handler", "disable", "disabled logger"])
    def test_a_level_hides_events_as_it_hides_every_line(
        self, logger: logging.Logger, events: list[Envelope], hidden_by: str
    ) -> None:
        handler = BigQueryEventHandler(source="s")
        logger.addHandler(handler)
        if hidden_by == "logger":
            logger.setLevel(logging.WARNING)
        elif hidden_by == "handler":
            handler.setLevel(logging.WARNING)
        elif hidden_by == "disable":
            logging.disable(logging.INFO)
        else:
            logger.disabled = True
        try:
            logger.info("happened", extra={"event_type": "a.b"})
        finally:
            logging.disable(logging.NOTSET)
        assert events == []

    def test_a_logger_that_does_not_propagate_tells_no_handler_above_it(
        self, logger: logging.Logger, events: list[Envelope]
    ) -> None:
        assert logger.parent is not None
        above = BigQueryEventHandler(source="s")
        logging.getLogger().addHandler(above)
        try:
            logger.propagate = False
            logger.info("happened", extra={"event_type": "a.b"})
        finally:
            logging.getLogger().removeHandler(above)
        assert events == []

    def test_a_handler_on_a_logger_and_on_the_root_records_every_event_twice(
        self, logger: logging.Logger, events: list[Envelope]
    ) -> None:
        handler = BigQueryEventHandler(source="s")
        logger.addHandler(handler)
        logging.getLogger().addHandler(handler)
        try:
            logger.info("happened", extra={"event_type": "a.b"})
            assert len({event["event_id"] for event in events}) == 2
            logger.propagate = False
            logger.info("happened", extra={"event_type": "a.b"})
            assert len(events) == 3
        finally:
            logging.getLogger().removeHandler(handler)
