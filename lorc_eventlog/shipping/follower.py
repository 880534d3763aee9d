"""Reads what living and dead processes append to a spool directory, and erases what is delivered.

The follower takes each segment from its first line to its last line break, and the segments of a
process in their order. A process that still appends holds the lock of its segment, so the follower
never truncates; it blanks lines, and deletes a segment only when nobody has it locked and it holds
nothing but blanks.

Everything in the directory is untrusted: another process, or another user, may have written it.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Collection, Iterable
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from lorc_eventlog.diagnostics import Notes, escaped
from lorc_eventlog.shipping.ledger import Run
from lorc_eventlog.shipping.left_alone import LeftAlone, is_text
from lorc_eventlog.shipping.lines import Eraser
from lorc_eventlog.shipping.report import FollowerReport
from lorc_eventlog.shipping.segment import Segment
from lorc_eventlog.spool.shipped import DRAFT_PREFIX, SUFFIX, LaterVersionError

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row
    from lorc_eventlog.shipping.lines import Lines
    from lorc_eventlog.shipping.segment import Place
    from lorc_eventlog.spool.directory import Directory

DAMAGED_SUFFIX = ".damaged"

_SEGMENT = itemgetter(0)
_START = itemgetter(1)


class Found(NamedTuple):
    """What a follower knows of its directory: any thread may ask."""

    unread_bytes: int
    """How much is not read yet."""
    oldest: float | None
    """When the oldest event that waits happened, about, in seconds since the epoch."""
    is_empty: bool
    """Whether nothing waits and no process has a segment open."""


class Follower:
    """Follows the segments of one table in one directory.

    Not thread-safe: its owner's lock guards every call.

    Args:
        directory: The spool directory.
        lines: Erases lines of the spool.
        table: The table whose events are taken; those of others are reported and left alone.
        notes: Takes what is to be reported.
    """

    def __init__(self, directory: Directory, lines: Lines, table: str, notes: Notes) -> None:
        self.found = Found(0, None, is_empty=True)
        """What the last look and the last read found."""
        self.is_lost = False
        """Whether somebody deleted the directory, or put another in its place."""
        self._directory = directory
        self._table = table
        self._report = FollowerReport(directory.path, notes)
        self._left_alone = LeftAlone(self._report)
        self._eraser = Eraser(lines, self._report)
        self._segments: dict[str, Segment] = {}
        self._unread: dict[str, deque[Segment]] = {}
        """By process, the segments that hold something to read, the oldest first."""
        self._turns: deque[str] = deque()
        """Processes whose segments are read next; each goes to the end after its turn."""
        self._places: dict[int, Place] = {}
        """By the identity of the row: the same event may be in the directory twice."""

    @property
    def has_unread(self) -> bool:
        """Whether :meth:`read` may find something."""
        return bool(self._turns) and not self._eraser.left

    def look(self) -> None:
        """Look at the directory: what is new, what has grown, and what can be deleted."""
        try:
            names = [name for name in self._directory.names() if name.endswith(SUFFIX)]
            self.is_lost = self._directory.is_deleted
        except OSError as error:
            self._report.trouble("cannot be searched", error)
            self.found = self.found._replace(is_empty=False)
            return
        self._left_alone.begin(names)
        self._eraser.erase_what_is_left()
        for name in self._segments.keys() - set(names):
            del self._segments[name]
        for name in names:
            if name.startswith(DRAFT_PREFIX):
                _remove_draft(self._directory, name)
            elif not is_text(name):
                self._left_alone.refuse(name, "its name is no text")
            elif not self._left_alone.is_for_others(name):
                self._look_at(name)
        self._tell()

    def _look_at(self, name: str) -> None:
        segment = self._segments.get(name) or Segment(self._directory, name)
        try:
            if name not in self._segments:
                if not self._is_ours(segment):
                    return
                self._segments[name] = segment
            segment.look()
        except FileNotFoundError:
            pass  # deleted since the look, which the next one will see
        except OSError as error:
            segment.is_refused = self._left_alone.not_seen(name, error)
        else:
            segment.is_refused = False
            self._left_alone.accept(name)
            if segment.is_done:
                self._discard(segment)
            elif not segment.is_read:
                self._wait_for_turn(segment)

    def _is_ours(self, segment: Segment) -> bool:
        try:
            table = segment.table()
        except LaterVersionError:
            why = "a later version of lorc_eventlog wrote it: ship with that version"
            self._left_alone.leave_to_others(segment.name, why)
            return False
        if table is None:  # a loss of power left it so
            if segment.give_up():
                self._discard(segment)
            else:
                self._left_alone.is_all_seen = False
            return False
        if table != self._table:
            why = f"its events belong to {escaped(table)}, and this shipper delivers {self._table}"
            self._left_alone.leave_to_others(segment.name, why)
            return False
        return True

    def _wait_for_turn(self, segment: Segment) -> None:
        """Queue a segment that has something to read behind the older ones of its process."""
        segments = self._unread.get(segment.process)
        if segments is None:
            self._unread[segment.process] = deque([segment])
            self._turns.append(segment.process)
        elif segment not in segments:
            segments.append(segment)

    def read(self, limit: int, *, each: int = sys.maxsize, but: Collection[str] = ()) -> list[Row]:
        """Read at most ``limit`` events: each process's in their order, and every process in turn.

        At most ``each`` of one process; those in ``but`` miss their turn.

        Bounded: it reads at most a mebibyte of each segment that has its turn, or one line.
        """
        rows: list[Row] = []
        if self._eraser.left:
            return rows
        for _ in range(len(self._turns)):
            if len(rows) >= limit:
                break
            process = self._turns.popleft()
            if process in but:
                self._turns.append(process)
                continue
            segments = self._unread[process]
            segment = segments[0]
            try:
                found, places = segment.read(min(limit - len(rows), each))
                self._places.update(zip(map(id, found), places, strict=True))
                rows += found
                if segment.is_read and len(segments) > 1:
                    segment.measure()  # its process has begun the next one: it is complete now
            except OSError as error:  # it has its turn again after the next look
                self._report.trouble("cannot be read", error, segment.name)
                segments.popleft()
            else:
                if segment.is_read:
                    segments.popleft()
            if segments:
                self._turns.append(process)
            else:
                del self._unread[process]
        self._tell()
        return rows

    def place_of(self, row: Row) -> Place:
        """Return where a row that is held stands."""
        return self._places[id(row)]

    def acknowledge(self, rows: Iterable[Row]) -> None:
        """Erase ``rows`` from the disk: BigQuery has them, or a dead letter keeps them."""
        places = self._take_out(rows)
        self._eraser.erase(runs_of(places))
        self._let_go(places)

    def release(self, rows: Iterable[Row]) -> None:
        """Forget ``rows``, which somebody else erases."""
        self._let_go(self._take_out(rows))

    def leave(self, rows: Iterable[Row]) -> None:
        """Leave ``rows`` in the spool, where the next shipper finds them."""
        places = self._take_out(rows)
        for segment, _, _ in places:
            segment.is_left = True
        self._let_go(places)

    def _take_out(self, rows: Iterable[Row]) -> list[Place]:
        return [*map(self._places.pop, map(id, rows))]

    def _let_go(self, places: Iterable[Place]) -> None:
        starts: dict[Segment, list[int]] = {}
        for segment, some in groupby(places, _SEGMENT):
            starts.setdefault(segment, []).extend(map(_START, some))
        for segment, some_starts in starts.items():
            segment.held.let_go(some_starts)
            if segment.is_done:
                self._discard(segment)

    def _tell(self) -> None:
        waiting = [segment for segment in self._segments.values() if segment.waits]
        is_empty = all(segment.is_refused for segment in self._segments.values()) and not waiting
        self.found = Found(
            unread_bytes=sum(segment.size - segment.read_to for segment in waiting),
            oldest=min((segment.oldest for segment in waiting), default=None),
            is_empty=is_empty and self._left_alone.is_all_seen,
        )

    def _discard(self, segment: Segment) -> None:
        """Delete a segment in which nothing waits, or set it aside if some of it is damaged."""
        try:
            if segment.damaged_bytes:
                self._directory.rename(segment.name, segment.name + DAMAGED_SUFFIX)
                self._report.set_aside(segment.name, segment.damaged_bytes)
            else:
                self._directory.unlink(segment.name)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._report.trouble("is delivered, but cannot be deleted", error, segment.name)
            return
        self._segments.pop(segment.name, None)


def runs_of(places: Iterable[Place]) -> tuple[Run, ...]:
    """Return the runs that the lines at ``places`` are, neighbours merged."""
    runs: list[Run] = []
    last, first, reached = None, 0, 0
    for segment, start, end in places:
        if segment is not last or start != reached:
            if last is not None:
                runs.append(Run(last.name, first, reached))
            last, first = segment, start
        reached = end
    if last is not None:
        runs.append(Run(last.name, first, reached))
    return tuple(runs)


def _remove_draft(directory: Directory, name: str) -> None:
    """Delete a segment that was never finished: its process was killed, or its disk full."""
    with contextlib.suppress(OSError):
        file = directory.open_file(name)
        try:
            if file.try_lock():
                directory.unlink(name)
        finally:
            file.close()
