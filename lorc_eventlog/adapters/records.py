"""Where the fields of an event are: in a log record, an event dict, or a dict inside a record."""

from __future__ import annotations

import logging
import sys
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


def place_of(record: logging.LogRecord) -> str:
    """Say where ``record`` was logged, for a message; raises nothing, whatever it holds."""
    try:
        return f" of logger {record.name!r} ({record.pathname}:{record.lineno})"
    except Exception:  # noqa: BLE001  whatever a filter made of the record
        return ""


def place_of_call() -> str:
    """Say where the innermost call outside of logging stands, for a message."""
    frame = sys._getframe()  # noqa: SLF001  as logging finds it
    while frame.f_back is not None and _is_of_logging(frame.f_globals.get("__name__")):
        frame = frame.f_back
    return f" ({frame.f_code.co_filename}:{frame.f_lineno})"


def _is_of_logging(module: object) -> bool:
    name = str(module).partition(".")[0]
    return name in ("logging", "lorc_eventlog", "structlog")
