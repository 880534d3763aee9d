"""The client is made while the first event waits for others, not with the first request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness import Records, eventually, make_event, numbers_in, running_writer, submit_events
from inside import client_of
from lorc_eventlog.bigquery.client import open_client
from lorc_eventlog.delivery.courier import CONNECT_AFTER, Courier
from lorc_eventlog.delivery.schedule import HUNG_AFTER
from lorc_eventlog.lifecycle.locks import Lock
from queue_clock import Clock
from scripted_bigquery import ScriptedBigQuery


def test_the_client_is_made_while_the_first_event_waits(scripted: ScriptedBigQuery) -> None:
    with running_writer(flush_interval=3600) as writer:
        assert client_of(writer) is None
        writer.submit(make_event(0))
        eventually(lambda: client_of(writer) is not None)
        assert writer.stats().buffered == 1
    assert numbers_in(scripted) == [0]


def test_what_fails_then_is_left_to_the_first_request(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fail_once() -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no project yet")
        return open_client()

    monkeypatch.setattr("lorc_eventlog.bigquery.insert_all.open_client", fail_once)
    with Records() as records, running_writer(flush_interval=3600) as writer:
        submit_events(writer, range(3))
        eventually(lambda: tries)
        assert writer.flush(60)
        assert writer.stats().last_error is None
    assert numbers_in(scripted) == [0, 1, 2]
    assert records.records == []


class Connecting(Clock):
    """A courier whose transport connects, without threads; the clock decides what is due."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.connected = 0
        transport: Any = SimpleNamespace(is_connected=False)
        report: Any = SimpleNamespace(has_news=False)
        nothing: Any = None
        self.courier = Courier(Lock(), self.queue, transport, nothing, report, self.connect)

    def connect(self) -> None:
        self.connected += 1
        raise ConnectionError

    def choose(self) -> tuple[Any, float | None]:
        return self.courier.choose(self.now, 30.0)

    def wait(self) -> float | None:
        """The seconds until there may be something to do."""
        task, seconds = self.choose()
        assert task is None
        return seconds


def test_nothing_connects_without_an_event() -> None:
    assert Connecting().wait() is None


def test_the_log_call_has_the_interpreter_to_itself_at_first() -> None:
    clock = Connecting()
    clock.add(1)
    assert clock.wait() == pytest.approx(CONNECT_AFTER)
    clock.now += CONNECT_AFTER
    task, _ = clock.choose()
    with pytest.raises(ConnectionError):
        task()
    assert clock.connected == 1


def test_a_batch_that_is_due_earlier_goes_first() -> None:
    clock = Connecting(flush_interval=0.01)
    clock.add(1)
    assert clock.wait() == pytest.approx(0.01)
    clock.now += CONNECT_AFTER
    clock.choose()
    assert clock.courier.on_its_way == 1


def test_others_wait_for_the_thread_that_connects_but_not_for_ever() -> None:
    clock = Connecting(flush_interval=CONNECT_AFTER * 2)
    clock.add(1)
    clock.choose()
    clock.now += CONNECT_AFTER
    task, _ = clock.choose()
    assert task is not None
    clock.now += 1  # the row is due by now
    assert clock.wait() == pytest.approx(HUNG_AFTER - 1)
    clock.now += HUNG_AFTER
    clock.choose()
    assert clock.courier.on_its_way == 1


def test_it_happens_once() -> None:
    clock = Connecting()
    clock.add(1)
    clock.choose()
    clock.now += CONNECT_AFTER
    task, _ = clock.choose()
    with pytest.raises(ConnectionError):
        task()
    assert clock.wait() == pytest.approx(1.0 - CONNECT_AFTER)
