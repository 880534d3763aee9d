"""The face of delivery: takes events from any thread and has them delivered in the background."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Literal, cast

from lorc_eventlog.delivery.options import (
    MAX_SECONDS,
    DeadLetterCallback,
    WriterOptions,
    check_client,
)
from lorc_eventlog.delivery.sinks import SINK_VARIABLE, Sink, chosen_sink
from lorc_eventlog.delivery.stats import NO_EVENTS, WriterStats
from lorc_eventlog.delivery.waiting import Waits
from lorc_eventlog.events import capture
from lorc_eventlog.events.envelope import Envelope, to_row
from lorc_eventlog.events.row import SMALL_ROW, Row, draft_at, row_bytes
from lorc_eventlog.lifecycle import clock, fork, sigterm
from lorc_eventlog.lifecycle import exit as process_exit  # noqa: F401  before the application's

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.delivery.dispatchers import Dispatchers
    from lorc_eventlog.delivery.spool_only import SpoolOnlyDelivery
    from lorc_eventlog.events.models import Payload


class EventWriter(Waits):
    """Takes envelopes from any thread and delivers them to BigQuery in the background.

    Args:
        bq_client: A ``google.cloud.bigquery.Client``; None makes one in the background, on first
            use (:func:`lorc_eventlog.bigquery.client.open_client`).
        batch_rows: The most rows in one request, at most BigQuery's 50,000.
        flush_interval: Seconds after which a batch is sent although it is not full.
        capacity: The most events in memory, those on their way included.
        capacity_bytes: The most bytes of JSON that they are together, roughly.
        overflow: What a full buffer does to a new event: ``"drop"`` counts and warns, and never
            blocks the application; ``"block"`` waits for room.
        close_timeout: Seconds that :meth:`close` and the exit of the process wait for delivery.
        on_dead_letter: Called with the envelope and BigQuery's reason for each event that
            BigQuery will never take, on a sender thread. Without it, an ERROR is logged.
        spool_dir: A directory that keeps each event from the log call until BigQuery has it.
            Memory then holds ``capacity`` events of them; processes may share the directory.
        spool_max_bytes: The most disk that this process takes; then ``overflow`` decides.
        spool_sync: ``"normal"`` survives the death of the process, ``"full"`` that of the machine
            (each log call then waits for the disk).
        spool_only: Whether events are only written to ``spool_dir``, for ``lorc-eventlog ship`` to
            deliver. The process then has no sender, no client and no connection.
        spool_mode: Who shares the directory, with ``spool_only``: nobody, or with ``"group"`` all
            users of its group.
        deliver_on_sigterm: Whether SIGTERM ends the process in order, delivering first. It sets a
            signal handler, if the process has none and this is its main thread; else it warns.

    Raises:
        RuntimeError: ``EVENTS_BQ_DATASET`` or ``EVENTS_BQ_TABLE`` is not set, or
            ``EVENTS_BQ_SINK`` names no sink.
        ValueError: An option has an invalid value.

    Example:
        Without logging:

            with EventWriter(close_timeout=5) as writer:
                writer.emit("report.sent", {"pages": 3}, source="reports")
    """

    def __init__(
        self,
        bq_client: Client | None = None,
        *,
        batch_rows: int = 500,
        flush_interval: float = 1.0,
        capacity: int = 100_000,
        capacity_bytes: int = 64 * 2**20,
        overflow: Literal["drop", "block"] = "drop",
        close_timeout: float = 10.0,
        on_dead_letter: DeadLetterCallback | None = None,
        spool_dir: str | os.PathLike[str] | None = None,
        spool_max_bytes: int = 2**30,
        spool_sync: Literal["normal", "full"] = "normal",
        spool_only: bool = False,
        spool_mode: Literal["private", "group"] = "private",
        deliver_on_sigterm: bool = False,
    ) -> None:
        check_client(bq_client)
        self._options = WriterOptions(
            batch_rows=batch_rows,
            flush_interval=flush_interval,
            capacity=capacity,
            capacity_bytes=capacity_bytes,
            overflow=overflow,
            close_timeout=close_timeout,
            on_dead_letter=on_dead_letter,
            spool_dir=spool_dir,
            spool_max_bytes=spool_max_bytes,
            spool_sync=spool_sync,
            spool_only=spool_only,
            spool_mode=spool_mode,
            deliver_on_sigterm=deliver_on_sigterm,
        )
        self.close_timeout = close_timeout
        _import_now_what_is_needed_later()
        self._dispatchers = _make_delivery(bq_client, self._options)
        self._sink: Sink | None = None
        self._is_begun = False
        if not capture.is_active():  # else the table need not be known yet
            self._begin()

    def _begin(self) -> None:
        if self._is_begun:
            return
        sink = chosen_sink()
        if sink is None:
            self._dispatchers.begin()
            if self._options.deliver_on_sigterm:
                sigterm.request.make()
        else:
            self._sink = sink
            capture.watch()
        self._is_begun = True

    # In the call

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
        """Build an envelope and submit it; arguments as for ``build_envelope``.

        Raises:
            ValueError: The event is invalid; nothing was submitted.
        """
        ids = (schema_ref, correlation_id, subject_id)
        self.submit_row(draft_at(time.time(), event_type, payload, source, *ids))

    def submit(self, envelope: Envelope) -> None:
        """Take ``envelope`` for delivery. What happens to its payload afterwards is ignored.

        Raises:
            ValueError: The payload cannot be JSON; nothing was submitted.
        """
        self.submit_row(to_row(envelope))

    def submit_row(self, row: Row) -> None:
        """Take ``row`` for delivery, as :meth:`submit` takes an envelope."""
        if capture.in_use and self._is_taken(row):
            return
        if not fork.page[0]:
            fork.restart_if_forked()
        dispatcher = self._dispatchers.current
        inbox = dispatcher.inbox
        rows = inbox.rows
        if len(rows) < inbox.limit and (row["event_id"] == "" or row_bytes(row) <= SMALL_ROW):
            rows.append(row)
            if not inbox.limit:
                dispatcher.notice()
        else:
            self._dispatchers.ready().submit(row)

    def _is_taken(self, row: Row) -> bool:
        if capture.take(row):
            return True
        self._begin()
        if self._sink is None:
            return False
        self._sink(row)
        return True

    # Waiting for delivery

    def flush(self, timeout: float | None = None) -> bool:
        """Send what is buffered and wait until it is settled.

        Args:
            timeout: Seconds to wait at most; None waits for as long as it takes.

        Returns:
            Whether everything submitted before the call is in BigQuery, or was given up and
            reported. False says that ``timeout`` came first; the events stay in the buffer.
        """
        deadline = _deadline(timeout)
        settled = [dispatcher.flush(deadline) for dispatcher in self._dispatchers.all()]
        return all(settled)

    def drain_spool(self, timeout: float | None = None) -> bool:
        """Deliver all that is in ``spool_dir``, but for what other living processes deliver.

        :meth:`stats` tells how far it is, to another thread or between two calls: events that
        dead processes left count as submitted when they are read.

        Args:
            timeout: Seconds to wait at most; None waits for as long as it takes.

        Returns:
            Whether it is all in BigQuery, or was given up and reported. False says that
            ``timeout`` came first, or that the process is ending; the rest stays on disk.

        Raises:
            ValueError: The writer has no ``spool_dir``.
            RuntimeError: ``EVENTS_BQ_SINK`` sends the events of this writer elsewhere.
        """
        if not capture.is_active():
            self._begin()
        _check_drains(self._options, self._sink)
        deadline = _deadline(timeout)
        dispatchers = cast("Dispatchers", self._dispatchers)
        drained = [dispatcher.drain(deadline) for dispatcher in dispatchers.all()]
        return all(drained)

    def close(self) -> None:
        """Flush for at most ``close_timeout`` seconds; then the sender threads end.

        What could not be delivered by then is reported, and still sent as long as the process
        lives. Events that are submitted later are delivered too: the writer starts again.
        """
        for dispatcher in self._dispatchers.all():
            dispatcher.close()

    def stats(self) -> WriterStats:
        """Return the counters of one moment; of several, added, if gevent patched us late."""
        return sum([dispatcher.stats() for dispatcher in self._dispatchers.all()], NO_EVENTS)


def _make_delivery(
    client: Client | None, options: WriterOptions
) -> Dispatchers | SpoolOnlyDelivery:
    if not options.spool_only:
        # Not with `import lorc_eventlog`, which it would slow down, nor later than here: a fork in
        # the middle of an import leaves the child with a module that is locked for ever.
        from lorc_eventlog.bigquery.imports import prepare
        from lorc_eventlog.delivery.dispatchers import Dispatchers

        prepare()
        return Dispatchers(client, options)
    if client is not None:
        msg = "bq_client would have no effect: with spool_only, `lorc-eventlog ship` delivers"
        raise ValueError(msg)
    from lorc_eventlog.delivery.spool_only import SpoolOnlyDelivery

    return SpoolOnlyDelivery(options)


def _check_drains(options: WriterOptions, sink: Sink | None) -> None:
    if options.spool_dir is None:
        msg = "spool_dir is not set: there is nothing to drain"
        raise ValueError(msg)
    if options.spool_only:
        msg = "spool_only is set: `lorc-eventlog ship` delivers what is there"
        raise ValueError(msg)
    if sink is not None:
        msg = f"{SINK_VARIABLE} was not bigquery when the writer was made: it drains no spool"
        raise RuntimeError(msg)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else clock.monotonic() + min(timeout, MAX_SECONDS)


def _import_now_what_is_needed_later() -> None:
    """Import what takes too long for ``import lorc_eventlog``, and must not wait for a log call.

    A fork in the middle of an import would leave the child with a module that is locked for ever.
    """
    import random  # noqa: F401

    import lorc_eventlog.events.plain_values  # noqa: F401
