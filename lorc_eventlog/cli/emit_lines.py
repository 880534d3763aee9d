"""``lorc-eventlog emit``: payloads from a stream, and which of its lines BigQuery has.

In the foreground: when it ends, however it ends, nothing more is sent, so that a script can send
again what is not in BigQuery.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lorc_eventlog.bigquery.insert_all import InsertAllTransport
from lorc_eventlog.bigquery.table import events_table
from lorc_eventlog.bigquery.transport import Answer, Failure
from lorc_eventlog.cli.output import Trouble
from lorc_eventlog.cli.query import what_to_wait_for
from lorc_eventlog.cli.waiting import telling, who_answers
from lorc_eventlog.delivery.batch import Bounds
from lorc_eventlog.delivery.courier import Courier
from lorc_eventlog.delivery.queue import DeliveryQueue
from lorc_eventlog.delivery.report import Report
from lorc_eventlog.delivery.senders import REQUEST_TIMEOUT
from lorc_eventlog.delivery.settlement import Settlement
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.lifecycle import clock
from lorc_eventlog.lifecycle.locks import Lock

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.bigquery.transport import Refusal
    from lorc_eventlog.events.envelope import Envelope
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
            try:
                as_object(texts[0][1])
            except ValueError:
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


def deliver(client: Client, rows: dict[str, Row], complain: Complain) -> Iterator[str]:
    """Send ``rows`` and give the event_id of each that BigQuery has, in their order.

    A failure that may pass is tried again, by the rules of the background.

    Args:
        client: The BigQuery client.
        rows: Each by where its payload stands.
        complain: Is told of each row that BigQuery will never take.

    Raises:
        Trouble: Some are not in BigQuery, or perhaps not; the message names them.
    """
    delivery = _Delivery(client, [*rows.values()])
    with telling(delivery.what_it_waits_for):
        delivery.run()
    left = False
    for where, row in rows.items():
        event_id = row["event_id"]
        if event_id in delivery.transport.stored:
            yield event_id
        elif event_id in delivery.refused:
            complain(where, f"BigQuery refuses it: {delivery.refused[event_id]}")
        else:
            left = True
    if left:
        raise Trouble(_what_is_left(rows, delivery), delivery.what_to_do)


class _Silent(Notes):
    """Takes messages of delivery that nobody is to hear: the command has words of its own."""

    def note(self, level: int, message: str, *arguments: object) -> None:
        """Forget it."""


class _Watched(InsertAllTransport):
    """A transport that remembers what its outcomes tell about the rows."""

    def __init__(self, client: Client, table: str) -> None:
        super().__init__(client, table)
        self.stored: set[str] = set()
        """The event_ids of the rows that BigQuery has."""
        self.may_have_stored_others = False
        self.what_to_do: str | None = None
        """What an operator has to do, because time does not mend why it failed."""

    def send(self, rows: Sequence[Row], *, timeout: float) -> Answer | Failure | Refusal:
        outcome = super().send(rows, timeout=timeout)
        if isinstance(outcome, Answer):
            unstored = {refused.index for refused in outcome.refused}.union(outcome.again)
            self.stored.update(
                row["event_id"] for index, row in enumerate(rows) if index not in unstored
            )
        elif isinstance(outcome, Failure):
            self.may_have_stored_others |= outcome.stored == "unknown"
            self.what_to_do = self.what_to_do or outcome.what_to_do
        return outcome


class _Delivery:
    """Some rows on their way, and what became of each. The parts of the background, on one thread.

    Nothing is sent after :meth:`run`.
    """

    def __init__(self, client: Client, rows: list[Row]) -> None:
        self.refused: dict[str, str] = {}
        """By event_id, why BigQuery will never take it."""
        self.transport = _Watched(client, events_table())
        self._queue = DeliveryQueue(
            Bounds(BATCH_ROWS, 0.0, sys.maxsize, sys.maxsize, self.transport.limits)
        )
        self._report = Report(_Silent(), full="", spool_dir=None)
        lock = Lock()
        settlement = Settlement(lock, self._queue, self._report, self._refuse, int)
        self._courier = Courier(lock, self._queue, self.transport, settlement, self._report)
        for row in rows:
            self._queue.add(row, clock.monotonic())

    @property
    def failure(self) -> str:
        """Why the others are not settled."""
        why = str(self._report.last_error or "BigQuery puts them off")
        return why.removesuffix(f": {self.transport.what_to_do}")

    @property
    def what_to_do(self) -> str:
        """What to do about the others."""
        if self.transport.what_to_do is not None:
            return self.transport.what_to_do
        if self.transport.may_have_stored_others:
            return (
                "look with `lorc-eventlog tail` before you send them again: what BigQuery has got "
                "would be there twice"
            )
        return what_to_wait_for()

    def what_it_waits_for(self) -> str:
        """Tell a person why nothing happens, and how long that can go on."""
        why = self._report.last_error or "no answer yet"
        return (
            f"waiting for {who_answers()}: {why}; giving up after {PATIENCE:g} s without progress"
        )

    def is_settled(self, event_id: str) -> bool:
        """Whether BigQuery has the event, or will never take it."""
        return event_id in self.transport.stored or event_id in self.refused

    def run(self) -> None:
        """Send until all is settled, or it is time to give up."""
        held, give_up_at = self._queue.held, clock.monotonic() + PATIENCE
        while self._queue.held and self.transport.what_to_do is None:
            now = clock.monotonic()
            if self._queue.held < held:
                held, give_up_at = self._queue.held, now + PATIENCE
            if self._queue.holds_only_doubtful:  # nothing else is sent that could clear them
                for letter in self._queue.drop_doubtful(sys.maxsize):
                    self.refused[letter.row["event_id"]] = letter.reason.told([letter.row])
            elif now >= give_up_at:
                break
            else:
                self._send(now, give_up_at)

    def _send(self, now: float, give_up_at: float) -> None:
        task, wait = self._courier.choose(now, min(REQUEST_TIMEOUT, give_up_at - now))
        if task is None:
            time.sleep(min(wait or 0.0, give_up_at - now))
            return
        try:
            task()
        finally:
            self._courier.put_down()

    def _refuse(self, envelope: Envelope, reason: str) -> None:
        self.refused[envelope["event_id"]] = reason


def _what_is_left(rows: dict[str, Row], delivery: _Delivery) -> str:
    spans = []
    count = 0
    for settled, run in groupby(
        rows, key=lambda where: delivery.is_settled(rows[where]["event_id"])
    ):
        first, *others = run
        if not settled:
            count += 1 + len(others)
            spans.append(f"{first} to {others[-1].removeprefix('line ')}" if others else first)
    be = "is not" if count == 1 else "are not"
    if delivery.transport.may_have_stored_others:
        be = "may or may not be"
    *_, last = rows
    later = f", no line after {last[5:]} is" if last.startswith("line ") else ""
    return f"{', '.join(spans)} {be} in BigQuery{later}: {delivery.failure}"
