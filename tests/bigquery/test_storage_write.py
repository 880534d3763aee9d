"""The Storage Write API on the default stream, over real gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from grpc import StatusCode

from clients import Query
from emulator import Emulator
from harness import eventually
from lorc_eventlog.bigquery.storage_connection import Connection, Endpoint
from lorc_eventlog.bigquery.storage_messages import encode_rows
from lorc_eventlog.bigquery.storage_write import StorageWriteTransport, most_bytes, wire_bytes
from lorc_eventlog.bigquery.transport import Answer, Failure, Refusal
from lorc_eventlog.events.row import Row, finish, row_at, row_bytes
from scripted_storage import (
    DRAINING_WORDS,
    IDLE_WORDS,
    OVERLOAD_WORDS,
    QUOTA_WORDS,
    Cut,
    InAnswer,
    Pass,
    Reply,
    ScriptedStorage,
    Silence,
    Step,
    types,
)

STREAM = "projects/test-project/datasets/dataset/tables/events/streams/_default"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedStorage]:
    with ScriptedStorage() as scripted:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", scripted.address)
        yield scripted


@pytest.fixture
def transport(server: ScriptedStorage) -> Iterator[StorageWriteTransport]:
    del server  # it must be there
    made = StorageWriteTransport("dataset.events")
    yield made
    made.reconnect()


def make_rows(numbers: range, **payload: Any) -> list[Row]:
    return [row_at(0.0, "test", {"number": n, **payload}, "tests", None, "trace") for n in numbers]


def test_rows_arrive_with_every_field_as_it_was(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    row = row_at(1.5, "t", {"text": "né\u2028\U0001f600"}, "s", "v1", None, "subject")
    assert transport.send([row], timeout=10) == Answer()
    assert server.rows() == [{key: text for key, text in row.items() if text is not None}]


def test_the_stream_its_routing_header_and_the_schema_come_with_the_first_request(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    transport.send(make_rows(range(2)), timeout=10)
    transport.send(make_rows(range(2, 3)), timeout=10)
    first, second = server.requests
    assert (first.stream, first.rows, second.rows) == (STREAM, 2, 1)
    assert first.metadata["x-goog-request-params"] == f"write_stream={STREAM}"
    assert first.connection == second.connection
    assert second.size < first.size / 2  # without the schema
    assert transport.is_connected


def test_a_project_in_the_name_of_the_table_is_the_tables_project(
    server: ScriptedStorage,
) -> None:
    transport = StorageWriteTransport("other-project.dataset.events")
    assert transport.send(make_rows(range(1)), timeout=10) == Answer()
    assert server.requests[0].stream.startswith("projects/other-project/datasets/dataset/")
    transport.reconnect()


@pytest.mark.parametrize(
    ("step", "may_be_the_rows", "stored"),
    [
        (Cut(words=DRAINING_WORDS), False, "unknown"),
        (Cut(words=OVERLOAD_WORDS), False, "unknown"),
        (Cut(stored=True), False, "unknown"),
        (Cut(code=StatusCode.RESOURCE_EXHAUSTED, words=QUOTA_WORDS), False, "unknown"),
        (Cut(code=StatusCode.INTERNAL, words="Internal error."), True, "unknown"),
        (Cut(code=StatusCode.UNKNOWN, words=""), True, "unknown"),
        (InAnswer(StatusCode.UNAVAILABLE, OVERLOAD_WORDS), False, "no"),
        (InAnswer(StatusCode.INTERNAL, "Internal error."), True, "no"),
    ],
)
def test_what_time_mends_is_a_failure_that_nobody_need_mend(
    server: ScriptedStorage,
    transport: StorageWriteTransport,
    step: Step,
    may_be_the_rows: bool,
    stored: str,
) -> None:
    server.script(step)
    result = transport.send(make_rows(range(3)), timeout=10)
    assert isinstance(result, Failure)
    assert (result.what_to_do, result.may_be_the_rows, result.stored) == (
        None,
        may_be_the_rows,
        stored,
    )
    assert transport.send(make_rows(range(3, 4)), timeout=10) == Answer()
    assert 3 in server.numbers()


@pytest.mark.parametrize(
    ("code", "words", "to_do"),
    [
        (
            StatusCode.PERMISSION_DENIED,
            "Permission 'TABLES_UPDATE_DATA' denied on resource 'projects/p/datasets/d/tables/t'",
            "bigquery.tables.updateData",
        ),
        (StatusCode.NOT_FOUND, "Requested entity was not found. Entity: table", "create the table"),
        (StatusCode.UNAUTHENTICATED, "Request had invalid authentication", "credentials"),
        (StatusCode.UNIMPLEMENTED, "Method not found!", "endpoint"),
    ],
)
def test_what_an_operator_must_mend_is_told_whole_and_with_what_to_do(
    server: ScriptedStorage,
    transport: StorageWriteTransport,
    code: StatusCode,
    words: str,
    to_do: str,
) -> None:
    server.deny = (code, words)
    result = transport.send(make_rows(range(1), text=words), timeout=10)
    assert isinstance(result, Failure)
    assert words in result.reason.told(make_rows(range(1), text=words))
    assert to_do in (result.what_to_do or "")
    assert not result.may_be_the_rows


@pytest.mark.parametrize(
    ("storage_error", "code", "words", "to_do"),
    [
        (
            "SCHEMA_MISMATCH_EXTRA_FIELDS",
            StatusCode.INVALID_ARGUMENT,
            "Input schema has more fields than BigQuery schema, extra fields: 'subject_id'.",
            "lacks a column",
        ),
        (
            "TABLE_NOT_FOUND",
            StatusCode.NOT_FOUND,
            "Requested entity was not found.",
            "create-table",
        ),
        ("KMS_SERVICE_ERROR", StatusCode.FAILED_PRECONDITION, "Error in Cloud KMS", "Cloud KMS"),
        (
            "KMS_PERMISSION_DENIED",
            StatusCode.PERMISSION_DENIED,
            "Cloud KMS permission denied",
            "Cloud KMS",
        ),
    ],
)
def test_what_is_wrong_with_the_table_is_no_verdict_on_rows(
    server: ScriptedStorage,
    transport: StorageWriteTransport,
    storage_error: str,
    code: StatusCode,
    words: str,
    to_do: str,
) -> None:
    server.script(InAnswer(code, words, storage_error))
    result = transport.send(make_rows(range(1)), timeout=10)
    assert isinstance(result, Failure)
    assert to_do in (result.what_to_do or "")
    assert (result.may_be_the_rows, result.stored) == (False, "no")
    assert transport.send(make_rows(range(1)), timeout=10) == Answer()


def test_a_permission_that_is_missing_or_a_table_that_is_not_there_is_told_as_both(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    words = (
        "Permission 'TABLES_UPDATE_DATA' denied on resource "
        "'projects/p/datasets/d/tables/t' (or it may not exist)."
    )
    server.deny = (StatusCode.PERMISSION_DENIED, words)
    result = transport.send(make_rows(range(1)), timeout=10)
    assert isinstance(result, Failure)
    assert "roles/bigquery.dataEditor" in (result.what_to_do or "")
    assert "create-table" in (result.what_to_do or "")


@pytest.mark.parametrize(
    "step",
    [
        InAnswer(
            StatusCode.INVALID_ARGUMENT, "AppendRows request too large: 19923131 limit 10485760"
        ),
        Cut(
            code=StatusCode.INVALID_ARGUMENT,
            words="AppendRows request too large: 19923131 limit 10485760",
        ),
        Cut(
            code=StatusCode.RESOURCE_EXHAUSTED,
            words="Received message larger than max (4700000 vs. 4194304)",
        ),
    ],
)
def test_a_request_that_is_too_large_is_to_be_divided(
    server: ScriptedStorage, transport: StorageWriteTransport, step: Step
) -> None:
    server.script(step)
    result = transport.send(make_rows(range(2)), timeout=10)
    assert isinstance(result, Refusal)
    assert result.is_about_size


def test_words_that_may_quote_a_row_are_redacted_whatever_the_code(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    server.script(InAnswer(StatusCode.FAILED_PRECONDITION, "the value Kidney is not allowed"))
    rows = make_rows(range(1), text="Kidney")
    result = transport.send(rows, timeout=10)
    assert isinstance(result, Failure)
    assert result.reason.told(rows) == "FAILED_PRECONDITION: the value … is not allowed"


def test_a_calls_own_invalid_argument_is_no_verdict_on_rows(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    server.script(Cut(code=StatusCode.INVALID_ARGUMENT, words="Invalid stream name"))
    result = transport.send(make_rows(range(1)), timeout=10)
    assert isinstance(result, Failure)
    assert not result.may_be_the_rows


def test_an_invalid_argument_in_an_answer_refuses_the_request(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    words = "The proto field mismatched with BigQuery field at events.subject_id."
    server.script(InAnswer(StatusCode.INVALID_ARGUMENT, words))
    result = transport.send(make_rows(range(3)), timeout=10)
    assert isinstance(result, Refusal)
    assert server.rows() == []


def test_bad_rows_are_named_and_all_others_are_stored_once(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    rows = make_rows(range(6))
    rows[1:2] = make_rows(range(1, 2), poison="Secret")
    rows[4:5] = make_rows(range(4, 5), poison="Secret")
    result = transport.send(rows, timeout=10)
    assert isinstance(result, Answer)
    assert [row.index for row in result.refused] == [1, 4]
    assert all(row.is_about_payload for row in result.refused)
    assert server.numbers() == [0, 2, 3, 5]


def test_a_list_of_bad_rows_that_is_cut_short_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ScriptedStorage(most_row_errors=2) as server:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", server.address)
        transport = StorageWriteTransport("dataset.events")
        rows = [*make_rows(range(5), poison=""), *make_rows(range(5, 7))]
        result = transport.send(rows, timeout=10)
        assert isinstance(result, Answer)
        assert sorted(row.index for row in result.refused) == [0, 1, 2, 3, 4]
        assert server.numbers() == [5, 6]
        transport.reconnect()


def test_a_failure_after_bad_rows_were_found_is_a_failure_of_all(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    server.script(Pass(), Cut())
    rows = [*make_rows(range(1), poison=""), *make_rows(range(1, 3))]
    assert isinstance(transport.send(rows, timeout=10), Failure)
    assert server.rows() == []


def test_the_end_of_an_idle_connection_is_no_failure(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    assert transport.send(make_rows(range(1)), timeout=10) == Answer()
    server.end_idle_connections()
    server.script(Cut(code=StatusCode.ABORTED, words=IDLE_WORDS))  # just as it is used
    assert transport.send(make_rows(range(1, 2)), timeout=10) == Answer()
    assert server.numbers() == [0, 1]


def test_a_new_connection_that_is_closed_as_idle_is_a_failure_and_no_loop(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    server.script(*[Cut(code=StatusCode.ABORTED, words=IDLE_WORDS)] * 9)
    assert isinstance(transport.send(make_rows(range(1)), timeout=10), Failure)
    assert len(server.requests) == 3


def test_a_request_without_an_answer_ends_in_time_and_drops_its_connection(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    server.script(Silence())
    started = time.monotonic()
    result = transport.send(make_rows(range(1)), timeout=0.3)
    assert time.monotonic() - started < 5
    assert isinstance(result, Failure)
    assert result.stored == "unknown"
    assert transport.send(make_rows(range(1)), timeout=10) == Answer()
    assert [request.connection for request in server.requests] == [1, 2]


def test_a_request_without_an_answer_holds_up_nobody_else(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    server.script(Silence())
    hung = threading.Thread(
        target=transport.send, args=[make_rows(range(1))], kwargs={"timeout": 2}
    )
    hung.start()
    while not server.requests:
        time.sleep(0.01)
    assert transport.send(make_rows(range(1, 2)), timeout=10) == Answer()
    assert hung.is_alive()
    hung.join()


def test_a_server_that_cannot_be_reached_is_told_with_host_port_and_the_systems_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    rows = make_rows(range(1), text="127 refused connect")
    result = StorageWriteTransport("dataset.events").send(rows, timeout=10)
    assert isinstance(result, Failure)
    told = result.reason.told(rows)
    assert "127.0.0.1:9" in told
    assert "Connection refused" in told


def test_connecting_finds_credentials_and_leaves_an_error_to_the_first_request(
    transport: StorageWriteTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.connect()
    transport.connect()
    assert transport.is_connected
    monkeypatch.delenv("BIGQUERY_STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    other = StorageWriteTransport("dataset.events")
    other.connect()
    assert not other.is_connected


def test_without_credentials_the_failure_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BIGQUERY_STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    transport = StorageWriteTransport("dataset.events")
    result = transport.send(make_rows(range(1)), timeout=10)
    assert isinstance(result, Failure)
    assert "credentials" in (result.what_to_do or "")
    assert not transport.is_connected


def test_a_call_that_ends_without_an_answer_is_a_failure(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    server.script(Reply(None))
    result = transport.send(make_rows(range(1)), timeout=10)
    assert isinstance(result, Failure)
    assert result.stored == "unknown"
    assert transport.send(make_rows(range(1)), timeout=10) == Answer()


def test_when_all_rows_are_bad_nothing_is_left_to_send(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    result = transport.send(make_rows(range(2), poison=""), timeout=10)
    assert isinstance(result, Answer)
    assert [row.index for row in result.refused] == [0, 1]
    assert server.rows() == []


def test_an_answer_about_rows_that_were_not_sent_is_a_failure(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    answer = types.AppendRowsResponse.pb()()
    answer.row_errors.add().index = 7
    server.script(Reply(answer))
    result = transport.send(make_rows(range(1)), timeout=10)
    assert isinstance(result, Failure)
    assert "not sent" in result.reason.text


def test_an_interruption_drops_the_connection_and_passes_on(
    server: ScriptedStorage, transport: StorageWriteTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    transport.send(make_rows(range(1)), timeout=10)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(Connection, "append", interrupt)
        with pytest.raises(KeyboardInterrupt):
            transport.send(make_rows(range(1)), timeout=10)
    transport.reconnect()
    transport.send(make_rows(range(1, 2)), timeout=10)
    assert [request.connection for request in server.requests] == [1, 2]


def test_a_connection_for_which_there_is_no_thread_is_closed(
    server: ScriptedStorage, transport: StorageWriteTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Channel:
        is_closed = False

        def stream_stream(self, *_: object) -> Any:
            def begin(*_: object, **__: object) -> None:
                raise RuntimeError("can't start new thread")

            return begin

        def close(self) -> None:
            self.is_closed = True

    channel = Channel()
    with monkeypatch.context() as broken:
        broken.setattr(Endpoint, "open_channel", lambda _: channel)
        assert isinstance(transport.send(make_rows(range(1)), timeout=10), Failure)
    assert channel.is_closed
    assert transport.send(make_rows(range(1)), timeout=10) == Answer()
    assert len(server.rows()) == 1


def test_a_connection_that_ended_while_idle_is_not_used(
    server: ScriptedStorage, transport: StorageWriteTransport
) -> None:
    transport.send(make_rows(range(1)), timeout=10)
    server.end_idle_connections()
    eventually(lambda: transport._idle[0].is_ended)
    assert transport.send(make_rows(range(1, 2)), timeout=10) == Answer()
    assert [request.connection for request in server.requests] == [1, 2]


class Token(AnonymousCredentials):
    def before_request(self, request: object, method: str, url: str, headers: Any) -> None:
        assert (request is not None, method) == (True, "POST")
        assert url == "https://bigquerystorage.googleapis.com:443"
        headers["authorization"] = "Bearer token"


def test_google_is_called_over_tls_with_the_accounts_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = Token()  # type: ignore[no-untyped-call]
    monkeypatch.setattr("google.auth.default", lambda **_: (token, "found"))
    endpoint = Endpoint()
    assert endpoint.project == "found"
    assert endpoint.metadata(name="a stream") == (
        ("x-goog-request-params", "name=a%20stream"),
        ("authorization", "Bearer token"),
    )
    endpoint.open_channel().close()
    monkeypatch.setattr("google.auth.default", lambda **_: (token, None))
    with pytest.raises(OSError, match="Project"):
        Endpoint()


def test_rows_arrive_in_an_emulator_that_others_wrote_and_are_queried_by_sql(
    whole_emulator: Emulator, events_table: str, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", whole_emulator.storage)
    transport = StorageWriteTransport(events_table)
    row = row_at(1.5, "email.received", {"number": 7, "text": "né"}, "tests", "v1", None, "ada")
    assert transport.send([row, *make_rows(range(20))], timeout=60) == Answer()
    (found,) = query("SELECT * FROM events WHERE event_type = 'email.received'")
    assert found == {**row, "payload": {"number": 7, "text": "né"}}
    (counted,) = query("SELECT COUNT(*) AS n, COUNT(subject_id) AS subjects FROM events")
    assert counted == {"n": 21, "subjects": 1}
    transport.reconnect()


def test_a_row_takes_at_most_what_its_limit_says() -> None:
    for row in make_rows(range(3), text="é\U0001f600" * 500):
        assert 0 <= wire_bytes(row) - len(encode_rows([row]).data) < 60


@pytest.mark.parametrize("text", ["", "a", '"', "\n", "é", "\U0001f600"])
def test_rows_take_at_most_what_is_known_without_a_measure_of_each(text: str) -> None:
    bare = row_at(1.5, "e", {}, "s", None, None, None)
    long = "\U0001f600" * 500
    rows = [finish(bare), *make_rows(range(3), text=text * 500)]
    rows.append(finish(row_at(1.5, long, {}, long, long, long, long)))
    for some in ([rows[0]], rows):
        size = sum(map(row_bytes, some))
        assert len(encode_rows(some).data) <= most_bytes(some, size)
