"""Files that a fork leaves to the parent: the child closes its copies, and their locks with them.

An ``flock`` is held for as long as any copy of its descriptor is open. A child that kept one would
keep what its parent, once dead, left from being adopted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from lorc_eventlog.lifecycle import fork

if TYPE_CHECKING:
    from pathlib import Path

_STANDARD_ERROR = 2

_no_fork_between = fork.ForkLock(fork_waits=5.0)
_open: dict[int, os.stat_result] = {}


def open_here(path: Path, flags: int) -> int:
    """Open ``path``, readable by its owner alone if it is made, in this process only."""
    return _no_fork_between.run(_open_here, path, flags)


def _open_here(path: Path, flags: int) -> int:
    descriptor = above_standard(os.open(path, flags, 0o600))
    _open[descriptor] = os.fstat(descriptor)
    return descriptor


def above_standard(descriptor: int) -> int:
    """Return ``descriptor``, or a copy in its place if it is one of standard input and output.

    Hazard: a daemon may have closed these three. What a library in C writes to its standard error
    would then go into our file.
    """
    if descriptor > _STANDARD_ERROR:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _STANDARD_ERROR + 1)
    finally:
        os.close(descriptor)


def close(descriptor: int) -> None:
    """Close what :func:`open_here` opened."""
    _no_fork_between.run(_close, descriptor)


def _close(descriptor: int) -> None:
    _open.pop(descriptor, None)
    os.close(descriptor)


class _Copies:
    def restart_in_child(self) -> None:
        """Close the child's copies.

        The child of a fork in C may have closed them long ago, and have other files in their
        place: those stay open.
        """
        while _open:
            descriptor, file = _open.popitem()
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), file):
                    os.close(descriptor)


fork.register_first(_Copies())
