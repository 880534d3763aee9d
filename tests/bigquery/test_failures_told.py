"""What is told of an error, down to its edges: each status, each kind of exception, each word."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest
import requests
from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError

from lorc_eventlog.bigquery.answers import read_answer
from lorc_eventlog.bigquery.connections import RedirectedError
from lorc_eventlog.bigquery.failures import (
    CREDENTIALS,
    GRANT,
    MAX_DETAILS,
    MAX_MESSAGE,
    WHAT_TO_DO,
    NotAcknowledgedError,
    as_failure,
    meaning_of_code,
    one_line,
    why_no_client,
)
from lorc_eventlog.bigquery.transport import Failure, Reason, Refusal


def answered(code: object, message: object = None, errors: object = None) -> Exception:
    """An error with what Google's exceptions have."""
    error = Exception("not what counts")
    error.__dict__.update(code=code, message=message, errors=errors)
    return error


def failure_of(error: BaseException) -> Failure:
    failure = as_failure(error)
    assert isinstance(failure, Failure)
    return failure


def failure(
    text: str,
    quoted: str = "",
    *,
    what_to_do: str | None = None,
    may_be_the_rows: bool = False,
    stored: Any = "unknown",
) -> Failure:
    return Failure(Reason(text, quoted), what_to_do, may_be_the_rows, stored)


# What was answered, by its status


@pytest.mark.parametrize("code", [300, 599])
def test_a_status_that_http_knows_is_an_answer(code: int) -> None:
    assert failure_of(answered(code, "said")).reason == Reason(str(code), "said")


@pytest.mark.parametrize("code", [299, 600, "503", 503.0, None])
def test_any_other_code_is_none_so_that_the_error_speaks_for_itself(code: object) -> None:
    assert failure_of(answered(code, "said")).reason == Reason("Exception", "not what counts")


@pytest.mark.parametrize("code", [401, 403, 404, 429, 503])
def test_what_never_saw_a_row_is_told_whole_if_it_gives_a_reason_that_bigquery_has(
    code: int,
) -> None:
    details = [{"reason": "quotaExceeded"}]
    assert failure_of(answered(code, "said", details)).reason.quoted == ""
    assert failure_of(answered(code, "said", details)).reason.text == f"{code} quotaExceeded: said"
    assert failure_of(answered(code, "said")).reason == Reason(str(code), "said")
    odd = [*details, {"reason": "odd"}]
    assert failure_of(answered(code, "said", odd)).reason == Reason(
        f"{code} odd quotaExceeded", "said"
    )
    assert failure_of(answered(code, None, details)).reason == Reason(f"{code} quotaExceeded")


@pytest.mark.parametrize(
    ("code", "may_be_the_rows", "stored"),
    [
        (399, False, "unknown"),
        (401, False, "no"),
        (499, False, "no"),
        (500, True, "unknown"),
        (502, True, "unknown"),
        (503, False, "unknown"),
        (504, True, "unknown"),
    ],
)
def test_a_status_says_whether_the_rows_are_suspect_and_whether_they_may_be_stored(
    code: int, may_be_the_rows: bool, stored: str
) -> None:
    found = meaning_of_code(code, "said", None)
    assert isinstance(found, Failure)
    assert (found.may_be_the_rows, found.stored) == (may_be_the_rows, stored)


@pytest.mark.parametrize(
    ("code", "said", "is_about_size"),
    [
        (400, "no such field", False),
        (400, "The request is Too Large.", True),
        (400, "request PAYLOAD SIZE exceeds", True),
        (413, "", True),
    ],
)
def test_a_request_is_refused_for_its_size_or_for_what_is_in_it(
    code: int, said: str, is_about_size: bool
) -> None:
    assert meaning_of_code(code, said, ()) == Refusal(Reason(str(code), said), is_about_size)


@pytest.mark.parametrize(
    ("reason", "said", "to_do"),
    [
        ("accessDenied", "no permission", GRANT),
        ("quotaExceeded", "", "ask for a higher quota"),
        ("rateLimitExceeded", "", None),
        ("accessNotConfigured", "", "gcloud services enable"),
        ("billingNotEnabled", "", "set up billing"),
        ("accessDenied", "not allowed in the free tier", "set up billing"),
        ("accessDenied", "denied by VPC Service Controls", "perimeter"),
    ],
)
def test_a_403_says_what_to_do_by_its_reason_and_words(
    reason: str, said: str, to_do: str | None
) -> None:
    found = meaning_of_code(403, said, [{"reason": reason}])
    assert isinstance(found, Failure)
    assert (found.what_to_do is None) == (to_do is None)
    assert (to_do or "") in (found.what_to_do or "")


def test_the_words_of_a_403_mean_nothing_with_another_status() -> None:
    found = meaning_of_code(401, "free tier", [{"reason": "quotaExceeded"}])
    assert isinstance(found, Failure)
    assert found.what_to_do == CREDENTIALS == WHAT_TO_DO[401]


def test_so_many_reasons_are_read_and_no_more() -> None:
    details = [{"reason": f"r{'x' * number}"} for number in range(MAX_DETAILS + 1)]
    text = failure_of(answered(500, None, details)).reason.text
    assert len(text.split()) == 1 + MAX_DETAILS
    assert failure_of(answered(500, None, tuple(details))).reason.text == text


# What was not answered


def test_a_redirect_says_to_check_the_proxy() -> None:
    assert failure_of(RedirectedError("302: a redirect")) == failure(
        "302: a redirect",
        what_to_do="something else answers in BigQuery's place: check the proxy (HTTPS_PROXY) and "
        "BIGQUERY_EMULATOR_HOST",
    )


def test_of_google_auth_only_the_first_part_is_told_because_others_may_quote_a_key() -> None:
    error = RefreshError("expired", {"private_key": "secret"})
    assert failure_of(error) == failure(
        "RefreshError: expired", what_to_do=CREDENTIALS, stored="no"
    )
    assert failure_of(RefreshError()) == failure(
        "RefreshError", what_to_do=CREDENTIALS, stored="no"
    )
    assert failure_of(TransportError("away")) == failure("TransportError: away", stored="no")


@pytest.mark.parametrize(
    ("answer", "passes"), [("500", True), ("599", True), ("600", False), ("1503", False)]
)
def test_credentials_whose_endpoint_answered_with_a_server_error_may_come(
    answer: str, passes: bool
) -> None:
    error = RefreshError("unable", f"status {answer}")
    assert (failure_of(error).what_to_do is None) == passes
    assert failure_of(DefaultCredentialsError(f"status {answer}")).what_to_do == CREDENTIALS
    late = RefreshError("x" * 4090 + " 503 503")
    assert failure_of(late).what_to_do is None
    assert failure_of(RefreshError("x" * 4096 + " 503")).what_to_do == CREDENTIALS


def test_no_connection_stored_nothing_and_is_told_whole() -> None:
    assert failure_of(socket.gaierror(-2, "Name or service not known")) == failure(
        "gaierror: [Errno -2] Name or service not known", stored="no"
    )
    untrusted = ssl.SSLCertVerificationError(1, "self-signed certificate")
    found = failure_of(untrusted)
    assert found.stored == "no"
    assert (found.what_to_do or "").startswith("trust the certificate (REQUESTS_CA_BUNDLE")
    assert found.reason.quoted == ""


def test_what_requests_wraps_is_found_wherever_it_is() -> None:
    inner = socket.gaierror(-2, "unknown")
    for error in (
        requests.exceptions.ConnectionError(inner),
        requests.exceptions.ConnectionError("text", inner),
        requests.exceptions.ConnectionError(requests.exceptions.RequestException(inner)),
        _caused_by(requests.exceptions.ConnectionError("text"), inner),
    ):
        assert failure_of(error).stored == "no"
    third = requests.exceptions.ConnectionError("text", "text", inner)
    assert failure_of(third).stored == "unknown"


def _caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_what_the_system_says_is_told_whole_and_other_peoples_errors_are_not() -> None:
    assert failure_of(ConnectionResetError(104, "reset")).reason.quoted == ""
    assert failure_of(socket.herror(1, "unknown host")).reason.quoted == ""
    assert failure_of(TimeoutError("timed out")).reason.quoted == ""
    assert failure_of(OSError("no number")).reason == Reason("OSError", "no number")
    assert failure_of(requests.exceptions.RequestException(5, "odd")).reason.quoted != ""
    assert failure_of(ValueError("odd")) == failure("ValueError", "odd", may_be_the_rows=True)
    assert failure_of(ValueError()) == failure("ValueError", may_be_the_rows=True)
    assert failure_of(MemoryError("full")) == failure("MemoryError", "full")


# Why there is no client


def test_a_client_that_cannot_be_made_stored_nothing() -> None:
    assert why_no_client(ssl.SSLError(1, "bad handshake")).stored == "no"
    assert why_no_client(PermissionError(13, "denied", "key.json")) == failure(
        "PermissionError: [Errno 13] denied: 'key.json'", what_to_do=CREDENTIALS, stored="no"
    )
    assert why_no_client(OSError(24, "Too many open files")) == failure(
        "OSError: [Errno 24] Too many open files", stored="no"
    )
    assert why_no_client(OSError("Project was not passed")) == failure(
        "OSError: Project was not passed",
        what_to_do="set GOOGLE_CLOUD_PROJECT, or EVENTS_BQ_DATASET to project.dataset",
        stored="no",
    )
    assert why_no_client(KeyError("secret")) == failure(
        "no credentials (KeyError)", what_to_do=CREDENTIALS, stored="no"
    )


# Words


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (None, ""),
        ("  two \n\t lines ", "two lines"),
        ("POST https://host/path: Not found", "Not found"),
        ("<urllib3.Connection object at 0x7f00>: refused", "refused"),
        ("Max retries exceeded with url: /bigquery/v2 (x)", "Max retries exceeded (x)"),
        ("x" * (MAX_MESSAGE + 1), "x" * MAX_MESSAGE),
        (" " * 3 * MAX_MESSAGE + "late", "late"),
        (" " * 4 * MAX_MESSAGE + "too late", ""),
        (b"bytes", "b'bytes'"),
        ("\ud800", "\ufffd"),
    ],
)
def test_a_message_is_one_line_without_noise(value: object, line: str) -> None:
    assert one_line(value) == line


class NotAString(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no text")


class SilentError(Exception):
    """Raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise LookupError(name)

    def __str__(self) -> str:
        raise LookupError("no text")


def test_what_cannot_be_said_is_left_out() -> None:
    assert one_line(NotAString("x")) == "x"
    assert one_line(SilentError()) == ""
    assert failure_of(SilentError()) == failure("SilentError", may_be_the_rows=True)


def test_an_answer_that_acknowledges_nothing_is_told_like_any_error() -> None:
    known = failure("no acknowledgement", may_be_the_rows=True)
    error = NotAcknowledgedError(known)
    assert str(error) == "no acknowledgement"
    assert as_failure(error) is known
    assert read_answer([], 1) == failure(
        "no acknowledgement: the answer is a list, not an object", may_be_the_rows=True
    )


@pytest.mark.parametrize(
    ("code", "may_be_the_rows"), [(400, True), (413, True), (500, True), (503, False), (404, False)]
)
def test_an_error_within_an_answer_leaves_open_what_is_stored(
    code: int, may_be_the_rows: bool
) -> None:
    found = read_answer({"error": {"code": code, "message": "said"}}, 1)
    assert isinstance(found, Failure)
    assert (found.may_be_the_rows, found.stored) == (may_be_the_rows, "unknown")


class WrapperError(Exception):
    """Holds another exception, as those of urllib3 do."""


def test_only_the_first_two_arguments_of_an_error_are_looked_at() -> None:
    inner = socket.gaierror(-2, "unknown")
    assert failure_of(WrapperError("text", inner)).stored == "no"
    assert failure_of(WrapperError("text", "text", inner)).stored == "unknown"


def test_a_long_answer_of_a_credentials_endpoint_is_not_read_to_its_end() -> None:
    assert failure_of(RefreshError("x" * 4092 + " 503")).what_to_do is None
    assert failure_of(RefreshError("x" * 4093 + " 503")).what_to_do == CREDENTIALS
