"""A fork does not come in the middle of what a ForkLock guards."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from harness import fork_and_wait
from lorc_eventlog.lifecycle import fork
from lorc_eventlog.lifecycle.fork import ForkLock
from lorc_eventlog.lifecycle.locks import Lock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> ForkLock:
    """A lock that the forks of this test take, besides those of the package."""
    monkeypatch.setattr(fork, "_fork_locks", [*fork._fork_locks])
    monkeypatch.setattr(fork, "_first", [*fork._first])
    return ForkLock(fork_waits=10, others_wait=30)


@contextmanager
def held(lock: ForkLock) -> Iterator[None]:
    """Meanwhile another thread is in the middle of an action."""
    inside, end = threading.Event(), threading.Event()

    def act() -> None:
        inside.set()
        assert end.wait(30)

    thread = threading.Thread(target=lock.run, args=(act,))
    thread.start()
    assert inside.wait(10)
    try:
        yield
    finally:
        end.set()
        thread.join()


def is_free(lock: ForkLock) -> bool:
    """Whether another thread may act at once."""
    acted: queue.SimpleQueue[bool] = queue.SimpleQueue()
    threading.Thread(target=lock.run, args=(acted.put, True), daemon=True).start()
    try:
        return acted.get(timeout=10)
    except queue.Empty:
        return False


def test_a_fork_waits_for_the_action_of_another_thread(lock: ForkLock) -> None:
    forked = threading.Event()

    def fork_here() -> None:
        assert fork_and_wait(lambda: True) == 0
        forked.set()

    forking = threading.Thread(target=fork_here)
    with held(lock):
        forking.start()
        assert not forked.wait(0.2)
    forking.join()
    assert forked.is_set()
    assert is_free(lock)


def test_a_fork_does_not_wait_for_ever_and_the_child_has_a_lock_of_its_own(lock: ForkLock) -> None:
    lock._fork_waits = 0.01
    with held(lock):
        assert fork_and_wait(lambda: is_free(lock)) == 0
    assert is_free(lock)


def test_an_action_does_not_wait_for_ever_for_a_fork(lock: ForkLock) -> None:
    lock._others_wait = 0.01
    lock.restart_in_child()
    lock.before_fork()
    acting = threading.Thread(target=lock.run, args=(int,))
    acting.start()
    acting.join(10)
    assert not acting.is_alive()
    lock.after_fork_in_parent()
    assert is_free(lock)


def test_an_action_may_fork(lock: ForkLock) -> None:
    def act() -> bool:
        code = fork_and_wait(lambda: is_free(lock))
        return code == 0 and lock.is_owned

    assert lock.run(act)
    assert is_free(lock)


def test_a_fork_whose_hook_did_not_run_gives_back_nothing(lock: ForkLock) -> None:
    lock.after_fork_in_parent()

    def act() -> bool:
        lock.after_fork_in_parent()
        return lock.is_owned

    assert lock.run(act)
    assert is_free(lock)


def test_a_fork_whose_hook_was_interrupted_gives_back_nothing(
    lock: ForkLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Lock, "take", interrupt)
        with pytest.raises(KeyboardInterrupt):
            lock.before_fork()
    lock.after_fork_in_parent()
    assert is_free(lock)
