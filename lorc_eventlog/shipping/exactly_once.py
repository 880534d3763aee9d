"""Rows into a committed stream of BigQuery, each exactly once: the protocol of the ledger.

While the outcome of a request is unknown, the *same rows* are sent at the *same offset* of the
*same stream*. BigQuery stores them if it had not, and says that the offset is taken if it had.
Other rows may use the offset only after a definite refusal, with no earlier copy of the request
unanswered: a late first copy would be stored in their place. Where that cannot be known, the stream
is finalized: that is the *fence*. Afterwards nothing can be stored in it, and its count tells what
was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.storage_messages import encode_rows
from lorc_eventlog.bigquery.storage_stream import (
    Refused,
    StreamClient,
)
from lorc_eventlog.bigquery.storage_write import LIMITS
from lorc_eventlog.bigquery.transport import (
    Answer,
    Failure,
    Refusal,
    RefusedRow,
)
from lorc_eventlog.lifecycle import clock
from lorc_eventlog.shipping.follower import runs_of
from lorc_eventlog.shipping.ledger import Intent
from lorc_eventlog.shipping.pending import Pending, checksum_of, most_in_runs
from lorc_eventlog.shipping.requests import Requests, ledger_failure
from lorc_eventlog.shipping.segment import key_of
from lorc_eventlog.shipping.stream_maker import StreamMaker

if TYPE_CHECKING:
    from lorc_eventlog.diagnostics import Notes
    from lorc_eventlog.events.row import Row
    from lorc_eventlog.shipping.books import Books
    from lorc_eventlog.shipping.follower import Follower
    from lorc_eventlog.shipping.segment import Place


class ExactlyOnceTransport:
    """The transport of a shipper that sends with one thread at a time.

    Threads: the sender calls :meth:`send`, and :meth:`settle` when it has nothing to send. No lock:
    the dispatcher never lets two senders work at the same time here.

    Args:
        table: ``dataset.table`` or ``project.dataset.table``.
        client: Speaks to the streams.
        follower: Knows where each row is in the spool.
        books: Keep the ledger and the spool in step.
        notes: Takes what is to be reported.
    """

    limits = LIMITS

    def __init__(
        self,
        table: str,
        *,
        client: StreamClient,
        follower: Follower,
        books: Books,
        notes: Notes,
    ) -> None:
        self._follower = follower
        self._books = books
        self._client = client
        self._requests = Requests(client, books, notes)
        self._maker = StreamMaker(table, client)

    @property
    def is_connected(self) -> bool:
        """False, so that one request at a time is sent."""
        return False

    def restart_in_child(self) -> None:
        """Do nothing: a shipper does not fork."""

    def reconnect(self) -> None:
        """Open a new connection for the next request."""
        self._client.disconnect()

    # What delivery calls

    def send(self, rows: Sequence[Row], *, timeout: float) -> Answer | Failure | Refusal:
        """Send ``rows``; what is pending from before is settled first."""
        deadline = clock.monotonic() + timeout
        places = [self._follower.place_of(row) for row in rows]
        failure = self._requests.make_way([*map(key_of, places)], deadline)
        if failure is not None:
            return failure
        resolved = self._requests.resolved
        left: Sequence[int] = range(len(rows))
        if resolved:
            left = [index for index in left if key_of(places[index]) not in resolved]
        refused: list[RefusedRow] = []
        while left:
            sent = [places[index] for index in left]
            count = most_in_runs(sent)
            batch, later = left[:count], left[count:]
            result = self._send_batch([rows[index] for index in batch], sent[:count], deadline)
            if isinstance(result, Refused):
                refused += [replace(row, index=batch[row.index]) for row in result.rows]
                named = {row.index for row in result.rows}
                batch = [index for number, index in enumerate(batch) if number not in named]
                left = [*batch, *later]
            elif result is None:
                if later:
                    # Delivery may be told of a failure of these, and then sends all again.
                    resolved.update(map(key_of, sent[:count]))
                left = later
            else:
                return result
        if resolved:
            resolved.difference_update(map(key_of, places))
        return Answer(tuple(refused))

    @property
    def is_settled(self) -> bool:
        """Whether the ledger knows what became of everything that was sent."""
        return self._requests.pending is None and self._books.is_written

    def settle(self, timeout: float) -> Failure | None:
        """Settle what is pending, record and erase what is stored: there is nothing to send.

        Returns:
            None if everything is settled; else why not, and it may be called again.
        """
        if self._requests.pending is not None:
            failure = self._requests.settle(self._requests.pending, clock.monotonic() + timeout)
            if failure is not None:
                return failure
        if not self._books.is_written:
            try:
                self._books.write(None)
            except OSError as error:
                return ledger_failure(error)
        return None

    def fence(self, rows: Sequence[Row], timeout: float) -> list[Row] | None:
        """Return which of ``rows``, given up, are stored all the same; None if nobody knows yet.

        Their last request may have failed without an answer, and a copy of it be stored later.
        """
        by_key = {key_of(self._follower.place_of(row)): row for row in rows}
        pending = self._requests.pending
        if pending is not None and not by_key.keys().isdisjoint(pending.keys()):
            pending.needs_fence = True
            self._requests.settle(pending, clock.monotonic() + timeout)
            if self._requests.pending is not None:
                return None
        stored = self._requests.resolved & by_key.keys()
        self._requests.resolved -= stored
        return [by_key[key] for key in stored]

    # One request

    def _send_batch(
        self, rows: Sequence[Row], places: Sequence[Place], deadline: float
    ) -> Refused | Refusal | Failure | None:
        """Send rows that are neither stored nor pending; None says that they are stored."""
        stream = self._books.stream
        if stream is None:
            created = self._maker.make(deadline)
            if isinstance(created, Failure):
                return created
            self._books.stream = stream = created
            self._books.end = 0
        encoded = encode_rows(rows)
        intent = Intent(stream, self._books.end, len(rows), runs_of(places), checksum_of(encoded))
        try:
            self._books.write(intent)
        except OSError as error:
            return ledger_failure(error)
        pending = Pending(intent, encoded, places)
        self._requests.pending = pending
        return self._requests.attempt(pending, deadline)
