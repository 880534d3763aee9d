"""What a sender does: one task after another, on whichever thread it is called."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from lorc_eventlog.delivery.schedule import HUNG_AFTER
from lorc_eventlog.events.row import finish_all
from lorc_eventlog.lifecycle import clock

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.transport import Transport
    from lorc_eventlog.delivery.batch import Batch
    from lorc_eventlog.delivery.queue import DeliveryQueue
    from lorc_eventlog.delivery.report import Report
    from lorc_eventlog.delivery.settlement import Settlement
    from lorc_eventlog.lifecycle.locks import Lock

Task = Callable[[], object]

CONNECT_AFTER = 0.05
"""Seconds after the first row. An import would take the interpreter from the call that logs it."""

LONGEST_WAIT = 0.1
"""Seconds. A thread that says something may never end."""


class Courier:
    """Chooses tasks under the dispatcher's lock; the thread that asked runs them without it.

    Hazard: whatever ends a task, ``put_down`` must follow on the same thread, or the batch that
    the thread had in hand is not sent again for a long time.

    Args:
        lock: The dispatcher's lock.
        queue: Decides what to send next.
        transport: Sends it.
        settlement: Applies the outcome.
        report: Says what is noted.
        connect: Does what the first request would have to do first. It is called as soon as there
            is a row, while the sender waits for others: a process that ends soon, or is killed,
            need not wait for the import of Google's client then.
    """

    def __init__(
        self,
        lock: Lock,
        queue: DeliveryQueue,
        transport: Transport,
        settlement: Settlement,
        report: Report,
        connect: Callable[[], object] | None = None,
    ) -> None:
        self._sayer: int | None = None
        """The thread that says something. One at a time: a handler may hang for ever."""
        self._lock = lock
        self._queue = queue
        self._transport = transport
        self._settlement = settlement
        self._report = report
        self._said = lock.condition()
        self._connect = connect
        self._connect_at = math.inf
        self._is_connecting_until = 0.0
        """When to send all the same: whoever connects may hang."""
        self._in_hand: dict[int, Batch] = {}
        """By thread, the batch whose outcome it waits for or applies."""

    @property
    def is_connected(self) -> bool:
        """Whether several requests may be sent at the same time."""
        return self._transport.is_connected

    @property
    def is_at_work_here(self) -> bool:
        """Whether this thread is in the middle of a task: a dead-letter callback calls."""
        return threading.get_ident() in self._in_hand

    @property
    def on_its_way(self) -> int:
        """How many rows are being sent."""
        return sum(len(batch.rows) for batch in self._in_hand.values())

    def reconnect(self) -> None:
        """Send what is sent from now on over new connections. Without the lock."""
        self._transport.reconnect()

    def choose(self, now: float, timeout: float) -> tuple[Task | None, float | None]:
        """Return what to do now, or None and the seconds until there may be something.

        The seconds are None if only a new row, a flush or a finished request can change it.
        """
        if self._begin_to_say():
            return self._say, None
        if now < self._is_connecting_until:
            return None, self._is_connecting_until - now
        take = self._queue.take(now, alone=not self._transport.is_connected)
        if take.chore is not None:
            return partial(self._do_chore, take.chore), None
        if take.batch is not None:
            self._in_hand[threading.get_ident()] = take.batch
            return partial(self._send, take.batch, timeout), None
        if self._connect is not None and self._queue.held:
            return self._connect_soon(self._connect, now, take.wait)
        return None, take.wait

    def say_the_rest(self, deadline: float | None) -> None:
        """Say what is noted on this thread; wait for one that says something. Without the lock."""
        try:
            while self._lock.run(self._await_turn, deadline):
                self._say()
        finally:
            # Hazard: a signal handler may raise between the turn and its end.
            self._lock.run(self._end_saying)

    def put_down(self, error: BaseException | None = None) -> None:
        """Tell that this thread's task is over; ``error`` is what ended it early."""
        batch = self._in_hand.pop(threading.get_ident(), None)
        if error is not None:
            self._end_saying()  # it was this thread's turn, and perhaps it said nothing
            if batch is not None:
                self._settlement.interrupt(batch, error)

    def _send(self, batch: Batch, timeout: float) -> None:
        started = clock.monotonic()
        finish_all(batch.rows)
        outcome = self._transport.send(batch.rows, timeout=timeout)
        self._settlement.apply(batch, outcome, started)

    def _connect_soon(
        self, connect: Callable[[], object], now: float, wait: float | None
    ) -> tuple[Task | None, float | None]:
        self._connect_at = min(self._connect_at, now + CONNECT_AFTER)
        if now < self._connect_at:
            seconds = self._connect_at - now
            return None, seconds if wait is None else min(seconds, wait)
        self._connect = None
        self._is_connecting_until = now + HUNG_AFTER
        return partial(self._do_connect, connect), None

    def _do_connect(self, connect: Callable[[], object]) -> None:
        try:
            connect()
        finally:
            self._is_connecting_until = 0.0

    def _begin_to_say(self) -> bool:
        if self._sayer is not None or not self._report.has_news:
            return False
        self._sayer = threading.get_ident()
        return True

    def _await_turn(self, deadline: float | None) -> bool:
        while self._sayer is not None and (deadline is None or clock.monotonic() < deadline):
            self._said.wait(LONGEST_WAIT)
        return self._begin_to_say()

    def _say(self) -> None:
        try:
            self._report.say()
        finally:
            self._lock.run(self._end_saying)

    def _end_saying(self) -> None:
        if self._sayer == threading.get_ident():
            self._sayer = None
            self._said.notify_all()

    def _do_chore(self, chore: Callable[[], object]) -> None:
        result = None
        try:
            result = chore()
        finally:
            self._lock.run(self._settlement.end_chore, result)
