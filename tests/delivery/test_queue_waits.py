"""Rows in doubt, row by row: who makes room, who goes first, and what counts against which."""

from __future__ import annotations

import pytest

from lorc_eventlog.bigquery.transport import Answer, Reason, RefusedRow
from lorc_eventlog.delivery.batch import Batch, DeadLetter
from lorc_eventlog.delivery.doubt import AFTER_THE_FIRST, PATIENCE_IN_DOUBT, TRIES_OF_A_GROUP
from lorc_eventlog.delivery.pace import FIRST_PAUSE
from lorc_eventlog.events.row import row_bytes
from queue_clock import REFUSAL, TOO_LARGE, Clock, draw_longest_pauses, make_row, numbers

SIZE = row_bytes(make_row(0))


@pytest.fixture(autouse=True)
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_longest_pauses(monkeypatch)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take_new(clock: Clock, *rows: int) -> Batch:
    """Add rows, and take them."""
    clock.add(*rows)
    clock.flush()
    batch = clock.take()
    assert numbers(batch) == [*rows]
    return batch


def refuse(clock: Clock, batch: Batch, *indexes: int, kind: str = "no such field") -> None:
    """These rows of ``batch``, or all, are refused for themselves, and the others stopped."""
    chosen = indexes or range(len(batch.rows))
    refused = (RefusedRow(i, Reason(kind), kind, is_about_payload=False) for i in chosen)
    again = (index for index in range(len(batch.rows)) if index not in chosen)
    verdict = clock.queue.succeeded(batch, Answer(tuple(refused), tuple(again)), clock.now)
    clock.queue.dead_lettered(batch, verdict.dead)


def store_another(clock: Clock) -> None:
    clock.add(99)
    clock.flush()
    while numbers(batch := clock.take_next()) != [99]:
        assert batch.doubts
        clock.fail(batch, may_be_the_rows=False)
    clock.pass_(batch)


def doubtful(clock: Clock) -> int:
    trouble = clock.queue.in_doubt
    return 0 if trouble is None else trouble.count


def told(letters: list[DeadLetter]) -> list[tuple[str, str, int]]:
    return [(letter.row["event_id"], letter.reason.text, letter.position) for letter in letters]


# Room for others


def test_the_oldest_rows_in_doubt_make_room_and_no_more_than_are_needed() -> None:
    clock = Clock(capacity_bytes=5 * SIZE)
    first, second = take_new(clock, 1, 2), take_new(clock, 3, 4, 5)
    refuse(clock, second, kind="b")
    refuse(clock, first, kind="a")

    dropped = clock.queue.drop_doubtful(3 * SIZE)
    assert told(dropped) == [("1", "a", 0), ("2", "a", 1), ("3", "b", 2)]
    assert (clock.queue.held, clock.queue.held_bytes) == (2, 2 * SIZE)
    assert numbers(clock.take_next()) == [4, 5]
    assert not clock.queue.has_room(3 * SIZE + 1)


def test_half_of_what_was_refused_together_may_make_room_and_later_the_rest() -> None:
    clock = Clock(capacity=3)
    refuse(clock, take_new(clock, 1, 2, 3))

    assert told(clock.queue.drop_doubtful(1)) == [("1", "no such field", 0)]
    clock.add(4)
    assert told(clock.queue.drop_doubtful(1)) == [("2", "no such field", 1)]
    assert (clock.queue.dropped, doubtful(clock)) == (2, 1)


def test_nothing_is_dropped_where_there_is_room() -> None:
    clock = Clock(capacity=3)
    refuse(clock, take_new(clock, 1, 2))

    assert clock.queue.drop_doubtful(1) == []
    assert (clock.queue.dropped, doubtful(clock)) == (0, 2)


# Which go first when something is stored again


def in_doubt_one_by_one(clock: Clock, *rows: int) -> None:
    for batch in [take_new(clock, number) for number in rows]:
        refuse(clock, batch)


def test_when_something_is_stored_again_the_oldest_goes_ahead_and_the_others_a_second_later(
    clock: Clock,
) -> None:
    in_doubt_one_by_one(clock, 1, 2, 3)
    store_another(clock)

    first = clock.take()
    assert numbers(first) == [1]
    refuse(clock, first)
    assert 0 < clock.pause() <= AFTER_THE_FIRST  # nobody is due yet
    clock.now += AFTER_THE_FIRST
    assert set(numbers(clock.take())) >= {2, 3}


def test_once_one_in_doubt_is_stored_all_go_at_once(clock: Clock) -> None:
    in_doubt_one_by_one(clock, 1, 2, 3)
    store_another(clock)
    clock.pass_(clock.take())

    assert numbers(clock.take()) == [2, 3]
    assert clock.wait_for() is not None


def test_when_one_is_refused_again_they_go_one_request_at_a_time(clock: Clock) -> None:
    in_doubt_one_by_one(clock, 1, 2, 3)
    store_another(clock)
    clock.pass_(clock.take())
    refuse(clock, clock.take())
    clock.now += 100
    clock.add(*range(10, 20))
    clock.pass_(clock.take_next())
    clock.take_next()

    assert clock.pause() > AFTER_THE_FIRST


# What counts against which row


def test_a_row_in_doubt_that_is_stopped_is_not_counted_as_refused(clock: Clock) -> None:
    refuse(clock, take_new(clock, 1, 2))
    began = clock.now
    while doubtful(clock) == 2:
        assert clock.now < began + PATIENCE_IN_DOUBT + 60
        store_another(clock)
        batch = clock.take_next()
        while numbers(batch) == [2]:
            clock.pass_(batch, 0)
            batch = clock.take_next()
        refuse(clock, batch, 0)
        assert clock.queue.in_doubt is not None
        assert clock.queue.in_doubt.reason.text == "no such field"

    assert (clock.queue.dead, clock.queue.held) == (1, 1)
    clock.pass_(clock.take_next())
    assert clock.queue.held == 0


def test_a_row_in_doubt_that_is_stopped_goes_again_after_a_pause(clock: Clock) -> None:
    refuse(clock, take_new(clock, 1))
    pauses = []
    for _ in range(3):
        clock.pass_(clock.take_next(), 0)
        pauses.append(clock.pause())

    assert pauses == [pytest.approx(FIRST_PAUSE * 2**tries) for tries in (2, 3, 4)]


def test_the_latest_reason_is_told(clock: Clock) -> None:
    refuse(clock, take_new(clock, 1, 2))
    clock.refuse(clock.take_next())

    assert clock.queue.in_doubt is not None
    assert clock.queue.in_doubt.reason is REFUSAL.reason


def test_an_exception_of_ours_changes_no_reason(clock: Clock) -> None:
    refuse(clock, take_new(clock, 1, 2))
    clock.queue.give_back(clock.take_next(), clock.now)

    assert clock.queue.in_doubt is not None
    assert clock.queue.in_doubt.reason.text == "no such field"


def test_rows_that_are_divided_are_tried_at_once_and_after_short_pauses_again(
    clock: Clock,
) -> None:
    refuse(clock, take_new(clock, *range(4)))
    for _ in range(5):
        clock.fail(clock.take_next(), may_be_the_rows=False)
    clock.queue.retry_now(clock.now)
    batch = clock.take_next()
    clock.queue.refused(batch, TOO_LARGE, clock.now)
    half = clock.take()
    assert numbers(half) == [0, 1]
    assert clock.queue.in_doubt is not None
    assert clock.queue.in_doubt.reason is TOO_LARGE.reason


def test_rows_that_are_refused_for_several_reasons_are_sent_apart_only_if_they_break_a_request(
    clock: Clock,
) -> None:
    batch = take_new(clock, 1, 2, 3)
    refused = [RefusedRow(i, Reason(k), k, is_about_payload=False) for i, k in enumerate("aba")]
    clock.queue.succeeded(batch, Answer(tuple(refused)), clock.now)
    store_another(clock)
    clock.now += 1
    again = clock.take_next()
    assert numbers(again) == [1, 3, 2]

    clock.refuse(again)
    assert [numbers(clock.take_next())] == [[1, 3]]


def test_of_rows_that_break_their_request_again_and_again_one_is_sent_alone(clock: Clock) -> None:
    clock.refuse(take_new(clock, 1, 2))
    for _ in range(2 * TRIES_OF_A_GROUP + 2):
        batch = clock.take_next()
        if len(batch.rows) == 1:
            break
        clock.refuse(batch)
    assert len(batch.rows) == 1
