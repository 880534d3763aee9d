"""A delivery queue and the time, as the dispatcher would pass it."""

from __future__ import annotations

import orjson

from lorc_eventlog.bigquery.insert_all import LIMITS
from lorc_eventlog.bigquery.transport import Answer, Failure, Reason, Refusal
from lorc_eventlog.delivery.batch import Batch, Bounds
from lorc_eventlog.delivery.queue import DeliveryQueue
from lorc_eventlog.events.row import Row

REFUSAL = Refusal(Reason("400 invalid"), is_about_size=False)
TOO_LARGE = Refusal(Reason("413"), is_about_size=True)


def make_row(number: int, text: str = "") -> Row:
    payload = orjson.dumps({"number": number, "text": text}).decode()
    return {
        "event_id": str(number),
        "event_type": "test.happened",
        "source": "tests",
        "schema_ref": None,
        "created_at": "2026-11-25T18:45:57.000000+00:00",
        "correlation_id": None,
        "subject_id": None,
        "payload": payload,
    }


def numbers(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [int(row["event_id"]) for row in batch.rows]


def failure(*, may_be_the_rows: bool) -> Failure:
    return Failure(
        Reason("500 backendError"),
        what_to_do=None,
        may_be_the_rows=may_be_the_rows,
        stored="unknown",
    )


class Clock:
    """A queue and the time, as the dispatcher would pass it."""

    def __init__(
        self,
        *,
        batch_rows: int = 10,
        flush_interval: float = 1.0,
        capacity: int = 100_000,
        capacity_bytes: int = 2**26,
    ) -> None:
        self.now = 1000.0
        self.queue = DeliveryQueue(
            Bounds(batch_rows, flush_interval, capacity, capacity_bytes, LIMITS)
        )

    def add(self, *rows: int, text: str = "") -> None:
        for number in rows:
            self.queue.add(make_row(number, text), self.now)

    def flush(self) -> int:
        return self.queue.request_flush()

    def take(self) -> Batch:
        """The batch that is to be sent at this moment."""
        batch, _, _ = self.queue.take(self.now, alone=False)
        assert batch is not None
        return batch

    def take_next(self) -> Batch:
        """The next batch, when it may be sent; there must be one."""
        batch, seconds, _ = self.queue.take(self.now, alone=False)
        if batch is None:
            assert seconds is not None, "nothing would ever be sent"
            self.now += seconds
            batch = self.take()
        return batch

    def wait_for(self) -> float | None:
        """How long there is nothing to send."""
        batch, seconds, _ = self.queue.take(self.now, alone=False)
        assert batch is None
        return seconds

    def pause(self) -> float:
        """How long there is nothing to send, which is not for ever."""
        seconds = self.wait_for()
        assert seconds is not None
        return seconds

    def fail(
        self,
        batch: Batch,
        *,
        may_be_the_rows: bool = True,
        started: float | None = None,
        lasted: float = 0.1,
    ) -> bool:
        """The request fails; whether its row is given up."""
        started, self.now = self.now if started is None else started, self.now + lasted
        verdict = self.queue.failed(
            batch, failure(may_be_the_rows=may_be_the_rows), started=started, now=self.now
        )
        self.queue.dead_lettered(batch, verdict.dead)
        return bool(verdict.dead)

    def refuse(self, batch: Batch) -> bool:
        """The request is refused; whether its row is given up."""
        verdict = self.queue.refused(batch, REFUSAL, self.now)
        self.queue.dead_lettered(batch, verdict.dead)
        return bool(verdict.dead)

    def pass_(self, batch: Batch, *again: int) -> None:
        self.queue.succeeded(batch, Answer(again=again), self.now)


def take_new(clock: Clock, *rows: int) -> Batch:
    """Add rows, and take them."""
    clock.add(*rows)
    clock.flush()
    batch = clock.take()
    assert numbers(batch) == [*rows]
    return batch
