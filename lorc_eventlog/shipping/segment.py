"""One file of events that a process appends, or appended, and that the shipper reads."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from lorc_eventlog.spool.format import (
    MAX_LINE_BYTES,
    decode_line,
    decode_row,
    find_rows,
    is_cut_off,
)
from lorc_eventlog.spool.shipped import table_of

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row
    from lorc_eventlog.spool.directory import Directory, File

READ_BYTES = 2**17
"""What is read at once: small enough for the memory to be at hand, which saves a quarter of the CPU
that an event takes."""

PIECES = 8
"""So often one step reads at most, so that many segments get their turn."""

HEADER_BYTES = 4096
"""The most that a header takes."""


@dataclass(slots=True)
class _Batch:
    """Events that one read found."""

    end: int
    """Where the next one begins."""
    oldest: float
    held: int


@dataclass(slots=True, eq=False)
class Segment:
    """What the shipper knows of one file, and the only code that touches it.

    Its methods raise ``OSError``. The file is open while it is read and while events of it are
    held, that is, were read and are not yet erased.
    """

    directory: Directory
    name: str
    size: int = 0
    """How large it was at the last look."""
    read_to: int = 0
    """Everything before this offset is damaged, delivered, or held."""
    held: int = 0
    is_abandoned: bool = False
    """Whether no process writes to it any more. That never changes back."""
    damaged_bytes: int = 0
    is_left: bool = False
    """Whether it stays, although all in it was read: the next shipper takes it."""
    _batches: deque[_Batch] = field(default_factory=deque)
    """What was read, the oldest first, as far as some of it is held."""
    _unread_since: float = 0.0
    """When the first event that is not read yet happened, about."""
    _is_followed: bool = False
    """Whether it was looked at."""
    _is_in_line: bool = False
    """Whether a line is at the end that is being written, or was when its process was killed."""
    _is_in_damage: bool = False
    """Whether ``read_to`` is inside a line that is too long to be an event."""
    _file: File | None = None

    @property
    def process(self) -> str:
        """What tells its process from others: when it began to write, and its number."""
        return "-".join(self.name.split("-")[:2])

    @property
    def oldest(self) -> float:
        """When the oldest event that waits happened, about, in seconds since the epoch."""
        unread = math.inf if self.is_read else self._unread_since
        return min(unread, self._batches[0].oldest if self._batches else math.inf)

    @property
    def waits(self) -> bool:
        """Whether something in it is not delivered."""
        return self.held > 0 or not self.is_read

    @property
    def is_read(self) -> bool:
        """Whether all that was in it at the last look is read."""
        return self.read_to >= self.size

    @property
    def is_done(self) -> bool:
        """Whether nothing in it waits and nothing will be added to it."""
        return self.is_abandoned and self.is_read and not self.held and not self.is_left

    @property
    def is_open(self) -> bool:
        """Whether it takes a file descriptor."""
        return self._file is not None

    def table(self) -> str | None:
        """Return the table that the header names, and go to the first event; None if it is damaged.

        Raises:
            LaterVersionError: A later version of this package wrote the file.
        """
        header, line_break, rest = self._open().read(HEADER_BYTES, 0).partition(b"\n")
        self.close_if_unused()
        first = decode_row(rest.partition(b"\n")[0])
        self._unread_since = time.time() if first is None else _time_of(first)
        self.read_to = len(header) + 1
        return table_of(decode_line(header)) if line_break else None

    def give_up(self) -> bool:
        """Count all of it as damaged, if no process writes to it any more; whether that is so."""
        self.is_abandoned = self._open().try_lock()
        self.close_if_unused()
        self.size = self.read_to = self.damaged_bytes = self.directory.size(self.name)
        return self.is_abandoned

    def look(self) -> None:
        """Look how large it is and, if all of it is read, whether its process is done with it."""
        was_read = self.is_read
        self.measure()
        if was_read and self._is_followed and not self.is_read:
            self._unread_since = time.time()  # it came since the last look
        self._is_followed = True
        if (self.is_read or self._is_in_line) and not self.is_abandoned:
            try:
                # A process never locks a segment again, so that it is free for good.
                self.is_abandoned = self._open().try_lock()
            finally:
                self.close_if_unused()
            # Its process may have written more since, and then given up the lock.
            self.measure()

    def measure(self) -> None:
        """Look how large it is."""
        self.size = max(self.directory.size(self.name), self.read_to)

    def read(self, limit: int) -> list[tuple[Row, int, int]]:
        """Read at most ``limit`` events, and where each begins and ends, line break included."""
        events: list[tuple[Row, int, int]] = []
        try:
            for _ in range(PIECES):
                try:
                    data = self._next_lines()
                except OSError:
                    if not events:  # else the next call meets it
                        raise
                    break
                self._take(data, limit, events)
                if not data or len(events) >= limit or self.is_read:
                    break
            if events:
                self.held += len(events)
                oldest = _time_of(events[0][0])
                self._batches.append(_Batch(self.read_to, oldest, len(events)))
                self._unread_since = _time_of(events[-1][0])
            return events
        finally:
            self.close_if_unused()

    def _take(self, data: bytes, limit: int, events: list[tuple[Row, int, int]]) -> None:
        """Add the events of ``data``, whole lines, until there are ``limit``."""
        lines = data.removesuffix(b"\n").split(b"\n") if data else []
        for line in lines:
            if len(events) >= limit:
                break
            start = self.read_to
            self.read_to = end = start + len(line) + 1
            row = decode_row(line)
            if row is not None:
                events.append((row, start, end))
                continue
            found, damaged_bytes = find_rows(line)
            events += [(row, start + a, start + b) for a, b, row in found]
            if end > self.size and not found and is_cut_off(line):
                continue  # a kill, or a full disk, left a part of an event
            self.damaged_bytes += damaged_bytes

    def let_go(self, start: int) -> None:
        """Hold the event at ``start`` no more."""
        self.held -= 1
        batch = self._batches[0]
        if start >= batch.end:
            batch = next(later for later in self._batches if start < later.end)
        batch.held -= 1
        while self._batches and not self._batches[0].held:
            self._batches.popleft()

    def _next_lines(self) -> bytes:
        file = self._open()
        length = READ_BYTES
        data = file.read(length, self.read_to)
        while not self._is_in_damage and b"\n" not in data and len(data) == length:
            if length > MAX_LINE_BYTES:
                self._is_in_damage = True
            length *= 2
            data = file.read(length, self.read_to)
        end = data.rfind(b"\n") + 1
        if self._is_in_damage:
            return self._skip(data, is_last=len(data) < length)
        if self.is_abandoned and self.read_to + len(data) >= self.size:
            return data  # nobody will end the last line, which may lack only its line break
        self._is_in_line = not end
        if not end:
            self.size = self.read_to  # until the next look
        return data[:end]

    def _skip(self, data: bytes, *, is_last: bool) -> bytes:
        """Skip what is left of a line that is too long, or as much of it as ``data`` is."""
        end = data.find(b"\n") + 1
        self._is_in_damage = not end and not is_last
        skipped = end or len(data)
        self.damaged_bytes += skipped
        self.read_to += skipped
        return b""

    def _open(self) -> File:
        if self._file is None:
            # Not in append mode, in which Linux appends whatever the offset of pwrite says.
            self._file = self.directory.open_file(self.name)
        return self._file

    def close_if_unused(self) -> None:
        """Close the file unless events of it are held."""
        if self._file is not None and not self.held:
            self._file.close()
            self._file = None


def _time_of(row: Row) -> float:
    try:
        return datetime.fromisoformat(row["created_at"]).timestamp()
    except (ValueError, OverflowError):  # whatever somebody wrote there
        return time.time()
