"""A payload as JSON text: what each Python value becomes, once, at the call.

BigQuery's ``insertAll`` takes a JSON column as JSON *text*. The text is made in the log call, so
what the caller does to the dict afterwards changes nothing. orjson encodes a payload of plain JSON
values as it is. One that it refuses is copied into plain JSON values first, by
:mod:`lorc_eventlog.events.plain_values`. orjson's own way, ``default=``, is not taken: a payload
that changes while orjson calls back, in another thread or in a ``__repr__``, crashes the process.
``docs/reference/payload.md`` has the table of every type, and a test for each of its lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import orjson

from lorc_eventlog.events.models import fields_of, from_multi_dict, has_fields, is_multi_dict

MAX_PAYLOAD_BYTES = 10_000_000 - 10_000
"""BigQuery takes no row and no request over 10 MB; the rest of a row needs some of it."""

MOST_BYTES_A_CHARACTER = 12
"""The client sends ASCII, so an emoji takes twelve bytes: ``\\ud83d\\ude00``."""

_FITS_FOR_SURE = MAX_PAYLOAD_BYTES // MOST_BYTES_A_CHARACTER

# orjson by itself would write whatever is in the __dict__ of a dataclass, would round the offset
# of a datetime to minutes, crashes the process if tzinfo.utcoffset() raises, and shows a subclass
# of dict as it is stored, which for a multi-dict is a list for every key.
_OPTIONS = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


def encode_payload(payload: object) -> str:
    """Encode ``payload``, a mapping or an object with fields, as the JSON text of one JSON value.

    Raises:
        ValueError: ``payload`` is neither, holds a cycle, is nested deeper than BigQuery's
            500 levels, or is over BigQuery's 10 MB. The message never quotes the payload.
    """
    if type(payload) is not dict:
        payload = as_dict(payload)
    try:
        text = orjson.dumps(payload, None, _OPTIONS).decode()
    except TypeError:  # an orjson.JSONEncodeError
        from lorc_eventlog.events.plain_values import plain_copy

        text = orjson.dumps(plain_copy(payload)).decode()
    if len(text) > _FITS_FOR_SURE:
        size = wire_size(text)
        if size > MAX_PAYLOAD_BYTES:
            msg = f"payload takes {size:,} bytes in a request: BigQuery takes 10 MB in all"
            raise ValueError(msg)
    return text


def wire_size(text: str) -> int:
    """How many bytes ``text`` takes in a request, as a JSON string in ASCII."""
    return len(json.dumps(text))


def as_dict(payload: Any) -> dict[Any, Any]:
    """Return ``payload`` as a dict: itself if it is one, else its items or its fields.

    Raises:
        ValueError: ``payload`` is neither a mapping nor an object with named fields.
    """
    kind = type(payload)
    if kind is dict:
        return cast("dict[Any, Any]", payload)
    try:
        if is_multi_dict(kind):
            return from_multi_dict(payload)
        if issubclass(kind, dict):
            return dict.copy(payload)  # whatever the subclass says of itself
        if has_fields(kind):
            fields = fields_of(payload)
            if type(fields) is dict:
                return fields
        elif isinstance(payload, Mapping):
            return dict(payload)
    except Exception:  # noqa: BLE001  what it says may quote the payload
        msg = f"payload is a {kind.__name__} that cannot be read"
        raise ValueError(msg) from None
    msg = f"payload must be a mapping (a dict), not {kind.__name__}"
    raise ValueError(msg)
