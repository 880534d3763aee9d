"""One insertAll: how each answer that BigQuery gives is understood."""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from google.auth.credentials import Credentials
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from google.cloud import bigquery
from hypothesis import given
from hypothesis import strategies as st
from wrapt import FunctionWrapper

import lorc_eventlog.bigquery.insert_all
from clients import make_client
from lorc_eventlog import build_envelope
from lorc_eventlog.bigquery.failures import (
    MAX_MESSAGE,
    RequestRefusedError,
    TryAgainError,
    as_failure,
)
from lorc_eventlog.bigquery.insert_all import Answer, _as_answer, insert_now, insert_rows
from lorc_eventlog.bigquery.redaction import redact
from lorc_eventlog.events.envelope import to_row
from lorc_eventlog.events.row import Row
from scripted_bigquery import (
    Fault,
    ScriptedBigQuery,
    answer_lost,
    half_answer,
    hang,
    malformed_json,
    reset,
    reset_after_storing,
    status,
)

TABLE = "dataset.events"


def make_row(subject_id: str | None = None, **payload: Any) -> Row:
    return to_row(
        build_envelope(event_type="a.b", payload=payload, source="s", subject_id=subject_id)
    )


class FixedToken(Credentials):
    """Credentials that refresh to a token which BigQuery does not take, as a revoked key does."""

    def refresh(self, request: object) -> None:  # noqa: ARG002
        self.token = "revoked"


@pytest.fixture
def client_with_token(scripted: ScriptedBigQuery) -> Iterator[bigquery.Client]:
    with bigquery.Client(
        project="test-project",
        credentials=FixedToken(),  # type: ignore[no-untyped-call]
        client_options={"api_endpoint": scripted.url},
    ) as client:
        yield client


@pytest.fixture
def answering() -> Iterator[tuple[bigquery.Client, list[bytes]]]:
    """A client of a server that answers 200 with whatever bytes are put into the list."""
    answer: list[bytes] = []

    class Connection(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(answer[0])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Connection) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        with make_client(f"http://127.0.0.1:{server.server_port}") as client:
            yield client, answer
        server.shutdown()


# Answers about rows


def test_the_request_is_the_one_that_googles_client_would_send(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    api_request = client._connection.api_request

    def record(**arguments: Any) -> Any:
        data = arguments["data"]
        sent.append((arguments["path"], data if isinstance(data, dict) else json.loads(data)))
        return api_request(**arguments)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(client._connection, "api_request", record)
    rows = [make_row(subject_id="p", subject='a "quoted" one'), make_row()]
    insert_rows(client, TABLE, rows)
    client.insert_rows_json(
        TABLE, rows, row_ids=[row["event_id"] for row in rows], skip_invalid_rows=True
    )
    ours, googles = sent
    assert ours == googles
    assert len(scripted.rows) == 2


def test_text_beyond_ascii_arrives_as_it_is(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    insert_rows(client, TABLE, [make_row(subject="Ärger \N{PILE OF POO}")])
    assert scripted.events()[0]["payload"] == {"subject": "Ärger \N{PILE OF POO}"}


def test_a_client_whose_method_somebody_wrapped_is_called_by_it(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = bigquery.Client.insert_rows_json
    seen = []

    @functools.wraps(original)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        seen.append(arguments[1])
        return original(*arguments, **options)

    monkeypatch.setattr(bigquery.Client, "insert_rows_json", wrapped)
    assert insert_rows(client, TABLE, [make_row()]) == Answer({}, [])
    assert seen == [TABLE]
    assert len(scripted.rows) == 1


def test_rows_that_are_stored_are_in_no_list(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    rows = [make_row(), make_row()]
    assert insert_rows(client, TABLE, rows) == Answer(refused={}, again=[])
    [request] = scripted.requests
    assert request.insert_ids == tuple(row["event_id"] for row in rows)


def test_a_bad_row_is_refused_with_its_reason_and_its_neighbours_are_stored(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.refuse_row(lambda row: "bad" in row["payload"], "invalid", "Not that.")
    rows = [make_row(), make_row(x="bad"), make_row()]
    answer = insert_rows(client, TABLE, rows)
    assert answer == Answer(refused={1: "invalid at the row: Not that."}, again=[])
    assert scripted.rows == [rows[0], rows[2]]


def test_where_bigquery_names_a_column_so_does_the_reason(client: bigquery.Client) -> None:
    row: Any = {**make_row(), "payload": {"nested": True}}
    with_other: Any = {**make_row(), "colour": 1}
    columns = [{"index": 0, "errors": [{"reason": "invalid", "location": "payload"}]}]
    assert _as_answer(columns, [row]).refused == {0: "invalid at payload: "}
    assert insert_rows(client, TABLE, [with_other]).refused == {
        0: "invalid at the row: no such field: colour."
    }


@pytest.mark.parametrize(
    "reason",
    ["stopped", "timeout", "backendError", "internalError", "rateLimitExceeded", "quotaExceeded"],
)
def test_a_row_that_is_itself_in_order_is_to_be_sent_again(
    scripted: ScriptedBigQuery, client: bigquery.Client, reason: str
) -> None:
    scripted.refuse_row(lambda row: "unlucky" in row["payload"], reason)
    answer = insert_rows(client, TABLE, [make_row(), make_row(x="unlucky")])
    assert answer == Answer(refused={}, again=[1])


def test_a_row_with_a_lasting_reason_beside_a_passing_one_is_refused(
    answering: tuple[bigquery.Client, list[bytes]],
) -> None:
    client, answer = answering
    answer.append(
        b'{"insertErrors": [{"index": 0, "errors": [{"reason": "stopped", "message": null},'
        b' {"reason": "invalid", "location": "payload", "message": "Odd."}]}]}'
    )
    refused = insert_rows(client, TABLE, [make_row()]).refused
    assert refused == {0: "stopped at the row: ; invalid at payload: Odd."}


def test_a_row_that_is_refused_without_a_reason_is_refused(
    answering: tuple[bigquery.Client, list[bytes]],
) -> None:
    client, answer = answering
    answer.append(b'{"insertErrors": [{"index": 0, "errors": [{}]}]}')
    assert insert_rows(client, TABLE, [make_row()]).refused == {0: "unknown at the row: "}


@pytest.mark.parametrize(
    "body",
    [b"[]", b'{"insertErrors": [{}]}', b'{"insertErrors": 5}', b'"hello"', b"<html>Log in!</html>"],
)
def test_an_answer_that_cannot_be_understood_is_to_be_tried_again(
    answering: tuple[bigquery.Client, list[bytes]], body: bytes
) -> None:
    """Such as the page by which a proxy asks for a login."""
    client, answer = answering
    answer.append(body)
    with pytest.raises(TryAgainError) as failure:
        insert_rows(client, TABLE, [make_row()])
    assert failure.value.what_to_do is None


# Answers about requests


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        (400, "", "400 invalid: Request contains an invalid argument."),
        (413, "", "413: <!DOCTYPE html> <title>Error 413 ("),
    ],
)
def test_a_request_that_bigquery_will_never_take_is_refused(
    scripted: ScriptedBigQuery, client: bigquery.Client, code: int, reason: str, message: str
) -> None:
    scripted.script(status(code, reason))
    with pytest.raises(RequestRefusedError, match=f"^{re.escape(message)}"):
        insert_rows(client, TABLE, [make_row()])
    assert len(scripted.requests) == 1


@pytest.mark.parametrize(
    ("code", "reason", "expected", "what_to_do", "may_be_the_rows"),
    [
        (403, "", "403 accessDenied: Access Denied: Table", "roles/bigquery.dataEditor", False),
        (403, "quotaExceeded", "403 quotaExceeded: Quota exceeded", "have the quota raised", False),
        (403, "rateLimitExceeded", "403 rateLimitExceeded: Exceeded", None, False),
        (403, "accessNotConfigured", "403 accessNotConfigured: ", "gcloud services enable", False),
        (403, "billingNotEnabled", "403 billingNotEnabled: ", "set up billing", False),
        (404, "", "404 notFound: Not found: Table", "create_events_table", False),
        (429, "", "429 rateLimitExceeded: Exceeded rate limits", None, False),
        (500, "", "500 internalError: An internal error", None, True),
        (502, "", "502: <!DOCTYPE html> <title>Error 502", None, True),
        (503, "", "503 backendError: Error encountered", None, False),
        (504, "", "504 backendError: Error encountered", None, True),
    ],
)
def test_a_request_that_may_pass_later_is_to_be_tried_again(
    scripted: ScriptedBigQuery,
    client: bigquery.Client,
    code: int,
    reason: str,
    expected: str,
    what_to_do: str | None,
    may_be_the_rows: bool,
) -> None:
    scripted.script(status(code, reason))
    with pytest.raises(TryAgainError) as failure:
        insert_rows(client, TABLE, [make_row()])
    assert failure.value.reason.startswith(expected)
    if what_to_do is None:
        assert failure.value.what_to_do is None
        assert str(failure.value) == failure.value.reason
    else:
        assert what_to_do in (failure.value.what_to_do or "")
        assert str(failure.value) == f"{failure.value.reason}: {failure.value.what_to_do}"
    assert failure.value.may_be_the_rows == may_be_the_rows
    assert len(scripted.requests) == 1  # the writer decides when to go on


@pytest.mark.parametrize(
    "fault",
    [reset(), reset_after_storing(), answer_lost(), half_answer(), malformed_json(), hang()],
    ids=lambda fault: fault.name,
)
def test_a_request_without_a_whole_answer_is_to_be_tried_again(
    scripted: ScriptedBigQuery, client: bigquery.Client, fault: Fault
) -> None:
    scripted.script(fault)
    row = make_row()
    with pytest.raises(TryAgainError) as failure:
        insert_rows(client, TABLE, [row], timeout=0.1)
    assert failure.value.what_to_do is None
    assert failure.value.may_be_the_rows
    assert insert_rows(client, TABLE, [row]) == Answer(refused={}, again=[])
    assert scripted.rows == [row]


def test_a_server_that_is_down_is_to_be_tried_again(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.stop()
    with pytest.raises(TryAgainError, match=r"^ConnectionError: .*refused"):
        insert_rows(client, TABLE, [make_row()])


# Credentials


def test_a_401_says_to_check_the_credentials(
    scripted: ScriptedBigQuery, client_with_token: bigquery.Client
) -> None:
    scripted.always(status(401))
    with pytest.raises(TryAgainError, match=r"^401 authError: Request had invalid auth") as failure:
        insert_rows(client_with_token, TABLE, [make_row()])
    assert "GOOGLE_APPLICATION_CREDENTIALS" in (failure.value.what_to_do or "")
    assert not failure.value.may_be_the_rows


def test_credentials_that_cannot_be_refreshed_say_to_check_the_credentials(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    """On a 401 google-auth refreshes, and anonymous credentials then raise its own error."""
    scripted.script(status(401))
    with pytest.raises(TryAgainError, match=r"^InvalidOperation: Anonymous") as failure:
        insert_rows(client, TABLE, [make_row()])
    assert "GOOGLE_APPLICATION_CREDENTIALS" in (failure.value.what_to_do or "")
    assert not failure.value.may_be_the_rows


def test_what_an_operator_must_mend_before_there_is_a_client_is_said() -> None:
    for error, what_to_do in [
        (DefaultCredentialsError("none"), "gcloud auth application-default login"),
        (RefreshError("expired"), "GOOGLE_APPLICATION_CREDENTIALS"),
        (OSError("Project was not passed and could not be determined."), "GOOGLE_CLOUD_PROJECT"),
    ]:
        failure = as_failure(error, ())
        assert isinstance(failure, TryAgainError)
        assert what_to_do in (failure.what_to_do or "")


# One row at once


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(400), "400 invalid: Request contains"),
        (status(401), "InvalidOperation: Anonymous credentials cannot be refreshed"),
        (status(403), "403 accessDenied: "),
        (status(413), "413: <!DOCTYPE html>"),
        (status(502), "502: <!DOCTYPE html>"),
        (malformed_json(), "JSONDecodeError: "),
        (reset(), "ConnectionError: "),
        (hang(), "ReadTimeout: "),
    ],
    ids=lambda value: f"{value.name} {value.status}" if isinstance(value, Fault) else "",
)
def test_a_row_that_is_not_taken_at_once_is_one_runtime_error_without_a_past(
    scripted: ScriptedBigQuery,
    client: bigquery.Client,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    message: str,
) -> None:
    monkeypatch.setattr(lorc_eventlog.bigquery.insert_all, "REQUEST_TIMEOUT", 0.5)
    scripted.always(fault)
    row = make_row()
    with pytest.raises(RuntimeError) as failure:
        insert_now(client, TABLE, row)
    assert str(failure.value).startswith(
        f"BigQuery did not take event {row['event_id']} (a.b): {message}"
    )
    assert failure.value.__context__ is None


def test_a_client_that_is_none_is_a_runtime_error_that_says_so() -> None:
    not_a_client: Any = "ext://app.client"
    with pytest.raises(RuntimeError, match="AttributeError: 'str' object has no attribute"):
        insert_now(not_a_client, TABLE, make_row())


class Answers:
    """A client that gives one answer."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def insert_rows_json(self, *_: object, **__: object) -> object:
        return self.answer


def test_a_client_that_answers_none_has_stored_the_row() -> None:
    client: Any = Answers(None)
    insert_now(client, TABLE, make_row())
    assert insert_rows(client, TABLE, [make_row()]) == Answer({}, [])


def test_an_answer_about_a_row_that_was_not_sent_is_to_be_tried_again() -> None:
    client: Any = Answers([{"index": 1, "errors": [{"reason": "stopped"}]}])
    with pytest.raises(TryAgainError, match="IndexError"):
        insert_rows(client, TABLE, [make_row()])


@pytest.mark.parametrize("answer", [["bad"], [{"index": 0}], [{"index": 0, "errors": ["bad"]}]])
def test_an_answer_that_makes_no_sense_is_no_success(answer: object) -> None:
    client: Any = Answers(answer)
    with pytest.raises(RuntimeError, match="did not take event"):
        insert_now(client, TABLE, make_row())
    with pytest.raises(TryAgainError):
        insert_rows(client, TABLE, [make_row()])


def test_a_row_that_is_refused_by_an_empty_list_of_reasons_is_refused() -> None:
    client: Any = Answers([{"index": 0, "errors": []}])
    with pytest.raises(RuntimeError, match="it gives no reason"):
        insert_now(client, TABLE, make_row())
    assert insert_rows(client, TABLE, [make_row()]) == Answer({0: ""}, [])


# What messages may hold


def test_values_that_bigquery_quotes_are_blanked(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.refuse_row(lambda _: True, "invalid", "Cannot parse 'diabetes', 1987 of patient-17.")
    row = make_row("patient-17", diagnosis="diabetes", born=1987)
    assert insert_rows(client, TABLE, [row]).refused == {
        0: "invalid at the row: Cannot parse '…', … of …-…."
    }


def test_values_of_any_row_are_blanked_in_what_is_said_of_the_request(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.script(status(400, message="Bad value diabetes or Größe."))
    with pytest.raises(RequestRefusedError, match=r"^400 invalid: Bad value … or …\.$") as refused:
        insert_rows(client, TABLE, [make_row(), make_row(x="diabetes"), make_row(x="Größe")])
    assert refused.value.__context__ is None


def test_values_are_blanked_whoever_quotes_them() -> None:
    failure = as_failure(ValueError("cannot send 'diabetes'"), [make_row(x="diabetes")])
    assert str(failure) == "ValueError: cannot send '…'"


@given(st.text("abcdefgh 0123456789äöü-_.", min_size=3), st.text(max_size=20))
def test_no_word_of_a_payload_survives(text: str, around: str) -> None:
    redacted = redact(f"{around} {text} {around}", [make_row(x=text)])
    for word in re.findall(r"\w+", text):
        if len(word) > 2 and word.isalnum():
            assert word not in re.findall(r"\w+", redacted)


def test_words_of_two_letters_go_if_they_stand_there_as_words() -> None:
    row = make_row("AB", dx="MS", note="this text holds is and of")
    assert redact("MS is of no use to AB", [row]) == "… … … no use to …"
    assert redact("a payload of 42", [make_row(x="overall 42")]) == "a payload of …"


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ("李明", "李明"),
        ("राम", "राम"),
        ("ALICE", "alice"),
        ("M\\u00fcller", "Müller"),
        ("Jose\u0301", "José"),
        ("19800102", "1980-01-02"),
        ("patient17", "patient-17"),
    ],
)
def test_a_value_is_blanked_however_it_is_written(message: str, value: str) -> None:
    assert redact(f"Bad value: {message}", [make_row(x=value)]) == "Bad value: …"
    assert redact(f"Bad value: {message}", [make_row(value)]) == "Bad value: …"


def test_a_client_whose_method_somebody_wrapped_by_wrapt_is_called_by_it(
    client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def wrapper(wrapped: Any, _: object, arguments: Any, options: Any) -> Any:
        seen.append(arguments[0])
        return wrapped(*arguments, **options)

    method = bigquery.Client.insert_rows_json
    monkeypatch.setattr(bigquery.Client, "insert_rows_json", FunctionWrapper(method, wrapper))
    insert_rows(client, TABLE, [make_row()])
    assert seen == [TABLE]


def test_a_long_message_is_cut(scripted: ScriptedBigQuery, client: bigquery.Client) -> None:
    scripted.script(status(400, message="x" * 10_000))
    with pytest.raises(RequestRefusedError) as refused:
        insert_rows(client, TABLE, [make_row()])
    assert str(refused.value) == "400 invalid: " + "x" * MAX_MESSAGE
    scripted.refuse_row(lambda _: True, "invalid", "y" * 10_000)
    [reason] = insert_rows(client, TABLE, [make_row()]).refused.values()
    assert reason == "invalid at the row: " + "y" * MAX_MESSAGE
    assert len(str(as_failure(ValueError("z" * 10_000), ()))) < MAX_MESSAGE + 20


def test_the_address_is_left_out_of_messages(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.script(status(404, message="Not found."))
    with pytest.raises(TryAgainError) as failure:
        insert_rows(client, TABLE, [make_row()])
    assert failure.value.reason == "404 notFound: Not found."
