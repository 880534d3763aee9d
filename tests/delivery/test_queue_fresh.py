"""Rows that were never sent, and how many of them go into one request, to the byte."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorc_eventlog.bigquery.insert_all import LIMITS
from lorc_eventlog.delivery.fresh import FreshRows, fitting
from lorc_eventlog.events.row import Row, row_bytes
from queue_clock import make_row, numbers

SIZE = row_bytes(make_row(0))


def fresh_rows(count: int, *, request_bytes: int = 2 * SIZE) -> FreshRows:
    limits = replace(LIMITS, request_bytes=request_bytes, wire_bytes=row_bytes, bytes_a_character=1)
    fresh = FreshRows(batch_rows=10, flush_interval=1.0, limits=limits)
    fresh.absorb([make_row(number) for number in range(count)], 7.0)
    return fresh


def test_a_request_may_be_full_to_the_last_byte() -> None:
    assert not fresh_rows(1).is_full_batch
    assert fresh_rows(2).is_full_batch
    assert numbers(fresh_rows(3).take(10, 8.0, {})) == [0, 1]
    assert not fresh_rows(2, request_bytes=2 * SIZE + 1).is_full_batch
    assert fresh_rows(3, request_bytes=2 * SIZE + 1).is_full_batch


@pytest.mark.parametrize(("most_bytes", "measured"), [(2 * SIZE, 0), (2 * SIZE + 1, 2)])
def test_rows_that_fit_together_are_not_measured_one_by_one(most_bytes: int, measured: int) -> None:
    rows = [make_row(0), make_row(1)]
    seen: list[Row] = []

    def wire_bytes(row: Row) -> int:
        seen.append(row)
        return SIZE

    limits = replace(
        LIMITS,
        request_bytes=2 * SIZE,
        wire_bytes=wire_bytes,
        bytes_a_character=4,
        most_bytes=lambda rows, size: most_bytes if (len(rows), size) == (2, 2 * SIZE) else 0,
    )
    assert fitting(rows, 2 * SIZE, limits) == 2
    assert seen == rows[:measured]


def test_what_is_left_of_a_portion_keeps_its_place_and_takes_more_rows() -> None:
    fresh = fresh_rows(2)
    first = fresh.take(1, 8.0, {})
    assert (numbers(first), list(first.positions), first.size) == ([0], [0], SIZE)
    fresh.absorb([make_row(2)], 9.0)
    assert (fresh.first, fresh.due_at) == (1, 7.0)
    second = fresh.take(10, 10.0, {})
    assert (numbers(second), list(second.positions), second.size) == ([1, 2], [1, 2], 2 * SIZE)
    assert second.sent_at == 10.0


@given(
    before=st.lists(st.integers(0, 90), max_size=25),
    lengths=st.lists(st.integers(0, 90) | st.integers(0, 6 * SIZE), max_size=40),
    skipped=st.integers(0, 2),
    request_bytes=st.sampled_from([4 * SIZE, 100 * SIZE]),
)
def test_a_portion_takes_rows_until_the_next_one_would_be_too_much(
    before: list[int], lengths: list[int], skipped: int, request_bytes: int
) -> None:
    fresh = fresh_rows(0, request_bytes=request_bytes)
    rows = [make_row(number, "x" * length) for number, length in enumerate([*before, *lengths])]
    first, more = rows[: len(before)], rows[len(before) :]
    inbox = list(first)
    fresh.absorb(inbox, 7.0)
    fresh.position += skipped
    fresh.skipped += skipped
    inbox += more
    fresh.absorb(inbox, 8.0)
    assert inbox == []
    if skipped:
        wanted = [*greedy(first, request_bytes), *greedy(more, request_bytes)]
    else:
        wanted = greedy(rows, request_bytes)
    assert portions_of(fresh) == [(number_of(some), size_of(some)) for some in wanted]
    assert fresh.added_bytes == size_of(rows)
    assert fresh.position == len(rows) + skipped


@given(st.lists(st.integers(0, 90), min_size=1, max_size=40), st.integers(0, 30))
def test_rows_may_be_sent_in_another_order(lengths: list[int], sent: int) -> None:
    fresh = fresh_rows(0, request_bytes=100 * SIZE)
    rows = [make_row(number, "x" * length) for number, length in enumerate(lengths)]
    fresh.absorb(list(rows), 7.0)
    fresh.absorb([make_row(99)], 8.0)
    rows.append(make_row(99))
    count = len(fresh.take(sent, 9.0, {}).rows) if sent else 0
    left = rows[count:]
    if left:
        since = fresh._portions[0].since
        fresh.rearrange(lambda some: [*some][::-1])
        assert {portion.since for portion in fresh._portions} == {since}
    wanted = greedy(left[::-1], 100 * SIZE)
    assert portions_of(fresh) == [(number_of(some), size_of(some)) for some in wanted]
    assert (fresh.position, fresh.added_bytes) == (len(rows), size_of(rows))
    assert fresh.first == (count if left else inf)


def greedy(rows: list[Row], request_bytes: int) -> list[list[Row]]:
    """The same, as simple as can be."""
    portions: list[list[Row]] = []
    for row in rows:
        last = portions[-1] if portions else []
        if last and len(last) < 10 and size_of([*last, row]) <= request_bytes:
            last.append(row)
        else:
            portions.append([row])
    return portions


def portions_of(fresh: FreshRows) -> list[tuple[list[str], int]]:
    return [(number_of(portion.rows), portion.size) for portion in fresh._portions]


def number_of(rows: list[Row]) -> list[str]:
    return [row["event_id"] for row in rows]


def size_of(rows: list[Row]) -> int:
    return sum(map(row_bytes, rows))
