"""``lorc-eventlog spool --drain``: delivers what dead processes left, while BigQuery takes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorc_eventlog.delivery.writer import EventWriter

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.events.envelope import Envelope

PATIENCE = 60.0
"""Seconds without an event that BigQuery takes, until it is given up."""

LOOK_INTERVAL = 0.1
"""Seconds from one look at how far it is to the next."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What became of the events."""

    delivered: int
    rejected: list[str]
    """The events that BigQuery will never take, and why."""
    gave_up: str | None
    """Why some are left."""


def drain(client: Client, directory: Path, show: Callable[[int], object]) -> Drained:
    """Deliver what is in ``directory``, but for what living processes deliver.

    Args:
        client: The BigQuery client.
        directory: A spool directory.
        show: Is told now and then how many events are settled.
    """
    rejected: list[str] = []

    def reject(envelope: Envelope, reason: str) -> None:
        rejected.append(f"event {envelope['event_id']} ({envelope['event_type']}): {reason}")

    # No waiting at the end: what is left then stays on disk.
    writer = EventWriter(client, spool_dir=directory, close_timeout=0, on_dead_letter=reject)
    settled, moved_at = 0, time.monotonic()
    gave_up = None
    while not writer.drain_spool(timeout=LOOK_INTERVAL):
        stats = writer.stats()
        if stats.delivered + stats.rejected > settled:
            settled, moved_at = stats.delivered + stats.rejected, time.monotonic()
        elif time.monotonic() - moved_at > PATIENCE:
            gave_up = stats.last_error or "there is no answer"
            break
        show(settled)
    else:
        writer.close()
    return Drained(writer.stats().delivered, rejected, gave_up)
