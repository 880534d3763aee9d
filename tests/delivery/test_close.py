"""Close: what is buffered is delivered, or it is said what is not."""

from __future__ import annotations

import gc
import logging
import logging.config
import signal
import threading
import time
import weakref

import pytest
from google.cloud import bigquery

from harness import (
    Records,
    eventually,
    make_event,
    numbers_in,
    running_writer,
    submit_events,
    threads,
)
from inside import dispatcher_of, senders_of, waiting_callers
from lorc_eventlog import EventWriter
from lorc_eventlog.delivery import dispatcher as dispatcher_module
from scripted_bigquery import ScriptedBigQuery, hang, status


def test_close_delivers_what_is_buffered_and_ends_the_threads(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    writer = EventWriter(client, flush_interval=60)
    submit_events(writer, range(10))
    senders = senders_of(writer)
    writer.close()

    assert numbers_in(scripted) == list(range(10))
    assert senders
    assert not any(sender.is_alive() for sender in senders)
    assert dispatcher_of(writer) not in dispatcher_module._kept.dispatchers


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
    assert message.startswith(
        "7 events are still waiting: BigQuery did not accept them within 0.3 s"
    )
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


def test_a_close_that_is_interrupted_says_what_is_left(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(status(503))
    with running_writer(client, flush_interval=60) as writer, Records() as said:
        writer.submit(make_event(1))
        main = threading.get_ident()

        def interrupt(_: int) -> None:
            eventually(lambda: waiting_callers(writer))
            signal.pthread_kill(main, signal.SIGINT)

        with threads(1, interrupt), pytest.raises(KeyboardInterrupt):
            writer.close()
        (message,) = said.texts(logging.ERROR)
        assert message.startswith("1 event is still waiting: close() was interrupted")
        scripted.healthy()
