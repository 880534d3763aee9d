"""What starts anew in a child does so once, whoever comes first and whatever interrupts it.

Here nothing forks: the page is wiped by hand.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable

import pytest

from lorc_eventlog.lifecycle import exit as process_exit
from lorc_eventlog.lifecycle import fork


class Part:
    """Counts how often it began anew; ``action`` may be what goes wrong meanwhile."""

    def __init__(self, action: Callable[[], object] | None = None) -> None:
        self.restarts = 0
        self.action = action

    def restart_in_child(self) -> None:
        self.restarts += 1
        if self.action is not None:
            self.action()


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> bytearray:
    """No participants but those of the test, and the page of a child."""
    page = bytearray(b"\1")
    monkeypatch.setattr(fork, "page", page)
    monkeypatch.setattr(fork, "_first", [])
    monkeypatch.setattr(fork, "_participants", weakref.WeakSet())
    # The tests that come later in this process are in no child.
    monkeypatch.setattr(fork, "_may_end_at_once", False)
    return page


def test_nothing_happens_where_nothing_has_forked() -> None:
    part = Part()
    fork.register(part)
    assert not fork.has_forked()
    fork.restart_if_forked()
    assert part.restarts == 0


def test_each_part_begins_anew_once(page: bytearray) -> None:
    order: list[int] = []
    parts = [Part(lambda: order.append(1)), Part(lambda: order.append(2))]
    fork.register(parts[1])
    fork.register_first(parts[0])
    page[0] = 0
    assert fork.has_forked()
    fork.restart_if_forked()
    fork.restart_if_forked()
    assert not fork.has_forked()
    assert order == [1, 2]
    assert fork._restarts == {}


def test_a_part_that_is_made_in_a_child_does_not_begin_anew(page: bytearray) -> None:
    old = Part()
    fork.register(old)
    page[0] = 0
    new = Part()
    fork.register(new)
    assert (old.restarts, new.restarts) == (1, 0)


def test_a_part_that_nobody_refers_to_is_forgotten(page: bytearray) -> None:
    fork.register(Part())
    page[0] = 0
    fork.restart_if_forked()
    assert not list(fork._participants)


def test_threads_that_come_together_wait_for_the_first(page: bytearray) -> None:
    begun, end = threading.Event(), threading.Event()

    def take_long() -> None:
        begun.set()
        assert end.wait(10)

    part = Part(take_long)
    fork.register(part)
    page[0] = 0
    done: list[bool] = []

    def log() -> None:
        fork.restart_if_forked()
        done.append(fork.has_forked())

    threads = [threading.Thread(target=log) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    assert done == []
    end.set()
    for thread in threads:
        thread.join()
    assert part.restarts == 1
    assert done == [False] * 8


def test_a_log_call_in_the_middle_of_it_finds_all_begun_anew(page: bytearray) -> None:
    """A signal handler that logs, for instance."""
    seen: list[tuple[int, int]] = []

    def log() -> None:
        if first.restarts == 1:
            fork.restart_if_forked()
            seen.append((first.restarts, last.restarts))

    first, last = Part(log), Part()
    fork.register_first(first)
    fork.register(last)
    page[0] = 0
    fork.restart_if_forked()
    assert seen == [(2, 1)]
    assert (first.restarts, last.restarts) == (2, 1)
    assert not fork.has_forked()


def test_what_a_signal_handler_ends_goes_on_where_it_was(page: bytearray) -> None:
    def interrupt() -> None:
        if second.restarts == 1:
            raise KeyboardInterrupt

    first, second, third = Part(), Part(interrupt), Part()
    for part in (first, second, third):
        fork.register_first(part)
    page[0] = 0
    with pytest.raises(KeyboardInterrupt):
        fork.restart_if_forked()
    assert fork.has_forked()
    fork.restart_if_forked()
    assert [part.restarts for part in (first, second, third)] == [1, 2, 1]


def test_a_part_that_raises_begins_again(
    page: bytearray, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        if part.restarts < fork.TRIES:
            raise ValueError

    part = Part(fail)
    fork.register(part)
    page[0] = 0
    fork.restart_if_forked()
    assert part.restarts == fork.TRIES
    assert capsys.readouterr().err == ""


def test_a_part_that_goes_on_raising_holds_up_nothing(
    page: bytearray, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError

    broken, last = Part(fail), Part()
    fork.register_first(broken)
    fork.register(last)
    page[0] = 0
    fork.restart_if_forked()
    assert (last.restarts, fork.has_forked()) == (1, False)
    said = "Part did not start anew in the child of a fork: ValueError"
    assert capsys.readouterr().err == f"lorc_eventlog: {said}\n"


def test_a_child_of_a_child_begins_from_the_first_part(
    page: bytearray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its parent had begun is not its own."""
    first = Part()

    def fork_again() -> None:
        if second.restarts == 1:
            monkeypatch.setattr(os, "getpid", lambda: -1)
            fork.restart_if_forked()

    second = Part(fork_again)
    fork.register_first(first)
    fork.register_first(second)
    page[0] = 0
    fork.restart_if_forked()
    assert first.restarts == 2


@pytest.fixture
def fork_lock(monkeypatch: pytest.MonkeyPatch) -> fork.ForkLock:
    monkeypatch.setattr(fork, "_fork_locks", [])
    return fork.ForkLock(fork_waits=10)


def test_an_action_that_no_fork_may_interrupt_begins_when_all_has_begun_anew(
    page: bytearray, fork_lock: fork.ForkLock
) -> None:
    part = Part()
    fork.register(part)
    page[0] = 0
    assert fork_lock.run(lambda: part.restarts) == 1


def test_a_part_that_begins_anew_may_run_such_an_action_and_does_not_begin_again(
    page: bytearray, fork_lock: fork.ForkLock
) -> None:
    seen: list[bool] = []
    part = Part(lambda: seen.append(fork_lock.run(fork.has_forked)))
    fork.register(part)
    page[0] = 0
    fork.restart_if_forked()
    assert (part.restarts, seen) == (1, [True])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux wipes pages")
def test_where_the_kernel_wipes_no_page_the_process_id_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(fork.make_page(), mmap.mmap)

    class NoWiping(mmap.mmap):
        def madvise(self, *_: object) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", NoWiping)
    page = fork.make_page()
    assert not page[0]
    page[0] = 1
    assert page[0]
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        assert not page[0]
    page[0] = 0
    assert not page[0]


def test_elsewhere_the_process_id_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    page = fork.make_page()
    page[0] = 1
    assert page[0]
    assert not isinstance(page, mmap.mmap)


def test_a_child_whose_page_was_not_wiped_begins_anew_all_the_same(
    page: bytearray, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Part()
    fork.register(part)
    monkeypatch.setattr(fork, "_home", -1)
    fork._after_fork_in_child()
    fork._after_fork_in_child()
    assert (part.restarts, page[0]) == (1, 1)


def test_what_is_registered_for_the_exit_in_the_middle_of_a_restart_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_exit, "_participants", weakref.WeakSet())
    monkeypatch.setattr(process_exit, "_is_ending", True)
    of_parent, of_child = ToFinish(), ToFinish()
    process_exit.register(of_parent)
    registry = process_exit._Registry()
    monkeypatch.setattr(fork, "_generation", fork.generation() + 1)
    registry.restart_in_child()
    process_exit.register(of_child)
    registry.restart_in_child()  # as the call does that a signal handler interrupted
    assert (of_parent.finished, of_child.finished) == (1, 0)
    process_exit.finish_all()
    assert (of_parent.finished, of_child.finished) == (1, 1)


class ToFinish:
    close_timeout = 1.0
    finished = 0

    def hasten(self, now: float) -> None:
        """Nothing could be put off."""

    def finish(self, deadline: float) -> None:
        assert deadline > 0
        self.finished += 1
