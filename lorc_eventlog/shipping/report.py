"""What a follower reports about its directory. Nothing of an event is in it."""

from __future__ import annotations

import logging
from pathlib import Path

from lorc_eventlog.diagnostics import Notes, Throttle, escaped
from lorc_eventlog.lifecycle import clock

MOST_REASONS = 100
"""The reasons that segments give are not ours, so only so many are remembered."""

TROUBLE_INTERVAL = 60.0
"""Seconds between two messages about trouble of one kind."""


class FollowerReport:
    """Notes the messages.

    Args:
        directory: The spool directory.
        notes: Takes the messages.
    """

    def __init__(self, directory: Path, notes: Notes) -> None:
        self._directory = escaped(str(directory))
        self._notes = notes
        self._troubles = Throttle(TROUBLE_INTERVAL)
        self._reasons: set[str] = set()

    def trouble(self, what: str, error: OSError, name: str = "the directory") -> None:
        """The disk refuses something, which is tried again: of many files only one is named."""
        if self._troubles.lets_through(clock.monotonic(), what):
            why = error.strerror or type(error).__name__
            self._notes.note(
                logging.ERROR,
                "spool %s: %s %s, which is tried again: %s",
                self._directory, escaped(name), what, why,
            )  # fmt: skip

    def left_to_others(self, name: str, why: str) -> None:
        """A segment is for another shipper to deliver: of many, the first is named."""
        if why not in self._reasons and len(self._reasons) < MOST_REASONS:
            self._reasons.add(why)
            self._notes.note(
                logging.WARNING,
                "spool %s: %s is left alone, as are others like it: %s",
                self._directory, escaped(name), why,
            )  # fmt: skip

    def left_alone(self, name: str, why: str) -> None:
        """A segment is not ours to touch."""
        self._notes.note(
            logging.WARNING,
            "spool %s: %s is left alone: %s",
            self._directory, escaped(name), why,
        )  # fmt: skip

    def set_aside(self, name: str, damaged_bytes: int) -> None:
        """A segment is delivered, and holds damage besides."""
        self._notes.note(
            logging.ERROR,
            "spool %s: %d bytes of %s are damaged; it is set aside with the suffix .damaged, and "
            "everything else in it is delivered",
            self._directory, damaged_bytes, escaped(name),
        )  # fmt: skip
