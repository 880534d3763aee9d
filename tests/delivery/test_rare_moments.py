"""Moments in which two things meet: a result that comes late, a row that comes last."""

from __future__ import annotations

import dataclasses
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from google.cloud import bigquery

from harness import make_event, running_writer, submit_events
from inside import dispatcher_of, queue_of
from lorc_eventlog.bigquery.insert_all import InsertAllTransport
from lorc_eventlog.bigquery.transport import Answer, Failure, Reason, Refusal
from lorc_eventlog.delivery import fresh
from lorc_eventlog.delivery.courier import Courier
from lorc_eventlog.delivery.dispatchers import ConnectingTransport, Dispatchers
from lorc_eventlog.delivery.report import Report
from lorc_eventlog.delivery.settlement import Settlement
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.lifecycle.locks import Lock
from queue_clock import Clock
from scripted_bigquery import ScriptedBigQuery, status

DOWN = Failure(Reason("down"), None, may_be_the_rows=False, stored="unknown")


@pytest.mark.parametrize("late", [DOWN, Refusal(Reason("no"), is_about_size=False)])
def test_a_result_that_comes_after_the_rows_were_stored_is_no_news(late: Failure | Refusal) -> None:
    clock = Clock()
    notes = Notes()
    report = Report(notes, full="", spool_dir=None)
    settlement = Settlement(Lock(), clock.queue, report, None, int)
    clock.add(1)
    clock.flush()
    hung = clock.take_next()
    clock.queue.duplicate_in_flight(clock.now, older_than=0.0)
    settlement.apply(clock.take_next(), Answer(), clock.now)
    settlement.apply(hung, late, clock.now)

    stats, error = settlement.stats(())
    assert (stats.delivered, stats.retries, error) == (1, 0, None)
    assert not notes


def test_a_signal_handler_that_raises_while_a_portion_begins_leaves_none_without_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fresh, "_Portion", interrupted)
        with pytest.raises(KeyboardInterrupt):
            clock.add(1)
    assert clock.wait_for() is None
    clock.add(2)
    assert clock.queue.held == 1


def test_what_is_delivered_just_after_the_deadline_is_not_said_to_be_lost(
    client: bigquery.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running_writer(client) as writer:
        submit_events(writer, range(3))
        assert writer.flush(10)
        monkeypatch.setattr(dispatcher_of(writer)._flusher, "flush", lambda *_, **__: False)
        writer.close()
    assert caplog.records == []


def test_a_row_that_came_while_a_sender_went_to_wait_is_seen_at_once(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With so short an interval nobody looks by the clock."""
    with running_writer(client, flush_interval=0.0) as writer:
        submit_events(writer, range(1))
        assert writer.flush(10)
        dispatcher = dispatcher_of(writer)
        senders, shut = dispatcher._senders, dispatcher._senders.open_inbox

        def append_first(**options: Any) -> None:
            monkeypatch.setattr(senders, "open_inbox", shut)
            row = {**make_event(1), "payload": '{"number":1}'}
            dispatcher.inbox.rows.append(row)  # type: ignore[arg-type]
            shut(**options)

        monkeypatch.setattr(senders, "open_inbox", append_first)
        senders._lock.run(senders.call)
        scripted.wait_for_rows(2, timeout=3)


def test_a_row_that_is_noticed_after_the_end_is_delivered_by_its_own_call(
    client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_writer(client) as writer:
        submit_events(writer, range(1))
        dispatcher = dispatcher_of(writer)
        late: list[bool] = []
        monkeypatch.setattr(dispatcher.closing, "finish_late", lambda: late.append(True))
        dispatcher.notice()
        assert late == [True]
        assert writer.flush(10)
        assert queue_of(writer).held == 0


def test_a_turn_to_say_something_ends_however_it_is_left() -> None:
    report: Any = SimpleNamespace(has_news=True, say=lambda: None)
    courier = Courier(Lock(), Clock().queue, SimpleNamespace(), SimpleNamespace(), report)  # type: ignore[arg-type]

    def interrupted() -> None:
        raise KeyboardInterrupt

    courier._say = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        courier.say_the_rest(None)
    assert courier._sayer is None
    courier._sayer = threading.get_ident() + 1  # another thread has its turn
    courier.say_the_rest(0.0)
    assert courier._sayer is not None


def test_a_turn_ends_when_the_thread_never_came_to_say_anything() -> None:
    """Ctrl-C comes after the turn was given, before the task that says something begins."""
    report: Any = SimpleNamespace(has_news=True)
    courier = Courier(Lock(), Clock().queue, SimpleNamespace(), SimpleNamespace(), report)  # type: ignore[arg-type]
    task, _ = courier._lock.run(courier.choose, 0.0, 1.0)
    assert task is not None
    courier._lock.run(courier.put_down, KeyboardInterrupt())
    task, _ = courier._lock.run(courier.choose, 0.0, 1.0)
    assert task is not None


def test_a_row_that_never_has_room_does_not_wait_for_the_others(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(status(503))
    with running_writer(client, capacity_bytes=2000, overflow="block") as writer:
        submit_events(writer, range(1))
        call = threading.Thread(
            target=writer.submit, args=({**make_event(1), "payload": {"text": "x" * 3000}},)
        )
        call.start()
        call.join(30)
        assert not call.is_alive()
        stats = writer.stats()
        assert (stats.buffered, stats.dropped) == (1, 1)
        scripted.healthy()


@pytest.mark.parametrize(("usual", "more"), [(1, 1), (3, 6)])
def test_a_close_that_tries_again_has_more_senders_only_for_that_time(
    client: bigquery.Client, usual: int, more: int
) -> None:
    with running_writer(client) as writer:
        submit_events(writer, range(1))
        flusher = dispatcher_of(writer)._flusher
        senders = flusher._senders
        senders.most = flusher._most_senders = usual
        flusher._try_again(0)
        assert senders.most == more
        writer.close()
        assert senders.most == usual


def test_a_dispatcher_that_replaces_another_sends_as_that_one_did(
    client: bigquery.Client,
) -> None:
    with running_writer(client) as writer:
        submit_events(writer, range(1))
        assert writer.flush(10)
        dispatchers = writer._dispatchers
        assert isinstance(dispatchers, Dispatchers)
        made: list[ConnectingTransport] = []

        def make(client: bigquery.Client | None, table: str) -> ConnectingTransport:
            made.append(InsertAllTransport(client, table))
            return made[-1]

        dispatchers._make_transport = make
        dispatchers._replace(dispatchers.current)
        assert [dispatchers._transport] == made


def test_requests_keep_to_the_limits_of_the_transport_that_sends_them(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    class Small(InsertAllTransport):
        limits = dataclasses.replace(InsertAllTransport.limits, rows=2)

    with running_writer(client) as writer:
        dispatchers = writer._dispatchers
        assert isinstance(dispatchers, Dispatchers)
        dispatchers._make_transport = Small
        dispatchers._replace(dispatchers.current)
        submit_events(writer, range(5))
        assert writer.flush(10)
    assert sorted(request.rows for request in scripted.requests) == [1, 2, 2]
