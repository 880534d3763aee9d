"""Each way to log an event or to deliver one, set up as its own documentation says."""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.events import MESSAGE, make_fields

BATCH = 500
LARGE = 1_000_000


@dataclass(frozen=True)
class Arm:
    """One way, ready to go.

    ``log(MESSAGE, **arguments(payload))`` is the call that is measured.
    """

    log: Callable[..., object]
    arguments: Callable[[dict[str, Any]], dict[str, Any]]
    settle: Callable[[], object]
    """Delivers what is buffered and waits for it."""
    close: Callable[[], object]
    handler: logging.Handler | None = None
    wait_until_on_disk: Callable[[], object] | None = None
    """Where an event is there only after the call."""


Opener = Callable[[str], Arm]


def _logger_with(handler: logging.Handler, name: str) -> logging.Logger:
    logger = logging.getLogger(f"benchmarks.{name}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [handler]
    return logger


def _as_extra(payload: dict[str, Any]) -> dict[str, Any]:
    return {"extra": make_fields(payload)}


def _nothing() -> None:
    pass


def null_handler(url: str) -> Arm:  # noqa: ARG001
    """logging.NullHandler: what the call costs before any handler does anything."""
    handler = logging.NullHandler()
    return Arm(_logger_with(handler, "null").info, _as_extra, _nothing, _nothing)


def queue_handler(url: str) -> Arm:  # noqa: ARG001
    """logging.handlers.QueueHandler on a queue.SimpleQueue that nobody reads during the burst."""
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    def empty() -> None:
        while not waiting.empty():
            waiting.get()

    handler = logging.handlers.QueueHandler(waiting)
    return Arm(_logger_with(handler, "queue").info, _as_extra, empty, _nothing)


def ours(url: str, *, name: str = "ours", **options: Any) -> Arm:  # noqa: ARG001
    """BigQueryEventHandler with its defaults; where to comes from the environment."""
    from lorc_eventlog import BigQueryEventHandler

    handler = BigQueryEventHandler(**options)
    return Arm(_logger_with(handler, name).info, _as_extra, handler.flush, handler.close, handler)


def ours_blocking(url: str) -> Arm:
    """BigQueryEventHandler(overflow="block"): takes more events at once than its buffer holds."""
    return ours(url, overflow="block")


def google_cloud_logging(url: str, **options: Any) -> Arm:
    """CloudLoggingHandler, background transport with its defaults (10 entries a request), HTTP."""
    import google.cloud.logging
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.logging.handlers import CloudLoggingHandler
    from google.cloud.logging_v2.handlers.transports import BackgroundThreadTransport
    from google.cloud.logging_v2.resource import Resource

    client = google.cloud.logging.Client(
        project="benchmark",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": url},
        _use_grpc=False,
    )

    class Transport(BackgroundThreadTransport):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **{**keywords, **options})

    handler = CloudLoggingHandler(
        client, transport=Transport, resource=Resource(type="global", labels={})
    )

    def as_json_fields(payload: dict[str, Any]) -> dict[str, Any]:
        return {"extra": {"json_fields": make_fields(payload)}}

    logger = _logger_with(handler, f"google{bool(options)}")
    return Arm(logger.info, as_json_fields, handler.flush, handler.close, handler)


def google_cloud_logging_batched(url: str) -> Arm:
    """The same with batch_size=500, max_latency=1.0, as ours has them."""
    return google_cloud_logging(url, batch_size=BATCH, max_latency=1.0)


def opentelemetry(url: str, **options: Any) -> Arm:
    """OpenTelemetry's LoggingHandler, BatchLogRecordProcessor, OTLP over HTTP (protobuf)."""
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.instrumentation.logging.handler import LoggingHandler
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    provider = LoggerProvider()
    exporter = OTLPLogExporter(endpoint=f"{url}/v1/logs")
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, **options))
    handler = LoggingHandler(logger_provider=provider)
    logger = _logger_with(handler, "opentelemetry")

    def close() -> None:
        provider.shutdown()
        logger.removeHandler(handler)

    return Arm(logger.info, _as_extra, provider.force_flush, close, handler)


def opentelemetry_large_queue(url: str) -> Arm:
    """The same with max_queue_size=1,000,000, because its default of 2,048 would drop events."""
    return opentelemetry(url, max_queue_size=LARGE)


def watchtower(url: str) -> Arm:
    """CloudWatchLogHandler of watchtower, its queue, the event's fields in add_log_record_attrs."""
    import boto3
    from watchtower import CloudWatchLogFormatter, CloudWatchLogHandler

    client = boto3.client(
        "logs",
        region_name="eu-central-1",
        endpoint_url=url,
        aws_access_key_id="none",
        aws_secret_access_key="none",  # noqa: S106  there is no secret
    )
    handler = CloudWatchLogHandler(
        log_group_name="benchmark", boto3_client=client, create_log_group=False
    )
    handler.setFormatter(CloudWatchLogFormatter(add_log_record_attrs=tuple(make_fields({}))))
    logger = _logger_with(handler, "watchtower")
    return Arm(logger.info, _as_extra, handler.flush, handler.close, handler)


def _structlog(name: str, *processors: Any) -> Any:
    import structlog

    return structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            *processors,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    ).bind(name=name)


def structlog_alone(url: str) -> Arm:  # noqa: ARG001
    """structlog: contextvars, level, time, JSON; the line goes nowhere."""
    return Arm(_structlog("alone").info, make_fields, _nothing, _nothing)


def structlog_with_ours(url: str) -> Arm:  # noqa: ARG001  from the environment
    """The same chain with BigQueryEventProcessor before the JSON."""
    from lorc_eventlog import BigQueryEventProcessor

    processor = BigQueryEventProcessor()
    log = _structlog("ours", processor).info
    return Arm(log, make_fields, processor.flush, processor.close)


# What keeps the event on disk


def ours_on_disk(url: str, directory: Path, sync: str) -> Arm:
    """BigQueryEventHandler with spool_dir."""
    return ours(url, name=f"spool-{sync}", spool_dir=directory, spool_sync=sync)


class _Accepting:
    """A transport of python-logstash-async: takes what it is given, and counts."""

    def __init__(self) -> None:
        self._sent = 0
        self._changed = threading.Condition()

    def send(self, events: list[bytes], *, use_logging: bool) -> None:  # noqa: ARG002  its name
        with self._changed:
            self._sent += len(events)
            self._changed.notify_all()

    def wait_for(self, events: int) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._sent >= events, timeout=60):
                msg = f"{self._sent} of {events} events sent"
                raise TimeoutError(msg)

    def close(self) -> None:
        pass


def logstash_async(url: str, directory: Path) -> Arm:  # noqa: ARG001
    """AsynchronousLogstashHandler with database_path: it queues, its thread writes to SQLite.

    The thread looks every two seconds. What it sends is accepted at once, without a network.
    """
    from logstash_async.handler import AsynchronousLogstashHandler

    database = directory / "logstash.db"
    transport = _Accepting()
    handler = AsynchronousLogstashHandler(
        "127.0.0.1", 0, database_path=str(database), transport=transport
    )
    info = _logger_with(handler, "logstash").info
    logged = 0

    def log(message: str, **fields: Any) -> None:
        nonlocal logged
        info(message, **fields)
        logged += 1

    def wait_until_on_disk() -> None:
        # Its events have ascending keys, and SQLite remembers the last one that it gave away.
        deadline = time.monotonic() + 60
        while _last_key(database) < logged:
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.01)

    def settle() -> None:
        handler.flush()
        transport.wait_for(logged)

    return Arm(log, _as_extra, settle, handler.close, handler, wait_until_on_disk)


def _last_key(database: Path) -> int:
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        try:
            found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'")
        except sqlite3.OperationalError:  # there is no table yet
            return 0
        return int((found.fetchone() or (0,))[0])


def logstash_async_in_the_call(url: str, directory: Path) -> Arm:  # noqa: ARG001
    """What the thread of AsynchronousLogstashHandler does for an event, done in the call."""
    from logstash_async.database import DatabaseCache
    from logstash_async.handler import SynchronousLogstashHandler

    cache = DatabaseCache(str(directory / "logstash-in-the-call.db"))

    class Handler(SynchronousLogstashHandler):  # type: ignore[misc]
        def emit(self, record: logging.LogRecord) -> None:
            cache.add_event(self._format_record(record))

    def empty() -> None:
        while cache.get_queued_events():
            cache.delete_queued_events()

    handler = Handler("127.0.0.1", 0, transport=_Accepting())
    logger = _logger_with(handler, "logstash-in-the-call")
    return Arm(logger.info, _as_extra, empty, handler.close, handler)


def persist_queue(url: str, directory: Path, *, synchronous: str | None = None) -> Arm:  # noqa: ARG001
    """The standard library's QueueHandler on a SQLiteQueue(auto_commit=True) of persist-queue."""
    from persistqueue import SQLiteQueue

    name = f"persist-{synchronous}"
    waiting = SQLiteQueue(str(directory / name), auto_commit=True, multithreading=True)
    if synchronous is not None:
        waiting._putter.execute(f"PRAGMA synchronous={synchronous}")  # noqa: SLF001  no option

    class Handler(logging.handlers.QueueHandler):
        def enqueue(self, record: logging.LogRecord) -> None:
            waiting.put(record)

    def empty() -> None:
        while not waiting.empty():
            waiting.get_nowait()

    return Arm(_logger_with(Handler(waiting), name).info, _as_extra, empty, waiting.close)


# What is compared by CPU for a delivered event, besides the above


def _bigquery_client(url: str) -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery

    return bigquery.Client(
        project="benchmark",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": url},
    )


def _insert(client: Any, rows: list[dict[str, Any]]) -> None:
    errors = client.insert_rows_json(
        "dataset.events", rows, row_ids=[row["event_id"] for row in rows]
    )
    if errors:
        raise RuntimeError(errors)


def _row(payload_text: str) -> dict[str, Any]:
    return {
        "event_id": str(uuid.uuid4()),
        "schema_ref": None,
        "created_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        **make_fields({}),
        "payload": payload_text,
    }


def floor(url: str) -> Arm:
    """A log call into a NullHandler, and insert_rows_json of 500 rows made before the clock ran."""
    client = _bigquery_client(url)
    log = null_handler(url).log
    ready: list[dict[str, Any]] = []
    logged = 0

    def arguments(payload: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(payload)
        ready[:] = [_row(text) for _ in range(BATCH)]
        return _as_extra(payload)

    def log_and_insert(message: str, **fields: Any) -> None:
        nonlocal logged
        log(message, **fields)
        logged += 1
        if logged % BATCH == 0:
            _insert(client, ready)

    return Arm(log_and_insert, arguments, _nothing, client.close)


def emit_in_the_call(url: str) -> Arm:
    """lorc_eventlog.emit: one request for each event, in the call."""
    from lorc_eventlog import emit

    client = _bigquery_client(url)

    def log(message: str, **fields: Any) -> None:  # noqa: ARG001
        emit(fields.pop("event_type"), fields.pop("payload"), bq_client=client, **fields)

    return Arm(log, make_fields, _nothing, client.close)


def by_hand(url: str) -> Arm:
    """No logging: rows made with uuid, datetime and json; every 500 go to insert_rows_json."""
    client = _bigquery_client(url)
    rows: list[dict[str, Any]] = []

    def log(message: str, **fields: Any) -> None:  # noqa: ARG001
        rows.append(_row(json.dumps(fields["payload"])))
        if len(rows) == BATCH:
            _insert(client, rows)
            rows.clear()

    return Arm(log, make_fields, _nothing, client.close)


def log_events(arm: Arm, arguments: dict[str, Any], count: int) -> None:
    """Log the same event so many times."""
    log = arm.log
    for _ in range(count):
        log(MESSAGE, **arguments)
