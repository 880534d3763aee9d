"""``lorc-eventlog emit``: payloads from a stream, and which of its lines BigQuery has.

In the foreground: when it ends, however it ends, nothing more is sent, so that a script can send
again what is not in BigQuery.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lorc_eventlog.bigquery.failures import RequestRefusedError, TryAgainError
from lorc_eventlog.bigquery.insert_all import LIMITS, REQUEST_TIMEOUT, insert_rows
from lorc_eventlog.bigquery.table import events_table
from lorc_eventlog.bigquery.transport import Answer, Failure, Reason, Refusal, RefusedRow
from lorc_eventlog.delivery.queue import Batch, DeadLetter, DeliveryQueue

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.events.row import Row

BATCH_ROWS = 500
"""The most events in one request."""

PATIENCE = 60.0
"""Seconds without an event that BigQuery takes, until it is given up."""

READ_BYTES = 2**16

Complain = Callable[[str, str], object]
"""Takes where a payload stands, and why it is no event."""


def read_rows(
    stream: BufferedReader, make_row: Callable[[dict[str, Any]], Row], complain: Complain
) -> Iterator[dict[str, Row]]:
    """Make rows of the payloads in ``stream``, as many at a time as are there.

    The first line decides: if it is an object, every line is to be one; else all is one object.

    Args:
        stream: Standard input.
        make_row: Makes the row of a payload; raises ValueError if it cannot.
        complain: Is told of each payload that is none.

    Returns:
        The rows, each by where its payload stands: ``line 7``.
    """
    for texts in _texts_of(stream):
        rows = {}
        for where, text in texts:
            try:
                rows[where] = make_row(as_object(text))
            except ValueError as error:
                complain(where, str(error))
        yield rows


def as_object(encoded: str | bytes) -> dict[str, Any]:
    """Decode a JSON object; the message of the ValueError does not quote it."""
    try:
        value = json.loads(encoded)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        msg = "the payload is no JSON object"
        raise ValueError(msg)  # noqa: TRY004  as for any other payload that is none
    return value


def _texts_of(stream: BufferedReader) -> Iterator[list[tuple[str, bytes]]]:
    number = 1
    begins = True
    chunks = _whole_lines(stream)
    for chunk in chunks:
        lines = enumerate(chunk.split(b"\n"), number)
        texts = [(f"line {number}", line) for number, line in lines if line.strip()]
        number += chunk.count(b"\n")
        if begins and texts:
            begins = False
            if not _is_object(texts[0][1]):
                yield [("standard input", b"".join([chunk, *chunks]))]
                return
        for start in range(0, len(texts), BATCH_ROWS):
            yield texts[start : start + BATCH_ROWS]


def _whole_lines(stream: BufferedReader) -> Iterator[bytes]:
    """Read what is there, and wait only if that is no line."""
    begun = bytearray()
    while data := stream.read1(READ_BYTES):
        end = data.rfind(b"\n") + 1
        if end:
            yield bytes(begun + data[:end])
            begun.clear()
        begun += data[end:]
    yield bytes(begun)


def _is_object(text: bytes) -> bool:
    try:
        as_object(text)
    except ValueError:
        return False
    return True


def deliver(client: Client, rows: dict[str, Row], complain: Complain) -> Iterator[str]:
    """Send ``rows`` and give the event_id of each that BigQuery has, in their order.

    A failure that may pass is tried again, by the rules of the background.

    Args:
        client: The BigQuery client.
        rows: Each by where its payload stands.
        complain: Is told of each row that BigQuery will never take.

    Raises:
        RuntimeError: Some are not in BigQuery, or perhaps not; the message names them.
    """
    delivery = _Delivery(client, [*rows.values()])
    delivery.run()
    for where, row in rows.items():
        refusal = delivery.settled.get(row["event_id"], "")
        if refusal is None:
            yield row["event_id"]
        elif refusal:
            complain(where, refusal)
    if len(delivery.settled) < len(rows):
        raise RuntimeError(_what_is_left(rows, delivery))


class _Delivery:
    """Some rows on their way, and what became of each."""

    def __init__(self, client: Client, rows: list[Row]) -> None:
        self.settled: dict[str, str | None] = {}
        """By event_id, why BigQuery will never take it; None if BigQuery has it."""
        self.failure = "BigQuery puts them off"
        """Why the others are not settled."""
        self.may_have_stored_others = False
        self._client = client
        self._count = len(rows)
        self._queue = DeliveryQueue(
            batch_rows=BATCH_ROWS,
            flush_interval=0.0,
            capacity=sys.maxsize,
            capacity_bytes=sys.maxsize,
            limits=LIMITS,
        )
        now = time.monotonic()
        for row in rows:
            self._queue.add(row, now)
        self._give_up_at = now + PATIENCE

    def run(self) -> None:
        """Send until all is settled, or it is time to give up."""
        while len(self.settled) < self._count and (now := time.monotonic()) < self._give_up_at:
            if self._queue.holds_only_doubtful:  # nothing else is sent that could clear them
                for letter in self._queue.drop_doubtful(sys.maxsize):
                    self._settle(letter.row, letter.reason.text)
                return
            batch, seconds, _ = self._queue.take(now, alone=True)
            if batch is None:
                time.sleep(min(seconds or 0.0, self._give_up_at - now))
            else:
                self._send(batch, now)

    def _send(self, batch: Batch, started: float) -> None:
        timeout = min(REQUEST_TIMEOUT, self._give_up_at - started)
        now = time.monotonic
        queue = self._queue
        try:
            answer = insert_rows(self._client, events_table(), batch.rows, timeout=timeout)
        except RequestRefusedError as error:
            refusal = Refusal(Reason(str(error)), is_about_size=str(error).startswith("413"))
            self._give_up(batch, queue.refused(batch, refusal, now()).dead)
        except TryAgainError as failure:
            self._failed(batch, failure, started)
        else:
            refused = tuple(
                RefusedRow(index, Reason(why), why, is_about_payload=True)
                for index, why in answer.refused.items()
            )
            verdict = queue.succeeded(batch, Answer(refused, tuple(answer.again)), now())
            for row in verdict.stored:
                self._settle(row, None)
            self._give_up(batch, verdict.dead)

    def _failed(self, batch: Batch, failure: TryAgainError, started: float) -> None:
        self.failure = str(failure)
        # A 503 does not accuse the rows, and they may be stored nevertheless.
        if failure.may_be_the_rows or failure.reason.startswith("503"):
            self.may_have_stored_others = True
        now = time.monotonic()
        if failure.what_to_do is not None:  # time does not mend it
            self._give_up_at = now
            return
        verdict = self._queue.failed(
            batch,
            Failure(
                Reason(self.failure),
                what_to_do=None,
                may_be_the_rows=failure.may_be_the_rows,
                stored="unknown",
            ),
            started=started,
            now=now,
        )
        self._give_up(batch, verdict.dead)

    def _give_up(self, batch: Batch, dead: list[DeadLetter]) -> None:
        self._queue.dead_lettered(batch, dead)
        for letter in dead:
            self._settle(letter.row, letter.reason.text)

    def _settle(self, row: Row, refusal: str | None) -> None:
        self.settled[row["event_id"]] = refusal
        self._give_up_at = time.monotonic() + PATIENCE


def _what_is_left(rows: dict[str, Row], delivery: _Delivery) -> str:
    spans = []
    settled = delivery.settled
    for is_settled, run in groupby(rows, key=lambda where: rows[where]["event_id"] in settled):
        if not is_settled:
            first, *others = run
            spans.append(f"{first} to {others[-1].removeprefix('line ')}" if others else first)
    be = "is not" if len(rows) - len(settled) == 1 else "are not"
    if delivery.may_have_stored_others:
        be = "may or may not be"
    *_, last = rows
    later = f", no line after {last[5:]} is" if last.startswith("line ") else ""
    return f"{', '.join(spans)} {be} in BigQuery{later}: {delivery.failure}"
