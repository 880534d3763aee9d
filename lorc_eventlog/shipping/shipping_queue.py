"""A queue whose rows come from a spool directory, and go from there when they are settled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from lorc_eventlog.delivery.batch import Batch, Bounds, DeadLetter, Take, Verdict
from lorc_eventlog.delivery.queue import DeliveryQueue

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.transport import Answer
    from lorc_eventlog.events.row import Row
    from lorc_eventlog.shipping.follower import Follower

READ_ROWS = 5_000
"""The most events that one chore reads."""


class Recorder(Protocol):
    """What erases stored rows instead of the queue, once it has recorded that they are stored."""

    @property
    def is_settled(self) -> bool:
        """Whether it has nothing left to do."""

    def settle(self, timeout: float) -> object:
        """Do it. Called by a sender when there is nothing to send."""


class ShippingQueue(DeliveryQueue):
    """Reads events from segments, and erases them there.

    All that touches the disk is one chore, which one sender at a time runs without the lock: erase
    what is settled, look at the directory, read. So nothing but the chore touches the follower.

    Args:
        follower: Reads and erases.
        is_kept: Whether a dead letter keeps a row; it is called once for each dead row. What none
            keeps stays in the spool.
        interval: Seconds between two looks at the directory.
        recorder: Erases stored rows instead, for exactly once; None if the queue does.
        bounds: As for :class:`~lorc_eventlog.delivery.queue.DeliveryQueue`.
    """

    def __init__(
        self,
        follower: Follower,
        bounds: Bounds,
        *,
        is_kept: Callable[[Row], bool],
        interval: float,
        recorder: Recorder | None,
    ) -> None:
        super().__init__(bounds)
        self.is_reading = True
        """Whether events are read; a shipper that ends reads no more."""
        self.looks = 0
        """How many times the directory was looked at."""
        self._follower = follower
        self._is_kept = is_kept
        self._interval = interval
        self._recorder = recorder
        self._stored: deque[Row] = deque()
        self._dead: deque[Row] = deque()
        self._look_at = 0.0
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
        return recorded and not (self.held or self._stored or self._dead or self._is_chore_out)

    def take(self, now: float, *, alone: bool) -> Take:
        """Return what to do now: the chore, if it is time for it or if there is nothing to send."""
        if not self._is_chore_out and self._needs_chore(now):
            return self._hand_out_chore(now)
        take = super().take(now, alone=alone)
        if take.batch is not None:
            return take
        if not self._is_chore_out and (self._stored or self._dead):
            return self._hand_out_chore(now)
        until_look = max(0.0, self._look_at - now)
        return Take(wait=until_look if take.wait is None else min(take.wait, until_look))

    def _needs_chore(self, now: float) -> bool:
        if now >= self._look_at or len(self._stored) >= READ_ROWS:
            return True
        return self._room() > 0 and self._follower.has_unread

    def _room(self) -> int:
        """Return how many rows may be read now: few enough for memory, and for them to be fresh."""
        if not self.is_reading or self.held_bytes >= self._capacity_bytes:
            return 0
        return min(READ_ROWS, self._capacity - self._held)

    def _hand_out_chore(self, now: float) -> Take:
        self._is_chore_out = True
        is_time_to_look = now >= self._look_at
        if is_time_to_look:
            self._look_at = now + self._interval
        room, held = self._room(), self._held
        return Take(chore=lambda: self._do_chore(room, look=is_time_to_look, is_idle=not held))

    def _do_chore(self, room: int, *, look: bool, is_idle: bool) -> list[Row]:
        follower = self._follower
        stored, dead = _drain(self._stored), _drain(self._dead)
        kept = [row for row in dead if self._is_kept(row)]
        follower.acknowledge(kept)
        follower.leave([row for row in dead if row not in kept] if len(kept) < len(dead) else [])
        if self._recorder is None:
            follower.acknowledge(stored)
        else:
            follower.release(stored)
            if is_idle:
                self._recorder.settle(RECORDER_TIMEOUT)
        if look:
            follower.look()
            self.looks += 1
        return follower.read(room) if room else []

    def chore_done(self, result: object, now: float) -> int:
        """Add what the chore read."""
        self._is_chore_out = False
        rows: Any = result
        self.absorb(deque(rows or ()), now)
        return 0

    def succeeded(self, batch: Batch, answer: Answer, now: float) -> Verdict:
        """BigQuery answered the request with ``batch``."""
        verdict = super().succeeded(batch, answer, now)
        self._stored.extend(verdict.stored)
        return verdict

    def dead_lettered(self, batch: Batch, letters: list[DeadLetter]) -> None:
        """``letters`` are in the file of dead letters: now they are settled."""
        super().dead_lettered(batch, letters)
        self._dead.extend(letter.row for letter in letters)

    def close(self) -> Callable[[], object]:
        """Do nothing: segments are deleted as soon as they are empty."""
        return int


RECORDER_TIMEOUT = 30.0
"""Seconds that the recorder may take for what is pending."""


def _drain(rows: deque[Row]) -> list[Row]:
    # Senders append to it meanwhile.
    return [rows.popleft() for _ in range(len(rows))]
