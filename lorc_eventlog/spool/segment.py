"""One file of events, under a lock of this process.

The directory is untrusted: whoever may write to it may put anything there. So a file is opened
without following a link and without waiting for a pipe, must be a regular file of a known owner
with no other name, and is read in steps of a bounded size.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lorc_eventlog.lifecycle import descriptors
from lorc_eventlog.spool.directory import force_to_disk, try_lock
from lorc_eventlog.spool.format import BLANK, DAMAGED_SUFFIX, MAX_LINE_BYTES, find_rows

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row

SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""How every file of a spool directory is opened."""

_READ_BYTES = 2**20

Place = tuple["Segment", int, int]
"""A segment, and where in it a line begins and ends, line break included."""


@dataclass(slots=True)
class Reading:
    """What one read of a segment found."""

    segment: Segment
    read_to: int
    """Where the next read begins."""
    rows: list[tuple[int, int, Row]] = field(default_factory=list)
    """Where each row begins and ends in the file, line break included, and the row."""
    damaged_bytes: int = 0
    """How much of it is no event and never will be."""
    cut_off_bytes: int = 0
    """How much of that is a last line that was not written to its end."""
    error: OSError | None = None
    """Why the rest of the file cannot be read, and counts as damaged."""


class Segment:
    """One file of events. Guarded by the queue's lock, except :meth:`read`, which changes nothing.

    Args:
        path: The file.
        descriptor: Open, and locked unless it is only looked at.
        header_bytes: How long its header is, if this process wrote it, so that its counters know
            the events.
    """

    def __init__(self, path: Path, descriptor: int, *, header_bytes: int | None = None) -> None:
        self.path = path
        self.own = header_bytes is not None
        """Whether this process wrote it."""
        self.size = header_bytes or os.fstat(descriptor).st_size
        self.read_to = header_bytes or 0
        """Every event before this offset is in memory or settled."""
        self.unread = 0
        """Events of this process that are only on disk."""
        self.live = 0
        """Events in memory that are not acknowledged yet."""
        self.damaged_bytes = 0
        self.cut_off_bytes = 0
        self._header_bytes = self.read_to
        self._descriptor = descriptor

    @property
    def is_read(self) -> bool:
        """Whether it holds nothing that is not in memory or settled."""
        return self.read_to >= self.size

    @property
    def is_done(self) -> bool:
        """Whether every event in it is settled."""
        return self.is_read and not self.live and not self.unread

    @property
    def is_deleted(self) -> bool:
        """Whether someone has deleted the file."""
        return os.fstat(self._descriptor).st_nlink == 0

    def write_header(self, header: bytes, *, durable: bool) -> None:
        """Write the header of a new file."""
        if os.pwrite(self._descriptor, header, 0) != len(header):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            force_to_disk(self._descriptor)

    def append(self, line: bytes, *, in_memory: bool, durable: bool) -> int:
        """Write ``line`` at the end and return its offset; if that fails, nothing is written."""
        # Signal safety: take the place before the write. A signal handler that logs during it
        # then writes behind.
        start = self.size
        self.size = end = start + len(line)
        if in_memory:
            self.read_to = end
        try:
            if os.pwrite(self._descriptor, line, start) != end - start:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
            if durable:
                force_to_disk(self._descriptor)
        except BaseException:  # a signal handler may raise in the call, or just after it
            self._take_back(start, end)
            raise
        return start

    def _take_back(self, start: int, end: int) -> None:
        if self.size == end:
            self.size = start
            self.read_to = min(self.read_to, start)
            os.ftruncate(self._descriptor, start)
        else:  # a signal handler wrote behind it
            self.blank(start, end)

    def read(self, start: int, limit: int) -> Reading:
        """Read some lines from ``start`` on, at most ``limit``, and find their events.

        It needs no lock, and does not read what is appended meanwhile. It holds no more in memory
        than the longest line takes, whatever the file is.
        """
        end = self.size
        wanted = min(_READ_BYTES, end - start)
        try:
            data = os.pread(self._descriptor, wanted, start)
            if b"\n" not in data and len(data) == wanted < end - start:
                wanted = min(MAX_LINE_BYTES + 1, end - start)
                data = os.pread(self._descriptor, wanted, start)
                if b"\n" not in data and len(data) > MAX_LINE_BYTES:
                    read_to = self._next_data(start + len(data), end)
                    return Reading(self, read_to, damaged_bytes=read_to - start)
        except OSError as error:
            return Reading(self, end, damaged_bytes=end - start, error=error)
        if not data:  # someone has truncated the file
            return Reading(self, end)
        texts = data.split(b"\n")
        last = texts.pop()  # cut off by this read, or at the end of the file by a crash
        if last and (len(data) < wanted or wanted == end - start):
            texts.append(last)
        reading = Reading(self, start)
        for text in texts[:limit]:
            found, damaged_bytes = find_rows(text)
            at = reading.read_to
            reading.rows += [(at + begin, at + stop, row) for begin, stop, row in found]
            reading.damaged_bytes += damaged_bytes
            reading.read_to = at + len(text) + 1
            if reading.read_to > end:
                reading.cut_off_bytes = damaged_bytes
        return reading

    def _next_data(self, offset: int, end: int) -> int:
        """Pass over a hole: a sparse file may claim to be as large as its owner likes."""
        try:
            return min(end, os.lseek(self._descriptor, offset, os.SEEK_DATA))
        except OSError as error:
            return end if error.errno == errno.ENXIO else offset  # no more data, or not known here

    def take_in(self, reading: Reading) -> None:
        """Count what :meth:`read` found: its rows are in memory now."""
        count = len(reading.rows)
        # Signal safety: make no call between these updates. A signal handler could log during it.
        self.read_to = reading.read_to
        self.live += count
        self.damaged_bytes += reading.damaged_bytes
        self.cut_off_bytes = reading.cut_off_bytes

    def blank(self, start: int, end: int) -> None:
        """Overwrite the lines from ``start`` to ``end`` with blanks."""
        os.pwrite(self._descriptor, BLANK * (end - start - 1) + b"\n", start)

    def empty(self) -> None:
        """Remove all lines but the header, unless an event was appended just now."""
        truncate, size = os.ftruncate, self._header_bytes
        # Signal safety: make no call between the look and the truncation. A signal handler could
        # append an event during it.
        if self.read_to >= self.size and not self.live and not self.unread:
            self.size = self.read_to = size
            truncate(self._descriptor, size)

    def remove(self) -> Path | None:
        """Delete the file, or set it aside if it holds damage, and give up the lock.

        Returns:
            Where it is if it is set aside.
        """
        # While the lock still keeps others from it.
        try:
            if self.damaged_bytes:
                return self.path.rename(self.path.with_name(self.path.name + DAMAGED_SUFFIX))
            self.path.unlink(missing_ok=True)
        finally:
            self.close()
        return None

    def close(self) -> None:
        """Give up the lock; others may adopt what is left."""
        descriptors.close(self._descriptor)


class Places(dict[int, Place]):
    """Where each row in memory is on disk, by ``id(row)``: an event may be submitted twice."""

    def take(self, rows: Iterable[Row]) -> list[Place]:
        """Forget ``rows``, which are settled.

        Returns:
            The runs of lines that they are on, which no segment counts as live any more.
        """
        runs: list[Place] = []
        for row in rows:
            place = self.pop(id(row), None)
            if place is None:
                continue
            segment, start, end = place
            segment.live -= 1
            if runs and runs[-1][0] is segment and runs[-1][2] == start:
                runs[-1] = (segment, runs[-1][1], end)
            else:
                runs.append(place)
        return runs


def open_existing(path: Path, flags: int, owners: Collection[int]) -> int:
    """Open a file that may be anything; raise OSError unless it is one that we may touch.

    That is a regular file of one of ``owners`` with no other name.
    """
    try:
        descriptor = descriptors.open_here(path, flags | SAFELY)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error.strerror = "Is a symbolic link"
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file")  # noqa: TRY301
        if found.st_nlink > 1:
            raise OSError(errno.EMLINK, "Has another name, a hard link")  # noqa: TRY301
        if found.st_uid not in owners:
            raise OSError(errno.EPERM, f"Belongs to user {found.st_uid}")  # noqa: TRY301
    except BaseException:
        descriptors.close(descriptor)
        raise
    return descriptor


def owners_of(directory: Path) -> set[int]:
    """Whose files are ours: this user's, and those of the owner of the directory.

    He may do with it what he likes anyway; so root may deliver what an application left.
    """
    return {os.geteuid(), directory.stat().st_uid}


def lock(descriptor: int) -> bool:
    """Lock the file; False if a living process has the lock, or it was deleted."""
    return try_lock(descriptor) and os.fstat(descriptor).st_nlink > 0


def is_locked(descriptor: int) -> bool:
    """Whether a living process has the lock. For a moment nobody else can take it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
