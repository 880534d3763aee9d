"""Rows that BigQuery refuses for a reason that may be the table's: they wait in doubt."""

from __future__ import annotations

import pytest

from lorc_eventlog.bigquery.transport import Answer, Reason, RefusedRow
from lorc_eventlog.delivery.batch import Batch, DeadLetter, Verdict
from lorc_eventlog.delivery.doubt import (
    MAX_PAUSE_IN_DOUBT,
    PATIENCE_IN_DOUBT,
    PROBE_ROWS,
    REFUSALS_AGAINST_A_ROW,
    REFUSALS_IN_TROUBLE,
)
from lorc_eventlog.delivery.pace import FIRST_PAUSE, MAX_PAUSE
from lorc_eventlog.delivery.schedule import OVERDUE
from queue_clock import (
    TOO_LARGE,
    Clock,
    numbers,
)

pytestmark = pytest.mark.usefixtures("longest_pauses")


def refused(
    index: int, kind: str = "no such field", *, is_about_payload: bool = False
) -> RefusedRow:
    return RefusedRow(index, Reason(kind), kind, is_about_payload=is_about_payload)


def refuse_rows(clock: Clock, batch: Batch, kind: str = "no such field") -> Verdict:
    """All rows of ``batch`` are refused for one reason; dead letters are handed over."""
    answer = Answer(tuple(refused(index, kind) for index in range(len(batch.rows))))
    verdict = clock.queue.succeeded(batch, answer, clock.now)
    clock.queue.dead_lettered(batch, verdict.dead)
    return verdict


def take_new(clock: Clock, *rows: int) -> Batch:
    """Add rows, and take them."""
    clock.add(*rows)
    clock.flush()
    while numbers(batch := clock.take_next()) != [*rows]:
        assert batch.doubts
        refuse_rows(clock, batch)
    return batch


def store_another(clock: Clock) -> None:
    clock.pass_(take_new(clock, 99))


def doubtful(clock: Clock) -> int:
    trouble = clock.queue.in_doubt
    return 0 if trouble is None else trouble.count


# Who is in doubt, and who is a dead letter at once


def test_rows_that_are_all_refused_are_in_doubt(clock: Clock) -> None:
    verdict = refuse_rows(clock, take_new(clock, 1, 2, 3))

    assert verdict == Verdict()
    assert doubtful(clock) == 3
    assert clock.queue.held == 3
    assert not clock.queue.settled(1)
    assert clock.queue.holds_only_doubtful


def test_they_are_in_doubt_for_several_reasons_as_well(clock: Clock) -> None:
    batch = take_new(clock, 1, 2, 3)
    answer = Answer(
        (refused(0, "a"), refused(1, "b"), refused(2, "payload", is_about_payload=True))
    )
    verdict = clock.queue.succeeded(batch, answer, clock.now)

    assert [letter.row["event_id"] for letter in verdict.dead] == ["3"]
    assert doubtful(clock) == 2
    assert not clock.queue.holds_only_doubtful  # the dead letter is not handed over


def test_a_row_that_is_refused_while_another_is_stored_is_a_dead_letter_at_once(
    clock: Clock,
) -> None:
    batch = take_new(clock, 1, 2, 3)
    verdict = clock.queue.succeeded(batch, Answer((refused(1),)), clock.now)

    assert [letter.position for letter in verdict.dead] == [1]
    assert [row["event_id"] for row in verdict.stored] == ["1", "3"]
    assert clock.queue.in_doubt is None


def test_a_row_that_is_refused_beside_one_that_is_stopped_is_in_doubt(clock: Clock) -> None:
    batch = take_new(clock, 1, 2)
    clock.queue.succeeded(batch, Answer((refused(0),), again=(1,)), clock.now)

    assert doubtful(clock) == 1
    assert clock.queue.held == 2


def test_a_single_row_that_is_too_large_is_a_dead_letter_at_once(clock: Clock) -> None:
    verdict = clock.queue.refused(take_new(clock, 1), TOO_LARGE, clock.now)

    assert [letter.row["event_id"] for letter in verdict.dead] == ["1"]


def test_a_request_that_is_too_large_is_halved_and_no_sign_of_trouble(clock: Clock) -> None:
    clock.add(*range(8))
    clock.flush()
    for _ in range(7):
        clock.queue.refused(clock.take(), TOO_LARGE, clock.now)

    assert doubtful(clock) == 0
    assert clock.queue.trouble is None
    assert not clock.queue.in_outage


def test_rows_in_doubt_that_are_too_large_together_are_divided(clock: Clock) -> None:
    refuse_rows(clock, take_new(clock, 1, 2))
    clock.queue.refused(clock.take_next(), TOO_LARGE, clock.now)

    assert [numbers(clock.take_next())] == [[1]]
    assert doubtful(clock) == 2


# A row is given up


def test_a_row_is_given_up_after_three_refusals_in_a_minute_with_others_stored(
    clock: Clock,
) -> None:
    began = clock.now
    refuse_rows(clock, take_new(clock, 1))
    refusals = 1
    dead: list[DeadLetter] = []
    while not dead:
        store_another(clock)
        dead = refuse_rows(clock, clock.take_next()).dead
        refusals += 1

    assert [letter.row["event_id"] for letter in dead] == ["1"]
    assert refusals >= REFUSALS_AGAINST_A_ROW
    assert PATIENCE_IN_DOUBT <= clock.now - began <= PATIENCE_IN_DOUBT + MAX_PAUSE_IN_DOUBT + 5


def test_a_row_that_is_refused_by_a_400_is_given_up_in_the_same_way(clock: Clock) -> None:
    began = clock.now
    is_dead = clock.refuse(take_new(clock, 1))
    while not is_dead:
        assert clock.now < began + 100
        store_another(clock)
        is_dead = clock.refuse(clock.take_next())

    assert clock.now - began >= PATIENCE_IN_DOUBT


def test_a_row_is_not_given_up_while_nothing_else_is_stored(clock: Clock) -> None:
    refuse_rows(clock, take_new(clock, 1))
    for _ in range(100):
        assert not refuse_rows(clock, clock.take_next()).dead

    assert doubtful(clock) == 1


def test_two_refusals_with_others_stored_are_not_enough(clock: Clock) -> None:
    refuse_rows(clock, take_new(clock, 1))
    store_another(clock)
    for _ in range(50):
        assert not refuse_rows(clock, clock.take_next()).dead


def test_three_refusals_within_a_minute_are_not_enough(clock: Clock) -> None:
    began = clock.now
    refuse_rows(clock, take_new(clock, 1))
    while clock.now < began + PATIENCE_IN_DOUBT - MAX_PAUSE_IN_DOUBT:
        store_another(clock)
        assert not refuse_rows(clock, clock.take_next()).dead


def test_an_outage_is_no_refusal(clock: Clock) -> None:
    refuse_rows(clock, take_new(clock, 1))
    for _ in range(10):
        store_another(clock)
        assert not clock.fail(clock.take_next(), may_be_the_rows=False)
        clock.now += MAX_PAUSE

    assert doubtful(clock) == 1


def test_a_row_in_doubt_that_breaks_its_request_while_others_are_stored_is_given_up(
    clock: Clock,
) -> None:
    clock.refuse(take_new(clock, 1))
    began = clock.now
    is_dead = False
    while not is_dead:
        assert clock.now < began + 100
        store_another(clock)
        is_dead = clock.fail(clock.take_next())


def test_our_own_exceptions_give_no_row_up(clock: Clock) -> None:
    refuse_rows(clock, take_new(clock, 1))
    for _ in range(30):
        store_another(clock)
        assert clock.queue.give_back(clock.take_next(), clock.now)
        clock.now += 10

    assert doubtful(clock) == 1


# They hold up nobody


def test_rows_in_doubt_do_not_hold_up_new_ones(clock: Clock) -> None:
    refuse_rows(clock, take_new(clock, 1))
    for _ in range(50):
        refuse_rows(clock, clock.take_next())
    clock.add(2)
    clock.flush()

    assert numbers(clock.take()) == [2]


def test_they_do_not_wait_for_ever_where_others_always_come(clock: Clock) -> None:
    refuse_rows(clock, take_new(clock, 1))
    seen = []
    for _ in range(60):
        clock.now += 0.1
        clock.add(*range(100, 110))
        batch = clock.take()
        seen.append(numbers(batch))
        clock.pass_(batch)

    assert [1] in seen


def test_one_request_with_rows_in_doubt_is_in_flight_at_a_time(clock: Clock) -> None:
    for number in (1, 2):
        refuse_rows(clock, take_new(clock, number))
    store_another(clock)
    clock.now += MAX_PAUSE_IN_DOUBT
    first = clock.take()

    assert numbers(first) == [1, 2]  # together again
    assert clock.wait_for() == OVERDUE


def test_in_an_outage_they_wait_while_others_probe(clock: Clock) -> None:
    refuse_rows(clock, take_new(clock, 1))
    clock.fail(take_new(clock, 2), may_be_the_rows=False)
    for _ in range(5):
        batch = clock.take_next()
        assert numbers(batch) == [2]
        clock.fail(batch, may_be_the_rows=False)


def test_in_an_outage_they_probe_if_there_is_nothing_else(clock: Clock) -> None:
    refuse_rows(clock, take_new(clock, 1))
    for _ in range(8):
        clock.fail(clock.take_next(), may_be_the_rows=False)
    assert clock.queue.in_outage
    assert clock.pause() > MAX_PAUSE / 4

    clock.pass_(clock.take_next())
    assert clock.queue.held == 0


# The table is wrong


def test_a_table_that_is_wrong_is_an_outage_with_small_probes(clock: Clock) -> None:
    clock.add(*range(100))
    requests = 0
    while clock.now < 1000 + 600:
        batch = clock.take_next()
        refuse_rows(clock, batch)
        requests += 1
        if requests > REFUSALS_IN_TROUBLE:
            assert len(batch.rows) <= PROBE_ROWS

    assert clock.queue.in_outage
    assert requests < 60
    assert clock.queue.trouble is not None
    assert clock.queue.trouble.reason.text == "no such field"
    assert clock.queue.dead == 0


def test_when_it_is_mended_all_follow_soon(clock: Clock) -> None:
    clock = Clock(batch_rows=50)
    clock.add(*range(500))
    while clock.now < 1000 + 300:
        refuse_rows(clock, clock.take_next())
    mended = clock.now
    requests = 0
    while clock.queue.held:
        clock.now += 0.1
        clock.pass_(clock.take_next())
        requests += 1

    assert clock.queue.stored == 500
    assert clock.now - mended < MAX_PAUSE + 10
    assert requests < 60


def test_a_400_for_every_request_does_not_send_each_row_alone(clock: Clock) -> None:
    clock = Clock(batch_rows=500)
    clock.add(*range(500))
    clock.flush()
    requests = 0
    while clock.now < 1000 + 60:
        clock.refuse(clock.take_next())
        requests += 1
    assert requests < 25
    assert clock.queue.trouble is not None

    while clock.queue.held:
        clock.now += 0.1
        clock.pass_(clock.take_next())
        requests += 1

    assert clock.queue.stored == 500
    assert requests < 60


def test_new_rows_are_tried_in_each_pause(clock: Clock) -> None:
    for number in range(REFUSALS_IN_TROUBLE + 5):
        refuse_rows(clock, take_new(clock, number))
    clock.add(77)
    clock.flush()
    tried_at = clock.now
    while numbers(batch := clock.take_next()) != [77]:
        refuse_rows(clock, batch)

    assert clock.now - tried_at <= MAX_PAUSE


def test_trouble_is_over_when_a_row_is_stored(clock: Clock) -> None:
    refuse_rows(clock, take_new(clock, 1))
    assert clock.queue.trouble is None
    for _ in range(REFUSALS_IN_TROUBLE - 1):
        refuse_rows(clock, clock.take_next())
    assert clock.queue.trouble is not None

    store_another(clock)
    assert clock.queue.trouble is None
    assert clock.queue.in_doubt is not None


def test_a_good_row_among_bad_ones_is_found_though_nothing_else_is_sent(clock: Clock) -> None:
    clock.add(1, 2, 3)
    clock.flush()
    began = clock.now
    while clock.queue.stored == 0:
        assert clock.now < began + 600
        batch = clock.take_next()
        if numbers(batch) == [2]:
            clock.pass_(batch)
        else:
            clock.refuse(batch)


# Room for others


def test_when_the_buffer_is_full_the_oldest_rows_in_doubt_make_room() -> None:
    clock = Clock(capacity=3)
    refuse_rows(clock, take_new(clock, 1, 2, 3))
    assert not clock.queue.has_room(1)

    [letter] = clock.queue.drop_doubtful(1)

    assert letter.row["event_id"] == "1"
    assert letter.reason.text == "no such field"
    assert clock.queue.has_room(1)
    assert (clock.queue.dropped, clock.queue.held) == (1, 2)
    assert clock.queue.settled(1)


def test_nothing_is_dropped_where_it_makes_no_room() -> None:
    clock = Clock(capacity=3)
    refuse_rows(clock, take_new(clock, 1))
    clock.add(2, 3)

    assert clock.queue.drop_doubtful(2**27) == []
    assert clock.queue.held == 3


# Sent once more


def test_what_is_in_flight_is_sent_once_more_and_the_first_result_counts(clock: Clock) -> None:
    first = take_new(clock, 1, 2)
    assert clock.queue.duplicate_in_flight(clock.now, older_than=0.0) == 1
    second = clock.take()
    assert numbers(second) == [1, 2]

    assert clock.queue.succeeded(first, Answer(), clock.now).stored == first.rows
    assert clock.queue.succeeded(second, Answer(), clock.now) == Verdict()
    assert (clock.queue.stored, clock.queue.held) == (2, 0)


def test_a_refusal_that_comes_after_the_rows_were_stored_changes_nothing(clock: Clock) -> None:
    first = take_new(clock, 1)
    clock.queue.duplicate_in_flight(clock.now, older_than=0.0)
    clock.pass_(clock.take())

    assert not clock.refuse(first)
    assert (clock.queue.stored, clock.queue.dead, clock.queue.held) == (1, 0, 0)


def test_a_failure_of_the_first_leaves_the_second_to_decide(clock: Clock) -> None:
    first = take_new(clock, 1)
    clock.queue.duplicate_in_flight(clock.now, older_than=0.0)
    second = clock.take()
    clock.fail(first)
    assert not clock.queue.in_outage

    clock.fail(second)
    assert clock.queue.in_outage
    clock.pass_(clock.take_next())
    assert clock.queue.held == 0


def test_the_first_may_be_stored_after_the_second_failed(clock: Clock) -> None:
    first = take_new(clock, 1)
    clock.queue.duplicate_in_flight(clock.now, older_than=0.0)
    clock.fail(clock.take())
    clock.pass_(first)

    assert clock.queue.held == 0
    assert clock.wait_for() is None


def test_only_what_is_old_enough_is_sent_once_more(clock: Clock) -> None:
    take_new(clock, 1)
    clock.now += 5
    take_new(clock, 2)

    assert clock.queue.duplicate_in_flight(clock.now, older_than=3.0) == 1
    assert numbers(clock.take()) == [1]


def test_a_batch_whose_sender_is_gone_is_sent_once_more(clock: Clock) -> None:
    take_new(clock, 1)
    clock.now += OVERDUE

    assert numbers(clock.take()) == [1]


# Our own exceptions


def test_an_exception_of_ours_is_a_failed_try(clock: Clock) -> None:
    batch = take_new(clock, 1)
    assert clock.queue.give_back(batch, clock.now)
    assert not clock.queue.give_back(batch, clock.now)
    assert clock.wait_for() == pytest.approx(2 * FIRST_PAUSE)


def test_a_row_that_makes_our_code_raise_is_never_given_up_and_holds_up_nobody(
    clock: Clock,
) -> None:
    clock.add(*range(10))
    clock.flush()
    for _ in range(300):
        batch = clock.take_next()
        if 4 in numbers(batch):
            clock.queue.give_back(batch, clock.now)
        else:
            clock.pass_(batch)

    assert (clock.queue.stored, clock.queue.dead, clock.queue.held) == (9, 0, 1)


# After an outage


def test_after_an_outage_requests_become_more_step_by_step(clock: Clock) -> None:
    clock.add(*range(200))
    clock.fail(clock.take(), may_be_the_rows=False)
    at_a_time = []
    clock.pass_(clock.take_next())
    for _ in range(3):
        in_flight = []
        while (batch := clock.queue.take(clock.now, alone=False).batch) is not None:
            in_flight.append(batch)
        at_a_time.append(len(in_flight))
        for batch in in_flight:
            clock.pass_(batch)

    assert at_a_time == [2, 4, 8]
