"""Which files of a spool directory a shipper does not deliver, and which it could not look at."""

from __future__ import annotations

import errno
from collections.abc import Collection
from typing import TYPE_CHECKING

from lorc_eventlog.spool.directory import UntrustedError

if TYPE_CHECKING:
    from lorc_eventlog.shipping.report import FollowerReport

_NOT_OURS = {errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EPERM}
"""What opening a link, a directory, a socket or a file of another user fails with."""


class LeftAlone:
    """Remembers them for as long as they are there, and reports each kind once.

    Args:
        report: Takes the messages.
    """

    def __init__(self, report: FollowerReport) -> None:
        self.is_all_seen = False
        """Whether the last look could look at everything."""
        self._report = report
        self._others: set[str] = set()
        self._refused: set[str] = set()

    def begin(self, names: Collection[str]) -> None:
        """Begin a look at the files with these names: all that are there."""
        self.is_all_seen = True
        self._others.intersection_update(names)
        self._refused.intersection_update(names)

    def is_for_others(self, name: str) -> bool:
        """Whether somebody else delivers the segment: that never changes."""
        return name in self._others

    def leave_to_others(self, name: str, why: str) -> None:
        """Somebody else delivers the segment."""
        self._others.add(name)
        self._report.left_to_others(name, why)

    def refuse(self, name: str, why: str) -> None:
        """The file is not to be trusted, or is none, until a later look says otherwise."""
        if name not in self._refused:
            self._refused.add(name)
            self._report.left_alone(name, why)

    def accept(self, name: str) -> None:
        """The file is to be trusted."""
        self._refused.discard(name)

    def not_seen(self, name: str, error: OSError) -> bool:
        """Looking at a file failed; whether it is refused, else it is tried again."""
        if isinstance(error, UntrustedError) or error.errno in _NOT_OURS:
            self.refuse(name, str(error.strerror))
            return True
        self.is_all_seen = False
        self._report.trouble("cannot be read", error, name)
        return False


def is_text(name: str) -> bool:
    """Whether a name can be written into the ledger: a name on disk may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
