"""Waits until rows are settled, and sends them itself where no thread can be started."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lorc_eventlog.delivery.senders import REQUEST_TIMEOUT
from lorc_eventlog.lifecycle import clock

if TYPE_CHECKING:
    from lorc_eventlog.delivery.courier import Courier, Task
    from lorc_eventlog.delivery.inbox import Inbox
    from lorc_eventlog.delivery.queue import DeliveryQueue
    from lorc_eventlog.delivery.senders import Senders
    from lorc_eventlog.lifecycle.locks import Condition

LONGEST_WAIT = 1.0
"""Seconds. Whoever waits looks again after so long, notified or not."""


class Flusher:
    """Lets the calling thread wait for delivery.

    Args:
        inbox: Where new rows are.
        queue: Knows what is settled.
        courier: Chooses the tasks if this thread is to send.
        senders: The threads that send otherwise.
        progress: Notified when rows are settled.
    """

    def __init__(
        self,
        inbox: Inbox,
        queue: DeliveryQueue,
        courier: Courier,
        senders: Senders,
        progress: Condition,
    ) -> None:
        self._inbox = inbox
        self._queue = queue
        self._courier = courier
        self._senders = senders
        self._most_senders = senders.most
        self._progress = progress

    def flush(self, deadline: float | None, second_try_after: float | None = None) -> bool:
        """Send what is buffered and wait until it is settled.

        Args:
            deadline: When to stop waiting, in monotonic seconds.
            second_try_after: Seconds after which a request is sent once more over a new
                connection; None never does.

        Returns:
            False if ``deadline`` came first.
        """
        position = self._senders.run(self.request)
        if self._courier.is_at_work_here:  # a dead-letter callback cannot wait for its own batch
            return self._senders.run(self._queue.settled, position)
        while True:
            step = self._senders.run(self._await, position, deadline, second_try_after)
            if isinstance(step, bool):
                return step
            step()

    def drain(self, deadline: float | None) -> bool:
        """Deliver all that is on disk; False if ``deadline`` came first."""
        self._senders.run(self._queue.look_now)
        return self._senders.run(self._await_disk, deadline)

    def request(self) -> int:
        """Have everything sent without waiting for full batches. Under the lock."""
        self._inbox.collect()
        position = self._queue.request_flush()
        self._senders.call_all()
        return position

    def end_second_tries(self) -> None:
        """Have no more senders from now on than usual. Under the lock."""
        self._senders.most = self._most_senders

    def _await(
        self, position: int, deadline: float | None, second_try_after: float | None
    ) -> bool | Task:
        while not self._queue.settled(position):
            now = clock.monotonic()
            seconds = LONGEST_WAIT if deadline is None else deadline - now
            if seconds <= 0:
                return False
            if not self._senders.ensure():
                halve = second_try_after is not None
                return partial(self._send_here, position, deadline, halve)
            if second_try_after is not None:
                hanging = self._queue.duplicate_in_flight(now, older_than=second_try_after)
                if hanging:
                    return partial(self._try_again, hanging)
                seconds = min(seconds, second_try_after / 10)
            self._progress.wait(min(seconds, LONGEST_WAIT))
        return True

    def _await_disk(self, deadline: float | None) -> bool:
        queue = self._queue
        while queue.held or not queue.is_drained:
            seconds = LONGEST_WAIT if deadline is None else deadline - clock.monotonic()
            if seconds <= 0 or not self._senders.ensure():
                return False
            self.request()
            self._progress.wait(min(seconds, LONGEST_WAIT))
        return True

    def _try_again(self, hanging: int) -> None:
        """Send what hangs once more: over new connections, and by more threads."""
        self._courier.reconnect()
        if self._most_senders > 1:  # one alone keeps an order
            self._senders.most = 2 * self._most_senders
        for _ in range(hanging):
            self._senders.run(self._senders.call)

    def _send_here(self, position: int, deadline: float | None, halve: bool) -> None:  # noqa: FBT001
        """Do a sender's work on this thread until ``position`` is settled."""
        while True:
            try:
                task = self._senders.run(self._next_task, position, deadline, halve)
                if task is None:
                    return
                task()
            except BaseException as error:
                self._senders.run(self._courier.put_down, error)
                if not isinstance(error, Exception):  # such as Ctrl-C
                    raise

    def _next_task(self, position: int, deadline: float | None, halve: bool) -> Task | None:  # noqa: FBT001
        self._courier.put_down()
        while not self._queue.settled(position):
            self._inbox.collect()
            now = clock.monotonic()
            seconds = REQUEST_TIMEOUT if deadline is None else deadline - now
            if seconds <= 0:
                break
            timeout = min(seconds / 2 if halve else seconds, REQUEST_TIMEOUT)
            task, wait = self._courier.choose(now, timeout)
            if task is not None:
                return task
            self._progress.wait(min(seconds, LONGEST_WAIT if wait is None else wait))
        return None
