"""A queue whose rows come from a spool directory, and go from there when they are settled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from lorc_eventlog.delivery.batch import Batch, Bounds, DeadLetter, Take, Verdict
from lorc_eventlog.shipping.turns import READ_ROWS, TurnsQueue

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.transport import Answer
    from lorc_eventlog.events.row import Row
    from lorc_eventlog.shipping.follower import Follower


class Recorder(Protocol):
    """What erases stored rows instead of the queue, once it has recorded that they are stored."""

    @property
    def is_settled(self) -> bool:
        """Whether it has nothing left to do."""

    def settle(self, timeout: float) -> object:
        """Do it. Called by a sender when there is nothing to send."""

    def fence(self, rows: Sequence[Row], timeout: float) -> list[Row] | None:
        """Return which of ``rows``, given up, are stored all the same; None if nobody knows yet."""


class ShippingQueue(TurnsQueue):
    """Reads events from segments, and erases them there.

    All that touches the disk is one chore, which one sender at a time runs without the lock: erase
    what is settled, look at the directory, read. So nothing but the chore touches the follower.

    Args:
        follower: Reads and erases.
        keep: Writes the dead letter of a row, and says whether the disk took it. It is called again
            until it did; what no letter keeps in the end stays in the spool.
        forget: Told of rows that need no dead letter, because they are stored after all.
        interval: Seconds between two looks at the directory.
        recorder: Erases stored rows instead, for exactly once; None if the queue does.
        bounds: As for :class:`~lorc_eventlog.delivery.queue.DeliveryQueue`.
    """

    def __init__(
        self,
        follower: Follower,
        bounds: Bounds,
        *,
        keep: Callable[[Row], bool],
        forget: Callable[[list[Row]], object],
        interval: float,
        recorder: Recorder | None,
    ) -> None:
        super().__init__(follower, bounds)
        self.looks = 0
        """How many times the directory was looked at."""
        self._keep = keep
        self._forget_letters = forget
        self._interval = interval
        self._recorder = recorder
        self._stored: deque[Row] = deque()
        self._dead: deque[Row] = deque()
        self._keep_at = 0.0
        """When it is asked again."""
        self._stored_late = 0
        """How many rows were given up and stored all the same, as the last chore found."""
        self._left = 0
        self._is_batch_next = False
        """Whether a chore was the last thing that was done: something to send comes first now."""
        self._look_at = 0.0
        self._read_at = 0.0
        """When to read again, if the last time nobody was there whose rows may be read."""
        self._is_chore_out = False

    @property
    def inbox_room(self) -> int:
        """No event comes by a log call."""
        return 0

    @property
    def kept(self) -> int:
        """All rows that are held are on disk."""
        return self.held

    @property
    def is_settled(self) -> bool:
        """Whether nothing is in memory and everything on disk says so."""
        recorded = self._recorder is None or self._recorder.is_settled
        waits = self.held or self._stored or self._dead or self._unkept
        return recorded and not (waits or self._is_chore_out)

    @property
    def unkept(self) -> int:
        """How many dead rows no letter keeps: they are in the spool."""
        return len(self._unkept) + self._left

    def take(self, now: float, *, alone: bool) -> Take:
        """Return what to do now: the chore, if it is time for it or if there is nothing to send."""
        self._mix()
        # By turns: else a sender that is alone would read a file of nothing but damage to its end.
        if not self._is_batch_next and not self._is_chore_out and self._needs_chore(now):
            return self._hand_out_chore(now)
        self._is_batch_next = False
        take = super().take(now, alone=alone)
        if take.batch is not None:
            return take
        if not self._is_chore_out and (self._needs_chore(now) or self._stored or self._dead):
            return self._hand_out_chore(now)
        next_at = min(self._look_at, self._keep_at) if self._unkept else self._look_at
        if self._read_at > now and self._follower.has_unread and self._room():
            next_at = min(next_at, self._read_at)
        until_chore = max(0.0, next_at - now)
        return Take(wait=until_chore if take.wait is None else min(take.wait, until_chore))

    def _needs_chore(self, now: float) -> bool:
        if now >= self._look_at or len(self._stored) >= READ_ROWS:
            return True
        if self._unkept and (now >= self._keep_at or not self.is_reading):
            return True
        return now >= self._read_at and self._room() > 0 and self._follower.has_unread

    def _hand_out_chore(self, now: float) -> Take:
        self._is_chore_out = True
        is_time_to_look = now >= self._look_at
        if is_time_to_look:
            self._look_at = now + self._interval
        read: Callable[[], list[Row]] = list
        if now >= self._read_at and (room := self._room()):
            read = partial(self._reader(), room)
            if self._is_choosy:
                self._read_at = now + CHOICE_INTERVAL
        held = self._held
        self._is_batch_next = True
        return Take(chore=lambda: self._do_chore(read, now, look=is_time_to_look, is_idle=not held))

    def _do_chore(
        self, read: Callable[[], list[Row]], now: float, *, look: bool, is_idle: bool
    ) -> list[Row]:
        follower = self._follower
        stored = _drain(self._stored)
        self._write_dead_letters(now)
        if self._recorder is None:
            follower.acknowledge(stored)
        else:
            follower.release(stored)
            if is_idle:
                self._recorder.settle(RECORDER_TIMEOUT)
        if look:
            follower.look()
            self.looks += 1
        return read()

    def _write_dead_letters(self, now: float) -> None:
        """Erase the dead rows that a letter keeps. The others wait, and nothing waits for them."""
        # Hazard: whatever is raised here, a row that no letter keeps must stay among them.
        self._unkept += _drain(self._dead)
        if not self._unkept or (now < self._keep_at and self.is_reading):
            return
        self._keep_at = now + KEEP_INTERVAL
        stored: list[Row] | None = []
        if self._recorder is not None:
            stored = self._recorder.fence(self._unkept, RECORDER_TIMEOUT)
        if stored:
            self._stored_late += len(stored)
            self._unkept = _without(self._unkept, stored)
            self._forget_letters(stored)
            self._follower.release(stored)
        if stored is not None:
            kept: list[Row] = []
            try:
                kept += (row for row in self._unkept if self._keep(row))
            finally:
                self._unkept = _without(self._unkept, kept)
                self._follower.acknowledge(kept)
        if not self._unkept:
            self._keep_at = now
        elif not self.is_reading:
            self._left += len(self._unkept)
            self._follower.leave(self._unkept)
            self._unkept = []

    def chore_done(self, result: object, now: float) -> int:
        """Add what the chore read."""
        self._is_chore_out = False
        self.stored += self._stored_late
        self.dead -= self._stored_late
        self._stored_late = 0
        rows: Any = result
        if rows:
            self._is_mixed = False
            self._read_at = now
        self.absorb(list(rows or ()), now)
        return 0

    def succeeded(self, batch: Batch, answer: Answer, now: float) -> Verdict:
        """BigQuery answered the request with ``batch``."""
        was_in_trouble = self._is_in_trouble
        verdict = super().succeeded(batch, answer, now)
        if was_in_trouble and verdict.stored:
            self._read_at = now
        self._stored.extend(verdict.stored)
        return verdict

    def dead_lettered(self, batch: Batch, letters: list[DeadLetter]) -> None:
        """``letters`` are known: a chore writes them, and erases their rows."""
        super().dead_lettered(batch, letters)
        self._dead.extend(letter.row for letter in letters)

    def close(self) -> Callable[[], object]:
        """Do nothing: segments are deleted as soon as they are empty."""
        return int


KEEP_INTERVAL = 1.0
"""Seconds between two tries of a dead letter that the disk does not take."""

CHOICE_INTERVAL = 2.0
"""Seconds until it is looked again whose rows may be read, after there were none."""

RECORDER_TIMEOUT = 30.0
"""Seconds that the recorder may take for what is pending."""


def _without(rows: list[Row], others: list[Row]) -> list[Row]:
    # By identity: the same event may be in the directory twice.
    left_out = set(map(id, others))
    return [row for row in rows if id(row) not in left_out]


def _drain(rows: deque[Row]) -> list[Row]:
    # Senders append to it meanwhile.
    return [rows.popleft() for _ in range(len(rows))]
