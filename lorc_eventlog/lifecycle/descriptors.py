"""Files that a fork leaves to the parent: the child closes its copies, and their locks with them.

An ``flock`` is held for as long as any copy of its descriptor is open. A child that kept one would
keep what its parent, once dead, left from being adopted.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 1.0
"""Seconds. A fork that holds the lock may wait for a lock of the thread that opens a file."""

_lock = threading.RLock()
_open: set[int] = set()


def open_here(path: Path, flags: int) -> int:
    """Open ``path``, readable by its owner alone if it is made, in this process only."""
    with _no_fork_between():
        descriptor = os.open(path, flags, 0o600)
        _open.add(descriptor)
    return descriptor


def close(descriptor: int) -> None:
    """Close what :func:`open_here` opened."""
    with _no_fork_between():
        _open.discard(descriptor)
        os.close(descriptor)


@contextlib.contextmanager
def _no_fork_between() -> Iterator[None]:
    lock = _lock
    locked = lock.acquire(timeout=PATIENCE)
    try:
        yield
    finally:
        if locked:
            lock.release()


def before_fork() -> None:
    """Wait until no thread is in the middle of opening or closing one."""
    _lock.acquire()


def after_fork_in_parent() -> None:
    """Let them be opened again."""
    _lock.release()


def after_fork_in_child() -> None:
    """Leave them to the parent."""
    global _lock  # noqa: PLW0603  that of the parent may be held by a thread that is not here
    _lock = threading.RLock()
    while _open:
        with contextlib.suppress(OSError):  # closed by a thread that waited no longer
            os.close(_open.pop())
