"""What errors and answers of the Storage Write API mean; test_storage_write has the wire."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
import requests
from grpc import StatusCode

from lorc_eventlog.bigquery.failures import CREDENTIALS, WHAT_TO_DO
from lorc_eventlog.bigquery.storage_connection import AppendTimeoutError, EndedError
from lorc_eventlog.bigquery.storage_failures import (
    failure_in_answer,
    failure_of_append,
    failure_of_call,
    is_idle_close,
    refused_rows,
    status_of,
    storage_error_of,
    what_to_do,
)
from lorc_eventlog.bigquery.storage_messages import (
    STORAGE_ERROR_URL,
    AppendRowsResponse,
    Status,
    StorageError,
)
from lorc_eventlog.bigquery.transport import Failure, Reason, Refusal, RefusedRow

IDLE = "Closing the stream because it has been inactive for 600 seconds."


class CallError(grpc.RpcError):
    """The end of a call, as grpc raises it."""

    def __init__(
        self, code: StatusCode, details: str | None, trailing: dict[str, bytes] | None = None
    ) -> None:
        super().__init__()
        self._code = code
        self._details = details
        self._trailing = trailing

    def trailing_metadata(self) -> Any:
        return None if self._trailing is None else (*self._trailing.items(),)

    def code(self) -> StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details


def status(code: StatusCode | int, message: str = "") -> Any:
    number = code if isinstance(code, int) else code.value[0]
    return Status(code=number, message=message)


# How a call ends


def test_only_bigquerys_own_words_make_the_end_of_a_call_the_end_of_an_idle_connection() -> None:
    assert is_idle_close(CallError(StatusCode.ABORTED, IDLE))
    assert not is_idle_close(CallError(StatusCode.ABORTED, "The transaction was aborted."))
    assert not is_idle_close(CallError(StatusCode.ABORTED, None))
    assert not is_idle_close(CallError(StatusCode.UNAVAILABLE, IDLE))
    assert not is_idle_close(RuntimeError(IDLE))


def test_a_call_that_was_not_answered_leaves_open_whether_the_rows_are_stored() -> None:
    assert failure_of_call(AppendTimeoutError(), timeout=29.7) == Failure(
        Reason("BigQuery did not answer within 30 s"), None, may_be_the_rows=True, stored="unknown"
    )
    assert failure_of_call(EndedError(), timeout=1) == Failure(
        Reason("BigQuery ended the connection without an answer"),
        None,
        may_be_the_rows=True,
        stored="unknown",
    )


@pytest.mark.parametrize(
    ("code", "to_do"),
    [
        (StatusCode.UNAUTHENTICATED, CREDENTIALS),
        (StatusCode.PERMISSION_DENIED, "holds bigquery.tables.updateData"),
        (StatusCode.NOT_FOUND, WHAT_TO_DO[404]),
        (StatusCode.UNIMPLEMENTED, "check the endpoint"),
        (StatusCode.UNAVAILABLE, None),
        (StatusCode.RESOURCE_EXHAUSTED, None),
        (StatusCode.ABORTED, None),
    ],
)
def test_what_never_saw_a_row_is_told_whole_and_is_no_evidence_against_rows(
    code: StatusCode, to_do: str | None
) -> None:
    failure = failure_of_call(CallError(code, "what is\n  said"), timeout=1)
    assert failure.reason == Reason(f"{code.name}: what is said")
    assert (failure.what_to_do is None) == (to_do is None)
    assert (to_do or "") in (failure.what_to_do or "")
    assert (failure.may_be_the_rows, failure.stored) == (False, "unknown")
    assert failure_of_call(CallError(code, None), timeout=1).reason == Reason(code.name)


@pytest.mark.parametrize(
    "code",
    [
        StatusCode.INTERNAL,
        StatusCode.UNKNOWN,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.CANCELLED,
    ],
)
def test_what_a_row_may_have_caused_may_quote_it(code: StatusCode) -> None:
    failure = failure_of_call(CallError(code, "odd\tvalue"), timeout=1)
    assert failure == Failure(
        Reason(code.name, "odd value"), None, may_be_the_rows=True, stored="unknown"
    )


def test_a_calls_own_invalid_argument_is_about_the_stream_and_may_quote_a_row() -> None:
    failure = failure_of_call(CallError(StatusCode.INVALID_ARGUMENT, "Invalid name"), timeout=1)
    assert failure.reason == Reason("INVALID_ARGUMENT", "Invalid name")
    assert failure.what_to_do == "run `lorc-eventlog check --transport grpc`"
    assert not failure.may_be_the_rows


def test_a_call_that_was_never_made_stored_nothing_whatever_was_raised() -> None:
    failure = failure_of_call(ValueError("key"), timeout=1)
    assert failure == Failure(
        Reason("no credentials (ValueError)"), CREDENTIALS, may_be_the_rows=False, stored="no"
    )
    failure = failure_of_call(requests.exceptions.ConnectionError("away"), timeout=1)
    assert (failure.may_be_the_rows, failure.stored) == (False, "no")


def test_words_about_the_size_of_a_request_refuse_it() -> None:
    words = "Received Message Larger than max (20000000 vs. 10485760)"
    error = CallError(StatusCode.RESOURCE_EXHAUSTED, words)
    refusal = Refusal(Reason("RESOURCE_EXHAUSTED", words), is_about_size=True)
    assert failure_of_append(error, timeout=1) == refusal
    for other in (
        CallError(StatusCode.RESOURCE_EXHAUSTED, "quota"),
        CallError(StatusCode.RESOURCE_EXHAUSTED, None),
        AppendTimeoutError(),
        ValueError(words),
    ):
        assert failure_of_append(other, timeout=7) == failure_of_call(other, timeout=7)


def test_a_permission_that_is_missing_may_be_a_table_that_is() -> None:
    words = "Permission denied on resource (or it may not exist)."
    grant = what_to_do(StatusCode.PERMISSION_DENIED, "denied")
    assert "roles/bigquery.dataEditor" in (grant or "")
    assert what_to_do(StatusCode.PERMISSION_DENIED, words) == f"{grant}; or {WHAT_TO_DO[404]}"
    assert what_to_do(StatusCode.UNAVAILABLE, words) is None
    assert failure_of_call(CallError(StatusCode.PERMISSION_DENIED, words), timeout=1) == Failure(
        Reason(f"PERMISSION_DENIED: {words}"),
        f"{grant}; or {WHAT_TO_DO[404]}",
        may_be_the_rows=False,
        stored="unknown",
    )
    found = failure_in_answer(status(StatusCode.PERMISSION_DENIED, words))
    assert isinstance(found, Failure)
    assert found.what_to_do == f"{grant}; or {WHAT_TO_DO[404]}"


def test_the_status_of_a_call_is_what_bigquery_sent_with_its_end() -> None:
    error = CallError(StatusCode.OUT_OF_RANGE, "beyond")
    assert status_of(error) == status(StatusCode.OUT_OF_RANGE, "beyond")
    assert status_of(CallError(StatusCode.ABORTED, None)) == status(StatusCode.ABORTED)
    sent = status(StatusCode.OUT_OF_RANGE, "The offset is beyond stream")
    sent.details.add(type_url=STORAGE_ERROR_URL, value=StorageError(code=9).SerializeToString())
    trailing = {"other": b"\xff", "grpc-status-details-bin": sent.SerializeToString()}
    assert status_of(CallError(StatusCode.OUT_OF_RANGE, "beyond", trailing)) == sent
    assert status_of(CallError(StatusCode.OUT_OF_RANGE, "b", {"x": b""})).message == "b"


def test_details_that_are_none_say_nothing() -> None:
    garbage = {"grpc-status-details-bin": b"\xff\xff\xff"}
    found = status_of(CallError(StatusCode.UNAVAILABLE, "draining", garbage))
    assert found == status(StatusCode.UNAVAILABLE, "draining")
    found.details.add(type_url=STORAGE_ERROR_URL, value=b"\xff\xff\xff")
    assert storage_error_of(found) == 0


# What an answer says


@pytest.mark.parametrize(
    ("code", "to_do"),
    [(1, "create the table"), (7, "lacks a column"), (10, "Cloud KMS"), (14, "Cloud KMS")],
)
def test_what_is_wrong_with_the_table_is_no_rows_fault(code: int, to_do: str) -> None:
    said = status(StatusCode.INVALID_ARGUMENT, "no")
    said.details.add(type_url=STORAGE_ERROR_URL, value=StorageError(code=code).SerializeToString())
    found = failure_in_answer(said)
    assert isinstance(found, Failure)
    assert to_do in (found.what_to_do or "")
    assert (found.reason, found.may_be_the_rows, found.stored) == (
        Reason("INVALID_ARGUMENT", "no"),
        False,
        "no",
    )


def test_an_answer_about_the_size_of_the_request_refuses_it() -> None:
    words = "Request payload size exceeds the limit"
    assert failure_in_answer(status(StatusCode.INVALID_ARGUMENT, words)) == Refusal(
        Reason("INVALID_ARGUMENT", words), is_about_size=True
    )


def test_an_error_in_an_answer_says_that_nothing_of_its_request_is_stored() -> None:
    assert failure_in_answer(status(StatusCode.UNAVAILABLE, "Task is\n overloaded")) == Failure(
        Reason("UNAVAILABLE: Task is overloaded"), None, may_be_the_rows=False, stored="no"
    )
    assert failure_in_answer(status(StatusCode.INTERNAL, "odd")) == Failure(
        Reason("INTERNAL", "odd"), None, may_be_the_rows=True, stored="no"
    )
    assert failure_in_answer(status(StatusCode.NOT_FOUND)) == Failure(
        Reason("NOT_FOUND"), WHAT_TO_DO[404], may_be_the_rows=False, stored="no"
    )


def test_a_code_that_grpc_does_not_know_is_an_unknown_error() -> None:
    assert failure_in_answer(status(99, "new")) == Failure(
        Reason("UNKNOWN", "new"), None, may_be_the_rows=True, stored="no"
    )


def test_an_invalid_argument_in_an_answer_refuses_the_request_but_not_its_size() -> None:
    assert failure_in_answer(status(StatusCode.INVALID_ARGUMENT, "Schema\n mismatch")) == Refusal(
        Reason("INVALID_ARGUMENT", "Schema mismatch"), is_about_size=False
    )


def row_errors(*named: tuple[int, str]) -> Any:
    answer = AppendRowsResponse()
    for index, message in named:
        answer.row_errors.add(index=index, message=message)
    return answer.row_errors


def test_each_row_that_is_named_is_refused_for_its_own_reason() -> None:
    about_payload, about_type = "Malformed JSON\n in payload.", "Field source: too long."
    rows = refused_rows(row_errors((0, about_payload), (2, about_type)), 3)
    said = "BigQuery refuses the row"
    assert rows == (
        RefusedRow(0, Reason(said, "Malformed JSON in payload."), about_payload, True),
        RefusedRow(2, Reason(said, about_type), about_type, False),
    )


@pytest.mark.parametrize("index", [-1, 3])
def test_an_answer_that_names_a_row_that_was_not_sent_says_nothing_of_any(index: int) -> None:
    assert refused_rows(row_errors((0, "bad"), (index, "bad")), 3) == Failure(
        Reason("the answer names rows that were not sent"),
        None,
        may_be_the_rows=True,
        stored="unknown",
    )


def test_the_code_of_a_storage_error_is_found_among_other_details() -> None:
    said = status(StatusCode.OUT_OF_RANGE)
    assert storage_error_of(said) == 0
    said.details.add(type_url="type.googleapis.com/google.rpc.DebugInfo", value=b"\xff")
    assert storage_error_of(said) == 0
    said.details.add(type_url=STORAGE_ERROR_URL, value=StorageError(code=9).SerializeToString())
    assert storage_error_of(said) == 9
