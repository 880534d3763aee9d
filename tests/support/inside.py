"""What tests see of a writer that its users do not: the one place that knows its parts' names."""

from __future__ import annotations

import threading
import time
from typing import Any

from lorc_eventlog import EventWriter
from lorc_eventlog.bigquery.insert_all import InsertAllTransport
from lorc_eventlog.delivery.dispatcher import Dispatcher
from lorc_eventlog.delivery.dispatchers import Dispatchers
from lorc_eventlog.delivery.queue import DeliveryQueue
from lorc_eventlog.delivery.spooled_queue import SpooledQueue
from lorc_eventlog.events.row import Row
from lorc_eventlog.lifecycle.locks import Lock


def dispatcher_of(writer: EventWriter) -> Dispatcher:
    dispatcher = writer._dispatchers.current
    assert isinstance(dispatcher, Dispatcher)
    return dispatcher


def queue_of(writer: EventWriter) -> DeliveryQueue:
    return dispatcher_of(writer)._queue


def lock_of(writer: EventWriter) -> Lock:
    return dispatcher_of(writer)._lock


def inbox_of(writer: EventWriter) -> list[Row]:
    return dispatcher_of(writer).inbox.rows


def senders_of(writer: EventWriter) -> set[threading.Thread]:
    return set(dispatcher_of(writer)._senders._threads)


def held_in_memory(writer: EventWriter) -> int:
    queue = queue_of(writer)
    return queue.held - queue._store.unread if isinstance(queue, SpooledQueue) else queue.held


def say_what_is_noted(writer: EventWriter) -> None:
    """Say on this thread what a sender would say."""
    dispatcher_of(writer)._courier._report.say()


def look_for_orphans(writer: EventWriter) -> None:
    """Look into the spool directory without waiting for the next minute."""
    lock_of(writer).run(queue_of(writer).look_now)
    call_sender(writer)


def call_sender(writer: EventWriter) -> None:
    """Have a sender look for work, as a log call does."""
    dispatcher_of(writer)._senders.run(dispatcher_of(writer)._senders.call)


def retry_now(writer: EventWriter) -> None:
    """End all pauses."""
    lock_of(writer).run(queue_of(writer).retry_now, time.monotonic())
    call_sender(writer)


def waiting_senders(writer: EventWriter) -> int:
    return len(dispatcher_of(writer)._senders._called._waiters)


def waiting_callers(writer: EventWriter) -> int:
    """How many threads wait for a flush, or for room."""
    return len(dispatcher_of(writer)._progress._waiters)


def client_of(writer: EventWriter) -> Any:
    dispatchers = writer._dispatchers
    assert isinstance(dispatchers, Dispatchers)
    transport = dispatchers._transport
    assert transport is None or isinstance(transport, InsertAllTransport)
    channel = transport and transport._channel
    return channel and channel.client
