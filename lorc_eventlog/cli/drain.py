"""``lorc-eventlog spool --drain``: delivers what waits on disk, while BigQuery takes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.insert_all import InsertAllTransport
from lorc_eventlog.delivery.dispatchers import Dispatchers
from lorc_eventlog.delivery.options import WriterOptions
from lorc_eventlog.lifecycle import clock

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.bigquery.storage_write import StorageWriteTransport
    from lorc_eventlog.events.envelope import Envelope

PATIENCE = 60.0
"""Seconds without an event that BigQuery takes, until it is given up."""

NO_ANSWER = "there is no answer"

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


class _Patience:
    """Shows how far it is, and ends when no event was settled for ``PATIENCE``.

    Args:
        show: Is told how many events are settled.
    """

    def __init__(self, show: Callable[[int], object]) -> None:
        self._show = show
        self._settled = 0
        self._moved_at = clock.monotonic()

    def is_over(self, settled: int) -> bool:
        """Note that so many events are settled by now."""
        if settled > self._settled:
            self._settled, self._moved_at = settled, clock.monotonic()
        self._show(settled)
        return clock.monotonic() - self._moved_at > PATIENCE


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

    options = WriterOptions(
        batch_rows=GRPC_ROWS if client is None else REST_ROWS,
        flush_interval=LOOK_INTERVAL,
        capacity=100_000,
        capacity_bytes=64 * 2**20,
        overflow="drop",
        close_timeout=0,  # what is left at the end stays on disk
        on_dead_letter=reject,
        spool_dir=directory,
        spool_max_bytes=2**30,
        spool_sync="normal",
        spool_only=False,
        spool_mode="private",
        deliver_on_sigterm=False,
    )
    dispatchers = Dispatchers(client, options, _grpc if client is None else InsertAllTransport)
    dispatchers.begin()
    dispatcher = dispatchers.current
    patience = _Patience(show)
    gave_up = None
    while not dispatcher.drain(clock.monotonic() + LOOK_INTERVAL):
        stats = dispatcher.stats()
        if patience.is_over(stats.delivered + stats.rejected):
            gave_up = stats.last_error or NO_ANSWER
            break
    else:
        dispatcher.close()
    return Drained(dispatcher.stats().delivered, len(rejected), rejected, gave_up)


def _grpc(_: object, table: str) -> StorageWriteTransport:
    from lorc_eventlog.bigquery.storage_write import StorageWriteTransport  # loads gRPC

    return StorageWriteTransport(table)


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
    patience = _Patience(show)
    gave_up, nothing_waits_since = None, 0
    try:
        shipper.start()
        while True:
            progress = shipper.progress()
            if not progress.is_settled or progress.waiting_bytes:
                nothing_waits_since = 0
            elif not nothing_waits_since:
                nothing_waits_since = progress.looks
            elif progress.looks > nothing_waits_since + 1:
                break  # it has looked once more, and deleted the segments of dead processes
            if patience.is_over(progress.delivered + progress.rejected):
                gave_up = progress.last_error or NO_ANSWER
                break
            time.sleep(LOOK_INTERVAL)
        shipper.stop_reading()
    finally:
        shipper.close()
    return Drained(progress.delivered, progress.rejected, [], gave_up)
