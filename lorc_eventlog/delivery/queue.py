"""What waits to be sent: fresh rows, batches in flight, batches to send again, and when.

Plain data without threads: the writer holds its lock around every call and passes the time. Which
failures mean an outage (all wait) and which a poisonous row (it alone waits) is decided here.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING

from lorc_eventlog.events.payload import MOST_BYTES_A_CHARACTER, wire_size
from lorc_eventlog.events.row import row_bytes

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row

MAX_REQUEST_BYTES = 9_000_000
"""BigQuery refuses requests over 10 MB; the rest is for what is not payload."""

MAX_PAUSE = 60.0
"""Seconds at most between two tries in an outage."""

FIRST_PAUSE = 0.25
LAST_PAUSE = 1.0
"""Seconds at most between two tries when the process ends, and has no time for longer ones."""

TRIES_BEFORE_SCOUT = 2
"""So often must a batch fail until one of its rows goes alone, to see whether any passes."""

TRIES_OF_A_SCOUT = 3
"""So often must that one fail until the next goes."""

PROOFS_AGAINST_A_ROW = 3
"""So often must a row have failed, while all others passed in between, to be given up..."""

PATIENCE_WITH_A_ROW = 5.0
"""... and for at least so many seconds: longer than BigQuery's usual hiccup."""

FAILURES_IN_SILENCE = 6
"""When nothing else is sent, so that nothing passes, so often must it fail after one proof..."""

PATIENCE_IN_SILENCE = 15.0
"""... and for so many seconds, while nothing else fails."""

_MOST_ROW_BYTES = 1_000
"""About how large a row is in a request without its payload, escaped and with its insertId."""


@dataclass(slots=True, eq=False)
class Batch:
    """Rows that are sent in one request, always with the same insertIds."""

    rows: list[Row]
    position: int
    """How many rows had been submitted before its first."""
    tries: int = 0
    due: float = 0.0
    failing_since: float | None = None
    is_suspect: bool = False
    """Whether its last failure may be due to its rows."""
    proofs: int = 0
    """How often it failed while everything else passed."""
    passed_before: int = 0
    failed_before: int = 0
    failures_before: int = 0
    failures_in_silence: int = 0
    """How often in a row it failed, since a proof, while nothing else did."""


class Backlog:
    """The rows that are not yet settled. Not thread-safe: the writer's lock guards it."""

    def __init__(self, *, batch_rows: int, flush_interval: float) -> None:
        self.fresh: deque[Row] = deque()
        self.fresh_bytes = 0
        self.fresh_since = 0.0
        self.held = 0
        """Rows that are not yet settled..."""
        self.held_bytes = 0
        """... and how large they are together."""
        self.is_watched = False
        """Whether a sender looks for fresh rows at least every ``flush_interval``."""
        self.flush_to = 0
        """Rows before this position are sent without waiting for a full batch."""
        self._batch_rows = batch_rows
        self._flush_interval = flush_interval
        self._taken = 0
        self._skipped = 0
        self._in_flight: set[Batch] = set()
        self._again: list[Batch] = []
        self._longest_pause = MAX_PAUSE
        self._failures = 0
        self._failed_at = 0.0
        self._resume_at = 0.0
        self._passes = 0
        self._first_failures = 0
        self._all_failures = 0

    @property
    def position(self) -> int:
        """How many rows have been added so far."""
        return self._taken + len(self.fresh) + self._skipped

    @property
    def in_outage(self) -> bool:
        """Whether requests fail at the moment, so that only one at a time probes."""
        return self._failures > 0

    @property
    def holds_full_batch(self) -> bool:
        """Whether fresh rows need not wait for more."""
        return len(self.fresh) >= self._batch_rows or self.fresh_bytes >= MAX_REQUEST_BYTES

    def add(self, row: Row, size: int) -> bool:
        """Take a fresh row of ``size`` bytes; whether it makes a batch full.

        A signal handler that raises leaves the row out, or in and counted: Python calls one at
        the end of a call, and there is none between the counts and the append.
        """
        fresh = self.fresh
        append = fresh.append
        count = len(fresh)
        if count == 0:
            self.fresh_since = time.monotonic()
        self.held += 1
        self.held_bytes += size
        self.fresh_bytes = fresh_bytes = self.fresh_bytes + size
        append(row)  # during which a signal handler may add another
        return count < self._batch_rows <= len(fresh) or (
            fresh_bytes >= MAX_REQUEST_BYTES > fresh_bytes - size
        )

    def settled(self, position: int) -> bool:
        """Whether every row before ``position`` is delivered or given up."""
        return self._taken >= position and all(
            batch.position >= position for batch in (*self._in_flight, *self._again)
        )

    def take(self, now: float, *, alone: bool = False) -> tuple[Batch | None, float | None]:
        """Return the batch to send now, or None and the seconds until there may be one.

        The seconds are None if only a new row, a flush or a finished request can change it.
        With ``alone``, as in an outage, there is nothing to send while a request is on its way.
        """
        if (alone or self._failures) and self._in_flight:
            return None, None
        if self._failures:
            resume_at = self._resume_at
            if len(self._again) == 1 and _suspicion(self._again[0])[0] > 1:
                # One that fails is no outage yet: its long pauses are not for new rows.
                resume_at = min(resume_at, self._fresh_due_at())
            if now < resume_at:
                return None, resume_at - now
            batch = self._probe(now)
        else:
            batch = self._take_again(now) or self._take_fresh(now)
        if batch is not None:
            self._in_flight.add(batch)
            return batch, None
        times = [batch.due for batch in self._again]
        if self.fresh:
            times.append(self._fresh_due_at())
        return None, min(times) - now if times else None

    def _probe(self, now: float) -> Batch | None:
        # The oldest, but a suspect that failed twice gives way to what may show that it is one.
        batch = min(self._again, key=_suspicion, default=None)
        if batch is None or (_suspicion(batch)[0] > 1 and now >= self._fresh_due_at()):
            return self._take_fresh(now)
        self._again.remove(batch)
        return batch

    def _take_again(self, now: float) -> Batch | None:
        due = [batch for batch in self._again if batch.due <= now]
        if not due:
            return None
        batch = min(due, key=lambda batch: batch.position)
        self._again.remove(batch)
        return batch

    def _fresh_due_at(self) -> float:
        if not self.fresh:
            return math.inf
        if self.holds_full_batch or self._taken < self.flush_to:
            return 0.0
        return self.fresh_since + self._flush_interval

    def _take_fresh(self, now: float) -> Batch | None:
        if now < self._fresh_due_at():
            return None
        # A destructor may log at any call here, so that the deque is never iterated over.
        count = min(len(self.fresh), self._batch_rows)
        rows = [self.fresh.popleft() for _ in range(count)]
        fitting = _fitting(rows)
        self.fresh.extendleft(reversed(rows[fitting:]))
        del rows[fitting:]
        taken_bytes = sum(map(row_bytes, rows))
        self.fresh_bytes -= taken_bytes
        batch = Batch(rows, position=self._taken)
        self._taken += len(rows)
        self.fresh_since = now
        self.skip(0)
        return batch

    def skip(self, count: int) -> None:
        """Count ``count`` rows that were expected after the fresh ones and will never come."""
        self._skipped += count
        if not self.fresh:
            self._taken += self._skipped
            self._skipped = 0

    def passed(self, batch: Batch, again: list[Row], now: float) -> None:
        """``batch`` was answered and all its rows are settled, but for those to send ``again``."""
        self._in_flight.discard(batch)
        self._passes += 1
        self._failures = 0
        if again:
            due = now + self._jitter(batch.tries)
            self._again.append(
                Batch(again, position=batch.position, tries=batch.tries + 1, due=due)
            )

    def refused(self, batch: Batch, now: float) -> bool:
        """BigQuery refuses ``batch`` as a request; whether it is one row, and so given up."""
        self._failures = 0
        if len(batch.rows) == 1:
            return True
        self._split(batch, slice(len(batch.rows) // 2), now)
        return False

    def failed(self, batch: Batch, *, may_be_the_rows: bool, started: float, now: float) -> bool:
        """The request that ``started`` with ``batch`` failed; whether it is given up.

        It is, if it is a single row that failed time and again while everything else passed.
        """
        batch.tries += 1
        batch.is_suspect = may_be_the_rows
        proof = False
        if batch.failing_since is None:
            batch.failing_since = now
            self._first_failures += 1
        else:
            proof = (
                may_be_the_rows
                and self._passes > batch.passed_before
                and self._first_failures == batch.failed_before
            )
            batch.proofs += proof
        is_the_only_one = self._all_failures == batch.failures_before
        silence = is_the_only_one and may_be_the_rows and batch.proofs > 0
        batch.failures_in_silence = batch.failures_in_silence + 1 if silence else 0
        self._all_failures += 1
        batch.failures_before = self._all_failures
        batch.passed_before = self._passes
        batch.failed_before = self._first_failures
        if not (batch.proofs and may_be_the_rows):
            self._pause(started, now)
        if len(batch.rows) > 1:
            if may_be_the_rows and batch.proofs:
                self._split(batch, slice(len(batch.rows) // 2), now)
                return False
            if may_be_the_rows and batch.tries >= TRIES_BEFORE_SCOUT and not self._has_scout():
                scout = len(batch.rows) // 3  # any would do
                self._split(batch, slice(scout, scout + 1), now)
                return False
        elif _is_proved(batch, now - batch.failing_since):
            return True
        self._in_flight.discard(batch)
        batch.due = now  # in an outage, the pause is for all
        if may_be_the_rows:
            tries = 2 if proof else min(batch.tries, 4) if silence else batch.tries
            batch.due += self._jitter(tries)
        self._again.append(batch)
        return False

    def given_up(self, batch: Batch) -> None:
        """The last row of ``batch`` became a dead letter."""
        self._in_flight.discard(batch)

    def _pause(self, started: float, now: float) -> None:
        # Requests that were on their way together when an outage began count as one failure.
        if started >= self._failed_at:
            self._failures += 1
            self._failed_at = now
            self._resume_at = now + self._jitter(self._failures)

    def _jitter(self, tries: int) -> float:
        """Exponential backoff with full jitter."""
        import random  # not with `import lorc_eventlog`, which it would slow down

        longest = min(self._longest_pause, FIRST_PAUSE * 2.0 ** min(tries, 16))
        return random.uniform(0, longest)  # noqa: S311

    def hasten(self, now: float) -> None:
        """The process ends: try at once, and go on with short pauses."""
        self._longest_pause = LAST_PAUSE
        self._resume_at = now
        for batch in self._again:
            batch.due = now

    def _has_scout(self) -> bool:
        return any(len(batch.rows) == 1 and batch.tries < TRIES_OF_A_SCOUT for batch in self._again)

    def _split(self, batch: Batch, first: slice, now: float) -> None:
        self._in_flight.discard(batch)
        others = batch.rows.copy()
        del others[first]
        self._again[:0] = [
            Batch(
                rows,
                position=batch.position,
                due=now,
                failing_since=batch.failing_since,
                proofs=batch.proofs,
                passed_before=batch.passed_before,
                failed_before=batch.failed_before,
            )
            for rows in (batch.rows[first], others)
        ]


def _suspicion(batch: Batch) -> tuple[int, int]:
    return (batch.tries if batch.is_suspect else 0, batch.position)


def _is_proved(batch: Batch, seconds: float) -> bool:
    return (batch.proofs >= PROOFS_AGAINST_A_ROW and seconds >= PATIENCE_WITH_A_ROW) or (
        batch.failures_in_silence >= FAILURES_IN_SILENCE and seconds >= PATIENCE_IN_SILENCE
    )


def _fitting(rows: list[Row]) -> int:
    """How many of the first of ``rows`` fit into one request, and at least one."""
    if sum(map(row_bytes, rows)) * MOST_BYTES_A_CHARACTER <= MAX_REQUEST_BYTES:
        return len(rows)
    sizes = accumulate(wire_size(row["payload"]) + _MOST_ROW_BYTES for row in rows)
    return max(1, sum(1 for _ in takewhile(MAX_REQUEST_BYTES.__ge__, sizes)))
