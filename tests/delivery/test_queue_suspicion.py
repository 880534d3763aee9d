"""Which rows are to blame when requests fail: those that fail while all others pass."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest

from lorc_eventlog.delivery import pace
from lorc_eventlog.delivery.batch import Batch, DeadLetter, Record
from lorc_eventlog.delivery.pace import FIRST_PAUSE, MAX_PAUSE
from lorc_eventlog.delivery.suspicion import (
    FAILURES_IN_SILENCE,
    PATIENCE_IN_SILENCE,
    PATIENCE_WITH_A_ROW,
    PROOFS_AGAINST_A_ROW,
    TRIES_BEFORE_CANARY,
    TRIES_OF_A_CANARY,
    Suspicion,
    is_canary,
    is_proved,
    suspicion,
)
from queue_clock import Clock, failure, make_row, numbers

pytestmark = pytest.mark.usefixtures("longest_pauses")


# Rows to blame


def test_of_a_batch_that_breaks_bigquery_one_row_goes_ahead(clock: Clock) -> None:
    clock.add(*range(10))
    for _ in range(TRIES_BEFORE_CANARY):
        clock.fail(clock.take_next())

    assert numbers(clock.take_next()) == [0]


def test_if_that_row_passes_the_others_are_halved(clock: Clock) -> None:
    clock.add(*range(11))
    clock.flush()
    for _ in range(TRIES_BEFORE_CANARY):
        clock.fail(clock.take_next())
    clock.pass_(clock.take_next())
    clock.fail(clock.take_next())

    assert [numbers(clock.take_next()) for _ in range(2)] == [[1, 2, 3, 4], [5, 6, 7, 8, 9]]


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
    clock.fail(take_again(clock, first))

    assert numbers(clock.take_next()) == [1]


def test_an_outage_that_no_row_can_cause_keeps_the_order(clock: Clock) -> None:
    clock.add(*range(20))
    first, second = clock.take(), clock.take()
    clock.fail(second, may_be_the_rows=False)
    clock.fail(first, may_be_the_rows=False)
    for _ in range(5):
        clock.fail(take_again(clock, first), may_be_the_rows=False)

    clock.pass_(take_again(clock, first))
    take_again(clock, second)


def take_again(clock: Clock, batch: Batch) -> Batch:
    """The next batch, which has the rows of ``batch``."""
    again = clock.take_next()
    assert again.rows is batch.rows
    return again


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
        given_up = clock.fail(take_again(clock, suspect))
        if not given_up:
            pass_another(clock)

    assert PATIENCE_WITH_A_ROW <= clock.now - began <= PATIENCE_WITH_A_ROW + 3


def test_a_row_that_passes_after_all_is_delivered(clock: Clock) -> None:
    suspect = lone_suspect(clock)
    for _ in range(2):
        clock.fail(clock.take_next())
        pass_another(clock)
    clock.pass_(take_again(clock, suspect))

    assert clock.queue.settled(clock.queue.position)


def test_a_failure_is_no_proof_when_another_batch_began_to_fail_as_well(clock: Clock) -> None:
    suspect = lone_suspect(clock)
    for other in range(20):
        # Others pass in between, but another one fails, too: an outage that comes and goes.
        clock.now += MAX_PAUSE
        again = clock.take()
        assert again.rows is suspect.rows
        clock.add(other)
        clock.flush()
        newcomer = clock.take()
        clock.fail(newcomer)
        assert not clock.fail(again)
        while (batch := clock.take_next()).rows is suspect.rows:
            clock.fail(batch)
        assert batch.rows is newcomer.rows
        clock.pass_(batch)


def test_one_that_is_suspected_does_not_hold_up_the_others(clock: Clock) -> None:
    suspect = lone_suspect(clock)
    clock.fail(clock.take_next())
    clock.add(*range(10, 20))

    assert not clock.queue.in_outage
    assert numbers(clock.take()) == list(range(10, 20))
    take_again(clock, suspect)


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
        given_up = clock.fail(take_again(clock, suspect))
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

    assert suspect.record.failures_in_silence < FAILURES_IN_SILENCE


def test_a_quota_proves_nothing_against_a_row(clock: Clock) -> None:
    suspect = lone_suspect(clock)
    clock.fail(clock.take_next())
    for _ in range(60):
        assert not clock.fail(take_again(clock, suspect), may_be_the_rows=False)


def test_at_the_end_of_the_process_a_suspect_is_tried_at_once_even_in_an_outage(
    clock: Clock,
) -> None:
    suspect = lone_suspect(clock)
    clock.fail(take_again(clock, suspect))
    clock.fail(take_again(clock, suspect), may_be_the_rows=False)
    assert clock.queue.in_outage
    clock.queue.retry_now(clock.now)

    assert clock.take().rows is suspect.rows


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

    assert pauses[:4] == [pytest.approx(FIRST_PAUSE * 2**tries) for tries in range(4)]
    assert pauses[-1] == pytest.approx(MAX_PAUSE)


# All together, in time that costs nothing


@pytest.fixture
def real_jitter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as undone:
        undone.setattr(random, "uniform", random.Random(0).uniform)
        yield


def simulate(clock: Clock, is_poison: Any, *, refuses: bool, latency: float = 0.1) -> float:
    """Send all with eight senders; the seconds until all that is in order is delivered.

    Another row comes every second, because a refused one is given up only if others are stored.
    """
    on_their_way: list[tuple[float, Batch]] = []
    began, all_delivered, next_row_at = clock.now, clock.now, clock.now + 1
    position = clock.queue.position
    while not clock.queue.settled(position):
        assert clock.now < began + 3600, "it would take more than an hour"
        if refuses and clock.now >= next_row_at:
            next_row_at = clock.now + 1
            clock.add(1_000_000)
            clock.flush()
        batch, seconds = (None, None)
        if len(on_their_way) < 8:
            batch, seconds, _ = clock.queue.take(clock.now, alone=False)
        if batch is not None:
            on_their_way.append((clock.now, batch))
            continue
        answer_at = on_their_way[0][0] + latency if on_their_way else float("inf")
        if refuses:
            seconds = min(1.0, math.inf if seconds is None else seconds)
        if seconds is not None and clock.now + seconds < answer_at:
            clock.now += seconds + 1e-9
            continue
        assert on_their_way, "nothing would ever be sent"
        started, batch = on_their_way.pop(0)
        clock.now = max(clock.now, answer_at)
        if not any(is_poison(number) for number in numbers(batch)):
            clock.pass_(batch)
            if batch.positions[0] < position:
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
    assert clock.now < (1100 if refuses else 1030)  # when the dead letter is written


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
    assert pace.MAX_PAUSE == 60.0


# The evidence, failure by failure


def note(kept: Suspicion, record: Record, *, stored: int = 0, is_evidence: bool = True) -> int:
    """A failure that may be the rows' fault."""
    return kept.note(record, may_be_the_rows=True, is_evidence=is_evidence, stored=stored, now=5.0)


def test_a_batch_that_fails_while_nothing_passes_waits_longer_each_time() -> None:
    kept, record = Suspicion(), Record()
    assert [note(kept, record) for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    assert (record.since, record.isolations, record.proofs) == (5.0, 0, 0)
    assert (record.tries, record.is_suspect) == (6, True)


def test_a_batch_that_fails_while_others_pass_is_tried_again_soon() -> None:
    kept, record = Suspicion(), Record()
    assert [note(kept, record, stored=stored) for stored in range(6)] == [1, 2, 2, 2, 2, 2]
    assert (record.isolations, record.proofs) == (5, 5)


def test_an_exception_of_ours_is_no_proof_though_others_pass() -> None:
    kept, record = Suspicion(), Record()
    for stored in range(4):
        note(kept, record, stored=stored, is_evidence=False)
    assert (record.isolations, record.proofs) == (3, 0)


def test_after_a_proof_the_pauses_in_silence_stay_short() -> None:
    kept, record = Suspicion(), Record()
    note(kept, record)
    note(kept, record, stored=1)
    assert [note(kept, record, stored=1) for _ in range(4)] == [3, 4, 4, 4]
    assert record.failures_in_silence == 5
    note(kept, Record(), stored=1)
    assert note(kept, record, stored=1) == 7
    assert record.failures_in_silence == 0


def test_it_counts_batches_that_began_to_fail_and_failures() -> None:
    kept, records = Suspicion(), [Record(), Record(), Record()]
    for record in (*records, *records):
        note(kept, record)
    assert kept.began == 3
    assert [record.failures for record in records] == [4, 5, 6]


@pytest.mark.parametrize(
    ("proofs", "in_silence", "seconds", "is_given_up"),
    [
        (PROOFS_AGAINST_A_ROW, 0, PATIENCE_WITH_A_ROW, True),
        (PROOFS_AGAINST_A_ROW - 1, 0, PATIENCE_WITH_A_ROW, False),
        (PROOFS_AGAINST_A_ROW, 0, PATIENCE_WITH_A_ROW - 0.1, False),
        (1, FAILURES_IN_SILENCE, PATIENCE_IN_SILENCE, True),
        (1, FAILURES_IN_SILENCE - 1, PATIENCE_IN_SILENCE, False),
        (1, FAILURES_IN_SILENCE, PATIENCE_IN_SILENCE - 0.1, False),
    ],
)
def test_a_row_is_given_up_by_proofs_and_by_patience(
    proofs: int, in_silence: int, seconds: float, is_given_up: bool
) -> None:
    record = Record(since=100.0, proofs=proofs, failures_in_silence=in_silence)
    assert is_proved(record, 100.0 + seconds) == is_given_up


def test_what_is_suspected_least_and_then_what_is_oldest_goes_first() -> None:
    def batch(position: int, tries: int, *, is_suspect: bool) -> Batch:
        return Batch([], [position], record=Record(tries=tries, is_suspect=is_suspect))

    innocent, old = batch(9, 7, is_suspect=False), batch(1, 1, is_suspect=True)
    new, worst = batch(5, 1, is_suspect=True), batch(0, 2, is_suspect=True)
    assert sorted([worst, new, old, innocent], key=suspicion) == [innocent, old, new, worst]
    assert suspicion(innocent) == (0, 9)


def test_a_canary_is_a_single_row_that_failed_less_than_three_times() -> None:
    row = make_row(0)
    assert is_canary(Batch([row], [0], record=Record(tries=TRIES_OF_A_CANARY - 1)))
    assert not is_canary(Batch([row], [0], record=Record(tries=TRIES_OF_A_CANARY)))
    assert not is_canary(Batch([row, row], [0, 1], record=Record()))


def test_the_parts_of_a_suspected_batch_begin_anew_but_what_was_proved_stays(
    clock: Clock,
) -> None:
    clock.add(*range(20))
    first, second = clock.take(), clock.take()
    clock.fail(first)
    clock.pass_(second)
    clock.fail(clock.take_next())
    records = [batch.record for batch in clock.queue._again]
    assert [len(batch.rows) for batch in clock.queue._again] == [5, 5]
    for record in records:
        assert record.is_suspect is False
        assert (record.tries, record.failures, record.failures_in_silence) == (0, 0, 0)
        assert (record.isolations, record.proofs) == (1, 1)


def test_a_row_that_is_given_up_has_the_reason_of_its_last_failure(clock: Clock) -> None:
    suspect = lone_suspect(clock)
    dead: list[DeadLetter] = []
    while not dead:
        batch, clock.now = take_again(clock, suspect), clock.now + 0.1
        failed = failure(may_be_the_rows=True)
        dead = clock.queue.failed(batch, failed, started=clock.now, now=clock.now).dead
        if not dead:
            pass_another(clock)
    assert [letter.reason for letter in dead] == [failed.reason]
