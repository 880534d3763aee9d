"""A Storage Write API that fails on a script: real gRPC, with BigQuery's codes and words.

It decodes with the messages that Google generates, not with ours, and reads rows by the descriptor
that the client sends. Run it in the process of the test::

    with ScriptedStorage() as server:
        server.script(Cut(stored=True), InAnswer(StatusCode.INTERNAL, "..."))

Each step of the script is for one AppendRows request; after the last, all is well. A row whose
payload holds ``"poison"`` is always refused. ``docs/background/bigquery.md``
says where the words come from.
"""

from __future__ import annotations

import json
import queue
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import status_pb2
from grpc import StatusCode

# It comes with bqemulator, which some environments cannot have.
types = pytest.importorskip("google.cloud.bigquery_storage_v1.types")

SERVICE = "/google.cloud.bigquery.storage.v1.BigQueryWrite"
IDLE_WORDS = "Closing the stream because it has been inactive for 600 seconds."
DRAINING_WORDS = "The connection is draining."
OVERLOAD_WORDS = "Task is overloaded (memory-protection) go/tr-t"
QUOTA_WORDS = "Exceeds 'AppendRows throughput' quota, user_id: project0000, INSUFFICIENT_TOKENS"


@dataclass(frozen=True)
class Cut:
    """End the call without an answer, before or after the rows are stored."""

    stored: bool = False
    code: StatusCode = StatusCode.UNAVAILABLE
    words: str = DRAINING_WORDS
    details: Any = None


@dataclass(frozen=True)
class InAnswer:
    """Answer with an error about the request; nothing is stored."""

    code: StatusCode
    words: str
    storage_error: str = ""


@dataclass(frozen=True)
class Silence:
    """Never answer; store the rows after ``store_after`` seconds, if that is given."""

    store_after: float | None = None


@dataclass(frozen=True)
class Pass:
    """Answer as ever."""


@dataclass(frozen=True)
class Reply:
    """Answer with this message, whatever it is; None ends the call in good order instead."""

    message: Any


Step = Cut | InAnswer | Silence | Pass | Reply


@dataclass
class Stream:
    """What is stored in one stream."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    is_finalized: bool = False


@dataclass(frozen=True)
class Request:
    """What the server was asked to append."""

    connection: int
    stream: str
    offset: int | None
    rows: int
    size: int
    metadata: dict[str, str]


class ScriptedStorage:
    """The server. ``lock`` guards everything that is public here while it runs."""

    def __init__(self, *, discard: bool = False, most_row_errors: int = 1000) -> None:
        self.lock = threading.RLock()
        self.streams: dict[str, Stream] = {}
        self.requests: list[Request] = []
        self.calls: Counter[str] = Counter()
        self.deny: tuple[StatusCode, str] | None = None
        """Whether every call ends with this error."""
        self.counts_once = False
        """Whether only the first FinalizeWriteStream of a stream tells its count."""
        self._script: list[Step] = []
        self._discard = discard
        self._most_row_errors = most_row_errors
        self._connections = 0
        self._ends: list[queue.SimpleQueue[Any]] = []
        self.port = 0
        self._listen()

    def _listen(self) -> None:
        self._server = grpc.server(
            ThreadPoolExecutor(100),
            options=[("grpc.max_receive_message_length", 20 * 2**20), ("grpc.so_reuseport", 0)],
        )
        self._server.add_generic_rpc_handlers((_Handler(self),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")

    @property
    def address(self) -> str:
        """What goes into BIGQUERY_STORAGE_EMULATOR_HOST."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop(grace=None).wait()

    def restart(self) -> None:
        """End all connections and listen again; what is stored stays."""
        self._server.stop(grace=None).wait()
        self._listen()
        self._server.start()

    def script(self, *steps: Step) -> None:
        """Add steps, each for one request to come."""
        with self.lock:
            self._script += steps

    def heal(self) -> None:
        """Forget the steps that are left."""
        with self.lock:
            self._script.clear()

    def end_idle_connections(self) -> None:
        """End all open calls as BigQuery does after ten idle minutes."""
        with self.lock:
            for requests in self._ends:
                requests.put(Cut(code=StatusCode.ABORTED, words=IDLE_WORDS))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of all streams."""
        with self.lock:
            return [row for stream in self.streams.values() for row in stream.rows]

    def numbers(self) -> list[int]:
        """Return the numbers of all rows, sorted; one that is stored twice is here twice."""
        return sorted(json.loads(row["payload"])["number"] for row in self.rows())

    # What the handlers do

    def connect(self, requests: queue.SimpleQueue[Any]) -> int:
        with self.lock:
            self._ends.append(requests)
            self._connections += 1
            return self._connections

    def disconnect(self, requests: queue.SimpleQueue[Any]) -> None:
        with self.lock:
            self._ends.remove(requests)

    def next_step(self) -> Step | None:
        with self.lock:
            return self._script.pop(0) if self._script else None

    def append(self, name: str, rows: list[dict[str, Any]], offset: int | None) -> Any:
        """Store ``rows`` and return an answer, as BigQuery does; all of it at one moment."""
        with self.lock:
            stream = self.streams.get(name)
            if stream is None:
                if not name.endswith("/_default"):
                    words = f"Requested entity was not found. Entity: {name}"
                    return _error(StatusCode.NOT_FOUND, words, "STREAM_NOT_FOUND")
                stream = self.streams[name] = Stream()
            if stream.is_finalized:
                words = f"Stream has been finalized and cannot be appended: {name}"
                return _error(StatusCode.INVALID_ARGUMENT, words, "STREAM_FINALIZED")
            end = len(stream.rows)
            if offset is not None and offset < end:
                words = f"The offset is within stream, expected offset {end}, received {offset}"
                return _error(StatusCode.ALREADY_EXISTS, words, "OFFSET_ALREADY_EXISTS")
            if offset is not None and offset > end:
                words = f"The offset is beyond stream, expected offset {end}, received {offset}"
                return _error(StatusCode.OUT_OF_RANGE, words, "OFFSET_OUT_OF_RANGE")
            bad = [index for index, row in enumerate(rows) if "poison" in row["payload"]]
            if bad:
                return _row_errors(bad[: self._most_row_errors])
            stream.rows += rows
            answer = types.AppendRowsResponse.pb()()
            answer.append_result.SetInParent()
            if offset is not None:
                answer.append_result.offset.value = offset
            return answer

    def create(self, parent: str) -> str:
        """Make a stream."""
        with self.lock:
            name = f"{parent}/streams/{uuid.uuid4().hex[:16]}"
            self.streams[name] = Stream()
            return name

    def finalize(self, name: str) -> int | None:
        """Let nothing be appended any more; how many rows are stored."""
        with self.lock:
            stream = self.streams.get(name)
            if stream is None:
                return None
            stream.is_finalized = True
            return len(stream.rows)


def _error(code: StatusCode, words: str, storage_error: str) -> Any:
    answer = types.AppendRowsResponse.pb()()
    answer.error.CopyFrom(status_pb2.Status(code=code.value[0], message=words))
    if storage_error:
        detail = types.StorageError.pb()(
            code=getattr(types.StorageError.StorageErrorCode, storage_error), error_message=words
        )
        answer.error.details.add().Pack(detail)
    return answer


def _row_errors(indices: list[int]) -> Any:
    answer = types.AppendRowsResponse.pb()()
    words = "Errors found while processing rows. Please refer to the row_errors field for details."
    suffix = " The list may not be complete because of the size limitations."
    answer.error.CopyFrom(
        status_pb2.Status(code=StatusCode.INVALID_ARGUMENT.value[0], message=words + suffix)
    )
    for index in indices:
        error = answer.row_errors.add()
        error.index = index
        error.code = types.RowError.RowErrorCode.FIELDS_ERROR
        error.message = "Field payload: invalid JSON value."
    return answer


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: ScriptedStorage) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        metadata = {key: str(value) for key, value in details.invocation_metadata}
        handlers: dict[str, Callable[[], Any]] = {
            "AppendRows": lambda: grpc.stream_stream_rpc_method_handler(
                lambda requests, context: self._append_rows(requests, context, metadata)
            ),
            "CreateWriteStream": lambda: grpc.unary_unary_rpc_method_handler(self._create),
            "GetWriteStream": lambda: grpc.unary_unary_rpc_method_handler(self._get),
            "FinalizeWriteStream": lambda: grpc.unary_unary_rpc_method_handler(self._finalize),
        }
        method = details.method.rpartition("/")[2]
        with self._server.lock:
            self._server.calls[method] += 1
        return handlers[method]() if method in handlers else None

    def _create(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        if self._server.deny is not None:
            context.abort(*self._server.deny)
        request = types.CreateWriteStreamRequest.deserialize(encoded)
        name = self._server.create(request.parent)
        stream = types.WriteStream(name=name, type_=request.write_stream.type_)
        return bytes(types.WriteStream.serialize(stream))

    def _get(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        if self._server.deny is not None:
            context.abort(*self._server.deny)
        name = types.GetWriteStreamRequest.deserialize(encoded).name
        return bytes(types.WriteStream.serialize(types.WriteStream(name=name)))

    def _finalize(self, encoded: bytes, context: grpc.ServicerContext) -> bytes:
        if self._server.deny is not None:
            context.abort(*self._server.deny)
        name = types.FinalizeWriteStreamRequest.deserialize(encoded).name
        stream = self._server.streams.get(name)
        if self._server.counts_once and stream is not None and stream.is_finalized:
            context.abort(StatusCode.FAILED_PRECONDITION, f"Stream is already finalized: {name}")
        count = self._server.finalize(name)
        if count is None:
            context.abort(StatusCode.NOT_FOUND, f"Requested entity was not found. Entity: {name}")
        answer = types.FinalizeWriteStreamResponse(row_count=count)
        return bytes(types.FinalizeWriteStreamResponse.serialize(answer))

    def _append_rows(
        self, encoded: Iterator[bytes], context: grpc.ServicerContext, metadata: dict[str, str]
    ) -> Iterator[bytes]:
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_collect, args=(encoded, requests), daemon=True).start()
        number = self._server.connect(requests)
        stream, row_class = "", None
        try:
            while (item := requests.get()) is not None:
                if isinstance(item, Cut):
                    context.abort(item.code, item.words)
                if self._server.deny is not None:
                    context.abort(*self._server.deny)
                request = types.AppendRowsRequest.pb().FromString(item)
                if request.proto_rows.writer_schema.HasField("proto_descriptor"):
                    row_class = _class_of(request.proto_rows.writer_schema.proto_descriptor)
                stream = request.write_stream or stream
                if row_class is None or not stream:
                    context.abort(StatusCode.INVALID_ARGUMENT, "Invalid stream name or schema.")
                offset = request.offset.value if request.HasField("offset") else None
                serialized = request.proto_rows.rows.serialized_rows
                with self._server.lock:
                    self._server.requests.append(
                        Request(number, stream, offset, len(serialized), len(item), metadata)
                    )
                rows = (
                    [] if self._server._discard else [_decode(row_class, row) for row in serialized]
                )
                step = self._server.next_step()
                if step == Reply(None):
                    return
                answer = self._answer(step, context, stream, rows, offset)
                if answer is not None:
                    yield answer.SerializeToString()
        finally:
            self._server.disconnect(requests)

    def _answer(
        self,
        step: Step | None,
        context: grpc.ServicerContext,
        stream: str,
        rows: list[dict[str, Any]],
        offset: int | None,
    ) -> Any:
        server = self._server
        match step:
            case None | Pass():
                return server.append(stream, rows, offset)
            case Cut(stored, code, words, details):
                if stored:
                    server.append(stream, rows, offset)
                if details is not None:
                    encoded = details.SerializeToString()
                    context.set_trailing_metadata(
                        (("x-other", "text"), ("grpc-status-details-bin", encoded))
                    )
                context.abort(code, words)
            case InAnswer(code, words, storage_error):
                return _error(code, words, storage_error)
            case Reply(message):
                return message
            case Silence(store_after):
                if store_after is not None:

                    def store() -> None:
                        time.sleep(store_after)
                        server.append(stream, rows, offset)

                    threading.Thread(target=store, daemon=True).start()
        return None


def _collect(encoded: Iterator[bytes], requests: queue.SimpleQueue[Any]) -> None:
    try:
        for item in encoded:
            requests.put(item)
    except Exception:  # noqa: BLE001  the client has gone
        pass
    requests.put(None)


def _class_of(descriptor: descriptor_pb2.DescriptorProto) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="row.proto", syntax="proto2")
    file.message_type.add().CopyFrom(descriptor)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(descriptor.name))


def _decode(row_class: Any, serialized: bytes) -> dict[str, Any]:
    row = row_class.FromString(serialized)
    return {field.name: value for field, value in row.ListFields()}
