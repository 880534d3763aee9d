"""The segments of this process and those of dead ones, and the chores that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from lorc_eventlog.spool import orphans
from lorc_eventlog.spool.report import SpoolReport
from lorc_eventlog.spool.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from lorc_eventlog.diagnostics import Notes
    from lorc_eventlog.events.row import Row
    from lorc_eventlog.spool.segment import Place, Reading, Segment

PAUSE = 1.0
"""Seconds until the next chore after one that failed."""

Chore = Callable[[], bool]


@dataclass(slots=True)
class Loaded:
    """What a chore brought from disk into memory."""

    rows: list[Row] = field(default_factory=list)
    are_own: bool = False
    """Whether this process wrote them."""
    lost: int = 0
    """Events of this process that turned out to be damaged."""


class Spool:
    """What is on disk in one directory. The queue's lock guards every call.

    Listing the directory, reading and removing files may take long, or for ever. So each is a
    chore, which :meth:`next_chore` returns, which runs without the lock, one at a time, and which
    :meth:`chore_done` applies.

    Args:
        directory: Where the segments are; made if it is not there.
        table: The table that the events belong to.
        max_bytes: How large the segments of this process may grow together.
        durable: Whether each event is forced to the disk itself.
        notes: Takes what is to be reported.
    """

    def __init__(
        self, directory: Path, *, table: str, max_bytes: int, durable: bool, notes: Notes
    ) -> None:
        self._report = SpoolReport(directory, notes)
        self.store = Store(
            directory,
            table=table,
            max_bytes=max_bytes,
            durable=durable,
            report=self._report,
        )
        self._orphans = orphans.Orphans(directory, table=table, report=self._report)
        self._reading: Reading | None = None
        self._check_at = 0.0
        self._chores_from = 0.0
        self._chore_runs = False
        self._is_to_look = False
        self._is_to_leave = False

    @property
    def kept(self) -> int:
        """Events on disk that are in memory, or of this process."""
        return len(self.store.places) + self.store.unread

    def take_back(self, row: Row) -> None:
        """Erase ``row``, which was written to be kept in memory and is not there after all."""
        self._blank(self.store.places.take([row]))

    def acknowledge(self, rows: Iterable[Row]) -> None:
        """Erase ``rows``, which are settled, from the disk."""
        places = self.store.places.take(rows)
        self._blank(places)
        for segment in {id(place[0]): place[0] for place in places}.values():
            self._release(segment)

    def _blank(self, places: Iterable[Place]) -> None:
        for segment, start, end in places:
            try:
                segment.blank(start, end)
            except OSError as error:
                self._report.trouble("delivered events cannot be erased", error)

    def _release(self, segment: Segment) -> None:
        if segment.own:
            self.store.release(segment)
        elif segment.is_done:
            self.store.done.append(segment)

    # Chores

    def wait(self, now: float) -> float:
        """Return the seconds until time alone may make a chore."""
        times = (self._check_at, self._chores_from, self._orphans.scan_at)
        return min(at - now for at in times if at > now)

    def next_chore(self, rows: int, row_bytes: int, now: float) -> Chore | None:
        """Return what is to be done without the lock, or None.

        Memory has room for ``rows`` rows and ``row_bytes`` bytes.
        """
        if now >= self._check_at:
            self._check_at = now + orphans.SCAN_INTERVAL
            self.store.leave_deleted()
        if self._chore_runs or now < self._chores_from:
            return None
        work = self._work(rows, row_bytes, now)
        if work is None:
            return None
        self._chore_runs = True
        return partial(self._do, work)

    def chore_done(self, result: object, now: float) -> Loaded:
        """Apply what a chore found; ``result`` is what it returned, None if it was interrupted."""
        self._chore_runs = False
        if not result:
            self._chores_from = now + PAUSE
        own, self._reading = self._reading, None
        loaded = Loaded(are_own=own is not None)
        if own is not None:
            loaded.lost = self.store.take_in(own)
            self._place(own, loaded)
        for reading in self._orphans.take_readings():
            reading.segment.take_in(reading)
            self._place(reading, loaded)
        if self._is_to_leave:
            self._is_to_leave = False
            self._orphans.leave()
        if self._is_to_look:
            self._is_to_look = False
            self._orphans.look_now()
        return loaded

    def _work(self, rows: int, row_bytes: int, now: float) -> Callable[[], None] | None:
        if self.store.done:
            return self._remove
        if not rows:
            return None
        own = self.store.unread_segment()
        if own is not None:
            return partial(self._read, own, rows)
        if self.store.unread or not self._orphans.has_work(now):
            return None
        return partial(self._orphans.load, rows, row_bytes, now)

    def _do(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # noqa: BLE001  too little memory, or a fault of ours
            self._report.fault(error)
            return False
        return True

    def _read(self, segment: Segment, rows: int) -> None:
        self._reading = segment.read(segment.read_to, rows)

    def _remove(self) -> None:
        self._orphans.remove(self.store.done)

    def _place(self, reading: Reading, loaded: Loaded) -> None:
        segment = reading.segment
        for start, end, row in reading.rows:
            self.store.places[id(row)] = (segment, start, end)
            loaded.rows.append(row)
        if reading.error is not None:
            self._report.trouble("cannot be read", reading.error, segment.path)
        self._release(segment)

    # Other processes

    @property
    def is_drained(self) -> bool:
        """Whether nothing is left of what dead processes left, but for what is not ours."""
        return self._orphans.is_drained and not (self._chore_runs or self.store.done)

    def look_now(self) -> None:
        """Look for what dead processes left, by a chore that comes next."""
        if self._chore_runs:
            self._is_to_look = True
        else:
            self._orphans.look_now()

    def close(self) -> Callable[[], None]:
        """Leave no empty file behind, and to others what is adopted and not in memory.

        Returns:
            What is to be called without the lock. The spool can be used again afterwards.
        """
        self.store.close()
        if self._chore_runs:
            self._is_to_leave = True
        else:
            self._orphans.leave()
        return self._remove
