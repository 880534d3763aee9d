"""Rows in doubt, row by row: who makes room, who goes first, and what counts against which."""

from __future__ import annotations

from typing import Any

import pytest

from lorc_eventlog.bigquery.insert_all import LIMITS
from lorc_eventlog.bigquery.transport import Answer, Reason, RefusedRow
from lorc_eventlog.delivery.batch import Batch, DeadLetter, Doubt
from lorc_eventlog.delivery.doubt import (
    AFTER_THE_FIRST,
    PATIENCE_IN_DOUBT,
    PROBE_ROWS,
    REFUSALS_IN_TROUBLE,
    TRIES_OF_A_GROUP,
    DoubtPolicy,
    Moment,
)
from lorc_eventlog.delivery.pace import FIRST_PAUSE
from lorc_eventlog.events.row import row_bytes
from queue_clock import REFUSAL, TOO_LARGE, Clock, make_row, numbers, take_new

SIZE = row_bytes(make_row(0))


pytestmark = pytest.mark.usefixtures("longest_pauses")


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


def test_when_the_trouble_is_over_its_pause_is_over_too(clock: Clock) -> None:
    in_doubt_one_by_one(clock, 1, 2, 3)
    for _ in range(6):
        refuse(clock, clock.take_next())
    store_another(clock)
    assert clock.now < clock.queue._doubt.pace.resume_at

    assert numbers(clock.take())[0] == 1


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


def group_in_doubt(clock: Clock) -> None:
    """A request with the rows 1 and 2 was refused as a whole, after another one."""
    group, other = take_new(clock, 1, 2), take_new(clock, 9)
    refuse(clock, other)
    clock.refuse(group)


def test_of_rows_that_break_their_request_three_times_one_is_sent_alone(clock: Clock) -> None:
    group_in_doubt(clock)
    sent = []
    while (batch := clock.take_next()).doubts[0].tries < TRIES_OF_A_GROUP or 9 in numbers(batch):
        sent.append(numbers(batch))
        clock.refuse(batch)

    assert all(rows != [1] for rows in sent)
    assert numbers(batch) == [1]


def test_a_failure_of_the_connection_lets_another_row_probe_next(clock: Clock) -> None:
    in_doubt_one_by_one(clock, 1, 2, 3)
    assert clock.queue.trouble is not None
    first = clock.take_next()
    clock.fail(first, may_be_the_rows=False)

    assert numbers(clock.take_next()) != numbers(first)


def test_halves_of_what_was_refused_wait_until_another_row_is_stored(clock: Clock) -> None:
    refuse(clock, take_new(clock, *range(4)))
    store_another(clock)
    clock.now += 1
    clock.refuse(clock.take())
    half = clock.take()
    assert numbers(half) == [0, 1]

    clock.refuse(half)
    assert numbers(clock.take()) == [2, 3]
    assert [len(doubt.rows) for doubt in clock.queue._doubtful] == [2]
    assert clock.queue._doubtful[0].reason is REFUSAL.reason


def test_the_halves_begin_with_short_pauses(clock: Clock) -> None:
    refuse(clock, take_new(clock, *range(4)))
    for _ in range(6):
        clock.refuse(clock.take_next())
    store_another(clock)
    batch = clock.take_next()
    while len(batch.rows) != 4:
        clock.fail(batch, may_be_the_rows=False)
        batch = clock.take_next()
    clock.queue.refused(batch, TOO_LARGE, clock.now)
    known = [(doubt.tries, doubt.due, doubt.began) for doubt in clock.queue._doubtful]
    assert known == [(0, clock.now, 0)] * 2


def test_rows_that_are_divided_are_due_at_once_and_know_what_happened_until_then() -> None:
    policy = DoubtPolicy(batch_rows=10, limits=LIMITS)
    doubts = [in_doubt(0, tries=4), in_doubt(1)]
    batch = Batch([make_row(0), make_row(1)], [0, 1], doubts=doubts)
    moment, reason = Moment(now=9.0, stored=7, began=3), Reason("new")
    for divided in (
        policy.divided(batch, reason, moment),
        policy.blamed(batch, reason, moment, is_evidence=True),
    ):
        known = [(doubt.due, doubt.stored, doubt.began, doubt.tries) for doubt in divided]
        assert known == [(9.0, 7, 3, 0)] * 2
        assert [doubt.reason for doubt in divided] == [reason] * 2


def test_a_row_is_given_up_by_its_third_refusal_when_the_minute_is_over(clock: Clock) -> None:
    refuse(clock, take_new(clock, 1), kind="a")
    for seconds, kind in ((PATIENCE_IN_DOUBT / 2, "b"), (PATIENCE_IN_DOUBT / 2, "c")):
        store_another(clock)
        clock.now += seconds
        batch = clock.take()
        assert numbers(batch) == [1]
        answer = Answer((RefusedRow(0, Reason(kind), kind, is_about_payload=False),))
        verdict = clock.queue.succeeded(batch, answer, clock.now)
    assert told(verdict.dead) == [("1", "c", 0)]


def test_the_reason_of_a_row_is_that_of_its_last_refusal_or_failure(clock: Clock) -> None:
    refuse(clock, take_new(clock, 1), kind="a")
    reasons = []
    for result in ("refusal", "failure", "answer"):
        store_another(clock)
        batch = clock.take_next()
        if result == "refusal":
            clock.refuse(batch)
        elif result == "failure":
            clock.fail(batch)
        else:
            refuse(clock, batch, kind="b")
        assert clock.queue.in_doubt is not None
        reasons.append(clock.queue.in_doubt.reason.text)

    assert reasons == ["400 invalid", "500 backendError", "b"]


def test_a_dead_letter_has_the_reason_for_which_the_row_was_refused(clock: Clock) -> None:
    batch = take_new(clock, 1, 2)
    answer = Answer((RefusedRow(1, Reason("bad"), "bad", is_about_payload=False),))
    assert told(clock.queue.succeeded(batch, answer, clock.now).dead) == [("2", "bad", 1)]
    large = take_new(clock, 3)
    assert told(clock.queue.refused(large, TOO_LARGE, clock.now).dead) == [("3", "413", 2)]


def test_all_rows_that_are_given_up_together_are_told(clock: Clock) -> None:
    clock.add(1, 2, 3)
    clock.flush()
    batch, dead = clock.take(), list[DeadLetter]()
    for kinds in ("aba", "aba", "abp"):
        answer = Answer(
            tuple(
                RefusedRow(i, Reason(kind), kind, is_about_payload=kind == "p")
                for i, kind in enumerate(kinds)
            )
        )
        dead = clock.queue.succeeded(batch, answer, clock.now).dead
        if dead:
            break
        store_another(clock)
        clock.now += PATIENCE_IN_DOUBT
        batch = clock.take()
        assert sorted(numbers(batch)) == [1, 2, 3]

    assert sorted((letter.row["event_id"], letter.reason.text) for letter in dead) == [
        ("1", "a"),
        ("2", "b"),
        ("3", "p"),
    ]


def test_a_failure_with_nothing_else_stored_is_no_refusal_of_a_row(clock: Clock) -> None:
    """It would be counted as the first of three."""
    group_in_doubt(clock)
    while numbers(batch := clock.take_next()) != [1]:
        clock.refuse(batch)
    clock.fail(batch)

    refusals = {d.rows[0]["event_id"]: d.refusals for d in clock.queue._all_doubts()}
    assert (refusals["1"], refusals["2"]) == (0, 0)


def test_a_row_in_doubt_may_be_given_up_although_another_batch_failed_long_ago(
    clock: Clock,
) -> None:
    refuse(clock, take_new(clock, 1))
    other = take_new(clock, 2)
    clock.fail(other)
    while clock.queue.in_outage:
        batch = clock.take_next()
        if numbers(batch) == [2]:
            clock.pass_(batch)
        else:
            refuse(clock, batch)
    began = clock.now
    store_another(clock)
    is_dead = clock.fail(clock.take_next())
    while not is_dead:
        assert clock.now < began + 120
        store_another(clock)
        is_dead = clock.fail(clock.take_next())


def test_in_trouble_no_more_than_a_few_rows_probe() -> None:
    clock = Clock(batch_rows=50)
    refuse(clock, take_new(clock, *range(50)))
    for _ in range(REFUSALS_IN_TROUBLE - 1):
        refuse(clock, clock.take_next())
    assert clock.queue.trouble is not None

    assert len(clock.take_next().rows) == PROBE_ROWS


def test_in_trouble_no_more_than_a_few_new_rows_probe() -> None:
    clock = Clock(batch_rows=50)
    in_doubt_one_by_one(clock, 1, 2, 3)
    clock.add(*range(100, 150))
    while (batch := clock.take_next()).doubts:
        refuse(clock, batch)

    assert len(batch.rows) == PROBE_ROWS


def test_a_400_halves_a_request_once_and_then_the_table_is_asked_for_less(clock: Clock) -> None:
    clock.refuse(take_new(clock, *range(8)))
    first, second = clock.take(), clock.take()
    assert [numbers(first), numbers(second)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    clock.refuse(first)
    assert doubtful(clock) == 4

    clock.queue.refused(second, TOO_LARGE, clock.now)
    assert doubtful(clock) == 4
    assert numbers(clock.take_next()) == [4, 5]


def test_what_failed_for_no_rows_fault_goes_as_soon_as_the_outage_is_over(clock: Clock) -> None:
    first, second = take_new(clock, 1), take_new(clock, 2)
    clock.fail(first, may_be_the_rows=False)
    clock.pass_(second)

    assert numbers(clock.take()) == [1]


def test_after_two_refusals_a_stored_row_has_the_oldest_tried_at_once(clock: Clock) -> None:
    in_doubt_one_by_one(clock, 1, 2)
    store_another(clock)

    assert numbers(clock.take()) == [1]


def test_after_one_refusal_the_row_keeps_its_pause(clock: Clock) -> None:
    in_doubt_one_by_one(clock, 1)
    store_another(clock)

    assert clock.pause() == pytest.approx(2 * FIRST_PAUSE)


def test_refusals_are_counted_anew_when_a_row_was_stored(clock: Clock) -> None:
    in_doubt_one_by_one(clock, 1, 2)
    store_another(clock)
    refuse(clock, clock.take_next())
    refuse(clock, clock.take_next())

    assert clock.queue.trouble is None


def test_as_many_make_room_as_are_over_the_bound_and_the_others_are_kept() -> None:
    clock = Clock(capacity=3)
    clock.pass_(take_new(clock, 0))
    for batch in [take_new(clock, 1, 2), take_new(clock, 3), take_new(clock, 4)]:
        refuse(clock, batch)

    assert [number for number, _, _ in told(clock.queue.drop_doubtful(1))] == ["1", "2"]
    assert (clock.queue.held, clock.queue.held_bytes) == (2, 2 * SIZE)
    assert doubtful(clock) == 2
    clock.queue.drop_doubtful(1)
    clock.add(5, 6, 7)
    assert clock.queue.drop_doubtful(1) == []  # one is left, and two are too many
    assert clock.queue.held_bytes == clock.queue.held * SIZE


def test_an_exception_of_ours_pauses_a_row_in_doubt_though_others_pass(clock: Clock) -> None:
    refuse(clock, take_new(clock, 1))
    store_another(clock)
    clock.queue.give_back(clock.take_next(), clock.now)

    assert clock.pause() > 0


def test_several_requests_with_rows_in_doubt_go_once_some_passed() -> None:
    clock = Clock(batch_rows=1)
    in_doubt_one_by_one(clock, 1, 2)
    store_another(clock)
    clock.pass_(clock.take())
    in_doubt_one_by_one(clock, 3)  # a new row, which says nothing of those

    assert numbers(clock.take()) == [2]
    assert numbers(clock.take_next()) == [3]
    assert clock.queue._doubt.are_passing


def test_it_takes_a_stored_row_and_not_a_size_to_let_several_requests_go(clock: Clock) -> None:
    in_doubt_one_by_one(clock, 1, 2)
    clock.queue.refused(take_new(clock, 3), TOO_LARGE, clock.now)
    clock.pass_(take_new(clock, 4), 0)  # it is stopped

    assert not clock.queue._doubt.are_passing


def test_something_else_that_is_stored_does_not_end_that_they_pass() -> None:
    policy = DoubtPolicy(batch_rows=10, limits=LIMITS)
    policy.try_again([], 0.0, are_passing=True)
    policy.try_again([], 0.0, are_passing=False)
    assert policy.are_passing


def test_new_rows_that_are_refused_make_an_outage_and_leave_those_in_doubt_their_pace(
    clock: Clock,
) -> None:
    in_doubt_one_by_one(clock, 1, 2)
    assert not clock.queue.in_outage
    in_doubt_one_by_one(clock, 3)
    assert clock.queue.in_outage

    assert clock.queue._doubt.pace.failures == 0
    refuse(clock, clock.take_next())
    assert clock.queue._doubt.pace.failures == 1


def in_doubt(number: int, **history: Any) -> Doubt:
    known = {"due": 0.0, "stored": 5, "began": 0, "refusals": 1, **history}
    return Doubt([make_row(number)], [number], reason=Reason("r"), **known)


def test_what_is_to_be_sent_alone_or_showed_nothing_yet_is_not_sent_with_others() -> None:
    policy = DoubtPolicy(batch_rows=10, limits=LIMITS)
    doubts = [
        in_doubt(0),
        in_doubt(1, is_alone=True),
        in_doubt(2, refusals=0, tries=TRIES_OF_A_GROUP),
        in_doubt(3, refusals=0, tries=TRIES_OF_A_GROUP, stored=4),
        in_doubt(4, due=100.0),
    ]
    batch, others = policy.choose(doubts, 10.0, stored=5, in_trouble=False)
    assert numbers(batch) == [0, 3]
    assert [doubt.positions[0] for doubt in others] == [1, 2, 4]
    batch, others = policy.choose(others, 10.0, stored=5, in_trouble=False)
    assert numbers(batch) == [1]
    batch, others = policy.choose(others, 10.0, stored=5, in_trouble=False)
    assert (numbers(batch), [doubt.positions[0] for doubt in others]) == ([2], [4])


# What a queue tells of itself


def test_a_queue_without_a_disk_takes_no_row_in_the_midst_of_a_call(clock: Clock) -> None:
    assert not clock.queue.accept_nested(make_row(1))


def test_a_queue_may_hold_a_row_that_is_as_large_as_its_bound() -> None:
    assert Clock(capacity_bytes=SIZE).queue.may_hold(make_row(0))
    assert not Clock(capacity_bytes=SIZE - 1).queue.may_hold(make_row(0))
