"""Decides what to send next, and what a failure means: an outage, or a poisonous row.

Pure bookkeeping: the caller holds the lock and passes the time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, NamedTuple

from lorc_eventlog.events.payload import MOST_BYTES_A_CHARACTER
from lorc_eventlog.events.row import row_bytes

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.transport import Answer, Failure, Limits, Reason, Refusal
    from lorc_eventlog.events.row import Row

SMALL_ROW = 32_768
"""Bytes that an event rarely exceeds; see :attr:`DeliveryQueue.inbox_room`."""

MAX_PAUSE = 60.0
"""Seconds at most between two tries in an outage."""

FIRST_PAUSE = 0.25
LAST_PAUSE = 1.0
"""Seconds at most between two tries when the process ends, and has no time for longer ones."""

TRIES_BEFORE_CANARY = 2
"""After this many failures, one row of the batch is sent alone to see whether any gets through."""

TRIES_OF_A_CANARY = 3
"""After this many failures of that row, another one may be sent alone."""

PROOFS_AGAINST_A_ROW = 3
"""So often must a row have failed, while all others passed in between, to be given up..."""

PATIENCE_WITH_A_ROW = 5.0
"""... and for at least so many seconds: longer than BigQuery's usual hiccup."""

FAILURES_IN_SILENCE = 6
"""When nothing else is sent, so that nothing passes, so often must it fail after one proof..."""

PATIENCE_IN_SILENCE = 15.0
"""... and for so many seconds, while nothing else fails."""


@dataclass(slots=True, eq=False)
class Batch:
    """Rows that are sent in one request, always with the same insertIds."""

    rows: list[Row]
    position: int
    """How many rows had been added before its first."""
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


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetter:
    """A row that BigQuery will never take, or that made room for others, and why."""

    row: Row
    reason: Reason
    position: int
    """How many rows had been added before it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the rows of a batch; those that are not named are sent again."""

    stored: list[Row] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)


class Take(NamedTuple):
    """What a sender does next."""

    batch: Batch | None = None
    """What to send now."""
    wait: float | None = None
    """If there is nothing: seconds until there may be. None: only a new row, a flush or the end
    of a request can change it."""
    chore: Callable[[], object] | None = None
    """What to run outside the lock (:class:`lorc_eventlog.delivery.spooled_queue`)."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Rows that BigQuery refuses for a reason that may be the table's."""

    count: int
    """How many they are."""
    reason: Reason
    """Why the latest of them were refused..."""
    rows: list[Row]
    """... and these: the reason may quote them (:meth:`Reason.told`)."""


class DeliveryQueue:
    """The rows that are not yet settled, and what to do with them next.

    Not thread-safe, and no method may be entered from within another one. A result that comes for
    a batch which is already decided changes nothing.

    Args:
        batch_rows: The most rows in one request.
        flush_interval: Seconds after which rows are sent that are no full batch.
        capacity: The most rows that are held.
        capacity_bytes: The most bytes that they are together.
        limits: What the transport takes in one request.
    """

    def __init__(
        self,
        *,
        batch_rows: int,
        flush_interval: float,
        capacity: int,
        capacity_bytes: int,
        limits: Limits,
    ) -> None:
        self.stored = 0
        """Rows that BigQuery has."""
        self.dead = 0
        """Rows that became dead letters."""
        self.dropped = 0
        """Rows in doubt that made room for others."""
        self.fresh: deque[Row] = deque()
        self.fresh_bytes = 0
        self.fresh_since = 0.0
        self._held = 0
        self._held_bytes = 0
        self._batch_rows = min(batch_rows, limits.rows)
        self._flush_interval = flush_interval
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._limits = limits
        self._flush_to = 0
        self._taken = 0
        self._skipped = 0
        self._in_flight: set[Batch] = set()
        self._again: list[Batch] = []
        self._letters: dict[DeadLetter, None] = {}
        self._longest_pause = MAX_PAUSE
        self._failures = 0
        self._failed_at = 0.0
        self._resume_at = 0.0
        self._passes = 0
        self._first_failures = 0
        self._all_failures = 0

    # What it holds

    @property
    def held(self) -> int:
        """How many rows are not settled, those in flight included."""
        return self._held

    @property
    def held_bytes(self) -> int:
        """How large they are together."""
        return self._held_bytes

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
        return len(self.fresh) >= self._batch_rows or self.fresh_bytes >= self._limits.request_bytes

    @property
    def inbox_room(self) -> int:
        """How many rows of at most ``SMALL_ROW`` bytes may gather elsewhere before they are added.

        Until then they make no batch full, and the bounds hold.
        """
        until_full = self._batch_rows - len(self.fresh)
        if until_full <= 0:
            until_full = self._batch_rows + 1
        room = self._capacity - self._held
        room_bytes = (self._capacity_bytes - self._held_bytes) // SMALL_ROW
        return max(0, min(until_full - 1, room, room_bytes))

    @property
    def trouble(self) -> Trouble | None:
        """What an operator must mend so that BigQuery takes rows again."""
        return None

    @property
    def in_doubt(self) -> Trouble | None:
        """The rows that BigQuery refuses for a reason that may be the table's."""
        return None

    @property
    def holds_only_doubtful(self) -> bool:
        """Whether all that is held is in doubt, so that only a new row can decide about it."""
        return False

    def has_room(self, size: int) -> bool:
        """Whether a row of ``size`` bytes may be added."""
        return self._held < self._capacity and self._held_bytes + size <= self._capacity_bytes

    def settled(self, position: int) -> bool:
        """Whether every row before ``position`` is stored, a dead letter or dropped."""
        return (
            self._taken >= position
            and all(batch.position >= position for batch in (*self._in_flight, *self._again))
            and all(letter.position >= position for letter in self._letters)
        )

    # Rows come in

    def accept(self, row: Row, now: float) -> bool:
        """Add ``row`` if there is room; whether there was."""
        if not self.has_room(row_bytes(row)):
            return False
        self.add(row, now)
        return True

    def add(self, row: Row, now: float) -> None:
        """Add a fresh row.

        A signal handler that raises leaves the row out, or in and counted: Python calls one at
        the end of a call, and there is none between the counts and the append.
        """
        size = row_bytes(row)
        append = self.fresh.append
        if not self.fresh:
            self.fresh_since = now
        self._held += 1
        self._held_bytes += size
        self.fresh_bytes += size
        append(row)

    def absorb(self, inbox: deque[Row], since: float) -> None:
        """Move all rows of ``inbox`` in; they came at ``since`` or later.

        A signal handler that raises neither loses nor doubles one: there is no call between the
        changes, so that it comes before or after them.
        """
        while inbox:
            row = inbox[0]
            size = row_bytes(row)
            if not self.fresh:
                self.fresh_since = since
            self._held += 1
            self._held_bytes += size
            self.fresh_bytes += size
            self.fresh += (row,)
            del inbox[0]

    def skip(self, count: int) -> None:
        """Count ``count`` rows that were expected after the fresh ones and will never come."""
        self._skipped += count
        if not self.fresh:
            self._taken += self._skipped
            self._skipped = 0

    def request_flush(self, position: int | None = None) -> int:
        """Send all rows before ``position`` (default: all) without waiting for a full batch."""
        position = self.position if position is None else position
        self._flush_to = max(self._flush_to, position)
        return position

    def drop_doubtful(self, size: int) -> list[DeadLetter]:  # noqa: ARG002
        """Drop rows that are only in doubt until a row of ``size`` bytes has room."""
        return []

    # What to send

    def take(self, now: float, *, alone: bool) -> Take:
        """Return what to do now.

        With ``alone``, as in an outage, there is nothing to send while a request is in flight.
        """
        if (alone or self._failures) and self._in_flight:
            return Take()
        if self._failures:
            resume_at = self._resume_at
            if len(self._again) == 1 and _suspicion(self._again[0])[0] > 1:
                # One that fails is no outage yet: its long pauses are not for new rows.
                resume_at = min(resume_at, self._fresh_due_at())
            if now < resume_at:
                return Take(wait=resume_at - now)
            batch = self._probe(now)
        else:
            batch = self._take_again(now) or self._take_fresh(now)
        if batch is not None:
            self._in_flight.add(batch)
            return Take(batch)
        times = [batch.due for batch in self._again]
        if self.fresh:
            times.append(self._fresh_due_at())
        return Take(wait=min(times) - now if times else None)

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
        if self.holds_full_batch or self._taken < self._flush_to:
            return 0.0
        return self.fresh_since + self._flush_interval

    def _take_fresh(self, now: float) -> Batch | None:
        if now < self._fresh_due_at():
            return None
        # A destructor may log at any call here, so that the deque is never iterated over.
        count = min(len(self.fresh), self._batch_rows)
        rows = [self.fresh.popleft() for _ in range(count)]
        fitting = _fitting(rows, self._limits)
        self.fresh.extendleft(reversed(rows[fitting:]))
        del rows[fitting:]
        taken_bytes = sum(map(row_bytes, rows))
        self.fresh_bytes -= taken_bytes
        batch = Batch(rows, position=self._taken)
        self._taken += len(rows)
        self.fresh_since = now
        self.skip(0)
        return batch

    # What became of it

    def succeeded(self, batch: Batch, answer: Answer, now: float) -> Verdict:
        """BigQuery answered the request with ``batch``."""
        if batch not in self._in_flight:
            return Verdict()
        dead = [
            DeadLetter(batch.rows[refused.index], refused.reason, batch.position)
            for refused in answer.refused
        ]
        unstored = {refused.index for refused in answer.refused}.union(answer.again)
        stored = [row for index, row in enumerate(batch.rows) if index not in unstored]
        again = [batch.rows[index] for index in answer.again]
        stored_bytes = sum(map(row_bytes, stored))
        due = now + self._jitter(batch.tries)
        self._passes += 1
        self._failures = 0
        if again:
            self._again.append(
                Batch(again, position=batch.position, tries=batch.tries + 1, due=due)
            )
        self._letters.update(dict.fromkeys(dead))
        self._in_flight.discard(batch)
        self.stored += len(stored)
        self._held -= len(stored)
        self._held_bytes -= stored_bytes
        return Verdict(stored, dead)

    def refused(self, batch: Batch, refusal: Refusal, now: float) -> Verdict:
        """BigQuery refused the request with ``batch`` as a whole."""
        if batch not in self._in_flight:
            return Verdict()
        self._failures = 0
        if len(batch.rows) == 1:
            return self._give_up(batch, refusal.reason)
        self._split(batch, slice(len(batch.rows) // 2), now)
        return Verdict()

    def failed(self, batch: Batch, failure: Failure, *, started: float, now: float) -> Verdict:
        """The request that ``started`` with ``batch`` failed.

        A single row that failed time and again while everything else passed is a dead letter.
        """
        if batch not in self._in_flight:
            return Verdict()
        may_be_the_rows = failure.may_be_the_rows
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
                return Verdict()
            if may_be_the_rows and batch.tries >= TRIES_BEFORE_CANARY and not self._has_canary():
                canary = len(batch.rows) // 3  # any would do
                self._split(batch, slice(canary, canary + 1), now)
                return Verdict()
        elif _is_proved(batch, now - batch.failing_since):
            return self._give_up(batch, failure.reason)
        batch.due = now  # in an outage, the pause is for all
        if may_be_the_rows:
            tries = 2 if proof else min(batch.tries, 4) if silence else batch.tries
            batch.due += self._jitter(tries)
        self._in_flight.discard(batch)
        self._again.append(batch)
        return Verdict()

    def give_back(self, batch: Batch, now: float) -> bool:
        """Sending ``batch`` ended in an exception: one failed try, and no evidence against a row.

        Changes nothing, and returns False, if the batch is decided already.
        """
        if batch not in self._in_flight:
            return False
        batch.tries += 1
        batch.due = now + self._jitter(batch.tries)
        self._pause(now, now)
        self._in_flight.discard(batch)
        self._again.append(batch)
        return True

    def dead_lettered(self, batch: Batch, letters: list[DeadLetter]) -> None:  # noqa: ARG002
        """``letters``, of a verdict on ``batch``, are handed over: now they are settled."""
        for letter in letters:
            if letter in self._letters:
                size = row_bytes(letter.row)
                del self._letters[letter]
                self.dead += 1
                self._held -= 1
                self._held_bytes -= size

    def retry_now(self, now: float) -> None:
        """The process ends: try at once, and go on with short pauses."""
        self._longest_pause = LAST_PAUSE
        self._resume_at = now
        for batch in self._again:
            batch.due = now

    def duplicate_in_flight(self, now: float, *, older_than: float) -> int:  # noqa: ARG002
        """Have batches sent once more that were taken so many seconds ago; returns how many."""
        return 0

    # What only a queue with disk behind it has something to do for

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

    def _give_up(self, batch: Batch, reason: Reason) -> Verdict:
        letter = DeadLetter(batch.rows[0], reason, batch.position)
        self._letters[letter] = None
        self._in_flight.discard(batch)
        return Verdict(dead=[letter])

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

    def _has_canary(self) -> bool:
        return any(
            len(batch.rows) == 1 and batch.tries < TRIES_OF_A_CANARY for batch in self._again
        )

    def _split(self, batch: Batch, first: slice, now: float) -> None:
        others = batch.rows.copy()
        del others[first]
        parts = [
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
        self._in_flight.discard(batch)
        self._again[:0] = parts


def _suspicion(batch: Batch) -> tuple[int, int]:
    return (batch.tries if batch.is_suspect else 0, batch.position)


def _is_proved(batch: Batch, seconds: float) -> bool:
    return (batch.proofs >= PROOFS_AGAINST_A_ROW and seconds >= PATIENCE_WITH_A_ROW) or (
        batch.failures_in_silence >= FAILURES_IN_SILENCE and seconds >= PATIENCE_IN_SILENCE
    )


def _fitting(rows: list[Row], limits: Limits) -> int:
    """How many of the first of ``rows`` fit into one request, and at least one."""
    if sum(map(row_bytes, rows)) * MOST_BYTES_A_CHARACTER <= limits.request_bytes:
        return len(rows)
    sizes = accumulate(map(limits.wire_bytes, rows))
    return max(1, sum(1 for _ in takewhile(limits.request_bytes.__ge__, sizes)))
