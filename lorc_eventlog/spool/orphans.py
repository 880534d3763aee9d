"""The segments of dead processes: found, locked, read and removed.

The kernel releases the ``flock`` of a process that dies, however it dies. Whoever then gets the
lock adopts the segment and delivers it, if its header names no other table.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from lorc_eventlog.lifecycle import descriptors
from lorc_eventlog.spool.format import HEADER, HEADER_BYTES, SUFFIX, decode_header
from lorc_eventlog.spool.segment import (
    Reading,
    Segment,
    is_locked,
    lock,
    open_existing,
    owners_of,
)

if TYPE_CHECKING:
    from lorc_eventlog.spool.report import SpoolReport

SCAN_INTERVAL = 60.0
"""Seconds between two looks for segments of dead processes."""

MOST_OPEN = 512
"""Segments of dead processes that are open at a time, at most: each takes a file descriptor, ..."""

SHARE_OF_DESCRIPTORS = 8
"""... and an eighth of those that the process may have is enough for us."""

NAMES = 10_000
"""So many names of files are held in memory at a time."""

READ_BYTES = 32 * 2**20
"""About so much is read before other work gets its turn."""


class Orphans:
    """Adopts and reads what dead processes left in one directory.

    Directory and files may be slow, huge or malicious, so :meth:`load` and :meth:`remove` are
    called without the queue's lock, by one thread at a time; the other methods under the lock,
    while none of these two runs.

    Args:
        directory: Where the segments are.
        table: The table of this process.
        report: Says what is to be said.
    """

    def __init__(self, directory: Path, *, table: str, report: SpoolReport) -> None:
        self.scan_at = 0.0
        """When to look for more segments, in monotonic seconds."""
        self._directory = directory
        self._table = table
        self._report = report
        descriptors_here = os.sysconf("SC_OPEN_MAX")  # below 0: there is no limit
        share = descriptors_here // SHARE_OF_DESCRIPTORS if descriptors_here > 0 else MOST_OPEN
        self._most_open = max(1, min(MOST_OPEN, share))
        self._owners: set[int] = set()
        self._names: deque[str] = deque()
        self._after = ""
        """The last of the names, if there are more behind it in the directory."""
        self._open: set[Segment] = set()
        self._current: Segment | None = None
        self._readings: list[Reading] = []

    @property
    def is_drained(self) -> bool:
        """Whether all that the last look found is delivered, or left to others."""
        return bool(self.scan_at) and not (self._open or self._names or self._after)

    def has_work(self, now: float) -> bool:
        """Whether :meth:`load` may find something."""
        if self._current is not None:
            return True
        is_due = bool(self._names or self._after) or now >= self.scan_at
        return is_due and len(self._open) < self._most_open

    def look_now(self) -> None:
        """Look for segments as soon as possible, from the first name on."""
        self.scan_at = 0.0
        self._after = ""
        self._names.clear()

    def load(self, limit: int, limit_bytes: int, now: float) -> None:
        """Adopt and read segments until about so many rows, or bytes of rows, are found.

        :meth:`take_readings` has them, also if an exception ends this.
        """
        adopted: list[Path] = []
        rows = row_bytes = read_bytes = 0
        while rows < limit and row_bytes <= limit_bytes and read_bytes < READ_BYTES:
            segment = self._current or self._adopt_next(now, adopted)
            if segment is None:
                break
            last = self._readings[-1] if self._readings else None
            start = last.read_to if last and last.segment is segment else segment.read_to
            reading = segment.read(start, limit - rows)
            self._readings.append(reading)
            rows += len(reading.rows)
            row_bytes += sum(end - begin for begin, end, _ in reading.rows)
            read_bytes += reading.read_to - start
            if reading.read_to >= segment.size:
                self._current = None
        if adopted:
            self._report.adopted(adopted)

    def take_readings(self) -> list[Reading]:
        """Return what was read, to be counted now."""
        readings, self._readings = self._readings, []
        return readings

    def remove(self, segments: deque[Segment]) -> None:
        """Remove the files of ``segments``, each of which is delivered, adopted or not."""
        while segments:
            try:
                segment = segments.popleft()
            except IndexError:  # another thread, which closes the queue, removes it
                return
            self._open.discard(segment)
            try:
                damaged = segment.remove()
            except OSError as error:
                self._report.trouble("is delivered, but stays", error, segment.path)
            else:
                if damaged is not None:
                    self._report.set_aside(segment, damaged)

    def leave(self) -> None:
        """Leave to others the segments that have no events in memory."""
        self._names.clear()
        self._after = ""
        for segment in [each for each in self._open if not (each.live or each.is_done)]:
            self._open.discard(segment)
            segment.close()
        if self._current not in self._open:
            self._current = None

    def _adopt_next(self, now: float, adopted: list[Path]) -> Segment | None:
        while len(self._open) < self._most_open:
            if not self._names and not self._list(now):
                return None
            path = self._directory / self._names.popleft()
            try:
                segment = self._adopt(path)
            except FileNotFoundError:
                continue  # delivered by another process, just now
            except OSError as error:
                self._report.trouble("cannot be adopted", error, path)
                continue
            if segment is not None:
                self._open.add(segment)
                self._current = segment
                adopted.append(path)
                return segment
        return None

    def _list(self, now: float) -> bool:
        """List the next names; False if there are none, or it is too early to look again."""
        if not self._after and now < self.scan_at:
            return False
        self.scan_at = now + SCAN_INTERVAL
        try:
            with os.scandir(self._directory) as entries:
                names = (entry.name for entry in entries)
                found = (name for name in names if name.endswith(SUFFIX) and name > self._after)
                self._names.extend(heapq.nsmallest(NAMES, found))
            self._owners = owners_of(self._directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._report.trouble("it cannot be searched for events of dead processes", error)
        self._after = self._names[-1] if len(self._names) == NAMES else ""
        return bool(self._names)

    def _adopt(self, path: Path) -> Segment | None:
        descriptor = open_existing(path, os.O_RDWR, self._owners)
        with contextlib.ExitStack() as undo:
            undo.callback(descriptors.close, descriptor)
            header = decode_header(os.pread(descriptor, HEADER_BYTES, 0))
            if header.is_of_a_later_version:
                self._report.of_a_later_version(path)
                return None
            if header.table is not None and header.table != self._table:
                if self._report.is_new(header.table) and not is_locked(descriptor):
                    self._report.of_another_table(path, header.table, self._table)
                return None
            if not lock(descriptor):
                return None
            if HEADER.startswith(os.pread(descriptor, len(HEADER) + 1, 0)):
                path.unlink()
                return None
            segment = Segment(path, descriptor)
            undo.pop_all()
            return segment
