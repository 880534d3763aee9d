"""Objects that have named fields, as dicts: what pydantic, attrs, msgspec and dataclasses make.

Imports none of these libraries: a type is recognised by the attributes that its library gives it.
Instances are never asked, because a mock has every attribute.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol


class _PydanticModel(Protocol):
    def model_dump(self) -> Any: ...


class _PydanticModelOfVersion1(Protocol):
    __fields__: ClassVar[Any]

    def json(self) -> str: ...


class _Attrs(Protocol):
    __attrs_attrs__: ClassVar[Any]


class _Struct(Protocol):
    __struct_fields__: ClassVar[tuple[str, ...]]


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[Any]


Payload = (
    Mapping[str, Any] | _PydanticModel | _PydanticModelOfVersion1 | _Attrs | _Struct | _Dataclass
)
"""What a type checker takes as a payload."""

Reader = Callable[[Any], Any]

_VALUES_OF_A_KEY = ("getlist", "getall", "get_list", "get_all")
"""What a multi-dict calls the method that returns all values of a key."""


def has_fields(kind: type) -> bool:
    """Whether an object of ``kind`` has fields that :func:`fields_of` can read."""
    return bool(_readers(kind))


def fields_of(value: Any) -> Any:
    """Return the fields of ``value`` as its library writes them to JSON.

    That is a dict, or whatever else a model serialises to (a pydantic ``RootModel``). A model
    whose own serialiser raises is read in a simpler way, without the fields that it excludes.
    Raises whatever the last way raises.
    """
    *readers, last = _readers(type(value))
    for read in readers:
        try:
            return read(value)
        except Exception:  # noqa: BLE001, S112  a bad field must not cost the others
            continue
    return last(value)


def is_multi_dict(kind: type) -> bool:
    """Whether an object of ``kind`` is a dict in which a key may have several values."""
    return hasattr(kind, "keys") and any(hasattr(kind, name) for name in _VALUES_OF_A_KEY)


def from_multi_dict(value: Any) -> dict[Any, Any]:
    """Return ``value`` as a dict: a list for each key that has not exactly one value.

    Raises whatever the object raises.
    """
    kind = type(value)
    get = next(getattr(kind, name) for name in _VALUES_OF_A_KEY if hasattr(kind, name))
    try:
        every = {key: list(get(value, key)) for key in list(value.keys())}
    except Exception:  # noqa: BLE001  a method of that name, but for something else
        return dict.copy(value) if issubclass(kind, dict) else dict(value)
    return {key: values[0] if len(values) == 1 else values for key, values in every.items()}


def _readers(kind: type) -> list[Reader]:
    """List every way to read the fields of an object of ``kind``, the best first."""
    readers: list[Reader] = []
    if hasattr(kind, "__pydantic_serializer__") and hasattr(kind, "model_dump"):
        readers += _pydantic_json, _pydantic_python, _pydantic_fields
    elif hasattr(kind, "json") and isinstance(getattr(kind, "__fields__", None), dict):
        readers += _pydantic_1_json, _pydantic_1_python, _pydantic_1_fields
    if hasattr(kind, "__struct_fields__"):
        readers += _msgspec_json, _msgspec_fields
    if hasattr(kind, "__attrs_attrs__"):
        readers.append(_attrs_fields)
    if dataclasses.is_dataclass(kind):
        # Only a serialiser of its own: one that it inherits does not know its fields.
        if "__pydantic_serializer__" in vars(kind):
            readers.append(_pydantic_dataclass)
        readers.append(_dataclass_fields)
    return readers


# warnings=False: pydantic's warnings quote the values that they warn of.


def _pydantic_json(value: Any) -> Any:
    return value.model_dump(mode="json", warnings=False)


def _pydantic_python(value: Any) -> Any:
    return value.model_dump(warnings=False)


def _pydantic_fields(value: Any) -> dict[str, Any]:
    fields: Mapping[str, Any] = type(value).model_fields
    excluded = {name for name, field in fields.items() if field.exclude}
    return {name: field for name, field in vars(value).items() if name not in excluded}


def _pydantic_dataclass(value: Any) -> Any:
    return type(value).__pydantic_serializer__.to_python(value, mode="json", warnings=False)


def _pydantic_1_json(value: Any) -> Any:
    return json.loads(value.json())


def _pydantic_1_python(value: Any) -> Any:
    return value.dict()


def _pydantic_1_fields(value: Any) -> dict[str, Any]:
    fields: Mapping[str, Any] = type(value).__fields__
    excluded = {name for name, field in fields.items() if field.field_info.exclude}
    return {name: field for name, field in vars(value).items() if name not in excluded}


def _msgspec_json(value: Any) -> Any:
    return sys.modules["msgspec"].to_builtins(value, str_keys=True)


def _msgspec_fields(value: Any) -> dict[str, Any]:
    kind = type(value)
    unset = sys.modules["msgspec"].UNSET
    pairs = zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True)
    fields = {encoded: getattr(value, name) for encoded, name in pairs}
    return {encoded: field for encoded, field in fields.items() if field is not unset}


def _attrs_fields(value: Any) -> dict[str, Any]:
    return _public(value, [attribute.name for attribute in type(value).__attrs_attrs__])


def _dataclass_fields(value: Any) -> dict[str, Any]:
    return _public(value, [field.name for field in dataclasses.fields(value)])


def _public(value: Any, names: list[str]) -> dict[str, Any]:
    return {
        name: getattr(value, name)
        for name in names
        if not name.startswith("_") and hasattr(value, name)
    }
