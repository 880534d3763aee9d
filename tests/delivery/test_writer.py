"""EventWriter against a BigQuery that answers over real HTTP: delivery and flush."""

from __future__ import annotations

import threading
import time

import pytest
from google.cloud import bigquery

from harness import (
    PRIVATE,
    eventually,
    make_event,
    numbers_in,
    running_writer,
    submit_events,
    threads,
)
from inside import senders_of
from lorc_eventlog import Envelope
from lorc_eventlog.delivery import senders as senders_module
from lorc_eventlog.delivery.stats import NO_EVENTS
from scripted_bigquery import ScriptedBigQuery, delay, hang, status


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
        scripted.wait_for_requests(senders_module.MAX_SENDERS)  # and none is answered
        assert len(senders_of(writer)) == senders_module.MAX_SENDERS
        scripted.healthy()
        scripted.stop()
        scripted.start()
        assert writer.flush(30)

    assert numbers_in(scripted) == list(range(161))


def test_all_senders_leave_when_there_is_nothing_to_do(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders_module, "IDLE_SECONDS", 0.1)
    scripted.always(delay(0.05))
    with running_writer(client, batch_rows=1) as writer:
        submit_events(writer, range(20))
        assert writer.flush(10)
        assert senders_of(writer)
        eventually(lambda: not senders_of(writer))
        submit_events(writer, range(20, 22))
        scripted.wait_for_rows(22)


def test_a_sender_that_leaves_leaves_no_row_behind(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was woken for a row may be the one that leaves before the row is due."""
    monkeypatch.setattr(senders_module, "IDLE_SECONDS", 0.3)
    with running_writer(client, batch_rows=10, flush_interval=0.4) as writer:
        for round_number in range(4):
            scripted.script(delay(0.1), delay(0.1), delay(0.1))
            submit_events(writer, range(30))
            scripted.wait_for_rows(round_number * 31 + 30)
            eventually(lambda: len(senders_of(writer)) > 1, 5)
            threading.Event().wait(0.15)
            submit_events(writer, range(100, 101))
            scripted.wait_for_rows(round_number * 31 + 31, 5)


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
        assert writer.stats() == NO_EVENTS
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
