"""What a fleet of processes does to BigQuery after an outage: no herd, and nothing lost.

    python -m benchmarks.fleet                      100, 500, 2,000 and 5,000 processes
    python -m benchmarks.fleet --processes 100 --outage 60

Each process is a real delivery queue. The clock is simulated, so that half an hour takes seconds,
the chance is seeded, and BigQuery is a model: it answers after a while, refuses everything during
the outage, and whatever is beyond its quota of bytes a second.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.insert_all import LIMITS
from lorc_eventlog.bigquery.transport import Answer, Failure, Reason
from lorc_eventlog.delivery.batch import Bounds
from lorc_eventlog.delivery.queue import DeliveryQueue
from lorc_eventlog.delivery.senders import MAX_SENDERS
from lorc_eventlog.events.row import row_bytes

if TYPE_CHECKING:
    from lorc_eventlog.delivery.batch import Batch
    from lorc_eventlog.events.row import Row

ROW: Row = {
    "event_id": "8f14e45f-ceea-467f-a0f1-0d5b1a5e2c3d",
    "event_type": "email.received",
    "source": "gmail_ingester",
    "schema_ref": None,
    "created_at": "2026-11-25T18:45:57.000000+00:00",
    "correlation_id": None,
    "subject_id": None,
    "payload": '{"text":"' + "x" * 380 + '"}',
}
ROW_BYTES = row_bytes(ROW)

WARM_UP = 30.0
"""Seconds of health before the outage."""


@dataclass(frozen=True)
class Fleet:
    """What is simulated."""

    processes: int
    outage: float = 1800.0
    """Seconds that BigQuery refuses everything."""
    rate: float = 1.0
    """Events a second that each process logs."""
    bytes_a_second: float = 300e6
    """BigQuery's quota outside of the multi-regions."""
    latency: float = 0.1
    """Seconds that an answer takes, on average."""
    seed: int = 15


@dataclass
class Result:
    """What was seen."""

    during_outage: int = 0
    """Requests."""
    busiest_second: int = 0
    """Requests in the busiest second after the outage."""
    mean_a_second: float = 0.0
    """Requests a second, from the first success after the outage until 90 % is drained."""
    drained_after: float = 0.0
    """Seconds after the outage until all that waited is stored."""
    most_drained_after: float = 0.0
    """Seconds after the outage until 90 % of it is stored."""
    over_quota: int = 0
    """Requests that were refused for the quota."""
    submitted: int = 0
    stored: int = 0
    dropped: int = 0
    held: int = 0

    @property
    def ratio(self) -> float:
        """How much busier the busiest second is than the mean one."""
        return self.busiest_second / self.mean_a_second


class BigQuery:
    """Answers as BigQuery does: not during the outage, and no more than its quota."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._second = -1
        self._bytes = 0

    def answer(self, batch: Batch, now: float) -> Answer | Failure:
        """Return what becomes of a request that arrives now."""
        if WARM_UP <= now < WARM_UP + self._fleet.outage:
            return self._failure("503 backendError")
        if int(now) != self._second:
            self._second, self._bytes = int(now), 0
        if self._bytes + batch.size > self._fleet.bytes_a_second:
            return self._failure("403 quotaExceeded")
        self._bytes += batch.size
        return Answer()

    @staticmethod
    def _failure(text: str) -> Failure:
        return Failure(Reason(text), what_to_do=None, may_be_the_rows=False, stored="no")


@dataclass
class Process:
    """A delivery queue with senders, and an application that logs at a rate."""

    next_event: float
    queue: DeliveryQueue
    in_flight: int = 0
    turn: int = 0
    """Which of the moments for which it is waiting still counts."""
    submitted: int = 0
    dropped: int = 0
    waited: int = 0
    """Rows that were held when the outage was over..."""
    stored_before: int = 0
    """... and those that were stored by then."""

    @property
    def drained(self) -> int:
        """How many of the rows that waited are stored, for these go first."""
        return min(self.waited, self.queue.stored - self.stored_before)


@dataclass
class Simulation:
    """Runs a fleet. Moments are (time, number, process, turn or what was sent and when)."""

    fleet: Fleet
    now: float = 0.0
    result: Result = field(default_factory=Result)

    def __post_init__(self) -> None:
        """Start the processes, spread over a second."""
        random.seed(self.fleet.seed)  # the pauses of the queues are drawn from it, too
        self._bigquery = BigQuery(self.fleet)
        self._number = itertools.count()
        self._moments: list[tuple[float, int, Process, int | tuple[Batch, float]]] = []
        self._requests: Counter[int] = Counter()
        self._first_success = 0.0
        self._drained = 0
        bounds = Bounds(500, 1.0, 100_000, 64 * 2**20, LIMITS)  # the defaults
        self.processes = [
            Process(random.random() / self.fleet.rate, DeliveryQueue(bounds))  # noqa: S311
            for _ in range(self.fleet.processes)
        ]
        for process in self.processes:
            self._wait(process, process.next_event)

    def run(self) -> Result:
        """Simulate until all that waited is stored, and count."""
        ends = WARM_UP + self.fleet.outage
        while self._moments[0][0] < ends:
            self._step()
        self.now = ends
        for process in self.processes:
            self._log(process)
            process.stored_before = process.queue.stored
            process.waited = process.queue.held
        waiting = sum(process.waited for process in self.processes)
        result = self.result
        while self._drained < waiting:
            self._step()
            if not result.most_drained_after and self._drained >= 0.9 * waiting:
                result.most_drained_after = self.now - ends
        result.drained_after = self.now - ends
        seconds = {second: n for second, n in self._requests.items() if second >= int(ends)}
        last = ends + result.most_drained_after
        counted = sum(
            n for second, n in seconds.items() if int(self._first_success) <= second <= last
        )
        result.busiest_second = max(seconds.values())
        result.mean_a_second = counted / (int(last) - int(self._first_success) + 1)
        for process in self.processes:
            result.submitted += process.submitted
            result.dropped += process.dropped
            result.stored += process.queue.stored
            result.held += process.queue.held
        return result

    def _step(self) -> None:
        self.now, _, process, what = heapq.heappop(self._moments)
        if isinstance(what, tuple):
            self._answered(process, *what)
        elif what != process.turn:
            return
        self._log(process)
        self._send(process)

    def _log(self, process: Process) -> None:
        """Log what the application has logged by now."""
        while process.next_event <= self.now:
            process.submitted += 1
            process.dropped += not process.queue.accept(ROW, process.next_event)
            process.next_event += 1 / self.fleet.rate

    def _send(self, process: Process) -> None:
        while process.in_flight < MAX_SENDERS:
            batch, wait, _ = process.queue.take(self.now, alone=False)
            if batch is None:
                at = process.next_event if wait is None else self.now + max(wait, 1e-6)
                self._wait(process, at)
                return
            process.in_flight += 1
            self._requests[int(self.now)] += 1
            self.result.during_outage += WARM_UP <= self.now < WARM_UP + self.fleet.outage
            takes = self.fleet.latency * random.lognormvariate(-0.125, 0.5)
            self._push(self.now + takes, process, (batch, self.now))

    def _answered(self, process: Process, batch: Batch, sent_at: float) -> None:
        process.in_flight -= 1
        outcome = self._bigquery.answer(batch, sent_at)
        if isinstance(outcome, Failure):
            self.result.over_quota += "quota" in outcome.reason.text
            process.queue.failed(batch, outcome, started=sent_at, now=self.now)
            return
        before = process.drained
        process.queue.succeeded(batch, outcome, self.now)
        if process.waited:
            self._drained += process.drained - before
            self._first_success = self._first_success or self.now

    def _wait(self, process: Process, at: float) -> None:
        process.turn += 1
        self._push(at, process, process.turn)

    def _push(self, at: float, process: Process, what: int | tuple[Batch, float]) -> None:
        heapq.heappush(self._moments, (at, next(self._number), process, what))


def main() -> None:
    """Print a line for each size of the fleet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[100, 500, 2000, 5000])
    parser.add_argument("--outage", type=float, default=1800.0, help="seconds")
    parser.add_argument("--rate", type=float, default=1.0, help="events a second and process")
    parser.add_argument("--seed", type=int, default=15)
    options = parser.parse_args()
    print(
        "| processes | requests a second in the outage | in the busiest second after it "
        "| in a mean second | ratio | 90 % drained after | all | events | dropped | over quota |"
    )
    print("| --- |" + " --- |" * 9)
    for processes in options.processes:
        began = time.monotonic()
        fleet = Fleet(processes, options.outage, options.rate, seed=options.seed)
        r = Simulation(fleet).run()
        print(
            f"| {processes:,} | {r.during_outage / fleet.outage:,.0f} | {r.busiest_second:,} "
            f"| {r.mean_a_second:,.0f} | {r.ratio:.1f} | {r.most_drained_after:.0f} s "
            f"| {r.drained_after:.0f} s | {r.submitted:,} | {r.dropped:,} | {r.over_quota:,} |",
            f" <!-- {time.monotonic() - began:.0f} s -->",
            flush=True,
        )


if __name__ == "__main__":
    main()
