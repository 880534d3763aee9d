"""Decides what a result means: an outage, a wrong table, or a bad row.

Pure bookkeeping: the caller holds the lock and passes the time. Where each row is stands in
:mod:`lorc_eventlog.delivery.books`, when it goes in :mod:`lorc_eventlog.delivery.schedule`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lorc_eventlog.delivery.batch import (
    Batch,
    Bounds,
    DeadLetter,
    Doubt,
    Record,
    Verdict,
    some,
    without,
)
from lorc_eventlog.delivery.doubt import Moment
from lorc_eventlog.delivery.schedule import Schedule
from lorc_eventlog.delivery.suspicion import (
    TRIES_BEFORE_CANARY,
    Suspicion,
    is_canary,
    is_proved,
)

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.transport import Answer, Failure, Reason, Refusal
    from lorc_eventlog.events.row import Row


class DeliveryQueue(Schedule):
    """The rows that are not yet settled, and what to do with them next.

    Not thread-safe, and no method may be entered from within another one. A result for a batch
    that is decided already changes nothing.

    Args:
        bounds: How much it holds, and how much of it goes into one request.
    """

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(bounds)
        self._suspicion = Suspicion()

    def succeeded(self, batch: Batch, answer: Answer, now: float) -> Verdict:
        """BigQuery answered the request with ``batch``."""
        found = self._find(batch, settles=True)
        if found is None:
            return Verdict()
        refused = {row.index: row for row in answer.refused}
        unstored = refused.keys() | set(answer.again)
        stored = without(found.rows, unstored)
        # A row that is refused while others pass is bad, and so is one with a bad payload.
        bad = [index for index, row in refused.items() if stored or row.is_about_payload]
        letters = [_letter(found, index, refused.pop(index).reason) for index in bad]
        doubts = self._doubt.refused(found, refused, self._moment(now))
        again: list[Batch] = []
        if found.doubts:
            doubts += self._doubt.put_back(found, answer.again, self._moment(now))
        elif answer.again:
            record = Record(tries=found.record.tries + 1)
            due = now + self._pace.pause(found.record.tries)
            again = [some(found, sorted(answer.again), record, due)]
        verdict = self._decide(found, stored, again, doubts, letters)
        self._heed(found, now, is_stored=bool(stored), is_refused=bool(refused))
        return verdict

    def refused(self, batch: Batch, refusal: Refusal, now: float) -> Verdict:
        """BigQuery refused the request with ``batch`` as a whole."""
        found = self._find(batch, settles=False)
        if found is None:
            return Verdict()
        again: list[Batch] = []
        doubts: list[Doubt] = []
        letters: list[DeadLetter] = []
        is_single = len(found.rows) == 1
        if refusal.is_about_size and is_single:
            letters = [_letter(found, 0, refusal.reason)]
        elif refusal.is_about_size and found.doubts:
            doubts = self._doubt.divided(found, refusal.reason, self._moment(now))
        elif refusal.is_about_size or not (found.doubts or is_single or self._new_refusals):
            again = self._split(found, len(found.rows) // 2, now)
        else:
            doubts = self._doubt.blamed(found, refusal.reason, self._moment(now), is_evidence=True)
        verdict = self._decide(found, (), again, doubts, letters)
        self._heed(found, now, is_stored=False, is_refused=not refusal.is_about_size)
        return verdict

    def failed(self, batch: Batch, failure: Failure, *, started: float, now: float) -> Verdict:
        """The request that ``started`` with ``batch`` failed."""
        found = self._find(batch, settles=False)
        if found is None:
            return Verdict()
        if not found.doubts:
            may_be_the_rows = failure.may_be_the_rows
            return self._fail(found, failure.reason, started, now, may_be_the_rows=may_be_the_rows)
        if failure.may_be_the_rows:
            first = found.doubts[0]
            is_evidence = self.stored > first.stored and self._suspicion.began == first.began
            doubts = self._doubt.blamed(
                found, failure.reason, self._moment(now), is_evidence=is_evidence
            )
            return self._decide(found, (), (), doubts, [])
        self._pace.failed(started, now)
        doubts = [replace(doubt, due=now) for doubt in found.doubts]
        return self._decide(found, (), (), doubts, [])

    def give_back(self, batch: Batch, now: float) -> bool:
        """Sending ``batch`` ended in an exception: one failed try, and no evidence against a row.

        Returns whether the batch was undecided.
        """
        found = self._find(batch, settles=False)
        if found is None:
            return False
        if found.doubts:
            reason = found.doubts[0].reason
            doubts = self._doubt.blamed(found, reason, self._moment(now), is_evidence=False)
            self._decide(found, (), (), doubts, [])
        else:
            self._fail(found, None, found.sent_at, now, may_be_the_rows=True)
        return True

    def _fail(
        self,
        batch: Batch,
        reason: Reason | None,
        started: float,
        now: float,
        *,
        may_be_the_rows: bool,
    ) -> Verdict:
        """Note a failed try. Without a ``reason`` it is no evidence against the rows."""
        record = batch.record
        tries = self._suspicion.note(
            record,
            may_be_the_rows=may_be_the_rows,
            is_evidence=reason is not None,
            stored=self.stored,
            now=now,
        )
        is_suspected = may_be_the_rows and record.isolations > 0
        if not is_suspected:
            self._pace.failed(started, now)
        # In an outage, the pause is for all.
        due = now + (self._pace.pause(tries) if may_be_the_rows else 0.0)
        again = [replace(batch, due=due)]
        letters = []
        if len(batch.rows) > 1:
            if is_suspected:
                again = self._split(batch, len(batch.rows) // 2, now)
            elif (
                may_be_the_rows
                and record.tries >= TRIES_BEFORE_CANARY
                and not any(map(is_canary, self._again))
            ):
                again = self._split(batch, 1, now)
        elif may_be_the_rows and reason is not None and is_proved(record, now):
            again, letters = [], [_letter(batch, 0, reason)]
        return self._decide(batch, (), again, [], letters)

    def _decide(
        self,
        batch: Batch,
        stored: Sequence[Row],
        again: Sequence[Batch],
        doubts: Iterable[Doubt],
        letters: list[DeadLetter],
    ) -> Verdict:
        waiting = []
        for doubt in doubts:
            if doubt.is_given_up:
                pairs = zip(doubt.rows, doubt.positions, strict=True)
                letters += [DeadLetter(row, doubt.reason, position) for row, position in pairs]
            else:
                waiting.append(doubt)
        self._conclude(batch, stored=stored, again=again, doubts=waiting, letters=letters)
        return Verdict(list(stored), letters)

    def _heed(self, batch: Batch, now: float, *, is_stored: bool, is_refused: bool) -> None:
        """Go on as the answer suggests."""
        if is_stored:
            if batch.doubts or self._refusals > 1:
                self._doubt.try_again(self._doubtful, now, are_passing=bool(batch.doubts))
            self._refusals = self._new_refusals = 0
            self._pace.succeeded()
            return
        self._refusals += is_refused
        self._new_refusals += is_refused and not batch.doubts
        self._doubt.are_passing &= not (is_refused and batch.doubts)
        if batch.doubts and self._is_in_trouble:
            self._doubt.pace.failed(batch.sent_at, now)
        if not self._is_table_wrong:
            self._pace.succeeded()
        elif not batch.doubts:
            self._pace.failed(batch.sent_at, now)

    def _split(self, batch: Batch, first: int, now: float) -> list[Batch]:
        """Divide ``batch`` after the ``first`` rows. What is known of it is known of the parts."""
        parts = (range(first), range(first, len(batch.rows)))
        return [
            some(
                batch,
                rows,
                replace(batch.record, tries=0, is_suspect=False, failures_in_silence=0, failures=0),
                now,
            )
            for rows in parts
        ]

    def _moment(self, now: float) -> Moment:
        return Moment(now, self.stored, self._suspicion.began)


def _letter(batch: Batch, index: int, reason: Reason) -> DeadLetter:
    return DeadLetter(batch.rows[index], reason, batch.positions[index])
