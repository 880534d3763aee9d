"""A fork does not come in the middle of a message, whose stream the child would find locked."""

from __future__ import annotations

import threading

import pytest

from lorc_eventlog.diagnostics import ForkGuard


def test_a_fork_waits_for_the_message_that_is_being_written() -> None:
    guard = ForkGuard()
    writing, forked = threading.Event(), threading.Event()

    def fork() -> None:
        writing.wait(10)
        guard.before_fork()
        forked.set()
        guard.after_fork_in_parent()

    forking = threading.Thread(target=fork)
    forking.start()
    with guard.held():
        writing.set()
        assert not forked.wait(0.05)
    assert forked.wait(10)
    forking.join()
    with guard.held():  # the fork let go of it
        pass


def test_a_handler_that_hangs_does_not_hold_up_a_fork_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ForkGuard, "PATIENCE", 0.01)
    guard = ForkGuard()
    hanging, end = threading.Event(), threading.Event()

    def hang() -> None:
        with guard.held():
            hanging.set()
            end.wait(10)

    handler = threading.Thread(target=hang)
    handler.start()
    assert hanging.wait(10)
    guard.before_fork()
    guard.after_fork_in_parent()
    guard.after_fork_in_child()
    with guard.held():  # the child has its own
        pass
    end.set()
    handler.join()
