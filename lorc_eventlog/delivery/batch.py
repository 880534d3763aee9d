"""What delivery hands around: batches on their way, and what became of their rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from lorc_eventlog.events.row import row_bytes

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.transport import Limits, Reason
    from lorc_eventlog.events.row import Row


class Bounds(NamedTuple):
    """How much a queue holds, and how much of it goes into one request."""

    batch_rows: int
    """The most rows in one request."""
    flush_interval: float
    """Seconds after which rows are sent that are no full batch."""
    capacity: int
    """The most rows that are held."""
    capacity_bytes: int
    """The most bytes that they are together."""
    limits: Limits
    """What the transport takes in one request."""


@dataclass(slots=True, eq=False)
class Record:
    """How a batch failed so far, and what had happened elsewhere at its last failure."""

    tries: int = 0
    since: float = math.inf
    """When it failed first; infinite if it never did."""
    is_suspect: bool = False
    """Whether its last failure may be due to its rows."""
    isolations: int = 0
    """How often it failed while everything else was stored..."""
    proofs: int = 0
    """... and how often of these BigQuery or the connection failed, and not our own code."""
    failures_in_silence: int = 0
    """How often in a row it failed, since a proof, while nothing else did."""
    stored: int = 0
    """Rows that were stored by then."""
    began: int = 0
    """Batches that had begun to fail by then."""
    failures: int = 0
    """Failed requests by then."""


@dataclass(slots=True, eq=False)
class Doubt:
    """Rows that BigQuery refuses for a reason that may be the table's. They share their history."""

    rows: list[Row]
    positions: Sequence[int]
    reason: Reason
    due: float
    stored: int
    """Rows that were stored when these were refused last."""
    began: int
    """Batches that had begun to fail by then."""
    tries: int = 0
    refusals: int = 0
    """How often each of the rows was refused for itself, with another row stored in between."""
    since: float = 0.0
    """When it was refused so for the first time."""
    is_alone: bool = False
    """Whether the rows are sent in a request of their own, to tell which of them is bad."""
    is_given_up: bool = False


@dataclass(slots=True, eq=False)
class Batch:
    """Rows that are sent in one request, always with the same insertIds."""

    rows: list[Row]
    positions: Sequence[int]
    """How many rows had been added before each of them; ascending."""
    record: Record = field(default_factory=Record)
    due: float = 0.0
    sent_at: float = 0.0
    doubts: Sequence[Doubt] = ()
    """If its rows are in doubt: their histories, in the order of the rows."""
    known_size: int | None = None
    """How large the rows are together, if that was counted already."""

    @property
    def size(self) -> int:
        """How large the rows are together."""
        return sum(map(row_bytes, self.rows)) if self.known_size is None else self.known_size


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
    rows: Sequence[Row]
    """... and these: the reason may quote them (:meth:`Reason.told`)."""


def some(batch: Batch, indexes: Sequence[int], record: Record, due: float) -> Batch:
    """Return a batch of the rows of ``batch`` with these indexes."""
    return Batch(
        [batch.rows[index] for index in indexes],
        [batch.positions[index] for index in indexes],
        record=record,
        due=due,
    )


def without(rows: list[Row], indexes: set[int]) -> list[Row]:
    """Return ``rows`` but for those with these indexes; if there are none, the list itself."""
    return [row for index, row in enumerate(rows) if index not in indexes] if indexes else rows


def part(doubt: Doubt, indexes: Sequence[int]) -> list[Doubt]:
    """Return the rows of ``doubt`` with these indexes, with its history; nothing if it is none."""
    if not indexes:
        return []
    rows = [doubt.rows[index] for index in indexes]
    return [replace(doubt, rows=rows, positions=[doubt.positions[index] for index in indexes])]


def oldest_rows(doubts: list[Doubt], count: int, size: int) -> tuple[list[DeadLetter], list[Doubt]]:
    """Take the oldest ``count`` rows or more, of ``size`` bytes, out of ``doubts``.

    Returns:
        The rows and what is left; no rows if there are too few.
    """
    letters: list[DeadLetter] = []
    left = []
    for doubt in sorted(doubts, key=lambda doubt: doubt.positions[0]):
        taken = 0
        for row, position in zip(doubt.rows, doubt.positions, strict=True):
            if count <= 0 >= size:
                break
            count -= 1
            size -= row_bytes(row)
            letters.append(DeadLetter(row, doubt.reason, position))
            taken += 1
        left += part(doubt, range(taken, len(doubt.rows)))
    return (letters, left) if count <= 0 >= size else ([], doubts)
