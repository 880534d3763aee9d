"""Moves events from log calls to BigQuery: the parts, their lock, and their end."""

from __future__ import annotations

import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING

from lorc_eventlog.delivery.courier import Courier, Task
from lorc_eventlog.delivery.flusher import LONGEST_WAIT, Flusher
from lorc_eventlog.delivery.inbox import Inbox
from lorc_eventlog.delivery.senders import MAX_SENDERS, Senders
from lorc_eventlog.delivery.settlement import Settlement, WriterStats
from lorc_eventlog.diagnostics import logger, say_on_stderr
from lorc_eventlog.events.row import Row, row_bytes
from lorc_eventlog.lifecycle import exit as process_exit
from lorc_eventlog.lifecycle.locks import Lock

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.transport import Transport
    from lorc_eventlog.delivery.options import DeadLetterCallback
    from lorc_eventlog.delivery.queue import DeliveryQueue
    from lorc_eventlog.delivery.report import Report

SECOND_TRY_AFTER = 3.0
"""Seconds. While closing, a request that takes longer is sent once more beside the first."""

_holding: set[Dispatcher] = set()
"""Keeps a dispatcher that nobody else refers to, until what it holds is delivered."""


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
    ) -> None:
        self.inbox = inbox = Inbox(queue)
        self.close_timeout = close_timeout
        self._lock = lock = Lock()
        self._progress = lock.condition()
        self._queue = queue
        self._report = report
        self._settlement = Settlement(lock, queue, report, on_dead_letter, self._changed)
        self._courier = Courier(lock, queue, transport, self._settlement, report)
        self._senders = Senders(
            lock,
            inbox,
            queue,
            self._courier,
            flush_interval=flush_interval,
            most=most_senders,
            begins=partial(_holding.add, self),
            ended=self._sender_ended,
        )
        self._flusher = Flusher(inbox, queue, self._courier, self._senders, self._progress)
        self._blocks = blocks
        self._exit_deadline: float | None = None
        process_exit.register(self)

    @property
    def is_stale(self) -> bool:
        """Whether gevent or eventlet came later, so that another dispatcher must take new rows."""
        return self._lock.is_stale

    def serve(self, owner: object) -> None:
        """End the senders, once nothing is buffered, when ``owner`` no longer exists."""
        self._owner = weakref.ref(owner, self._let_go)

    def _let_go(self, _: object) -> None:
        self._senders.is_closed = True

    # In the log call

    def submit(self, row: Row) -> None:
        """Take ``row`` under the lock, because the inbox must not take it now."""
        if self._lock.is_owned():  # the call is nested; see Senders.run
            self.inbox.rows.append(row)
            return
        self._senders.run(self._submit, row)
        if self._exit_deadline is not None:  # nothing later would deliver it
            self._close(self._exit_deadline)

    def notice(self) -> None:
        """Have a sender look for work: for a row that was left in the inbox, or on disk."""
        if not self._lock.is_owned():
            self._senders.run(self._senders.see_to_inbox)

    def _submit(self, row: Row) -> None:
        # Signal safety: call a sender before adding the row. If a signal handler raises in
        # between, the result is a spurious call, not an unnoticed row.
        self._senders.see_to_inbox()
        while not self._queue.accept(row, time.monotonic()):
            if not (self._wait_for_room() if self._blocks else self._drop_doubtful(row)):
                self._settlement.drop(1)
                break
        self._senders.share_work()
        self._senders.open_inbox()

    def _wait_for_room(self) -> bool:
        is_over = self._exit_deadline is not None and time.monotonic() > self._exit_deadline
        # In a dead-letter callback, nobody else would make room.
        if is_over or self._courier.is_at_work_here or not self._queue.held:
            return False
        if not self._senders.ensure():
            return False
        self._progress.wait(LONGEST_WAIT)
        return True

    def _drop_doubtful(self, row: Row) -> bool:
        dropped = self._queue.drop_doubtful(row_bytes(row))
        self._settlement.dropped_doubtful(dropped)
        return bool(dropped)

    # Waiting for delivery

    def flush(self, deadline: float | None) -> bool:
        """Send what is buffered and wait until it is settled; False if ``deadline`` came first."""
        if self._exit_deadline is not None:  # logging flushes and closes once more at the end
            deadline = min(self._exit_deadline, deadline or self._exit_deadline)
        return self._flusher.flush(deadline)

    def drain(self, deadline: float | None) -> bool:
        """Deliver all that is in the spool directory; False if ``deadline`` came first."""
        is_drained = self._flusher.drain(deadline)
        self._courier.say_the_rest(deadline)
        return is_drained

    def stats(self) -> WriterStats:
        """Return the counters, all taken at one moment."""
        return self._settlement.stats(self.inbox.rows)

    def _changed(self) -> None:
        """Rows may have been settled."""
        self._progress.notify_all()
        self._senders.open_inbox()

    # The end

    def close(self) -> None:
        """Flush for at most ``close_timeout`` seconds; then the senders end."""
        if self._exit_deadline is None:  # else it is done
            self._close(time.monotonic() + self.close_timeout)

    def hasten(self, now: float) -> None:
        """Send everything at once: the process ends."""
        self._senders.run(self._hasten, now)

    def finish(self, deadline: float) -> None:
        """Deliver by ``deadline``, or say what is lost: the process ends."""
        if self._senders.run(self._begin_to_end, deadline):
            self._close(deadline)

    def forget(self) -> None:
        """Let go of this dispatcher in the child of a fork: it is the parent's."""
        _holding.discard(self)

    def _hasten(self, now: float) -> None:
        self._flusher.request()
        self._queue.retry_now(now)

    def _begin_to_end(self, deadline: float) -> bool:
        if self._exit_deadline is not None:
            return False  # multiprocessing's exit came first
        self._exit_deadline = deadline
        self.inbox.is_shut = True
        self._senders.open_inbox()
        return True

    def _close(self, deadline: float) -> None:
        try:
            settled = self._flusher.flush(
                deadline, second_try_after=min(SECOND_TRY_AFTER, self.close_timeout / 2)
            )
        except BaseException:  # Ctrl-C while it waits
            self._say_what_is_left("close() was interrupted")
            raise
        threads = self._senders.run(self._end)
        self._senders.run(self._queue.close)()
        self._courier.say_the_rest(deadline)
        if not settled:
            self._say_what_is_left(f"BigQuery did not accept them within {self.close_timeout:g} s")
            return
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _end(self) -> set[threading.Thread]:
        self._senders.is_closed = True
        self._senders.call_all()
        self._report.note_drops()
        if self._is_empty:
            _holding.discard(self)
        return self._senders.others()

    @property
    def _is_empty(self) -> bool:
        return not (self._queue.held or self.inbox.rows)

    def _sender_ended(self) -> None:
        self._senders.run(self._close_queue)()

    def _close_queue(self) -> Task:
        if not self._is_empty or self._senders.others():
            return int
        _holding.discard(self)
        return self._queue.close() if self._senders.is_closed else int

    def _say_what_is_left(self, why: str) -> None:
        left, kept = self._senders.run(self._left)
        if self._exit_deadline is None:
            logger.error("%s", self._report.left_by_close(left, kept, why))
        else:
            say_on_stderr(self._report.left_at_exit(left, kept, why))

    def _left(self) -> tuple[int, int]:
        return self._queue.held + len(self.inbox.rows), self._queue.kept
