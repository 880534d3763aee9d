"""A lock that a signal handler cannot leave behind, and its conditions.

A signal handler may raise at the end of any call (Ctrl-C does, and so does a handler that ends the
process by SystemExit). On Python 3.14, ``with lock`` then leaves the lock taken if the handler
raises just after the lock was taken, and all other threads wait for ever. So does ``acquire()``
before a ``try``, on every version. Acquiring inside the ``try`` and releasing whatever happened
leaves it taken on none: a release without ownership is a RuntimeError, which changes nothing.

Use no ``with`` on a lock in this package (a test refuses it): use :meth:`Lock.run`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from sys import is_finalizing
from typing import Any, TypeVar, TypeVarTuple

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class Lock:
    """A re-entrant lock that runs actions, one thread at a time.

    Re-entrant, because a signal handler or a destructor may log while its thread has the lock. The
    inner ``run`` then neither takes nor releases anything: if an exception ended it before it took
    the lock, its release would give up what the outer one holds.

    Once Python ends, the other threads have stopped for ever, one perhaps with the lock. Then an
    action runs without it.

    Args:
        patience: Seconds that an action waits at most for the lock; then it runs without. None
            waits for as long as it takes.
    """

    __slots__ = ("_acquire", "_release", "_try", "_type", "is_owned")

    def __init__(self, patience: float | None = None) -> None:
        rlock: Any = threading.RLock()
        self._type = type(rlock)
        self._acquire: Callable[..., object] = (
            rlock.acquire if patience is None else partial(rlock.acquire, timeout=patience)
        )
        self._try: Callable[[], object] = partial(rlock.acquire, False)  # noqa: FBT003
        self._release: Callable[[], object] = rlock.release
        self.is_owned: Callable[[], bool] = rlock._is_owned
        """Whether this thread has the lock."""

    @property
    def is_stale(self) -> bool:
        """Whether ``threading`` now makes locks of another type: gevent or eventlet patched it."""
        return type(threading.RLock()) is not self._type

    def run(self, action: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Call ``action`` with the lock taken, and return what it returns."""
        if self.is_owned():
            return action(*arguments)
        try:
            if is_finalizing():
                self._try()
            else:
                self._acquire()
            return action(*arguments)
        finally:
            # Not contextlib.suppress: a signal handler could raise in a call before the release.
            try:  # noqa: SIM105
                self._release()
            except RuntimeError:  # not taken: a signal handler raised, or patience was at its end
                pass

    def take(self, seconds: float) -> None:
        """Take the lock, or give up after so long: for hooks that are called in pairs."""
        self._acquire(timeout=seconds)

    def give_back(self) -> None:
        """Undo :meth:`take`. It is no error if the lock was not taken."""
        try:  # noqa: SIM105
            self._release()
        except RuntimeError:
            pass

    def condition(self) -> Condition:
        """Make a condition of this lock."""
        return Condition(self)


class Condition:
    """Lets threads that have the lock wait for each other; use it inside of :meth:`Lock.run`.

    As :class:`threading.Condition`, but an exception raised by a signal handler leaves no waiter
    behind that would swallow a later :meth:`notify`.
    """

    __slots__ = ("_lock", "_waiters")

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._waiters: deque[Any] = deque()

    def wait(self, seconds: float | None = None) -> bool:
        """Release the lock until somebody notifies, or for so long; whether somebody did.

        It returns with the lock taken. If a signal handler raises, the lock may not be taken.
        """
        lock = self._lock
        waiters = self._waiters
        waiter = threading.Lock()
        waiter.acquire()
        notified = False
        try:
            waiters.append(waiter)
            lock._release()
            notified = waiter.acquire(timeout=-1 if seconds is None else max(0.0, seconds))
            return notified
        finally:
            try:
                if not notified:
                    waiters.remove(waiter)
            except ValueError:
                self.notify()  # it was notified after all, too late: another thread acts on it
            finally:
                if not lock.is_owned():
                    lock._acquire()

    def notify(self) -> None:
        """Wake the thread that has waited longest, if any waits."""
        try:
            waiter = self._waiters.popleft()
        except IndexError:
            return
        waiter.release()

    def notify_all(self) -> None:
        """Wake all threads that wait."""
        while self._waiters:
            self.notify()
