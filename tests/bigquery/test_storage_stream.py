"""Committed streams, over real gRPC: what each answer of BigQuery means for an offset."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.rpc import status_pb2
from grpc import StatusCode

from lorc_eventlog.bigquery.storage_connection import Connection
from lorc_eventlog.bigquery.storage_messages import STORAGE_ERROR_URL, EncodedRows, encode_rows
from lorc_eventlog.bigquery.storage_stream import (
    AlreadyExists,
    Gone,
    Refused,
    Stored,
    StreamClient,
    Unusable,
)
from lorc_eventlog.bigquery.storage_write import table_path
from lorc_eventlog.bigquery.transport import Failure, Refusal
from lorc_eventlog.events.row import Row, row_at
from scripted_storage import Cut, InAnswer, Reply, ScriptedStorage, Silence, types


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedStorage]:
    with ScriptedStorage() as scripted:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", scripted.address)
        yield scripted


@pytest.fixture
def client(server: ScriptedStorage) -> Iterator[StreamClient]:
    del server  # it must be there
    made = StreamClient()
    yield made
    made.disconnect()


def row(number: int, **payload: object) -> Row:
    return row_at(0.0, "test", {"number": number, **payload}, "tests")


def encoded(*numbers: int) -> EncodedRows:
    return encode_rows([row(number) for number in numbers])


def create(client: StreamClient) -> str:
    stream = client.create(lambda project: table_path(project, "dataset.events"), 10.0)
    assert isinstance(stream, str)
    return stream


def test_rows_at_the_end_of_the_stream_are_stored_and_counted_when_it_is_finalized(
    server: ScriptedStorage, client: StreamClient
) -> None:
    stream = create(client)
    assert stream.startswith("projects/test-project/datasets/dataset/tables/events/streams/")
    assert client.append(stream, 0, encoded(0, 1), 10.0) == Stored()
    assert client.append(stream, 2, encoded(2), 10.0) == Stored()
    assert client.finalize(stream, 10.0) == 3
    assert server.numbers() == [0, 1, 2]
    assert [request.connection for request in server.requests] == [1, 1]


def test_an_offset_that_is_taken_tells_where_the_stream_ends(
    server: ScriptedStorage, client: StreamClient
) -> None:
    stream = create(client)
    client.append(stream, 0, encoded(0, 1), 10.0)
    assert client.append(stream, 0, encoded(0, 1), 10.0) == AlreadyExists(2)
    assert client.append(stream, 2, encoded(2), 10.0) == Stored()
    server.script(InAnswer(StatusCode.ALREADY_EXISTS, "no number", "OFFSET_ALREADY_EXISTS"))
    assert client.append(stream, 3, encoded(3), 10.0) == AlreadyExists(None)
    server.script(Cut(code=StatusCode.ALREADY_EXISTS, words="expected offset 3, received 1"))
    assert client.append(stream, 1, encoded(3), 10.0) == AlreadyExists(3)


def test_a_gap_and_a_finalized_stream_take_no_rows(client: StreamClient) -> None:
    stream = create(client)
    assert isinstance(client.append(stream, 5, encoded(0), 10.0), Unusable)
    assert client.append(stream, 0, encoded(0), 10.0) == Stored()
    client.finalize(stream, 10.0)
    assert isinstance(client.append(stream, 1, encoded(1), 10.0), Unusable)


@pytest.mark.parametrize(
    "storage_error", ["STREAM_ALREADY_COMMITTED", "INVALID_STREAM_TYPE", "INVALID_STREAM_STATE"]
)
def test_a_stream_in_another_state_takes_no_rows(
    server: ScriptedStorage, client: StreamClient, storage_error: str
) -> None:
    stream = create(client)
    server.script(InAnswer(StatusCode.INVALID_ARGUMENT, "The stream is garbaged", storage_error))
    assert isinstance(client.append(stream, 0, encoded(0), 10.0), Unusable)


def test_a_second_finalize_that_tells_no_count_is_not_asked_for_ever(
    server: ScriptedStorage, client: StreamClient
) -> None:
    server.counts_once = True
    stream = create(client)
    client.append(stream, 0, encoded(0), 10.0)
    assert client.finalize(stream, 10.0) == 1
    assert isinstance(client.finalize(stream, 10.0), Gone)


def test_a_request_that_is_too_large_for_the_endpoint_is_to_be_divided(
    server: ScriptedStorage, client: StreamClient
) -> None:
    stream = create(client)
    words = "Received message larger than max (4700000 vs. 4194304)"
    server.script(Cut(code=StatusCode.RESOURCE_EXHAUSTED, words=words))
    result = client.append(stream, 0, encoded(0, 1), 10.0)
    assert isinstance(result, Refusal)
    assert result.is_about_size


def test_a_stream_that_bigquery_does_not_know_is_gone(
    server: ScriptedStorage, client: StreamClient
) -> None:
    stream = create(client)
    server.streams.clear()
    assert isinstance(client.append(stream, 0, encoded(0), 10.0), Gone)
    assert isinstance(client.finalize(stream, 10.0), Gone)
    server.script(Cut(code=StatusCode.NOT_FOUND, words="Requested entity was not found."))
    assert isinstance(client.append(stream, 0, encoded(0), 10.0), Gone)


def test_bad_rows_are_named_and_nothing_is_stored(
    server: ScriptedStorage, client: StreamClient
) -> None:
    stream = create(client)
    rows = [row(0), row(1, poison="x"), row(2)]
    result = client.append(stream, 0, encode_rows(rows), 10.0)
    assert isinstance(result, Refused)
    assert [refused.index for refused in result.rows] == [1]
    assert server.rows() == []
    assert client.append(stream, 0, encoded(0, 2), 10.0) == Stored()


def test_a_refusal_of_the_request_is_told_from_a_failure(
    server: ScriptedStorage, client: StreamClient
) -> None:
    stream = create(client)
    server.script(
        InAnswer(StatusCode.INVALID_ARGUMENT, "The proto field mismatched with BigQuery field"),
        InAnswer(StatusCode.INTERNAL, "oops"),
        Cut(),
        Silence(),
    )
    assert isinstance(client.append(stream, 0, encoded(0), 10.0), Refusal)
    for stored, timeout in (("no", 10.0), ("unknown", 10.0), ("unknown", 0.2)):
        result = client.append(stream, 0, encoded(0), timeout)
        assert isinstance(result, Failure)
        assert result.stored == stored
    assert client.append(stream, 0, encoded(0), 10.0) == Stored()


def test_a_connection_that_ended_while_idle_is_opened_again(
    server: ScriptedStorage, client: StreamClient
) -> None:
    stream = create(client)
    client.append(stream, 0, encoded(0), 10.0)
    server.end_idle_connections()
    connection = client._connection
    assert connection is not None
    while not connection.is_ended:
        pass
    assert client.append(stream, 1, encoded(1), 10.0) == Stored()
    assert server.numbers() == [0, 1]


def test_an_answer_for_another_offset_or_other_rows_is_no_acknowledgement(
    server: ScriptedStorage, client: StreamClient
) -> None:
    stream = create(client)
    elsewhere = types.AppendRowsResponse.pb()()
    elsewhere.append_result.offset.value = 9
    others = types.AppendRowsResponse.pb()()
    others.row_errors.add().index = 9
    server.script(Reply(elsewhere), Reply(others))
    for _ in range(2):
        result = client.append(stream, 0, encoded(0), 10.0)
        assert isinstance(result, Failure)
        assert result.stored == "unknown"


def test_details_of_a_call_that_ended_tell_about_the_stream(
    server: ScriptedStorage, client: StreamClient
) -> None:
    stream = create(client)
    status = status_pb2.Status(code=StatusCode.INVALID_ARGUMENT.value[0], message="finalized")
    status.details.add().Pack(status_pb2.Status())  # of a kind that says nothing here
    error = types.StorageError.pb()(code=types.StorageError.StorageErrorCode.STREAM_FINALIZED)
    status.details.add().Pack(error)
    status.details[-1].type_url = STORAGE_ERROR_URL
    server.script(Cut(code=StatusCode.INVALID_ARGUMENT, words="x", details=status))
    assert isinstance(client.append(stream, 0, encoded(0), 10.0), Unusable)


def test_an_interruption_drops_the_connection_and_passes_on(
    client: StreamClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    stream = create(client)
    monkeypatch.setattr(Connection, "append", interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.append(stream, 0, encoded(0), 10.0)
    assert client._connection is None


def test_what_keeps_a_stream_from_being_made_is_a_failure_with_what_to_do(
    server: ScriptedStorage, client: StreamClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.deny = (StatusCode.PERMISSION_DENIED, "Permission denied")
    result = client.create(lambda project: table_path(project, "dataset.events"), 10.0)
    assert isinstance(result, Failure)
    assert "bigquery.tables.updateData" in (result.what_to_do or "")
    assert isinstance(client.finalize("projects/p/streams/s", 10.0), Failure)
    monkeypatch.delenv("BIGQUERY_STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    assert isinstance(StreamClient().append("s", 0, encoded(0), 1.0), Failure)
    assert isinstance(StreamClient().finalize("s", 1.0), Failure)
