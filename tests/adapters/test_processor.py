"""The structlog processor: which event dicts become events, and what it never does to a line."""

from __future__ import annotations

import io
import json
import logging
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from google.cloud import bigquery

from clients import Query
from lorc_eventlog import BigQueryEventProcessor, EventWriter
from scripted_bigquery import ScriptedBigQuery, status

PRIVATE = "PrivateWord"

Make = Callable[..., BigQueryEventProcessor]

HERE = f" ({__file__}:…)"
"""The place of a log call in this file, without its line."""


def without_line(message: str) -> str:
    return re.sub(rf"({re.escape(__file__)}):\d+\)", r"\1:…)", message)


@pytest.fixture(autouse=True)
def fresh_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def make(scripted: ScriptedBigQuery) -> Iterator[Make]:
    """Make a processor of ``scripted``."""
    made = []

    def make(**options: Any) -> BigQueryEventProcessor:
        made.append(BigQueryEventProcessor(**options))
        return made[-1]

    yield make
    scripted.healthy()
    for processor in made:
        processor.close()


def process(processor: BigQueryEventProcessor, **event_dict: Any) -> None:
    assert processor(None, "info", event_dict) is event_dict


def payload_of(scripted: ScriptedBigQuery) -> Any:
    [event] = scripted.events()
    return event["payload"]


# What is an event, and what it holds


def test_all_fields_are_read_from_the_event_dict(scripted: ScriptedBigQuery, make: Make) -> None:
    processor = make(source="not this one")
    fields = {
        "event_type": "email.received",
        "source": "gmail_ingester",
        "schema_ref": "email.v1",
        "correlation_id": "trace-1",
        "subject_id": "patient-17",
        "payload": {"labels": ["inbox"]},
    }
    before = datetime.now(UTC)
    process(processor, event="received", level="info", more=1, **fields)
    assert processor.flush(10)
    [event] = scripted.events()
    assert uuid.UUID(event.pop("event_id")).version == 4
    created_at = event.pop("created_at")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", created_at)
    assert before <= datetime.fromisoformat(created_at) <= datetime.now(UTC)
    assert event == fields


def test_without_a_payload_it_is_all_that_is_bound_without_what_is_not_the_events_own(
    scripted: ScriptedBigQuery, make: Make
) -> None:
    processor = make(source="not this one")
    process(
        processor,
        event="received",
        subject="Hello",
        labels=["inbox"],
        user_level=3,
        # the envelope's keys
        event_id="bound",
        event_type="email.received",
        source="gmail_ingester",
        schema_ref="email.v1",
        created_at="bound",
        correlation_id="trace-1",
        subject_id="patient-17",
        # structlog's own
        level="info",
        timestamp="2025-11-18T20:45:00Z",
        logger="app",
        logger_name="app",
        exc_info=True,
        stack_info="Stack",
        _record=None,
        _from_structlog=True,
        _anything=1,
    )
    assert processor.flush(10)
    assert payload_of(scripted) == {
        "event": "received",
        "subject": "Hello",
        "labels": ["inbox"],
        "user_level": 3,
    }
    assert scripted.rows[0]["event_id"] != "bound"


def test_an_empty_payload_is_a_payload(scripted: ScriptedBigQuery, make: Make) -> None:
    processor = make(source="app")
    process(processor, event="received", event_type="a.b", payload={}, more=1)
    assert processor.flush(10)
    assert payload_of(scripted) == {}


def test_a_payload_that_is_none_is_no_payload_and_a_source_that_is_none_no_source(
    scripted: ScriptedBigQuery, make: Make
) -> None:
    processor = make(source="app")
    process(processor, event="received", event_type="a.b", payload=None, source=None, more=1)
    assert processor.flush(10)
    assert payload_of(scripted) == {"event": "received", "more": 1}
    assert scripted.rows[0]["source"] == "app"


def test_event_dicts_without_an_event_type_pass_by(scripted: ScriptedBigQuery, make: Make) -> None:
    processor = make(source="app", background=False)
    process(processor, event="a line", payload={"a": 1})
    process(processor, event="a line", event_type=None)
    assert processor.writer.stats().submitted == 0
    assert scripted.requests == []


def test_the_payload_arrives_as_it_was_at_the_call(scripted: ScriptedBigQuery, make: Make) -> None:
    processor = make(source="app")
    labels = ["inbox"]
    process(processor, event="received", event_type="a.b", labels=labels)
    labels.append("changed")
    assert processor.flush(10)
    assert payload_of(scripted) == {"event": "received", "labels": ["inbox"]}


def test_the_event_dict_is_returned_unchanged(make: Make) -> None:
    processor = make(source="app")
    event_dict = {
        "event": "received",
        "event_type": "a.b",
        "subject_id": "patient-17",
        "payload": {"labels": ["inbox"]},
        "level": "info",
    }
    before = json.dumps(event_dict)
    assert processor(None, "info", event_dict) is event_dict
    assert json.dumps(event_dict) == before


# In a chain


@pytest.mark.usefixtures("events_table")
def test_contextvars_and_bound_values_reach_bigquery_and_the_line_is_rendered(
    query: Query, capsys: pytest.CaptureFixture[str]
) -> None:
    processor = BigQueryEventProcessor()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            processor,
            structlog.processors.JSONRenderer(sort_keys=True),
        ]
    )
    structlog.contextvars.bind_contextvars(correlation_id="trace-1", source="ingester")
    log = structlog.get_logger().bind(subject_id="patient-17", mailbox="private")
    log.info("connected")
    log.info("received", event_type="email.received", labels=["inbox"])
    log.info("sent", event_type="report.sent", payload={"pages": 3})
    assert processor.flush(10)
    processor.close()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["connected", "received", "sent"]
    assert lines[1]["labels"] == ["inbox"]
    assert query("SELECT * EXCEPT (event_id, created_at) FROM events ORDER BY event_type") == [
        {
            "event_type": "email.received",
            "source": "ingester",
            "schema_ref": None,
            "correlation_id": "trace-1",
            "subject_id": "patient-17",
            "payload": {"event": "received", "mailbox": "private", "labels": ["inbox"]},
        },
        {
            "event_type": "report.sent",
            "source": "ingester",
            "schema_ref": None,
            "correlation_id": "trace-1",
            "subject_id": "patient-17",
            "payload": {"pages": 3},
        },
    ]


@pytest.fixture
def stdlib_chain() -> Iterator[Callable[[BigQueryEventProcessor], io.StringIO]]:
    """Configure structlog and logging together, as structlog's documentation shows it.

    The same processors see lines of structlog and lines of the standard library. The lines are
    rendered to what is returned.
    """
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    google = logging.getLogger("google")
    propagates, google.propagate = google.propagate, True

    def configure(processor: BigQueryEventProcessor) -> io.StringIO:
        shared: list[Any] = [
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            processor,
        ]
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                *shared,
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
        lines = io.StringIO()
        handler = logging.StreamHandler(lines)
        handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=shared,
                processors=[
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.JSONRenderer(default=repr),
                ],
            )
        )
        root.handlers = [handler]
        root.setLevel(logging.DEBUG)
        return lines

    yield configure
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    google.propagate = propagates


def test_with_structlogs_stdlib_logger_each_event_is_sent_once_and_each_line_rendered(
    scripted: ScriptedBigQuery,
    make: Make,
    stdlib_chain: Callable[[BigQueryEventProcessor], io.StringIO],
) -> None:
    processor = make(source="app")
    lines = stdlib_chain(processor)
    structlog.get_logger("app.structlog").info("received", event_type="a.b", labels=["inbox"])
    logging.getLogger("app.logging").info("by logging", extra={"event_type": "c.d", "n": 1})
    logging.getLogger("app.logging").info("a line")
    assert processor.flush(10)
    assert [(event["event_type"], event["payload"]) for event in scripted.events()] == [
        ("a.b", {"event": "received", "labels": ["inbox"]}),
        ("c.d", {"event": "by logging", "n": 1}),
    ]
    rendered = [json.loads(line) for line in lines.getvalue().splitlines()]
    of_app = [line for line in rendered if line["logger"].startswith("app.")]
    assert [line["event"] for line in of_app] == ["received", "by logging", "a line"]
    assert [line.get("event_type") for line in of_app] == ["a.b", "c.d", None]


@pytest.mark.parametrize("background", [True, False])
def test_what_the_delivery_logs_is_never_an_event_whatever_the_context_puts_on_it(
    scripted: ScriptedBigQuery,
    make: Make,
    stdlib_chain: Callable[[BigQueryEventProcessor], io.StringIO],
    background: bool,
) -> None:
    processor = make(source="app", background=background)
    lines = stdlib_chain(processor)
    structlog.contextvars.bind_contextvars(event_type="of.context")
    structlog.get_logger("app").info("received")
    assert processor.flush(10)
    assert "urllib3.connectionpool" in lines.getvalue()
    assert len(scripted.rows) == processor.writer.stats().submitted == 1


def test_a_report_of_a_bad_event_is_not_itself_one(
    make: Make, stdlib_chain: Callable[[BigQueryEventProcessor], io.StringIO]
) -> None:
    lines = stdlib_chain(make())
    structlog.contextvars.bind_contextvars(event_type="of.context")  # and no source
    structlog.get_logger("app").info("received")
    assert [json.loads(line)["logger"] for line in lines.getvalue().splitlines()] == [
        "lorc_eventlog",
        "app",
    ]


# A bad event


CYCLE: dict[str, Any] = {}
CYCLE["itself"] = CYCLE


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(
    ("fields", "what", "why"),
    [
        (
            {"event_type": ""},
            "event ''",
            "event_type must be a non-empty string, not an empty string",
        ),
        ({"event_type": 5}, "an event", "event_type must be a non-empty string, not int"),
        ({"source": None}, "event 'bad.one'", "source is missing: it must be a non-empty string"),
        ({"payload": PRIVATE}, "event 'bad.one'", "payload must be a mapping (a dict), not str"),
        (
            {"source": ""},
            "event 'bad.one'",
            "source must be a non-empty string, not an empty string",
        ),
        (
            {"cycle": CYCLE},
            "event 'bad.one'",
            "payload holds a cycle: a container that contains itself",
        ),
    ],
)
def test_a_bad_event_is_reported_once_its_line_rendered_and_the_events_around_it_delivered(
    scripted: ScriptedBigQuery,
    make: Make,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    background: bool,
    fields: dict[str, Any],
    what: str,
    why: str,
) -> None:
    processor = make(background=background)
    structlog.configure(
        processors=[processor, structlog.processors.KeyValueRenderer(key_order=["event"])]
    )
    log = structlog.get_logger().bind(subject_id=PRIVATE, x=PRIVATE)
    good = {"event_type": "good", "source": "app"}
    log.info("before", **good)
    log.info("bad", **{**good, "event_type": "bad.one", **fields})
    log.info("after", **good)
    assert processor.flush(10)
    assert [event["payload"]["event"] for event in scripted.events()] == ["before", "after"]
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [
        "event='before'",
        "event='bad'",
        "event='after'",
    ]
    assert err == ""
    [record] = caplog.records
    assert (record.name, record.levelname) == ("lorc_eventlog", "ERROR")
    assert without_line(record.getMessage()) == f"{what}{HERE} is not recorded: ValueError: {why}"
    assert record.exc_info is None
    assert PRIVATE not in repr(record.__dict__)


class Hostile(str):
    """A string that raises whatever it is asked."""

    __slots__ = ()

    def __len__(self) -> int:
        raise ValueError(PRIVATE)

    def __repr__(self) -> str:
        raise ValueError(PRIVATE)


def test_a_report_names_the_place_of_a_line_that_the_standard_library_logged(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    record = logging.LogRecord("app", logging.INFO, "/srv/app.py", 7, "happened", (), None)
    process(make(source="app"), event="happened", event_type="", _record=record)
    [said] = caplog.records
    assert said.getMessage().startswith("event '' of logger 'app' (/srv/app.py:7) is not recorded")


class HostileKey:
    def __str__(self) -> str:
        raise ValueError(PRIVATE)


@pytest.mark.parametrize(
    "fields",
    [
        {"event_type": Hostile("a.b"), "source": "app"},
        {"event_type": "a.b", "source": Hostile("app")},
    ],
)
def test_of_an_error_that_is_not_the_packages_own_only_the_type_is_told(
    make: Make, caplog: pytest.LogCaptureFixture, fields: dict[str, Any]
) -> None:
    processor = make(background=False)
    assert processor(None, "info", fields) is fields
    assert [without_line(record.getMessage()) for record in caplog.records] == [
        f"event 'a.b'{HERE} is not recorded: ValueError"
    ]


def test_a_key_that_cannot_be_said_costs_no_event(make: Make, scripted: ScriptedBigQuery) -> None:
    processor = make(background=False)
    line: Any = {"event_type": "a.b", "source": "app", HostileKey(): 1}
    assert processor(None, "info", line) is line
    [value] = payload_of(scripted).values()
    assert value == 1


def test_a_filter_of_our_logger_that_raises_does_not_reach_the_application(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: logging.LogRecord) -> bool:
        raise LookupError(PRIVATE)

    monkeypatch.setattr(logging.getLogger("lorc_eventlog"), "filters", [broken])
    process(make(source="app"), event="received", event_type="")
    assert without_line(capsys.readouterr().err) == (
        f"lorc_eventlog: logging raised LookupError for: event ''{HERE} is not recorded: "
        "ValueError: event_type must be a non-empty string, not an empty string\n"
    )


@pytest.mark.parametrize(
    ("renderer", "kind"),
    [
        (structlog.processors.JSONRenderer(), "str"),
        (structlog.stdlib.ProcessorFormatter.wrap_for_formatter, "tuple"),
    ],
)
def test_behind_a_renderer_it_lets_lines_pass_and_says_once_where_it_belongs(
    make: Make, caplog: pytest.LogCaptureFixture, renderer: Any, kind: str
) -> None:
    processor = make(source="app")
    for _ in range(2):
        line = renderer(None, "info", {"event": PRIVATE, "event_type": "a.b"})
        assert processor(None, "info", line) is line
    [record] = caplog.records
    assert (record.name, record.levelname) == ("lorc_eventlog", "ERROR")
    assert record.getMessage() == (
        f"no event is recorded: BigQueryEventProcessor gets lines that are rendered ({kind}): "
        f"put the processor before the renderer"
    )


def test_in_the_foreground_what_bigquery_refuses_is_reported_without_a_word_of_it(
    scripted: ScriptedBigQuery, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    processor = make(source="app", background=False)
    scripted.script(status(400, message=f"Bad value {PRIVATE}"))
    process(processor, event=PRIVATE, event_type="refused", subject_id=PRIVATE)
    process(processor, event=PRIVATE, event_type="taken", subject_id=PRIVATE)
    assert [row["event_type"] for row in scripted.rows] == ["taken"]
    [record] = caplog.records
    assert record.getMessage().endswith("(refused): 400 invalid: Bad value …")
    assert PRIVATE not in repr(record.__dict__)


# What it shares with the handler


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.usefixtures("scripted")
def test_a_missing_variable_fails_when_it_is_made(
    monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    monkeypatch.delenv("EVENTS_BQ_TABLE")
    with pytest.raises(RuntimeError, match=r"^EVENTS_BQ_TABLE not set: "):
        BigQueryEventProcessor(background=background)


def test_a_client_may_be_given(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    processor = BigQueryEventProcessor(client, source="app", batch_rows=5)
    process(processor, event="received", event_type="a.b")
    processor.close()
    assert len(scripted.rows) == 1


def test_a_processor_may_share_the_writer_of_a_handler(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    writer = EventWriter(client)
    processor = BigQueryEventProcessor(source="app", writer=writer)
    assert processor.writer is writer
    process(processor, event="received", event_type="a.b")
    assert processor.flush(10)
    assert len(scripted.rows) == 1


def test_options_that_would_have_no_effect_are_refused(client: bigquery.Client) -> None:
    with pytest.raises(ValueError, match=r"^bq_client would have no effect: a writer is given"):
        BigQueryEventProcessor(client, writer=EventWriter(client))
    with pytest.raises(ValueError, match=r"^capacity would have no effect: background is false"):
        BigQueryEventProcessor(background=False, capacity=5)


@pytest.mark.usefixtures("scripted")
def test_an_option_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^bq_client must be a google\.cloud\.bigquery\.Client "):
        BigQueryEventProcessor("app.client")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^no such option: batch_size; the options are bq_client,"):
        BigQueryEventProcessor(batch_size=5)  # type: ignore[call-arg]


def test_in_the_foreground_nothing_is_ever_buffered(
    scripted: ScriptedBigQuery, client: bigquery.Client, make: Make
) -> None:
    processor = make(bq_client=client, source="app", background=False)
    process(processor, event="received", event_type="a.b")
    assert len(scripted.rows) == 1
    assert processor.flush()
    assert processor.flush(0)
    processor.close()
    process(processor, event="received", event_type="a.b")
    assert len(scripted.rows) == 2
