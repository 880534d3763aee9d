"""Dead letters: what BigQuery will never take goes to a callback."""

from __future__ import annotations

import logging
import logging.config
from typing import Any

import pytest
from google.cloud import bigquery

from harness import (
    PRIVATE,
    Records,
    assert_adds_up,
    make_event,
    numbers_in,
    refuse_odd,
    running_writer,
    sampled,
    submit_events,
    threads,
)
from lorc_eventlog import Envelope
from scripted_bigquery import ScriptedBigQuery


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
    assert reason.startswith("invalid at payload: Could not parse")


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
