"""Where log calls leave their rows without taking a lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorc_eventlog.lifecycle import clock

if TYPE_CHECKING:
    from lorc_eventlog.delivery.queue import DeliveryQueue
    from lorc_eventlog.events.row import Row


class Inbox:
    """Rows that are not yet in the queue. The dispatcher's lock guards every method.

    A log call appends to ``rows`` without the lock, if there are fewer than ``limit``. The limit is
    0 unless a thread will look here within ``flush_interval``. A call that finds it 0 *before* its
    append must take the lock instead; one that finds it 0 *after* its append must have somebody
    look.
    """

    __slots__ = ("_looked_at", "_queue", "is_shut", "limit", "rows")

    def __init__(self, queue: DeliveryQueue) -> None:
        self.rows: list[Row] = []
        self.limit = 0
        self.is_shut = False
        """Whether every log call takes the lock from now on, because the process ends."""
        self._queue = queue
        self._looked_at = clock.monotonic()

    def collect(self) -> None:
        """Move the rows into the queue."""
        since, self._looked_at = self._looked_at, clock.monotonic()
        if self.rows:
            # Hazard: while rows move on, others may come in their place, up to the limit again.
            if len(self.rows) + self.limit > self._queue.small_rows_room:
                self.limit = 0
            self._queue.absorb(self.rows, since)

    def open(self, *, is_watched: bool) -> None:
        """Let in what the queue has room for, if a thread looks here soon."""
        self.limit = self._queue.inbox_room if is_watched and not self.is_shut else 0
