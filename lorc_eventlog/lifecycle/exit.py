"""Delivers pending events before the process ends, in whichever way Python code can end it.

Python's exit functions do not run in the processes of multiprocessing, billiard and Celery, which
end by ``os._exit``. Each of them has a hook of its own, and clears or ignores it in the child of a
fork. So the hooks are looked after in the child, before each fork and when a sender starts.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from lorc_eventlog.lifecycle import clock, fork

POOLS = ("multiprocessing.util", "billiard.util")

LAST = -100
"""The priority of a finalizer that runs after all others, which may log."""


class Participant(Protocol):
    """Something that has to be finished before the process ends."""

    @property
    def close_timeout(self) -> float:
        """How many seconds that may take."""

    def hasten(self, now: float) -> None:
        """Begin at once, without waiting for anything that could be put off."""

    def finish(self, deadline: float) -> None:
        """Finish by ``deadline``, in monotonic seconds. It may be called more than once."""


_participants: weakref.WeakSet[Participant] = weakref.WeakSet()
_is_ending = False


def register(participant: Participant) -> None:
    """Finish ``participant`` before this process ends, if it still exists by then.

    One that is made after all others were finished is finished at once: nobody would do it
    later.
    """
    _participants.add(participant)
    if _is_ending:
        participant.finish(clock.monotonic() + participant.close_timeout)


def finish_all(**_: object) -> None:
    """Finish all: called by atexit, multiprocessing and, with arguments, Celery."""
    global _is_ending  # noqa: PLW0603  one assignment, whole for every thread
    fork.restart_if_forked()  # a child that logged nothing holds what its parent delivers
    _is_ending = True
    started = clock.monotonic()
    ending = _living()
    for participant in ending:
        participant.hasten(started)
    for participant in ending:
        participant.finish(started + participant.close_timeout)


def _living() -> list[Participant]:
    while True:
        with contextlib.suppress(RuntimeError):  # another thread makes one just now
            return list(_participants)


class _Pools:
    """The hooks of multiprocessing, billiard and Celery, as far as they are imported."""

    def __init__(self) -> None:
        self._finalizers: dict[str, Any] = {}
        self._told_of_forks: set[str] = set()

    def watch(self, _: object = None) -> None:
        """Set each hook that is not set, or that a pool has cleared."""
        _run_at_exit()
        for name in POOLS:
            # Another thread may be importing it: then it lacks what it defines last.
            util = sys.modules.get(name)
            if hasattr(util, "register_after_fork") and hasattr(util, "Finalize"):
                self._watch_pool(name, util)
        shutdown = getattr(sys.modules.get("celery.signals"), "worker_process_shutdown", None)
        if shutdown is not None:  # Celery's processes run no finalizers
            shutdown.connect(finish_all, weak=False, dispatch_uid=__name__)

    def _watch_pool(self, name: str, util: Any) -> None:
        if name not in self._told_of_forks:
            self._told_of_forks.add(name)
            # The child's first act is to clear all finalizers, and its second to call these.
            util.register_after_fork(self, _Pools.watch)
        finalizer = self._finalizers.get(name)
        if finalizer is None or not finalizer.still_active():
            self._finalizers[name] = util.Finalize(None, finish_all, exitpriority=LAST)

    def restart_in_child(self) -> None:
        """Forget the finalizers, which do nothing in another process than theirs."""
        self._finalizers = {}


class _Registry:
    """Empty in a child: what the parent has to finish is not the child's."""

    def __init__(self) -> None:
        self._generation = fork.generation()

    def restart_in_child(self) -> None:
        """Forget all."""
        global _is_ending, _participants  # noqa: PLW0603  each assignment is whole for every thread
        fresh: weakref.WeakSet[Participant] = weakref.WeakSet()
        generation = fork.generation()
        # Hazard: a signal handler that logs in the middle of this calls it once more, and what it
        # registered must be kept. So make no call between check and assignments.
        if self._generation != generation:
            _is_ending = False
            _participants = fresh
            self._generation = generation


_pools = _Pools()
watch_pools = _pools.watch


def _before_fork() -> None:
    if "billiard.process" in sys.modules and "billiard.util" not in sys.modules:
        # The child would import it, and clear the finalizers, after a fork hook has logged.
        with contextlib.suppress(ImportError):
            importlib.import_module("billiard.util")
    watch_pools()


fork.register_first(_Registry())
fork.register_first(_pools)

_count_exit_functions: Callable[[], int] = getattr(atexit, "_ncallbacks", lambda: 1)
_exit_functions = 0


def _run_at_exit() -> None:
    """Register with ``atexit``, unless that is done.

    It is done with the import, so that it runs after the exit functions of the application. Airflow
    clears them all in the child that runs a task, and runs those that the child registers.
    """
    global _exit_functions  # noqa: PLW0603  how many there were when it was done
    if not _exit_functions or _count_exit_functions() < _exit_functions:
        atexit.register(finish_all)
        _exit_functions = _count_exit_functions()


_run_at_exit()
if hasattr(os, "register_at_fork"):  # pragma: no branch  not on Windows
    os.register_at_fork(before=_before_fork)
