"""The public names as their users write them: `mypy --strict` and pyright check this file.

Nothing runs it. Both must refuse each line that has a "type: ignore", and no other.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, assert_type

import attrs
import msgspec
import pydantic.v1
import structlog
from django.http import QueryDict
from google.cloud import bigquery
from multidict import MultiDict
from pydantic import BaseModel

from lorc_eventlog import (
    BigQueryEventHandler,
    BigQueryEventProcessor,
    Envelope,
    EventWriter,
    ForegroundWriter,
    WriterStats,
    build_envelope,
    check_events_table,
    create_events_table,
    emit,
)


def tables(client: bigquery.Client) -> bigquery.Table:
    create_events_table(client, location="EU")
    check_events_table(client)
    return create_events_table(client)


def envelopes() -> Envelope:
    envelope = build_envelope(
        event_type="email.received",
        payload={"subject": "Hello", "labels": ["inbox"], "size": 3},
        source="gmail_ingester",
        schema_ref="email.v1",
        correlation_id="trace-1",
        subject_id=None,
    )
    assert_type(envelope["event_id"], str)
    assert_type(envelope["subject_id"], str | None)
    assert_type(envelope["payload"], dict[str, Any])
    envelope["colour"]  # type: ignore[typeddict-item]
    return build_envelope(event_type="a.b", payload=MappingProxyType({"a": 1}), source="s")


class Model(BaseModel):
    pages: int


class OldModel(pydantic.v1.BaseModel):
    pages: int


@attrs.define
class Attrs:
    pages: int


class Struct(msgspec.Struct):
    pages: int


@dataclass
class Data:
    pages: int


def payloads(client: bigquery.Client, query: QueryDict) -> None:
    for payload in (Model(pages=1), OldModel(pages=1), Attrs(1), Struct(1), Data(1)):
        build_envelope(event_type="a.b", payload=payload, source="s")
    emit("a.b", Model(pages=1), source="s", bq_client=client)
    EventWriter().emit("a.b", Attrs(1), source="s")
    EventWriter().emit("a.b", Struct(1), source="s")
    EventWriter().emit("a.b", MultiDict([("a", 1)]), source="s")
    EventWriter().emit("a.b", query, source="s")
    EventWriter().emit("a.b", 5, source="s")  # type: ignore[arg-type]
    EventWriter().emit("a.b", Path(), source="s")  # type: ignore[arg-type]


def one_event(client: bigquery.Client) -> None:
    emit("a.b", {"a": 1}, source="s", bq_client=client)
    emit(
        "a.b",
        {},
        source="s",
        bq_client=client,
        schema_ref=None,
        correlation_id="trace-1",
        subject_id="patient-17",
    )
    emit("a.b", {}, bq_client=client)  # type: ignore[call-arg]  # no source
    emit("a.b", "text", source="s", bq_client=client)  # type: ignore[arg-type]


def keep(envelope: Envelope, reason: str) -> None:
    logging.getLogger("app").error("%s: %s", envelope["event_id"], reason)


def handlers(client: bigquery.Client) -> logging.Handler:
    handler = BigQueryEventHandler(client, "INFO", source="app", on_dead_letter=keep, capacity=5)
    BigQueryEventHandler(level=logging.INFO, background=False)
    BigQueryEventHandler(writer=EventWriter())
    BigQueryEventHandler(overflow="dropp")  # type: ignore[arg-type]
    BigQueryEventHandler(capcity=1)  # type: ignore[call-arg]
    BigQueryEventHandler(payload_from_extra=True, spool_dir=Path("spool"), spool_sync="full")
    with BigQueryEventHandler(source="app") as made:
        assert_type(made, BigQueryEventHandler)
    handler.addFilter(logging.Filter("app"))
    assert_type(handler.flush(), bool)
    assert_type(handler.flush(timeout=5), bool)
    assert_type(handler.writer, EventWriter | ForegroundWriter)
    assert_type(handler.writer.stats(), WriterStats)
    handler.writer.emit("a.b", {"a": 1}, source="s")
    handler.writer.submit(envelopes())
    handler.close()
    logging.getLogger().addHandler(handler)
    return handler


def processors(client: bigquery.Client) -> None:
    processor = BigQueryEventProcessor(client, source="app", flush_interval=0.5)
    BigQueryEventProcessor(flush_interval="1")  # type: ignore[arg-type]
    BigQueryEventProcessor(flush_intervall=1)  # type: ignore[call-arg]
    BigQueryEventProcessor(capcity=1)  # type: ignore[call-arg]
    BigQueryEventProcessor(overflow="dropp")  # type: ignore[arg-type]
    with BigQueryEventProcessor(redact_line=True) as made:
        assert_type(made, BigQueryEventProcessor)
    chain: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        processor,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(processors=chain)
    assert_type(processor.flush(1.5), bool)
    assert_type(processor.writer.stats().submitted, int)
    processor.close()


async def in_a_coroutine(
    handler: BigQueryEventHandler, processor: BigQueryEventProcessor, writer: EventWriter
) -> None:
    assert_type(await handler.aflush(timeout=5), bool)
    assert_type(await processor.aflush(), bool)
    assert_type(await writer.aflush(), bool)


def writers(client: bigquery.Client) -> WriterStats:
    writer = EventWriter(
        client,
        batch_rows=100,
        flush_interval=0.5,
        capacity=1000,
        overflow="block",
        close_timeout=5,
        on_dead_letter=lambda envelope, reason: (envelope["event_type"], reason),
    )
    with EventWriter() as made:
        assert_type(made, EventWriter)
    EventWriter(overflow="forget")  # type: ignore[arg-type]
    EventWriter(capcity=1)  # type: ignore[call-arg]
    EventWriter(deliver_on_sigterm=True)
    BigQueryEventHandler(writer=ForegroundWriter(client))
    ForegroundWriter(capacity=1)  # type: ignore[call-arg]
    writer.emit("a.b", {"a": 1}, source="s", subject_id="patient-17")
    writer.submit(envelopes())
    assert_type(writer.flush(timeout=None), bool)
    writer.close()
    stats = writer.stats()
    assert_type(stats.last_error, str | None)
    stats.delivered = 5  # type: ignore[misc]
    return stats
