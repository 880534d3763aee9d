"""When what is sent, and what a failure means: without threads, time passed in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from lorc_eventlog.bigquery.insert_all import LIMITS
from lorc_eventlog.bigquery.transport import Answer, Failure, Reason, Refusal
from lorc_eventlog.delivery import queue as queue_module
from lorc_eventlog.delivery.queue import (
    FAILURES_IN_SILENCE,
    FIRST_PAUSE,
    LAST_PAUSE,
    MAX_PAUSE,
    PATIENCE_IN_SILENCE,
    PATIENCE_WITH_A_ROW,
    TRIES_BEFORE_CANARY,
    Batch,
    DeliveryQueue,
)
from lorc_eventlog.events.row import Row

MAX_REQUEST_BYTES = LIMITS.request_bytes
REFUSAL = Refusal(Reason("400 invalid"), is_about_size=False)


@pytest.fixture(autouse=True)
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter picks a pause from 0 to a limit; here always the limit."""
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)


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

    def __init__(self, *, batch_rows: int = 10, flush_interval: float = 1.0) -> None:
        self.now = 1000.0
        self.queue = DeliveryQueue(
            batch_rows=batch_rows,
            flush_interval=flush_interval,
            capacity=100_000,
            capacity_bytes=2**26,
            limits=LIMITS,
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


@pytest.fixture
def clock() -> Clock:
    return Clock()


# When the process ends


def test_at_the_end_of_the_process_it_is_tried_at_once_and_then_every_second(
    clock: Clock,
) -> None:
    clock.add(0)
    clock.flush()
    for _ in range(8):
        clock.fail(clock.take_next(), may_be_the_rows=False)
    assert clock.pause() > 30
    clock.queue.retry_now(clock.now)
    for _ in range(5):
        clock.fail(clock.take(), may_be_the_rows=True)
        assert 0 < clock.pause() <= LAST_PAUSE
        clock.now += LAST_PAUSE


# When a batch is sent


def test_nothing_is_due_in_an_empty_queue(clock: Clock) -> None:
    assert clock.wait_for() is None


def test_a_row_waits_for_others_for_the_flush_interval(clock: Clock) -> None:
    clock.add(1)
    assert clock.wait_for() == pytest.approx(1.0)

    clock.now += 0.4
    clock.add(2)
    assert clock.wait_for() == pytest.approx(0.6)

    clock.now += 0.6
    assert numbers(clock.take()) == [1, 2]


def test_a_full_batch_is_sent_at_once_and_the_rest_waits_anew(clock: Clock) -> None:
    clock.add(*range(13))

    assert numbers(clock.take()) == list(range(10))
    assert clock.wait_for() == pytest.approx(1.0)


def test_flush_sends_at_once_what_was_there_and_not_what_came_later(clock: Clock) -> None:
    clock.add(*range(3))
    clock.flush()
    assert numbers(clock.take()) == [0, 1, 2]

    clock.add(3)
    assert clock.wait_for() == pytest.approx(1.0)


def test_a_batch_stays_below_bigquerys_request_limit(clock: Clock) -> None:
    clock.add(*range(10), text="x" * 2_000_000)

    assert numbers(clock.take()) == [0, 1, 2, 3]
    assert numbers(clock.take()) == [4, 5, 6, 7]
    clock.flush()
    assert numbers(clock.take()) == [8, 9]


def test_a_row_over_the_limit_of_a_batch_is_sent_alone(clock: Clock) -> None:
    clock.add(0, text="x" * (MAX_REQUEST_BYTES + 1))
    clock.add(1)

    assert numbers(clock.take()) == [0]
    clock.flush()
    assert numbers(clock.take()) == [1]


def test_characters_count_as_the_bytes_that_the_client_makes_of_them() -> None:
    clock = Clock(batch_rows=5000)
    clock.add(*range(1200), text="é" * 2500)  # six bytes each, in the client's ASCII
    clock.flush()

    assert len(clock.take().rows) < MAX_REQUEST_BYTES / 15_000


def test_many_bytes_are_a_full_batch(clock: Clock) -> None:
    clock.add(*range(4), text="x" * 2_000_000)
    assert clock.wait_for() == pytest.approx(1.0)

    clock.add(4, text="x" * 2_000_000)
    assert numbers(clock.take()) == [0, 1, 2, 3]


def test_with_alone_nothing_is_sent_beside_a_request(clock: Clock) -> None:
    clock.add(*range(30))
    batch, _, _ = clock.queue.take(clock.now, alone=True)
    assert batch is not None
    assert clock.queue.take(clock.now, alone=True) == (None, None, None)

    clock.pass_(batch)
    batch, _, _ = clock.queue.take(clock.now, alone=True)
    assert numbers(batch) == list(range(10, 20))


# What is settled


def test_settled_means_that_every_row_before_the_position_is(clock: Clock) -> None:
    clock.add(*range(10))
    position = clock.queue.position
    clock.add(*range(10, 20))
    assert not clock.queue.settled(position)

    first, second = clock.take(), clock.take()
    clock.pass_(second)
    assert not clock.queue.settled(position)

    clock.pass_(first)
    assert clock.queue.settled(position)


def test_later_rows_need_not_be_settled(clock: Clock) -> None:
    clock.add(*range(10))
    position = clock.queue.position
    clock.add(*range(10, 20))
    first, second = clock.take(), clock.take()
    clock.fail(second)

    clock.pass_(first)

    assert clock.queue.settled(position)
    assert not clock.queue.settled(clock.queue.position)


def test_a_batch_that_waits_to_be_sent_again_is_not_settled(clock: Clock) -> None:
    clock.add(*range(10))
    position = clock.queue.position
    clock.fail(clock.take())
    assert not clock.queue.settled(position)

    clock.pass_(clock.take_next())
    assert clock.queue.settled(position)


def test_a_batch_is_not_settled_before_its_dead_letter_is_handed_over(clock: Clock) -> None:
    clock.add(0)
    position = clock.flush()
    batch = clock.take()
    verdict = clock.queue.refused(batch, REFUSAL, clock.now)
    assert not clock.queue.settled(position)

    clock.queue.dead_lettered(batch, verdict.dead)
    assert clock.queue.settled(position)


def test_rows_that_are_skipped_are_settled(clock: Clock) -> None:
    clock.add(0)
    clock.queue.skip(2)
    position = clock.flush()
    assert position == 3

    clock.pass_(clock.take())
    assert clock.queue.settled(position)


# Outages


def test_in_an_outage_one_request_at_a_time_probes(clock: Clock) -> None:
    clock.add(*range(30))
    clock.fail(clock.take())
    assert clock.queue.in_outage
    assert clock.wait_for() == pytest.approx(2 * FIRST_PAUSE)

    probe = clock.take_next()
    assert clock.wait_for() is None

    clock.pass_(probe)
    assert not clock.queue.in_outage
    assert [len(clock.take().rows) for _ in range(2)] == [10, 10]


def test_a_failed_batch_is_sent_again_with_the_same_rows(clock: Clock) -> None:
    clock.add(*range(10))
    batch = clock.take()
    clock.fail(batch)

    assert clock.take_next() is batch


def test_the_pause_doubles_up_to_a_minute(clock: Clock) -> None:
    clock.add(0)
    clock.flush()
    pauses = []
    for _ in range(40):
        clock.fail(clock.take_next(), may_be_the_rows=False)
        pauses.append(clock.pause())

    assert pauses[:4] == [pytest.approx(FIRST_PAUSE * 2**tries) for tries in range(1, 5)]
    assert pauses[10:] == [pytest.approx(MAX_PAUSE)] * 30


def test_the_pause_is_drawn_evenly_from_zero_on(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    monkeypatch.setattr(random, "uniform", draw)
    clock = Clock()
    clock.add(0)
    clock.flush()
    for _ in range(3):
        clock.fail(clock.take(), may_be_the_rows=False)

    assert {low for low, _ in drawn} == {0}
    assert max(high for _, high in drawn) == FIRST_PAUSE * 8


def test_requests_that_were_on_their_way_together_are_one_failure(clock: Clock) -> None:
    clock.add(*range(30))
    batches = [clock.take() for _ in range(3)]
    started = clock.now
    for batch in batches:
        clock.fail(batch, started=started)

    assert clock.wait_for() == pytest.approx(2 * FIRST_PAUSE - 0.2)


def test_a_success_ends_the_outage_and_its_pauses(clock: Clock) -> None:
    clock.add(*range(10))
    for _ in range(2):
        clock.fail(clock.take_next(), may_be_the_rows=False)
    clock.pass_(clock.take_next())
    clock.add(*range(10))
    clock.fail(clock.take())

    assert clock.wait_for() == pytest.approx(2 * FIRST_PAUSE)


def test_a_quota_or_a_permission_never_splits_a_batch(clock: Clock) -> None:
    clock.add(*range(10))
    for _ in range(50):
        assert not clock.fail(clock.take_next(), may_be_the_rows=False)

    assert numbers(clock.take_next()) == list(range(10))


def test_a_lone_row_is_never_given_up_while_nothing_passes(clock: Clock) -> None:
    clock.add(0)
    clock.flush()
    for _ in range(100):
        assert not clock.fail(clock.take_next())


# Rows to blame


def test_a_refused_request_is_halved_until_the_culprit_stands_alone(clock: Clock) -> None:
    clock.add(*range(10))
    clock.flush()
    delivered: list[int] = []
    given_up: list[int] = []
    while not clock.queue.settled(clock.queue.position):
        batch = clock.take()
        if 7 not in numbers(batch):
            delivered += numbers(batch)
            clock.pass_(batch)
        elif clock.refuse(batch):
            given_up += numbers(batch)

    assert sorted(delivered) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert given_up == [7]


def test_a_refused_request_ends_an_outage_because_it_is_an_answer(clock: Clock) -> None:
    clock.add(*range(10))
    clock.fail(clock.take())
    clock.refuse(clock.take_next())

    assert not clock.queue.in_outage


def test_of_a_batch_that_breaks_bigquery_one_row_goes_ahead(clock: Clock) -> None:
    clock.add(*range(10))
    for _ in range(TRIES_BEFORE_CANARY):
        clock.fail(clock.take_next())

    assert numbers(clock.take_next()) == [3]


def test_if_that_row_passes_the_others_are_halved(clock: Clock) -> None:
    clock.add(*range(11))
    clock.flush()
    for _ in range(TRIES_BEFORE_CANARY):
        clock.fail(clock.take_next())
    clock.pass_(clock.take_next())
    clock.fail(clock.take_next())

    assert [numbers(clock.take_next()) for _ in range(2)] == [[0, 1, 2, 4], [5, 6, 7, 8, 9]]


def test_an_outage_breaks_off_only_a_row_now_and_then(clock: Clock) -> None:
    clock.add(*range(10))
    for _ in range(12):
        clock.fail(clock.take_next())

    assert sum(len(batch.rows) == 1 for batch in clock.queue._again) <= 3


def test_a_batch_that_failed_while_others_passed_is_halved_at_once(clock: Clock) -> None:
    clock.add(*range(20))
    first, second = clock.take(), clock.take()
    clock.fail(first)
    clock.pass_(second)
    clock.fail(clock.take_next())

    assert len(clock.take_next().rows) == 5


def test_a_suspect_that_failed_twice_gives_way_to_fresh_rows() -> None:
    clock = Clock(batch_rows=1)
    clock.add(0, 1)
    first = clock.take()
    clock.fail(first)
    assert clock.take_next() is first
    clock.fail(first)

    assert numbers(clock.take_next()) == [1]


def test_an_outage_that_no_row_can_cause_keeps_the_order(clock: Clock) -> None:
    clock.add(*range(20))
    first, second = clock.take(), clock.take()
    clock.fail(second, may_be_the_rows=False)
    clock.fail(first, may_be_the_rows=False)
    for _ in range(5):
        assert clock.take_next() is first
        clock.fail(first, may_be_the_rows=False)

    assert clock.take_next() is first
    clock.pass_(first)
    assert clock.take_next() is second


def lone_suspect(clock: Clock) -> Batch:
    """A row that failed, while another passed afterwards."""
    clock.add(0)
    clock.flush()
    batch = clock.take()
    clock.fail(batch)
    pass_another(clock)
    return batch


def pass_another(clock: Clock) -> None:
    clock.add(99)
    clock.flush()
    while numbers(batch := clock.take_next()) != [99]:
        clock.fail(batch)
    clock.pass_(batch)


def test_a_row_that_fails_while_all_others_pass_is_given_up_after_some_seconds(
    clock: Clock,
) -> None:
    began = clock.now
    suspect = lone_suspect(clock)
    given_up = False
    while not given_up:
        assert clock.take_next() is suspect
        given_up = clock.fail(suspect)
        if not given_up:
            pass_another(clock)

    assert PATIENCE_WITH_A_ROW <= clock.now - began <= PATIENCE_WITH_A_ROW + 3


def test_a_row_that_passes_after_all_is_delivered(clock: Clock) -> None:
    suspect = lone_suspect(clock)
    for _ in range(2):
        clock.fail(clock.take_next())
        pass_another(clock)
    assert clock.take_next() is suspect
    clock.pass_(suspect)

    assert clock.queue.settled(clock.queue.position)


def test_a_failure_is_no_proof_when_another_batch_began_to_fail_as_well(clock: Clock) -> None:
    suspect = lone_suspect(clock)
    for other in range(20):
        # Others pass in between, but another one fails, too: an outage that comes and goes.
        clock.now += MAX_PAUSE
        assert clock.take() is suspect
        clock.add(other)
        clock.flush()
        newcomer = clock.take()
        clock.fail(newcomer)
        assert not clock.fail(suspect)
        while (batch := clock.take_next()) is suspect:
            clock.fail(suspect)
        assert batch is newcomer
        clock.pass_(newcomer)


def test_one_that_is_suspected_does_not_hold_up_the_others(clock: Clock) -> None:
    suspect = lone_suspect(clock)
    clock.fail(clock.take_next())
    clock.add(*range(10, 20))

    assert not clock.queue.in_outage
    assert numbers(clock.take()) == list(range(10, 20))
    assert clock.take_next() is suspect


def test_a_row_that_fails_alone_for_hours_does_not_hold_up_a_new_one(clock: Clock) -> None:
    clock.add(0)
    clock.flush()
    for _ in range(20):
        clock.fail(clock.take_next())
    assert clock.wait_for() == pytest.approx(MAX_PAUSE)

    clock.add(1)
    clock.flush()

    assert numbers(clock.take()) == [1]


def test_a_new_row_probes_only_once_beside_a_failing_one(clock: Clock) -> None:
    clock.add(0)
    clock.flush()
    for _ in range(20):
        clock.fail(clock.take_next())
    clock.add(1)
    clock.flush()
    clock.fail(clock.take())
    clock.add(2)
    clock.flush()

    assert clock.wait_for() == pytest.approx(MAX_PAUSE)


def test_a_suspect_with_one_proof_is_given_up_after_a_longer_silence(clock: Clock) -> None:
    began = clock.now
    suspect = lone_suspect(clock)
    failures = 0
    given_up = False
    while not given_up:
        assert clock.take_next() is suspect
        given_up = clock.fail(suspect)
        failures += 1

    assert failures >= FAILURES_IN_SILENCE
    assert PATIENCE_IN_SILENCE <= clock.now - began < 2 * PATIENCE_IN_SILENCE


def test_a_suspect_is_not_given_up_while_another_row_fails_as_well(clock: Clock) -> None:
    """Neither passes: that is an outage, whatever was proved before it."""
    suspect = lone_suspect(clock)
    clock.fail(clock.take_next())
    clock.add(1)
    clock.flush()
    for _ in range(60):
        assert not clock.fail(clock.take_next())

    assert suspect.failures_in_silence < FAILURES_IN_SILENCE


def test_a_quota_proves_nothing_against_a_row(clock: Clock) -> None:
    suspect = lone_suspect(clock)
    clock.fail(clock.take_next())
    for _ in range(60):
        assert clock.take_next() is suspect
        assert not clock.fail(suspect, may_be_the_rows=False)


def test_stopped_rows_are_sent_again_after_a_pause(clock: Clock) -> None:
    clock.add(*range(10))
    position = clock.queue.position
    batch = clock.take()
    clock.pass_(batch, 3, 4)
    assert not clock.queue.settled(position)
    assert clock.wait_for() == pytest.approx(FIRST_PAUSE)

    again = clock.take_next()
    assert numbers(again) == [3, 4]
    clock.pass_(again)
    assert clock.queue.settled(position)


def test_rows_that_are_stopped_again_and_again_wait_longer_and_longer(clock: Clock) -> None:
    clock.add(0)
    clock.flush()
    pauses = []
    for _ in range(12):
        batch = clock.take_next()
        clock.pass_(batch, 0)
        pauses.append(clock.pause())

    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(MAX_PAUSE)


# All together, in time that costs nothing


@pytest.fixture
def real_jitter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as undone:
        undone.setattr(random, "uniform", random.Random(0).uniform)
        yield


def simulate(clock: Clock, is_poison: Any, *, refuses: bool, latency: float = 0.1) -> float:
    """Send all with eight senders; the seconds until all that is in order is delivered."""
    on_their_way: list[tuple[float, Batch]] = []
    began, all_delivered = clock.now, clock.now
    while not clock.queue.settled(clock.queue.position):
        assert clock.now < began + 3600, "it would take more than an hour"
        batch, seconds = (None, None)
        if len(on_their_way) < 8:
            batch, seconds, _ = clock.queue.take(clock.now, alone=False)
        if batch is not None:
            on_their_way.append((clock.now, batch))
            continue
        answer_at = on_their_way[0][0] + latency if on_their_way else float("inf")
        if seconds is not None and clock.now + seconds < answer_at:
            clock.now += seconds + 1e-9
            continue
        assert on_their_way, "nothing would ever be sent"
        started, batch = on_their_way.pop(0)
        clock.now = max(clock.now, answer_at)
        if not any(is_poison(number) for number in numbers(batch)):
            clock.pass_(batch)
            all_delivered = clock.now
        elif refuses:
            clock.refuse(batch)
        else:
            clock.fail(batch, started=started, lasted=0.0)
    return all_delivered - began


@pytest.mark.parametrize("refuses", [True, False], ids=["a 400", "a 500"])
@pytest.mark.parametrize(
    ("batch_rows", "poison"),
    [(1, 0), (1, 299), (7, 0), (7, 300), (500, 0), (500, 166), (500, 500), (500, 599)],
)
def test_one_poisonous_row_among_600_costs_the_others_a_few_seconds(
    batch_rows: int, poison: int, refuses: bool
) -> None:
    clock = Clock(batch_rows=batch_rows)
    clock.add(*range(600))
    clock.flush()

    seconds = simulate(clock, lambda number: number == poison, refuses=refuses)

    assert seconds < 15
    assert clock.now < 1030  # when the dead letter is written


def test_the_last_row_of_all_is_given_up_once_a_later_one_has_passed() -> None:
    clock = Clock(batch_rows=1)
    clock.add(0)
    clock.flush()
    for _ in range(50):
        assert not clock.fail(clock.take_next())
    clock.add(1)
    clock.flush()

    simulate(clock, lambda number: number == 0, refuses=False)


@pytest.mark.usefixtures("real_jitter")
@pytest.mark.parametrize("one_in", [20, 100, 1000])
def test_a_poisonous_row_in_each_batch_does_not_look_like_an_outage(one_in: int) -> None:
    clock = Clock(batch_rows=500)
    clock.add(*range(5000))
    clock.flush()

    seconds = simulate(clock, lambda number: number % one_in == 17, refuses=False)

    assert seconds < 60


def test_the_longest_pause_is_what_the_documentation_says() -> None:
    assert queue_module.MAX_PAUSE == 60.0
