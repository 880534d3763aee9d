"""What is in a spool directory, found without touching it."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorc_eventlog.lifecycle import descriptors
from lorc_eventlog.spool.format import (
    DAMAGED_SUFFIX,
    HEADER,
    HEADER_BYTES,
    SUFFIX,
    Header,
    decode_header,
    decode_line,
)
from lorc_eventlog.spool.segment import Segment, is_locked, open_existing, owners_of
from lorc_eventlog.spool.shipped import DRAFT_PREFIX, LaterVersionError, table_of
from lorc_eventlog.spool.shipped import SUFFIX as SHIPPED_SUFFIX

ROWS = 1000
"""So many events are in memory at a time, about."""


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """What one file of a spool directory holds, as :func:`survey` finds it.

    Nothing in it can be trusted: escape names and texts before they are printed.
    """

    path: Path
    owner_pid: int | None
    """The process that wrote it, as the name says; None if it does not."""
    is_locked: bool
    """Whether a living process has it: its writer, or one that adopted it."""
    is_set_aside: bool
    """Whether it was renamed to ``….damaged``; nobody adopts it."""
    events: int
    """Events that can be read and are not acknowledged."""
    size: int
    """Bytes, those of acknowledged events included."""
    oldest: str | None
    """The earliest ``created_at`` among the events."""
    damaged_bytes: int
    """What is no event and never will be. A last line that is cut off is no damage until the file
    is set aside: it may be just written, or was when its process was killed."""
    error: str | None
    """Why it cannot be read; None if it can."""
    table: str | None = None
    """The table that the events belong to; None if the file does not say it, which version 0.1.0
    did not: whoever finds it delivers it."""

    @property
    def is_for_a_shipper(self) -> bool:
        """Whether only ``lorc-eventlog ship`` delivers it."""
        return self.path.name.removesuffix(DAMAGED_SUFFIX).endswith(SHIPPED_SUFFIX)


def survey(directory: Path) -> list[SegmentReport]:
    """Look at the files of a spool directory, in the order of their age, and change nothing.

    Raises:
        OSError: The directory cannot be read.
    """
    reports = []
    owners = owners_of(directory)
    found = directory.stat()
    group = found.st_gid if found.st_mode & stat.S_ISGID and found.st_mode & stat.S_IWGRP else None
    for path in sorted(directory.iterdir()):
        is_shipped = path.name.removesuffix(DAMAGED_SUFFIX).endswith(SHIPPED_SUFFIX)
        if is_shipped and not path.name.startswith(DRAFT_PREFIX):
            with contextlib.suppress(FileNotFoundError):  # delivered just now
                reports.append(_look_at(path, owners | _owner_in(path, group), _header_of_shipped))
        elif path.name.endswith((SUFFIX, SUFFIX + DAMAGED_SUFFIX)):
            with contextlib.suppress(FileNotFoundError):
                reports.append(_look_at(path, owners, _header))
    return reports


def _owner_in(path: Path, group: int | None) -> set[int]:
    """Return the owner of a file in a directory that ``group`` shares."""
    status = path.lstat()
    return {status.st_uid} if status.st_gid == group else set()


def _header(beginning: bytes) -> tuple[Header, int]:
    """Return the header, and where events may begin."""
    return decode_header(beginning), 0


def _header_of_shipped(beginning: bytes) -> tuple[Header, int]:
    line, line_break, _ = beginning.partition(b"\n")
    try:
        table = table_of(decode_line(line))
    except LaterVersionError:
        return Header(is_of_a_later_version=True, table=None), 0
    return Header(is_of_a_later_version=False, table=table), len(line + line_break) * bool(table)


def _look_at(
    path: Path, owners: set[int], read_header: Callable[[bytes], tuple[Header, int]]
) -> SegmentReport:
    owner = re.fullmatch(r"\d+-(\d+)-.+", path.name)
    is_set_aside = path.name.endswith(DAMAGED_SUFFIX)
    locked = False
    size = 0
    header = Header(is_of_a_later_version=False, table=None)
    found = _Found()
    try:
        with contextlib.ExitStack() as opened:
            descriptor = open_existing(path, os.O_RDONLY, owners)
            opened.callback(descriptors.close, descriptor)
            locked = is_locked(descriptor)
            segment = Segment(path, descriptor)
            size = segment.size
            beginning = os.pread(descriptor, HEADER_BYTES, 0)
            header, first = read_header(beginning)
            if not header.is_of_a_later_version:
                is_known = first > 0 or HEADER.startswith(beginning[: len(HEADER)])
                found.read(segment, first, may_be_cut_off=is_known and not is_set_aside)
    except FileNotFoundError:
        raise
    except OSError as refusal:
        found.error = refusal.strerror
    return SegmentReport(
        path=path,
        owner_pid=int(owner[1]) if owner else None,
        is_locked=locked,
        is_set_aside=is_set_aside,
        events=found.events,
        size=size,
        oldest=found.oldest,
        damaged_bytes=found.damaged_bytes,
        error="Of a later version" if header.is_of_a_later_version else found.error,
        table=header.table,
    )


@dataclass(slots=True)
class _Found:
    events: int = 0
    oldest: str | None = None
    damaged_bytes: int = 0
    error: str | None = None

    def read(self, segment: Segment, position: int, *, may_be_cut_off: bool) -> None:
        while position < segment.size and self.error is None:
            reading = segment.read(position, ROWS)
            position = reading.read_to
            self.events += len(reading.rows)
            for _, _, row in reading.rows:
                self.oldest = min(self.oldest or row["created_at"], row["created_at"])
            self.damaged_bytes += reading.damaged_bytes
            if may_be_cut_off:
                self.damaged_bytes -= reading.cut_off_bytes
            if reading.error is not None:
                self.error = reading.error.strerror
