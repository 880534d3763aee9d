"""Gives the child of a fork a package that starts anew, however the fork was made.

A child has only the thread that forked, a copy of every lock as it was, and the parent's
connections. Python's own forks call hooks; a fork in C, as uWSGI makes it, calls none. So each log
call looks whether it is in a new process: at a page of memory that the kernel wipes in every child.

What must start anew in a child is a :class:`Participant`. What must not be half done at the moment
of a fork goes through a :class:`ForkLock`.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Protocol, TypeVar, TypeVarTuple

from lorc_eventlog.diagnostics import say_on_stderr
from lorc_eventlog.lifecycle.locks import Lock

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

MADV_WIPEONFORK = 18
"""Linux 4.14: the child of a fork finds zeros in the page. Python has no name for it."""

TRIES = 3
"""So often does a participant that raises begin anew."""


class Participant(Protocol):
    """Something that a child of a fork must not go on with as it was in the parent."""

    def restart_in_child(self) -> None:
        """Begin anew in the child: with new locks, and with nothing that belongs to the parent.

        A signal handler may log in the middle of it, which calls it once more. So build the new
        state first, and put it in place by a single assignment unless it is in place already.
        """


class _Page(Protocol):
    """The first byte is not zero in the process that wrote it, and zero in each child of it."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


class _PidPage:
    """Stands in for the page where the kernel wipes none; reading it is a system call."""

    def __init__(self) -> None:
        self._pid = 0

    def __getitem__(self, index: int, /) -> int:
        return self._pid == os.getpid()

    def __setitem__(self, index: int, value: int, /) -> None:
        self._pid = os.getpid() if value else 0


def make_page() -> _Page:
    """Make a page that is wiped in the children of this process."""
    if sys.platform == "linux":
        try:
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(MADV_WIPEONFORK)
        except OSError:
            return _PidPage()
        return page
    return _PidPage()


page = make_page()
"""``page[0]`` is zero in a child that has not started anew. The hot path reads it itself."""

page[0] = 1
_home = os.getpid()
"""The process that the package last started anew in."""


def has_forked() -> bool:
    """Whether this process is a child of a fork and has not started anew yet."""
    return not page[0]


_ORDERLY = frozenset(
    {
        "billiard.popen_fork",
        "gunicorn.arbiter",
        "multiprocessing.forkserver",
        "multiprocessing.popen_fork",
    }
)
"""Modules that fork and let the child end in order: our hooks run before it is gone."""

_may_end_at_once = False
_generation = 0


def generation() -> int:
    """Tell processes apart: another number than in the parent, once this one starts anew.

    Not the number of the process, which a child in a PID namespace of its own may share with its
    parent: in a container both are 1.
    """
    return _generation


def may_end_at_once() -> bool:
    """Whether this is a child that none of the known pools and servers forked.

    Whoever forks for each job (rq, PySpark, Airflow, runners of one's own) mostly ends the child by
    ``os._exit``: no hook of ours runs there.
    """
    return _may_end_at_once


def _is_forked_by_a_stranger() -> bool:
    if "uwsgi" in sys.modules:
        return False
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  who called os.fork is in the stack
    while frame is not None:
        if frame.f_globals.get("__name__") in _ORDERLY:
            return False
        frame = frame.f_back
    return True


_first: list[Participant] = []
_participants: weakref.WeakSet[Participant] = weakref.WeakSet()


def register_first(participant: Participant) -> None:
    """Start ``participant`` anew in children before all others; it is never forgotten."""
    _first.append(participant)


def register(participant: Participant) -> None:
    """Start ``participant`` anew in the children of this process, for as long as it exists."""
    restart_if_forked()
    _participants.add(participant)


class _Restart:
    """How far one process is with starting anew."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._left: list[Participant] | None = None

    @property
    def is_here(self) -> bool:
        """Whether this thread is in the middle of it."""
        return self._lock.is_owned()

    def run(self) -> None:
        self._lock.run(self._go_on)

    def _go_on(self) -> None:
        if page[0]:
            return  # another thread did it
        if self._left is None:
            global _generation, _may_end_at_once  # noqa: PLW0603  before the first part asks
            _generation += 1
            _may_end_at_once = _is_forked_by_a_stranger()
            self._left = [*_first, *_participants]
        # Signal safety: a participant leaves the list when it has started anew. A signal handler
        # that raises, or logs, in the middle of one begins with that one again.
        while self._left:
            participant = self._left[0]
            _restart(participant)
            if self._left and self._left[0] is participant:
                del self._left[0]
        global _home  # noqa: PLW0603  one assignment
        _home = os.getpid()
        page[0] = 1
        _restarts.clear()


def _restart(participant: Participant) -> None:
    error: Exception | None = None
    for _ in range(TRIES):
        try:
            participant.restart_in_child()
        except Exception as raised:  # noqa: BLE001  no log call may raise; a signal handler may
            error = raised
        else:
            return
    say_on_stderr(
        f"{type(participant).__name__} did not start anew in the child of a fork: "
        f"{type(error).__name__}"
    )


_restarts: dict[int, _Restart] = {}
"""By process: what the parent had begun, and the lock that it used, is not the child's."""


def _is_restarting_here() -> bool:
    restart = _restarts.get(os.getpid())
    return restart is not None and restart.is_here


def restart_if_forked() -> None:
    """Start anew if this process is a child that has not: once, by whichever thread comes first."""
    if not page[0]:
        _restarts.setdefault(os.getpid(), _Restart()).run()


class ForkLock:
    """A lock that a fork takes first, so that no child begins in the middle of an action.

    Neither side waits for ever. A fork that has this lock may wait, in a hook of somebody else, for
    a lock of the thread that wants this one; and the other way round. The child has a new lock.

    Args:
        fork_waits: Seconds that a fork waits at most for an action; then it forks anyway.
        others_wait: Seconds that an action waits at most for a fork; then it begins anyway.
    """

    def __init__(self, *, fork_waits: float, others_wait: float = 1.0) -> None:
        self._fork_waits = fork_waits
        self._others_wait = others_wait
        self._forking: set[int] = set()
        self._lock = Lock(others_wait)
        _fork_locks.append(self)
        register_first(self)

    def run(self, action: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Call ``action`` while no fork comes in between, and return what it returns."""
        if not page[0] and not _is_restarting_here():
            restart_if_forked()
        return self._lock.run(action, *arguments)

    @property
    def is_owned(self) -> bool:
        """Whether this thread is in the middle of an action."""
        return self._lock.is_owned()

    def before_fork(self) -> None:
        """Wait for the action of another thread."""
        if not self._lock.is_owned():
            # Signal safety: noted before it is taken. What was not taken is not given back.
            self._forking.add(threading.get_ident())
            self._lock.take(self._fork_waits)

    def after_fork_in_parent(self) -> None:
        """Let actions go on."""
        if threading.get_ident() in self._forking:
            self._lock.give_back()
            self._forking.discard(threading.get_ident())

    def restart_in_child(self) -> None:
        """Forget the thread that may have had it: it is not here."""
        self._lock = Lock(self._others_wait)
        self._forking.clear()


_fork_locks: list[ForkLock] = []


def _before_fork() -> None:
    for lock in _fork_locks:
        lock.before_fork()


def _after_fork_in_parent() -> None:
    for lock in reversed(_fork_locks):
        lock.after_fork_in_parent()


def _after_fork_in_child() -> None:
    if _home != os.getpid():
        # Hazard: not every system that takes the advice wipes the page. QEMU before version 7.2,
        # which runs images for another processor, ignores it.
        page[0] = 0
    restart_if_forked()


# The writer's lock is not held over a fork: other hooks take locks of their own, such as logging's,
# that a thread may have which waits for the writer.
if hasattr(os, "register_at_fork"):  # pragma: no branch  not on Windows
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
