"""What the parts of delivery do for each other in rare moments, with one of them scripted."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from google.cloud import bigquery

from harness import (
    Records,
    assert_adds_up,
    eventually,
    make_event,
    numbers_in,
    running_writer,
    submit_events,
)
from inside import dispatcher_of, queue_of, senders_of
from lorc_eventlog.bigquery.transport import Reason
from lorc_eventlog.delivery.batch import DeadLetter, Trouble
from lorc_eventlog.delivery.dispatchers import Dispatchers
from lorc_eventlog.events.envelope import to_row
from lorc_eventlog.lifecycle import locks
from scripted_bigquery import ScriptedBigQuery, hang, status

# gevent or eventlet patches threading later


@pytest.mark.parametrize("overflow", ["drop", "block"])
def test_when_locks_become_others_new_rows_go_to_another_dispatcher(
    scripted: ScriptedBigQuery,
    client: bigquery.Client,
    monkeypatch: pytest.MonkeyPatch,
    overflow: Any,
) -> None:
    with running_writer(client, overflow=overflow) as writer:
        submit_events(writer, range(3))
        first = dispatcher_of(writer)
        assert writer.flush(10)
        eventually(lambda: not first.inbox.limit)
        scripted.script(status(503))
        submit_events(writer, range(3, 5))
        monkeypatch.setattr(
            locks,
            "threading",
            SimpleNamespace(RLock=threading._PyRLock, Lock=threading.Lock),  # type: ignore[attr-defined]
        )
        first.inbox.is_shut = True  # as if its sender had just left
        first.inbox.limit = 0
        submit_events(writer, range(5, 8))
        second = dispatcher_of(writer)
        assert second is not first
        submit_events(writer, range(8, 10))
        assert dispatcher_of(writer) is second
        # A second thread that found the first one stale takes what has replaced it.
        assert isinstance(writer._dispatchers, Dispatchers)
        assert writer._dispatchers._replace(first) is second
        assert writer.flush(20)
        stats = writer.stats()
        assert (stats.submitted, stats.delivered) == (10, 10)
        assert stats.last_error is not None

    assert numbers_in(scripted) == list(range(10))


# Twice the same


def test_a_second_thread_finds_the_first_dispatcher_made(client: bigquery.Client) -> None:
    with running_writer(client) as writer:
        first, dispatchers = dispatcher_of(writer), writer._dispatchers
        dispatchers.begin()
        assert isinstance(dispatchers, Dispatchers)
        dispatchers._begin()
        assert dispatcher_of(writer) is first


def test_what_is_logged_while_a_child_begins_anew_stays_in_it(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    """A signal handler that logs in the middle of it has it begin anew, and the rest follows."""
    with running_writer(client, flush_interval=60) as writer:
        writer.submit(make_event(0))
        dispatcher = dispatcher_of(writer)
        writer._dispatchers.restart_in_child()
        assert dispatcher_of(writer) is dispatcher
        assert writer.stats().submitted == 1

    assert numbers_in(scripted) == [0]


# What hangs while closing


def test_what_hangs_while_closing_is_sent_once_more_by_another_sender(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.script(hang())
    with running_writer(client, close_timeout=5.0) as writer:
        writer.submit(make_event(0))
        scripted.wait_for_requests(1)
        senders = len(senders_of(writer))
        asked: list[float] = []

        def duplicate(_now: float, *, older_than: float) -> int:
            asked.append(older_than)
            return 1 if len(asked) == 1 else 0

        monkeypatch.setattr(queue_of(writer), "duplicate_in_flight", duplicate)
        closing = threading.Thread(target=writer.close)
        closing.start()
        eventually(lambda: len(asked) > 1)
        assert asked[0] == 2.5  # half of close_timeout, and three seconds at most
        eventually(lambda: len(senders_of(writer)) > senders)
        scripted.stop()
        scripted.start()
        closing.join()
        assert writer.flush(20)

    assert numbers_in(scripted) == [0]


# Rows in doubt


def test_a_table_that_may_be_wrong_is_said(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.script(status(503))
    with Records() as said, running_writer(client) as writer:
        row = to_row(make_event(0))
        trouble = Trouble(1, Reason("400 invalid"), [row])
        with monkeypatch.context() as patched:
            patched.setattr(type(queue_of(writer)), "trouble", trouble)
            writer.submit(make_event(0))
            assert writer.flush(10)

    assert any("the table may be wrong" in text for text in said.texts(logging.ERROR))


def test_rows_in_doubt_give_way_to_new_ones(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.always(status(503))
    with Records() as said, running_writer(client, capacity=1) as writer:
        writer.submit(make_event(0))
        letter = DeadLetter(to_row(make_event(9)), Reason("400 invalid"), 0)
        queue, dropped = queue_of(writer), [[letter], []]
        monkeypatch.setattr(queue, "accept", lambda *_: False)
        monkeypatch.setattr(queue, "drop_doubtful", lambda _size: dropped.pop(0))
        writer.submit(make_event(1))
        monkeypatch.undo()
        assert writer.stats().last_error == "400 invalid"
        eventually(lambda: said.texts(logging.WARNING))
        scripted.healthy()
        assert writer.flush(10)

    assert "lost 1 event: the buffer is full" in " ".join(said.texts(logging.WARNING))


def test_a_blocked_call_lets_one_row_in_where_only_a_new_one_can_decide(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.always(status(503))
    with running_writer(client, capacity=1, overflow="block") as writer:
        writer.submit(make_event(0))
        with monkeypatch.context() as patched:
            patched.setattr(type(queue_of(writer)), "holds_only_doubtful", True)
            writer.submit(make_event(1))
        assert writer.stats().buffered == 2
        scripted.healthy()
        assert writer.flush(10)

    assert numbers_in(scripted) == [0, 1]


# Faults of our own


def test_a_sender_survives_even_what_its_survival_raises(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_writer(client) as writer:
        courier = dispatcher_of(writer)._courier
        put_down, faults = courier.put_down, [LookupError()] * 4

        def fail(error: BaseException | None = None) -> None:
            if faults:
                raise faults.pop()
            put_down(error)

        monkeypatch.setattr(courier, "put_down", fail)
        writer.submit(make_event(0))
        assert writer.flush(10)
        assert_adds_up(writer.stats())

    assert numbers_in(scripted) == [0]


def test_a_chore_that_is_interrupted_is_told_to_the_queue(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Records() as said, running_writer(client) as writer:
        queue = queue_of(writer)
        take, results = queue.take, [0, 3]

        def fail() -> None:
            raise LookupError

        chores = [fail, lambda: "done"]
        told: list[object] = []

        def take_chore(now: float, *, alone: bool) -> Any:
            found = take(now, alone=alone)
            if found.batch is None and chores and len(told) == 2 - len(chores):  # by turns
                return found._replace(chore=chores.pop(0))
            return found

        def chore_done(result: object, _now: float) -> int:
            told.append(result)
            return results.pop(0)

        monkeypatch.setattr(queue, "take", take_chore)
        monkeypatch.setattr(queue, "chore_done", chore_done)
        writer.submit(make_event(0))
        eventually(lambda: len(told) == 2)
        assert told == [None, "done"]
        assert writer.flush(10)
        assert writer.stats().dropped == 3
        eventually(lambda: said.texts(logging.ERROR))

    assert said.texts(logging.ERROR) == ["lost 3 events: damaged on disk"]
    assert numbers_in(scripted) == [0]
