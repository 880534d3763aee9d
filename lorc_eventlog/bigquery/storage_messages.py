"""The messages of BigQuery's Storage Write API, as far as events need them.

They are declared by hand, in a descriptor pool of their own: the package that Google generates
takes twice as long to import and would be one more dependency, for a handful of fields. The names
and numbers are those of Google's ``storage.proto``, ``stream.proto`` and ``protobuf.proto``.

On the wire ``bytes`` and a message look the same. So a row, which is ``bytes`` in Google's files,
is an ``Event`` here: one call encodes all rows of a request, in 60 % of the time that a call for
each takes. The rows as a whole, and the descriptor of a row, are ``bytes`` here.

Importing this module loads protobuf, so only what speaks gRPC imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from lorc_eventlog.bigquery.table import COLUMNS

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row

_PACKAGE = "google.cloud.bigquery.storage.v1"
_Field = descriptor_pb2.FieldDescriptorProto

_KINDS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
}

_MESSAGES = {
    "Int64Value": "int64 value 1",
    "Any": "string type_url 1, bytes value 2",
    "Status": "int32 code 1, string message 2, repeated Any details 3",
    "ProtoSchema": "bytes proto_descriptor 1",
    "ProtoRows": "repeated Event serialized_rows 1",
    "ProtoData": "ProtoSchema writer_schema 1, bytes rows 2",
    "AppendRowsRequest": (
        "string write_stream 1, Int64Value offset 2, ProtoData proto_rows 4, string trace_id 6"
    ),
    "AppendResult": "Int64Value offset 1",
    "RowError": "int64 index 1, int32 code 2, string message 3",
    "AppendRowsResponse": (
        "AppendResult append_result 1, Status error 2, repeated RowError row_errors 4, "
        "string write_stream 5"
    ),
    "StorageError": "int32 code 1, string entity 2, string error_message 3",
    "WriteStream": "string name 1, int32 type 2",
    "GetWriteStreamRequest": "string name 1",
    "CreateWriteStreamRequest": "string parent 1, WriteStream write_stream 2",
    "FinalizeWriteStreamRequest": "string name 1",
    "FinalizeWriteStreamResponse": "int64 row_count 1",
}

COMMITTED = 1
"""The type of a stream whose rows can be queried as soon as they are acknowledged."""

STORAGE_ERROR_URL = f"type.googleapis.com/{_PACKAGE}.StorageError"


def _declare(file: descriptor_pb2.FileDescriptorProto, name: str, fields: str) -> None:
    message = file.message_type.add(name=name)
    for declaration in fields.split(", "):
        *repeated, kind, field_name, number = declaration.split(" ")
        field = message.field.add(name=field_name, number=int(number))
        field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
        if kind in _KINDS:
            field.type = _KINDS[kind]
        else:
            field.type = _Field.TYPE_MESSAGE
            field.type_name = f".{_PACKAGE}.{kind}"


def _build() -> tuple[dict[str, Any], bytes]:
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(
        name="lorc_eventlog/storage.proto", package=_PACKAGE, syntax="proto2"
    )
    for name, fields in _MESSAGES.items():
        _declare(file, name, fields)
    columns = ", ".join(f"string {name} {n}" for n, name in enumerate(COLUMNS, 1))
    _declare(file, "Event", columns)
    pool.Add(file)
    classes = {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in (*_MESSAGES, "Event")
    }
    return classes, file.message_type[-1].SerializeToString()


_CLASSES, EVENT_DESCRIPTOR = _build()
"""``EVENT_DESCRIPTOR`` describes a row to BigQuery: eight strings, the JSON column included."""

ProtoRows: Any = _CLASSES["ProtoRows"]
AppendRowsRequest: Any = _CLASSES["AppendRowsRequest"]
AppendRowsResponse: Any = _CLASSES["AppendRowsResponse"]
Status: Any = _CLASSES["Status"]
StorageError: Any = _CLASSES["StorageError"]
WriteStream: Any = _CLASSES["WriteStream"]
GetWriteStreamRequest: Any = _CLASSES["GetWriteStreamRequest"]
CreateWriteStreamRequest: Any = _CLASSES["CreateWriteStreamRequest"]
FinalizeWriteStreamRequest: Any = _CLASSES["FinalizeWriteStreamRequest"]
FinalizeWriteStreamResponse: Any = _CLASSES["FinalizeWriteStreamResponse"]

ROWS_AT_ONCE = 200
"""So many rows are encoded by one call, in memory that is at hand: for all rows of a request the
system would have to give new memory each time, which takes as long again."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows as a request holds them."""

    data: bytes
    count: int


def encode_rows(rows: Sequence[Row]) -> EncodedRows:
    """Encode rows; a field that is None is left out, which BigQuery takes for NULL."""
    parts = [
        ProtoRows(serialized_rows=rows[start : start + ROWS_AT_ONCE]).SerializeToString()
        for start in range(0, len(rows), ROWS_AT_ONCE)
    ]
    return EncodedRows(b"".join(parts), len(rows))
