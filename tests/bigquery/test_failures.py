"""What an error of the client means for the rows: whatever it holds, nothing is raised."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest
import requests
import urllib3
from google.api_core import exceptions
from google.api_core.exceptions import RetryError
from google.auth.credentials import Credentials
from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError
from google.cloud import bigquery
from hypothesis import given
from hypothesis import strategies as st

from lorc_eventlog.bigquery.failures import MAX_MESSAGE, as_failure, passes, why_no_client
from lorc_eventlog.bigquery.imports import ClientImportError
from lorc_eventlog.bigquery.insert_all import InsertAllTransport
from lorc_eventlog.bigquery.transport import Answer, Failure, Refusal
from rows import make_row
from scripted_bigquery import (
    Fault,
    ScriptedBigQuery,
    answer,
    answer_lost,
    half_answer,
    hang,
    malformed_json,
    reset,
    reset_after_storing,
    status,
)

TABLE = "dataset.events"


class FixedToken(Credentials):
    """Credentials that refresh to a token which BigQuery does not take, as a revoked key does."""

    def refresh(self, request: object) -> None:  # noqa: ARG002
        self.token = "revoked"


class Unrefreshable(Credentials):
    """Credentials whose refresh raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.error = error

    def refresh(self, request: object) -> None:  # noqa: ARG002
        raise self.error


def client_with(credentials: Credentials, url: str) -> bigquery.Client:
    return bigquery.Client(
        project="test-project", credentials=credentials, client_options={"api_endpoint": url}
    )


def failure_of(error: BaseException) -> Failure:
    failure = as_failure(error)
    assert isinstance(failure, Failure)
    return failure


@pytest.fixture
def transport(client: bigquery.Client) -> InsertAllTransport:
    return InsertAllTransport(client, TABLE)


def send(transport: InsertAllTransport, timeout: float = 10.0) -> Failure:
    failure = transport.send([make_row()], timeout=timeout)
    assert isinstance(failure, Failure)
    return failure


# Answers about requests


@pytest.mark.parametrize(
    ("fault", "reason", "is_about_size"),
    [
        (status(400), "400 invalid: Request contains an invalid argument.", False),
        (status(413), "413: <!DOCTYPE html> <title>Error 413 (", True),
        (
            status(400, message="Request payload size exceeds the limit: 10485760 bytes."),
            "400 invalid: Request payload size exceeds the limit: 10485760 bytes.",
            True,
        ),
    ],
)
def test_a_request_that_bigquery_does_not_take_is_refused(
    scripted: ScriptedBigQuery,
    transport: InsertAllTransport,
    fault: Fault,
    reason: str,
    is_about_size: bool,
) -> None:
    scripted.script(fault)
    refusal = transport.send([make_row()], timeout=10)
    assert isinstance(refusal, Refusal)
    assert refusal.told([]).startswith(reason)
    assert refusal.is_about_size == is_about_size
    assert len(scripted.requests) == 1


@pytest.mark.parametrize(
    ("code", "reason", "expected", "what_to_do", "may_be_the_rows", "stored"),
    [
        (403, "", "403 accessDenied: Access Denied: Table", "dataEditor", False, "no"),
        (
            403,
            "quotaExceeded",
            "403 quotaExceeded: Quota ex",
            "ask for a higher quota",
            False,
            "no",
        ),
        (403, "rateLimitExceeded", "403 rateLimitExceeded: Exceeded", None, False, "no"),
        (403, "accessNotConfigured", "403 accessNotConfigured: ", "services enable", False, "no"),
        (403, "billingNotEnabled", "403 billingNotEnabled: ", "set up billing", False, "no"),
        (404, "", "404 notFound: Not found: Table", "create_events_table", False, "no"),
        (429, "", "429 rateLimitExceeded: Exceeded rate limits", None, False, "no"),
        (500, "", "500 internalError: An internal error", None, True, "unknown"),
        (502, "", "502: <!DOCTYPE html> <title>Error 502", None, True, "unknown"),
        (503, "", "503 backendError: Error encountered", None, False, "unknown"),
        (504, "", "504 backendError: Error encountered", None, True, "unknown"),
    ],
)
def test_a_request_that_may_pass_later_is_to_be_tried_again(
    scripted: ScriptedBigQuery,
    transport: InsertAllTransport,
    code: int,
    reason: str,
    expected: str,
    what_to_do: str | None,
    may_be_the_rows: bool,
    stored: str,
) -> None:
    scripted.script(status(code, reason))
    failure = send(transport)
    assert failure.told([]).startswith(expected)
    assert (failure.what_to_do is None) == (what_to_do is None)
    assert (what_to_do or "") in (failure.what_to_do or "")
    assert failure.may_be_the_rows == may_be_the_rows
    assert failure.stored == stored
    assert len(scripted.requests) == 1  # delivery decides when to go on


@pytest.mark.parametrize(
    "fault",
    [reset(), reset_after_storing(), answer_lost(), half_answer(), malformed_json(), hang()],
    ids=lambda fault: fault.name,
)
def test_a_request_without_a_whole_answer_is_to_be_tried_again(
    scripted: ScriptedBigQuery, transport: InsertAllTransport, fault: Fault
) -> None:
    scripted.script(fault)
    row = make_row()
    failure = transport.send([row], timeout=0.5)
    assert isinstance(failure, Failure)
    assert failure.what_to_do is None
    assert failure.may_be_the_rows
    assert failure.stored == "unknown"
    assert transport.send([row], timeout=10) == Answer()
    assert scripted.rows == [row]


# What is told whole, because it never saw a row


WORDS = (
    "access denied for a table not found may exist permission quota exceeded rate limits too many "
    "requests error while retrying connection refused reset by peer timed out 127 0 1 host port"
)


@pytest.mark.parametrize("code", [401, 403, 404, 429, 503])
def test_what_bigquery_says_before_it_looks_at_rows_is_told_whole(
    scripted: ScriptedBigQuery, code: int
) -> None:
    scripted.always(status(code))
    with client_with(FixedToken(), scripted.url) as client:  # type: ignore[no-untyped-call]
        row = make_row(x=WORDS)
        failure = InsertAllTransport(client, TABLE).send([row], timeout=10)
    assert isinstance(failure, Failure)
    assert failure.reason.quoted == ""
    assert "…" not in failure.told([row])


@pytest.mark.parametrize(
    "fault",
    [
        status(500, message="Bad value diabetes."),
        status(400, message="Bad value diabetes."),
        answer(b'{"error": {"code": 503, "message": "Bad value diabetes."}}', 503),
        answer(b'{"error": {"code": 403, "message": "diabetes", "errors": ["diabetes"]}}', 403),
        answer(b"<html>You sent: diabetes</html>", 429),
    ],
)
def test_what_may_quote_a_row_is_redacted_whoever_says_it(
    scripted: ScriptedBigQuery, transport: InsertAllTransport, fault: Fault
) -> None:
    """A gateway in between has no reasons in the form of BigQuery's."""
    scripted.script(fault)
    row = make_row(x="diabetes")
    result = transport.send([row], timeout=10)
    assert isinstance(result, (Failure, Refusal))
    assert "diabetes" not in result.told([row])
    assert "…" in result.told([row])


def test_a_server_that_is_down_is_named_with_its_port(
    scripted: ScriptedBigQuery, transport: InsertAllTransport
) -> None:
    scripted.stop()
    failure = send(transport)
    told = failure.told([make_row(x=WORDS)])
    assert told.startswith("ConnectionError: ")
    assert (
        told == f"ConnectionError: no connection to 127.0.0.1:{scripted.port}: Connection refused"
    )
    assert "insertAll" not in told
    assert not failure.may_be_the_rows
    assert failure.stored == "no"


@pytest.mark.skipif(
    not hasattr(urllib3.exceptions, "NameResolutionError"), reason="urllib3 has it since 2.0"
)
def test_a_host_that_has_no_address_is_named() -> None:
    error = urllib3.exceptions.NameResolutionError("bq.invalid", None, OSError("Name unknown"))  # type: ignore[arg-type]
    failure = failure_of(requests.exceptions.ConnectionError(error))
    assert "bq.invalid" in failure.told([make_row(x="bq invalid name")])
    assert (failure.may_be_the_rows, failure.stored) == (False, "no")


def test_a_certificate_that_is_not_trusted_says_what_to_do() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    chain = requests.exceptions.SSLError(
        urllib3.exceptions.MaxRetryError(None, "/", urllib3.exceptions.SSLError(error))  # type: ignore[arg-type]
    )
    failure = failure_of(chain)
    assert "REQUESTS_CA_BUNDLE" in (failure.what_to_do or "")
    assert not failure.may_be_the_rows


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        requests.exceptions.ReadTimeout("Read timed out."),
        requests.exceptions.ConnectionError(
            urllib3.exceptions.ProtocolError("aborted", BrokenPipeError(32, "Broken pipe"))
        ),
    ],
)
def test_what_the_system_says_is_told_whole(error: Exception) -> None:
    failure = failure_of(error)
    assert failure.reason.quoted == ""
    assert failure.may_be_the_rows
    assert failure.stored == "unknown"


def test_what_the_client_says_of_itself_is_redacted() -> None:
    failure = failure_of(ValueError("cannot send 'diabetes'"))
    assert failure.told([make_row(x="diabetes")]) == "ValueError: cannot send '…'"
    echo = requests.exceptions.ChunkedEncodingError("InvalidChunkLength(got length b'diabetes'")
    assert "diabetes" not in failure_of(echo).told([make_row(x="diabetes")])


# Credentials


def test_a_401_says_to_check_the_credentials(scripted: ScriptedBigQuery) -> None:
    scripted.always(status(401))
    with client_with(FixedToken(), scripted.url) as client:  # type: ignore[no-untyped-call]
        failure = send(InsertAllTransport(client, TABLE))
    assert failure.reason.text.startswith("401 authError: Request had invalid auth")
    assert "GOOGLE_APPLICATION_CREDENTIALS" in (failure.what_to_do or "")
    assert not failure.may_be_the_rows


def test_credentials_that_cannot_be_refreshed_say_to_check_the_credentials(
    scripted: ScriptedBigQuery, transport: InsertAllTransport
) -> None:
    """On a 401 google-auth refreshes, and anonymous credentials then raise its own error."""
    scripted.script(status(401))
    failure = send(transport)
    assert failure.reason.text.startswith("InvalidOperation: Anonymous")
    assert "GOOGLE_APPLICATION_CREDENTIALS" in (failure.what_to_do or "")
    assert (failure.may_be_the_rows, failure.stored) == (False, "no")


def wrapped(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (RefreshError("invalid_grant: Token has been expired or revoked."), False),
        (RefreshError("invalid_grant", {"error": "invalid_grant"}), False),
        (RefreshError("internal_failure", retryable=True), True),
        (RefreshError("Unable to acquire", '{"error": {"code": 503}}'), True),
        (RefreshError(TransportError("metadata is away")), True),
        (wrapped(RefreshError("no"), TransportError("away")), True),
        (wrapped(RefreshError("no"), requests.exceptions.ConnectTimeout("late")), True),
        (TransportError("away"), True),
        (DefaultCredentialsError("Your default credentials were not found. 503"), False),
    ],
)
def test_a_token_that_cannot_be_had_for_the_moment_is_no_missing_credential(
    scripted: ScriptedBigQuery, error: Exception, passes: bool
) -> None:
    with client_with(Unrefreshable(error), scripted.url) as client:
        failure = send(InsertAllTransport(client, TABLE))
    assert (failure.what_to_do is None) == passes
    assert failure.stored == "no"
    assert not failure.may_be_the_rows
    assert type(error).__name__ in failure.reason.text


def test_why_there_is_no_client_is_told_with_what_to_do() -> None:
    key = "-----BEGIN PRIVATE KEY-----"
    missing = ClientImportError("No module named 'google.cloud'")
    missing.__cause__ = ModuleNotFoundError("No module named 'google.cloud'")
    for error, told, what_to_do in [
        (DefaultCredentialsError("none"), "DefaultCredentialsError: none", "gcloud auth"),
        (RefreshError("expired", key), "RefreshError: expired", "GOOGLE_APPLICATION"),
        (OSError("Project was not passed."), "OSError: Project was not", "GOOGLE_CLOUD_PROJECT"),
        (PermissionError(13, "denied", "key.json"), "PermissionError: [Errno 13] ", "GOOGLE_APP"),
        (OSError(24, "Too many open files"), "OSError: [Errno 24] Too many open files", None),
        (requests.exceptions.ConnectionError("away"), "ConnectionError", None),
        (ValueError(key), "no credentials (ValueError)", "GOOGLE_APPLICATION_CREDENTIALS"),
        (missing, "No module named", "install google-cloud-bigquery"),
        (ClientImportError("a warning"), "a warning", None),
    ]:
        failure = why_no_client(error)
        assert failure.told([]).startswith(told)
        assert key not in failure.told([])
        assert (failure.what_to_do is None) == (what_to_do is None)
        assert (what_to_do or "") in (failure.what_to_do or "")
        assert failure.stored == "no" or isinstance(error, requests.exceptions.ConnectionError)


# Errors of any make


class RaisingError(Exception):
    """Raises whenever somebody looks at it."""

    def __getattribute__(self, name: str) -> Any:
        raise LookupError(name)

    def __str__(self) -> str:
        raise LookupError("no text")


class RaisingPropertyError(Exception):
    @property
    def code(self) -> int:
        raise RuntimeError("no code")

    @property
    def errors(self) -> list[object]:
        raise RuntimeError("no errors")

    def __str__(self) -> str:
        raise RecursionError


class NotAString(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def split(self, *_: object) -> list[str]:
        raise RuntimeError("no words")


def holding(**attributes: object) -> Exception:
    error = Exception("text")
    error.__dict__.update(attributes)
    return error


class CircularError(Exception):
    @property
    def reason(self) -> Exception:
        return self


ODD: list[Callable[[], BaseException]] = [
    RaisingError,
    RaisingPropertyError,
    CircularError,
    lambda: Exception(NotAString("x")),
    lambda: holding(code=503, errors="upstream down", message="x"),
    lambda: holding(code=503, errors=["upstream down"], message="x"),
    lambda: holding(code=503, errors={"reason": "x"}, message={"a": 1}),
    lambda: holding(code=503, errors=[{"reason": ["x"]}, {"reason": None}, 5, None], message=None),
    lambda: holding(code=503, errors=iter([1]), message=NotAString("x")),
    lambda: holding(code=True, errors=5, message=b"bytes"),
    lambda: holding(code="503"),
    lambda: holding(code=99999999999999999999),
    lambda: holding(code=float("nan")),
    lambda: holding(code=503, message="\ud800\udfff lone"),
    lambda: holding(code=503, message="x" * 50_000_000),
    lambda: holding(cause=5),
    lambda: holding(cause=RaisingError()),
    lambda: holding(reason=RaisingError(), args=5),
    Exception,
    lambda: Exception(Exception(Exception(None))),
    lambda: BaseExceptionGroup("many", [RaisingError(), KeyboardInterrupt()]),
    lambda: SystemExit(503),
    MemoryError,
    lambda: RefreshError(RaisingError()),
    RefreshError,
    lambda: OSError(RaisingError(), NotAString("x")),
]


@pytest.mark.parametrize("make", ODD)
def test_no_error_raises_whatever_it_holds(make: Callable[[], BaseException]) -> None:
    error = make()
    failure = as_failure(error)
    assert isinstance(failure, Failure)
    assert failure.told([make_row(x="x")]).encode()
    assert len(failure.told([])) < 2 * MAX_MESSAGE
    assert isinstance(why_no_client(error).told([]), str)


@given(
    st.integers() | st.none() | st.text(),
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["reason", "x"]), inner),
    ),
    st.none() | st.text() | st.binary() | st.lists(st.text()),
)
def test_no_attribute_makes_it_raise(code: object, errors: object, message: object) -> None:
    result = as_failure(holding(code=code, errors=errors, message=message))
    assert result.told([make_row(x="x")]).encode()


class Client:
    """Somebody's double, which raises."""

    project = "p"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def insert_rows_json(self, *_: object, **__: object) -> object:
        raise self.error


@pytest.mark.parametrize("make", ODD)
def test_whatever_a_client_raises_is_returned(make: Callable[[], BaseException]) -> None:
    error = make()
    client: Any = Client(error if isinstance(error, Exception) else Exception(error))
    failure = InsertAllTransport(client, TABLE).send([make_row()], timeout=10)
    assert isinstance(failure, Failure)
    assert failure.stored in ("no", "unknown")


def test_an_interrupt_is_raised() -> None:
    client: Any = Client(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        InsertAllTransport(client, TABLE).send([make_row()], timeout=10)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error": {"code": 503, "message": "down", "errors": ["down"]}}', "503: down"),
        (b'{"error": {"code": 503, "message": "down", "errors": "down"}}', "503: down"),
        (b'{"error": {"code": 503, "message": ["down"], "errors": {"a": 1}}}', "503: ['down']"),
        (b'{"error": {"code": 503, "errors": [{"reason": {"a": 1}}]}}', "503"),
        (b'{"error": "down"}', ""),
        (b'["down"]', ""),
        (b"null", ""),
        (b"\xff\xfe", "503"),
        (b"", "503"),
    ],
)
def test_an_error_of_a_gateway_of_any_make_is_to_be_tried_again(
    scripted: ScriptedBigQuery, transport: InsertAllTransport, body: bytes, reason: str
) -> None:
    scripted.script(answer(body, 503))
    row = make_row()
    failure = transport.send([row], timeout=10)
    assert isinstance(failure, Failure)
    assert failure.told([row]).startswith(reason)
    assert transport.send([row], timeout=10) == Answer()


# Whose fault it is


def test_a_fault_of_ours_is_no_evidence_against_the_rows(
    transport: InsertAllTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    row: Any = make_row()
    del row["event_id"]
    failure = transport.send([row], timeout=10)
    assert isinstance(failure, Failure)
    assert failure.reason.text == "KeyError"
    assert not failure.may_be_the_rows

    class Strict:
        def insert_rows_json(self) -> None:
            """Takes none of our arguments."""

    client: Any = Strict()
    assert not send(InsertAllTransport(client, TABLE)).may_be_the_rows
    client = Client(MemoryError())
    assert not send(InsertAllTransport(client, TABLE)).may_be_the_rows
    client = Client(TypeError("of the client's own"))
    assert send(InsertAllTransport(client, TABLE)).may_be_the_rows
    monkeypatch.undo()


def test_what_a_retry_gave_up_is_told_and_not_that_it_did() -> None:
    error = RetryError("gave up", exceptions.ServiceUnavailable("down"))  # type: ignore[no-untyped-call]
    assert failure_of(error).told([]) == "503: down"


def test_a_status_that_is_no_error_of_bigquerys_is_to_be_tried_again() -> None:
    failure = failure_of(exceptions.from_http_status(304, "not modified"))  # type: ignore[no-untyped-call]
    assert failure.told([]) == "304: not modified"
    assert not failure.may_be_the_rows


def test_the_address_is_left_out_of_messages(
    scripted: ScriptedBigQuery, transport: InsertAllTransport
) -> None:
    scripted.script(status(404, message="Not found."))
    assert send(transport).reason.text == "404 notFound: Not found."


def test_a_long_message_is_cut(scripted: ScriptedBigQuery, transport: InsertAllTransport) -> None:
    scripted.script(status(404, message="x" * 10_000))
    assert send(transport).reason.text == "404 notFound: " + "x" * MAX_MESSAGE
    assert len(failure_of(ValueError("z" * 10_000)).told([])) < MAX_MESSAGE + 20


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (exceptions.ServiceUnavailable("overloaded"), True),  # type: ignore[no-untyped-call]
        (requests.ConnectionError("reset"), True),
        (exceptions.Forbidden("Access Denied"), False),  # type: ignore[no-untyped-call]
        (exceptions.BadRequest("no such field"), False),  # type: ignore[no-untyped-call]
    ],
)
def test_what_nobody_must_mend_passes(error: Exception, expected: bool) -> None:
    assert passes(error) is expected
