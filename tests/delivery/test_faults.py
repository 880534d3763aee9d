"""What BigQuery and the network can do wrong: nothing lost, nothing twice, nobody held up.

LORC_EVENTLOG_SOAK=seconds in the environment makes the outage below last 1,000,000 log calls.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import google.auth.exceptions
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
)
from inside import retry_now
from lorc_eventlog import BigQueryEventHandler, Envelope, EventWriter
from lorc_eventlog.bigquery import client as client_module
from lorc_eventlog.bigquery import insert_all as insert_module
from lorc_eventlog.delivery import doubt, pace, suspicion
from lorc_eventlog.delivery import report as report_module
from lorc_eventlog.delivery import senders as senders_module
from lorc_eventlog.diagnostics import Throttle
from scripted_bigquery import (
    MAX_REQUEST_BYTES,
    Fault,
    ScriptedBigQuery,
    answer_lost,
    close_connection,
    delay,
    half_answer,
    hang,
    malformed_json,
    reset,
    reset_after_storing,
    status,
)

PASSING = {
    "429": status(429),
    "500": status(500),
    "502, a page of HTML": status(502),
    "503": status(503),
    "504": status(504),
    "401": status(401),
    "403 accessDenied": status(403),
    "403 quotaExceeded": status(403, "quotaExceeded"),
    "403 rateLimitExceeded": status(403, "rateLimitExceeded"),
    "404": status(404),
    "reset": reset(),
    "reset after storing": reset_after_storing(),
    "answer lost after storing": answer_lost(),
    "half an answer": half_answer(),
    "malformed JSON": malformed_json(),
    "keep-alive connection closed": close_connection(),
}


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(pace, "MAX_PAUSE", 0.1)


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_700_events_survive_a_fault_that_happens_three_times(
    scripted: ScriptedBigQuery, client: bigquery.Client, fault: Fault
) -> None:
    scripted.script(fault, fault, fault)
    with running_writer(client) as writer, sampled(writer):
        submit_events(writer, range(700))
        assert writer.flush(30)
        stats = writer.stats()

    assert numbers_in(scripted) == list(range(700))
    assert scripted.duplicates == []
    assert (stats.delivered, stats.rejected, stats.dropped) == (700, 0, 0)
    if fault.name != "close_connection":
        assert stats.retries == 3
        assert stats.last_error is not None


@pytest.mark.usefixtures("short_pauses")
def test_all_faults_one_after_another(scripted: ScriptedBigQuery, client: bigquery.Client) -> None:
    scripted.script(*PASSING.values(), *PASSING.values(), *PASSING.values())
    with running_writer(client, batch_rows=50) as writer, sampled(writer):
        submit_events(writer, range(700))
        assert writer.flush(60)

    assert numbers_in(scripted) == list(range(700))
    assert scripted.duplicates == []


def test_rows_are_sent_again_with_the_same_insert_ids(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.script(answer_lost())
    with running_writer(client, flush_interval=60) as writer:
        submit_events(writer, range(20))
        assert writer.flush(30)

    first, second = (request.insert_ids for request in scripted.requests)
    assert first == second
    assert len(set(first)) == 20


@pytest.mark.usefixtures("short_pauses")
def test_a_server_that_cannot_be_reached_is_waited_for(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.stop()
    with running_writer(client) as writer:
        submit_events(writer, range(10))
        assert not writer.flush(0.5)
        assert writer.stats().retries > 0
        scripted.start()
        assert writer.flush(30)

    assert numbers_in(scripted) == list(range(10))


def test_a_server_that_never_answers_is_given_up_after_the_request_timeout(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders_module, "REQUEST_TIMEOUT", 0.3)
    monkeypatch.setattr(insert_module, "REQUEST_TIMEOUT", 0.3)
    scripted.script(hang())
    with running_writer(client) as writer:
        submit_events(writer, range(10))
        assert writer.flush(10)
        assert "Timeout" in (writer.stats().last_error or "")

    assert numbers_in(scripted) == list(range(10))


@pytest.mark.usefixtures("short_pauses")
def test_credentials_that_appear_later_are_used(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = threading.Event()

    def without_credentials() -> bigquery.Client:
        if not there.is_set():
            raise google.auth.exceptions.DefaultCredentialsError("none were found")
        return client_module.open_client()

    monkeypatch.setattr(insert_module, "open_client", without_credentials)
    with Records() as said, running_writer() as writer:
        submit_events(writer, range(10))
        assert not writer.flush(0.3)
        (message,) = said.texts(logging.ERROR)
        assert "GOOGLE_APPLICATION_CREDENTIALS" in message
        there.set()
        assert writer.flush(30)

    assert numbers_in(scripted) == list(range(10))


def test_rows_that_bigquery_stopped_are_sent_again(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.stop_row_once(lambda row: "7" in row["payload"])
    with running_writer(client) as writer, sampled(writer):
        submit_events(writer, range(100))
        assert writer.flush(30)
        assert writer.stats().rejected == 0

    assert numbers_in(scripted) == list(range(100))
    assert [request.rows for request in scripted.requests][-1] < 100


# What is said


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        (status(401), "check the credentials"),
        (status(403), "roles/bigquery.dataEditor"),
        (status(404), "create the table"),
    ],
    ids=["401", "403", "404"],
)
def test_what_an_operator_must_mend_is_said_once_with_what_to_do(
    scripted: ScriptedBigQuery,
    client: bigquery.Client,
    fault: Fault,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "MAX_PAUSE", 0.02)
    scripted.always(fault)
    with Records() as said, running_writer(client) as writer:
        submit_events(writer, range(10))
        scripted.wait_for_requests(10)
        (message,) = said.texts(logging.ERROR)
        assert advice in message
        scripted.healthy()
        assert writer.flush(30)
        eventually(lambda: any("is accepting events again" in t for t in said.texts(logging.INFO)))

    assert said.texts(logging.WARNING) == []


def test_it_is_said_again_after_a_minute_of_which_this_is_a_shorter_one(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "MAX_PAUSE", 0.02)
    intervals = []

    def make_throttle(interval: float) -> Throttle:
        intervals.append(interval)
        return Throttle(interval / 200)

    monkeypatch.setattr(report_module, "Throttle", make_throttle)
    scripted.always(status(404))
    with Records() as said, running_writer(client) as writer:
        writer.submit(make_event(1))
        eventually(lambda: len(said.texts(logging.ERROR)) == 2)
        assert len(scripted.requests) > 4
        scripted.healthy()

    assert 60.0 in intervals


def test_a_fault_that_time_mends_is_a_warning(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.script(status(503), status(503))
    with Records() as said, running_writer(client) as writer:
        submit_events(writer, range(10))
        assert writer.flush(30)

    assert said.texts(logging.ERROR) == []
    (message,) = said.texts(logging.WARNING)
    assert "503" in message


# Poison


def number_is(number: int) -> Callable[[dict[str, Any]], bool]:
    return lambda row: f'"number":{number},' in row["payload"]


POISONS: dict[str, Callable[[ScriptedBigQuery, int], None]] = {
    "an error of the row": lambda server, n: server.refuse_row(number_is(n)),
    "makes the request 400": lambda server, n: server.refuse_request(number_is(n), 400),
    "makes the request 413": lambda server, n: server.refuse_request(number_is(n), 413),
    "makes the request 500": lambda server, n: server.refuse_request(number_is(n), 500),
}


@pytest.mark.parametrize("number", [0, 300, 599])
@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS.keys())
def test_one_poisonous_row_among_600_is_a_dead_letter_and_the_others_arrive(
    scripted: ScriptedBigQuery,
    client: bigquery.Client,
    poison: Callable[[ScriptedBigQuery, int], None],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if (number, poison) != (300, POISONS["makes the request 500"]):  # real pauses once
        monkeypatch.setattr(pace, "FIRST_PAUSE", 0.05)
        monkeypatch.setattr(suspicion, "PATIENCE_WITH_A_ROW", 0.5)
        monkeypatch.setattr(suspicion, "PATIENCE_IN_SILENCE", 0.5)
        monkeypatch.setattr(doubt, "PATIENCE_IN_DOUBT", 0.5)
    poison(scripted, number)
    dead: list[Envelope] = []
    began = time.monotonic()
    with (
        running_writer(
            client, on_dead_letter=lambda envelope, _reason: dead.append(envelope)
        ) as writer,
        sampled(writer),
    ):
        submit_events(writer, range(600))
        scripted.wait_for_rows(599, 30)
        count = submit_until_settled(writer, 600)
        assert time.monotonic() - began < 30
        stats = writer.stats()

    assert [envelope["payload"]["number"] for envelope in dead] == [number]
    assert numbers_in(scripted) == [n for n in range(count) if n != number]
    assert (stats.delivered, stats.rejected) == (count - 1, 1)


def submit_until_settled(writer: EventWriter, number: int) -> int:
    """Go on with events from ``number``: a row in doubt is given up only if others are stored.

    Returns:
        The number of the next event.
    """
    until = time.monotonic() + 30
    while not writer.flush(0.2):
        assert time.monotonic() < until
        writer.submit(make_event(number))
        number += 1
    return number


def test_poisonous_rows_of_all_kinds_at_the_same_time(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(suspicion, "PATIENCE_WITH_A_ROW", 0.5)
    monkeypatch.setattr(suspicion, "PATIENCE_IN_SILENCE", 0.5)
    monkeypatch.setattr(doubt, "PATIENCE_IN_DOUBT", 0.5)
    for number, poison in enumerate(POISONS.values()):
        poison(scripted, 100 * number + 50)
    with running_writer(client, batch_rows=40) as writer, sampled(writer):
        submit_events(writer, range(600))
        count = submit_until_settled(writer, 600)
        assert writer.stats().rejected == len(POISONS)

    assert len(numbers_in(scripted)) == count - len(POISONS)


# Large rows


@pytest.mark.parametrize("character", ["x", "é", '"'])
def test_40_rows_of_900_kilobytes_arrive_in_requests_below_10_megabytes(
    scripted: ScriptedBigQuery, client: bigquery.Client, character: str
) -> None:
    wire_bytes = {"x": 1, "é": 6, '"': 4}[character]
    padding = character * (900_000 // wire_bytes)
    with running_writer(client) as writer:
        for number in range(40):
            writer.submit(make_event(number, padding=padding))
        assert writer.flush(60)
        assert writer.stats().rejected == 0

    assert numbers_in(scripted) == list(range(40))
    assert max(request.size for request in scripted.requests) < 10_000_000 < MAX_REQUEST_BYTES
    assert {request.status for request in scripted.requests} == {200}


def test_one_event_of_12_megabytes_is_refused_at_the_call_and_reported(
    scripted: ScriptedBigQuery, client: bigquery.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = BigQueryEventHandler(client, source="tests", flush_interval=0.01)
    logger = logging.getLogger("app.large")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        for number in range(2):
            payload = {"number": number, "padding": "x" * (12_000_000 * number)}
            logger.error("x", extra={"event_type": "test.large", "payload": payload})
        assert handler.flush(10)
    finally:
        logger.removeHandler(handler)
        handler.close()

    assert numbers_in(scripted) == [0]
    said = capfd.readouterr().err
    assert "event 'test.large' of logger 'app.large'" in said
    assert "10 MB" in said
    assert "xxx" not in said


# Outages


def test_memory_is_flat_in_an_outage_and_what_is_buffered_arrives_afterwards(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    calls = 20_000 if sys.gettrace() is None else 6000  # fewer while coverage is measured
    if os.environ.get("LORC_EVENTLOG_SOAK"):
        calls = 1_000_000
    scripted.stop()
    event = make_event(0)

    def log(count: int) -> None:
        for _ in range(count):
            writer.submit({**event, "event_id": "x"})

    with running_writer(client, capacity=1000) as writer:
        submit_events(writer, range(1000))
        log(1000)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        log(calls)
        gc.collect()
        after, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        stats = writer.stats()
        assert (stats.buffered, stats.dropped) == (1000, calls + 1000)
        assert_adds_up(stats)
        assert after - before < 500_000
        assert peak - before < 2_000_000

        scripted.start()
        assert writer.flush(60)

    assert numbers_in(scripted) == list(range(1000))


def test_an_outage_costs_few_requests(scripted: ScriptedBigQuery, client: bigquery.Client) -> None:
    scripted.always(status(503))
    with running_writer(client, batch_rows=10, close_timeout=0.1) as writer:
        for number in range(100):
            submit_events(writer, range(10 * number, 10 * number + 10))
            threading.Event().wait(0.01)
        assert len(scripted.requests) < 30
        scripted.healthy()
        assert writer.flush(30)

    assert numbers_in(scripted) == list(range(1000))


def test_close_interrupts_the_pause_of_an_outage(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _low, _high: 50.0)
    scripted.script(status(503))
    with running_writer(client, close_timeout=0.2) as writer:
        submit_events(writer, range(3))
        scripted.wait_for_requests(1)
        began = time.monotonic()
        writer.close()
        assert time.monotonic() - began < 20
        monkeypatch.undo()
        retry_now(writer)
        assert writer.flush(10)


def test_a_poisonous_row_that_is_alone_does_not_hold_up_a_later_event(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _low, _high: 50.0)
    scripted.refuse_request(number_is(0), 500)
    with running_writer(client, close_timeout=0.1) as writer:
        writer.submit(make_event(0))
        eventually(lambda: writer.stats().retries == 1)
        retry_now(writer)
        eventually(lambda: writer.stats().retries == 2)
        writer.submit(make_event(1))
        scripted.wait_for_rows(1, 5)
        scripted._refused_requests.clear()
        retry_now(writer)
        assert writer.flush(10)


def test_a_slow_server_is_no_fault(scripted: ScriptedBigQuery, client: bigquery.Client) -> None:
    scripted.always(delay(0.3))
    with Records() as said, running_writer(client, batch_rows=10) as writer:
        submit_events(writer, range(100))
        assert writer.flush(30)

    assert said.records == []
    assert numbers_in(scripted) == list(range(100))
