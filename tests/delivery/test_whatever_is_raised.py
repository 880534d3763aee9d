"""Whatever leaves the sending of a batch: no sender ends, and no batch is stranded."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from google.cloud import bigquery

from harness import (
    PRIVATE,
    Records,
    assert_adds_up,
    eventually,
    make_event,
    numbers_in,
    running_writer,
    submit_events,
    threads,
)
from inside import dispatcher_of, queue_of, senders_of
from scripted_bigquery import ScriptedBigQuery, delay, hang


class Unspeakable(Exception):  # noqa: N818  it is what it is
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class GreenletExit(BaseException):
    """As gevent raises it in a greenlet that is killed."""


class Raising:
    """A client of somebody's own that raises once, and then stores."""

    project = "p"

    def __init__(self, error: BaseException) -> None:
        self.error: BaseException | None = error
        self.rows: list[Any] = []

    def insert_rows_json(self, _table: str, rows: list[Any], **_: object) -> list[Any]:
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.rows += rows
        return []


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    "error",
    [
        Unspeakable(),
        SystemExit(PRIVATE),
        KeyboardInterrupt(PRIVATE),
        MemoryError(PRIVATE),
        GreenletExit(PRIVATE),
        BaseException(PRIVATE),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_client_raises_is_one_failed_try(
    error: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    client: Any = Raising(error)
    with Records() as said, running_writer(client) as writer:
        submit_events(writer, range(5))
        assert writer.flush(10)
        stats = writer.stats()
        assert (stats.delivered, stats.retries) == (5, 1)
        assert len(client.rows) == 5
        submit_events(writer, range(5, 7))
        assert writer.flush(10)

    assert len(client.rows) == 7
    (message,) = said.texts(logging.WARNING)
    assert message.startswith("BigQuery is not accepting events; retrying, 5 events are waiting: ")
    assert capfd.readouterr().err == ""


def test_a_fault_of_our_own_ends_no_sender(
    scripted: ScriptedBigQuery,
    client: bigquery.Client,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running_writer(client) as writer:
        writer.submit(make_event(0))
        assert writer.flush(10)
        faults = 0

        def fail(*_: object, **__: object) -> None:
            nonlocal faults
            faults += 1
            raise LookupError(PRIVATE)

        with monkeypatch.context() as patched:
            patched.setattr(queue_of(writer), "take", fail)
            writer.submit(make_event(1))
            eventually(lambda: faults > 3)
            assert faults < 1000  # it makes no busy loop
        assert senders_of(writer)
        assert writer.flush(10)

    assert numbers_in(scripted) == [0, 1]
    assert capfd.readouterr().err == ""


def test_the_books_balance_when_settling_fails(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_writer(client) as writer:

        def fail(*_: object) -> None:
            monkeypatch.undo()
            raise LookupError(PRIVATE)

        monkeypatch.setattr(queue_of(writer), "succeeded", fail)
        submit_events(writer, range(3))
        assert writer.flush(10)
        assert_adds_up(writer.stats())
        assert writer.stats().retries == 1

    assert numbers_in(scripted) == [0, 1, 2]


def test_a_dead_letter_whose_handing_over_fails_is_settled_all_the_same(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.refuse_row(lambda _row: True)
    scripted.refuse_request(lambda _row: False, 400)
    with running_writer(client) as writer:
        settlement = dispatcher_of(writer)._settlement

        def fail(*_: object) -> None:
            monkeypatch.undo()
            raise LookupError(PRIVATE)

        monkeypatch.setattr(settlement, "_hand_over", fail)
        submit_events(writer, range(2))
        assert writer.flush(10)
        assert writer.stats().rejected == 2


def test_ctrl_c_inside_flush_where_no_thread_can_be_started_strands_nothing(
    scripted: ScriptedBigQuery, client: bigquery.Client, no_threads: Callable[[], None]
) -> None:
    scripted.script(delay(2.0))
    main = threading.get_ident()
    try:
        with running_writer(client) as writer:
            writer.submit(make_event(1))

            def interrupt(_: int) -> None:
                scripted.wait_for_requests(1)
                signal.pthread_kill(main, signal.SIGINT)

            with threads(1, interrupt), pytest.raises(KeyboardInterrupt):
                writer.flush(20)
            assert writer.stats().retries == 1
            assert writer.flush(20)
            assert_adds_up(writer.stats())
    finally:
        no_threads()

    assert numbers_in(scripted) == [1]


# One request hangs


def test_one_hung_request_holds_up_no_other_event(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    with running_writer(client, flush_interval=0.1) as writer:
        writer.submit(make_event(0))
        assert writer.flush(10)
        scripted.script(hang())
        writer.submit(make_event(1))
        scripted.wait_for_requests(2)
        began = time.monotonic()
        for number in range(2, 5):
            writer.submit(make_event(number))
            scripted.wait_for_rows(number, 10)
        assert time.monotonic() - began < 20  # the request takes 30
        scripted.stop()
        scripted.start()
        assert writer.flush(30)

    assert numbers_in(scripted) == list(range(5))
