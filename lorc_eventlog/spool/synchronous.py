"""A spool whose caller holds its lock meanwhile. It goes when the dispatcher runs chores."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from lorc_eventlog.spool import orphans
from lorc_eventlog.spool.format import encode_line
from lorc_eventlog.spool.orphans import Orphans
from lorc_eventlog.spool.report import SpoolReport
from lorc_eventlog.spool.segment import Places, Reading, Segment
from lorc_eventlog.spool.store import Store

if TYPE_CHECKING:
    from lorc_eventlog.diagnostics import Notes
    from lorc_eventlog.events.row import Row


class Spool:
    """The segments in one directory, own and adopted. The writer's lock guards every call."""

    def __init__(
        self, directory: Path, *, table: str, max_bytes: int, durable: bool, notes: Notes
    ) -> None:
        self._report = SpoolReport(directory, notes)
        self._done: deque[Segment] = deque()
        self._store = Store(
            directory,
            table=table,
            max_bytes=max_bytes,
            durable=durable,
            report=self._report,
            done=self._done,
        )
        self._orphans = Orphans(directory, table=table, report=self._report)
        self._places = Places()
        self._look_at = 0.0
        self.encode = encode_line
        self.is_full = self._store.is_full

    @property
    def unread(self) -> int:
        """Events of this process that are only on disk."""
        return self._store.unread

    @property
    def kept(self) -> int:
        """How many events are on disk that are in memory or of this process."""
        return len(self._places) + self._store.unread

    @property
    def is_drained(self) -> bool:
        """Whether all that dead processes left is delivered."""
        return self._orphans.is_drained

    def has_work(self, now: float) -> bool:
        """Whether :meth:`load` may find something."""
        return self.unread > 0 or self._orphans.has_work(now)

    def look(self, now: float) -> float:
        """Look now and then whether the file is still there; give the seconds until the next."""
        if now >= self._look_at:
            self._look_at = now + orphans.SCAN_INTERVAL
            self._store.leave_deleted()
        return self._look_at - now

    def adopt(self) -> None:
        """Look for segments of dead processes with the next load."""
        self._orphans.look_now()

    def append(self, row: Row, line: bytes, *, in_memory: bool) -> bool:
        """Write ``line``, which is ``row``, to disk; whether it is there now."""
        place = self._store.append(line, in_memory=in_memory)
        if place is not None and in_memory:
            self._places.add(row, place)
        return place is not None

    def load(self, limit: int, limit_bytes: int, now: float) -> tuple[list[Row], bool, int]:
        """Bring some events from disk; also whether they are our own, and how many are lost."""
        self._orphans.remove(self._done)
        segment = self._store.unread_segment()
        if segment is not None:
            readings = [segment.read(segment.read_to, limit)]
        else:
            if self._orphans.has_work(now):
                self._orphans.load(limit, limit_bytes, now)
            readings = self._orphans.take_readings()
        rows: list[Row] = []
        lost = 0
        for reading in readings:
            lost += self._count(reading)
            rows += [row for _, _, row in reading.rows]
        self._orphans.remove(self._done)
        return rows, segment is not None, lost

    def _count(self, reading: Reading) -> int:
        lost = 0
        segment = reading.segment
        if segment.own:
            lost = self._store.take_in(reading)
        else:
            segment.take_in(reading)
        for start, end, row in reading.rows:
            self._places.add(row, (segment, start, end))
        if reading.error is not None:
            self._report.trouble("cannot be read", reading.error, segment.path)
        self._release(segment)
        return lost

    def strike(self, rows: list[Row]) -> None:
        """Erase ``rows``, which are settled, from the disk."""
        segments = set()
        for segment, start, end in self._places.take(rows):
            try:
                segment.blank(start, end)
            except OSError as error:
                self._report.trouble("delivered events cannot be erased", error)
            segments.add(segment)
        for segment in segments:
            self._release(segment)
        self._orphans.remove(self._done)

    def _release(self, segment: Segment) -> None:
        if segment.own:
            self._store.release(segment)
        elif segment.is_done:
            self._done.append(segment)

    def close(self) -> None:
        """Leave no empty segment behind, and to others what is not in memory."""
        self._store.close()
        self._orphans.leave()
        self._orphans.remove(self._done)
