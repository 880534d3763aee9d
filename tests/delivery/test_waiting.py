"""``aflush`` and ``with``: a coroutine waits for delivery, and the event loop goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from google.cloud import bigquery

from harness import make_event, numbers_in, running_writer
from lorc_eventlog import (
    BigQueryEventHandler,
    BigQueryEventProcessor,
    EventWriter,
    ForegroundWriter,
)
from lorc_eventlog.delivery import senders, waiting
from lorc_eventlog.delivery.waiting import Waits
from scripted_bigquery import ScriptedBigQuery


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("kind", [BigQueryEventHandler, BigQueryEventProcessor, EventWriter])
def test_all_that_buffer_can_be_flushed_by_a_coroutine(kind: Any) -> None:
    with kind() as buffering:
        writer = getattr(buffering, "writer", buffering)
        writer.emit("a.b", {}, source="s")
        assert asyncio.run(buffering.aflush(timeout=60)) is True
        assert writer.stats().delivered == 1


@pytest.mark.usefixtures("scripted")
def test_in_the_foreground_there_is_nothing_to_wait_for() -> None:
    with ForegroundWriter() as writer:
        assert asyncio.run(writer.aflush()) is True


class Slow(Waits):
    """Settles when it is told to."""

    def __init__(self) -> None:
        self.may_settle = threading.Event()
        self.timeouts: list[float | None] = []

    def flush(self, timeout: float | None = None) -> bool:
        self.timeouts.append(timeout)
        return self.may_settle.wait(60)


def test_the_loop_goes_on_while_bigquery_does_not_answer() -> None:
    slow = Slow()

    async def go_on() -> bool:
        flushing = asyncio.create_task(slow.aflush(5))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(slow.may_settle.set)
        return await flushing

    assert asyncio.run(go_on())
    assert slow.timeouts == [5]


def test_a_coroutine_that_is_cancelled_does_not_hold_up_the_end_of_the_loop() -> None:
    slow = Slow()

    async def give_up() -> None:
        await asyncio.wait_for(slow.aflush(), timeout=0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    slow.may_settle.set()


def test_what_flush_raises_the_coroutine_raises() -> None:
    with pytest.raises(NotImplementedError):
        asyncio.run(Waits().aflush())
    with pytest.raises(NotImplementedError), Waits():
        pass


def test_without_threads_the_coroutine_sends(
    scripted: ScriptedBigQuery, client: bigquery.Client, no_threads: Callable[[], None]
) -> None:
    try:
        with running_writer(client) as writer:
            writer.submit(make_event(0))
            assert asyncio.run(writer.aflush())
    finally:
        no_threads()
    assert numbers_in(scripted) == [0]


def test_in_a_subinterpreter_without_daemon_threads_the_same(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> threading.Thread:
        raise RuntimeError("daemon threads are disabled in this interpreter")

    with running_writer(client, flush_interval=60) as writer, monkeypatch.context() as here:
        here.setattr(waiting, "background_thread", refuse)
        here.setattr(senders, "background_thread", refuse)
        writer.submit(make_event(0))
        assert asyncio.run(writer.aflush(10))
    assert numbers_in(scripted) == [0]
