"""Whose turn it is: fresh rows, rows whose request failed, and rows in doubt."""

from __future__ import annotations

import pytest

from lorc_eventlog.bigquery.transport import Answer, Reason, RefusedRow
from lorc_eventlog.delivery.pace import FIRST_PAUSE, MAX_IN_FLIGHT, Pace
from lorc_eventlog.delivery.schedule import COURTESY, HUNG_AFTER, OVERDUE
from queue_clock import Clock, numbers, take_new

pytestmark = pytest.mark.usefixtures("longest_pauses")


def put_in_doubt(clock: Clock, *rows: int) -> None:
    refused = (
        RefusedRow(index, Reason("r"), "r", is_about_payload=False) for index in range(len(rows))
    )
    clock.queue.succeeded(take_new(clock, *rows), Answer(tuple(refused)), clock.now)


# In doubt, and others pass


def test_rows_in_doubt_let_a_full_batch_go_first_but_not_for_ever(clock: Clock) -> None:
    put_in_doubt(clock, 1)
    clock.now += 2 * FIRST_PAUSE  # it is due
    clock.add(*range(10, 40))
    assert numbers(clock.take()) == [*range(10, 20)]

    clock.now += COURTESY
    assert numbers(clock.take()) == [1]
    assert numbers(clock.take()) == [*range(20, 30)]


def test_rows_in_doubt_go_when_nobody_else_is_due(clock: Clock) -> None:
    put_in_doubt(clock, 1)
    assert clock.wait_for() == pytest.approx(2 * FIRST_PAUSE)
    clock.now += 2 * FIRST_PAUSE
    assert numbers(clock.take()) == [1]


def test_a_second_request_in_doubt_waits_for_the_first() -> None:
    clock = Clock(batch_rows=1)
    put_in_doubt(clock, 1)
    put_in_doubt(clock, 2)
    clock.now += 30
    assert numbers(clock.take()) == [1]

    assert clock.wait_for() == OVERDUE


def test_two_refused_requests_are_no_trouble_and_the_third_is(clock: Clock) -> None:
    put_in_doubt(clock, 1)
    put_in_doubt(clock, 2)
    assert (clock.queue.trouble, clock.queue.in_outage) == (None, False)

    put_in_doubt(clock, 3)
    assert clock.queue.trouble is not None
    assert clock.queue.in_outage


# In an outage


def fail_both(clock: Clock, times: int) -> None:
    """The requests with the rows 2 and 3 fail so many times, and may be to blame."""
    batches = [take_new(clock, 2), take_new(clock, 3)]
    for batch in batches:
        clock.fail(batch, started=clock.now)
    for _ in range(2 * (times - 1)):
        batch = clock.take_next()
        assert not batch.doubts
        clock.fail(batch)


def test_rows_that_failed_once_probe_before_rows_in_doubt(clock: Clock) -> None:
    put_in_doubt(clock, 1)
    fail_both(clock, times=1)
    clock.now += 60

    assert numbers(clock.take()) == [2]


def test_rows_that_failed_twice_and_rows_in_doubt_probe_by_turns(clock: Clock) -> None:
    put_in_doubt(clock, 1)
    fail_both(clock, times=2)
    clock.now += 60
    probe = clock.take()
    assert numbers(probe) == [1]

    clock.fail(probe, may_be_the_rows=False)
    clock.now += 60
    assert numbers(clock.take()) == [2]


def test_by_turns_they_keep_the_pause_of_the_outage(clock: Clock) -> None:
    put_in_doubt(clock, 1)
    fail_both(clock, times=2)
    assert clock.pause() == pytest.approx(clock.queue._pace.resume_at - clock.now)


def test_of_those_that_are_due_at_the_same_moment_rows_in_doubt_go_first(clock: Clock) -> None:
    put_in_doubt(clock, 1)
    fail_both(clock, times=2)
    clock.queue.retry_now(clock.now)

    assert numbers(clock.take()) == [1]


def test_a_request_that_failed_alone_goes_before_rows_in_doubt(clock: Clock) -> None:
    put_in_doubt(clock, 1)
    batch = take_new(clock, 2)
    clock.fail(batch)
    clock.fail(clock.take_next())
    clock.now += 60

    assert numbers(clock.take()) == [2]


def test_fresh_rows_that_are_due_probe_before_rows_in_doubt(clock: Clock) -> None:
    put_in_doubt(clock, 1)
    fail_both(clock, times=2)
    clock.now += 60
    clock.add(4)
    clock.flush()

    assert numbers(clock.take()) == [4]


def test_a_probe_that_hangs_holds_up_the_next_for_some_seconds_or_the_pause(clock: Clock) -> None:
    clock.fail(take_new(clock, 1), may_be_the_rows=False)
    clock.add(2)
    clock.flush()
    clock.take_next()
    assert clock.pause() == HUNG_AFTER
    clock.now += HUNG_AFTER
    assert numbers(clock.take()) == [2]


def test_a_hanging_probe_of_a_long_outage_holds_up_the_next_for_its_pause(clock: Clock) -> None:
    clock.fail(take_new(clock, 1), may_be_the_rows=False)
    for _ in range(5):
        clock.fail(clock.take_next(), may_be_the_rows=False)
    clock.add(2)
    clock.flush()
    clock.take_next()

    assert clock.pause() == pytest.approx(FIRST_PAUSE * 2**6)


def test_the_flush_of_an_earlier_position_takes_back_none(clock: Clock) -> None:
    clock.add(1)
    assert clock.queue.request_flush() == 1
    assert clock.queue.request_flush(0) == 0
    assert numbers(clock.take()) == [1]


def test_at_the_end_of_the_process_all_that_waits_is_due_at_once(clock: Clock) -> None:
    put_in_doubt(clock, 1)
    clock.pass_(take_new(clock, 2, 3), 1)
    clock.queue.retry_now(clock.now)

    assert numbers(clock.take()) == [3]
    assert numbers(clock.take()) == [1]


# The pace


def test_a_new_pace_pauses_nobody_however_early_it_is() -> None:
    pace = Pace()
    assert (pace.failures, pace.resume_at, pace.in_flight) == (0, 0.0, MAX_IN_FLIGHT)
    pace.failed(0.0, 0.5)
    assert (pace.failures, pace.resume_at, pace.in_flight) == (1, 0.5 + 2 * FIRST_PAUSE, 1)
    pace.failed(0.4, 0.6)  # it was under way when the other failed
    assert pace.failures == 1
    pace.failed(0.5, 0.7)
    assert pace.failures == 2
