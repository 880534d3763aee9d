"""Tells rows that break their request from an outage: do others pass while these fail?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorc_eventlog.delivery.batch import Batch, Record

TRIES_BEFORE_CANARY = 2
"""After this many failures, one row of the batch is sent alone to see whether any gets through."""

TRIES_OF_A_CANARY = 3
"""After this many failures of that row, another one may be sent alone."""

PROOFS_AGAINST_A_ROW = 3
"""A row is given up after this many failures with everything else stored in between..."""

PATIENCE_WITH_A_ROW = 5.0
"""... that last at least so many seconds: longer than BigQuery's usual hiccup."""

FAILURES_IN_SILENCE = 6
"""When nothing else is sent, so that nothing is stored, this many failures after one proof..."""

PATIENCE_IN_SILENCE = 15.0
"""... and so many seconds are enough, while nothing else fails."""


class Suspicion:
    """Keeps the evidence. A batch is suspected when it fails while everything else is stored."""

    def __init__(self) -> None:
        self.began = 0
        """Batches that began to fail."""
        self._failures = 0

    def note(
        self, record: Record, *, may_be_the_rows: bool, is_evidence: bool, stored: int, now: float
    ) -> int:
        """Note a failure of a batch; return by how many tries it is to be paused."""
        record.tries += 1
        record.is_suspect = may_be_the_rows
        others_pass = False
        if record.since == math.inf:
            record.since = now
            self.began += 1
        elif may_be_the_rows and stored > record.stored and self.began == record.began:
            others_pass = True
            record.isolations += 1
            record.proofs += is_evidence
        is_silent = (
            may_be_the_rows
            and is_evidence
            and record.proofs > 0
            and self._failures == record.failures
        )
        record.failures_in_silence = record.failures_in_silence + 1 if is_silent else 0
        self._failures += 1
        record.stored, record.began, record.failures = stored, self.began, self._failures
        return 2 if others_pass else min(record.tries, 4) if is_silent else record.tries


def is_proved(record: Record, now: float) -> bool:
    """Whether a single row with this record is given up."""
    seconds = now - record.since
    return (record.proofs >= PROOFS_AGAINST_A_ROW and seconds >= PATIENCE_WITH_A_ROW) or (
        record.failures_in_silence >= FAILURES_IN_SILENCE and seconds >= PATIENCE_IN_SILENCE
    )


def suspicion(batch: Batch) -> tuple[int, int]:
    """Sort key: what is suspected least goes first, and then what is oldest."""
    return (batch.record.tries if batch.record.is_suspect else 0, batch.positions[0])


def is_canary(batch: Batch) -> bool:
    """Whether ``batch`` is a single row whose next try tells whether anything gets through."""
    return len(batch.rows) == 1 and batch.record.tries < TRIES_OF_A_CANARY
