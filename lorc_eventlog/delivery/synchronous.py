"""The foreground: each event is sent in the call, for scripts and serverless functions."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.table import events_table
from lorc_eventlog.delivery.options import check_client
from lorc_eventlog.delivery.sinks import Sink, chosen_sink
from lorc_eventlog.delivery.stats import NO_EVENTS, WriterStats
from lorc_eventlog.delivery.waiting import Waits
from lorc_eventlog.diagnostics import describe
from lorc_eventlog.events import capture
from lorc_eventlog.events.envelope import Envelope, to_row
from lorc_eventlog.events.row import Row, finish, row_at
from lorc_eventlog.lifecycle import fork
from lorc_eventlog.lifecycle.locks import Lock

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.events.models import Payload


def emit(
    event_type: str,
    payload: Payload,
    *,
    source: str,
    bq_client: Client,
    schema_ref: str | None = None,
    correlation_id: str | None = None,
    subject_id: str | None = None,
) -> None:
    """Write one event to BigQuery at once, in the caller's thread.

    The table is read from ``EVENTS_BQ_DATASET`` and ``EVENTS_BQ_TABLE`` at the call, unless
    ``EVENTS_BQ_SINK`` says that the event goes elsewhere. A request that fails for the moment
    (429, 5xx) is tried again for up to 30 seconds.

    Args:
        event_type: As for :func:`build_envelope`, like ``payload`` and the other fields.
        payload: The event's own data.
        source: Who says so.
        bq_client: The caller's ``google.cloud.bigquery.Client``.
        schema_ref: The name of the payload's schema.
        correlation_id: Ties the events of one trace together.
        subject_id: Who the event is about.

    Raises:
        ValueError: The event is invalid; see :func:`build_envelope`.
        RuntimeError: An environment variable is not set (the message names it), or BigQuery
            refused the event or was not reached (the message says why).

    Example:
        In a script, with ``client = bigquery.Client()``:

            emit("report.sent", {"pages": 3}, source="reports", bq_client=client)
    """
    row = row_at(time.time(), event_type, payload, source, schema_ref, correlation_id, subject_id)
    if capture.in_use and capture.take(row):
        return
    sink = chosen_sink()
    if sink is None:
        _insert(bq_client, row)
    else:
        sink(row)


def _insert(client: Client, row: Row) -> None:
    # Not with `import lorc_eventlog`, which it would slow down.
    from lorc_eventlog.bigquery.insert_all import insert_now

    insert_now(client, events_table(), row)


class ForegroundWriter(Waits):
    """Takes envelopes as ``EventWriter`` does and delivers each before it returns.

    Args:
        bq_client: A ``google.cloud.bigquery.Client``; None makes one with the first event.

    Raises:
        RuntimeError: ``EVENTS_BQ_DATASET`` or ``EVENTS_BQ_TABLE`` is not set.
        ValueError: ``bq_client`` is no client.

    Example:
        ``handler.writer`` is one if the handler has ``background=False``; two may share one:

            writer = ForegroundWriter()
            handler = BigQueryEventHandler(source="job", writer=writer)
            processor = BigQueryEventProcessor(source="job", writer=writer)
    """

    close_timeout = 0.0

    def __init__(self, bq_client: Client | None = None) -> None:
        check_client(bq_client)
        self._sink: Sink | None = None
        self._is_sink_known = False
        if not capture.is_active():
            self._find_sink()
            if self._sink is None:
                events_table()
        # Now, because a fork in the middle of an import leaves the child with a locked module.
        import lorc_eventlog.bigquery.client
        import lorc_eventlog.bigquery.insert_all  # noqa: F401

        self._client = bq_client
        self._counters = _Counters()
        fork.register(self)

    def _find_sink(self) -> None:
        self._sink = chosen_sink()
        self._is_sink_known = True

    def emit(
        self,
        event_type: str,
        payload: Payload,
        *,
        source: str,
        schema_ref: str | None = None,
        correlation_id: str | None = None,
        subject_id: str | None = None,
    ) -> None:
        """Deliver one event; arguments and errors as for :func:`lorc_eventlog.emit`."""
        self.submit_row(
            row_at(time.time(), event_type, payload, source, schema_ref, correlation_id, subject_id)
        )

    def submit(self, envelope: Envelope) -> None:
        """Deliver ``envelope``; raises what :func:`lorc_eventlog.emit` raises."""
        self.submit_row(to_row(envelope))

    def submit_row(self, row: Row) -> None:
        """Deliver ``row``, as :meth:`submit` does an envelope."""
        if capture.in_use and capture.take(row):
            return
        if not self._is_sink_known:  # made while events were captured
            self._find_sink()
        if self._sink is not None:
            self._sink(row)
            return
        fork.restart_if_forked()
        finish(row)
        try:
            _insert(self._own_client(), row)
        except Exception as error:
            self._counters.count(describe(error))
            raise
        self._counters.count()

    def flush(self, timeout: float | None = None) -> bool:  # noqa: ARG002
        """Return True: nothing is ever buffered."""
        return True

    def close(self) -> None:
        """Do nothing: nothing is ever buffered."""

    def stats(self) -> WriterStats:
        """Return the counters; an event that was not delivered in the call is ``rejected``."""
        fork.restart_if_forked()
        return self._counters.stats()

    def _own_client(self) -> Client:
        if self._client is None:
            from lorc_eventlog.bigquery.client import open_client
            from lorc_eventlog.bigquery.failures import why_no_client

            try:
                self._client = open_client()
            except Exception as error:
                msg = f"there is no BigQuery client: {why_no_client(error).told(())}"
                raise RuntimeError(msg) from error
        return self._client

    def restart_in_child(self) -> None:
        """Count from zero, and leave the parent's connections to the parent."""
        fresh = _Counters()
        # Signal safety: a log call in the middle of this calls it once more. Its count must stay.
        if self._counters.generation != fresh.generation:
            self._counters = fresh
        if self._client is not None:
            from lorc_eventlog.bigquery.connections import renew_connections

            renew_connections(self._client)


class _Counters:
    """What became of the events of one process."""

    def __init__(self) -> None:
        self.generation = fork.generation()
        self._lock = Lock()
        self._delivered = 0
        self._rejected = 0
        self._last_error: str | None = None

    def count(self, error: str | None = None) -> None:
        """Count an event as delivered, or with the ``error`` that it was rejected for."""
        self._lock.run(self._count, error)

    def stats(self) -> WriterStats:
        return self._lock.run(self._stats)

    def _count(self, error: str | None) -> None:
        if error is None:
            self._delivered += 1
        else:
            self._rejected += 1
            self._last_error = error

    def _stats(self) -> WriterStats:
        return replace(
            NO_EVENTS,
            submitted=self._delivered + self._rejected,
            delivered=self._delivered,
            rejected=self._rejected,
            last_error=self._last_error,
        )
