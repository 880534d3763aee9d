"""Moves events from log calls to BigQuery: the parts, their lock, and their end."""

from __future__ import annotations

import dataclasses
import sys
import weakref
from typing import TYPE_CHECKING

from lorc_eventlog.delivery.closing import Closing
from lorc_eventlog.delivery.courier import Courier, Task
from lorc_eventlog.delivery.flusher import LONGEST_WAIT, Flusher
from lorc_eventlog.delivery.inbox import Inbox
from lorc_eventlog.delivery.senders import MAX_SENDERS, Senders
from lorc_eventlog.delivery.settlement import Settlement
from lorc_eventlog.diagnostics import say_on_stderr
from lorc_eventlog.events.row import Row, row_bytes
from lorc_eventlog.lifecycle import clock, fork
from lorc_eventlog.lifecycle.locks import Lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from lorc_eventlog.bigquery.transport import Transport
    from lorc_eventlog.delivery.options import DeadLetterCallback
    from lorc_eventlog.delivery.queue import DeliveryQueue
    from lorc_eventlog.delivery.report import Report
    from lorc_eventlog.delivery.stats import WriterStats


class _Kept:
    """Keeps a dispatcher that nobody else refers to, until what it holds is delivered.

    The child of a fork keeps none of the parent's.
    """

    def __init__(self) -> None:
        self.dispatchers: set[Dispatcher] = set()
        self._generation = fork.generation()
        fork.register_first(self)

    def restart_in_child(self) -> None:
        fresh: set[Dispatcher] = set()
        generation = fork.generation()
        # Hazard: a signal handler that logs in the middle of this calls it once more, and the
        # dispatcher that it used must be kept. So make no call between check and assignments.
        if self._generation != generation:
            self.dispatchers = fresh
            self._generation = generation


_kept = _Kept()


class Dispatcher:
    """Has rows sent by threads, or by the thread that flushes if none can be started.

    Lock: one re-entrant lock guards queue, counters, messages and senders. It is never held over
    the network, a callback, a message or a fork. What to do is decided under it and *returned* as
    a task, which runs without it.

    A fork: the child makes a new dispatcher and leaves this one, as it is, to the parent.

    Args:
        queue: Decides what to send next.
        transport: Sends it.
        report: Takes the messages.
        flush_interval: Seconds after which a batch is sent although it is not full.
        blocks: Whether a log call waits for room when the buffer is full.
        close_timeout: Seconds that :meth:`close` takes at most.
        on_dead_letter: Called for each row that BigQuery will never take.
        most_senders: How many threads send at the same time.
        connect: Called before the first request (:class:`Courier`).
    """

    def __init__(
        self,
        queue: DeliveryQueue,
        transport: Transport,
        report: Report,
        *,
        flush_interval: float,
        blocks: bool,
        close_timeout: float,
        on_dead_letter: DeadLetterCallback | None,
        most_senders: int = MAX_SENDERS,
        connect: Callable[[], object] | None = None,
    ) -> None:
        self.inbox = inbox = Inbox(queue)
        self._lock = lock = Lock()
        self._progress = lock.condition()
        self._queue = queue
        self._settlement = Settlement(lock, queue, report, on_dead_letter, self._changed)
        self._courier = Courier(lock, queue, transport, self._settlement, report, connect)
        self._senders = Senders(
            lock,
            inbox,
            queue,
            self._courier,
            flush_interval=flush_interval,
            most=most_senders,
            begins=lambda: _kept.dispatchers.add(self),
            ended=self._sender_ended,
        )
        self._flusher = Flusher(inbox, queue, self._courier, self._senders, self._progress)
        self.closing = Closing(
            close_timeout,
            inbox,
            queue,
            self._senders,
            self._flusher,
            self._courier,
            report,
        )
        self._blocks = blocks

    @property
    def is_stale(self) -> bool:
        """Whether gevent or eventlet came later, so that another dispatcher must take new rows."""
        return self._lock.is_stale

    def serve(self, owner: object) -> None:
        """End the senders, once nothing is buffered, when ``owner`` no longer exists."""
        self._owner = weakref.ref(owner, self._let_go)

    def _let_go(self, _: object) -> None:
        # Hazard: the garbage collector calls, perhaps in the middle of what has the lock. Both
        # need none: the worst is that a sender looks for nothing.
        self._senders.is_closed = True
        self._senders.call_all()

    # In the log call

    def submit(self, row: Row) -> None:
        """Take ``row`` under the lock, because the inbox must not take it now."""
        if self._lock.is_owned():  # the call is nested; see Senders.run
            if not self._queue.accept_nested(row):
                self.inbox.rows.append(row)
            self._senders.is_to_look = True
            return
        if sys.is_finalizing():
            self._submit_too_late(row)
            return
        self._senders.run(self._submit, row)
        self.closing.finish_late()

    def notice(self) -> None:
        """Have a sender look for work: for a row that was left in the inbox, or on disk."""
        if not self._lock.is_owned():
            self._senders.run(self._senders.see_to_inbox)
            self.closing.finish_late()

    def ensure_sender(self) -> bool:
        """Start a sender if there is none, without a row that needs it; False if that cannot be."""
        return self._senders.run(self._senders.ensure)

    def _submit(self, row: Row) -> None:
        self._senders.is_closed = False
        self.inbox.collect()
        # Signal safety: call a sender before adding the row. If a signal handler raises in
        # between, the result is a spurious call, not an unnoticed row.
        self._senders.call_lookout()
        while not self._queue.accept(row, clock.monotonic()):
            if not self._queue.may_hold(row):  # else the call would wait until all is delivered
                self._settlement.drop()
                break
            if self._blocks and self._queue.holds_only_doubtful:
                # Hazard: the call would wait for ever, because only a new row can decide.
                self._queue.add(row, clock.monotonic())
                break
            if not (self._wait_for_room() if self._blocks else self._drop_doubtful(row)):
                self._settlement.drop()
                break
        self._senders.share_work()
        self._senders.open_inbox()

    def _submit_too_late(self, row: Row) -> None:
        # Hazard: a destructor may log when Python has all but ended. No other thread runs any more,
        # none can be started, and nothing can be imported. Whatever a thread was in the middle of
        # stays half done, so that only what a nested call may do is done here.
        if not self._queue.accept_nested(row):
            self._settlement.drop()
            say_on_stderr(
                "lost 1 event: Python had ended when it was logged (set spool_dir to keep it)"
            )

    def _wait_for_room(self) -> bool:
        now = clock.monotonic()
        ends = self.closing.exit_deadline
        is_over = ends is not None and now >= ends
        # In a dead-letter callback, nobody else would make room.
        if is_over or self._courier.is_at_work_here or not self._queue.held:
            return False
        if not self._senders.ensure():
            return False
        self._progress.wait(LONGEST_WAIT)
        self.closing.waited_since(now)
        return True

    def _drop_doubtful(self, row: Row) -> bool:
        dropped = self._queue.drop_doubtful(row_bytes(row))
        self._settlement.drop_doubtful(dropped)
        return bool(dropped)

    # Waiting for delivery

    def flush(self, deadline: float | None) -> bool:
        """Send what is buffered and wait until it is settled; False if ``deadline`` came first."""
        ends = self.closing.exit_deadline
        if ends is None:
            return self._flusher.flush(deadline)
        # Logging flushes and closes once more at the end.
        started = clock.monotonic()
        try:
            return self._flusher.flush(min(ends, deadline or ends))
        finally:
            self.closing.waited_since(started)

    def drain(self, deadline: float | None) -> bool:
        """Deliver all that is in the spool directory; False if ``deadline`` came first."""
        is_drained = self._flusher.drain(deadline)
        self._courier.say_the_rest(deadline)
        return is_drained

    def stats(self) -> WriterStats:
        """Return the counters, all taken at one moment."""
        stats, error = self._senders.run(self._settlement.stats, self.inbox.rows)
        return stats if error is None else dataclasses.replace(stats, last_error=str(error))

    def _changed(self) -> None:
        """Rows may have been settled."""
        self._progress.notify_all()
        self._senders.open_inbox()

    # The end

    def close(self) -> None:
        """Flush for at most ``close_timeout`` seconds; then the senders end."""
        self.closing.close()
        self._sender_ended()

    def _sender_ended(self) -> None:
        self._senders.run(self._let_rest)()

    def _let_rest(self) -> Task:
        """Let go of this dispatcher if there is nothing more to do."""
        if self._queue.held or self.inbox.rows or self._senders.others():
            return int
        _kept.dispatchers.discard(self)
        return self._queue.close() if self._senders.is_closed else int
