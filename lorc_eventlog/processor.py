"""The adapter for structlog: an event dict becomes an envelope."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from lorc_eventlog.adapter import Adapter
from lorc_eventlog.diagnostics import is_about_delivery
from lorc_eventlog.diagnostics import logger as diagnostics
from lorc_eventlog.event_client import Envelope, draft_at

_NOT_PAYLOAD = frozenset(Envelope.__annotations__) | {
    "level",
    "timestamp",
    "logger",
    "logger_name",
    "exc_info",
    "stack_info",
}


class BigQueryEventProcessor(Adapter):
    """Sends every event dict that carries ``event_type`` to BigQuery, and returns it unchanged.

    Put it into the chain after ``merge_contextvars`` and before the renderer. It reads
    ``event_type``, ``source``, ``payload``, ``schema_ref``, ``correlation_id`` and ``subject_id``.
    Without a ``payload`` key, the payload is everything else that is bound to the event, its
    message (``event``) included, without what structlog puts there for itself.

    Args, Raises: as for :class:`~lorc_eventlog.BigQueryEventHandler`, without ``level``.
    """

    def __call__(
        self,
        logger: Any,  # noqa: ARG002
        method_name: str,  # noqa: ARG002
        event_dict: MutableMapping[str, Any],
    ) -> MutableMapping[str, Any]:
        """Submit ``event_dict`` if it is an event; a bad one is reported and never raises."""
        event_type = event_dict.get("event_type")
        if event_type is not None and not _is_about_delivery(event_dict.get("_record")):
            try:
                self.writer.submit_row(
                    draft_at(
                        time.time(),
                        event_type,
                        event_dict["payload"] if "payload" in event_dict else _bound(event_dict),
                        event_dict.get("source") or self.source,
                        event_dict.get("schema_ref"),
                        event_dict.get("correlation_id"),
                        event_dict.get("subject_id"),
                    )
                )
            except Exception as error:  # noqa: BLE001  a log call never raises
                what = f"event {event_type!r}" if isinstance(event_type, str) else "an event"
                diagnostics.error(  # noqa: TRY400  no traceback: it may show values
                    "%s is not recorded: %s: %s", what, type(error).__name__, error
                )
        return event_dict


def _is_about_delivery(record: Any) -> bool:
    # ProcessorFormatter adds the record of a line that was logged by the standard library.
    return record is not None and is_about_delivery(record)


def _bound(event_dict: MutableMapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in event_dict.items()
        if key not in _NOT_PAYLOAD and not str(key).startswith("_")
    }
