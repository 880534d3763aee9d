"""The adapter for structlog: an event dict becomes an envelope."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from lorc_eventlog.adapters.base import Adapter
from lorc_eventlog.adapters.records import OF_STRUCTLOG, others
from lorc_eventlog.diagnostics import is_about_delivery, loss, say
from lorc_eventlog.events.row import draft_at


class BigQueryEventProcessor(Adapter):
    """Sends every event dict that carries ``event_type`` to BigQuery, and returns it unchanged.

    Put it into the chain after ``merge_contextvars`` and before the renderer. It reads
    ``event_type``, ``source``, ``payload``, ``schema_ref``, ``correlation_id`` and ``subject_id``;
    None is as good as missing. Without a ``payload``, it is everything else that is bound to the
    event, its message (``event``) included, without what structlog puts there for itself.

    Args, Attributes, Raises: as for :class:`~lorc_eventlog.BigQueryEventHandler`, but ``level``.
    """

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
                say(logging.ERROR, "%s", loss(event_type, error))
            else:
                self._say_misplaced(event_dict)
        return event_dict

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
