"""The application's side of a spool that a shipper empties: lines are appended, and that is all.

A *shipped segment* is a file ``….ship`` that only a shipper takes: older versions of this package
ignore the suffix. It begins with a header that names the version of the format and the table that
the process was configured for; a line for each event follows.

The process appends each line by one ``write`` to a descriptor in append mode. So there is no offset
to keep, and no hole if a signal handler logs in the middle of a call. It never truncates a segment
and never overwrites what is in it: the shipper blanks what BigQuery has, and deletes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import logging
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from lorc_eventlog.diagnostics import Notes, escaped
from lorc_eventlog.spool.directory import Access, Directory, force_to_disk
from lorc_eventlog.spool.format import encode_line

SUFFIX = ".ship"

DRAFT_PREFIX = "."
"""The name of a segment begins so until it has its header."""

TRIES = 3
"""A segment is begun so often while a shipper clears drafts away."""

SEGMENT_BYTES = 16 * 2**20
"""A segment that has grown so large is closed, so that the shipper can delete it."""

SEGMENTS = 16
"""``spool_max_bytes`` is divided into at least so many segments, so that space becomes free."""

IDLE_SECONDS = 60.0
"""A segment that got nothing for so long is closed at the next look, so that it can be deleted."""

SURVEY_INTERVAL = 0.1
"""Seconds between two looks at how much space the shipper has freed."""

LOOK_INTERVAL = 1.0
"""Seconds between two looks whether somebody deleted the segment."""

_VERSION_KEY = "lorc_eventlog_ship"
_VERSION = 1


class SpoolFullError(OSError):
    """The segments of this process take ``spool_max_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(errno.EDQUOT, f"spool_max_bytes ({max_bytes:,}) is reached")


class NotForcedError(OSError):
    """The line is in the segment, where a reader finds it, but perhaps not on the disk itself."""


class LaterVersionError(Exception):
    """A segment has a format that this version does not understand."""


def header_of(table: str) -> Mapping[str, object]:
    """Return the header of a segment whose events belong into ``table``."""
    return {_VERSION_KEY: _VERSION, "table": table}


def table_of(header: Mapping[str, object] | None) -> str | None:
    """Return the table that a header names; None if it is damaged.

    Raises:
        LaterVersionError: A later version of this package wrote it.
    """
    if header is None or _VERSION_KEY not in header:
        return None
    table = header.get("table")
    if header[_VERSION_KEY] != _VERSION or not isinstance(table, str):
        raise LaterVersionError
    return table


def lock_name(table: str) -> str:
    """Return the name of the file that the shipper of ``table`` has locked."""
    return f"shipper-{_digest(table)}.lock"


def ledger_name(table: str) -> str:
    """Return the name of the ledger of the shipper of ``table``."""
    return f"shipper-{_digest(table)}.ledger"


def _digest(table: str) -> str:
    return hashlib.blake2b(table.encode(), digest_size=6).hexdigest()


class SegmentAppender:
    """Appends lines to segments of this process, one segment at a time.

    Not thread-safe: its owner's lock guards every call. A signal handler may call it in the middle
    of a call, because each method leaves the fields right before it makes a system call.

    Args:
        path: The spool directory; made with the mode that ``access`` says.
        access: Who may write to it.
        table: The table that the events belong into.
        max_bytes: How large the segments of this process may be together.
        durable: Whether each line is forced to the disk before :meth:`append` returns.
        notes: Takes what is to be reported.
    """

    def __init__(
        self,
        path: Path,
        *,
        access: Access,
        table: str,
        max_bytes: int,
        durable: bool,
        notes: Notes,
    ) -> None:
        self.path = path
        self._access = access
        self._header = encode_line(header_of(table))
        self._table = table
        self._max_bytes = max_bytes
        self._segment_bytes = max(min(SEGMENT_BYTES, max_bytes // SEGMENTS), 1)
        self._durable = durable
        self._notes = notes
        self._directory: Directory | None = None
        self._descriptor: int | None = None
        self._name = ""
        self._size = 0
        self._appended_at = 0.0
        self._closed: dict[str, int] = {}
        """The size of each closed segment that the shipper had not deleted at the last survey."""
        self._closed_bytes = 0
        self._surveyed_at = -SURVEY_INTERVAL
        self._unforced: set[str] = set()
        self._looked_at = 0.0
        self._started = time.time_ns()
        self._numbers = itertools.count()

    def append(self, line: bytes, now: float) -> None:
        """Write ``line`` at the end of the segment.

        Args:
            line: An encoded event, line break included.
            now: The time in monotonic seconds.

        Raises:
            SpoolFullError: ``max_bytes`` is reached.
            NotForcedError: The line is written, and must not be written once more.
            OSError: The disk refuses the line; no reader will see it as an event.
        """
        if self._size >= self._segment_bytes or now - self._appended_at > IDLE_SECONDS:
            self.close_segment()
        if self._closed_bytes + self._size + len(line) > self._max_bytes:
            self._make_room(len(line), now)
        if self._descriptor is not None and now - self._looked_at >= LOOK_INTERVAL:
            self._looked_at = now
            self._leave_if_lost(self._descriptor)
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._open_segment()
            self._looked_at = now
        self._appended_at = now
        self._size += len(line)
        written = os.write(descriptor, line)
        if written < len(line):
            # Whatever follows must not become the end of this line.
            self.close_segment()
            if written < len(line) - 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._durable:
            _force_written(self)

    def force(self) -> None:
        """Force all lines to the disk, those in closed segments included."""
        if self._directory is not None:
            for name in list(self._unforced):
                with contextlib.suppress(FileNotFoundError):  # the shipper has delivered it
                    descriptor = self._directory.open(name)
                    try:
                        force_to_disk(descriptor)
                    finally:
                        os.close(descriptor)
                self._unforced.discard(name)
        if self._descriptor is not None:
            force_to_disk(self._descriptor)

    def close_segment(self) -> None:
        """Give up the lock of the segment, so that the shipper can delete it when it is empty.

        It is not forced to the disk here, because a log call must not wait for that.
        """
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        self._closed[self._name] = self._size
        self._unforced.add(self._name)
        self._closed_bytes += self._size
        self._size = 0
        os.close(descriptor)
        self._survey()

    def close_if_idle(self, now: float) -> None:
        """Close the segment if nothing was appended for a minute."""
        if now - self._appended_at > IDLE_SECONDS:
            self.close_segment()

    def abandon(self) -> None:
        """Leave the segment to the parent of this process: called in the child after a fork.

        The lock belongs to all copies of the descriptor, so it is held until the last is closed.
        """
        if self._descriptor is not None:
            os.close(self._descriptor)
        if self._directory is not None:
            self._directory.close()
        self._descriptor = self._directory = None

    def is_shipped(self) -> bool:
        """Whether a shipper has this directory and table; True if that cannot be known."""
        return self._directory is None or _is_shipped(self._directory, self._table)

    def _leave_if_lost(self, descriptor: int) -> None:
        """Begin another segment if nobody will find this one: where it is, a shipper finds it."""
        if os.fstat(descriptor).st_nlink == 0:
            self._notes.note(
                logging.ERROR,
                "spool %s: somebody deleted %s, the segment of this process, and with it all "
                "events that were not delivered yet",
                self.path, escaped(self._name),
            )  # fmt: skip
            self.close_segment()
        elif self._directory is not None and self._directory.is_known_deleted:
            self.close_segment()  # the directory was renamed: what is in it is still there

    def _make_room(self, size: int, now: float) -> None:
        if now - self._surveyed_at >= SURVEY_INTERVAL:
            self._surveyed_at = now
            self._survey()
        if self._closed_bytes + self._size + size > self._max_bytes:
            raise SpoolFullError(self._max_bytes)

    def _survey(self) -> None:
        """Look which of the closed segments the shipper has deleted."""
        if self._directory is None:
            return
        directory = self._directory
        sizes = {name: _size(directory, name, size) for name, size in list(self._closed.items())}
        self._closed = {name: size for name, size in sizes.items() if size}
        self._unforced &= self._closed.keys()
        self._closed_bytes = sum(self._closed.values())

    def _open_segment(self) -> int:
        directory = self._directory
        if directory is None or directory.is_deleted:
            if directory is not None:
                directory.close()
            self._directory = None
            self._directory = directory = Directory(self.path, access=self._access, create=True)
        for _ in range(TRIES):
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                return self._make_segment(directory)
        return self._make_segment(directory)

    def _make_segment(self, directory: Directory) -> int:
        number = next(self._numbers)
        name = f"{self._started:020d}-{os.getpid()}-{number:06d}-{secrets.token_hex(4)}{SUFFIX}"
        # Under the name of a draft no shipper takes it. Under its own it appears locked and with
        # its header, so that nobody ever holds it for abandoned.
        draft = DRAFT_PREFIX + name
        descriptor = directory.open(draft, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        try:
            # Fails if a shipper holds the draft for abandoned, just before it is locked.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.write(descriptor, self._header) < len(self._header):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
            if self._durable:
                os.fsync(descriptor)
            directory.rename(draft, name)
            if self._durable:
                directory.force()
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                directory.unlink(draft)
            raise
        self._name = name
        self._size = len(self._header)
        self._descriptor = descriptor
        return descriptor


def _size(directory: Directory, name: str, otherwise: int) -> int:
    try:
        return directory.size(name)
    except OSError:
        return otherwise


def _force_written(appender: SegmentAppender) -> None:
    try:
        appender.force()
    except OSError as error:
        raise NotForcedError(*error.args) from error


def shipper_of(directory: Directory, table: str) -> str | None:
    """Name the process that ships from ``directory`` into ``table``; None if none does.

    Raises:
        OSError: That cannot be known.
    """
    try:
        file = directory.open_file(lock_name(table))
    except FileNotFoundError:
        return None
    try:
        if file.try_lock():
            return None
        owner = file.read(20, 0).decode(errors="replace").strip()
    finally:
        file.close()
    return f"process {owner}" if owner.isdigit() else "another process"


def _is_shipped(directory: Directory, table: str) -> bool:
    try:
        return shipper_of(directory, table) is not None
    except OSError:
        return True
