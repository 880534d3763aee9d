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
    before=st.lists(st.integers(0, 90), max_size=12),
    lengths=st.lists(st.integers(0, 90), max_size=40),
    skipped=st.integers(0, 2),
    request_bytes=st.sampled_from([4 * SIZE, 100 * SIZE]),
)
def test_rows_that_come_together_are_portioned_like_rows_that_come_one_by_one(
    before: list[int], lengths: list[int], skipped: int, request_bytes: int
) -> None:
    together, one_by_one = (
        fresh_rows(0, request_bytes=request_bytes),
        fresh_rows(0, request_bytes=request_bytes),
    )
    rows = [make_row(number, "x" * length) for number, length in enumerate([*before, *lengths])]
    for fresh in (together, one_by_one):
        fresh.absorb(rows[: len(before)], 7.0)
        fresh.position += skipped
        fresh.skipped += skipped
    together.absorb(rows[len(before) :], 8.0)
    for row in rows[len(before) :]:
        one_by_one.absorb([row], 8.0)
    assert portions_of(together) == portions_of(one_by_one)
    assert together.added_bytes == one_by_one.added_bytes
    assert together.position == one_by_one.position == len(rows) + skipped


def portions_of(fresh: FreshRows) -> list[tuple[list[int], list[int], int]]:
    portions = []
    while fresh.first < inf:
        batch = fresh.take(10, 9.0, {})
        portions.append((numbers(batch), list(batch.positions), batch.size))
    return portions
