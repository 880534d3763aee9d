"""Keeps the books of delivery: each row that was added is in exactly one place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lorc_eventlog.delivery.batch import Batch, Bounds, DeadLetter, Doubt, oldest_rows
from lorc_eventlog.delivery.fresh import FreshRows
from lorc_eventlog.events.row import SMALL_ROW, row_bytes

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row


class Books:
    """Where each row is: fresh, in flight, waiting, in doubt, a dead letter to be told, or settled.

    Signal safety: a change is made in one run of assignments, without a call in between. What a
    handler that raises may interrupt is finished, or has not begun.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.stored = 0
        """How many rows BigQuery stored."""
        self.dead = 0
        """How many rows became dead letters that are told."""
        self.dropped = 0
        """How many rows in doubt made room for others."""
        self._capacity = bounds.capacity
        self._capacity_bytes = bounds.capacity_bytes
        self._fresh = FreshRows(
            batch_rows=bounds.batch_rows,
            flush_interval=bounds.flush_interval,
            limits=bounds.limits,
        )
        self._in_flight: dict[Batch, None] = {}
        self._again: list[Batch] = []
        self._doubtful: list[Doubt] = []
        self._letters: dict[DeadLetter, None] = {}
        self._copies: dict[Batch, Batch] = {}
        """Batches whose request may still be answered, and the copy that is in their place."""
        self._settled_bytes = 0

    # What they say

    @property
    def held(self) -> int:
        """How many rows are not settled, those in flight included."""
        return self._held

    @property
    def held_bytes(self) -> int:
        """How large these are together; those that are only on disk are not counted."""
        return self._fresh.added_bytes - self._settled_bytes

    @property
    def position(self) -> int:
        """How many rows have been added so far."""
        return self._fresh.position

    @property
    def holds_full_batch(self) -> bool:
        """Whether fresh rows need not wait for more."""
        return self._fresh.is_full_batch

    @property
    def inbox_room(self) -> int:
        """How many rows of at most ``SMALL_ROW`` bytes may gather elsewhere before they are added.

        Until then they make no batch full, and the bounds hold.
        """
        return max(0, min(self._fresh.rows_until_full - 1, self.small_rows_room))

    @property
    def small_rows_room(self) -> int:
        """For how many rows of at most ``SMALL_ROW`` bytes there is room."""
        room_bytes = (self._capacity_bytes - self.held_bytes) // SMALL_ROW
        return min(self._capacity - self._held, room_bytes)

    def has_room(self, size: int) -> bool:
        """Whether a row of ``size`` bytes may be added."""
        return self._held < self._capacity and self.held_bytes + size <= self._capacity_bytes

    def settled(self, position: int) -> bool:
        """Whether every row before ``position`` is stored, a dead letter or dropped."""
        unsettled: list[Batch | Doubt] = [*self._in_flight, *self._again, *self._doubtful]
        return (
            self._fresh.position >= position
            and self._fresh.first >= position
            and all(held.positions[0] >= position for held in unsettled)
            and all(letter.position >= position for letter in self._letters)
        )

    @property
    def _held(self) -> int:
        fresh = self._fresh
        return fresh.position - fresh.skipped - self.stored - self.dead - self.dropped

    # Rows come in

    def accept(self, row: Row, now: float) -> bool:
        """Add ``row`` if there is room; whether there was."""
        has_room = self.has_room(row_bytes(row))
        if has_room:
            self.add(row, now)
        return has_room

    def add(self, row: Row, now: float) -> None:
        """Add a fresh row."""
        self._fresh.absorb([row], now)

    def absorb(self, inbox: list[Row], since: float) -> None:
        """Move all rows of ``inbox`` in; they came at ``since`` or later."""
        self._fresh.absorb(inbox, since)

    def skip(self, count: int) -> None:
        """Count ``count`` rows that were expected after the fresh ones and will never come."""
        fresh = self._fresh
        fresh.position += count
        fresh.skipped += count

    # Rows move

    def duplicate_in_flight(self, now: float, *, older_than: float) -> int:
        """Have batches sent once more that were taken so many seconds ago; return how many.

        The insertIds make that harmless. The first result that settles the rows counts.
        """
        copied = {
            batch: replace(batch, due=now)
            for batch in self._in_flight
            if now - batch.sent_at >= older_than
        }
        if copied:
            in_flight = {batch: None for batch in self._in_flight if batch not in copied}
            waiting = [*copied.values(), *self._again]
            copies = {old: copied.get(new, new) for old, new in self._copies.items()} | copied
            self._in_flight = in_flight
            self._again = waiting
            self._copies = copies
        return len(copied)

    def drop_doubtful(self, size: int) -> list[DeadLetter]:
        """Drop the oldest rows that are in doubt, so that a row of ``size`` bytes has room.

        None if they are too few for that.
        """
        rows = self._held + 1 - self._capacity
        surplus = self.held_bytes + size - self._capacity_bytes
        letters, kept = oldest_rows(self._doubtful, rows, surplus)
        count = len(letters)
        freed = sum(row_bytes(letter.row) for letter in letters)
        self._doubtful = kept
        self.dropped += count
        self._settled_bytes += freed
        return letters

    def dead_lettered(self, batch: Batch, letters: list[DeadLetter]) -> None:  # noqa: ARG002
        """``letters``, of a verdict on ``batch``, are handed over: now they are settled."""
        for letter in letters:
            if letter in self._letters:
                size = row_bytes(letter.row)
                del self._letters[letter]
                self.dead += 1
                self._settled_bytes += size

    def is_undecided(self, batch: Batch) -> bool:
        """Whether a result for ``batch`` may still change something."""
        return batch in self._in_flight or batch in self._copies

    def _find(self, batch: Batch, *, settles: bool) -> Batch | None:
        """Return what stands for ``batch`` now; None if a result for it changes nothing.

        Of a batch that was duplicated, only a result that ``settles`` its rows counts: of a failure
        the copy decides.
        """
        copy = self._copies.pop(batch, None)
        if copy is None:
            return batch if batch in self._in_flight else None
        is_known = copy in self._in_flight or copy in self._again
        return copy if settles and is_known else None

    def _conclude(
        self,
        batch: Batch,
        *,
        stored: Sequence[Row] = (),
        again: Sequence[Batch] = (),
        doubts: Iterable[Doubt] = (),
        letters: Iterable[DeadLetter] = (),
    ) -> None:
        """Put what became of the rows of ``batch`` in its place."""
        count = len(stored)
        size = batch.size if count == len(batch.rows) else sum(map(row_bytes, stored))
        in_flight = {other: None for other in self._in_flight if other is not batch}
        waiting = [*again, *(other for other in self._again if other is not batch)]
        in_doubt = [*self._doubtful, *doubts]
        pending = {**self._letters, **dict.fromkeys(letters)}
        copies = {old: new for old, new in self._copies.items() if new is not batch}
        if again and again[0].rows is batch.rows:
            # A copy that failed as a whole has another one in its place.
            copies |= {old: again[0] for old, new in self._copies.items() if new is batch}
        self._in_flight = in_flight
        self._again = waiting
        self._doubtful = in_doubt
        self._letters = pending
        self._copies = copies
        self.stored += count
        self._settled_bytes += size
