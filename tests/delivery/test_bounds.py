"""A full buffer: what is dropped, what waits for room, and what is said."""

from __future__ import annotations

import logging
import logging.config
from typing import Any

import pytest
from google.cloud import bigquery

from harness import (
    Records,
    assert_adds_up,
    eventually,
    make_event,
    numbers_in,
    running_writer,
    sampled,
    submit_events,
    threads,
)
from inside import queue_of, waiting_callers
from lorc_eventlog.bigquery.insert_all import LIMITS
from lorc_eventlog.delivery.batch import Bounds
from lorc_eventlog.delivery.inbox import Inbox
from lorc_eventlog.delivery.queue import DeliveryQueue
from lorc_eventlog.events.envelope import to_row
from lorc_eventlog.events.row import Row, row_bytes
from scripted_bigquery import ScriptedBigQuery, hang, status


def test_when_the_buffer_is_full_the_newest_are_dropped_and_counted(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(status(503))
    with running_writer(client, capacity=10) as writer:
        submit_events(writer, range(25))
        stats = writer.stats()
        assert (stats.buffered, stats.dropped) == (10, 15)
        assert_adds_up(stats)
        scripted.healthy()
        assert writer.flush(30)

    assert numbers_in(scripted) == list(range(10))


def test_what_is_on_its_way_counts_against_the_capacity(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.script(hang())
    with running_writer(client, capacity=10, batch_rows=10) as writer:
        submit_events(writer, range(10))
        scripted.wait_for_requests(1)
        writer.submit(make_event(10))
        assert writer.stats().dropped == 1
        scripted.stop()
        scripted.start()


def test_the_buffer_is_bounded_in_bytes_too(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(status(503))
    size = row_bytes(to_row(make_event(1)))
    with running_writer(client, capacity_bytes=10 * size) as writer:
        submit_events(writer, range(10))
        writer.submit(make_event(10))
        stats = writer.stats()
        assert (stats.buffered, stats.dropped) == (10, 1)
        scripted.healthy()
        assert writer.flush(30)
        assert (queue_of(writer).held, queue_of(writer).held_bytes) == (0, 0)


def test_drops_are_reported_with_their_number_and_not_too_often(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(status(503))
    with Records() as said, running_writer(client, capacity=1) as writer:
        submit_events(writer, range(1000))
        scripted.healthy()
        writer.close()

    counts = [int(t.split()[1]) for t in said.texts(logging.WARNING) if "the buffer is full" in t]
    assert len(counts) == 2  # at once, and the rest in the end
    assert sum(counts) == 999


def test_overflow_block_waits_for_room(scripted: ScriptedBigQuery, client: bigquery.Client) -> None:
    scripted.script(status(503), status(503))
    with running_writer(client, capacity=10, overflow="block") as writer, sampled(writer):
        with threads(4, lambda index: submit_events(writer, range(index * 50, index * 50 + 50))):
            pass
        assert writer.flush(30)
        assert writer.stats().dropped == 0

    assert numbers_in(scripted) == list(range(200))


def test_an_event_that_never_has_room_is_dropped_even_with_block(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    with running_writer(client, capacity_bytes=2000, overflow="block") as writer:
        writer.submit(make_event(1, padding="x" * 3000))
        assert writer.stats().dropped == 1
        writer.submit(make_event(2))
        writer.submit(make_event(3, padding="x" * 3000))
        assert writer.flush(10)
        assert_adds_up(writer.stats())

    assert numbers_in(scripted) == [2]


def test_a_blocked_log_call_does_not_block_another_writers(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(hang())
    with running_writer(client, capacity=1, overflow="block") as writer:
        writer.submit(make_event(0))
        with threads(1, lambda _: writer.submit(make_event(1))):
            eventually(lambda: waiting_callers(writer))
            assert writer.stats().buffered == 1
            scripted.healthy()
            scripted.stop()
            scripted.start()


class Refilled(list[Row]):
    """Rows in whose places another thread logs others as soon as there is room."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row
        self.inbox: Inbox | None = None

    def fill(self) -> None:
        while self.inbox is not None and len(self) < self.inbox.limit:
            self.append(self.row)

    def __delitem__(self, index: Any) -> None:
        super().__delitem__(index)
        self.fill()


@pytest.mark.parametrize(("capacity", "more"), [(10, 0), (30, 7)])
def test_rows_that_come_while_others_move_into_the_queue_need_room_there(
    capacity: int, more: int
) -> None:
    queue = DeliveryQueue(Bounds(8, 1.0, capacity, 2**30, LIMITS))
    inbox = Inbox(queue)
    inbox.open(is_watched=True)
    inbox.rows = rows = Refilled(to_row(make_event(1)))
    rows.inbox = inbox
    rows.fill()
    assert len(rows) == 7
    inbox.collect()
    assert inbox.limit == len(rows) == more
    assert queue.held == 7
    assert queue.held + inbox.limit <= capacity
