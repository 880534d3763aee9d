"""A committed stream of the Storage Write API: rows at offsets, so that none is stored twice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import grpc

from lorc_eventlog.bigquery.storage_connection import Connection, Endpoint, call
from lorc_eventlog.bigquery.storage_failures import (
    CODES,
    ENDED_STREAM,
    OFFSET_ALREADY_EXISTS,
    OFFSET_OUT_OF_RANGE,
    STREAM_NOT_FOUND,
    failure_in_answer,
    failure_of_append,
    failure_of_call,
    refused_rows,
    status_of,
    storage_error_of,
)
from lorc_eventlog.bigquery.storage_messages import (
    COMMITTED,
    CreateWriteStreamRequest,
    EncodedRows,
    FinalizeWriteStreamRequest,
    FinalizeWriteStreamResponse,
    WriteStream,
)
from lorc_eventlog.bigquery.transport import Failure, Reason, Refusal, RefusedRow

if TYPE_CHECKING:
    from collections.abc import Callable

_EXPECTED = re.compile(r"expected offset:? (\d+)")


@dataclass(frozen=True, slots=True)
class Stored:
    """The rows are stored at the offset."""


@dataclass(frozen=True, slots=True)
class AlreadyExists:
    """The offset is taken; the stream ends at ``expected``, if BigQuery says so."""

    expected: int | None


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing is stored; these rows are refused, and perhaps others, too."""

    rows: tuple[RefusedRow, ...]


@dataclass(frozen=True, slots=True)
class Unusable:
    """Nothing is stored, and the stream takes no rows at this offset any more."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Gone:
    """BigQuery does not know the stream: it, or its table, was deleted."""

    failure: Failure


Outcome = Stored | AlreadyExists | Refused | Refusal | Unusable | Gone | Failure
"""A ``Failure`` that is ``stored="no"`` was answered; one that is ``"unknown"`` was not."""


class StreamClient:
    """Makes, appends to and finalizes committed streams; one connection, used by one thread."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._stream = ""

    @cached_property
    def endpoint(self) -> Endpoint:
        """The endpoint, made on first use; raises what Google's libraries raise."""
        return Endpoint()

    def create(self, parent: Callable[[str], str], timeout: float) -> str | Failure:
        """Make a stream and return its name.

        Args:
            parent: Returns the resource name of the table, given the project.
            timeout: Seconds.
        """
        try:
            endpoint = self.endpoint
            table = parent(endpoint.project)
            request = CreateWriteStreamRequest(parent=table)
            request.write_stream.type = COMMITTED
            answer = call(
                endpoint, "CreateWriteStream", request, WriteStream, timeout, parent=table
            )
            return str(answer.name)
        except Exception as error:  # noqa: BLE001  one contract, whatever the libraries raise
            return failure_of_call(error, timeout=timeout)

    def finalize(self, stream: str, timeout: float) -> int | Gone | Failure:
        """Let the stream take no more rows, and return how many it holds."""
        self.disconnect()
        try:
            request = FinalizeWriteStreamRequest(name=stream)
            answer = call(
                self.endpoint,
                "FinalizeWriteStream",
                request,
                FinalizeWriteStreamResponse,
                timeout,
                name=stream,
            )
            return int(answer.row_count)
        except Exception as error:  # noqa: BLE001  as above
            failure = failure_of_call(error, timeout=timeout)
            return Gone(failure) if _is_gone(error) else failure

    def append(self, stream: str, offset: int, rows: EncodedRows, timeout: float) -> Outcome:
        """Append rows at ``offset``: all of them, or none."""
        try:
            connection = self._connect(stream)
            answer = connection.append(rows, timeout=timeout, offset=offset)
        except Exception as error:  # noqa: BLE001  as above
            self.disconnect()
            return _outcome_of_call(error, timeout)
        except BaseException:
            self.disconnect()
            raise
        if not answer.HasField("error") and not answer.row_errors:
            if (
                answer.append_result.HasField("offset")
                and answer.append_result.offset.value != offset
            ):
                self.disconnect()
                text = "BigQuery acknowledges rows at another offset"
                return Failure(Reason(text))
            return Stored()
        self.disconnect()
        if answer.row_errors:
            refused = refused_rows(answer.row_errors, rows.count)
            return refused if isinstance(refused, Failure) else Refused(refused)
        return _outcome_of_stream(answer.error) or failure_in_answer(answer.error)

    def _connect(self, stream: str) -> Connection:
        connection = self._connection
        if connection is None or connection.is_ended or stream != self._stream:
            self.disconnect()
            self._stream = stream
            self._connection = connection = Connection(self.endpoint, stream)
        return connection

    def disconnect(self) -> None:
        """Drop the connection. What is in flight may still be stored."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _outcome_of_stream(status: Any) -> Outcome | None:
    """Tell what a status says about the stream and its offsets; None if it is about neither."""
    error, code = storage_error_of(status), CODES.get(status.code)
    words = " ".join(status.message.split())
    if error == OFFSET_ALREADY_EXISTS or code is grpc.StatusCode.ALREADY_EXISTS:
        expected = _EXPECTED.search(words)
        return AlreadyExists(int(expected[1]) if expected else None)
    if error == STREAM_NOT_FOUND or code is grpc.StatusCode.NOT_FOUND:
        return Gone(Failure(Reason(words), stored="no"))
    if error in {OFFSET_OUT_OF_RANGE, *ENDED_STREAM} or code is grpc.StatusCode.OUT_OF_RANGE:
        return Unusable(Reason(words))
    return None


def _outcome_of_call(error: Exception, timeout: float) -> Outcome:
    """Tell what the end of a call means; BigQuery may end it with what it says of the stream."""
    if isinstance(error, grpc.RpcError):
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return Gone(failure_of_call(error, timeout=timeout))
        outcome = _outcome_of_stream(status_of(error))
        if outcome is not None:
            return outcome
    return failure_of_append(error, timeout=timeout)


def _is_gone(error: object) -> bool:
    """Whether a stream cannot be finalized, now or later: it is not there, or finalized already.

    Nobody knows whether BigQuery tells the count of a stream once more. If it does not, a shipper
    that was killed between the answer and the ledger must not ask for ever.
    """
    if not isinstance(error, grpc.RpcError):
        return False
    code = error.code()
    if code is grpc.StatusCode.NOT_FOUND:
        return True
    is_definite = code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    is_said = is_definite and "finalized" in (error.details() or "")
    return is_said or storage_error_of(status_of(error)) in {STREAM_NOT_FOUND, *ENDED_STREAM}
