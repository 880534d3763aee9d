"""One gRPC connection to BigQuery's Storage Write API.

gRPC does not survive forks, so only a process that does not fork speaks it: the shipper.
"""

from __future__ import annotations

import contextlib
import os
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc

from lorc_eventlog.bigquery.client import EMULATOR_PROJECT, PROJECT_VARIABLE
from lorc_eventlog.bigquery.storage_messages import (
    EVENT_DESCRIPTOR,
    AppendRowsRequest,
    AppendRowsResponse,
    EncodedRows,
)
from lorc_eventlog.bigquery.table import events_project

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

EMULATOR_VARIABLE = "BIGQUERY_STORAGE_EMULATOR_HOST"
HOST = "bigquerystorage.googleapis.com:443"
SCOPES = ["https://www.googleapis.com/auth/bigquery"]
SERVICE = "/google.cloud.bigquery.storage.v1.BigQueryWrite"
TRACE_ID = "lorc_eventlog"

MAX_MESSAGE_BYTES = 20 * 2**20
"""gRPC's own limit of 4 MB would refuse a long list of row errors."""


class AppendTimeoutError(Exception):
    """No answer came in time. The rows may be stored, or may yet be."""


class Endpoint:
    """Where the API is, and as whom it is called: made once, on first use.

    Attributes:
        is_emulator: Whether an emulator takes Google's place, without TLS and credentials.
        address: Host and port.
        project: The project that the table is in.
    """

    def __init__(self) -> None:
        emulator = os.environ.get(EMULATOR_VARIABLE, "").rpartition("//")[2]
        self.is_emulator = bool(emulator)
        self.address = emulator or HOST
        self._credentials: Credentials | None = None
        project = events_project() or os.environ.get(PROJECT_VARIABLE) or ""
        if self.is_emulator:
            self.project = project or EMULATOR_PROJECT
            return
        import google.auth

        self._credentials, found = google.auth.default(scopes=SCOPES)
        self.project = project or found or ""
        if not self.project:
            msg = "Project was not passed and could not be determined from the environment."
            raise OSError(msg)

    def open_channel(self) -> grpc.Channel:
        """Open a channel of its own: a TCP connection that is shared with no other channel."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 60_000),  # a dead connection is noticed within minutes
            ("grpc.keepalive_timeout_ms", 20_000),
        ]
        if self.is_emulator:
            return grpc.insecure_channel(self.address, options)
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(), options)

    def metadata(self, **request_parameters: str) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call; refreshes the access token if it has expired.

        Raises:
            google.auth.exceptions.GoogleAuthError: There is no token.
        """
        parameters = "&".join(f"{key}={quote(text)}" for key, text in request_parameters.items())
        headers = {"x-goog-request-params": parameters}
        if self._credentials is not None:
            import google.auth.transport.requests

            # Two threads may both refresh it, which costs a request and harms nothing.
            self._credentials.before_request(
                google.auth.transport.requests.Request(), "POST", f"https://{HOST}", headers
            )
        return tuple((key.lower(), text) for key, text in headers.items())


def call(
    endpoint: Endpoint, method: str, request: Any, answer: Any, timeout: float, **parameters: str
) -> Any:
    """Call a method that takes one request and gives one answer, over a channel of its own.

    Args:
        endpoint: Where the API is.
        method: Its name, such as ``CreateWriteStream``.
        request: The message that is sent.
        answer: The class of the message that comes.
        timeout: Seconds.
        parameters: What the routing header says.

    Raises:
        grpc.RpcError: The call failed.
        google.auth.exceptions.GoogleAuthError: There is no token.
    """
    metadata = endpoint.metadata(**parameters)
    channel = endpoint.open_channel()
    try:
        made: Any = channel.unary_unary(
            f"{SERVICE}/{method}", type(request).SerializeToString, answer.FromString
        )
        return made(request, timeout=timeout, metadata=metadata)
    finally:
        channel.close()


class Connection:
    """One AppendRows call, with one request in flight, so that each answer is for that request.

    Threads: :meth:`append` is called by one thread at a time. A reader thread, a daemon, takes the
    answers from gRPC, because gRPC has no way to wait for one with a time limit.
    """

    def __init__(self, endpoint: Endpoint, stream: str) -> None:
        self._stream = stream
        self._is_first = True
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        metadata = endpoint.metadata(write_stream=stream)
        self._channel = endpoint.open_channel()
        with contextlib.ExitStack() as undo:
            undo.callback(self._channel.close)
            self._begin(metadata)
            undo.pop_all()

    def _begin(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Begin the call. Out of threads, both gRPC and this raise ``RuntimeError``."""
        append_rows: Any = self._channel.stream_stream(
            f"{SERVICE}/AppendRows", None, AppendRowsResponse.FromString
        )
        self._call = append_rows(iter(self._requests.get, None), metadata=metadata)
        threading.Thread(target=self._read, name="lorc_eventlog-append-reader", daemon=True).start()

    def _read(self) -> None:
        try:
            for answer in self._call:
                self._answers.put(answer)
            self._answers.put(None)
        except BaseException as error:  # noqa: BLE001  whatever it is, the sender must hear of it
            self._answers.put(error)

    @property
    def is_ended(self) -> bool:
        """Whether BigQuery ended the call while no request was in flight, as it does when idle."""
        return not self._answers.empty()

    def append(self, rows: EncodedRows, *, timeout: float, offset: int | None = None) -> Any:
        """Append rows and return BigQuery's answer, an ``AppendRowsResponse``.

        Raises:
            AppendTimeoutError: No answer came within ``timeout`` seconds.
            grpc.RpcError: The call ended instead.
        """
        request = AppendRowsRequest()
        request.proto_rows.rows = rows.data
        if offset is not None:
            request.offset.value = offset
        if self._is_first:
            self._is_first = False
            request.write_stream = self._stream
            request.trace_id = TRACE_ID
            request.proto_rows.writer_schema.proto_descriptor = EVENT_DESCRIPTOR
        self._requests.put(request.SerializeToString())
        try:
            answer = self._answers.get(timeout=timeout)
        except Empty:
            raise AppendTimeoutError from None
        if answer is None:
            raise EndedError
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """End the call and drop the channel. What is in flight may still be stored."""
        self._requests.put(None)
        self._call.cancel()
        self._channel.close()


class EndedError(Exception):
    """BigQuery ended the call in good order, without an answer to the request."""
