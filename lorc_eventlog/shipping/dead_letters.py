"""The file of dead letters: what BigQuery refused, for a person to read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from lorc_eventlog.spool.directory import Access, force_to_disk, make_directory

if TYPE_CHECKING:
    from lorc_eventlog.events.envelope import Envelope

FILE_NAME = "dead-letters.jsonl"
"""Where dead letters go unless a file is named: in the spool directory."""

TRIES = 50
PAUSE = 0.02
"""So often, and so many seconds apart, the lock of the file is tried: a shipper of another table
that writes to the same file has it for a moment."""

# O_NONBLOCK, because opening a pipe that somebody put there would wait for its other end.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class DeadLetterFile:
    """Appends a JSON line for each event that BigQuery will never take.

    The line is on the disk before the event is erased from the spool. It holds the whole event, so
    that the file is readable by its owner alone. Somebody who has read the file may move or delete
    it at any time: then the next letter begins another.

    Args:
        path: The file; made with mode 0600 if it is not there.

    Raises:
        OSError: The file cannot be opened. If the disk is full it is opened later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._tries = TRIES
        try:
            self._open()
        except OSError as error:
            # Shipping makes room on a full disk, and most shippers never write a dead letter.
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise

    def _open(self) -> int:
        descriptor = self._descriptor = os.open(self.path, _FLAGS, 0o600)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            self.close()
            raise OSError(errno.EINVAL, "It is not a regular file", str(self.path))
        os.fchmod(descriptor, 0o600)
        return descriptor

    def _is_there(self, descriptor: int) -> bool:
        """Whether the file is where a person looks for it."""
        try:
            return os.path.samestat(self.path.lstat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def append(self, envelope: Envelope, reason: str) -> None:
        """Write one dead letter and force it to the disk.

        Raises:
            OSError: The disk refuses it.
        """
        letter = {
            "rejected_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "reason": reason,
            "event": envelope,
        }
        line = orjson.dumps(letter, option=orjson.OPT_APPEND_NEWLINE)
        while not self._append(line):
            pass  # somebody moved or deleted the file just now, and the letter with it

    def _append(self, line: bytes) -> bool:
        """Write one line; whether it is in the file that is there now."""
        if self._descriptor is not None and not self._is_there(self._descriptor):
            self.close()
            # The directory may be gone as well. Whoever waits for the letter would wait for ever.
            make_directory(self.path.parent, Access.OWNER)
        descriptor = self._open() if self._descriptor is None else self._descriptor
        with self._locked(descriptor):
            size = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
                force_to_disk(descriptor)
            except OSError:  # it is tried again, and each time would leave a letter
                os.ftruncate(descriptor, size)
                raise
        return self._is_there(descriptor)

    @contextlib.contextmanager
    def _locked(self, descriptor: int) -> Iterator[None]:
        """Lock the file: another shipper's letter could be cut off together with one of ours.

        Raises:
            OSError: Somebody has it locked for long.
        """
        tries = self._tries
        self._tries = 1  # nobody is waited for twice
        while not _try_lock(descriptor):
            tries -= 1
            if not tries:
                raise OSError(errno.EAGAIN, "Another process has it locked", str(self.path))
            time.sleep(PAUSE)
        self._tries = TRIES
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Lock the file if nobody has; also True where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no shipper starts on such a file system, so that the file is elsewhere
        return True
    return True
