"""Where the fields of an event are: in a log record, an event dict, or a dict inside a record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lorc_eventlog.events.envelope import Envelope

ENVELOPE = frozenset(Envelope.__annotations__)

OF_STRUCTLOG = ENVELOPE | {
    "level",
    "timestamp",
    "logger",
    "logger_name",
    "exc_info",
    "stack_info",
}
"""What an event dict holds that is not bound by the caller."""

# Not by makeLogRecord(): an application's own factory may add what it wants in its payloads.
OF_LOGGING = ENVELOPE | vars(logging.LogRecord("", 0, "", 0, "", (), None)).keys()
# Python 3.11 has no task name, and a Formatter adds the others.
OF_LOGGING |= {"asctime", "message", "taskName"}
"""What a log record holds that is not the caller's ``extra``."""


def others(fields: Mapping[Any, Any], known: frozenset[str]) -> dict[Any, Any]:
    """Return what ``fields`` hold beside what is ``known`` or begins with an underscore."""
    return {
        key: value
        for key, value in fields.items()
        if key not in known and not (isinstance(key, str) and key.startswith("_"))
    }


def inside(record: logging.LogRecord) -> tuple[dict[Any, Any], frozenset[str]] | None:
    """Find an event in what loguru or structlog put into ``record``; None if there is none.

    What a filter sets on the record itself comes first, as it does for other records.

    Returns:
        A dict with the event's fields, and those of its keys that are no payload.
    """
    attributes = record.__dict__
    for name, known in (("extra", ENVELOPE), ("msg", OF_STRUCTLOG)):
        found = attributes.get(name)
        if isinstance(found, dict) and dict.get(found, "event_type") is not None:
            fields = dict.copy(found)
            fields |= {key: attributes[key] for key in ENVELOPE if attributes.get(key) is not None}
            return fields, known
    return None
