"""The buffer on disk: an event is there when the log call returns, until BigQuery has it.

A spool directory holds *segments*. Each belongs to one process, under an ``flock`` that the
kernel releases when the process dies, however it dies; whoever then gets the lock adopts the
segment and delivers it. A segment is a header line and a line for each event::

    lorc_eventlog spool 1
    8c5f2a10 {"event_id":"...", ..., "payload":"{...}"}

The first word is the CRC-32 of the rest. An event is struck off by writing blanks over its line,
which erases its data as well; a segment without events is truncated or deleted.

Plain files and ``pwrite``, because that costs the log call a few microseconds, a tenth of what an
SQLite transaction does (``docs/performance.md``), and because a damaged line costs one event.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import re
import secrets
import time
import zlib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, cast

import orjson

from lorc_eventlog.diagnostics import Notes, Throttle

if TYPE_CHECKING:
    from lorc_eventlog.event_client import Row

HEADER = b"lorc_eventlog spool 1\n"
SEGMENT_BYTES = 16 * 2**20
"""A segment that has grown so large is followed by a new one, and deleted when it is delivered."""

ADOPT_INTERVAL = 60.0
"""Seconds between two looks for segments of dead processes."""

SUFFIX = ".events"
DAMAGED_SUFFIX = ".damaged"

_ANY_HEADER = re.compile(rb"lorc_eventlog spool (\d+)\n")
_LINE_START = re.compile(rb'[0-9a-f]{8} \{"event_id":"')
_READ_BYTES = 2**20
_STRUCK = b" "
"""A line that begins so was struck off, be it in part: a kill may come in the middle of a write."""

_force_to_disk = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter
_CRC_CHARACTERS = 8


def decode_line(line: bytes) -> Row | None:
    """Decode a line without its line break; None if it is damaged."""
    crc, _, encoded = line.strip(b"\0").partition(b" ")
    if len(crc) != _CRC_CHARACTERS or b"%08x" % zlib.crc32(encoded) != crc:
        return None
    return cast("Row", orjson.loads(encoded))


class Segment:
    """One file of events, locked by this process."""

    def __init__(self, path: Path, descriptor: int, *, own: bool) -> None:
        self.path = path
        self.own = own
        """Whether this process wrote it, so that its counters know the events."""
        self.size = os.fstat(descriptor).st_size
        self.read_to = self.size if own else 0
        """Every event before this offset is in memory or settled."""
        self.unread = 0
        """Events of this process that are only on disk."""
        self.live = 0
        """Events in memory that are not struck off yet."""
        self._descriptor = descriptor

    @property
    def is_read(self) -> bool:
        """Whether it holds nothing that is not in memory or settled."""
        return self.read_to >= self.size

    def append(self, line: bytes, *, durable: bool) -> int:
        """Write ``line`` at the end and return its offset."""
        # Taken first, without a call in between: a signal handler may log just now.
        start = self.size
        self.size = end = start + len(line)
        try:
            if os.pwrite(self._descriptor, line, start) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
            if durable:
                _force_to_disk(self._descriptor)
        except OSError:
            if self.size == end:
                self.size = start
                os.ftruncate(self._descriptor, start)
            raise
        return start

    def read(self, limit: int) -> list[tuple[int, bytes]]:
        """Read some lines, at most ``limit``: offset and text, without line break, of each."""
        size = _READ_BYTES
        data = os.pread(self._descriptor, size, self.read_to)
        while b"\n" not in data and len(data) == size:  # a line that is longer than one read
            size *= 2
            data = os.pread(self._descriptor, size, self.read_to)
        if not data:
            self.read_to = self.size
        texts = data.split(b"\n")
        last = texts.pop()  # cut off by this read, or at the end of the file by a crash
        if last and len(data) < size:
            texts.append(last)
        lines = []
        for text in texts[:limit]:
            lines.append((self.read_to, text))
            self.read_to += len(text) + 1
        return lines

    def blank(self, start: int, end: int) -> None:
        """Overwrite the lines from ``start`` to ``end`` with blanks."""
        os.pwrite(self._descriptor, _STRUCK * (end - start - 1) + b"\n", start)

    def empty(self) -> None:
        """Remove all lines but the header."""
        os.ftruncate(self._descriptor, len(HEADER))
        self.size = self.read_to = len(HEADER)

    def close(self) -> None:
        """Give up the lock; others may adopt what is left."""
        os.close(self._descriptor)

    def delete(self) -> None:
        """Remove the file, while the lock still keeps others from it."""
        self.path.unlink(missing_ok=True)
        self.close()


class Spool:
    """The segments of one process in one directory. The writer's lock guards every call.

    No method raises ``OSError``: what the disk refuses is reported, and the events wait in
    memory only.

    Args:
        directory: Where the segments are; made (mode 0700) if it is not there.
        notes: Takes what is to be reported.
        max_bytes: How large the segments of this process may grow together.
        durable: Whether each event is forced to the disk itself, to survive a loss of power.
    """

    def __init__(self, directory: Path, *, max_bytes: int, durable: bool, notes: Notes) -> None:
        self.directory = directory
        self.adopt_at = 0.0
        """When to look for segments of dead processes, in monotonic seconds."""
        self.unread = 0
        """Events of this process that are only on disk."""
        self._max_bytes = max_bytes
        self._durable = durable
        self._active: Segment | None = None
        self._full: deque[Segment] = deque()
        self._full_bytes = 0
        self._adopted: deque[Segment] = deque()
        self._places: dict[str, tuple[Segment, int, int]] = {}
        self._notes = notes
        self._troubles = Throttle(60.0)
        self._try_again_at = 0.0

    @property
    def kept(self) -> int:
        """How many events of this process (and those in memory of others) are on disk."""
        return len(self._places) + self.unread

    @property
    def has_unread(self) -> bool:
        """Whether there are events on disk that are not in memory."""
        return self.unread > 0 or any(not segment.is_read for segment in self._adopted)

    @staticmethod
    def encode(row: Row) -> bytes:
        """Encode ``row`` as the line of a segment."""
        encoded = orjson.dumps(row)
        return b"%08x %b\n" % (zlib.crc32(encoded), encoded)

    def is_full(self, line: bytes) -> bool:
        """Whether ``line`` would exceed ``max_bytes``."""
        active_bytes = self._active.size if self._active is not None else len(HEADER)
        return self._full_bytes + active_bytes + len(line) > self._max_bytes

    def append(self, event_id: str, line: bytes, *, in_memory: bool) -> bool:
        """Write the event to disk; whether it is there now.

        With ``in_memory`` the caller keeps the row; without, :meth:`load` brings it later.
        """
        try:
            segment = self._open_active()
            if segment is None:
                return False
            start = segment.append(line, durable=self._durable)
        except OSError as error:
            self._report("events wait in memory only, for now", error)
            return False
        if in_memory:
            segment.read_to = segment.size
            segment.live += 1
            self._places[event_id] = (segment, start, start + len(line))
        else:
            segment.unread += 1
            self.unread += 1
        return True

    def load(self, limit: int) -> tuple[list[Row], bool, int]:
        """Bring at most ``limit`` events from disk, in their order, those of this process first.

        Returns:
            The rows; whether they are of this process; and how many of its events turned out to
            be damaged.
        """
        own = self.unread > 0
        rows: list[Row] = []
        lost = 0
        for segment in self._own() if own else list(self._adopted):
            while not segment.is_read and not rows:
                try:
                    rows = self._read(segment, limit)
                except OSError as error:
                    self._report(f"{segment.path} cannot be read", error)
                    segment.read_to = segment.size
            if segment.is_read:
                lost += segment.unread
                segment.unread = 0
            self._discard_if_done(segment)
            if rows:
                break
        self.unread -= lost
        return rows, own, lost

    def strike(self, rows: list[Row]) -> None:
        """Erase ``rows``, which are settled, from the disk."""
        places = [self._places.pop(row["event_id"], None) for row in rows]
        runs: list[tuple[Segment, int, int]] = []
        for place in places:
            if place is None:
                continue
            segment, start, end = place
            segment.live -= 1
            if runs and runs[-1][0] is segment and runs[-1][2] == start:
                runs[-1] = (segment, runs[-1][1], end)
            else:
                runs.append(place)
        for segment, start, end in runs:
            try:
                segment.blank(start, end)
            except OSError as error:
                self._report("delivered events could not be struck off", error)
        for segment in {id(run[0]): run[0] for run in runs}.values():
            self._discard_if_done(segment)

    def adopt(self, now: float) -> None:
        """Take over the segments whose process is dead."""
        self.adopt_at = now + ADOPT_INTERVAL
        try:
            paths = sorted(self.directory.glob(f"*{SUFFIX}"))
        except OSError as error:
            self._report("it cannot be searched for events of dead processes", error)
            return
        for path in paths:
            try:
                descriptor = lock_segment(path)
                if descriptor is None:
                    continue
                self._adopt(path, descriptor)
            except OSError as error:
                self._report(f"{path.name} cannot be adopted", error)

    def close(self) -> None:
        """Leave no empty segment behind, and to others what is adopted but not in memory."""
        for segment in list(self._adopted):
            if not segment.live:
                self._adopted.remove(segment)
                segment.close()
        if self._active is not None and not self._active.live and self._active.is_read:
            active, self._active = self._active, None
            try:
                active.delete()
            except OSError as error:
                self._report("an empty segment could not be deleted", error)

    def abandon(self) -> None:
        """Leave all segments to the parent: called in the child after a fork."""
        for segment in (*self._own(), *self._adopted):
            segment.close()

    def _own(self) -> list[Segment]:
        return [*self._full, *([self._active] if self._active is not None else [])]

    def _open_active(self) -> Segment | None:
        if self._active is not None:
            if self._active.size < SEGMENT_BYTES:
                return self._active
            self._full.append(self._active)
            self._full_bytes += self._active.size
            self._active = None
        now = time.monotonic()
        if now < self._try_again_at:
            return None
        self._try_again_at = now + 1.0
        self._active = self._create()
        self._try_again_at = 0.0
        return self._active

    def _create(self) -> Segment:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
            path = self.directory / name
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            descriptor = lock_segment(path)
            if descriptor is not None:  # else another process adopted it, empty as it was
                break
        try:
            segment = Segment(path, descriptor, own=True)
            segment.append(HEADER, durable=self._durable)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        segment.read_to = segment.size
        if self._durable:
            directory = os.open(self.directory, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        return segment

    def _adopt(self, path: Path, descriptor: int) -> None:
        segment = Segment(path, descriptor, own=False)
        header = _ANY_HEADER.match(os.pread(descriptor, 100, 0))
        if header is not None and header[0] != HEADER:
            damaged = path.with_name(path.name + DAMAGED_SUFFIX)
            path.rename(damaged)
            segment.close()
            self._notes.note(
                logging.ERROR, "spool: %s is of a later version and is set aside", damaged
            )
        elif segment.size <= len(HEADER):
            segment.delete()
        else:
            self._adopted.append(segment)
            self._notes.note(
                logging.INFO, "spool: the events in %s, of a dead process, are adopted", path
            )

    def _read(self, segment: Segment, limit: int) -> list[Row]:
        rows = []
        for start, text in segment.read(limit):
            row = decode_line(text)
            if row is not None:
                self._places[row["event_id"]] = (segment, start, start + len(text) + 1)
                rows.append(row)
            elif text.strip(b" \0") and not text.startswith((_STRUCK, HEADER.rstrip())):
                rows += self._salvage(segment, start, text)
        segment.live += len(rows)
        if segment.own:
            segment.unread -= len(rows)
            self.unread -= len(rows)
        return rows

    def _salvage(self, segment: Segment, start: int, text: bytes) -> list[Row]:
        """Set the damaged line aside; return what can be read within it."""
        damaged = segment.path.with_name(segment.path.name + DAMAGED_SUFFIX)
        with open(damaged, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text + b"\n")
        found: list[Row] = []
        starts = [match.start() for match in _LINE_START.finditer(text)]
        for piece_start, piece_end in itertools.pairwise([*starts, len(text) + 1]):
            # A line break that was overwritten is the last character of its piece.
            row = decode_line(text[piece_start : piece_end - 1])
            if row is not None:
                found.append(row)
                self._places[row["event_id"]] = (segment, start + piece_start, start + piece_end)
        if not found:
            segment.blank(start, start + len(text) + 1)
        self._notes.note(
            logging.ERROR,
            "spool: %d bytes of %s are damaged and set aside in %s; %d events in them can be read",
            len(text), segment.path, damaged, len(found),
        )  # fmt: skip
        return found

    def _discard_if_done(self, segment: Segment) -> None:
        if segment.live or segment.unread or not segment.is_read:
            return
        try:
            if segment is self._active:
                segment.empty()
                return
            if segment.own:
                self._full.remove(segment)
                self._full_bytes -= segment.size
            else:
                self._adopted.remove(segment)
            segment.delete()
        except OSError as error:
            self._report(f"{segment.path.name}, which is delivered, stays", error)

    def _report(self, what: str, error: OSError) -> None:
        if self._troubles.lets_through(time.monotonic()):
            self._notes.note(
                logging.ERROR, "spool %s: %s: %s", self.directory, what, error.strerror or error
            )


def lock_segment(path: Path) -> int | None:
    """Open ``path`` and lock it; None if a living process has the lock, or it was deleted."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None
