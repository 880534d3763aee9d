"""Threads that leave the process's signals to the application.

A signal for the process goes to any thread that does not block it. An application that blocks one
in its main thread, to take it with ``sigwait`` or to finish something first, is killed by it all
the same if another thread takes it: billiard, Celery's pool, blocks SIGTERM while a worker has a
lock that all workers share, and a cold shutdown then hangs for ever. So no thread that this package
starts takes signals, nor those that libraries start while they are imported (numpy and pyarrow do,
and Google's client imports them): a thread inherits what the one that starts it blocks.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_CAN_BLOCK = hasattr(signal, "pthread_sigmask")  # not on Windows
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM")
    if hasattr(signal, name)
]
"""Those that somebody sends to a process and that end it unless it handles them.

No others, because a program that is started on the thread inherits what it blocks.
"""


class BackgroundThread(threading.Thread):
    """A daemon thread that takes no signals."""

    def __init__(self, target: Callable[[], object], name: str | None = None) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self._starter = threading.get_native_id()

    def run(self) -> None:
        """Block the signals and call the target."""
        # Hazard: gevent and eventlet run it as a greenlet of the thread that starts it, where
        # nobody would be left to take the signals.
        if _CAN_BLOCK and threading.get_native_id() != self._starter:
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        super().run()


def without_signals(action: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
    """Call ``action`` with the signals blocked on this thread, and so on threads that it starts.

    What arrives meanwhile is handled at the end.
    """
    if not _CAN_BLOCK:  # pragma: no cover
        return action(*arguments)
    # Hazard: a signal handler may raise when a call returns, so what is restored is known before.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        return action(*arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
