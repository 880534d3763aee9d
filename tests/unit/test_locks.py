"""The lock that signal handlers cannot leave behind.

LORC_EVENTLOG_SOAK=seconds aims raising signal handlers at it for so long.
"""

from __future__ import annotations

import ast
import os
import queue
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import lorc_eventlog
from harness import eventually
from lorc_eventlog.lifecycle import locks
from lorc_eventlog.lifecycle.locks import Condition, Lock

TRIES = 3000
SOAK = float(os.environ.get("LORC_EVENTLOG_SOAK", "0"))


class OutOfTimeError(Exception):
    """What the signal handler raises."""


def is_free(lock: Lock) -> bool:
    """Whether another thread gets it."""
    taken: queue.SimpleQueue[bool] = queue.SimpleQueue()
    thread = threading.Thread(target=lock.run, args=(taken.put, True), daemon=True)
    thread.start()
    try:
        return taken.get(timeout=10)
    except queue.Empty:
        return False


@contextmanager
def raising_signals() -> Iterator[Callable[[Callable[[], object]], bool]]:
    """Gives a function that repeats a call until a signal handler ends it; whether one did."""

    def raise_it(*_: object) -> None:
        raise OutOfTimeError

    # Hazard: on 3.12 and 3.13 the jump back of a loop that ends a try block lies outside of it, and
    # what a signal handler raises there is not caught. So the loop has a function of its own.
    def repeat(call: Callable[[], object]) -> None:
        until = time.monotonic() + 0.1
        signal.setitimer(signal.ITIMER_REAL, random.uniform(20e-6, 200e-6))
        while time.monotonic() < until:
            call()
            call()
            call()
            call()

    def interrupt(call: Callable[[], object]) -> bool:
        try:
            repeat(call)
        except OutOfTimeError:
            return True
        return False

    previous = signal.signal(signal.SIGALRM, raise_it)
    try:
        yield interrupt
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_it_runs_an_action_with_arguments_and_returns_what_it_returns() -> None:
    assert Lock().run(divmod, 7, 2) == (3, 1)


def test_it_is_free_after_an_action_and_after_one_that_raised() -> None:
    lock = Lock()
    lock.run(int)
    assert is_free(lock)
    with pytest.raises(RuntimeError, match="of the action"):
        lock.run(raise_error, RuntimeError("of the action"))
    assert is_free(lock)


def raise_error(error: BaseException) -> None:
    raise error


def test_actions_of_several_threads_exclude_each_other() -> None:
    lock, inside, most = Lock(), [0], [0]

    def count() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.0001)
        inside[0] -= 1

    def work() -> None:
        for _ in range(50):
            lock.run(count)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_an_inner_run_gives_up_nothing() -> None:
    lock = Lock()

    def outer() -> None:
        lock.run(int)
        with pytest.raises(ValueError, match="inner"):
            lock.run(raise_error, ValueError("inner"))
        assert lock.is_owned()

    lock.run(outer)
    assert is_free(lock)


def test_a_condition_wakes_the_one_that_waits_longest_and_then_all() -> None:
    lock, order = Lock(), queue.SimpleQueue[int]()
    condition = lock.condition()

    def wait(number: int) -> None:
        if lock.run(condition.wait, 30):
            order.put(number)

    threads = []
    for number in range(3):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        eventually(lambda number=number: len(condition._waiters) == number + 1)  # type: ignore[misc]
    lock.run(condition.notify)
    assert order.get(timeout=10) == 0
    assert len(condition._waiters) == 2
    lock.run(condition.notify_all)
    assert {order.get(timeout=10), order.get(timeout=10)} == {1, 2}
    for thread in threads:
        thread.join()
    lock.run(condition.notify)  # wakes nobody


def test_a_wait_ends_by_the_clock_and_leaves_no_waiter() -> None:
    lock = Lock()
    condition = lock.condition()
    assert lock.run(condition.wait, 0.001) is False
    assert lock.run(condition.wait, -1) is False
    assert not condition._waiters
    assert is_free(lock)


def test_a_wait_without_a_time_ends_when_somebody_notifies() -> None:
    lock = Lock()
    condition = lock.condition()
    thread = threading.Thread(target=lambda: lock.run(lambda: lock.run(condition.wait)))
    thread.start()
    eventually(lambda: condition._waiters)
    assert is_free(lock)  # although it is an inner run that waits
    lock.run(condition.notify)
    thread.join(10)
    assert not thread.is_alive()


def test_a_notification_that_comes_too_late_goes_to_another() -> None:
    """The waiter was chosen just when its time was over."""
    lock = Lock()
    condition = lock.condition()
    woken: queue.SimpleQueue[bool] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: woken.put(lock.run(condition.wait, 30)))
    thread.start()
    eventually(lambda: condition._waiters)

    class Late(list[threading.Lock]):
        def remove(self, waiter: threading.Lock) -> None:
            super().remove(waiter)
            raise ValueError  # as if notify had taken it

        def popleft(self) -> threading.Lock:
            return self.pop(0)

    condition._waiters = Late(condition._waiters)  # type: ignore[assignment]
    assert lock.run(condition.wait, 0) is False
    assert woken.get(timeout=10)
    thread.join()


def test_a_wait_that_ends_before_it_begins_keeps_the_lock() -> None:
    """A signal handler raised before the lock was released."""
    lock = Lock()
    condition = lock.condition()

    class Interrupted(deque[threading.Lock]):
        def append(self, _waiter: threading.Lock) -> None:
            raise OutOfTimeError

    condition._waiters = Interrupted()

    def action() -> bool:
        with pytest.raises(OutOfTimeError):
            condition.wait()
        return lock.is_owned()

    assert lock.run(action)
    assert is_free(lock)


def test_a_lock_is_stale_when_threading_makes_locks_of_another_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = Lock()
    assert not lock.is_stale
    monkeypatch.setattr(locks, "threading", SimpleNamespace(RLock=threading.Lock))
    assert lock.is_stale


# Signal handlers that raise


def runs(lock: Lock, _condition: Condition) -> None:
    lock.run(int)


def runs_nested(lock: Lock, _condition: Condition) -> None:
    lock.run(lambda: lock.run(int))


def waits(lock: Lock, condition: Condition) -> None:
    lock.run(condition.wait, 0.00001)


def notifies(lock: Lock, condition: Condition) -> None:
    lock.run(condition.notify)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals")
@pytest.mark.parametrize("use", [runs, runs_nested, waits, notifies])
@pytest.mark.parametrize("others", [0, 2], ids=["alone", "with other threads"])
@pytest.mark.timeout(120 + 2 * SOAK)
@pytest.mark.skipif(
    sys.gettrace() is not None,
    reason="a tracer adds moments at which a signal handler may raise, as none has outside of it",
)
def test_a_signal_handler_that_raises_leaves_no_lock_and_no_waiter_behind(
    use: Callable[[Lock, Condition], None], others: int
) -> None:
    lock = Lock()
    condition = lock.condition()
    stop = threading.Event()

    def disturb() -> None:
        while not stop.wait(0.0002):
            lock.run(condition.notify)

    threads = [threading.Thread(target=disturb) for _ in range(others)]
    for thread in threads:
        thread.start()
    interrupted = tries = 0
    until = time.monotonic() + SOAK / 10
    try:
        with raising_signals() as interrupt:
            while tries < TRIES // 10 or time.monotonic() < until:
                tries += 1
                interrupted += interrupt(lambda: use(lock, condition))
                assert not lock.is_owned()
                assert not condition._waiters
                assert tries % 100 or is_free(lock)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert is_free(lock)
    assert interrupted > tries / 2


# In the source

PACKAGE = Path(lorc_eventlog.__file__).parent
MAKE_LOCKS = {
    "lifecycle/locks.py",
    "bigquery/connections.py",  # for Google's client, after a fork
}
LOCKS = {f"threading.{kind}" for kind in ("Lock", "RLock", "Condition", "Semaphore")}


def locks_taken_by_hand(tree: ast.AST) -> Iterator[str]:
    """``with`` on a bare name or attribute is what a lock looks like, and nothing else here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            for item in node.items:
                if not isinstance(item.context_expr, ast.Call):
                    yield f"{node.lineno}: with {ast.unparse(item.context_expr)}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in LOCKS:
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_no_with_takes_a_lock_and_only_one_module_makes_locks() -> None:
    """The commands have no locks, and a ``with`` of their own."""
    offenders = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        if module not in MAKE_LOCKS and not module.startswith("cli/"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            offenders += [f"{module}:{offence}" for offence in locks_taken_by_hand(tree)]
    assert offenders == []


def test_that_check_finds_what_it_forbids() -> None:
    source = "with self._lock, suppress(E): pass\nx = threading.RLock()\nwith open(x): pass"
    assert list(locks_taken_by_hand(ast.parse(source))) == [
        "1: with self._lock",
        "2: threading.RLock",
    ]


def test_when_python_has_ended_nobody_waits_for_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has stopped for ever may have it."""
    lock = Lock()
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        taken.set()
        done.wait(60)

    thread = threading.Thread(target=lock.run, args=(hold,))
    thread.start()
    assert taken.wait(60)
    monkeypatch.setattr(locks, "is_finalizing", lambda: True)
    assert lock.run(lambda: "done") == "done"
    done.set()
    thread.join()
    assert lock.run(lock.is_owned)
    assert is_free(lock)
