"""The adapter for structlog: an event dict becomes an envelope."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Unpack

from lorc_eventlog.adapters.base import Adapter
from lorc_eventlog.adapters.records import OF_STRUCTLOG, others, place_of, place_of_call
from lorc_eventlog.adapters.redaction import LINE_OF_STRUCTLOG, redact
from lorc_eventlog.delivery.options import check_flag
from lorc_eventlog.diagnostics import is_about_delivery, loss, say
from lorc_eventlog.events.row import draft_at

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.adapters.base import WriterKeywords
    from lorc_eventlog.delivery.synchronous import ForegroundWriter
    from lorc_eventlog.delivery.writer import EventWriter


class BigQueryEventProcessor(Adapter):
    """Sends every event dict that carries ``event_type`` to BigQuery, and returns it unchanged.

    Put it into the chain after ``merge_contextvars`` and before the renderer. It reads
    ``event_type``, ``source``, ``payload``, ``schema_ref``, ``correlation_id`` and ``subject_id``;
    None is treated as unset. Without a ``payload``, it is everything else that is bound to the
    event, its message (``event``) included, without what structlog puts there for itself.

    Args:
        bq_client: A ``google.cloud.bigquery.Client``; None makes one on first use.
        source: The ``source`` of lines that carry none.
        background: True delivers by threads; False sends each event in the call.
        writer: An ``EventWriter`` to share with other adapters.
        redact_line: True takes ``payload`` and ``subject_id``, and all that is bound to an event
            without ``payload``, out of the line that the processors after this one see.
        writer_options: Options of :class:`~lorc_eventlog.EventWriter`.

    Attributes, Raises: as for :class:`~lorc_eventlog.BigQueryEventHandler`.

    Example:
        Before the renderer:

            structlog.configure(
                processors=[
                    structlog.contextvars.merge_contextvars,
                    BigQueryEventProcessor(source="questionnaires", redact_line=True),
                    structlog.processors.JSONRenderer(),
                ]
            )
            structlog.get_logger().info("answered", event_type="questionnaire.answered", score=7)
    """

    own_options = (*Adapter.own_options, "redact_line")

    def __init__(
        self,
        bq_client: Client | None = None,
        *,
        source: str | None = None,
        background: bool = True,
        writer: EventWriter | ForegroundWriter | None = None,
        redact_line: bool = False,
        **writer_options: Unpack[WriterKeywords],
    ) -> None:
        check_flag("redact_line", redact_line)
        super().__init__(
            bq_client, source=source, background=background, writer=writer, **writer_options
        )
        self._redact_line = redact_line

    _is_misplaced = False

    def __call__(
        self,
        logger: Any,  # noqa: ARG002
        method_name: str,  # noqa: ARG002
        event_dict: MutableMapping[str, Any],
    ) -> MutableMapping[str, Any]:
        """Submit ``event_dict`` if it is an event; a bad one is reported and never raises."""
        event_type = None
        try:
            event_type = event_dict.get("event_type")
            if event_type is not None and not _is_about_delivery(event_dict.get("_record")):
                payload = event_dict.get("payload")
                source = event_dict.get("source")
                self.writer.submit_row(
                    draft_at(
                        time.time(),
                        event_type,
                        others(event_dict, OF_STRUCTLOG) if payload is None else payload,
                        self.source if source is None else source,
                        event_dict.get("schema_ref"),
                        event_dict.get("correlation_id"),
                        event_dict.get("subject_id"),
                    )
                )
        except Exception as error:  # noqa: BLE001  a log call never raises
            if issubclass(type(event_dict), Mapping):
                say(logging.ERROR, "%s", loss(event_type, error, _place(event_dict)))
            else:
                self._say_misplaced(event_dict)
        return _redacted(event_dict) if self._redact_line else event_dict

    def _say_misplaced(self, line: object) -> None:
        if not self._is_misplaced:
            self._is_misplaced = True  # first, because what is said may come by here
            say(
                logging.ERROR,
                "no event is recorded: BigQueryEventProcessor gets lines that are rendered (%s): "
                "put the processor before the renderer",
                type(line).__name__,
            )


def _is_about_delivery(record: Any) -> bool:
    # ProcessorFormatter adds the record of a line that was logged by the standard library.
    return record is not None and is_about_delivery(record)


def _place(event_dict: MutableMapping[str, Any]) -> str:
    record = dict.get(event_dict, "_record") if isinstance(event_dict, dict) else None
    return place_of(record) if isinstance(record, logging.LogRecord) else place_of_call()


def _redacted(line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if not issubclass(type(line), Mapping):
        return line  # it is rendered already, which the processor has reported
    try:
        return redact(line, LINE_OF_STRUCTLOG, bound_is_payload=True)
    except Exception:  # noqa: BLE001  a log call never raises
        return {"event": "a line that cannot be redacted"}
