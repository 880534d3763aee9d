"""The threads that send: when they start, what they wait for, and when they leave."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from lorc_eventlog.lifecycle import clock, sigterm
from lorc_eventlog.lifecycle import exit as process_exit
from lorc_eventlog.lifecycle.signals import background_thread

if TYPE_CHECKING:
    from lorc_eventlog.delivery.courier import Courier, Task
    from lorc_eventlog.delivery.inbox import Inbox
    from lorc_eventlog.delivery.queue import DeliveryQueue
    from lorc_eventlog.lifecycle.locks import Lock

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

MAX_SENDERS = 8
"""Threads that send at the same time: 20,000 events a second at 100 ms each need four."""

REQUEST_TIMEOUT = 30.0
"""Seconds that a request takes at most."""

IDLE_SECONDS = 5.0
"""A sender leaves after this long without work, if another looks or nothing is buffered."""

SHORTEST_WATCH = 0.05
"""Seconds. A sender looks for new events by the clock no more often than that."""


class Senders:
    """Daemon threads that run the courier's tasks. They start when there is work.

    The dispatcher's lock guards every method but :meth:`run` and ``_work``, which is the thread.

    One idle sender looks for new events by the clock, every ``flush_interval``. To be woken by a
    log call would cost that call, and those that wait for the interpreter while the sender runs.

    Args:
        lock: The dispatcher's lock.
        inbox: Where new rows are.
        queue: Decides what to send next.
        courier: Chooses the tasks.
        flush_interval: Seconds after which a batch is sent although it is not full.
        most: How many threads there are at the same time; with 0, whoever flushes sends.
        begins: Called before a thread is started.
        ended: Called without the lock by a thread that has left. It also keeps the dispatcher
            alive for as long as a thread runs.
    """

    def __init__(
        self,
        lock: Lock,
        inbox: Inbox,
        queue: DeliveryQueue,
        courier: Courier,
        *,
        flush_interval: float,
        most: int,
        begins: Callable[[], object],
        ended: Callable[[], object],
    ) -> None:
        self.most = most
        self.is_closed = False
        """Whether they leave as soon as nothing is buffered."""
        self.is_to_look = False
        """Whether a nested call left a row that nobody may look for."""
        self._inbox = inbox
        self._queue = queue
        self._courier = courier
        self._flush_interval = flush_interval
        self._begins = begins
        self._ended = ended
        self._lock = lock
        self._called = lock.condition()
        self._threads: set[threading.Thread] = set()
        self._waiting = self._watching = 0

    def run(self, action: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Run ``action`` with the lock; then see to rows that came by nested calls.

        A signal handler or a destructor may log in the middle of ``action``. Its row goes to the
        inbox, whatever the limit, so that the queue is never entered twice.
        """
        try:
            return self._lock.run(action, *arguments)
        finally:
            came = self._inbox.rows or self.is_to_look
            if came and not self._inbox.limit and not self._lock.is_owned():
                self._lock.run(self.see_to_inbox)

    def see_to_inbox(self) -> None:
        """Move new rows into the queue, and have them looked at in time."""
        self.is_closed = self.is_to_look = False
        self._inbox.collect()
        self.call_lookout()
        self.share_work()
        self.open_inbox()

    def others(self) -> set[threading.Thread]:
        """Return the threads but the one that calls."""
        return self._threads - {threading.current_thread()}

    def to_join(self) -> set[threading.Thread]:
        """Return the threads but the one that calls, if they can be joined.

        Hazard: under gevent the join of a thread that is older than its patch raises, or goes on
        long after the thread has ended.
        """
        return set() if self._lock.is_stale else self.others()

    def ensure(self) -> bool:
        """Start one if there is none; False if that cannot be."""
        return bool(self._threads) or self._start()

    def call(self) -> bool:
        """Have one look for work, and start another if none is free.

        Returns:
            False if there is none and none can be started.
        """
        if self._waiting:
            self._called.notify()
            return True
        return (len(self._threads) < self.most and self._start()) or bool(self._threads)

    def call_all(self) -> None:
        """Have all that wait look for work."""
        self._called.notify_all()

    def call_lookout(self) -> None:
        """Call one unless one looks by the clock."""
        if not self._watching:
            self.call()

    def share_work(self) -> None:
        """Call one if there is a full batch for it."""
        queue = self._queue
        if queue.holds_full_batch and not queue.in_outage and self._courier.is_connected:
            self.call()

    def open_inbox(self, *, is_watched: bool = False) -> None:
        """Let log calls leave their rows without the lock, if one looks soon."""
        all_are_busy = len(self._threads) >= self.most and not self._waiting
        self._inbox.open(is_watched=is_watched or self._watching > 0 or all_are_busy)

    def _start(self) -> bool:
        self._begins()
        process_exit.watch_pools()
        sigterm.request.make_again()
        if (thread := _make_thread(self._work, len(self._threads) + 1)) is None:
            return False
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down (3.12+), or out of threads
            self._threads.discard(thread)
            return False
        except BaseException:  # raised by a signal handler, such as the SystemExit for SIGTERM
            self._threads.discard(thread)
            raise
        return True

    def _work(self) -> None:
        while True:
            try:
                task = self.run(self._next_task)
                if task is None:
                    self._ended()
                    return
                task()
            except BaseException as error:  # noqa: BLE001
                # Hazard: an exception that leaves a sender strands its batch, and its traceback
                # shows rows. So nothing leaves it, not even SystemExit.
                self._survive(error)

    def _survive(self, error: BaseException) -> None:
        try:
            self._lock.run(self._courier.put_down, error)
            # A fault of ours must not make a busy loop.
            self._lock.run(self._called.wait, SHORTEST_WATCH)
        except BaseException:  # noqa: BLE001, S110
            pass

    def _next_task(self) -> Task | None:
        self._threads.add(threading.current_thread())  # its start may have been interrupted
        self._courier.put_down()
        idle_since = clock.monotonic()
        while True:
            self._inbox.collect()
            now = clock.monotonic()
            task, wait = self._courier.choose(now, REQUEST_TIMEOUT)
            if task is not None:
                self.share_work()
                if self._queue.held > self._courier.on_its_way:
                    self.call_lookout()  # a hung request must not hold up what is due later
                self.open_inbox()
                return task
            idle = idle_since + IDLE_SECONDS - now
            if self._may_leave(wait, idle):
                self._threads.discard(threading.current_thread())
                self.open_inbox()
                return None
            self._wait(wait, idle)

    def _may_leave(self, wait: float | None, idle: float) -> bool:
        if not self._queue.held and (self.is_closed or (wait is None and idle <= 0)):
            return True
        return idle <= 0 and self._watching > 0

    def _wait(self, wait: float | None, idle: float) -> None:
        """Wait to be called, or until there may be something to do."""
        tick = max(self._flush_interval, SHORTEST_WATCH)
        is_due_soon = wait is not None and wait <= tick
        by_the_clock = not self._watching and (
            is_due_soon
            or self._queue.held > 0
            or (self._flush_interval >= SHORTEST_WATCH and idle > 0)
        )
        seconds = wait if is_due_soon or not by_the_clock else tick
        if idle > 0:
            seconds = idle if seconds is None else min(seconds, idle)
        self.open_inbox(is_watched=by_the_clock)
        self._waiting += 1
        self._watching += by_the_clock
        try:
            self._called.wait(0.0 if self._inbox.rows else seconds)  # it was shut just too late
        finally:
            self._waiting -= 1
            self._watching -= by_the_clock


def _make_thread(work: Callable[[], object], number: int) -> threading.Thread | None:
    """Make a thread, if it could be started."""
    # Hazard: a destructor may flush when Python has all but ended. Before Python 3.12, the start of
    # a thread then waits for ever.
    if not sys.is_finalizing():
        # A subinterpreter may allow no daemon threads.
        with contextlib.suppress(RuntimeError):
            return background_thread(work, f"lorc_eventlog-sender-{number}")
    return None
