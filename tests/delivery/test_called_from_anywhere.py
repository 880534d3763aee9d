"""Log calls from threads, signal handlers, destructors, and in the middle of dictConfig."""

from __future__ import annotations

import gc
import itertools
import logging
import logging.config
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from google.cloud import bigquery

from harness import (
    assert_adds_up,
    eventually,
    make_event,
    numbers_in,
    running_writer,
    sampled,
    submit_events,
    threads,
)
from inside import (
    call_sender,
    dispatcher_of,
    inbox_of,
    lock_of,
    queue_of,
    senders_of,
    waiting_senders,
)
from lorc_eventlog import BigQueryEventHandler
from lorc_eventlog.events.row import Row
from scripted_bigquery import ScriptedBigQuery, delay, status


def test_many_threads_log_many_events(scripted: ScriptedBigQuery, client: bigquery.Client) -> None:
    """16 threads, 10,000 events each: exact. (A tenth of it while coverage is measured.)"""
    each = 10_000 if sys.gettrace() is None else 1000
    with running_writer(client, capacity=200_000, capacity_bytes=2**30) as writer, sampled(writer):
        with threads(
            16, lambda index: submit_events(writer, range(index * each, (index + 1) * each))
        ):
            pass
        assert writer.flush(60)
        assert writer.stats().delivered == 16 * each

    assert scripted.duplicates == []
    assert numbers_in(scripted) == list(range(16 * each))


untraced = pytest.mark.skipif(
    "sys.gettrace() is not None",
    reason="coverage's own lock, which it takes anywhere, is not re-entrant",
)


@untraced
def test_a_signal_handler_may_log_in_the_middle_of_a_log_call(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    in_handler = depth = 0
    with running_writer(client, batch_rows=7, flush_interval=0.001) as writer, sampled(writer):

        def log(*_: object) -> None:
            nonlocal in_handler, depth
            depth += 1  # it interrupts itself as well
            if depth < 4:
                number, in_handler = in_handler, in_handler + 1
                writer.submit(make_event(1_000_000 + number))
            depth -= 1

        previous = signal.signal(signal.SIGUSR1, log)
        main, done = threading.get_ident(), threading.Event()

        def interrupt(_: int) -> None:
            while not done.wait(0.001):
                signal.pthread_kill(main, signal.SIGUSR1)

        try:
            count = 0
            with threads(1, interrupt):
                while count < 5000 or in_handler <= 10:
                    submit_events(writer, range(count, count + 100))
                    count += 100
                done.set()
        finally:
            signal.signal(signal.SIGUSR1, previous)
        assert writer.flush(30)

    expected = [*range(count), *range(1_000_000, 1_000_000 + in_handler)]
    assert numbers_in(scripted) == expected


class Interrupting(list[Row]):
    """The rows of an inbox, which runs something at the end of the next append."""

    def __init__(self, rows: list[Row], action: Callable[[], None]) -> None:
        super().__init__(rows)
        self._action = action

    def append(self, row: Row) -> None:
        super().append(row)
        action, self._action = self._action, lambda: None
        action()


@pytest.mark.parametrize("before", [0, 3], ids=["the first row", "a full batch"])
def test_a_log_call_in_a_log_call_wakes_a_sender(
    scripted: ScriptedBigQuery, client: bigquery.Client, before: int
) -> None:
    with running_writer(client, batch_rows=5, flush_interval=60 if before else 0.3) as writer:
        call_sender(writer)
        eventually(lambda: waiting_senders(writer))
        submit_events(writer, range(before))
        assert scripted.requests == []
        inbox = dispatcher_of(writer).inbox
        inbox.rows = Interrupting(inbox.rows, lambda: writer.submit(make_event(100)))
        writer.submit(make_event(before))
        scripted.wait_for_rows((before and 5) or 2, 5)


def test_a_log_call_in_a_destructor_that_runs_under_the_lock_is_delivered(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    with running_writer(client) as writer:
        lock_of(writer).run(writer.submit, make_event(0))
        assert list(inbox_of(writer)) != []  # the queue is not entered twice
        writer.stats()  # whoever has the lock next sees to it
        scripted.wait_for_rows(1)

    assert numbers_in(scripted) == [0]


def test_a_row_that_such_a_call_leaves_in_an_inbox_just_closed_is_delivered(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    with running_writer(client) as writer:
        inbox = dispatcher_of(writer).inbox
        inbox.limit = 1
        inbox.rows = Interrupting(inbox.rows, lambda: setattr(inbox, "limit", 0))
        lock_of(writer).run(writer.submit, make_event(0))
        assert senders_of(writer) == set()  # whoever has the lock may be in the middle of that
        assert writer.flush(10)

    assert numbers_in(scripted) == [0]


def test_a_row_whose_call_is_ended_by_a_signal_handler_is_counted_and_sent(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    """The handler that turns SIGTERM into SystemExit; no other call wakes a sender."""
    with running_writer(client, flush_interval=0.1) as writer:
        call_sender(writer)
        eventually(lambda: waiting_senders(writer))

        def leave() -> None:
            raise SystemExit

        inbox = dispatcher_of(writer).inbox
        inbox.rows = Interrupting(inbox.rows, leave)
        with pytest.raises(SystemExit):
            writer.submit(make_event(0))
        assert_adds_up(writer.stats())
        eventually(lambda: writer.stats().delivered == 1)

    assert numbers_in(scripted) == [0]


class OutOfTimeError(Exception):
    """What a task's time limit raises, wherever the task is."""


@untraced
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a destructor
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals")
def test_a_signal_handler_that_raises_at_any_moment_leaves_a_writer_that_works(
    client: bigquery.Client,
) -> None:
    """No lock is left behind, no event that is counted and not there, and none whose call returned
    is lost."""

    def raise_it(*_: object) -> None:
        raise OutOfTimeError

    interrupted = returned = 0
    until = time.monotonic() + float(os.environ.get("LORC_EVENTLOG_SOAK", "1"))
    previous = signal.signal(signal.SIGALRM, raise_it)
    try:
        with running_writer(client, capacity=1_000_000, capacity_bytes=2**30) as writer:
            while time.monotonic() < until:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(20e-6, 300e-6))
                    for number in range(100):
                        writer.submit(make_event(number))
                        returned += 1
                    signal.setitimer(signal.ITIMER_REAL, 0)
                # KeyError is what Thread.start makes of it in its last moment.
                except (OutOfTimeError, KeyError):
                    interrupted += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert not lock_of(writer).is_owned()
            queue = queue_of(writer)
            assert writer.flush(60)
            assert (queue.held, queue.held_bytes, len(inbox_of(writer))) == (0, 0, 0)
            assert_adds_up(writer.stats())
            assert writer.stats().delivered >= returned
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted


def test_an_exception_at_the_start_of_a_sender_leaves_a_writer_that_works(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_writer(client) as writer:

        def leave(_self: threading.Thread) -> None:
            raise SystemExit

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", leave)
            with pytest.raises(SystemExit):
                writer.submit(make_event(0))
        assert writer.stats().submitted == 0  # its caller knows
        writer.submit(make_event(1))
        assert writer.flush(10)

    assert numbers_in(scripted) == [1]


@untraced
def test_a_destructor_may_log(scripted: ScriptedBigQuery, client: bigquery.Client) -> None:
    numbers = itertools.count(1_000_000)
    logged: list[int] = []

    class Logs:
        def __init__(self) -> None:
            self.itself = self  # so that only the garbage collector ends it

        def __del__(self) -> None:
            number = next(numbers)  # several threads may collect
            writer.submit(make_event(number))
            logged.append(number)

    def all_logged() -> bool:
        gc.collect()  # does nothing while another thread collects
        return len(logged) == 3000

    threshold = gc.get_threshold()
    gc.set_threshold(10)
    try:
        with running_writer(client, batch_rows=7) as writer, sampled(writer):
            for number in range(3000):
                Logs()
                writer.submit(make_event(number))
            eventually(all_logged)
            assert writer.flush(30)
    finally:
        gc.set_threshold(*threshold)

    assert numbers_in(scripted) == [*range(3000), *range(1_000_000, 1_003_000)]


def test_everything_may_log_to_our_handler_at_debug(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    """google, urllib3, requests and ourselves: no recursion, no growth, no deadlock."""
    handler = BigQueryEventHandler(client, source="tests", flush_interval=0.01, batch_rows=10)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    logger = logging.getLogger("app.debug")
    scripted.script(status(503), status(503))
    scripted.refuse_row(lambda row: '"number":3}' in row["payload"])
    try:
        for number in range(100):
            logger.info("x", extra={"event_type": "test", "payload": {"number": number}})
        assert handler.flush(30)
        requests = len(scripted.requests)
        threading.Event().wait(0.2)
        assert len(scripted.requests) == requests
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()

    assert handler.writer.stats().submitted == 100
    assert len(scripted.rows) == 99


def test_a_filter_that_makes_an_event_of_every_record_feeds_nothing_back(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    handler = BigQueryEventHandler(client, source="tests", flush_interval=0.01)

    def mark(record: logging.LogRecord) -> bool:
        record.event_type = "test"
        return True

    handler.addFilter(mark)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    scripted.script(status(404))
    try:
        logging.getLogger("app.marked").info("x")
        assert handler.flush(30)
        threading.Event().wait(0.2)
        assert handler.writer.stats().submitted == 1
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


@pytest.mark.parametrize("fails_in", ["emit", "filter"])
def test_a_broken_handler_of_the_application_does_not_stop_delivery(
    scripted: ScriptedBigQuery, client: bigquery.Client, fails_in: str
) -> None:
    class Broken(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            raise ValueError("broken")

    handler = Broken()
    logger = logging.getLogger("lorc_eventlog")
    if fails_in == "emit":
        logger.addHandler(handler)
    else:
        logger.addFilter(handler.emit)  # type: ignore[arg-type]
    scripted.script(status(404), status(503))
    scripted.refuse_row(lambda row: '"number":3,' in row["payload"])
    try:
        with running_writer(client, capacity=10) as writer:
            submit_events(writer, range(20))
            assert writer.flush(30)
            stats = writer.stats()
            assert (stats.delivered, stats.rejected, stats.dropped) == (9, 1, 10)
    finally:
        logger.removeHandler(handler)
        logger.removeFilter(handler.emit)  # type: ignore[arg-type]


def configure(**options: Any) -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "bigquery": {
                    "class": "lorc_eventlog.BigQueryEventHandler",
                    "source": "tests",
                    **options,
                }
            },
            "loggers": {
                "app.config": {"handlers": ["bigquery"], "level": "INFO", "propagate": False}
            },
        }
    )


@pytest.mark.parametrize("first_sent", [True, False])
def test_a_second_dictconfig_loses_nothing_that_is_buffered(
    scripted: ScriptedBigQuery, first_sent: bool
) -> None:
    """It holds logging's own lock, which our senders need to log, while it closes handlers."""
    logger = logging.getLogger("app.config")
    configure(flush_interval=60 if not first_sent else 0.01)
    try:
        for number in range(3):
            logger.info("x", extra={"event_type": "test", "payload": {"number": number}})
        if first_sent:
            scripted.wait_for_rows(3)
            scripted.script(delay(0.2))
            logger.info("x", extra={"event_type": "test", "payload": {"number": 3}})
        began = time.monotonic()
        configure()
        took = time.monotonic() - began
        logger.info("x", extra={"event_type": "test", "payload": {"number": 9}})
        logging.getLogger("app.config").handlers[0].flush()
    finally:
        handler = logger.handlers[0]
        logger.removeHandler(handler)
        handler.close()

    scripted.wait_for_rows(5 if first_sent else 4)
    assert took < 5


def test_a_dictconfig_in_an_outage_loses_nothing_either(scripted: ScriptedBigQuery) -> None:
    logger = logging.getLogger("app.config")
    scripted.stop()
    configure(close_timeout=0.2)
    try:
        for number in range(3):
            logger.info("x", extra={"event_type": "test", "payload": {"number": number}})
        configure()
        gc.collect()
        scripted.start()
        scripted.wait_for_rows(3, 30)
    finally:
        handler = logger.handlers[0]
        logger.removeHandler(handler)
        handler.close()


def test_a_dictconfig_where_no_thread_can_be_started_raises_nothing(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At exit, and where there are too many."""
    logger = logging.getLogger("app.config")
    configure()
    logger.info("x", extra={"event_type": "test", "payload": {"number": 1}})
    scripted.wait_for_rows(1)  # nothing needs a thread any more

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as no_threads:
        no_threads.setattr(threading.Thread, "start", start)
        configure()
    handler = logger.handlers[0]
    logger.removeHandler(handler)
    handler.close()


def test_a_clock_that_a_test_freezes_strands_nothing(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """freezegun replaces time.monotonic for the whole process."""
    with running_writer(client) as writer:
        with monkeypatch.context() as frozen:
            frozen.setattr(time, "monotonic", lambda: 2.7e9)
            writer.submit(make_event(0))
            scripted.wait_for_rows(1, 20)
            scripted.always(status(503))
            writer.submit(make_event(1))
            assert not writer.flush(0.1)
            scripted.healthy()
        scripted.wait_for_rows(2, 20)
    assert numbers_in(scripted) == [0, 1]
