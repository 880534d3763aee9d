"""No lock is held, and no log call waits, while something takes long."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.config
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from google.cloud import bigquery

from harness import (
    make_event,
    numbers_in,
    refuse_odd,
    running_writer,
    submit_events,
    threads,
)
from lorc_eventlog import BigQueryEventHandler, Envelope, EventWriter
from scripted_bigquery import ScriptedBigQuery, delay, hang, status


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
