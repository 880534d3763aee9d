"""When what is sent, and what a failure means: without threads, time passed in."""

from __future__ import annotations

import random

import pytest

from lorc_eventlog.bigquery.insert_all import LIMITS
from lorc_eventlog.delivery.pace import FIRST_PAUSE, LAST_PAUSE, MAX_PAUSE
from lorc_eventlog.delivery.schedule import HUNG_AFTER
from queue_clock import TOO_LARGE, Clock, numbers

MAX_REQUEST_BYTES = LIMITS.request_bytes


pytestmark = pytest.mark.usefixtures("longest_pauses")


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


def test_a_queue_without_a_disk_has_nothing_there_to_deliver_or_to_lose(clock: Clock) -> None:
    clock.queue.look_now()
    assert clock.wait_for() is None
    assert clock.queue.is_drained
    assert clock.queue.chore_done(None, clock.now) == 0


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
    assert clock.queue.take(clock.now, alone=True) == (None, HUNG_AFTER, None)

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
    verdict = clock.queue.refused(batch, TOO_LARGE, clock.now)
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
    assert clock.wait_for() == HUNG_AFTER

    clock.pass_(probe)
    assert not clock.queue.in_outage
    assert [len(clock.take().rows) for _ in range(2)] == [10, 10]


def test_a_failed_batch_is_sent_again_with_the_same_rows(clock: Clock) -> None:
    clock.add(*range(10))
    batch = clock.take()
    clock.fail(batch)

    assert clock.take_next().rows is batch.rows


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
