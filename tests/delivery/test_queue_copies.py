"""A batch that is sent once more while its first request hangs: which result counts."""

from __future__ import annotations

from lorc_eventlog.bigquery.transport import Answer
from queue_clock import Clock, take_new


def test_a_refusal_of_the_first_copy_leaves_the_second_to_decide(clock: Clock) -> None:
    first = take_new(clock, 1)
    clock.queue.duplicate_in_flight(clock.now, older_than=0.0)
    second = clock.take()
    clock.refuse(first)
    assert clock.queue.in_doubt is None

    clock.refuse(second)
    assert clock.queue.in_doubt is not None


def test_an_interrupted_first_copy_leaves_the_second_to_decide(clock: Clock) -> None:
    first = take_new(clock, 1)
    clock.queue.duplicate_in_flight(clock.now, older_than=0.0)
    second = clock.take()
    assert not clock.queue.give_back(first, clock.now)
    assert clock.queue.is_undecided(second)
    clock.pass_(second)
    assert (clock.queue.stored, clock.queue.held) == (1, 0)


def test_copies_of_several_batches_are_kept_apart(clock: Clock) -> None:
    firsts = [take_new(clock, number) for number in (1, 2, 3)]
    assert clock.queue.duplicate_in_flight(clock.now, older_than=0.0) == 3
    seconds = [clock.take() for _ in firsts]
    clock.fail(seconds[1])
    clock.pass_(firsts[0])
    clock.pass_(firsts[1])
    assert (clock.queue.stored, clock.queue.held) == (2, 1)
    assert clock.queue.succeeded(firsts[2], Answer(), clock.now).stored == firsts[2].rows
    assert (clock.queue.stored, clock.queue.held) == (3, 0)


def test_however_often_a_batch_is_sent_once_more_the_result_of_the_first_request_counts(
    clock: Clock,
) -> None:
    first = take_new(clock, 1)
    for _ in range(2):
        clock.queue.duplicate_in_flight(clock.now, older_than=0.0)
        clock.take()
    clock.pass_(first)
    assert (clock.queue.stored, clock.queue.held) == (1, 0)


def test_a_result_counts_while_the_copy_waits_and_another_batch_is_sent_once_more(
    clock: Clock,
) -> None:
    first = take_new(clock, 1)
    clock.now += 5
    take_new(clock, 2)
    assert clock.queue.duplicate_in_flight(clock.now, older_than=3.0) == 1
    assert clock.queue.duplicate_in_flight(clock.now, older_than=0.0) == 1
    clock.pass_(first)
    assert (clock.queue.stored, clock.queue.held) == (1, 1)


def test_what_is_sent_once_more_is_due_from_that_moment_on(clock: Clock) -> None:
    take_new(clock, 1)
    clock.now += 5
    clock.queue.duplicate_in_flight(clock.now, older_than=0.0)
    assert [batch.due for batch in clock.queue._again] == [clock.now]


def test_a_batch_is_undecided_until_a_result_settles_it_or_its_copy(clock: Clock) -> None:
    first, other = take_new(clock, 1), take_new(clock, 2)
    assert clock.queue.is_undecided(first)
    clock.pass_(other)
    assert not clock.queue.is_undecided(other)

    clock.queue.duplicate_in_flight(clock.now, older_than=0.0)
    second = clock.take()
    assert clock.queue.is_undecided(first)
    clock.pass_(second)
    assert not clock.queue.is_undecided(first)
