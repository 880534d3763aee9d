"""Python values as plain JSON values: the slower path of :mod:`lorc_eventlog.events.payload`.

A module of its own, imported when a payload first needs it: what it imports in turn would take a
sixth of the time of ``import lorc_eventlog``.
"""

from __future__ import annotations

import base64
import sys
from collections import deque
from collections.abc import Callable, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

import orjson

from lorc_eventlog.events.models import fields_of, from_multi_dict, has_fields, is_multi_dict
from lorc_eventlog.events.text import as_digits, as_repr, well_formed

MAX_NESTING = 500
"""BigQuery refuses JSON that is nested deeper than 500 levels."""

_ORJSON_NESTING = 250  # it refuses more than 254 levels
_MAX_INTEGER = 2**64 - 1
_MIN_INTEGER = -(2**63)
_AS_THEY_ARE = frozenset({float, bool, type(None), UUID})
_NULLS = frozenset({"NaTType", "NAType"})
_TEXT_MODULES = frozenset({"fractions", "ipaddress"})
_TEXT_TYPES = (
    "LazyProxy",  # Babel's
    "LazyString",  # Flask's
    "Promise",  # Django's: what gettext_lazy and the like return
    "URL",
    "Url",
)


def plain_copy(payload: dict[Any, Any]) -> Any:
    """Copy ``payload`` as dicts, lists and scalars that orjson takes.

    Without recursion: 500 levels of it would overflow the stack of a caller that is deep itself.
    """
    copy: Any = {}
    whole = copy
    members = iter(_members(payload))
    around = {id(payload): payload}  # the containers around a value, outermost first
    outer = []  # where to go on when the innermost of them is copied
    while True:
        for key, value in members:
            if type(value) in _AS_THEY_ARE or (type(value) is str and value.isascii()):
                copy[key] = value
                continue
            plain = _plain(value)
            if not isinstance(plain, (dict, list)):
                copy[key] = plain
                continue
            if id(value) in around:
                msg = "payload holds a cycle: a container that contains itself"
                raise ValueError(msg)
            if len(around) == MAX_NESTING:
                msg = f"payload is nested too deeply: BigQuery takes {MAX_NESTING} levels"
                raise ValueError(msg)
            around[id(value)] = value
            outer.append((members, copy, key))
            inside = _members(plain)
            members = iter(inside)
            copy[key] = copy = {} if isinstance(plain, dict) else [None] * len(inside)
            break
        else:
            if not outer:
                return whole
            inner = copy
            members, copy, key = outer.pop()
            around.popitem()
            if len(around) == _ORJSON_NESTING:
                copy[key] = orjson.Fragment(orjson.dumps(inner))


def _members(container: dict[Any, Any] | list[Any]) -> list[tuple[Any, Any]]:
    """The keys, as text, and the values; of a list, the indexes and the values."""
    # Copied at once: another thread may change the container.
    if isinstance(container, list):
        return list(enumerate(list.copy(container)))
    by_text = {
        key if type(key) is str and key.isascii() else _key(key): value
        for key, value in dict.copy(container).items()
    }
    return list(by_text.items())


def _key(key: Any) -> str:
    """A key becomes the text that it would have as a value; a container, its repr."""
    plain = _plain(key)
    if isinstance(plain, str):
        return plain
    return as_repr(key) if isinstance(plain, (dict, list)) else orjson.dumps(plain).decode()


def _plain(value: Any) -> Any:
    """``value`` as what orjson takes, or as a dict or list whose members are still to copy."""
    try:
        while True:
            kind = type(value)  # unlike __class__, it cannot pretend
            if kind is str:
                return well_formed(value)
            if kind is int:
                return value if _MIN_INTEGER <= value <= _MAX_INTEGER else as_digits(value)
            if kind is dict or kind is list or kind in _AS_THEY_ARE or issubclass(kind, list):
                return value
            if issubclass(kind, dict):
                return from_multi_dict(value) if is_multi_dict(kind) else value
            value = value.value if issubclass(kind, Enum) else _stand_in(value)
    except Exception:  # noqa: BLE001  an object that cannot be read must not cost the event
        return as_repr(value)


def _stand_in(value: Any) -> Any:  # noqa: PLR0912  one branch a type
    """What stands for a value that is not JSON, one step nearer to it; it may raise anything."""
    kind = type(value)
    if kind in _BY_TYPE:
        return _BY_TYPE[kind](value)
    name = kind.__name__
    if name in _NULLS and kind.__module__.startswith("pandas."):
        return None  # before datetime: NaT is one
    if isinstance(value, (date, time)):
        return value.isoformat()
    if has_fields(kind):
        return fields_of(value)
    if _is_text(kind):
        return str(value)
    if isinstance(value, tuple) and hasattr(value, "geturl"):  # what urlsplit() returns
        return value.geturl()
    if isinstance(value, (tuple, deque)):
        return list(value)
    if isinstance(value, (set, frozenset)):
        return _in_order(value)
    uuid_utils = sys.modules.get("uuid_utils")
    if isinstance(value, (Decimal, PurePath, UUID, getattr(uuid_utils, "UUID", UUID))):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _base64(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if is_multi_dict(kind):
        return from_multi_dict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (AbstractSet, ValuesView)):
        return list(value)
    numpy = sys.modules.get("numpy")  # a log call is no place to import it
    if numpy and isinstance(value, (numpy.generic, numpy.ndarray)):
        return _without_numpy(value, numpy)
    return as_repr(value)


def _is_text(kind: type) -> bool:
    """Whether a value of ``kind`` is best told by its ``str``, such as a URL of any library.

    Goes by the names of its bases, because nothing is imported to look at a value.
    """
    has_str: bool = kind.__str__ is not object.__str__  # type: ignore[comparison-overlap]
    return has_str and any(
        base.__module__ in _TEXT_MODULES or base.__name__.endswith(_TEXT_TYPES)
        for base in kind.__mro__
    )


def _in_order(values: AbstractSet[Any]) -> list[Any]:
    try:
        return sorted(values)
    except Exception:  # noqa: BLE001  of mixed types, or of one without an order
        return sorted(values, key=as_repr)


def _base64(value: Any) -> str:
    return base64.b64encode(bytes(value)).decode()


def _without_numpy(value: Any, numpy: Any) -> Any:
    if value.dtype.kind in "mM":  # times, whose items would lose their units
        if value.ndim:
            return list(value)
        return None if numpy.isnat(value) else str(value)
    plain = value.tolist()
    return str(value) if type(plain) is type(value) else plain  # a longdouble stays what it is


_BY_TYPE: dict[type, Callable[[Any], Any]] = {
    bytes: _base64,
    date: date.isoformat,
    datetime: datetime.isoformat,
    Decimal: str,
    frozenset: _in_order,
    set: _in_order,
    time: time.isoformat,
    timedelta: timedelta.total_seconds,
    tuple: list,
}
"""The most frequent types, which need not be looked for one by one."""
