"""The queue as a machine: whatever comes in whatever order, the books balance and nothing starves.

The model knows of each row what it is (good, or bad in one of several ways) and what became of it.
It looks into the queue's books after every step, and compares.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lorc_eventlog.bigquery.transport import (
    Answer,
    Failure,
    Limits,
    Reason,
    Refusal,
    RefusedRow,
)
from lorc_eventlog.delivery.batch import Batch, Bounds, DeadLetter, Doubt, Verdict
from lorc_eventlog.delivery.queue import DeliveryQueue
from lorc_eventlog.delivery.schedule import HUNG_AFTER
from lorc_eventlog.events.row import SMALL_ROW, Row, row_bytes

REQUEST_BYTES = 9_000
LENGTHS = st.sampled_from([0, 10, 400, 3_000, 20_000])
KINDS = ["good", "good", "good", "good", "400", "500", "row", "payload", "size", "ours"]
"""What a row does to its request, whatever the table is: nothing, a 400, a 500, ... or it makes
our own code raise."""


def make_row(number: int, length: int) -> Row:
    return {
        "event_id": str(number),
        "event_type": "test.happened",
        "source": "tests",
        "schema_ref": None,
        "created_at": "",
        "correlation_id": None,
        "subject_id": "s" * (length % 7),
        "payload": "p" * length,
    }


@dataclass
class Known:
    """What the model knows of a row."""

    number: int
    kind: str
    position: int
    size: int
    fate: str = "held"
    refusals: list[tuple[float, int]] = field(default_factory=list)
    """When it was refused, or failed in doubt, alone or for itself; rows stored by then."""
    failures: list[tuple[float, int]] = field(default_factory=list)
    """When a request failed with it, and rows stored by then."""


@dataclass(eq=False)
class Flight:
    batch: Batch
    started: float
    is_decided: bool = False


def number_of(row: Row) -> int:
    return int(row["event_id"])


def failure(*, may_be_the_rows: bool) -> Failure:
    return Failure(
        Reason("500" if may_be_the_rows else "503"),
        what_to_do=None,
        may_be_the_rows=may_be_the_rows,
        stored="unknown",
    )


def refused_row(index: int, kind: str, *, is_about_payload: bool = False) -> RefusedRow:
    return RefusedRow(index, Reason(kind), kind, is_about_payload=is_about_payload)


class World:
    """A queue, what is known of its rows, and a BigQuery that answers by what they are."""

    def __init__(self, *, batch_rows: int, flush_interval: float, capacity: int) -> None:
        self.now = 1000.0
        self.batch_rows = batch_rows
        self.capacity = capacity
        self.capacity_bytes = 40_000
        limits = Limits(rows=5, request_bytes=REQUEST_BYTES, wire_bytes=row_bytes)
        self.queue = DeliveryQueue(
            Bounds(batch_rows, flush_interval, capacity, self.capacity_bytes, limits)
        )
        self.known: dict[int, Known] = {}
        self.skipped = 0
        self.flights: list[Flight] = []
        self.letters: list[tuple[Batch, DeadLetter]] = []
        self.table = "right"
        self.is_ending = False

    @property
    def position(self) -> int:
        return len(self.known) + self.skipped

    def count(self, *fates: str) -> int:
        return sum(known.fate in fates for known in self.known.values())

    # Rows come in

    def make(self, kind: str, length: int) -> Row:
        number = len(self.known)
        row = make_row(number, length)
        self.known[number] = Known(number, kind, self.position, row_bytes(row))
        return row

    # BigQuery answers

    def truth(self, rows: list[Row]) -> Answer | Failure | Refusal | None:
        """What BigQuery says to ``rows``; None if our own code raises."""
        kinds = [self.known[number_of(row)].kind for row in rows]
        if "ours" in kinds:
            return None
        if self.table == "down":
            return failure(may_be_the_rows=False)
        if self.table == "broken" or "500" in kinds:
            return failure(may_be_the_rows=True)
        if "size" in kinds:
            return Refusal(Reason("413"), is_about_size=True)
        if self.table == "a view" or "400" in kinds:
            return Refusal(Reason("400"), is_about_size=False)
        if self.table == "another":
            kinds = ["row" if kind == "good" else kind for kind in kinds]
        refused = [
            refused_row(index, kind, is_about_payload=kind == "payload")
            for index, kind in enumerate(kinds)
            if kind != "good"
        ]
        return Answer(tuple(refused))

    def settle(self, flight: Flight, result: Answer | Failure | Refusal | None) -> None:
        """Hand in a result, and compare what the queue makes of it."""
        queue, batch = self.queue, flight.batch
        found = batch if batch in queue._in_flight else None
        copy = queue._copies.get(batch)
        if isinstance(result, Answer) and (copy in queue._in_flight or copy in queue._again):
            found = copy
        assert flight.is_decided <= (found is None)
        flight.is_decided = True
        stored_before = queue.stored
        if result is None:
            assert queue.give_back(batch, self.now) == (found is not None)
            verdict = Verdict()
        elif isinstance(result, Answer):
            verdict = queue.succeeded(batch, result, self.now)
        elif isinstance(result, Refusal):
            verdict = queue.refused(batch, result, self.now)
        else:
            verdict = queue.failed(batch, result, started=flight.started, now=self.now)
        if found is None:
            assert not verdict.stored
            assert not verdict.dead
            return
        self._note(found, result, stored_before)
        self._check_stored(found, result, verdict)
        for letter in verdict.dead:
            known = self.known[number_of(letter.row)]
            assert known.fate == "held"
            assert letter.row in found.rows
            assert letter.position == known.position
            assert self._may_die(known, found, result, verdict), (known, result, found)
            known.fate = "letter"
            self.letters.append((batch, letter))

    def _check_stored(
        self, batch: Batch, result: Answer | Failure | Refusal | None, verdict: Verdict
    ) -> None:
        if isinstance(result, Answer):
            named = {row.index for row in result.refused} | {*result.again}
            others = [row for index, row in enumerate(batch.rows) if index not in named]
            assert verdict.stored == others
        else:
            assert not verdict.stored
        for row in verdict.stored:
            known = self.known[number_of(row)]
            assert known.fate == "held"
            known.fate = "stored"

    def _note(
        self, batch: Batch, result: Answer | Failure | Refusal | None, stored_before: int
    ) -> None:
        rows = [self.known[number_of(row)] for row in batch.rows]
        event = (self.now, stored_before)
        if isinstance(result, Answer) and len(result.refused) + len(result.again) == len(rows):
            for row in result.refused:
                if not row.is_about_payload:
                    rows[row.index].refusals.append(event)
        elif isinstance(result, Refusal) or (isinstance(result, Failure) and batch.doubts):
            rows[0].refusals += [event] * (len(rows) == 1)
        elif not isinstance(result, Answer):
            for known in rows:
                known.failures.append(event)

    def _may_die(
        self,
        known: Known,
        batch: Batch,
        result: Answer | Failure | Refusal | None,
        verdict: Verdict,
    ) -> bool:
        """Whether what the model knows is enough to give the row up."""
        if isinstance(result, Answer):
            [refused] = [
                row
                for row in result.refused
                if batch.rows[row.index]["event_id"] == str(known.number)
            ]
            return bool(verdict.stored) or refused.is_about_payload or self._is_given_up(known)
        assert len(batch.rows) == 1
        if isinstance(result, Refusal):
            return result.is_about_size or self._is_given_up(known)
        assert isinstance(result, Failure)
        if batch.doubts:
            return self._is_given_up(known)
        (first, _), (last, stored_last) = known.failures[0], known.failures[-1]
        return (
            result.may_be_the_rows
            and len(known.failures) >= 4
            and last - first >= 5
            and stored_last > 0
        )

    @staticmethod
    def _is_given_up(known: Known) -> bool:
        """Three refusals in a minute or longer, with another row stored between each two."""
        counted = [known.refusals[0]]
        for event in known.refusals:
            if event[1] > counted[-1][1]:
                counted.append(event)
        return len(counted) >= 3 and known.refusals[-1][0] - known.refusals[0][0] >= 60

    def take(self, *, alone: bool) -> tuple[bool, float | None]:
        """Let a sender take what there is: whether there was, and else how long it waits."""
        queue = self.queue
        youngest = max((batch.sent_at for batch in queue._in_flight), default=-1e9)
        one_at_a_time = alone or queue.in_outage
        batch, wait, chore = queue.take(self.now, alone=alone)
        assert chore is None
        if batch is None:
            assert wait is None or wait > 0
            return False, wait
        assert wait is None
        assert 0 < len(batch.rows) <= min(self.batch_rows, 5)
        assert len(batch.rows) == 1 or sum(map(row_bytes, batch.rows)) <= REQUEST_BYTES
        if one_at_a_time and self.now - youngest < HUNG_AFTER:
            raise AssertionError("a request joined one that was to be alone")
        self.flights.append(Flight(batch, self.now))
        return True, None

    def drop(self, size: int) -> None:
        """Let rows in doubt make room: the oldest, as few as are needed, or none at all."""
        queue = self.queue
        had_room = queue.has_room(size)
        waiting = {
            position: row  # those of a request that were refused for the same reason stay together
            for doubt in sorted(queue._doubtful, key=lambda doubt: doubt.positions[0])
            for row, position in zip(doubt.rows, doubt.positions, strict=True)
        }
        letters = queue.drop_doubtful(size)
        assert [letter.position for letter in letters] == [*waiting][: len(letters)]
        for letter in letters:
            known = self.known[number_of(letter.row)]
            assert (known.fate, known.position) == ("held", letter.position)
            known.fate = "dropped"
        if letters:
            assert not had_room
            assert queue.has_room(size)
            last = row_bytes(letters[-1].row)
            assert queue.held + 1 >= self.capacity or not queue.has_room(size + last)
        elif not had_room:
            freed = sum(map(row_bytes, waiting.values()))
            assert (
                queue.held - len(waiting) >= self.capacity
                or queue.held_bytes - freed + size > self.capacity_bytes
            )

    def tell(self, count: int) -> None:
        """Hand over dead letters; the second time must change nothing."""
        told, self.letters = self.letters[:count], self.letters[count:]
        for batch, letter in told:
            for _ in range(2):
                self.queue.dead_lettered(batch, [letter])
            self.known[number_of(letter.row)].fate = "dead"

    # What must always hold

    def check(self) -> None:
        queue = self.queue
        unsettled = {k.position: k for k in self.known.values() if k.fate in ("held", "letter")}
        places = Counter[int]()
        for portion in queue._fresh._portions:
            assert portion.size == sum(map(row_bytes, portion.rows))
            for index, row in enumerate(portion.rows):
                assert unsettled[portion.position + index].number == number_of(row)
                places[portion.position + index] += 1
        waiting: list[Batch | Doubt] = [*queue._in_flight, *queue._again, *queue._doubtful]
        for held in waiting:
            assert held.rows
            assert held.positions[0] == min(held.positions)
            for row, position in zip(held.rows, held.positions, strict=True):
                assert unsettled[position].number == number_of(row)
                places[position] += 1
        for batch in (*queue._in_flight, *queue._again):
            if batch.doubts:
                assert [row for doubt in batch.doubts for row in doubt.rows] == batch.rows
        for letter in queue._letters:
            assert unsettled[letter.position].fate == "letter"
            places[letter.position] += 1
        assert places == Counter(unsettled.keys())
        self._check_numbers(unsettled)

    def _check_numbers(self, unsettled: dict[int, Known]) -> None:
        queue = self.queue
        held, held_bytes = len(unsettled), sum(known.size for known in unsettled.values())
        assert (queue.held, queue.held_bytes) == (held, held_bytes)
        fates = [self.count(fate) for fate in ("stored", "dead", "dropped")]
        assert [queue.stored, queue.dead, queue.dropped] == fates
        assert queue.position == self.position
        lowest = min(unsettled, default=self.position)
        for position in {lowest, lowest + 1, self.position, self.position + 1}:
            assert queue.settled(position) == (position <= lowest), position
        for size in (1, self.capacity_bytes - held_bytes, self.capacity_bytes - held_bytes + 1):
            has_room = held < self.capacity and held_bytes + size <= self.capacity_bytes
            assert queue.has_room(size) == has_room
        fresh = sum(len(portion.rows) for portion in queue._fresh._portions)
        assert (queue._fresh.first < math.inf) == (fresh > 0)
        assert 0 <= queue.inbox_room <= max(0, self.capacity - held)
        assert queue.inbox_room * SMALL_ROW <= max(0, self.capacity_bytes - held_bytes)
        doubtful = sum(len(doubt.rows) for doubt in queue._all_doubts())
        assert queue.holds_only_doubtful == (0 < held == doubtful)
        assert (queue.in_doubt is None) == (doubtful == 0)
        if queue.in_doubt is not None:
            assert queue.in_doubt.count == doubtful
            assert queue.in_doubt.reason.text
        if queue.trouble is not None:
            assert queue.in_doubt is not None

    def describe(self) -> str:
        """Where the rows are that are left, and since when."""
        queue = self.queue
        waiting: list[Batch | Doubt] = [*queue._in_flight, *queue._again, *queue._doubtful]
        lines = []
        for held in waiting:
            kinds = [self.known[number_of(row)].kind for row in held.rows]
            history = held.record if isinstance(held, Batch) else replace(held, rows=[])
            lines.append(f"{kinds}: due in {held.due - self.now:.1f}, {history}")
        return "\n".join(lines)

    def finish(self) -> None:
        """BigQuery is well again. All that is good arrives, and all that is bad is found out."""
        self.table = "right"
        began, next_row_at, in_a_row = self.now, self.now + 30, 0
        self.queue.request_flush()
        for flight in self.flights:
            if not flight.is_decided:
                self.settle(flight, self.truth(flight.batch.rows))
        while True:
            self.tell(len(self.letters))
            left = [k.kind for k in self.known.values() if k.fate == "held" and k.kind != "ours"]
            if not left:
                break
            assert self.now - began < 3600, self.describe()
            took, wait = self.take(alone=False)
            in_a_row = in_a_row + 1 if took else 0
            # A bad row has pauses of a second, so that of a dozen one is always due; half a minute
            # and about 45 tries later it is given up.
            assert in_a_row < 60 * len(self.known) + 50, "it tries without a pause"
            if not took:
                assert wait is not None, "nothing would ever be sent"
                self.now += min(wait, 1.0)
                if "good" not in left or self.now > next_row_at:  # which shows what else is bad
                    next_row_at = self.now + 30
                    self.queue.add(self.make("good", 1), self.now)
                    self.queue.request_flush()
                continue
            flight = self.flights[-1]
            self.now += 0.05
            self.settle(flight, self.truth(flight.batch.rows))
        self.check()


class QueueMachine(RuleBasedStateMachine):
    @initialize(
        batch_rows=st.integers(1, 6),
        flush_interval=st.sampled_from([0.0, 1.0]),
        capacity=st.integers(3, 30),
        seed=st.integers(0, 2**16),
    )
    def begin(self, batch_rows: int, flush_interval: float, capacity: int, seed: int) -> None:
        self.jitter = mock.patch.object(random, "uniform", random.Random(seed).uniform)
        self.jitter.start()
        self.world = World(batch_rows=batch_rows, flush_interval=flush_interval, capacity=capacity)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()
            self.jitter.stop()

    @invariant()
    def balances(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    # Rows

    @rule(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=12), length=LENGTHS)
    def absorb(self, kinds: list[str], length: int) -> None:
        world = self.world
        inbox = [world.make(kind, length + index) for index, kind in enumerate(kinds)]
        world.queue.absorb(inbox, world.now)
        assert not inbox

    @rule(kind=st.sampled_from(KINDS), length=LENGTHS)
    def accept(self, kind: str, length: int) -> None:
        world = self.world
        row = make_row(len(world.known), length)
        if world.queue.has_room(row_bytes(row)):
            assert world.queue.accept(world.make(kind, length), world.now)
        else:
            assert not world.queue.accept(row, world.now)

    @rule(count=st.integers(1, 3))
    def skip(self, count: int) -> None:
        self.world.queue.skip(count)
        self.world.skipped += count

    @rule(ahead=st.integers(0, 3))
    def request_flush(self, ahead: int) -> None:
        world = self.world
        if ahead:
            position = world.position + ahead
            assert world.queue.request_flush(position) == position
        else:
            assert world.queue.request_flush() == world.position

    @rule(size=st.sampled_from([1, 400, 5_000]))
    def drop_doubtful(self, size: int) -> None:
        self.world.drop(size)

    # Time and requests

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 5.0, 30.0, 61.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(alone=st.sampled_from([False, False, True]), times=st.integers(1, 4))
    def take(self, alone: bool, times: int) -> None:
        world = self.world
        for _ in range(times):
            took, wait = world.take(alone=alone)
            if not took and not world.queue._in_flight and world.count("held"):
                assert wait is not None, "nothing would ever be sent"

    @rule(table=st.sampled_from(["right", "right", "another", "a view", "down", "broken"]))
    def table_changes(self, table: str) -> None:
        self.world.table = table

    @precondition(lambda self: self.world.flights)
    @rule(number=st.integers(0, 100), delay=st.sampled_from([0.05, 0.05, 2.0, 31.0]))
    def bigquery_answers(self, number: int, delay: float) -> None:
        world = self.world
        world.now += delay
        flight = world.flights[number % len(world.flights)]  # it may be decided already
        world.settle(flight, world.truth(flight.batch.rows))

    @precondition(lambda self: self.world.flights)
    @rule(number=st.integers(0, 100), data=st.data())
    def anything_is_answered(self, number: int, data: st.DataObject) -> None:
        world = self.world
        flight = world.flights[number % len(world.flights)]
        ends = st.sampled_from(["stored", "stored", "again", "a", "b", "payload"])
        count = len(flight.batch.rows)
        drawn = data.draw(st.lists(ends, min_size=count, max_size=count), label="ends")
        refused = tuple(
            refused_row(index, end, is_about_payload=end == "payload")
            for index, end in enumerate(drawn)
            if end not in ("stored", "again")
        )
        again = tuple(index for index, end in enumerate(drawn) if end == "again")
        world.settle(flight, Answer(refused, again))

    @precondition(lambda self: self.world.flights)
    @rule(number=st.integers(0, 100))
    def our_code_raises(self, number: int) -> None:
        world = self.world
        world.settle(world.flights[number % len(world.flights)], None)

    @rule(older_than=st.sampled_from([0.0, 0.0, 3.0]))
    def duplicate_in_flight(self, older_than: float) -> None:
        world = self.world
        count = sum(world.now - batch.sent_at >= older_than for batch in world.queue._in_flight)
        others = len(world.queue._in_flight) - count
        assert world.queue.duplicate_in_flight(world.now, older_than=older_than) == count
        assert len(world.queue._in_flight) == others

    @rule()
    def retry_now(self) -> None:
        self.world.queue.retry_now(self.world.now)

    @rule(count=st.integers(0, 3))
    def tell(self, count: int) -> None:
        self.world.tell(count)


def test_the_books_balance_and_nothing_starves_whatever_comes_in_whatever_order() -> None:
    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=int(os.environ.get("LORC_EVENTLOG_EXAMPLES", "60")),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
