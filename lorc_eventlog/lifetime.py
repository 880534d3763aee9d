"""What a process does to its writers: it ends, and they deliver first; it forks, and they part.

Every writer registers here. The hooks of Python, multiprocessing and Celery are set here.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorc_eventlog.client import import_guard
from lorc_eventlog.diagnostics import ForkGuard

if TYPE_CHECKING:
    from lorc_eventlog.writer import EventWriter

writers: weakref.WeakSet[EventWriter] = weakref.WeakSet()
unclosed: set[EventWriter] = set()
"""Keeps a writer alive, although nobody else does, until what it holds is delivered."""

fork_guard = ForkGuard()

_forking: list[EventWriter] = []
"""Whose lock is held over a fork. The child must not lose one before its files are closed."""

_ends_by_multiprocessing = False


def deliver_before_the_process_ends() -> None:
    """Deliver in processes of multiprocessing and Celery, too, which end by ``os._exit``."""
    global _ends_by_multiprocessing  # noqa: PLW0603
    if _ends_by_multiprocessing:
        return
    _ends_by_multiprocessing = True
    for name in ("multiprocessing.util", "billiard.util"):
        if name in sys.modules:
            # After all other finalizers, which may log.
            sys.modules[name].Finalize(None, _finish_all, exitpriority=-100)
    if "celery.signals" in sys.modules:  # whose pool runs no finalizers
        shutdown = sys.modules["celery.signals"].worker_process_shutdown
        shutdown.connect(_finish_all, weak=False, dispatch_uid=__name__)


def _finish_all(**_: object) -> None:
    """Deliver everything: called by atexit, multiprocessing and, with arguments, Celery."""
    started = time.monotonic()
    ending = list(writers)
    for writer in ending:
        with writer._lock:
            writer._hurry()
    for writer in ending:
        writer._finish(started + writer.close_timeout)


def take_all(locks: Sequence[threading.RLock]) -> None:
    """Take all of ``locks``, and wait for none of them while another is held.

    A thread that holds one may want another at any moment, in whatever order: a destructor that
    logs to a second writer runs in the middle of a call of the first.
    """
    awaited = 0
    while locks:
        taken = [locks[awaited]]
        taken[0].acquire()
        for index, lock in enumerate(locks):
            if index == awaited:
                continue
            if not lock.acquire(blocking=False):
                awaited = index
                break
            taken.append(lock)
        else:
            return
        for lock in taken:
            lock.release()


def _before_fork() -> None:
    fork_guard.before_fork()
    import_guard.acquire()
    # So that the child finds no spool in the middle of a change, and leaves no lock behind.
    _forking.extend(writers)
    take_all([writer._lock for writer in _forking])


def _after_fork_in_parent() -> None:
    for writer in _forking:
        writer._lock.release()
    _forking.clear()
    import_guard.release()
    fork_guard.after_fork_in_parent()


def _after_fork_in_child() -> None:
    global _ends_by_multiprocessing  # noqa: PLW0603
    _ends_by_multiprocessing = False
    fork_guard.after_fork_in_child()
    import_guard.release()
    for writer in _forking:
        writer._start_anew_in_child()
    _forking.clear()
    unclosed.clear()


# Registered with the import, so that it runs after the exit functions of the application.
atexit.register(_finish_all)
if hasattr(os, "register_at_fork"):  # pragma: no branch  not on Windows
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
