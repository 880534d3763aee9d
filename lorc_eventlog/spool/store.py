"""The segments that this process writes.

Plain files and ``pwrite``, because that costs the log call a fraction of what an SQLite
transaction does (``docs/background/performance.md``), and because a damaged line costs one event.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from lorc_eventlog.lifecycle import clock, descriptors
from lorc_eventlog.spool.directory import Access, make_directory
from lorc_eventlog.spool.format import MAX_LINE_BYTES, SUFFIX, encode_header
from lorc_eventlog.spool.segment import SAFELY, Places, Reading, Segment, lock

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row
    from lorc_eventlog.spool.report import SpoolReport

SEGMENT_BYTES = 16 * 2**20
"""A segment that has grown so large is followed by a new one, and deleted when it is delivered."""

SEGMENTS = 16
"""Into so many segments at least is ``spool_max_bytes`` divided, so that space becomes free."""

TRIES = 10
"""So often is a new file made that another process takes, empty as it is, for abandoned."""


class Store:
    """The segments of one process in one directory. The queue's lock guards every call.

    No method raises ``OSError``: what the disk refuses is reported. :meth:`append` may be called
    again by a signal handler in the middle of any method, :meth:`append` included.

    Args:
        directory: Where the segments are; made (mode 0700) if it is not there.
        table: The table that the events belong to.
        max_bytes: How large the segments of this process may grow together.
        durable: Whether each event is forced to the disk itself, to survive a loss of power.
        report: Says what is to be said.
    """

    def __init__(
        self,
        directory: Path,
        *,
        table: str,
        max_bytes: int,
        durable: bool,
        report: SpoolReport,
    ) -> None:
        self.places = Places()
        """Where each row in memory is."""
        self.done: deque[Segment] = deque()
        """The segments that can be removed, which is done without the lock."""
        self.unread = 0
        """Events that are only on disk."""
        self._directory = directory
        self._header = encode_header(table)
        self._header_bytes = len(self._header)
        self._max_bytes = max_bytes
        self._segment_bytes = max(min(SEGMENT_BYTES, max_bytes // SEGMENTS), self._header_bytes + 1)
        self._durable = durable
        self._report = report
        self._active: Segment | None = None
        self._full: list[Segment] = []
        self._full_bytes = 0
        self._refuses_events = False
        self._try_again_at = 0.0

    def is_full(self, line: bytes) -> bool:
        """Whether ``line`` would exceed ``max_bytes``."""
        active = self._active
        active_bytes = self._header_bytes if active is None else active.size
        return self._full_bytes + active_bytes + len(line) > self._max_bytes

    def append(self, line: bytes, row: Row | None = None) -> bool:
        """Write ``line`` to disk; False if the disk refuses it.

        ``row`` is its row if that is kept in memory; else it is read from disk later.
        """
        size = len(line)
        if size > MAX_LINE_BYTES:  # nor does BigQuery take it
            return False
        segment = self._active
        if segment is None or segment.size >= self._segment_bytes:
            segment = self._open_next()
            if segment is None:
                return False
        # Signal safety: count first, and make no call between these updates, nor between the write
        # and the return. A signal handler that logs or flushes finds it counted, and one that
        # raises leaves it counted or not written.
        key = id(row)
        in_memory = row is not None
        live = 1 if in_memory else 0
        unread = 1 - live
        segment.live += live
        segment.unread += unread
        self.unread += unread
        try:
            start = segment.append(line, in_memory=in_memory, durable=self._durable)
        except BaseException as error:
            segment.live -= live
            segment.unread -= unread
            self.unread -= unread
            # One without a number is a signal handler's: a TimeoutError, for instance.
            if not isinstance(error, OSError) or error.errno is None:
                raise
            self._refuse(error)
            return False
        if in_memory:
            self.places[key] = (segment, start, start + size)
        if self._refuses_events:
            self._refuses_events = False
            self._report.recovered()
        return True

    def unread_segment(self) -> Segment | None:
        """Return the oldest segment that holds events which are only on disk."""
        if not self.unread:
            return None
        return next((segment for segment in self._own() if not segment.is_read), None)

    def take_in(self, reading: Reading) -> int:
        """Count what was read of an own segment: its rows are in memory now.

        Returns:
            How many events turned out to be damaged.
        """
        segment = reading.segment
        count = len(reading.rows)
        segment.take_in(reading)
        # Signal safety: make no call between these updates. A signal handler could log during it.
        segment.unread -= count
        self.unread -= count
        lost = segment.unread if segment.read_to >= segment.size else 0
        segment.unread -= lost
        self.unread -= lost
        return lost

    def release(self, segment: Segment) -> None:
        """Free the space of ``segment`` if every event in it is settled."""
        remove, done = self._full.remove, self.done.append
        # Signal safety: make no call between the look and the change. A signal handler could
        # append an event during it.
        if segment.read_to < segment.size or segment.live or segment.unread:
            return
        if segment is not self._active:
            self._full_bytes -= segment.size
            done(segment)
            remove(segment)
        elif segment.damaged_bytes:
            self._active = None
            done(segment)
        else:
            try:
                segment.empty()
            except OSError as error:
                self._report.trouble("a file, which is delivered, cannot be emptied", error)

    def leave_deleted(self) -> None:
        """Use a new segment if someone has deleted the one that is written to."""
        if self._active is not None and self._active.is_deleted:
            self._retire()
            self._report.deleted()

    def close(self) -> None:
        """Leave no empty segment behind."""
        if self._active is not None and self._active.is_done:
            self._retire()

    def _own(self) -> list[Segment]:
        return [*self._full, *([self._active] if self._active is not None else [])]

    def _open_next(self) -> Segment | None:
        now = clock.monotonic()
        if now < self._try_again_at:
            return None
        self._retire()
        try:
            new = create(self._directory, self._header, durable=self._durable)
        except OSError as error:
            self._try_again_at = now + 1.0
            self._refuse(error)
            return None
        self._retire()  # the segment of a signal handler that logged meanwhile
        self._active = new
        return new

    def _retire(self) -> None:
        segment = self._active
        if segment is not None:
            append = self._full.append
            # Signal safety: make no call between these updates. A signal handler could log.
            self._active = None
            self._full_bytes += segment.size
            append(segment)
            self.release(segment)

    def _refuse(self, error: OSError) -> None:
        self._refuses_events = True
        self._report.trouble("events wait in memory only, for now", error)


def create(directory: Path, header: bytes, *, durable: bool) -> Segment:
    """Make a new segment in ``directory``; raise OSError if that cannot be."""
    make_directory(directory, Access.OWNER)
    for _ in range(TRIES):
        segment = _create_once(directory, header, durable=durable)
        if segment is not None:
            return segment
    raise OSError(errno.EBUSY, "other processes take each new file for abandoned")


def _create_once(directory: Path, header: bytes, *, durable: bool) -> Segment | None:
    name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
    path = directory / name
    descriptor = descriptors.open_here(path, os.O_RDWR | SAFELY | os.O_CREAT | os.O_EXCL)
    with contextlib.ExitStack() as undo:
        undo.callback(descriptors.close, descriptor)
        undo.callback(path.unlink, missing_ok=True)
        os.fchmod(descriptor, 0o600)  # whatever the umask makes of it
        if not lock(descriptor):
            return None
        segment = Segment(path, descriptor, header_bytes=len(header))
        segment.write_header(header, durable=durable)
        if durable:
            for each in (directory, directory.parent):
                _force_directory_to_disk(each)
        undo.pop_all()
        return segment


def _force_directory_to_disk(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
