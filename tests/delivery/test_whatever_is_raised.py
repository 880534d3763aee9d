"""Whatever leaves the sending of a batch: no sender ends, and no batch is stranded."""

from __future__ import annotations

import gc
import logging
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
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
    refuse_odd,
    running_writer,
    submit_events,
    threads,
)
from inside import dispatcher_of, queue_of, senders_of
from lorc_eventlog import EventWriter
from lorc_eventlog.delivery import senders as senders_module
from scripted_bigquery import ScriptedBigQuery, delay, hang, status


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
    assert re.match(
        r"BigQuery is not accepting events; retrying, \d events? (is|are) wait", message
    )
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
    refuse_odd(scripted)
    with running_writer(client) as writer:
        settlement = dispatcher_of(writer)._settlement

        def fail(*_: object) -> None:
            monkeypatch.undo()
            raise LookupError(PRIVATE)

        monkeypatch.setattr(settlement, "_hand_over", fail)
        submit_events(writer, range(5))
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


# Saying something takes for ever


def test_a_message_that_is_never_said_to_its_end_stops_no_delivery(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    """As where a lock of logging is left behind by a signal handler that raised."""
    inside, end = threading.Event(), threading.Event()

    class Hangs(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            self.emit(record)  # without a lock, which would hold up the others
            return True

        def emit(self, _record: logging.LogRecord) -> None:
            if threading.current_thread().name.startswith("lorc_eventlog"):
                inside.set()
                end.wait(60)

    handler = Hangs()
    logger = logging.getLogger("lorc_eventlog")
    logger.addHandler(handler)
    scripted.script(status(503))
    try:
        with running_writer(client, close_timeout=0.5) as writer:
            writer.submit(make_event(0))
            assert inside.wait(10)
            for number in range(1, 5):
                writer.submit(make_event(number))
                assert writer.flush(20)
            writer.close()  # which does not wait for it either
            end.set()
    finally:
        end.set()
        logger.removeHandler(handler)

    assert numbers_in(scripted) == list(range(5))


@pytest.mark.parametrize("spooled", [False, True], ids=["in memory", "with a spool"])
def test_forgotten_writers_keep_no_thread(
    client: bigquery.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spooled: bool
) -> None:
    monkeypatch.setattr(senders_module, "IDLE_SECONDS", 0.1)
    before = set(threading.enumerate())
    for number in range(5):
        writer = EventWriter(
            client, flush_interval=0.01, spool_dir=tmp_path / str(number) if spooled else None
        )
        writer.submit(make_event(number))
        assert writer.flush(10)
        del writer
    gc.collect()

    def senders_left() -> list[threading.Thread]:
        return [each for each in {*threading.enumerate()} - before if "lorc" in each.name]

    eventually(lambda: not senders_left(), 30)


def test_what_hangs_at_a_close_is_sent_once_more_over_a_new_connection(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    with running_writer(client, batch_rows=1, close_timeout=4.0) as writer:
        writer.submit(make_event(0))
        assert writer.flush(10)
        scripted.script(*[hang()] * senders_module.MAX_SENDERS)
        submit_events(writer, range(1, 1 + senders_module.MAX_SENDERS))  # no sender is left
        scripted.wait_for_requests(1 + senders_module.MAX_SENDERS)
        ports = {request.client_port for request in scripted.requests}
        writer.close()
        assert writer.stats().buffered == 0
        assert_adds_up(writer.stats())

    assert numbers_in(scripted) == list(range(1 + senders_module.MAX_SENDERS))
    assert scripted.requests[-1].client_port not in ports
