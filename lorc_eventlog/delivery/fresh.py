"""Rows that were never sent, in the portions in which they will be."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING

from lorc_eventlog.delivery.batch import Batch
from lorc_eventlog.events.row import row_bytes

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.transport import Limits
    from lorc_eventlog.events.row import Row


@dataclass(slots=True, eq=False)
class _Portion:
    """Rows for one request; for more, if their bytes turn out to be too many for one."""

    position: int
    since: float
    """When its first row may have come."""
    rows: list[Row] = field(default_factory=list)
    size: int = 0


class FreshRows:
    """Rows that were never sent.

    Signal safety: between the changes of some rows or of a batch there is no call, so that a signal
    handler that raises comes before or after all of them.
    """

    def __init__(self, *, batch_rows: int, flush_interval: float, limits: Limits) -> None:
        self.position = 0
        """How many rows were added, skipped ones included."""
        self.skipped = 0
        """How many of these were skipped."""
        self.added_bytes = 0
        """How large all rows were that were ever added."""
        self.flush_to = 0
        """Rows before this position are due at once."""
        self._batch_rows = min(batch_rows, limits.rows)
        self._flush_interval = flush_interval
        self._limits = limits
        self._portions: deque[_Portion] = deque()

    @property
    def first(self) -> float:
        """The position of the first row; infinite if there is none."""
        return self._portions[0].position if self._portions else math.inf

    @property
    def rows_until_full(self) -> int:
        """How many rows make one more full batch."""
        last = self._portions[-1] if self._portions else None
        missing = self._batch_rows - (len(last.rows) if last is not None else 0)
        return missing or self._batch_rows

    @property
    def is_full_batch(self) -> bool:
        """Whether there are rows that need not wait for more."""
        portions = self._portions
        if len(portions) != 1:
            return len(portions) > 1
        rows, size = portions[0].rows, portions[0].size
        return len(rows) >= self._batch_rows or size >= self._limits.request_bytes

    @property
    def due_at(self) -> float:
        """When the first rows are to be sent; infinite if there are none."""
        if not self._portions:
            return math.inf
        portion = self._portions[0]
        if self.is_full_batch or portion.position < self.flush_to:
            return portion.since
        return portion.since + self._flush_interval

    def absorb(self, inbox: list[Row], since: float) -> None:
        """Move all rows of ``inbox`` in; they came at ``since`` or later.

        What others append to it meanwhile stays there.
        """
        left = len(inbox)
        portions = self._portions
        portion = portions[-1] if portions else None
        if portion is not None and portion.position + len(portion.rows) < self.position:
            portion = None  # some were skipped
        while left:
            if portion is None:
                portion = _Portion(self.position, since)
                new: tuple[_Portion, ...] = (portion,)
            else:
                new = ()
            rows = portion.rows
            most = min(left, self._batch_rows - len(rows))
            came, size = self._first(inbox, most, portion.size)
            if not came:
                portion = None
                continue
            count = len(came)
            moved = slice(count)
            left -= count
            # Not by calls, such as extend: a portion without a row would be sent.
            rows += came
            portion.size += size
            portions += new
            self.added_bytes += size
            self.position += count
            del inbox[moved]

    def _first(self, inbox: list[Row], most: int, before: int) -> tuple[list[Row], int]:
        """Return the first rows of ``inbox`` that fit behind ``before`` bytes, and their bytes.

        At least one if there is nothing before.
        """
        rows = inbox[:most]
        size = sum(map(row_bytes, rows))
        room = self._limits.request_bytes - before
        if size > room:
            sizes = [*takewhile(room.__ge__, accumulate(map(row_bytes, rows)))]
            rows = rows[: len(sizes) if before else max(1, len(sizes))]
            size = sum(map(row_bytes, rows))
        return rows, size

    @property
    def rows(self) -> Iterator[Row]:
        """All of them, in the order in which they will be sent."""
        return (row for portion in self._portions for row in portion.rows)

    def rearrange(self, order: Callable[[Iterator[Row]], list[Row]]) -> None:
        """Have them, at least one, sent in another order. Nobody may add or skip meanwhile."""
        since = self._portions[0].since
        rows = order(self.rows)
        self.position -= len(rows)
        self.added_bytes -= sum(map(row_bytes, rows))
        self._portions.clear()
        self.absorb(rows, since)

    def take(self, most: int, now: float, in_flight: dict[Batch, None]) -> Batch:
        """Move the first rows, at most ``most`` of them, to ``in_flight``."""
        portion = self._portions[0]
        count = min(most, fitting(portion.rows, portion.size, self._limits))
        rows = portion.rows[:count]
        batch = Batch(rows, range(portion.position, portion.position + len(rows)), sent_at=now)
        rest = None
        if count == len(portion.rows):
            batch.known_size = portion.size
        else:
            rest = _Portion(portion.position + count, portion.since, portion.rows[count:])
            rest.size = portion.size - batch.size
        in_flight[batch] = None
        if rest is None:
            del self._portions[0]
        else:
            self._portions[0] = rest
        return batch


def fitting(rows: list[Row], size: int, limits: Limits) -> int:
    """How many of the first of ``rows``, of ``size`` bytes, fit into a request: at least one."""
    if size * limits.bytes_a_character <= limits.request_bytes:
        return len(rows)
    if limits.most_bytes is not None and limits.most_bytes(rows, size) <= limits.request_bytes:
        return len(rows)
    sizes = accumulate(map(limits.wire_bytes, rows))
    return max(1, sum(1 for _ in takewhile(limits.request_bytes.__ge__, sizes)))
