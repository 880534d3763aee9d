"""``lorc-eventlog spool --drain``: delivers what waits on disk, while BigQuery takes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorc_eventlog.delivery.options import WriterOptions
from lorc_eventlog.delivery.stats import NO_EVENTS
from lorc_eventlog.delivery.writer import EventWriter
from lorc_eventlog.lifecycle import clock

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.delivery.options import DeadLetterCallback
    from lorc_eventlog.delivery.stats import WriterStats
    from lorc_eventlog.events.envelope import Envelope

PATIENCE = 60.0
"""Seconds without an event that BigQuery takes, until it is given up."""

REST_ROWS, GRPC_ROWS = 500, 10_000
"""The most events in a request."""

LOOK_INTERVAL = 0.1
"""Seconds from one look at how far it is to the next."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What became of the events."""

    delivered: int
    rejected: int
    """How many events BigQuery will never take."""
    reasons: list[str]
    """Which they are and why, unless that was logged."""
    gave_up: str | None
    """Why some are left."""


class GrpcWriter:
    """Delivers what dead processes buffered, by the default stream of the Storage Write API.

    Does what an ``EventWriter`` does over REST, and takes no events.
    """

    def __init__(self, directory: Path, reject: DeadLetterCallback) -> None:
        # Only now, because it loads gRPC.
        from lorc_eventlog.bigquery.storage_write import StorageWriteTransport
        from lorc_eventlog.delivery.dispatchers import Dispatchers

        options = WriterOptions(
            batch_rows=GRPC_ROWS,
            flush_interval=LOOK_INTERVAL,
            capacity=100_000,
            capacity_bytes=64 * 2**20,
            overflow="drop",
            close_timeout=0,
            on_dead_letter=reject,
            spool_dir=directory,
            spool_max_bytes=2**30,
            spool_sync="normal",
            spool_only=False,
            spool_mode="private",
            deliver_on_sigterm=False,
        )
        self._dispatchers = Dispatchers(
            None, options, lambda _, table: StorageWriteTransport(table)
        )
        self._dispatchers.begin()

    def drain_spool(self, timeout: float) -> bool:
        """Deliver for ``timeout`` seconds; whether all is delivered."""
        deadline = clock.monotonic() + timeout
        drained = [dispatcher.drain(deadline) for dispatcher in self._dispatchers.all()]
        return all(drained)

    def stats(self) -> WriterStats:
        """Return the counters."""
        return sum([dispatcher.stats() for dispatcher in self._dispatchers.all()], NO_EVENTS)

    def close(self) -> None:
        """Leave what is left on disk."""
        for dispatcher in self._dispatchers.all():
            dispatcher.close()


def drain(client: Client | None, directory: Path, show: Callable[[int], object]) -> Drained:
    """Deliver what is in ``directory``, but for what living processes deliver.

    Args:
        client: The BigQuery client; None sends over gRPC.
        directory: A spool directory.
        show: Is told now and then how many events are settled.
    """
    rejected: list[str] = []

    def reject(envelope: Envelope, reason: str) -> None:
        rejected.append(f"event {envelope['event_id']} ({envelope['event_type']}): {reason}")

    # No waiting at the end: what is left then stays on disk.
    writer: EventWriter | GrpcWriter
    if client is None:
        writer = GrpcWriter(directory, reject)
    else:
        writer = EventWriter(client, spool_dir=directory, close_timeout=0, on_dead_letter=reject)
    settled, moved_at = 0, clock.monotonic()
    gave_up = None
    while not writer.drain_spool(timeout=LOOK_INTERVAL):
        stats = writer.stats()
        if stats.delivered + stats.rejected > settled:
            settled, moved_at = stats.delivered + stats.rejected, clock.monotonic()
        elif clock.monotonic() - moved_at > PATIENCE:
            gave_up = stats.last_error or "there is no answer"
            break
        show(settled)
    else:
        writer.close()
    return Drained(writer.stats().delivered, len(rejected), rejected, gave_up)


def ship(
    client: Client | None,
    directory: Path,
    table: str,
    show: Callable[[int], object],
    *,
    exactly_once: bool,
) -> Drained:
    """Deliver what processes with ``spool_only`` wrote to ``directory``, as far as it is there now.

    Args:
        client: The BigQuery client; None sends over gRPC.
        directory: A spool directory.
        table: The table.
        show: Is told now and then how many events are settled.
        exactly_once: Whether to store none twice, over gRPC.

    Raises:
        AnotherShipperError: Another process ships from there, which delivers the events.
        UnfitError: Exactly once cannot be had there.
        OSError: The directory cannot be opened, or is not safe.
    """
    from lorc_eventlog.shipping.service import Settings, Shipper

    settings = Settings(
        directory=directory,
        table=table,
        interval=LOOK_INTERVAL,
        batch_rows=REST_ROWS if client is not None else GRPC_ROWS,
        transport="rest" if client is not None else "grpc",
        exactly_once=exactly_once,
    )
    shipper = Shipper(settings, client)
    settled, moved_at = 0, clock.monotonic()
    gave_up, nothing_waits_since = None, 0
    try:
        shipper.start()
        while True:
            progress = shipper.progress()
            done = progress.delivered + progress.rejected
            if not progress.is_settled or progress.waiting_bytes:
                nothing_waits_since = 0
            elif not nothing_waits_since:
                nothing_waits_since = progress.looks
            elif progress.looks > nothing_waits_since + 1:
                break  # it has looked once more, and deleted the segments of dead processes
            if done > settled:
                settled, moved_at = done, clock.monotonic()
            elif clock.monotonic() - moved_at > PATIENCE:
                gave_up = progress.last_error or "there is no answer"
                break
            show(settled)
            time.sleep(LOOK_INTERVAL)
        shipper.stop_reading()
    finally:
        shipper.close()
    return Drained(progress.delivered, progress.rejected, [], gave_up)
