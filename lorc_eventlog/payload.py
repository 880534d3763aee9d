"""A payload as JSON text: what each Python value becomes, once, at the call.

BigQuery's ``insertAll`` takes a JSON column as JSON *text*. The text is made in the log call, so
what the caller does to the dict afterwards changes nothing. orjson encodes almost every payload,
with :func:`_stand_in` for the types that it does not know; only a payload that it refuses as a
whole takes the slower path through :func:`_encode_slowly`. ``docs/payload.md`` has the table of
every type, and a test for each of its lines.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import repeat
from pathlib import PurePath
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import uuid_utils

MAX_PAYLOAD_BYTES = 10_000_000 - 10_000
"""BigQuery takes no row and no request over 10 MB; the rest of a row needs some of it."""

MOST_BYTES_A_CHARACTER = 12
"""The client sends ASCII, so an emoji takes twelve bytes: ``\\ud83d\\ude00``."""

MAX_NESTING = 500
"""BigQuery refuses JSON that is nested deeper than 500 levels."""

_FITS_FOR_SURE = MAX_PAYLOAD_BYTES // MOST_BYTES_A_CHARACTER

# Of a dataclass, orjson by itself would write what happens to be in the __dict__.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS


def encode_payload(payload: Mapping[Any, Any]) -> str:
    """Encode ``payload`` as the JSON text of one BigQuery JSON value.

    Raises:
        ValueError: ``payload`` is no mapping, holds a cycle, is nested deeper than BigQuery's
            500 levels, or is over BigQuery's 10 MB. The message never quotes the payload.
    """
    if type(payload) is not dict:
        payload = _as_dict(payload)
    try:
        text = orjson.dumps(payload, _stand_in, _OPTIONS).decode()
    except TypeError as refusal:
        cause = refusal.__cause__
        if cause is not None and not isinstance(cause, Exception):
            raise cause from None  # a KeyboardInterrupt, which orjson takes for a bad value
        text = ""
    # Not in the except clause: its errors would carry orjson's, which may quote the payload.
    text = text or _encode_slowly(payload)
    if len(text) > _FITS_FOR_SURE:
        size = wire_size(text)
        if size > MAX_PAYLOAD_BYTES:
            msg = f"payload takes {size:,} bytes in a request: BigQuery takes 10 MB in all"
            raise ValueError(msg)
    return text


def wire_size(text: str) -> int:
    """How many bytes ``text`` takes in a request, as a JSON string in ASCII."""
    return len(json.dumps(text))


def well_formed(text: str) -> str:
    """``text`` with each lone surrogate replaced by U+FFFD: UTF-8 and BigQuery know none."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _as_dict(payload: Any) -> dict[Any, Any]:
    try:
        if issubclass(type(payload), dict):
            return dict(dict.items(payload))  # as orjson reads a subclass
        if isinstance(payload, Mapping):
            return dict(payload)
    except Exception:  # noqa: BLE001  what it says may quote the payload
        msg = f"payload is a {type(payload).__name__} that cannot be read"
        raise ValueError(msg) from None
    msg = f"payload must be a mapping (a dict), not {type(payload).__name__}"
    raise ValueError(msg)


def _stand_in(value: Any) -> Any:  # noqa: PLR0912  one branch a type
    """What to encode in the place of a value that orjson refuses; it may raise anything."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _public_fields(value)
    if isinstance(value, (tuple, deque)):
        return list(value)
    if isinstance(value, (set, frozenset)):
        return _in_order(value)
    if isinstance(value, (Decimal, PurePath, UUID, uuid_utils.UUID)):
        return well_formed(str(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, (date, time)):  # a datetime is a date
        return well_formed(value.isoformat())
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        return _digits(int.__index__(value))
    if isinstance(value, str):
        return well_formed(str.__str__(value))
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (AbstractSet, ValuesView)):
        return list(value)
    numpy = sys.modules.get("numpy")  # a log call is no place to import it
    if numpy and isinstance(value, (numpy.generic, numpy.ndarray)):
        return _without_numpy(value, numpy)
    return _repr(value)


def _public_fields(value: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value)]
    return {
        name: getattr(value, name)
        for name in names
        if not name.startswith("_") and hasattr(value, name)
    }


def _in_order(values: AbstractSet[Any]) -> list[Any]:
    try:
        return sorted(values)
    except Exception:  # noqa: BLE001  of mixed types, or of one without an order
        return sorted(values, key=_repr)


def _digits(number: int) -> str:
    try:
        return str(number)
    except ValueError:  # more digits than sys.set_int_max_str_digits allows
        return hex(number)


def _without_numpy(value: Any, numpy: Any) -> Any:
    if value.dtype.kind in "mM":  # times, whose items would lose their units
        if value.ndim:
            return list(value)
        return None if numpy.isnat(value) else str(value)
    plain = value.tolist()
    return str(value) if type(plain) is type(value) else plain  # a longdouble stays what it is


def _repr(value: Any) -> str:
    try:
        return well_formed(str.__str__(repr(value)))
    except Exception:  # noqa: BLE001  a broken __repr__ must not cost the event
        return well_formed(object.__repr__(value))


class _Container(NamedTuple):
    """An array or an object in the midst of being written."""

    value: Any  # kept alive, so that no other takes its id
    members: Iterator[tuple[str, Any]]  # the key, with its colon, and the value
    end: str


def _encode_slowly(payload: dict[Any, Any]) -> str:
    """Encode what orjson refuses as a whole: odd keys, odd text, large integers, deep nesting.

    Without recursion: 500 levels of it would overflow the stack of a caller that is deep itself.
    """
    text = ["{"]
    around = {id(payload): _container(payload, payload)}  # outermost first
    while around:
        container = next(reversed(around.values()))
        for key, value in container.members:
            plain = _plain(value)
            if isinstance(plain, str):
                text.append(f"{key}{plain},")
                continue
            if id(value) in around:
                msg = "payload holds a cycle: a container that contains itself"
                raise ValueError(msg)
            if len(around) == MAX_NESTING:
                msg = f"payload is nested too deeply: BigQuery takes {MAX_NESTING} levels"
                raise ValueError(msg)
            text.append(key + ("{" if isinstance(plain, dict) else "["))
            around[id(value)] = _container(value, plain)
            break
        else:
            text[-1] = f"{text[-1].removesuffix(',')}{container.end},"
            around.popitem()
    return "".join(text).removesuffix(",")


def _container(value: Any, plain: dict[Any, Any] | list[Any]) -> _Container:
    # Copied at once: another thread may change it.
    if isinstance(plain, dict):
        by_text = {_key(key): member for key, member in list(dict.items(plain))}
        return _Container(value, iter(by_text.items()), "}")
    return _Container(value, zip(repeat(""), list.copy(plain), strict=False), "]")


def _plain(value: Any) -> dict[Any, Any] | list[Any] | str:
    """``value`` as a dict or a list, or the JSON text of what is neither."""
    try:
        while True:
            kind = type(value)  # unlike __class__, it cannot pretend
            if issubclass(kind, Enum):
                value = value.value
            elif issubclass(kind, (dict, list)):
                container: dict[Any, Any] | list[Any] = value
                return container
            else:
                try:
                    return orjson.dumps(value, None, _OPTIONS).decode()
                except TypeError:
                    value = _stand_in(value)
    except Exception:  # noqa: BLE001  an object that cannot be read must not cost the event
        return orjson.dumps(_repr(value)).decode()


def _key(key: Any) -> str:
    """A key, with its colon: the text that it would have as a value, of a container the repr."""
    plain = _plain(key)
    if not isinstance(plain, str):
        plain = orjson.dumps(_repr(key)).decode()
    return f"{plain}:" if plain.startswith('"') else f'"{plain}":'
