"""Delivers by a deadline, or says what is left: a writer is closed, or the process ends."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from lorc_eventlog.delivery.report import Left
from lorc_eventlog.diagnostics import say, say_on_stderr
from lorc_eventlog.lifecycle import clock
from lorc_eventlog.lifecycle import exit as process_exit

if TYPE_CHECKING:
    from lorc_eventlog.delivery.courier import Courier
    from lorc_eventlog.delivery.flusher import Flusher
    from lorc_eventlog.delivery.inbox import Inbox
    from lorc_eventlog.delivery.queue import DeliveryQueue
    from lorc_eventlog.delivery.report import Report
    from lorc_eventlog.delivery.senders import Senders

SECOND_TRY_AFTER = 3.0
"""Seconds. While closing, a request that takes longer is sent once more beside the first."""


class Closing:
    """Closes one dispatcher, and finishes it when the process ends.

    Args:
        close_timeout: Seconds that it takes at most.
        inbox: Shut when the process ends: nothing may be left there unnoticed.
        queue: Tells what is left.
        senders: Leave when nothing is buffered any more.
        flusher: Waits for delivery.
        courier: Says what is noted.
        report: Has the words.
    """

    def __init__(
        self,
        close_timeout: float,
        inbox: Inbox,
        queue: DeliveryQueue,
        senders: Senders,
        flusher: Flusher,
        courier: Courier,
        report: Report,
    ) -> None:
        self.close_timeout = close_timeout
        self._patience: float | None = None
        """Seconds that are left for waiting once the process ends; None as long as it does not."""
        self._inbox = inbox
        self._queue = queue
        self._senders = senders
        self._flusher = flusher
        self._courier = courier
        self._report = report
        process_exit.register(self)

    @property
    def exit_deadline(self) -> float | None:
        """Until when to wait if the process ends, in monotonic seconds; None if it does not.

        Only waiting counts. What the application does meanwhile may take as long as it likes, and
        what it logs then still has its time.
        """
        patience = self._patience
        return None if patience is None else clock.monotonic() + patience

    def waited_since(self, started: float) -> None:
        """Count the time since ``started`` as waiting."""
        if self._patience is not None:
            self._patience = max(0.0, self._patience - (clock.monotonic() - started))

    def close(self) -> None:
        """Flush for at most ``close_timeout`` seconds; then the senders end."""
        if self._patience is None:  # else it is done
            self._close(clock.monotonic() + self.close_timeout)

    def hasten(self, now: float) -> None:
        """Send everything at once: the process ends."""
        self._senders.run(self._hasten, now)

    def finish(self, deadline: float) -> None:
        """Deliver by ``deadline``, or say what is lost: the process ends."""
        if self._senders.run(self._begin_to_end, deadline):
            self._close_at_exit(deadline)

    def finish_late(self) -> None:
        """Deliver what is logged after :meth:`finish`: nothing later would."""
        deadline = self.exit_deadline
        if deadline is not None:
            self._close_at_exit(deadline)

    def _hasten(self, now: float) -> None:
        self._flusher.request()
        self._queue.retry_now(now)

    def _begin_to_end(self, deadline: float) -> bool:
        if self._patience is not None:
            return False  # multiprocessing's exit came first
        self._patience = max(0.0, deadline - clock.monotonic())
        self._inbox.is_shut = True
        self._senders.open_inbox()
        return True

    def _close_at_exit(self, deadline: float) -> None:
        started = clock.monotonic()
        try:
            self._close(deadline)
        finally:
            self.waited_since(started)

    def _close(self, deadline: float) -> None:
        patience = min(SECOND_TRY_AFTER, self.close_timeout / 2)
        try:
            settled = self._flusher.flush(deadline, second_try_after=patience)
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
            thread.join(max(0.0, deadline - clock.monotonic()))

    def _end(self) -> set[threading.Thread]:
        self._senders.is_closed = True
        self._flusher.end_second_tries()
        self._senders.call_all()
        self._report.note_drops()
        return self._senders.to_join()

    def _say_what_is_left(self, why: str) -> None:
        left = self._senders.run(self._left)
        if not left.events:  # the last of them was delivered just now
            return
        if self._patience is None:
            say(logging.ERROR, "%s", self._report.left_by_close(left, why))
        else:
            say_on_stderr(self._report.left_at_exit(left, why))

    def _left(self) -> Left:
        queue = self._queue
        return Left(queue.held + len(self._inbox.rows), queue.kept, queue.in_doubt)
