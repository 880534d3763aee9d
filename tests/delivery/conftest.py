"""What several tests of the delivery engine need."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Calling it ends what this makes true: that no thread can be started."""

    def start(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    patched = pytest.MonkeyPatch()
    start_of_threads = threading.Thread.start

    def guarded(self: threading.Thread) -> None:
        if "lorc_eventlog" in self.name:
            start(self)
        start_of_threads(self)

    patched.setattr(threading.Thread, "start", guarded)
    monkeypatch.setattr(threading, "_nothing", None, raising=False)
    return patched.undo
