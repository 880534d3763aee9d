"""The adapter for the standard library: a log record becomes an envelope."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from typing import TYPE_CHECKING, Any, Unpack

from lorc_eventlog.adapters.base import Adapter
from lorc_eventlog.adapters.records import OF_LOGGING, OF_STRUCTLOG, inside, others, place_of
from lorc_eventlog.adapters.redaction import HIDDEN, revealed
from lorc_eventlog.delivery.options import check_flag
from lorc_eventlog.diagnostics import is_about_delivery, loss, say_on_stderr
from lorc_eventlog.events.row import draft_at
from lorc_eventlog.lifecycle.signals import background_thread

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.adapters.base import WriterKeywords
    from lorc_eventlog.delivery.synchronous import ForegroundWriter
    from lorc_eventlog.delivery.writer import EventWriter


class BigQueryEventHandler(Adapter, logging.Handler):
    """Sends every record that carries ``event_type`` to BigQuery; others are ignored.

    The record's ``event_type``, ``source``, ``payload``, ``schema_ref``, ``correlation_id`` and
    ``subject_id`` are read, as ``extra=`` or a ``logging.Filter`` sets them. None is treated as
    unset; an unset payload is ``{}``. ``created_at`` is the record's own time. What loguru and
    structlog put into a record is read, too: ``logger.add(handler)``, ``wrap_for_formatter``.

    The handler has no lock, unlike other handlers: the writer does its own locking, so a log call
    never waits for that of another thread.

    Args:
        bq_client: A ``google.cloud.bigquery.Client``; None makes one on first use.
        level: As for every handler.
        source: The ``source`` of records that carry none.
        background: True delivers by threads; False sends each event in the call.
        writer: An ``EventWriter`` to share with other adapters.
        payload_from_extra: True makes the payload of a record that has none of its other extras.
        writer_options: Options of :class:`~lorc_eventlog.EventWriter`; each a JSON value, but for
            ``on_dead_letter``, which a dictConfig names by ``ext://``.

    Attributes:
        writer: Its ``EventWriter``, whose ``stats()`` tell what became of the events; with
            ``background=False`` one that has the same methods and no buffer.

    Raises:
        RuntimeError: ``EVENTS_BQ_DATASET`` or ``EVENTS_BQ_TABLE`` is not set.
        ValueError: An option has an invalid value.
        TypeError: There is no such option.

    Example:
        For all loggers of a program:

            logging.basicConfig(level=logging.INFO)
            logging.getLogger().addHandler(BigQueryEventHandler(source="gmail_ingester"))
            logging.info("received", extra={"event_type": "email.received", "payload": {"size": 3}})
    """

    own_options = (*Adapter.own_options, "level", "payload_from_extra")

    def __init__(
        self,
        bq_client: Client | None = None,
        level: int | str = logging.NOTSET,
        *,
        source: str | None = None,
        background: bool = True,
        writer: EventWriter | ForegroundWriter | None = None,
        payload_from_extra: bool = False,
        **writer_options: Unpack[WriterKeywords],
    ) -> None:
        check_flag("payload_from_extra", payload_from_extra)
        Adapter.__init__(
            self, bq_client, source=source, background=background, writer=writer, **writer_options
        )
        logging.Handler.__init__(self, level)
        self._payload_from_extra = payload_from_extra

    def createLock(self) -> None:  # noqa: N802  logging's name
        """Create no handler lock: the writer does its own locking."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool | logging.LogRecord:  # type: ignore[override]
        """Filter and emit ``record``, without a lock around it."""
        if self.filters:
            verdict: Any = self.filter(record)
            if not verdict:
                return False
            # Filters may replace the record since Python 3.12.
            record = verdict if isinstance(verdict, logging.LogRecord) else record
        self.emit(record)
        return record

    def emit(self, record: logging.LogRecord) -> None:
        """Submit ``record`` as an event; what goes wrong goes to :meth:`handleError`."""
        fields = record.__dict__
        known = OF_LOGGING
        try:
            event_type = fields.get("event_type")
            if event_type is None:
                if "extra" not in fields and type(record.msg) is str:
                    return
                found = inside(revealed(record))
                if found is None:
                    return
                fields, known = found
                event_type = fields["event_type"]
            if is_about_delivery(record):
                return
            payload = fields.get("payload")
            if payload is None:
                if HIDDEN in fields and (shown := revealed(record)) is not record:
                    self.emit(shown)
                    return
                from_others = self._payload_from_extra or known is OF_STRUCTLOG
                payload = others(fields, known) if from_others else {}
            source = fields.get("source")
            self.writer.submit_row(
                draft_at(
                    record.created,
                    event_type,
                    payload,
                    self.source if source is None else source,
                    fields.get("schema_ref"),
                    fields.get("correlation_id"),
                    fields.get("subject_id"),
                )
            )
        except Exception:  # noqa: BLE001  a log call never raises
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Report on stderr what became of ``record``, if ``logging.raiseExceptions`` is set.

        Unlike the inherited method it prints neither the message nor its arguments, which may
        hold what the payload holds.
        """
        if logging.raiseExceptions:
            fields, _ = inside(record) or (record.__dict__, None)
            event_type = fields.get("event_type")
            say_on_stderr(loss(event_type, sys.exc_info()[1], place_of(record)))

    def flush(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        """Send what is buffered and wait until it is settled, as every adapter does.

        While ``dictConfig`` replaces the handler it does not wait, and tells how things stand.
        """
        return Adapter.flush(self, 0.0 if _holds_loggings_lock() else timeout)

    def close(self) -> None:
        """Flush for at most ``close_timeout`` seconds. What is logged later is still delivered.

        While ``dictConfig`` replaces the handler it does not wait; the rest is sent meanwhile.
        """
        if _holds_loggings_lock():
            # No thread can be started at exit, or if there are too many. What is left is sent then
            # for as long as the process lives, as after a close that did not wait long enough.
            with contextlib.suppress(RuntimeError):
                background_thread(functools.partial(Adapter.close, self)).start()
        else:
            Adapter.close(self)
        logging.Handler.close(self)


def _holds_loggings_lock() -> bool:
    """Whether this thread is inside ``dictConfig`` or ``fileConfig``, which close handlers.

    They hold a lock that senders need for a first log call or an import, so that to wait for a
    sender would be to wait for the timeout.
    """
    is_owned = getattr(getattr(logging, "_lock", None), "_is_owned", None)
    return is_owned is not None and is_owned()
