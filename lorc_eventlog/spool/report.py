"""Every message of the spool. None holds anything of an event."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lorc_eventlog.diagnostics import Notes, Throttle, escaped
from lorc_eventlog.lifecycle import clock

if TYPE_CHECKING:
    from lorc_eventlog.spool.segment import Segment

MOST_TABLES = 100
"""The tables that other files name are not ours, so only so many are remembered."""


class SpoolReport:
    """Notes what happens to the spool in one directory: trouble of one kind once a minute."""

    def __init__(self, directory: Path, notes: Notes) -> None:
        self._directory = escaped(str(directory))
        self._notes = notes
        self._troubles = Throttle(60.0)
        self._tables: set[str] = set()

    def trouble(self, what: str, error: OSError, path: Path | None = None) -> None:
        """The disk refuses something."""
        why = escaped(str(error.strerror or error))
        if self._troubles.lets_through(clock.monotonic(), f"{what}{why}" if path else what):
            if path is not None:
                what = f"{escaped(path.name)} {what}"
            self._notes.note(logging.ERROR, "spool %s: %s: %s", self._directory, what, why)

    def fault(self, error: Exception) -> None:
        """Something failed that never should; what it says may quote an event."""
        if self._troubles.lets_through(clock.monotonic(), "fault"):
            self._notes.note(
                logging.ERROR,
                "spool %s: reading or removing files failed and is tried again: %s",
                self._directory, type(error).__name__,
            )  # fmt: skip

    def recovered(self) -> None:
        """The disk takes events again."""
        self._notes.note(logging.INFO, "spool %s: events go to disk again", self._directory)

    def adopted(self, paths: list[Path]) -> None:
        """Segments of dead processes are going to be delivered."""
        others = f" and {len(paths) - 1} other files" if len(paths) > 1 else ""
        self._notes.note(
            logging.INFO,
            "spool: the events in %s%s, of a dead process, are adopted",
            escaped(str(paths[0])), others,
        )  # fmt: skip

    def is_new(self, table: str) -> bool:
        """Whether segments of ``table`` have not been reported yet."""
        return table not in self._tables and len(self._tables) < MOST_TABLES

    def of_another_table(self, path: Path, table: str, ours: str) -> None:
        """A segment of a dead process is left to those who write to its table."""
        self._tables.add(table)
        self._notes.note(
            logging.WARNING,
            "spool: the events in %s, and maybe in other files there, belong to the table %s. This "
            "process delivers to %s and leaves them alone; lorc-eventlog spool shows them",
            escaped(str(path)), escaped(table[:200]), ours,
        )  # fmt: skip

    def of_a_later_version(self, path: Path) -> None:
        """A segment cannot be read by this version and is left to a later one."""
        if self._troubles.lets_through(clock.monotonic(), "version"):
            self._notes.note(
                logging.ERROR,
                "spool: the events in %s, and maybe in other files there, are of a later version, "
                "which delivers them; this one leaves them alone",
                escaped(str(path)),
            )

    def set_aside(self, segment: Segment, damaged: Path) -> None:
        """A segment is delivered, and holds damage besides."""
        path = escaped(str(segment.path))
        if segment.damaged_bytes == segment.cut_off_bytes:
            self._notes.note(
                logging.WARNING,
                "spool: the last line of %s is cut off: its process was killed in the middle of "
                "a log call, or the file was truncated. It is set aside as %s",
                path, escaped(damaged.name),
            )  # fmt: skip
        else:
            self._notes.note(
                logging.ERROR,
                "spool: %d bytes of %s are damaged and set aside as %s; all else in it is "
                "delivered",
                segment.damaged_bytes, path, escaped(damaged.name),
            )  # fmt: skip

    def deleted(self) -> None:
        """The segment that this process writes to is gone."""
        self._notes.note(
            logging.ERROR,
            "spool %s: someone deleted the file of this process; until they are delivered, the "
            "events that were in it are lost if the process dies",
            self._directory,
        )
