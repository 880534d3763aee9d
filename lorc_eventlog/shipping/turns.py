"""Processes by turns, so that what BigQuery refuses of one does not keep out what others wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, zip_longest
from math import inf
from typing import TYPE_CHECKING, TypeAlias

from lorc_eventlog.delivery.doubt import PROBE_ROWS
from lorc_eventlog.delivery.queue import DeliveryQueue
from lorc_eventlog.events.row import row_bytes

if TYPE_CHECKING:
    from lorc_eventlog.delivery.batch import Bounds
    from lorc_eventlog.events.row import Row
    from lorc_eventlog.shipping.follower import Follower

READ_ROWS = 5_000
"""The most events that are read at once."""

ProcessOf: TypeAlias = "Callable[[Row], str]"
"""Says which process wrote a row."""


def by_turns(rows: Iterable[Row], process_of: ProcessOf) -> list[Row]:
    """Return ``rows`` so that each process has its turn; those of one stay in their order."""
    by_process: dict[str, list[Row]] = {}
    for row in rows:
        by_process.setdefault(process_of(row), []).append(row)
    turns = chain.from_iterable(zip_longest(*by_process.values()))
    return [row for row in turns if row is not None]


def crowding(rows: Iterable[Row], process_of: ProcessOf, most: int, most_bytes: int) -> set[str]:
    """Return the processes that wrote more of ``rows`` than is their share of the most."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for row in rows:
        process = process_of(row)
        counts[process] += 1
        sizes[process] += row_bytes(row)
    of = len(counts)
    return {name for name in counts if counts[name] * of >= most or sizes[name] * of >= most_bytes}


class TurnsQueue(DeliveryQueue):
    """Decides how much is read, and of whom: rows in doubt must not fill the memory.

    Only another row that is stored can decide about them, and it may be one that nobody has read.

    Args:
        follower: Reads, and knows which process wrote a row.
        bounds: As for :class:`~lorc_eventlog.delivery.queue.DeliveryQueue`.
    """

    def __init__(self, follower: Follower, bounds: Bounds) -> None:
        super().__init__(bounds)
        self.is_reading = True
        """Whether events are read; a shipper that ends reads no more."""
        self._follower = follower
        self._unkept: list[Row] = []
        """Dead rows whose letter the disk did not take."""
        self._is_mixed = False
        """Whether fresh rows of all processes go by turns."""

    def _room(self) -> int:
        """Return how many rows may be read now: few enough for memory, and for them to be fresh."""
        if not self.is_reading:
            return 0
        in_doubt, bytes_in_doubt = self._in_doubt() if self._is_choosy else (0, 0)
        room = self._capacity - (self._held - in_doubt) - len(self._unkept)
        if self.held_bytes - bytes_in_doubt >= self._capacity_bytes:
            room = 0
        return max(min(READ_ROWS, room), PROBE_ROWS if self._is_in_trouble else 0)

    def _in_doubt(self) -> tuple[int, int]:
        """Return how many rows are in doubt, and how large they are if that may matter."""
        size = 0
        if 2 * self.held_bytes >= self._capacity_bytes:
            size = sum(map(row_bytes, self._doubtful_rows()))
        return self._count_doubtful(), size

    def _doubtful_rows(self) -> Iterable[Row]:
        return chain.from_iterable(doubt.rows for doubt in self._all_doubts())

    def _process_of(self, row: Row) -> str:
        segment, _, _ = self._follower.place_of(row)
        return segment.process

    @property
    def _is_choosy(self) -> bool:
        """Whether rows in doubt could keep those of other processes out of memory."""
        count, size = self._in_doubt()
        is_full = 2 * count >= self._capacity or 2 * size >= self._capacity_bytes
        return is_full or self._is_in_trouble

    def _reader(self) -> Callable[[int], list[Row]]:
        """Return what reads; from whom, and how much of each, is decided now.

        Whoever has more rows in doubt than its share of half of the memory is passed over. As long
        as nothing is stored, a few rows of each process are enough to find out whether that is the
        table's fault.
        """
        if not self._is_choosy:
            return self._follower.read
        each, passed_over = READ_ROWS, set[str]()
        if self._is_in_trouble:
            each = PROBE_ROWS
            sent = (batch.rows for batch in (*self._in_flight, *self._again) if not batch.doubts)
            untold = chain(self._fresh.rows, chain.from_iterable(sent))
            passed_over.update(map(self._process_of, untold))
        is_full = self._held >= self._capacity or self.held_bytes >= self._capacity_bytes
        if is_full or not self._is_in_trouble:
            passed_over |= crowding(
                self._doubtful_rows(),
                self._process_of,
                self._capacity // 2,
                self._capacity_bytes // 2,
            )
        return partial(self._follower.read, each=each, but=passed_over)

    def _mix(self) -> None:
        """While few rows probe whether the table is wrong, have these be of many processes."""
        if self._is_table_wrong and self._fresh.first < inf and not self._is_mixed:
            self._fresh.rearrange(partial(by_turns, process_of=self._process_of))
        self._is_mixed = self._is_table_wrong
