"""What the outcome of a request means for the queue, the messages and the dead letters."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence, Sized
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.transport import Answer, Failure, Refusal
from lorc_eventlog.delivery.batch import Batch, DeadLetter, Verdict
from lorc_eventlog.delivery.report import Cause, Report
from lorc_eventlog.delivery.stats import WriterStats
from lorc_eventlog.events.envelope import to_envelope
from lorc_eventlog.lifecycle import clock
from lorc_eventlog.lifecycle.signals import with_signals

if TYPE_CHECKING:
    from lorc_eventlog.delivery.options import DeadLetterCallback
    from lorc_eventlog.delivery.queue import DeliveryQueue
    from lorc_eventlog.lifecycle.locks import Lock


class Settlement:
    """Applies outcomes: decides under the lock, and calls other people's code outside of it.

    Args:
        lock: Guards ``queue`` and ``report``.
        queue: Where the rows are from.
        report: Takes the messages.
        on_dead_letter: Called for each row that BigQuery will never take; None logs an ERROR.
        changed: Called under the lock when rows may have been settled.
    """

    def __init__(
        self,
        lock: Lock,
        queue: DeliveryQueue,
        report: Report,
        on_dead_letter: DeadLetterCallback | None,
        changed: Callable[[], object],
    ) -> None:
        self._retries = 0
        self._dropped = 0
        self._lock = lock
        self._queue = queue
        self._report = report
        self._on_dead_letter = on_dead_letter
        self._changed = changed

    def apply(self, batch: Batch, outcome: Answer | Failure | Refusal, started: float) -> None:
        """Apply the outcome of the request that ``started`` with ``batch``."""
        verdict = self._lock.run(self._decide, batch, outcome, started)
        letters = deque(verdict.dead)
        try:
            while letters:
                self._hand_over(batch, letters[0])
                letters.popleft()
        finally:
            # Hazard: rows that are dead and never settled would hold up every flush.
            if letters:
                self._lock.run(self._queue.dead_lettered, batch, [*letters])

    def drop(self) -> None:
        """Count a row that found no room. Under the lock."""
        self._dropped += 1
        self._report.dropped(1, clock.monotonic())

    def drop_doubtful(self, letters: Sequence[DeadLetter]) -> None:
        """Report rows in doubt that the queue dropped, and counted. Under the lock."""
        if letters:
            self._report.refused(letters[-1].reason, [letters[-1].row])
            self._report.dropped(len(letters), clock.monotonic())

    def stats(self, unnoticed: Sized) -> tuple[WriterStats, Cause | str | None]:
        """Return the counters, all taken at one moment, and the last error. Under the lock.

        Args:
            unnoticed: The rows that are not yet in the queue.
        """
        queue = self._queue
        buffered = queue.held + len(unnoticed)
        dropped = queue.dropped + self._dropped
        stats = WriterStats(
            submitted=queue.stored + queue.dead + dropped + buffered,
            delivered=queue.stored,
            rejected=queue.dead,
            dropped=dropped,
            retries=self._retries,
            buffered=buffered,
            spooled=0,
            last_error=None,
        )
        return stats, self._report.last_error

    def interrupt(self, batch: Batch, error: BaseException) -> None:
        """Give ``batch`` back: ``error`` ended its request. Under the lock.

        The batch stays as it is if its outcome was applied before.
        """
        now = clock.monotonic()
        if self._queue.give_back(batch, now):
            self._retries += 1
            self._report.interrupted(error, waiting=self._queue.held, now=now)
        self._changed()

    def end_chore(self, result: object) -> None:
        """Apply the result of a chore of the queue; None if it was interrupted. Under the lock."""
        lost = self._queue.chore_done(result, clock.monotonic())
        if lost:
            self._dropped += lost
            self._report.damaged(lost)
        self._changed()

    def _decide(self, batch: Batch, outcome: Answer | Failure | Refusal, started: float) -> Verdict:
        now = clock.monotonic()
        queue = self._queue
        if not queue.is_undecided(batch):  # a second copy of the request was quicker
            return Verdict()
        if isinstance(outcome, Answer):
            verdict = queue.succeeded(batch, outcome, now)
            if verdict.stored:
                self._report.accepted(waiting=queue.held)
        elif isinstance(outcome, Failure):
            verdict = queue.failed(batch, outcome, started=started, now=now)
            self._retries += not verdict.dead
            self._report.failed(outcome, batch.rows, waiting=queue.held, now=now)
        else:
            verdict = queue.refused(batch, outcome, now)
            self._report.refused(outcome.reason, batch.rows)
        if queue.trouble is not None:
            self._report.in_trouble(queue.trouble, now)
        self._changed()
        return verdict

    def _hand_over(self, batch: Batch, letter: DeadLetter) -> None:
        row = letter.row
        cause = Cause(letter.reason, [row])
        failure = None
        if self._on_dead_letter is not None:
            try:
                with_signals(self._on_dead_letter, to_envelope(row), str(cause))
            except BaseException as error:  # noqa: BLE001  the user's code must not end a sender
                failure = error
        self._lock.run(self._settle, batch, letter, cause, failure)

    def _settle(
        self, batch: Batch, letter: DeadLetter, cause: Cause, failure: BaseException | None
    ) -> None:
        self._report.rejected(
            letter.row, cause, is_handled=self._on_dead_letter is not None, failure=failure
        )
        self._queue.dead_lettered(batch, [letter])
        self._changed()
