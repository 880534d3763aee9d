"""EventWriter against a BigQuery that answers over real HTTP: its promises, one by one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import logging.config
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.cloud import bigquery

from harness import (
    PRIVATE,
    Records,
    assert_adds_up,
    eventually,
    make_event,
    nothing_private_is_said,  # noqa: F401  an autouse fixture
    numbers_in,
    running_writer,
    sampled,
    submit_events,
    threads,
)
from lorc_eventlog import BigQueryEventHandler, Envelope, EventWriter
from lorc_eventlog.delivery import writer as writer_module
from lorc_eventlog.events.envelope import to_row
from lorc_eventlog.events.row import row_bytes
from scripted_bigquery import ScriptedBigQuery, delay, hang, status

# Delivery


def test_an_event_is_delivered_without_a_flush(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    with running_writer(client) as writer:
        writer.submit(make_event(1))
        scripted.wait_for_rows(1)
        eventually(lambda: writer.stats().delivered == 1)

    stored = scripted.events()[0]
    assert stored["payload"] == {"number": 1, "text": PRIVATE}
    assert scripted.requests[0].insert_ids == (stored["event_id"],)


def test_a_writer_without_a_client_makes_its_own(scripted: ScriptedBigQuery) -> None:
    with running_writer() as writer:
        submit_events(writer, range(3))
        assert writer.flush(10)

    assert numbers_in(scripted) == [0, 1, 2]


def test_emit_builds_the_envelope(scripted: ScriptedBigQuery, client: bigquery.Client) -> None:
    with running_writer(client) as writer:
        writer.emit(
            "email.received",
            {"number": 1},
            source="tests",
            schema_ref="email.v1",
            correlation_id="trace",
            subject_id="patient",
        )
        writer.flush(10)

    (event,) = scripted.events()
    assert list(event) == [
        "event_id",
        "event_type",
        "source",
        "schema_ref",
        "created_at",
        "correlation_id",
        "subject_id",
        "payload",
    ]
    assert event["event_type"] == "email.received"
    assert event["payload"] == {"number": 1}


def test_what_the_caller_does_to_the_payload_afterwards_changes_nothing(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    event = make_event(1)
    with running_writer(client, flush_interval=60) as writer:
        writer.submit(event)
        event["payload"]["number"] = 2

    assert numbers_in(scripted) == [1]


def test_a_payload_that_cannot_be_json_is_refused_in_the_call(client: bigquery.Client) -> None:
    event = make_event(1)
    event["payload"]["itself"] = event["payload"]
    with running_writer(client) as writer:
        with pytest.raises(ValueError, match="cycle"):
            writer.submit(event)
        assert writer.stats().submitted == 0


def test_rows_wait_for_the_flush_interval(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    with running_writer(client, flush_interval=0.3) as writer:
        began = time.monotonic()
        submit_events(writer, range(5))
        scripted.wait_for_rows(5)

    (request,) = scripted.requests
    assert request.rows == 5
    assert request.arrived - began >= 0.29


def test_a_full_batch_does_not_wait_for_the_flush_interval(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    with running_writer(client, flush_interval=60, batch_rows=100) as writer:
        submit_events(writer, range(250))
        scripted.wait_for_rows(200)
        assert [request.rows for request in scripted.requests] == [100, 100]

    assert numbers_in(scripted) == list(range(250))


def test_many_bytes_do_not_wait_for_the_flush_interval(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    with running_writer(client, flush_interval=60) as writer:
        for number in range(10):
            writer.submit(make_event(number, padding="x" * 1_000_000))
        scripted.wait_for_rows(8)


def test_a_backlog_is_sent_by_several_threads_at_the_same_time(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(hang())
    with running_writer(client, batch_rows=10) as writer:
        submit_events(writer, range(161))
        scripted.wait_for_requests(writer_module.MAX_SENDERS)  # and none is answered
        assert len(writer._senders) == writer_module.MAX_SENDERS
        scripted.healthy()
        scripted.stop()
        scripted.start()
        assert writer.flush(30)

    assert numbers_in(scripted) == list(range(161))


def test_all_senders_but_one_leave_when_there_is_nothing_to_do(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "IDLE_SECONDS", 0.1)
    scripted.always(delay(0.05))
    with running_writer(client, batch_rows=1) as writer:
        submit_events(writer, range(20))
        assert writer.flush(10)
        eventually(lambda: len(writer._senders) == 1)


def test_a_sender_that_leaves_leaves_no_row_behind(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was woken for a row may be the one that leaves before the row is due."""
    monkeypatch.setattr(writer_module, "IDLE_SECONDS", 0.3)
    with running_writer(client, batch_rows=10, flush_interval=0.4) as writer:
        for round_number in range(4):
            scripted.script(delay(0.1), delay(0.1), delay(0.1))
            submit_events(writer, range(30))
            scripted.wait_for_rows(round_number * 31 + 30)
            eventually(lambda: len(writer._senders) > 1, 5)
            threading.Event().wait(0.15)
            submit_events(writer, range(100, 101))
            scripted.wait_for_rows(round_number * 31 + 31, 5)


# Flush


def test_flush_returns_true_when_all_before_it_is_delivered(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(delay(0.2))
    with running_writer(client, flush_interval=60) as writer:
        submit_events(writer, range(10))
        assert writer.flush()
        assert len(scripted.rows) == 10
        assert writer.stats().delivered == 10


def test_flush_of_nothing_returns_at_once(scripted: ScriptedBigQuery) -> None:
    with running_writer() as writer:
        assert writer.flush(0)
        assert writer.flush()
        assert writer.stats() == writer_module.WriterStats(0, 0, 0, 0, 0, 0, None)
    assert scripted.requests == []


def test_flush_returns_false_when_its_timeout_comes_first(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(status(503))
    with running_writer(client) as writer:
        submit_events(writer, range(10))
        began = time.monotonic()
        assert not writer.flush(0.3)
        assert 0.29 < time.monotonic() - began < 20
        assert writer.stats().buffered == 10

        scripted.healthy()
        assert writer.flush(30)


def test_flush_does_not_wait_for_later_events_under_steady_load(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    done = threading.Event()
    with running_writer(client, batch_rows=10) as writer:

        def log_on(_: int) -> None:
            number = 0
            while not done.is_set():
                writer.submit(make_event(number))
                number += 1
                time.sleep(0.0002)

        with threads(1, log_on):
            scripted.wait_for_rows(10)
            for _ in range(10):
                assert writer.flush(5)
            done.set()


def test_several_threads_may_flush_at_the_same_time(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(delay(0.1))
    answers = []
    with running_writer(client, flush_interval=60) as writer:
        submit_events(writer, range(10))
        with threads(8, lambda _: answers.append(writer.flush(10))):
            pass

    assert answers == [True] * 8


def test_flush_means_settled_so_a_dead_letter_is_handed_over_before(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.refuse_row(lambda row: '"number":3,' in row["payload"])
    dead: list[Envelope] = []

    def slowly(envelope: Envelope, _reason: str) -> None:
        time.sleep(0.2)
        dead.append(envelope)

    with running_writer(client, on_dead_letter=slowly) as writer:
        submit_events(writer, range(10))
        assert writer.flush(10)
        assert [envelope["payload"]["number"] for envelope in dead] == [3]
        assert writer.stats().rejected == 1


# Close


def test_close_delivers_what_is_buffered_and_ends_the_threads(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    writer = EventWriter(client, flush_interval=60)
    submit_events(writer, range(10))
    senders = set(writer._senders)
    writer.close()

    assert numbers_in(scripted) == list(range(10))
    assert senders
    assert not any(sender.is_alive() for sender in senders)
    assert writer not in writer_module._unclosed


def test_close_may_be_called_again_and_again(scripted: ScriptedBigQuery) -> None:
    writer = EventWriter()
    for number in range(3):
        writer.submit(make_event(number))
        writer.close()
        writer.close()

    assert numbers_in(scripted) == [0, 1, 2]


def test_events_after_close_are_delivered(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    writer = EventWriter(client, flush_interval=0.01)
    submit_events(writer, range(3))
    writer.close()
    submit_events(writer, range(3, 6))
    scripted.wait_for_rows(6)
    writer.close()

    assert numbers_in(scripted) == list(range(6))


def test_close_in_an_outage_takes_close_timeout_and_reports_what_is_left(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(status(503))
    writer = EventWriter(client, close_timeout=0.3)
    submit_events(writer, range(7))
    with Records() as said:
        began = time.monotonic()
        writer.close()
        assert time.monotonic() - began < 20

    (message,) = said.texts(logging.ERROR)
    assert message.startswith("7 events are not delivered yet")
    assert "503" in message
    scripted.healthy()
    assert writer.flush(30)
    writer.close()


def test_what_close_could_not_deliver_is_delivered_when_bigquery_is_back(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    """Even if the application has let go of the writer, as a second dictConfig does."""
    scripted.stop()
    writer = EventWriter(client, close_timeout=0.2, batch_rows=2)
    submit_events(writer, range(7))
    writer.close()
    gone = weakref.ref(writer)
    del writer
    gc.collect()
    scripted.start()

    scripted.wait_for_rows(7, 30)
    eventually(lambda: gc.collect() is not None and gone() is None)
    assert numbers_in(scripted) == list(range(7))


def test_a_row_submitted_after_a_close_in_an_outage_is_delivered_with_those_before(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(hang(0.5))
    writer = EventWriter(client, close_timeout=0.05, flush_interval=0.01)
    submit_events(writer, range(3))
    scripted.wait_for_requests(1)
    submit_events(writer, range(3, 5))
    writer.close()
    submit_events(writer, range(5, 7))
    scripted.healthy()

    scripted.wait_for_rows(7, 30)
    writer.close()


def test_a_flush_and_a_log_call_that_wait_survive_a_close_by_another_thread(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(status(503))
    answers: list[bool] = []
    writer = EventWriter(client, close_timeout=0.1, capacity=5, overflow="block")
    submit_events(writer, range(5))
    with (
        threads(1, lambda _: answers.append(writer.flush())),
        threads(1, lambda _: writer.submit(make_event(5))),
    ):
        scripted.wait_for_requests(1)
        writer.close()
        scripted.healthy()

    writer.flush(30)
    writer.close()
    assert answers == [True]
    assert numbers_in(scripted) == list(range(6))


def test_a_writer_that_nobody_closes_delivers_what_it_holds(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    writer = EventWriter(client, flush_interval=0.2)
    submit_events(writer, range(5))
    del writer
    gc.collect()

    scripted.wait_for_rows(5)


# Bounds


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
    scripted.script(delay(0.5))
    with running_writer(client, capacity=10, batch_rows=10) as writer:
        submit_events(writer, range(10))
        scripted.wait_for_rows(10)
        writer.submit(make_event(10))
        assert writer.stats().dropped == 1


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
        assert (writer._backlog.held, writer._backlog.held_bytes) == (0, 0)


def test_drops_are_reported_with_their_number_and_not_too_often(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(status(503))
    with Records() as said, running_writer(client, capacity=1) as writer:
        submit_events(writer, range(1000))
        scripted.healthy()
        writer.close()

    counts = [int(t.split()[0]) for t in said.texts(logging.WARNING) if "dropped" in t]
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
            eventually(lambda: writer._progress._waiters)  # type: ignore[attr-defined]
            assert writer.stats().buffered == 1
            scripted.healthy()
            scripted.stop()
            scripted.start()


# Dead letters


def refuse_odd(scripted: ScriptedBigQuery) -> None:
    scripted.refuse_row(
        lambda row: int(row["payload"].split(":")[1].split(",")[0]) % 2 == 1,
        message=f"Could not parse '{PRIVATE}'",
    )


def test_a_dead_letter_is_the_whole_envelope_with_bigquerys_reason(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    refuse_odd(scripted)
    dead: list[tuple[Envelope, str]] = []
    with running_writer(client, on_dead_letter=lambda *letter: dead.append(letter)) as writer:
        event = make_event(1)
        writer.submit(event)
        writer.flush(10)
        assert writer.stats().rejected == 1
        assert "Could not parse" in (writer.stats().last_error or "")

    ((envelope, reason),) = dead
    assert envelope == event
    assert list(envelope) == list(event)
    assert reason.startswith("invalid at the row: Could not parse")


def test_without_a_callback_an_error_names_the_event_and_the_reason(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    refuse_odd(scripted)
    event = make_event(1)
    with Records() as said, running_writer(client) as writer:
        writer.submit(event)
        writer.flush(10)

    (message,) = said.texts(logging.ERROR)
    assert event["event_id"] in message
    assert event["event_type"] in message
    assert "Could not parse" in message


@pytest.mark.parametrize("error", [ValueError(PRIVATE), SystemExit(PRIVATE)], ids=repr)
def test_a_callback_that_raises_is_reported_and_nothing_else(
    scripted: ScriptedBigQuery, client: bigquery.Client, error: BaseException
) -> None:
    refuse_odd(scripted)

    def fail(_envelope: Envelope, _reason: str) -> None:
        raise error

    with Records() as said, running_writer(client, on_dead_letter=fail) as writer:
        submit_events(writer, range(10))
        assert writer.flush(10)
        submit_events(writer, range(10, 20))
        assert writer.flush(10)
        assert writer.stats().rejected == 10

    messages = said.texts(logging.ERROR)
    assert len(messages) == 10
    assert all(type(error).__name__ in message for message in messages)
    assert numbers_in(scripted) == list(range(0, 20, 2))


@pytest.mark.parametrize(
    ("overflow", "capacity"), [("drop", 100), ("drop", 10), ("block", 10), ("block", 1)]
)
def test_a_callback_may_log_events_flush_and_close(
    scripted: ScriptedBigQuery, client: bigquery.Client, overflow: Any, capacity: int
) -> None:
    refuse_odd(scripted)

    def use_the_writer(envelope: Envelope, _reason: str) -> None:
        writer.submit(make_event(1000 + 2 * envelope["payload"]["number"]))
        writer.flush()
        writer.flush(5)
        writer.close()

    with (
        running_writer(
            client, capacity=capacity, overflow=overflow, on_dead_letter=use_the_writer
        ) as writer,
        sampled(writer),
    ):
        for number in range(5):
            submit_events(writer, range(10 * number, 10 * number + 10))
            assert writer.flush(10)
        stats = writer.stats()

    assert_adds_up(stats)
    assert stats.submitted == 50 + stats.rejected
    assert stats.rejected == 25 or capacity < 100


def test_a_callback_may_wait_for_another_thread_that_logs(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    refuse_odd(scripted)

    def log_in_a_thread(_envelope: Envelope, _reason: str) -> None:
        with threads(1, lambda _: writer.submit(make_event(100))):
            pass

    with running_writer(client, on_dead_letter=log_in_a_thread) as writer:
        submit_events(writer, range(2))
        assert writer.flush(10)
        assert writer.flush(10)

    assert numbers_in(scripted) == [0, 100]


# Nobody is blocked


def test_no_lock_is_held_over_the_network(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.script(hang())
    with running_writer(client) as writer:
        writer.submit(make_event(0))
        scripted.wait_for_requests(1)
        began = time.monotonic()
        use(writer)
        assert time.monotonic() - began < 20  # the request takes 30
        scripted.stop()
        scripted.start()
        assert writer.flush(30)


def test_no_lock_is_held_over_a_callback(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    refuse_odd(scripted)
    inside, leave = threading.Event(), threading.Event()
    released = []

    def wait(_envelope: Envelope, _reason: str) -> None:
        inside.set()
        released.append(leave.wait(20))

    with running_writer(client, on_dead_letter=wait) as writer:
        writer.submit(make_event(1))
        assert inside.wait(10)
        use(writer)
        leave.set()
        assert writer.flush(30)
    assert released == [True]


@pytest.mark.parametrize("fault", [status(503), status(404)], ids=["a warning", "an error"])
def test_no_lock_is_held_while_something_is_said(
    scripted: ScriptedBigQuery, client: bigquery.Client, fault: Any
) -> None:
    """A handler of the application takes what it takes, locks of its own included."""
    scripted.always(fault)
    inside, leave = threading.Event(), threading.Event()
    released = []

    class SlowHandler(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            inside.set()
            released.append(leave.wait(20))

    handler = SlowHandler()
    logger = logging.getLogger("lorc_eventlog")
    logger.addHandler(handler)
    try:
        with (
            running_writer(client, capacity=5) as writer,
            threads(2, lambda index: submit_events(writer, range(10 * index, 10 * index + 10))),
        ):
            assert inside.wait(10)
            writer.stats()
            writer.flush(0)
            leave.set()
            scripted.healthy()
    finally:
        leave.set()
        logger.removeHandler(handler)
    assert all(released)


def use(writer: EventWriter) -> None:
    writer.stats()
    writer.submit(make_event(2))
    writer.flush(0)


@contextlib.contextmanager
def logging_to(handler: logging.Handler) -> Iterator[logging.Logger]:
    """A logger with this handler alone, which is closed in the end."""
    logger = logging.getLogger("app.alone")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        handler.close()


def test_no_log_call_takes_long_while_bigquery_takes_two_seconds(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(delay(2.0))
    handler = BigQueryEventHandler(client, source="tests", flush_interval=0.01, batch_rows=50)
    seconds = []
    with logging_to(handler) as logger:
        for number in range(1500):
            began = time.perf_counter()
            logger.info("x", extra={"event_type": "test", "payload": {"number": number}})
            seconds.append(time.perf_counter() - began)
            time.sleep(0.001)
        scripted.wait_for_requests(3)
        scripted.healthy()

    *most, slowest = sorted(seconds)
    assert most[int(0.99 * len(most))] < 0.05
    assert slowest < 1.0  # a machine with other work may take a thread's core away
    assert numbers_in(scripted) == list(range(1500))


def test_a_log_call_in_a_coroutine_never_stalls_the_loop(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(delay(2.0))
    handler = BigQueryEventHandler(client, source="tests", flush_interval=0.01, batch_rows=100)

    async def log(logger: logging.Logger) -> None:
        for number in range(500):
            logger.info("x", extra={"event_type": "test", "payload": {"number": number}})
            await asyncio.sleep(0)

    async def longest_stall(until: asyncio.Event) -> float:
        loop = asyncio.get_running_loop()
        stall = 0.0
        while not until.is_set():
            began = loop.time()
            await asyncio.sleep(0.001)
            stall = max(stall, loop.time() - began)
        return stall

    async def main(logger: logging.Logger) -> float:
        flushed = asyncio.Event()
        stall = asyncio.ensure_future(longest_stall(flushed))
        await log(logger)
        assert await asyncio.to_thread(handler.flush)
        flushed.set()
        return await stall

    with logging_to(handler) as logger:
        assert asyncio.run(main(logger)) < 1.0
    assert numbers_in(scripted) == list(range(500))


# Called from anywhere


def test_many_threads_log_many_events(scripted: ScriptedBigQuery, client: bigquery.Client) -> None:
    """16 threads, 10,000 events each: exact. (A tenth of it while coverage is measured.)"""
    each = 10_000 if sys.gettrace() is None else 1000
    with running_writer(client, capacity=200_000, capacity_bytes=2**30) as writer, sampled(writer):
        with threads(
            16, lambda index: submit_events(writer, range(index * each, (index + 1) * each))
        ):
            pass
        assert writer.flush(60)
        assert writer.stats().delivered == 16 * each

    assert scripted.duplicates == []
    assert numbers_in(scripted) == list(range(16 * each))


untraced = pytest.mark.skipif(
    "sys.gettrace() is not None",
    reason="coverage's own lock, which it takes anywhere, is not re-entrant",
)


@untraced
def test_a_signal_handler_may_log_in_the_middle_of_a_log_call(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    in_handler = depth = 0
    with running_writer(client, batch_rows=7, flush_interval=0.001) as writer, sampled(writer):

        def log(*_: object) -> None:
            nonlocal in_handler, depth
            depth += 1  # it interrupts itself as well
            if depth < 4:
                number, in_handler = in_handler, in_handler + 1
                writer.submit(make_event(1_000_000 + number))
            depth -= 1

        previous = signal.signal(signal.SIGUSR1, log)
        main, done = threading.get_ident(), threading.Event()

        def interrupt(_: int) -> None:
            while not done.wait(0.001):
                signal.pthread_kill(main, signal.SIGUSR1)

        try:
            count = 0
            with threads(1, interrupt):
                while count < 5000 or in_handler <= 10:
                    submit_events(writer, range(count, count + 100))
                    count += 100
                done.set()
        finally:
            signal.signal(signal.SIGUSR1, previous)
        assert writer.flush(30)

    expected = [*range(count), *range(1_000_000, 1_000_000 + in_handler)]
    assert numbers_in(scripted) == expected


class Interrupting:
    """A deque of fresh rows that runs something in the middle of an append."""

    def __init__(self, rows: Any, action: Callable[[], None]) -> None:
        self._rows = rows
        self._action = action

    def append(self, row: Any) -> None:
        self._rows.append(row)
        action, self._action = self._action, lambda: None
        action()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]


@pytest.mark.parametrize("before", [0, 4], ids=["the first row", "a full batch"])
def test_a_log_call_in_a_log_call_wakes_a_sender(
    scripted: ScriptedBigQuery, client: bigquery.Client, before: int
) -> None:
    with running_writer(client, batch_rows=5, flush_interval=0.3 if not before else 60) as writer:
        submit_events(writer, range(before))
        if before:
            assert scripted.requests == []
        else:
            writer._wake_sender()
            eventually(lambda: len(writer._senders) == 1)
            eventually(lambda: writer._work._waiters)  # type: ignore[attr-defined]
        backlog: Any = writer._backlog
        backlog.fresh = Interrupting(backlog.fresh, lambda: writer.submit(make_event(100)))
        writer.submit(make_event(before))
        scripted.wait_for_rows((before and 5) or 2, 5)


def test_a_row_whose_call_is_ended_by_a_signal_handler_is_counted_and_sent(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    """The handler that turns SIGTERM into SystemExit; no other call wakes a sender."""
    with running_writer(client, flush_interval=0.01) as writer:
        writer._wake_sender()
        eventually(lambda: writer._work._waiters)  # type: ignore[attr-defined]

        def leave() -> None:
            raise SystemExit

        backlog: Any = writer._backlog
        backlog.fresh = Interrupting(backlog.fresh, leave)
        with pytest.raises(SystemExit):
            writer.submit(make_event(0))
        assert_adds_up(writer.stats())
        eventually(lambda: writer.stats().delivered == 1)

    assert numbers_in(scripted) == [0]


class OutOfTimeError(Exception):
    """What a task's time limit raises, wherever the task is."""


@untraced
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a destructor
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals")
def test_a_signal_handler_that_raises_at_any_moment_leaves_a_writer_that_works(
    client: bigquery.Client,
) -> None:
    """No lock is left behind, and no event that is counted and not there."""

    def raise_it(*_: object) -> None:
        raise OutOfTimeError

    interrupted = 0
    until = time.monotonic() + float(os.environ.get("LORC_EVENTLOG_SOAK", "1"))
    previous = signal.signal(signal.SIGALRM, raise_it)
    try:
        with running_writer(client, capacity=1_000_000, capacity_bytes=2**30) as writer:
            while time.monotonic() < until:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(20e-6, 300e-6))
                    submit_events(writer, range(100))
                    signal.setitimer(signal.ITIMER_REAL, 0)
                # KeyError is what Thread.start makes of it in its last moment.
                except (OutOfTimeError, KeyError):
                    interrupted += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert not writer._lock._is_owned()  # type: ignore[attr-defined]
            backlog = writer._backlog
            assert writer.flush(60)
            assert (backlog.held, backlog.held_bytes, backlog.fresh_bytes) == (0, 0, 0)
            assert_adds_up(writer.stats())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted


def test_a_close_that_is_interrupted_says_what_is_left(client: bigquery.Client) -> None:
    def interrupt(_timeout: float) -> bool:
        raise KeyboardInterrupt

    with running_writer(client, flush_interval=60) as writer:
        writer.submit(make_event(1))
        with pytest.MonkeyPatch.context() as patched, Records() as said:
            patched.setattr(writer, "flush", interrupt)
            with pytest.raises(KeyboardInterrupt):
                writer.close()
        (message,) = said.texts(logging.ERROR)
        assert message == "1 event is not delivered yet: BigQuery did not answer"


def test_an_exception_at_the_start_of_a_sender_leaves_a_writer_that_works(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_writer(client) as writer:

        def leave(_self: threading.Thread) -> None:
            raise SystemExit

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", leave)
            with pytest.raises(SystemExit):
                writer.submit(make_event(0))
        assert writer.stats().submitted == 0  # its caller knows
        writer.submit(make_event(1))
        assert writer.flush(10)

    assert numbers_in(scripted) == [1]


@untraced
def test_a_destructor_may_log(scripted: ScriptedBigQuery, client: bigquery.Client) -> None:
    logged = 0

    class Logs:
        def __init__(self) -> None:
            self.itself = self  # so that only the garbage collector ends it

        def __del__(self) -> None:
            nonlocal logged
            writer.submit(make_event(1_000_000 + logged))
            logged += 1

    threshold = gc.get_threshold()
    gc.set_threshold(10)
    try:
        with running_writer(client, batch_rows=7) as writer, sampled(writer):
            for number in range(3000):
                Logs()
                writer.submit(make_event(number))
            gc.collect()
            assert writer.flush(30)
    finally:
        gc.set_threshold(*threshold)

    assert logged == 3000
    assert numbers_in(scripted) == [*range(3000), *range(1_000_000, 1_003_000)]


def test_everything_may_log_to_our_handler_at_debug(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    """google, urllib3, requests and ourselves: no recursion, no growth, no deadlock."""
    handler = BigQueryEventHandler(client, source="tests", flush_interval=0.01, batch_rows=10)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    logger = logging.getLogger("app.debug")
    scripted.script(status(503), status(503))
    scripted.refuse_row(lambda row: '"number":3}' in row["payload"])
    try:
        for number in range(100):
            logger.info("x", extra={"event_type": "test", "payload": {"number": number}})
        assert handler.flush(30)
        requests = len(scripted.requests)
        threading.Event().wait(0.2)
        assert len(scripted.requests) == requests
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()

    assert handler.writer.stats().submitted == 100
    assert len(scripted.rows) == 99


def test_a_filter_that_makes_an_event_of_every_record_feeds_nothing_back(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    handler = BigQueryEventHandler(client, source="tests", flush_interval=0.01)

    def mark(record: logging.LogRecord) -> bool:
        record.event_type = "test"
        return True

    handler.addFilter(mark)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    scripted.script(status(404))
    try:
        logging.getLogger("app.marked").info("x")
        assert handler.flush(30)
        threading.Event().wait(0.2)
        assert handler.writer.stats().submitted == 1
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


@pytest.mark.parametrize("fails_in", ["emit", "filter"])
def test_a_broken_handler_of_the_application_does_not_stop_delivery(
    scripted: ScriptedBigQuery, client: bigquery.Client, fails_in: str
) -> None:
    class Broken(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            raise ValueError("broken")

    handler = Broken()
    logger = logging.getLogger("lorc_eventlog")
    if fails_in == "emit":
        logger.addHandler(handler)
    else:
        logger.addFilter(handler.emit)  # type: ignore[arg-type]
    scripted.script(status(404), status(503))
    scripted.refuse_row(lambda row: '"number":3,' in row["payload"])
    try:
        with running_writer(client, capacity=10) as writer:
            submit_events(writer, range(20))
            assert writer.flush(30)
            stats = writer.stats()
            assert (stats.delivered, stats.rejected, stats.dropped) == (9, 1, 10)
    finally:
        logger.removeHandler(handler)
        logger.removeFilter(handler.emit)  # type: ignore[arg-type]


def configure(**options: Any) -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "bigquery": {
                    "class": "lorc_eventlog.BigQueryEventHandler",
                    "source": "tests",
                    **options,
                }
            },
            "loggers": {
                "app.config": {"handlers": ["bigquery"], "level": "INFO", "propagate": False}
            },
        }
    )


@pytest.mark.parametrize("first_sent", [True, False])
def test_a_second_dictconfig_loses_nothing_that_is_buffered(
    scripted: ScriptedBigQuery, first_sent: bool
) -> None:
    """It holds logging's own lock, which our senders need to log, while it closes handlers."""
    logger = logging.getLogger("app.config")
    configure(flush_interval=60 if not first_sent else 0.01)
    try:
        for number in range(3):
            logger.info("x", extra={"event_type": "test", "payload": {"number": number}})
        if first_sent:
            scripted.wait_for_rows(3)
            scripted.script(delay(0.2))
            logger.info("x", extra={"event_type": "test", "payload": {"number": 3}})
        began = time.monotonic()
        configure()
        took = time.monotonic() - began
        logger.info("x", extra={"event_type": "test", "payload": {"number": 9}})
        logging.getLogger("app.config").handlers[0].flush()
    finally:
        handler = logger.handlers[0]
        logger.removeHandler(handler)
        handler.close()

    scripted.wait_for_rows(5 if first_sent else 4)
    assert took < 5


def test_a_dictconfig_in_an_outage_loses_nothing_either(scripted: ScriptedBigQuery) -> None:
    logger = logging.getLogger("app.config")
    scripted.stop()
    configure(close_timeout=0.2)
    try:
        for number in range(3):
            logger.info("x", extra={"event_type": "test", "payload": {"number": number}})
        configure()
        gc.collect()
        scripted.start()
        scripted.wait_for_rows(3, 30)
    finally:
        handler = logger.handlers[0]
        logger.removeHandler(handler)
        handler.close()


# When no thread can be started


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Calling it ends what this makes true: that no thread can be started."""

    def start(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    patched = pytest.MonkeyPatch()
    start_of_threads = threading.Thread.start

    def guarded(self: threading.Thread) -> None:
        if "lorc_eventlog" in self.name:
            start(self)
        start_of_threads(self)

    patched.setattr(threading.Thread, "start", guarded)
    monkeypatch.setattr(threading, "_nothing", None, raising=False)
    return patched.undo


def test_without_threads_the_one_that_flushes_sends(
    scripted: ScriptedBigQuery, client: bigquery.Client, no_threads: Callable[[], None]
) -> None:
    scripted.script(status(503))
    try:
        with running_writer(client, batch_rows=5) as writer:
            submit_events(writer, range(12))
            assert writer.stats().buffered == 12
            assert writer.flush()
            submit_events(writer, range(12, 15))
    finally:
        no_threads()

    assert numbers_in(scripted) == list(range(15))


def test_without_threads_flush_keeps_to_its_timeout(
    scripted: ScriptedBigQuery, client: bigquery.Client, no_threads: Callable[[], None]
) -> None:
    scripted.always(hang())
    try:
        with running_writer(client, close_timeout=0.1) as writer:
            submit_events(writer, range(3))
            began = time.monotonic()
            assert not writer.flush(0.5)
            assert time.monotonic() - began < 20
            scripted.healthy()
            assert writer.flush(10)
    finally:
        no_threads()


def test_without_threads_block_drops_because_nobody_would_make_room(
    scripted: ScriptedBigQuery, client: bigquery.Client, no_threads: Callable[[], None]
) -> None:
    try:
        with running_writer(client, capacity=2, overflow="block") as writer:
            submit_events(writer, range(3))
            assert writer.stats().dropped == 1
    finally:
        no_threads()

    assert numbers_in(scripted) == [0, 1]


def test_without_threads_a_callback_may_flush_and_close_and_log(
    scripted: ScriptedBigQuery, client: bigquery.Client, no_threads: Callable[[], None]
) -> None:
    refuse_odd(scripted)

    def use_the_writer(_envelope: Envelope, _reason: str) -> None:
        writer.submit(make_event(100))
        writer.flush()
        writer.close()

    try:
        with running_writer(
            client, capacity=1, overflow="block", on_dead_letter=use_the_writer
        ) as writer:
            writer.submit(make_event(1))
            assert writer.flush(10)
            assert_adds_up(writer.stats())
    finally:
        no_threads()


def test_a_writer_that_could_start_no_thread_starts_one_with_a_later_event(
    scripted: ScriptedBigQuery, client: bigquery.Client, no_threads: Callable[[], None]
) -> None:
    with running_writer(client) as writer:
        submit_events(writer, range(3))
        no_threads()
        writer.submit(make_event(3))
        scripted.wait_for_rows(4)


# Options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_rows", 0),
        ("batch_rows", 50_001),
        ("flush_interval", -1),
        ("capacity", 0),
        ("capacity_bytes", 0),
        ("overflow", "wait"),
        ("close_timeout", -0.1),
        ("on_dead_letter", "package.function"),
    ],
)
@pytest.mark.usefixtures("scripted")
def test_an_option_that_cannot_be_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        EventWriter(**{option: value})


def test_the_table_must_be_named() -> None:
    with pytest.raises(RuntimeError, match="EVENTS_BQ_DATASET"):
        EventWriter()
