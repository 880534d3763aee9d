"""One request into a committed stream: what BigQuery's answers mean, and the fence."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.storage_stream import (
    AlreadyExists,
    Gone,
    Refused,
    Stored,
    StreamClient,
    Unusable,
)
from lorc_eventlog.bigquery.transport import Failure, Reason, Refusal
from lorc_eventlog.lifecycle import clock

if TYPE_CHECKING:
    from lorc_eventlog.diagnostics import Notes
    from lorc_eventlog.shipping.books import Books
    from lorc_eventlog.shipping.pending import Pending

FENCE_AFTER = 5
"""After so many copies that may have failed because of a row, the stream is finalized, so that the
rows can be sent apart."""


class Requests:
    """Finds out what becomes of a request, one at a time.

    Not thread-safe: the one thread that sends owns it.

    Args:
        client: Speaks to the streams.
        books: Keep the ledger and the spool in step.
        notes: Takes what is to be reported.
    """

    def __init__(self, client: StreamClient, books: Books, notes: Notes) -> None:
        self.pending = books.recover()
        """The request whose outcome is not known."""
        self.resolved: set[tuple[str, int]] = set()
        """Rows that are stored although delivery was told that nobody knew."""
        self._client = client
        self._books = books
        self._notes = notes

    def make_way(self, keys: Collection[tuple[str, int]], deadline: float) -> Failure | None:
        """Settle what is pending before the rows of ``keys`` are sent; else say why that cannot be.

        A request that may fail because of one of its rows is not repeated for the sake of others:
        they would fail with it, as if they were to blame.
        """
        pending = self.pending
        if pending is None:
            return None
        if pending.is_suspect and set(pending.keys()) != set(keys):
            pending.needs_fence = True
        failure = self.settle(pending, deadline)
        is_known = pending.needs_fence and self.pending is None
        return None if is_known else failure

    def settle(self, pending: Pending, deadline: float) -> Failure | None:
        """Find out what became of an earlier request; None says that it is known now."""
        find_out = self._fence if pending.needs_fence else self.attempt
        outcome = find_out(pending, deadline)
        if outcome is None:  # stored, which delivery does not know
            self.resolved.update(pending.keys())
        return outcome if isinstance(outcome, Failure) else None

    def attempt(  # noqa: PLR0911  one for each outcome
        self, pending: Pending, deadline: float
    ) -> Refused | Refusal | Failure | None:
        """Send a copy of the request; None says that the rows are stored."""
        pending.copies += 1
        intent = pending.intent
        timeout = max(0.0, deadline - clock.monotonic())
        # Hazard: Ctrl-C may end the call, and the copy is on its way.
        was_unanswered, pending.unanswered = pending.unanswered, True
        outcome = self._client.append(intent.stream, intent.offset, pending.rows, timeout)
        pending.unanswered = was_unanswered
        match outcome:
            case Stored():
                self._stored(pending)
                return None
            case AlreadyExists(expected):
                if pending.copies > 1 and expected == intent.offset + intent.count:
                    self._stored(pending)
                    return None
                return self._fence(pending, deadline)
            case Refused() | Refusal():
                if pending.unanswered:  # a copy of it may still be stored
                    return self._fence(pending, deadline) or None
                return self._not_stored(pending) or outcome
            case Unusable():
                return self._fence(pending, deadline)
            case Gone(failure):
                return self._gone(pending, failure)
        pending.unanswered = pending.unanswered or outcome.stored == "unknown"
        if not pending.unanswered:
            return self._not_stored(pending) or outcome
        # A row that breaks BigQuery must not be sent together with others for ever.
        pending.is_suspect = outcome.may_be_the_rows
        pending.needs_fence = outcome.may_be_the_rows and pending.copies >= FENCE_AFTER
        return outcome

    def _fence(self, pending: Pending, deadline: float) -> Failure | None:
        """Finalize the stream and count; None says that the rows are stored."""
        pending.needs_fence = True
        intent = pending.intent
        timeout = max(0.0, deadline - clock.monotonic())
        count = self._client.finalize(intent.stream, timeout)
        match count:
            case Failure():
                return count
            case Gone(failure):
                return self._gone(pending, failure)
        if count not in (intent.offset, intent.offset + intent.count):
            self._notes.note(
                logging.ERROR,
                "stream %s holds %d rows where %d or %d were expected: something else wrote to it, "
                "and rows may be missing or twice",
                intent.stream, count, intent.offset, intent.offset + intent.count,
            )  # fmt: skip
        self._books.stream = None
        if count >= intent.offset + intent.count:
            self._stored(pending)
            return None
        return self._not_stored(pending) or Failure(
            Reason("the rows were not stored; they are sent again in a new stream"), stored="no"
        )

    def _gone(self, pending: Pending, failure: Failure) -> Failure:
        """Give the stream up: BigQuery does not know it any more."""
        if pending.unanswered:
            self._notes.note(
                logging.WARNING,
                "stream %s is gone (it lives four days without traffic, and as long as its table): "
                "%d events whose outcome is not known are sent again and may be twice",
                pending.intent.stream, pending.intent.count,
            )  # fmt: skip
        self._books.stream = None
        return self._not_stored(pending) or failure

    def _stored(self, pending: Pending) -> None:
        self._books.stored(pending.intent)
        self.pending = None

    def _not_stored(self, pending: Pending) -> Failure | None:
        """Record that the rows are not stored, so that others may use their offset."""
        try:
            self._books.write(None)
        except OSError as error:
            pending.needs_fence = True
            return ledger_failure(error)
        self.pending = None
        return None


def ledger_failure(error: OSError) -> Failure:
    """Return what it means that the ledger cannot be written: nothing is sent."""
    text = f"the ledger cannot be written: {error.strerror or type(error).__name__}"
    what_to_do = "nothing is sent until the disk of the spool directory takes it"
    return Failure(Reason(text), what_to_do, stored="no")
