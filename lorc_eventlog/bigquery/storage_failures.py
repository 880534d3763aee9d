"""What an answer or error of the Storage Write API means for the rows of a request.

An *answer* that holds an error is about its request. The *call's own* error is about the
connection, the table or the account, and never a verdict on rows.
docs/background/bigquery.md lists each with BigQuery's words and where they come from.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from lorc_eventlog.bigquery.failures import CREDENTIALS, GRANT, WHAT_TO_DO, why_no_client
from lorc_eventlog.bigquery.storage_connection import AppendTimeoutError, EndedError
from lorc_eventlog.bigquery.storage_messages import STORAGE_ERROR_URL, Status, StorageError
from lorc_eventlog.bigquery.transport import Failure, Reason, Refusal, RefusedRow

OFFSET_ALREADY_EXISTS = 8
OFFSET_OUT_OF_RANGE = 9
STREAM_NOT_FOUND = 3
ENDED_STREAM = {2, 4, 5, 6}
"""Codes of a StorageError: the stream is committed, of the wrong type, in the wrong state, or
finalized. It takes no rows."""
TABLE_NOT_FOUND = 1
SCHEMA_MISMATCH_EXTRA_FIELDS = 7
ENCRYPTION = range(10, 15)
"""The table's encryption key is missing, wrong, not to be reached, or not granted."""

CODES = {code.value[0]: code for code in grpc.StatusCode}
_WHAT_TO_DO = {
    grpc.StatusCode.UNAUTHENTICATED: CREDENTIALS,
    grpc.StatusCode.PERMISSION_DENIED: f"{GRANT} (it holds bigquery.tables.updateData)",
    grpc.StatusCode.NOT_FOUND: WHAT_TO_DO[404],
    grpc.StatusCode.INVALID_ARGUMENT: "run `lorc-eventlog check --transport grpc`",
    grpc.StatusCode.UNIMPLEMENTED: (
        "check the endpoint: what answers there is not the BigQuery Storage Write API"
    ),
}
_TO_DO_BY_STORAGE_ERROR = {
    TABLE_NOT_FOUND: WHAT_TO_DO[404],
    SCHEMA_MISMATCH_EXTRA_FIELDS: (
        "the table lacks a column of the envelope: `lorc-eventlog check` names it; BigQuery takes "
        "events some minutes after it was added"
    ),
    **dict.fromkeys(
        ENCRYPTION, "check the table's encryption key (Cloud KMS) and BigQuery's access to it"
    ),
}
"""What is wrong with the table, and never with a row."""
_MAY_NOT_EXIST = "may not exist"
"""BigQuery's words when the account may not write to a table, "(or it may not exist)"."""
_NEVER_QUOTE_A_ROW = {
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
}
_MAY_BE_THE_ROWS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
_TOO_LARGE = re.compile(
    r"request too large|message larger than max|payload size exceeds", re.IGNORECASE
)
"""BigQuery's words, and those of gRPC servers whose limit is lower, about a request's size."""
_IDLE = "has been inactive for"
"""BigQuery's words when it ends a connection that was idle for ten minutes: no failure."""


def is_idle_close(error: object) -> bool:
    """Whether BigQuery ended the connection only because it was idle."""
    return (
        isinstance(error, grpc.RpcError)
        and error.code() is grpc.StatusCode.ABORTED
        and _IDLE in (error.details() or "")
    )


def failure_of_append(error: Exception, *, timeout: float) -> Failure | Refusal:
    """Tell what the end of a call means that was to append rows; as :func:`failure_of_call`."""
    if isinstance(error, grpc.RpcError) and _TOO_LARGE.search(error.details() or ""):
        return Refusal(Reason(error.code().name, error.details() or ""), is_about_size=True)
    return failure_of_call(error, timeout=timeout)


def failure_of_call(error: Exception, *, timeout: float) -> Failure:
    """Tell what the end of a call means; never raises.

    Args:
        error: What the call, or the making of it, raised.
        timeout: Seconds that the request was given.
    """
    if isinstance(error, AppendTimeoutError):
        text = f"BigQuery did not answer within {timeout:.0f} s"
        return Failure(Reason(text), may_be_the_rows=True)
    if isinstance(error, EndedError):
        text = "BigQuery ended the connection without an answer"
        return Failure(Reason(text), may_be_the_rows=True)
    if not isinstance(error, grpc.RpcError):  # no credentials, no project
        return replace(why_no_client(error), may_be_the_rows=False, stored="no")
    code = error.code()
    details = " ".join((error.details() or "").split())
    return Failure(_reason(code, details), what_to_do(code, details), code in _MAY_BE_THE_ROWS)


def what_to_do(code: grpc.StatusCode, details: str) -> str | None:
    """Return what an operator must mend; None if time mends it."""
    if code is grpc.StatusCode.PERMISSION_DENIED and _MAY_NOT_EXIST in details:
        return f"{_WHAT_TO_DO[code]}; or {WHAT_TO_DO[404]}"
    return _WHAT_TO_DO.get(code)


def failure_in_answer(status: Any) -> Failure | Refusal:
    """Tell what the ``error`` in an answer means: nothing of its request is stored."""
    code = CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    details = " ".join(status.message.split())
    reason = _reason(code, details)
    of_the_table = _TO_DO_BY_STORAGE_ERROR.get(storage_error_of(status))
    if of_the_table is not None:
        return Failure(reason, of_the_table, stored="no")
    if _TOO_LARGE.search(details):
        return Refusal(reason, is_about_size=True)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return Refusal(reason, is_about_size=False)
    to_do = what_to_do(code, details)
    return Failure(reason, to_do, may_be_the_rows=code in _MAY_BE_THE_ROWS, stored="no")


def refused_rows(row_errors: Any, count: int) -> tuple[RefusedRow, ...] | Failure:
    """Return the rows that ``row_errors`` names; a failure if it names one that was not sent."""
    refused = {}
    for error in row_errors:
        if not 0 <= error.index < count:
            text = "the answer names rows that were not sent"
            return Failure(Reason(text), may_be_the_rows=True)
        reason = Reason("BigQuery refuses the row", " ".join(error.message.split()))
        # The message names the column. Only the payload is checked for more than its type.
        is_about_payload = "payload" in error.message
        refused[error.index] = RefusedRow(error.index, reason, error.message, is_about_payload)
    return tuple(refused.values())


def status_of(error: grpc.RpcError) -> Any:
    """Return the status that ended a call, with its details if BigQuery sent any."""
    status = Status(code=int(error.code().value[0]), message=error.details() or "")
    trailing: Any = error.trailing_metadata()
    for key, value in trailing or ():
        if key == "grpc-status-details-bin":
            with contextlib.suppress(DecodeError):  # a proxy may say anything
                status = Status.FromString(value)
    return status


def storage_error_of(status: Any) -> int:
    """Return the code of the StorageError that a status carries; 0 if it carries none."""
    for detail in status.details:
        if detail.type_url == STORAGE_ERROR_URL:
            with contextlib.suppress(DecodeError):
                return int(StorageError.FromString(detail.value).code)
    return 0


def _reason(code: grpc.StatusCode, details: str) -> Reason:
    if code not in _NEVER_QUOTE_A_ROW:
        return Reason(code.name, details)
    return Reason(f"{code.name}: {details}" if details else code.name)
