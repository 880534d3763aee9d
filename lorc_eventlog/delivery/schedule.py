"""Decides what to send next, and when."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING

from lorc_eventlog.delivery.batch import Batch, Bounds, Doubt, Take, Trouble
from lorc_eventlog.delivery.books import Books
from lorc_eventlog.delivery.doubt import PROBE_ROWS, REFUSALS_IN_TROUBLE, DoubtPolicy
from lorc_eventlog.delivery.pace import Pace
from lorc_eventlog.delivery.suspicion import suspicion
from lorc_eventlog.events.row import row_bytes

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row

HUNG_AFTER = 5.0
"""Seconds after which a request no longer holds up others that were to wait for it."""

OVERDUE = 90.0
"""Seconds after which a batch is sent once more. No request takes so long: its sender is gone."""

COURTESY = 1.0
"""Seconds that rows in doubt let others go first."""


class Schedule(Books):
    """When which rows go: fresh ones, those whose request failed, and those in doubt."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(bounds)
        self._batch_rows = bounds.batch_rows
        self._pace = Pace()
        self._doubt = DoubtPolicy(batch_rows=bounds.batch_rows, limits=bounds.limits)
        self._refusals = 0
        """Requests that were refused since a row was stored..."""
        self._new_refusals = 0
        """... and those of them whose rows had not been in doubt."""

    @property
    def in_outage(self) -> bool:
        """Whether nothing is stored at the moment, so that only one request at a time probes."""
        return self._pace.failures > 0

    @property
    def holds_only_doubtful(self) -> bool:
        """Whether all that is held is in doubt, so that only a new row can decide about it."""
        return 0 < self._held == self._count_doubtful()

    @property
    def in_doubt(self) -> Trouble | None:
        """The rows that BigQuery refuses for a reason that may be the table's."""
        doubts = self._all_doubts()
        if not doubts:
            return None
        return Trouble(self._count_doubtful(), doubts[-1].reason, doubts[-1].rows)

    @property
    def trouble(self) -> Trouble | None:
        """What an operator must mend: rows are in doubt, and nothing else is stored either."""
        return self.in_doubt if self._is_in_trouble else None

    @property
    def _is_in_trouble(self) -> bool:
        return self._refusals >= REFUSALS_IN_TROUBLE

    @property
    def _is_table_wrong(self) -> bool:
        return self._new_refusals >= REFUSALS_IN_TROUBLE

    def _all_doubts(self) -> list[Doubt]:
        sent = (batch.doubts for batch in (*self._in_flight, *self._again))
        return [*chain.from_iterable(sent), *self._doubtful]

    def _count_doubtful(self) -> int:
        return sum(len(doubt.rows) for doubt in self._all_doubts())

    def take(self, now: float, *, alone: bool) -> Take:
        """Return what to do now.

        With ``alone``, as in an outage, nothing is sent beside a request that is in flight.
        """
        self.duplicate_in_flight(now, older_than=OVERDUE)
        free_at = self._free_at(alone=alone)
        doubt_at, is_next = self._doubt_at(now)
        doubt_at = max(doubt_at, free_at)
        batch, other_at = None, math.inf
        if doubt_at > now or not is_next:
            batch, other_at = self._take_other(now, free_at)
        if batch is None and doubt_at <= now:
            batch = self._take_doubtful(now)
        if batch is not None:
            return Take(batch)
        overdue = (batch.sent_at + OVERDUE for batch in self._in_flight)
        next_at = min(doubt_at, other_at, *overdue)
        return Take(wait=None if next_at == math.inf else next_at - now)

    def request_flush(self, position: int | None = None) -> int:
        """Send all rows before ``position`` (default: all) without waiting for a full batch."""
        position = self._fresh.position if position is None else position
        self._fresh.flush_to = max(self._fresh.flush_to, position)
        return position

    def retry_now(self, now: float) -> None:
        """The process ends: try at once, and go on with short pauses."""
        self._pace.retry_now(now)
        self._doubt.pace.retry_now(now)
        waiting: list[Batch | Doubt] = [*self._again, *self._doubtful]
        for held in waiting:
            held.due = now

    def _free_at(self, *, alone: bool) -> float:
        # A request that hangs must not hold up the others for as long as it does.
        may_join = not alone and not self.in_outage
        if not self._in_flight or (may_join and len(self._in_flight) < self._pace.in_flight):
            return -math.inf
        youngest = max(batch.sent_at for batch in self._in_flight)
        return youngest + max(HUNG_AFTER, self._pace.longest(self._pace.failures))

    def _doubt_at(self, now: float) -> tuple[float, bool]:
        """Return when rows in doubt may go, and whether others let them go first.

        One request at a time, until they pass.
        """
        if not self._doubt.are_passing and any(batch.doubts for batch in self._in_flight):
            return math.inf, False
        due_at = self._doubt.due_at(self._doubtful, in_trouble=self._is_in_trouble)
        if not self.in_outage or self._is_table_wrong:
            return due_at, due_at + COURTESY <= now
        if self._fresh.due_at <= now or any(suspicion(batch)[0] <= 1 for batch in self._again):
            return math.inf, False  # these probe the outage
        if len(self._again) == 1:
            return due_at, False
        # All that is left failed twice or is in doubt: by turns.
        is_next = due_at <= min((batch.due for batch in self._again), default=math.inf)
        return max(due_at, self._pace.resume_at), is_next

    def _take_doubtful(self, now: float) -> Batch:
        batch, others = self._doubt.choose(
            self._doubtful, now, stored=self.stored, in_trouble=self._is_in_trouble
        )
        self._in_flight[batch] = None
        self._doubtful = others
        return batch

    def _take_other(self, now: float, free_at: float) -> tuple[Batch | None, float]:
        fresh_at = self._fresh.due_at
        next_at = min([fresh_at, *(batch.due for batch in self._again)])
        if self.in_outage:
            # The pause is for all; but what fails by itself has one of its own.
            ready = (b for b in self._again if b.due <= now or not b.record.isolations)
            batch = min(ready, key=suspicion, default=None)
            at = self._pace.resume_at
            if batch is None:
                at = max(at, next_at)
            elif suspicion(batch)[0] > 1:
                # It failed twice, and gives way to what may show that it is to blame. If it fails
                # alone, that is no outage yet: its long pauses are not for new rows.
                if len(self._again) == 1:
                    at = min(at, fresh_at)
                if fresh_at <= now:
                    batch = None
        else:
            ready = (batch for batch in self._again if batch.due <= now)
            batch = min(ready, key=lambda batch: batch.positions[0], default=None)
            at = next_at
        at = max(at, free_at)
        if now < at:
            return None, at
        if batch is None:
            most = PROBE_ROWS if self._is_table_wrong else self._batch_rows
            return self._fresh.take(most, now, self._in_flight), at
        again = [other for other in self._again if other is not batch]
        batch.sent_at = now
        self._in_flight[batch] = None
        self._again = again
        return batch, at

    # What only a queue with disk behind it has something to do for

    def may_hold(self, row: Row) -> bool:
        """Whether there may ever be room for ``row``."""
        return row_bytes(row) <= self._capacity_bytes

    def accept_nested(self, row: Row) -> bool:  # noqa: ARG002
        """Take ``row`` although another method is being run; False if that cannot be."""
        return False

    @property
    def kept(self) -> int:
        """How many of the rows that are held survive the process."""
        return 0

    @property
    def is_drained(self) -> bool:
        """Whether nothing is left of what dead processes buffered."""
        return True

    def look_now(self) -> None:
        """Look for what dead processes buffered, by a chore that comes next."""

    def chore_done(self, result: object, now: float) -> int:  # noqa: ARG002
        """Apply the result of a chore, None if it failed; returns how many rows it lost."""
        return 0

    def close(self) -> Callable[[], object]:
        """Nothing is held for now; what is returned is to be called without the lock."""
        return int
