"""What several tests of the delivery engine need."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import pytest

from queue_clock import Clock


@pytest.fixture
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter picks a pause from 0 to a limit; here always the limit."""
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def no_threads() -> Iterator[Callable[[], None]]:
    """While a test runs, no thread of ours can be started; calling it ends that."""
    start = threading.Thread.start

    def start_others(thread: threading.Thread) -> None:
        if "lorc_eventlog" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(threading.Thread, "start", start_others)
        yield patched.undo
