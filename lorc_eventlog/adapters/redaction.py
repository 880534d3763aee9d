"""Keeps health data out of what is logged beside us: payloads and subject_ids of other lines."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Self

from lorc_eventlog.adapters.records import ENVELOPE, OF_LOGGING, OF_STRUCTLOG, others

LINE_OF_STRUCTLOG = OF_STRUCTLOG | {"event"}
"""What stays in a line of structlog whose payload is what is bound: its message, too."""

_PRIVATE = ("payload", "subject_id")
HIDDEN = "_lorc_eventlog_hidden"
"""The attribute of a record that keeps what a filter took out of it."""


class RedactionFilter(logging.Filter):
    """Hides ``payload`` and ``subject_id`` of every record from the handler that it is added to.

    For handlers that print a record's extras, such as one with a JSON formatter.

    The record loses both attributes. :class:`~lorc_eventlog.BigQueryEventHandler` still sees them,
    wherever it stands. Other handlers do, too, unless they come after this one on Python 3.11,
    where a filter cannot replace a record and changes it instead.

    A record that is pickled, as by ``SocketHandler``, carries what is hidden to the process that
    reads it: that may be the one that delivers.

    Args:
        payload_from_extra: As for the handler: True hides all other extras of an event as well.

    Example:
        On the handler that prints:

            console = logging.StreamHandler()
            console.addFilter(RedactionFilter())
    """

    _replaces = sys.version_info >= (3, 12)

    def __init__(self, *, payload_from_extra: bool = False) -> None:
        super().__init__()
        self._payload_from_extra = payload_from_extra

    def filter(self, record: logging.LogRecord) -> logging.LogRecord:  # type: ignore[override]
        """Return a copy of ``record`` without what is private."""
        if self._replaces:
            record = copy.copy(record)
        attributes = record.__dict__
        hidden = _Hidden("hidden", attributes.get(HIDDEN))
        from_extra = self._payload_from_extra
        for name, known, bound_is_payload in (
            ("extra", ENVELOPE, from_extra),
            ("msg", LINE_OF_STRUCTLOG, True),
        ):
            inside = attributes.get(name)
            if isinstance(inside, dict):
                hidden.fields.setdefault(name, inside)
                fields = dict.copy(inside)
                attributes[name] = redact(fields, known, bound_is_payload=bound_is_payload)
                if name == "msg":
                    attributes.pop("message", None)  # its text, made by an earlier handler
        kept = redact(attributes, OF_LOGGING, bound_is_payload=from_extra)
        for name in attributes.keys() - kept.keys():
            hidden.fields.setdefault(name, attributes.pop(name))
        if hidden.fields:
            attributes[HIDDEN] = hidden
        return record


class _Hidden(str):
    """What a filter hid in a record, under a name that formatters pass over.

    A ``str``, so that one which does not prints this word.
    """

    __slots__ = ("fields",)

    fields: dict[str, Any]

    def __new__(cls, text: str, earlier: Any = None) -> Self:
        """Start from what a filter before this one hid."""
        made = super().__new__(cls, text)
        made.fields = dict(earlier.fields) if isinstance(earlier, _Hidden) else {}
        return made

    def __reduce__(self) -> tuple[Callable[..., _Hidden], tuple[str, dict[str, Any]]]:
        """Pickle what is hidden, too: a listener in another process may be the one that delivers.

        By hand, because ``SocketHandler`` pickles by protocol 1, which knows no ``__slots__``.
        """
        return _unpickled, (str(self), self.fields)


def _unpickled(text: str, fields: dict[str, Any]) -> _Hidden:
    made = _Hidden(text)
    made.fields = fields
    return made


def revealed(record: logging.LogRecord) -> logging.LogRecord:
    """Return ``record`` as it was before a :class:`RedactionFilter` saw it."""
    hidden = record.__dict__.get(HIDDEN)
    if not isinstance(hidden, _Hidden):
        return record
    record = copy.copy(record)
    del record.__dict__[HIDDEN]
    record.__dict__.update(hidden.fields)
    return record


def redact(
    fields: Mapping[str, Any], known: frozenset[str], *, bound_is_payload: bool
) -> dict[str, Any]:
    """Return ``fields`` without payload and subject_id.

    Args:
        fields: What a line holds.
        known: The keys that are no payload.
        bound_is_payload: Whether the other keys of an event without payload are its payload.
    """
    kept = {key: value for key, value in fields.items() if key not in _PRIVATE}
    is_event = fields.get("event_type") is not None
    if bound_is_payload and is_event and fields.get("payload") is None:
        private = others(kept, known)
        kept = {key: value for key, value in kept.items() if key not in private}
    return kept
