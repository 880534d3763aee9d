"""What a process does to its writers: it ends, and they deliver first; it forks, and they part.

Every writer registers here. The hooks of Python, multiprocessing and Celery are set here.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
import weakref
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.client import import_guard
from lorc_eventlog.diagnostics import ForkGuard
from lorc_eventlog.lifecycle import descriptors

if TYPE_CHECKING:
    from lorc_eventlog.delivery.synchronous import ForegroundWriter
    from lorc_eventlog.delivery.writer import EventWriter

writers: weakref.WeakSet[EventWriter] = weakref.WeakSet()
copied_by_a_fork: weakref.WeakSet[EventWriter | ForegroundWriter] = weakref.WeakSet()
unclosed: set[EventWriter] = set()
"""Keeps a writer alive, although nobody else does, until what it holds is delivered."""

fork_guard = ForkGuard()

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
    ending = _living_writers()
    for writer in ending:
        with writer._lock:
            writer._backlog.hasten(started)
            writer._hurry()
    for writer in ending:
        writer._finish(started + writer.close_timeout)


def _living_writers() -> list[EventWriter]:
    while True:
        with contextlib.suppress(RuntimeError):  # another thread makes one just now
            return list(writers)


# No writer's lock is held over a fork: other hooks take locks of their own, such as logging's, that
# a thread may hold which waits for the writer. The child throws away what it finds of a writer.


def _before_fork() -> None:
    fork_guard.before_fork()
    import_guard.acquire()
    descriptors.before_fork()


def _after_fork_in_parent() -> None:
    for release in (
        descriptors.after_fork_in_parent,
        import_guard.release,
        fork_guard.after_fork_in_parent,
    ):
        with contextlib.suppress(RuntimeError):  # a signal handler ended _before_fork
            release()


def _after_fork_in_child() -> None:
    global _ends_by_multiprocessing  # noqa: PLW0603
    _ends_by_multiprocessing = False
    fork_guard.after_fork_in_child()
    import_guard.release()
    descriptors.after_fork_in_child()
    for writer in list(copied_by_a_fork):
        writer._start_anew_in_child()
    unclosed.clear()


# Registered with the import, so that it runs after the exit functions of the application.
atexit.register(_finish_all)
if hasattr(os, "register_at_fork"):  # pragma: no branch  not on Windows
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
