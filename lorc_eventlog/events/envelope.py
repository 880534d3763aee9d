"""The core: one envelope.

The principles, which every other module keeps:

* Callers choose ``event_type`` and ``payload``; nothing here knows what they mean.
* No schema lookup (``schema_ref`` is informational), no policy, no validation of payloads.
* BigQuery is the only store. There is no second copy elsewhere.
* An envelope has exactly eight keys, and it holds the payload as a dict. Only the *row* that goes
  over the wire holds the payload as JSON text, because that is how ``insertAll`` takes a JSON
  column.
* No message of this package ever holds a payload or a ``subject_id``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypedDict, cast

import orjson

from lorc_eventlog.events.payload import as_dict, encode_payload
from lorc_eventlog.events.row import Row, finish, row_at
from lorc_eventlog.events.text import as_name, as_text

if TYPE_CHECKING:
    from lorc_eventlog.events.models import Payload


class Envelope(TypedDict):
    """One event, as everyone sees it: exactly these keys, in this order.

    Example:
        What a callback for dead letters gets:

            def keep(envelope: Envelope, reason: str) -> None:
                print(envelope["event_id"], envelope["payload"], reason)
    """

    event_id: str
    event_type: str
    source: str
    schema_ref: str | None
    created_at: str
    correlation_id: str | None
    subject_id: str | None
    payload: dict[str, Any]


def build_envelope(
    *,
    event_type: str,
    payload: Payload,
    source: str,
    schema_ref: str | None = None,
    correlation_id: str | None = None,
    subject_id: str | None = None,
) -> Envelope:
    """Make the envelope of one event, with a new UUID4 and the time now.

    Args:
        event_type: What happened, such as ``email.received``. Not empty.
        payload: The event's own data: a mapping, or an object with named fields (a pydantic
            model, an attrs class, a msgspec Struct, a dataclass). The envelope holds a copy of the
            outermost dict.
        source: Who says so, such as ``gmail_ingester``. Not empty.
        schema_ref: The name of the payload's schema, such as ``email.v1``; never looked up.
        correlation_id: Ties the events of one trace together.
        subject_id: Who the event is about. Never appears in a diagnostic.

    Raises:
        ValueError: ``event_type`` or ``source`` is no non-empty string, or the payload is
            neither a mapping nor an object with fields, or it cannot be JSON
            (:func:`~lorc_eventlog.events.payload.encode_payload`).

    Example:
        The payload may be any mapping:

            envelope = build_envelope(
                event_type="email.received", payload={"size": 3}, source="gmail_ingester"
            )
    """
    fields = as_dict(payload)
    row = row_at(time.time(), event_type, fields, source, schema_ref, correlation_id, subject_id)
    return _with_payload(row, dict(fields))


def to_row(envelope: Envelope) -> Row:
    """Encode ``envelope`` for the wire; raises ValueError if it is none."""
    missing = [key for key in Envelope.__annotations__ if key not in envelope]
    if missing:
        msg = f"the envelope lacks {', '.join(missing)}"
        raise ValueError(msg)
    schema_ref = envelope["schema_ref"]
    correlation_id = envelope["correlation_id"]
    subject_id = envelope["subject_id"]
    return {
        "event_id": as_name("event_id", envelope["event_id"]),
        "event_type": as_name("event_type", envelope["event_type"]),
        "source": as_name("source", envelope["source"]),
        "schema_ref": None if schema_ref is None else as_text(schema_ref),
        "created_at": as_name("created_at", envelope["created_at"]),
        "correlation_id": None if correlation_id is None else as_text(correlation_id),
        "subject_id": None if subject_id is None else as_text(subject_id),
        "payload": encode_payload(envelope["payload"]),
    }


def to_envelope(row: Row) -> Envelope:
    """Decode a row that BigQuery refused, for those who handle dead letters."""
    finish(row)
    return _with_payload(row, orjson.loads(row["payload"]))


def _with_payload(row: Row, payload: dict[str, Any]) -> Envelope:
    envelope: Any = {**row, "payload": payload}
    return cast("Envelope", envelope)
