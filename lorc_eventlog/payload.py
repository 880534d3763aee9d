"""A payload as JSON text: what each Python value becomes, once, at the call.

BigQuery's ``insertAll`` takes a JSON column as JSON *text*. The text is made in the log call, so
what the caller does to the dict afterwards changes nothing. orjson encodes almost every payload
in well under a microsecond; only what it refuses takes the slower path through :func:`_plain`.
``docs/payload.md`` has the table of every type, and a test for each of its lines.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping, Set
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

import orjson

MAX_PAYLOAD_BYTES = 10_000_000 - 10_000
"""BigQuery takes no row and no request over 10 MB; the rest of a row needs some of it."""

MOST_BYTES_A_CHARACTER = 6
"""The client sends ASCII, so one character takes up to six bytes: ``\\u00e9``."""

MAX_NESTING = 500
"""BigQuery refuses JSON that is nested deeper than 500 levels."""

_MAX_INTEGER = 2**64 - 1
_MIN_INTEGER = -(2**63)


def encode_payload(payload: Mapping[Any, Any]) -> str:
    """Encode ``payload`` as the JSON text of one BigQuery JSON value.

    Raises:
        ValueError: ``payload`` is no mapping, holds a cycle, is nested deeper than BigQuery's
            500 levels, or is over BigQuery's 10 MB. The message never quotes the payload.
    """
    if not isinstance(payload, Mapping):
        msg = f"payload must be a mapping (a dict), not {type(payload).__name__}"
        raise ValueError(msg)  # noqa: TRY004  the public contract: one exception for a bad event
    try:
        text = orjson.dumps(payload, _fallback, orjson.OPT_SERIALIZE_NUMPY).decode()
    except TypeError:  # orjson.JSONEncodeError is a TypeError
        text = _encode_slowly(payload)
    if len(text) > MAX_PAYLOAD_BYTES // MOST_BYTES_A_CHARACTER:
        size = wire_size(text)
        if size > MAX_PAYLOAD_BYTES:
            msg = f"payload takes {size:,} bytes in a request: BigQuery takes 10 MB in all"
            raise ValueError(msg)
    return text


def _encode_slowly(payload: Mapping[Any, Any]) -> str:
    try:
        plain = _plain(payload, ())
        text = json.dumps(plain, ensure_ascii=False, check_circular=False, separators=(",", ":"))
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(plain, dict):
        msg = f"payload is a {type(payload).__name__} that cannot be read as a mapping"
        raise ValueError(msg)
    return text


def wire_size(text: str) -> int:
    """How many bytes ``text`` takes in a request, as a JSON string in ASCII."""
    return len(json.dumps(text))


def _too_deep() -> ValueError:
    return ValueError(f"payload is nested too deeply: BigQuery takes {MAX_NESTING} levels")


def _fallback(value: Any) -> Any:
    """What orjson may put in the place of a value that it does not know."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Set):
        return _in_order(value)
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, (Decimal, PurePath, UUID)):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if _is_numpy(value):
        item = value.item()
        return _repr(item) if _is_numpy(item) else item  # a longdouble is its own item
    return _repr(value)


def _is_numpy(value: Any) -> bool:
    return type(value).__module__ == "numpy"


def _repr(value: Any) -> str:
    try:
        return well_formed(repr(value))
    except Exception:  # noqa: BLE001  a broken __repr__ must not cost the event
        return f"<{type(value).__name__}>"


def _in_order(values: Set[Any]) -> list[Any]:
    try:
        return sorted(values)
    except Exception:  # noqa: BLE001  elements that have no order keep the set's own
        return list(values)


def well_formed(text: str) -> str:
    """``text`` with each lone surrogate replaced by U+FFFD: UTF-8 and BigQuery know none."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(value: Any, path: tuple[int, ...]) -> Any:
    """``value`` out of str, int, float, bool, None, list and dict only, as orjson would have it.

    ``path`` holds the identities of the containers around ``value``, to find cycles.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, Enum):
        return _plain(value.value, path)
    if isinstance(value, str):
        return well_formed(str.__str__(value))
    if isinstance(value, int):
        number = int.__index__(value)
        return number if _MIN_INTEGER <= number <= _MAX_INTEGER else str(number)
    if isinstance(value, float):
        return float.__float__(value) if math.isfinite(value) else None
    try:
        children = _children(value)
    except Exception:  # noqa: BLE001  a container that cannot be read must not cost the event
        return _repr(value)
    if children is None:
        return _plain_scalar(value, path)
    if id(value) in path:
        msg = "payload holds a cycle: a container that contains itself"
        raise ValueError(msg)
    if len(path) >= MAX_NESTING:
        raise _too_deep()
    path = (*path, id(value))
    if isinstance(children, list):
        return [_plain(child, path) for child in children]
    return {_key(key): _plain(child, path) for key, child in children.items()}


def _children(value: Any) -> list[Any] | dict[Any, Any] | None:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, Set):
        return _in_order(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if not field.name.startswith("_")  # as orjson does
        }
    if _is_numpy(value) and getattr(value, "shape", ()) != ():
        elements: list[Any] = value.tolist()
        return elements
    return None


def _plain_scalar(value: Any, path: tuple[int, ...]) -> Any:
    scalar = _scalar(value)
    return scalar if isinstance(scalar, str) else _plain(scalar, path)


def _key(key: Any) -> str:
    """A key that is no string becomes the text that it would have as a value."""
    plain = _repr(key) if _children(key) is not None else _plain(key, ())
    return plain if isinstance(plain, str) else json.dumps(plain)
