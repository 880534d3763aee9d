"""A queue with disk behind it: an event is on disk when the log call returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorc_eventlog.delivery.batch import Batch, Bounds, DeadLetter, Take, Verdict
from lorc_eventlog.delivery.queue import DeliveryQueue
from lorc_eventlog.events.row import Row, finish
from lorc_eventlog.spool.format import encode_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from lorc_eventlog.bigquery.transport import Answer
    from lorc_eventlog.spool.spool import Chore, Spool

MOST_LOAD_BYTES = 4 * 2**20
"""A chore brings about so many bytes of rows at most."""


class SpooledQueue(DeliveryQueue):
    """Keeps each row in a spool directory until it is settled.

    Memory holds ``capacity`` rows, and the disk the others, which are sent in their order.

    A position counts rows in the order in which they came. Rows that are added while older ones
    are only on disk, because the disk refused them or a dead process left them, overtake these,
    and do not count.

    Args:
        spool: Where the rows are on disk.
        bounds: As for :class:`DeliveryQueue`; its capacity is that of memory.
    """

    def __init__(self, spool: Spool, bounds: Bounds) -> None:
        super().__init__(bounds)
        self._spool = spool
        self._store = spool.store
        self._load_rows = min(bounds.batch_rows, bounds.capacity)
        self._in_order_to = 0
        self._overtaken = 0
        self._had_chore = False

    # What it holds

    @property
    def held(self) -> int:
        """How many rows are not settled, those that are only on disk included."""
        return self._held + self._store.unread

    @property
    def kept(self) -> int:
        """How many of the rows that are held survive the process."""
        return self._spool.kept

    @property
    def inbox_room(self) -> int:
        """No row may gather where it is not on disk."""
        return 0

    @property
    def position(self) -> int:
        """How many rows came so far."""
        return super().position + self._store.unread - self._overtaken

    @property
    def holds_only_doubtful(self) -> bool:
        """Whether every row that is held is in doubt."""
        return super().holds_only_doubtful and not self._store.unread

    def request_flush(self, position: int | None = None) -> int:
        """Send all rows before ``position`` (default: all) without waiting for a full batch."""
        position = self.position if position is None else position
        super().request_flush(position + self._overtaken)
        return position

    def settled(self, position: int) -> bool:
        """Whether every row before ``position`` is stored, a dead letter or dropped."""
        everything = super().position + self._store.unread
        return super().settled(min(position + self._overtaken, everything))

    # Rows come in

    def accept(self, row: Row, now: float) -> bool:
        """Write ``row`` to disk, and keep it in memory if there is room; False if it is nowhere.

        If a signal handler raises, the row is out, or in and counted.
        """
        store = self._store
        line = encode_line(finish(row))
        if store.is_full(line):
            return False
        has_room = self.has_room(len(line))
        if store.unread or not has_room:
            if store.append(line):
                return True
            if not has_room:
                return False
        else:
            store.append(line, row)
        try:
            if store.unread:
                self._overtaken += 1
            self.add(row, now)
        except BaseException:
            self._spool.take_back(row)
            raise
        return True

    def may_hold(self, row: Row) -> bool:  # noqa: ARG002
        """On disk there may be room for each row."""
        return True

    def accept_nested(self, row: Row) -> bool:
        """Write ``row`` to disk alone, for a log call in the middle of another method."""
        line = encode_line(finish(row))
        return not self._store.is_full(line) and self._store.append(line)

    def absorb(self, inbox: list[Row], since: float) -> None:
        """Move all rows of ``inbox`` in: to disk, or to memory if that fails."""
        while inbox:
            row = inbox[0]
            if not self.accept(row, since):
                self._overtaken += bool(self._store.unread)
                self.add(row, since)
            del inbox[0]

    # What to do

    def take(self, now: float, *, alone: bool) -> Take:
        """Return what to do now: a chore and a batch by turns, if there are both.

        What waited on disk is sent in its order, one request at a time.
        """
        chore = None if self._had_chore else self._next_chore(now)
        if chore is None:
            in_order = self._store.unread > 0 or not super().settled(self._in_order_to)
            take = super().take(now, alone=alone or in_order)
            if take.batch is None:
                chore = self._next_chore(now)
        self._had_chore = chore is not None
        if chore is not None:
            return Take(chore=chore)
        if take.batch is not None:
            return take
        wait = self._spool.wait(now)
        return Take(wait=wait if take.wait is None else min(wait, take.wait))

    def chore_done(self, result: object, now: float) -> int:
        """Apply what a chore found; ``result`` is what it returned, None if it was interrupted.

        Returns:
            How many events of this process turned out to be damaged.
        """
        loaded = self._spool.chore_done(result, now)
        for row in loaded.rows:
            self.add(row, now)
        if loaded.are_own:
            self.skip(loaded.lost)
            self._in_order_to = super().position
        elif loaded.rows:
            if self._store.unread:
                self._overtaken += len(loaded.rows)
            super().request_flush(super().position)  # they have waited long enough
        return loaded.lost

    def _next_chore(self, now: float) -> Chore | None:
        room, room_bytes = self._capacity - self._held, self._capacity_bytes - self.held_bytes
        rows = self._load_rows if room >= self._load_rows and room_bytes > 0 else 0
        # Not all of the room: log calls fill memory, too, while the chore runs.
        return self._spool.next_chore(rows, min(MOST_LOAD_BYTES, room_bytes // 2), now)

    # What became of it

    def succeeded(self, batch: Batch, answer: Answer, now: float) -> Verdict:
        """BigQuery answered the request with ``batch``."""
        verdict = super().succeeded(batch, answer, now)
        self._spool.acknowledge(verdict.stored)
        return verdict

    def dead_lettered(self, batch: Batch, letters: list[DeadLetter]) -> None:
        """``letters``, of a verdict on ``batch``, are handed over: now they are settled."""
        super().dead_lettered(batch, letters)
        self._spool.acknowledge(letter.row for letter in letters)

    def drop_doubtful(self, size: int) -> list[DeadLetter]:
        """Drop rows that are only in doubt until a row of ``size`` bytes has room."""
        dropped = super().drop_doubtful(size)
        self._spool.acknowledge(letter.row for letter in dropped)
        return dropped

    # Other processes

    @property
    def is_drained(self) -> bool:
        """Whether nothing is left of what dead processes left, but for what is not ours."""
        return self._spool.is_drained

    def look_now(self) -> None:
        """Look for what dead processes left, by a chore that comes next."""
        self._spool.look_now()

    def close(self) -> Callable[[], None]:
        """Leave no empty file behind, and to others what is adopted and not in memory.

        Returns:
            What is to be called without the lock. The queue can be used again afterwards.
        """
        return self._spool.close()
