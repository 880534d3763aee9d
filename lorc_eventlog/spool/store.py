"""The buffer on disk: an event is there when the log call returns, until BigQuery has it.

A spool directory holds *segments*. Each belongs to one process, under an ``flock`` that the
kernel releases when the process dies, however it dies; whoever then gets the lock adopts the
segment and delivers it. A segment is a header and a line for each event::

    1ab66537 {"lorc_eventlog_spool":1}
    8c5f2a10 {"event_id":"...", ..., "payload":"{...}"}

The first word is the CRC-32 of the rest. An event is struck off by writing blanks over its line,
which erases its data as well. A segment without events is truncated or deleted; one that holds
something else, nobody can read, is renamed to ``....damaged`` when its events are delivered.

Plain files and ``pwrite``, because that costs the log call a fraction of what an SQLite
transaction does (``docs/performance.md``), and because a damaged line costs one event.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from lorc_eventlog.diagnostics import Notes, Throttle
from lorc_eventlog.events.row import Row
from lorc_eventlog.lifecycle import descriptors

SEGMENT_BYTES = 16 * 2**20
"""A segment that has grown so large is followed by a new one, and deleted when it is delivered."""

SEGMENTS = 16
"""Into so many segments at least is ``spool_max_bytes`` divided, so that space becomes free."""

ADOPT_INTERVAL = 60.0
"""Seconds between two looks for segments of dead processes."""

MAX_ADOPTED = 64
"""Segments of dead processes that are open at a time: each takes a file descriptor."""

SUFFIX = ".events"
DAMAGED_SUFFIX = ".damaged"

_VERSION_KEY = "lorc_eventlog_spool"
_VERSION = 1
_KEYS = Row.__annotations__.keys()
_LINE_START = re.compile(rb'[0-9a-f]{8} \{"event_id":"')
_LINE_END = b'"}'
_READ_BYTES = 2**20
_STRUCK = b" "

_force_to_disk = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter


def encode_line(value: Mapping[str, Any]) -> bytes:
    """Encode a row, or the header, as a line."""
    encoded = orjson.dumps(value)
    return b"%08x %b\n" % (zlib.crc32(encoded), encoded)


HEADER = encode_line({_VERSION_KEY: _VERSION})


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Decode a line without its line break; None if it is damaged."""
    crc, _, encoded = line.partition(b" ")
    if b"%08x" % zlib.crc32(encoded) != crc:
        return None
    try:
        value = orjson.loads(encoded)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _decode_row(line: bytes) -> Row | None:
    value = decode_line(line)
    return cast("Row", value) if value is not None and value.keys() == _KEYS else None


def find_rows(text: bytes) -> tuple[list[tuple[int, int, Row]], int]:
    """Find the events in ``text``, which should be a line without its line break.

    Returns:
        Where each begins and ends, line break included, and its row; and how many bytes there
        are besides that may have been an event.
    """
    row = _decode_row(text)
    if row is not None:
        return [(0, len(text) + 1, row)], 0
    if text == HEADER[:-1]:
        return [], 0
    found = []
    starts = [match.start() for match in _LINE_START.finditer(text)]
    for start, next_start in itertools.pairwise([*starts, len(text)]):
        end = text.rfind(_LINE_END, start, next_start) + len(_LINE_END)
        row = _decode_row(text[start:end])
        if row is not None:
            found.append((start, end + 1, row))  # with what was a line break
    begins = [0, *(end for _, end, _ in found)]
    ends = [*(start for start, _, _ in found), len(text)]
    gaps = [text[begin:end] for begin, end in zip(begins, ends, strict=True)]
    return found, sum(len(gap) for gap in gaps if not _is_struck(gap))


def _is_struck(text: bytes) -> bool:
    # A kill in the middle of striking off leaves blanks, and then the end of a delivered event.
    # A single blank may be a flipped bit.
    return text.startswith(_STRUCK * 2) or not text.strip(_STRUCK)


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
        self.damaged_bytes = 0
        """How much of what was read is no event and never will be."""
        self.cut_off_bytes = 0
        """How much of that is a last line that was not written to its end."""
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

    def append(self, line: bytes, *, in_memory: bool, durable: bool) -> int:
        """Write ``line`` at the end and return its offset."""
        # Taken first, without a call in between: a signal handler may log just now.
        start = self.size
        self.size = end = start + len(line)
        if in_memory:
            self.read_to = end
        try:
            if os.pwrite(self._descriptor, line, start) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
            if durable:
                _force_to_disk(self._descriptor)
        except OSError:
            if self.size == end:
                self.size = start
                self.read_to = min(self.read_to, start)
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
        descriptors.close(self._descriptor)


class Spool:
    """The segments of one process in one directory. The writer's lock guards every call.

    No method raises ``OSError``: what the disk refuses is reported, and the events wait in
    memory only.

    Args:
        directory: Where the segments are; made (mode 0700) if it is not there.
        max_bytes: How large the segments of this process may grow together.
        durable: Whether each event is forced to the disk itself, to survive a loss of power.
        notes: Takes what is to be reported.
    """

    def __init__(self, directory: Path, *, max_bytes: int, durable: bool, notes: Notes) -> None:
        self.directory = directory
        self.adopt_at = 0.0
        """When to look for segments of dead processes, in monotonic seconds."""
        self.unread = 0
        """Events of this process that are only on disk."""
        self._max_bytes = max_bytes
        self._segment_bytes = max(min(SEGMENT_BYTES, max_bytes // SEGMENTS), len(HEADER) + 1)
        self._durable = durable
        self._active: Segment | None = None
        self._full: deque[Segment] = deque()
        self._full_bytes = 0
        self._adopted: deque[Segment] = deque()
        self._places: dict[int, tuple[Segment, int, int]] = {}
        """Where each row in memory is on disk. By identity: an event may be submitted twice."""
        self._notes = notes
        self._troubles = Throttle(60.0)
        self._refuses_events = False
        self._try_again_at = 0.0

    @property
    def kept(self) -> int:
        """How many events of this process (and those in memory of others) are on disk."""
        return len(self._places) + self.unread

    @property
    def has_unread(self) -> bool:
        """Whether there are events on disk that are not in memory."""
        return self.unread > 0 or any(not segment.is_read for segment in self._adopted)

    @property
    def has_adopted(self) -> bool:
        """Whether there are segments of dead processes to be delivered."""
        return bool(self._adopted)

    @staticmethod
    def encode(row: Row) -> bytes:
        """Encode ``row`` as :meth:`append` takes it."""
        return encode_line(row)

    def is_full(self, line: bytes) -> bool:
        """Whether ``line`` would exceed ``max_bytes``."""
        active_bytes = self._active.size if self._active is not None else len(HEADER)
        return self._full_bytes + active_bytes + len(line) > self._max_bytes

    def append(self, row: Row, line: bytes, *, in_memory: bool) -> bool:
        """Write ``line``, which is ``row``, to disk; whether it is there now.

        With ``in_memory`` the caller keeps ``row``; without, :meth:`load` brings it later.
        """
        segment = self._active
        if segment is None or segment.size >= self._segment_bytes:
            segment = self._open_next()
            if segment is None:
                return False
        # Counted first, so that a signal handler that logs, or flushes, just now finds it so.
        self._count(segment, 1, in_memory=in_memory)
        try:
            start = segment.append(line, in_memory=in_memory, durable=self._durable)
        except OSError as error:
            self._count(segment, -1, in_memory=in_memory)
            self._report_refusal(error)
            return False
        if in_memory:
            self._places[id(row)] = (segment, start, start + len(line))
        if self._refuses_events:
            self._refuses_events = False
            self._notes.note(logging.INFO, "spool %s: events go to disk again", self.directory)
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
                rows = self._read(segment, limit)
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
        runs: list[tuple[Segment, int, int]] = []
        for row in rows:
            place = self._places.pop(id(row), None)
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
        self._leave_deleted()
        try:
            paths = sorted(self.directory.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            self._report("it cannot be searched for events of dead processes", error)
            return
        for path in paths:
            if path.suffix != SUFFIX:
                continue
            if len(self._adopted) >= MAX_ADOPTED:
                self.adopt_at = now + 1.0
                return
            try:
                self._adopt(path)
            except FileNotFoundError:
                continue  # delivered by another process, just now
            except OSError as error:
                self._report(f"{path.name} cannot be adopted", error)

    def close(self) -> None:
        """Leave no empty segment behind, and to others what is adopted but not in memory."""
        for segment in list(self._adopted):
            if not segment.live:
                self._adopted.remove(segment)
                segment.close()
        if self._active is not None and self._active.is_done:
            self._retire_active()

    def _own(self) -> list[Segment]:
        return [*self._full, *([self._active] if self._active is not None else [])]

    def _open_next(self) -> Segment | None:
        now = time.monotonic()
        if now < self._try_again_at:
            return None
        if self._active is not None:
            self._retire_active()
        try:
            self._active = self._create()
        except OSError as error:
            self._try_again_at = now + 1.0
            self._report_refusal(error)
        return self._active

    def _retire_active(self) -> None:
        segment, self._active = cast("Segment", self._active), None
        self._full.append(segment)
        self._full_bytes += segment.size
        self._discard_if_done(segment)

    def _create(self) -> Segment:
        with contextlib.suppress(FileExistsError):  # if it is a file, the next step says so
            self.directory.mkdir(mode=0o700, parents=True)
        name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        path = self.directory / name
        with contextlib.ExitStack() as undo:
            descriptor = open_locked(path, os.O_CREAT | os.O_EXCL)
            if descriptor is None:  # another process took it, empty as it was, for abandoned
                return self._create()
            segment = Segment(path, descriptor, own=True)
            undo.callback(segment.close)
            undo.callback(path.unlink)
            segment.append(HEADER, in_memory=True, durable=self._durable)
            if self._durable:
                for directory in (self.directory, self.directory.parent):
                    _force_directory_to_disk(directory)
            undo.pop_all()
        return segment

    def _adopt(self, path: Path) -> None:
        descriptor = open_locked(path)
        if descriptor is None:
            return
        segment = Segment(path, descriptor, own=False)
        try:
            beginning = os.pread(descriptor, 100, 0)
            header = decode_line(beginning.partition(b"\n")[0]) or {}
            if header.get(_VERSION_KEY, _VERSION) != _VERSION:
                damaged = _set_aside(path)
                self._notes.note(
                    logging.ERROR,
                    "spool: the events in %s are of a later version; they are set aside as %s",
                    path, damaged.name,
                )  # fmt: skip
            elif HEADER.startswith(beginning):
                path.unlink()
            else:
                self._adopted.append(segment)
                self._notes.note(
                    logging.INFO, "spool: the events in %s, of a dead process, are adopted", path
                )
                return
        except OSError:
            segment.close()
            raise
        segment.close()

    def _read(self, segment: Segment, limit: int) -> list[Row]:
        try:
            lines = segment.read(limit)
        except OSError as error:
            self._report(f"{segment.path.name} cannot be read", error)
            segment.damaged_bytes += segment.size - segment.read_to
            segment.read_to = segment.size
            return []
        rows = []
        for start, text in lines:
            found, damaged_bytes = find_rows(text)
            for row_start, row_end, row in found:
                self._places[id(row)] = (segment, start + row_start, start + row_end)
                rows.append(row)
            segment.damaged_bytes += damaged_bytes
            if start + len(text) >= segment.size:
                segment.cut_off_bytes = damaged_bytes
        segment.live += len(rows)
        if segment.own:
            segment.unread -= len(rows)
            self.unread -= len(rows)
        return rows

    def _discard_if_done(self, segment: Segment) -> None:
        if not segment.is_done:
            return
        try:
            if segment is self._active and not segment.damaged_bytes:
                segment.empty()
                return
            if segment is self._active:
                self._active = None
            elif segment.own:
                self._full.remove(segment)
                self._full_bytes -= segment.size
            else:
                self._adopted.remove(segment)
            # While the lock still keeps others from it.
            try:
                if segment.damaged_bytes:
                    self._set_aside(segment)
                else:
                    segment.path.unlink(missing_ok=True)
            finally:
                segment.close()
        except OSError as error:
            self._report(f"{segment.path.name}, which is delivered, stays", error)

    def _set_aside(self, segment: Segment) -> None:
        damaged = _set_aside(segment.path)
        if segment.damaged_bytes == segment.cut_off_bytes:
            self._notes.note(
                logging.WARNING,
                "spool: the last line of %s is cut off: its process was killed in the middle of "
                "a log call, or the file was truncated. It is set aside as %s",
                segment.path, damaged.name,
            )  # fmt: skip
        else:
            self._notes.note(
                logging.ERROR,
                "spool: %d bytes of %s are damaged and set aside as %s; all else in it is "
                "delivered",
                segment.damaged_bytes, segment.path, damaged.name,
            )  # fmt: skip

    def _leave_deleted(self) -> None:
        if self._active is not None and self._active.is_deleted:
            self._retire_active()
            self._notes.note(
                logging.ERROR,
                "spool %s: someone deleted the file of this process; until they are delivered, "
                "the events that were in it are lost if the process dies",
                self.directory,
            )

    def _report_refusal(self, error: OSError) -> None:
        self._refuses_events = True
        self._report("events wait in memory only, for now", error)

    def _report(self, what: str, error: OSError) -> None:
        if self._troubles.lets_through(time.monotonic(), what):
            self._notes.note(
                logging.ERROR, "spool %s: %s: %s", self.directory, what, error.strerror or error
            )

    def _count(self, segment: Segment, count: int, *, in_memory: bool) -> None:
        if in_memory:
            segment.live += count
        else:
            segment.unread += count
            self.unread += count


def open_locked(path: Path, flags: int = 0) -> int | None:
    """Open ``path`` and lock it; None if a living process has the lock, or it was deleted."""
    descriptor = descriptors.open_here(path, os.O_RDWR | os.O_CLOEXEC | flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor
    except BlockingIOError:
        pass
    except OSError:  # a file system without locks
        if flags:
            path.unlink()
        descriptors.close(descriptor)
        raise
    descriptors.close(descriptor)
    return None


def _set_aside(path: Path) -> Path:
    return path.rename(path.with_name(path.name + DAMAGED_SUFFIX))


def _force_directory_to_disk(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """What one file of a spool directory holds, as :func:`survey` finds it."""

    path: Path
    owner_pid: int | None
    """The process that wrote it, as the name says; None if it does not."""
    is_locked: bool
    """Whether a living process, its writer or one that adopted it, delivers it."""
    is_set_aside: bool
    """Whether it was renamed to ``….damaged``; nobody adopts it."""
    events: int
    """Events that can be read and are not struck off."""
    size: int
    """Bytes, those of struck-off events included."""
    oldest: str | None
    """The earliest ``created_at`` among the events."""
    damaged_bytes: int
    """What is no event and never will be. A last line that is cut off is no damage until the file
    is set aside: it may be just written, or was when its process was killed."""
    error: str | None
    """Why it cannot be read; None if it can."""


def survey(directory: Path) -> list[SegmentReport]:
    """Look at the files of a spool directory, in the order of their age, and change nothing.

    Raises:
        OSError: The directory cannot be read.
    """
    reports = []
    for path in sorted(directory.iterdir()):
        if path.name.endswith((SUFFIX, SUFFIX + DAMAGED_SUFFIX)):
            with contextlib.suppress(FileNotFoundError):  # delivered just now
                reports.append(_look_at(path))
    return reports


def _look_at(path: Path) -> SegmentReport:
    owner = re.fullmatch(r"\d+-(\d+)-.+", path.name)
    is_set_aside = path.name.endswith(DAMAGED_SUFFIX)
    is_locked = False
    events = size = damaged_bytes = 0
    oldest: str | None = None
    error = None
    try:
        with _open_to_look(path) as descriptor:
            is_locked = _is_locked(descriptor)
            segment = Segment(path, descriptor, own=False)
            size = segment.size
            is_ours = HEADER.startswith(os.pread(descriptor, len(HEADER), 0))
            while not segment.is_read:
                for start, text in segment.read(1000):
                    rows, no_event = find_rows(text)
                    for _, _, row in rows:
                        events += 1
                        oldest = min(oldest or row["created_at"], row["created_at"])
                    is_last = start + len(text) >= size
                    if is_set_aside or not (is_last and is_ours):
                        damaged_bytes += no_event
    except FileNotFoundError:
        raise
    except OSError as refusal:
        error = refusal.strerror
    return SegmentReport(
        path=path,
        owner_pid=int(owner[1]) if owner else None,
        is_locked=is_locked,
        is_set_aside=is_set_aside,
        events=events,
        size=size,
        oldest=oldest,
        damaged_bytes=damaged_bytes,
        error=error,
    )


@contextlib.contextmanager
def _open_to_look(path: Path) -> Iterator[int]:
    # What is no file, such as a pipe, is an error, and nothing to wait for.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
