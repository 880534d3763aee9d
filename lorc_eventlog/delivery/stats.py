"""What became of the events of a writer, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WriterStats:
    """What became of the events: ``submitted`` is all of them, and the sum of the five ends.

    Each process counts its own events; after a fork the child starts at zero.

    Example:
        For a health check:

            stats = handler.writer.stats()
            healthy = stats.dropped == 0 and stats.buffered < 10_000
    """

    submitted: int
    delivered: int
    rejected: int
    """Dead letters: BigQuery will never take them."""
    dropped: int
    """Lost to a full buffer."""
    retries: int
    """Requests that failed or were interrupted, and whose rows are sent again.

    Neither a request that is refused, and divided, nor a row that BigQuery puts off is counted.
    """
    buffered: int
    """Waiting, or on their way."""
    spooled: int
    """On disk for a shipper (``spool_only``); this process does not learn what becomes of them."""
    last_error: str | None

    def __add__(self, later: WriterStats) -> WriterStats:
        return WriterStats(
            submitted=self.submitted + later.submitted,
            delivered=self.delivered + later.delivered,
            rejected=self.rejected + later.rejected,
            dropped=self.dropped + later.dropped,
            retries=self.retries + later.retries,
            buffered=self.buffered + later.buffered,
            spooled=self.spooled + later.spooled,
            last_error=later.last_error or self.last_error,
        )


NO_EVENTS = WriterStats(0, 0, 0, 0, 0, 0, 0, None)
