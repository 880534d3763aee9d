"""Which dispatcher takes new rows: another one in the child of a fork, and under gevent."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from lorc_eventlog.bigquery.insert_all import InsertAllTransport
from lorc_eventlog.bigquery.table import events_table
from lorc_eventlog.bigquery.transport import Transport
from lorc_eventlog.delivery.batch import Bounds
from lorc_eventlog.delivery.dispatcher import Dispatcher
from lorc_eventlog.delivery.queue import DeliveryQueue
from lorc_eventlog.delivery.report import Report
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.lifecycle import fork
from lorc_eventlog.lifecycle.locks import Lock

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.bigquery.transport import Limits
    from lorc_eventlog.delivery.options import WriterOptions

INTERVAL_OF_A_JOB = 0.05
"""Seconds. ``flush_interval`` is no longer in a child of a fork that may end by ``os._exit``: what
is not sent by then is lost."""


class ConnectingTransport(Transport, Protocol):
    """A transport that may connect before there is anything to send."""

    def connect(self) -> None:
        """Get ready to send; an error is left to :meth:`send`."""


TransportMaker = Callable[["Client | None", str], ConnectingTransport]


class Dispatchers:
    """Makes the dispatcher that takes new rows, and replaces it when its lock cannot be used.

    In the child of a fork the lock may be held by a thread that is not there. When gevent or
    eventlet patched ``threading`` later, it is of another kind than the threads that would wait for
    it; then the old dispatcher still delivers what it holds.

    Args:
        client: The BigQuery client; None makes one.
        options: What the dispatchers are told.
        make_transport: Makes what sends rows to a table; the default is ``insertAll``.
    """

    def __init__(
        self,
        client: Client | None,
        options: WriterOptions,
        make_transport: TransportMaker = InsertAllTransport,
    ) -> None:
        self.current: Dispatcher
        """Takes new rows; there is none before :meth:`begin`."""
        self._client = client
        self._options = options
        self._lock = Lock()
        self._retired: tuple[Dispatcher, ...] = ()
        self._make_transport = make_transport
        self._transport: ConnectingTransport | None = None
        self._table = ""
        fork.register(self)
        self._generation = fork.generation()

    def begin(self) -> None:
        """Make the first dispatcher.

        Raises:
            RuntimeError: ``EVENTS_BQ_DATASET`` or ``EVENTS_BQ_TABLE`` is not set.
        """
        if self._transport is None:
            self._lock.run(self._begin)

    def all(self) -> list[Dispatcher]:
        """Return all that may hold rows."""
        fork.restart_if_forked()
        return [] if self._transport is None else [*self._retired, self.current]

    def ready(self) -> Dispatcher:
        """Return the one that takes new rows, whose lock works."""
        current = self.current
        return self._lock.run(self._replace, current) if current.is_stale else current

    def restart_in_child(self) -> None:
        """Leave what is buffered, and the connections, to the parent."""
        lock, generation = Lock(), fork.generation()
        if self._transport is None:
            self._lock = lock
            return
        fresh = self._make(self._transport)
        # Hazard: a signal handler that logs in the middle of this calls it once more, and what it
        # logged must stay. So make no call between this check and the end of the assignments.
        if self._generation != generation:
            self._lock = lock
            self.current = fresh
            self._retired = ()
            self._generation = generation
        self._transport.restart_in_child()

    def _begin(self) -> None:
        if self._transport is None:
            self._table = events_table()
            transport = self._make_transport(self._client, self._table)
            self.current = self._make(transport)
            self._transport = transport
            self._look_for_orphans()

    def _replace(self, stale: Dispatcher) -> Dispatcher:
        if self.current is stale and self._transport is not None:
            # Hazard: a greenlet cannot use the connections of a thread, nor a thread a greenlet's.
            self._transport = self._make_transport(self._client, self._table)
            self._transport.reconnect()
            fresh = self._make(self._transport)
            self._retired = (*self._retired, stale)
            self.current = fresh
            self._look_for_orphans()
        return self.current

    def _look_for_orphans(self) -> None:
        if self._options.spool_dir is not None:
            self.current.notice()

    def _make(self, transport: ConnectingTransport) -> Dispatcher:
        options = self._options
        flush_interval = options.flush_interval
        if fork.may_end_at_once():
            flush_interval = min(flush_interval, INTERVAL_OF_A_JOB)
        queue, report = _make_queue(options, self._table, Notes(), flush_interval, transport.limits)
        dispatcher = Dispatcher(
            queue,
            transport,
            report,
            flush_interval=flush_interval,
            blocks=options.overflow == "block",
            close_timeout=options.close_timeout,
            on_dead_letter=options.on_dead_letter,
            connect=transport.connect,
        )
        dispatcher.serve(self)
        return dispatcher


def _make_queue(
    options: WriterOptions, table: str, notes: Notes, flush_interval: float, limits: Limits
) -> tuple[DeliveryQueue, Report]:
    capacity, capacity_bytes = options.capacity, options.capacity_bytes
    bounds = Bounds(options.batch_rows, flush_interval, capacity, capacity_bytes, limits)
    said = f"capacity {capacity:,} events, capacity_bytes {capacity_bytes:,}"
    if options.spool_dir is None:
        full = f"the buffer is full ({said}; set spool_dir to keep more)"
        return DeliveryQueue(bounds), Report(notes, full=full, spool_dir=None)
    # Who has no spool_dir pays nothing for it with `import lorc_eventlog`.
    from pathlib import Path

    from lorc_eventlog.delivery.spooled_queue import SpooledQueue
    from lorc_eventlog.spool.spool import Spool

    directory = os.fspath(options.spool_dir)
    full = f"the spool is full (spool_max_bytes {options.spool_max_bytes:,}; {said})"
    spool = Spool(
        Path(directory),
        table=table,
        max_bytes=options.spool_max_bytes,
        durable=options.spool_sync == "full",
        notes=notes,
    )
    return SpooledQueue(spool, bounds), Report(notes, full=full, spool_dir=directory)
