"""The file of dead letters: what BigQuery refused, for a person to read."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from lorc_eventlog.spool.directory import force_to_disk

if TYPE_CHECKING:
    from lorc_eventlog.events.envelope import Envelope
    from lorc_eventlog.events.row import Row

FILE_NAME = "dead-letters.jsonl"
"""Where dead letters go unless a file is named: in the spool directory."""


class DeadLetterFile:
    """Appends a JSON line for each event that BigQuery will never take.

    The line is on the disk before the event is erased from the spool. It holds the whole event, so
    that the file is readable by its owner alone.

    Args:
        path: The file; made with mode 0600 if it is not there.

    Raises:
        OSError: The file cannot be opened. If the disk is full it is opened later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: set[str] = set()
        self._descriptor: int | None = None
        try:
            self._open()
        except OSError as error:
            # Shipping makes room on a full disk, and most shippers never write a dead letter.
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o600)
        self._descriptor = descriptor
        os.fchmod(descriptor, 0o600)
        return descriptor

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
        descriptor = self._open() if self._descriptor is None else self._descriptor
        size = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
            force_to_disk(descriptor)
        except OSError:  # it is tried again, and each time would leave a letter
            os.ftruncate(descriptor, size)
            raise
        self._written.add(envelope["event_id"])

    def take(self, row: Row) -> bool:
        """Whether the letter of ``row`` was written; it is asked for once."""
        was_written = row["event_id"] in self._written
        self._written.discard(row["event_id"])
        return was_written

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
