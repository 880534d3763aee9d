"""One file of events that a process appends, or appended, and that the shipper reads."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, TypeAlias

from lorc_eventlog.spool.format import (
    MAX_LINE_BYTES,
    decode_line,
    decode_row,
    decode_rows,
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

Place: TypeAlias = "tuple[Segment, int, int]"
"""Where an event is on disk: in which segment, and where its line and the next one begin."""

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


class Held:
    """The events of a segment that were read and are not yet erased."""

    def __init__(self) -> None:
        self.count = 0
        self._batches: deque[_Batch] = deque()
        """What was read, the oldest first, as far as some of it is held."""

    @property
    def oldest(self) -> float:
        """When the oldest of them happened, about; infinite if there is none."""
        return self._batches[0].oldest if self._batches else math.inf

    def add(self, rows: Sequence[Row], end: int) -> None:
        """Hold ``rows``, which were read up to ``end``."""
        self.count += len(rows)
        self._batches.append(_Batch(end, _time_of(rows[0]), len(rows)))

    def let_go(self, starts: Sequence[int]) -> None:
        """Hold the events at ``starts`` no more."""
        self.count -= len(starts)
        ends = [batch.end for batch in self._batches]
        for index, count in Counter(map(partial(bisect_right, ends), starts)).items():
            self._batches[index].held -= count
        while self._batches and not self._batches[0].held:
            self._batches.popleft()


@dataclass(slots=True, eq=False)
class Segment:
    """What the shipper knows of one file, and the only code that touches it.

    Its methods raise ``OSError``. The file is open only while one of them runs, so that thousands
    of segments of which events wait take no descriptors.
    """

    directory: Directory
    name: str
    size: int = 0
    """How large it was at the last look."""
    read_to: int = 0
    """Everything before this offset is damaged, delivered, or held."""
    held: Held = field(default_factory=Held)
    is_abandoned: bool = False
    """Whether no process writes to it any more. That never changes back."""
    damaged_bytes: int = 0
    is_refused: bool = False
    """Whether it was no file to be trusted at the last look."""
    is_left: bool = False
    """Whether it stays, although all in it was read: the next shipper takes it."""
    _unread_since: float = 0.0
    """When the first event that is not read yet happened, about."""
    _is_followed: bool = False
    """Whether it was looked at."""
    _is_in_line: bool = False
    """Whether a line is at the end that is being written, or was when its process was killed."""
    _is_in_damage: bool = False
    """Whether ``read_to`` is inside a line that is too long to be an event."""
    _file: File | None = None
    process: str = field(init=False)
    """What tells its process from others: when it began to write, and its number."""

    def __post_init__(self) -> None:
        self.process = "-".join(self.name.split("-")[:2])

    @property
    def oldest(self) -> float:
        """When the oldest event that waits happened, about, in seconds since the epoch."""
        unread = self._unread_since if self._has_unread else math.inf
        return min(unread, self.held.oldest)

    @property
    def waits(self) -> bool:
        """Whether something in it is not delivered."""
        return self.held.count > 0 or self._has_unread

    @property
    def _has_unread(self) -> bool:
        return not (self.is_read or self.is_refused)

    @property
    def is_read(self) -> bool:
        """Whether all that was in it at the last look is read."""
        return self.read_to >= self.size

    @property
    def is_done(self) -> bool:
        """Whether nothing in it waits and nothing will be added to it."""
        return self.is_abandoned and self.is_read and not self.held.count and not self.is_left

    def table(self) -> str | None:
        """Return the table that the header names, and go to the first event; None if it is damaged.

        Raises:
            LaterVersionError: A later version of this package wrote the file.
        """
        try:
            header, line_break, rest = self._open().read(HEADER_BYTES, 0).partition(b"\n")
        finally:
            self._close()
        first = decode_row(rest.partition(b"\n")[0])
        self._unread_since = time.time() if first is None else _time_of(first)
        self.read_to = len(header) + 1
        return table_of(decode_line(header)) if line_break else None

    def give_up(self) -> bool:
        """Count all of it as damaged, if no process writes to it any more; whether that is so."""
        self._try_lock()
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
            self._try_lock()
            # Its process may have written more since, and then given up the lock.
            self.measure()

    def _try_lock(self) -> None:
        """See whether its process is done: it never locks a segment again."""
        try:
            self.is_abandoned = self._open().try_lock()
        finally:
            self._close()

    def measure(self) -> None:
        """Look how large it is."""
        size = self.directory.size(self.name)
        if size + 1 < self.read_to and not self.held.count:
            self.read_to = 0  # somebody truncated it (the last line may lack its line break)
        self.size = max(size, self.read_to)

    def read(self, limit: int) -> tuple[list[Row], list[Place]]:
        """Read at most ``limit`` events, and say where each is."""
        rows: list[Row] = []
        places: list[Place] = []
        try:
            for _ in range(PIECES):
                try:
                    data = self._next_lines()
                except OSError:
                    if not rows:  # else the next call meets it
                        raise
                    break
                self._take(data, limit, rows, places)
                if not data or len(rows) >= limit or self.is_read:
                    break
            if rows:
                self.held.add(rows, self.read_to)
                self._unread_since = _time_of(rows[-1])
            return rows, places
        finally:
            self._close()

    def _take(self, data: bytes, limit: int, rows: list[Row], places: list[Place]) -> None:
        """Add the events of ``data``, whole lines, until there are ``limit``."""
        lines = data.removesuffix(b"\n").split(b"\n") if data else []
        wanted = lines[: limit - len(rows)]
        found = decode_rows(wanted)
        if found is None:  # then some of the other lines may be wanted, too
            self._take_apart(lines, limit, rows, places)
            return
        # A shipper spends a quarter of its time on what it does for each event, so that all events
        # of these lines are added at once.
        sizes = map((1).__add__, map(len, wanted))
        starts = [*accumulate(sizes, initial=self.read_to)]
        self.read_to = starts[-1]
        rows += found
        places += zip(repeat(self), starts, starts[1:], strict=False)

    def _take_apart(
        self, lines: list[bytes], limit: int, rows: list[Row], places: list[Place]
    ) -> None:
        """Do the same for lines of which some are no event."""
        for line in lines:
            if len(rows) >= limit:
                break
            start = self.read_to
            self.read_to = start + len(line) + 1
            found, damaged_bytes = find_rows(line)
            rows += [row for _, _, row in found]
            places += [(self, start + begin, start + end) for begin, end, _ in found]
            if self.read_to > self.size and not found and is_cut_off(line):
                continue  # a kill, or a full disk, left a part of an event
            self.damaged_bytes += damaged_bytes

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

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _time_of(row: Row) -> float:
    try:
        return datetime.fromisoformat(row["created_at"]).timestamp()
    except (ValueError, OverflowError):  # whatever somebody wrote there
        return time.time()


def key_of(place: Place) -> tuple[str, int]:
    """Name the line of an event for as long as the spool holds it."""
    return (place[0].name, place[1])
