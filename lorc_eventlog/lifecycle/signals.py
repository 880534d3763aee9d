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
from functools import partial
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


class _Mask(threading.local):
    before: set[signal.Signals | int] | None = None
    """What a thread would block if it did not leave signals to the application."""


_mask = _Mask()


def background_thread(target: Callable[[], object], name: str | None = None) -> threading.Thread:
    """Make a daemon thread that takes no signals.

    Hazard: the class is looked up each time. gevent replaces it, and before Python 3.13 a join of a
    thread whose class derives from the older one ends only with its timeout.
    """
    run = partial(_run, target, threading.get_native_id(), _mask.before)
    return threading.Thread(target=run, name=name, daemon=True)


def _run(
    target: Callable[[], object], starter: int, mask: set[signal.Signals | int] | None
) -> None:
    # Hazard: gevent and eventlet run it as a greenlet of the thread that starts it, where nobody
    # would be left to take the signals.
    if _CAN_BLOCK and threading.get_native_id() != starter:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        _mask.before = before if mask is None else mask
    target()


def with_signals(action: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
    """Call ``action`` of the application, on whichever thread, with the signals it would have.

    A program that it starts inherits what the thread blocks: one that blocks SIGTERM could not be
    ended.
    """
    before = _mask.before
    if before is None:
        return action(*arguments)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return action(*arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


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
