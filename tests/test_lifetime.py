"""A fork takes the locks of all writers, whose threads may take them in another order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from lorc_eventlog.lifetime import take_all


class WatchedLock:
    """A lock that tells when somebody has it."""

    def __init__(self, on_acquire: Callable[[], object] = lambda: None) -> None:
        self._lock = threading.RLock()
        self._on_acquire = on_acquire

    def acquire(self, blocking: bool = True) -> bool:
        taken = self._lock.acquire(blocking)
        if taken:
            self._on_acquire()
        return taken

    def release(self) -> None:
        self._lock.release()


def test_a_thread_that_takes_the_locks_in_another_order_stops_nobody() -> None:
    first_is_taken, second_is_taken = threading.Event(), threading.Event()
    first: Any = WatchedLock(first_is_taken.set)
    second: Any = WatchedLock()
    third: Any = WatchedLock()

    def take_second_and_then_first() -> None:
        second.acquire()
        second_is_taken.set()
        first_is_taken.wait(10)  # the other has the one and wants the other
        first.acquire()
        first.release()
        second.release()

    thread = threading.Thread(target=take_second_and_then_first)
    thread.start()
    second_is_taken.wait(10)
    take_all([first, third, second])
    thread.join(10)
    assert not thread.is_alive()
    for lock in (first, second, third):
        assert is_held(lock)
        lock.release()


def is_held(lock: Any) -> bool:
    tries: list[bool] = []
    thread = threading.Thread(target=lambda: tries.append(lock.acquire(blocking=False)))
    thread.start()
    thread.join()
    return tries == [False]


def test_without_writers_there_is_nothing_to_take() -> None:
    take_all([])
