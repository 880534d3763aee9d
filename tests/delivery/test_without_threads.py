"""Where no thread can be started, the one that flushes sends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from google.cloud import bigquery

from harness import (
    assert_adds_up,
    make_event,
    numbers_in,
    refuse_odd,
    running_writer,
    submit_events,
)
from inside import dispatcher_of
from lorc_eventlog import Envelope
from scripted_bigquery import ScriptedBigQuery, hang, status


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


def test_without_threads_a_fault_of_our_own_does_not_end_a_flush(
    scripted: ScriptedBigQuery,
    client: bigquery.Client,
    no_threads: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        with running_writer(client) as writer:
            courier = dispatcher_of(writer)._courier
            choose, faults = courier.choose, [LookupError()]

            def fail_once(now: float, timeout: float) -> Any:
                if faults:
                    raise faults.pop()
                return choose(now, timeout)

            monkeypatch.setattr(courier, "choose", fail_once)
            submit_events(writer, range(3))
            assert writer.flush(10)
    finally:
        no_threads()

    assert numbers_in(scripted) == [0, 1, 2]


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
