"""The scripted server answers the real client as BigQuery does, and fails as it is told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests.exceptions
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

import scripted_bigquery
from scripted_bigquery import (
    Fault,
    ScriptedBigQuery,
    answer_lost,
    close_connection,
    delay,
    half_answer,
    hang,
    malformed_json,
    reset,
    reset_after_storing,
    status,
)

TABLE = "test.data.events"
STOPPED = {"reason": "stopped", "location": "", "debugInfo": "", "message": ""}


def make_row(**changes: Any) -> dict[str, Any]:
    return {
        "event_id": str(uuid.uuid4()),
        "event_type": "email.received",
        "source": "scripted",
        "schema_ref": None,
        "created_at": "2025-11-18T20:45:00.123456+00:00",
        "correlation_id": None,
        "subject_id": None,
        "payload": '{"subject":"Grüße"}',
    } | changes


def make_client(server: ScriptedBigQuery) -> bigquery.Client:
    return bigquery.Client(
        project="test",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": server.url},
    )


Insert = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[ScriptedBigQuery]:
    with ScriptedBigQuery() as server:
        yield server


@pytest.fixture
def insert(server: ScriptedBigQuery) -> Iterator[Insert]:
    """Send rows with the real client, one attempt, insertId = event_id."""
    client = make_client(server)

    def insert(*rows: dict[str, Any], skip_invalid_rows: bool = True, timeout: float = 5.0) -> Any:
        return client.insert_rows_json(
            TABLE,
            rows,
            row_ids=[row.get("event_id") for row in rows],
            skip_invalid_rows=skip_invalid_rows,
            retry=None,  # type: ignore[arg-type]
            timeout=timeout,
        )

    yield insert
    client.close()


def post(server: ScriptedBigQuery, body: bytes, path: str | None = None) -> tuple[int, Any]:
    """Send a body as it is, without the client."""
    path = path or "/bigquery/v2/projects/test/datasets/data/tables/events/insertAll"
    request = urllib.request.Request(server.url + path, data=body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


# Rows


def test_rows_are_stored_as_sent_and_events_have_the_payload_parsed(
    server: ScriptedBigQuery, insert: Insert
) -> None:
    rows = [make_row(), make_row()]
    assert insert(*rows) == []
    assert server.rows == rows
    assert server.events()[0]["payload"] == {"subject": "Grüße"}


def test_of_the_rows_with_one_insert_id_the_first_is_stored(
    server: ScriptedBigQuery, insert: Insert
) -> None:
    row = make_row()
    insert(row)
    insert(row | {"source": "second"}, make_row())
    assert [stored["source"] for stored in server.rows] == ["scripted", "scripted"]
    assert server.duplicates == []


def test_an_event_sent_with_two_insert_ids_is_a_duplicate(server: ScriptedBigQuery) -> None:
    row = make_row()
    for insert_id in ("a", "b", None):
        body = {"rows": [{"insertId": insert_id, "json": row}]}
        assert post(server, orjson.dumps(body))[0] == 200
    assert len(server.rows) == 3
    assert server.duplicates == [row["event_id"]]


def test_with_skip_invalid_rows_the_good_rows_are_stored_and_the_bad_one_is_listed(
    server: ScriptedBigQuery, insert: Insert
) -> None:
    good, bad = make_row(), make_row(payload={"a": 1})
    [error] = insert(good, bad)
    assert error["index"] == 1
    assert server.rows == [good]


def test_without_skip_invalid_rows_one_bad_row_refuses_all(
    server: ScriptedBigQuery, insert: Insert
) -> None:
    errors = insert(make_row(), make_row(colour="red"), skip_invalid_rows=False)
    assert [error["errors"][0]["reason"] for error in errors] == ["stopped", "invalid"]
    assert errors[0] == {"index": 0, "errors": [STOPPED]}
    assert server.rows == []


@pytest.mark.parametrize(
    ("changes", "location", "message"),
    [
        ({"payload": {"a": 1}}, "payload", "This field: payload is not a record."),
        ({"payload": 5}, "payload", "This field: payload is not a record."),
        ({"payload": "{'a': 1}"}, "payload", "Invalid JSON in field payload: "),
        ({"payload": '{"a": NaN}'}, "payload", "Invalid JSON in field payload: "),
        ({"source": {"a": 1}}, "source", "This field: source is not a record."),
        ({"colour": "red"}, "colour", "no such field: colour."),
        ({"source": None}, "", "Missing required field: Msg_0_CLOUD_QUERY_TABLE.source."),
    ],
)
def test_a_row_that_does_not_fit_the_table_is_invalid(
    insert: Insert, changes: dict[str, Any], location: str, message: str
) -> None:
    [refused] = insert(make_row(**changes))
    [error] = refused["errors"]
    assert error["reason"] == "invalid"
    assert error["location"] == location
    assert error["message"].startswith(message)


# Requests


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"rows":[{"json":{"x":NaN}}]}', "Invalid JSON payload received."),
        (b"", "Invalid JSON payload received."),
        (b'{"rows":[{"insertId":"a"}]}', "Invalid JSON payload received."),
        (b'{"rows":[]}', "No rows present in the request."),
        (
            b'{"rows":[' + b'{"json":{}},' * 50_000 + b'{"json":{}}]}',
            "too many rows present in the request, limit: 50000 row count: 50001.",
        ),
    ],
    ids=["NaN", "empty", "no json", "no rows", "50001 rows"],
)
def test_a_body_that_is_no_request_is_a_400_in_googles_form(
    server: ScriptedBigQuery, body: bytes, message: str
) -> None:
    code, answer = post(server, body)
    error = answer["error"]
    assert (code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert error["message"].startswith(message)
    assert error["errors"] == [
        {"message": error["message"], "domain": "global", "reason": "invalid"}
    ]


def test_a_request_over_10_mb_is_a_413_or_a_400(server: ScriptedBigQuery, insert: Insert) -> None:
    row = make_row(payload=f'"{"x" * scripted_bigquery.MAX_REQUEST_BYTES}"')
    with pytest.raises(exceptions.GoogleAPICallError) as refused:
        insert(row)
    assert refused.value.code == 413
    server.oversized_status = 400
    with pytest.raises(exceptions.BadRequest, match="exceeds the limit: 10485760 bytes"):
        insert(row)
    assert server.rows == []


def test_any_other_path_is_a_404_in_googles_form(server: ScriptedBigQuery) -> None:
    code, answer = post(server, b"{}", path="/bigquery/v2/projects/test/queries")
    assert (code, answer["error"]["errors"][0]["reason"]) == (404, "notFound")
    with pytest.raises(exceptions.NotFound):
        make_client(server).get_table(TABLE, timeout=5)
    assert server.requests == []


def test_requests_are_recorded(server: ScriptedBigQuery, insert: Insert) -> None:
    rows = [make_row(), make_row()]
    before = time.monotonic()
    server.script(status(503), reset())
    for _ in range(2):
        with pytest.raises((exceptions.ServiceUnavailable, requests.exceptions.ConnectionError)):
            insert(*rows)
    insert(*rows)
    refused, dropped, stored = server.requests
    assert before <= refused.arrived <= dropped.arrived <= stored.arrived <= time.monotonic()
    assert [(r.status, r.fault) for r in server.requests] == [
        (503, "status"),
        (None, "reset"),
        (200, None),
    ]
    for record in server.requests:
        assert record.table == "test:data.events"
        assert record.insert_ids == tuple(row["event_id"] for row in rows)
        assert record.rows == 2
    assert len(rows[0]["payload"]) < stored.size < 2_000
    assert refused.client_port == dropped.client_port != stored.client_port
    assert server.connections == 2


def test_a_connection_is_kept_alive(server: ScriptedBigQuery, insert: Insert) -> None:
    for _ in range(5):
        insert(make_row())
    assert server.connections == 1


# Faults


@pytest.mark.parametrize(
    ("fault", "exception", "reason", "message"),
    [
        (status(400), exceptions.BadRequest, "invalid", "invalid argument"),
        (status(403), exceptions.Forbidden, "accessDenied", "Access Denied: Table test:data.ev"),
        (status(403, "quotaExceeded"), exceptions.Forbidden, "quotaExceeded", "Quota exceeded"),
        (status(403, "rateLimitExceeded"), exceptions.Forbidden, "rateLimitExceeded", "rate lim"),
        (status(404), exceptions.NotFound, "notFound", "Not found: Table test:data.events"),
        (status(429), exceptions.TooManyRequests, "rateLimitExceeded", "Exceeded rate limits"),
        (status(500), exceptions.InternalServerError, "internalError", "internal error"),
        (status(500, "backendError"), exceptions.InternalServerError, "backendError", "Retrying"),
        (status(502), exceptions.BadGateway, None, "<!DOCTYPE html>"),
        (status(502, "badGateway"), exceptions.BadGateway, "badGateway", "badGateway"),
        (status(503), exceptions.ServiceUnavailable, "backendError", "Retrying may solve"),
        (status(503, message="Out."), exceptions.ServiceUnavailable, "backendError", "Out."),
        (status(504), exceptions.GatewayTimeout, "backendError", "Retrying may solve"),
    ],
    ids=lambda value: f"{value.status} {value.reason}" if isinstance(value, Fault) else "",
)
def test_a_status_is_the_clients_exception_with_bigquerys_reason(
    server: ScriptedBigQuery,
    insert: Insert,
    fault: Fault,
    exception: type[exceptions.GoogleAPICallError],
    reason: str | None,
    message: str,
) -> None:
    server.script(fault)
    with pytest.raises(exception, match=message) as refused:
        insert(make_row())
    assert [error["reason"] for error in refused.value.errors] == ([reason] if reason else [])
    assert server.rows == []


def test_a_401_says_that_the_credentials_are_invalid(server: ScriptedBigQuery) -> None:
    """Sent without the client: its anonymous credentials raise on a 401, as they cannot refresh."""
    server.script(status(401))
    code, answer = post(server, b"{}")
    assert (code, answer["error"]["status"]) == (401, "UNAUTHENTICATED")


def test_a_status_that_bigquery_does_not_answer_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="299"):
        status(299)


# urllib3 1.26 hands over what arrived, and only its JSON is not whole.
HALF = (requests.exceptions.ChunkedEncodingError, requests.exceptions.JSONDecodeError)


@pytest.mark.parametrize(
    ("fault", "exception", "stored"),
    [
        (reset(), requests.exceptions.ConnectionError, 0),
        (reset_after_storing(), requests.exceptions.ConnectionError, 1),
        (answer_lost(), requests.exceptions.ConnectionError, 1),
        (half_answer(), HALF, 1),
        (malformed_json(), requests.exceptions.JSONDecodeError, 1),
        (hang(0.01), requests.exceptions.ConnectionError, 0),
        (hang(), requests.exceptions.ReadTimeout, 0),
        (delay(60), requests.exceptions.ReadTimeout, 1),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_a_retry_after_a_lost_answer_is_no_second_row(
    server: ScriptedBigQuery,
    insert: Insert,
    fault: Fault,
    exception: type[Exception] | tuple[type[Exception], ...],
    stored: int,
) -> None:
    row = make_row()
    server.script(fault)
    with pytest.raises(exception):
        insert(row, timeout=0.1)
    assert len(server.rows) == stored
    insert(row)
    assert server.rows == [row]


def test_a_reset_is_a_real_reset(server: ScriptedBigQuery) -> None:
    server.script(reset())
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        path = "/bigquery/v2/projects/p/datasets/d/tables/t/insertAll"
        connection.sendall(f"POST {path} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_closed_keep_alive_connection_follows_a_good_answer(
    server: ScriptedBigQuery, insert: Insert
) -> None:
    server.script(close_connection())
    insert(make_row())
    server.wait_for_rows(1)
    # The client may notice the close before it sends, or while it waits for an answer.
    try:
        insert(make_row())
    except requests.exceptions.ConnectionError:
        insert(make_row())
    assert len(server.rows) == 2
    assert server.connections == 2


def test_an_answer_comes_after_delay_and_latency(server: ScriptedBigQuery, insert: Insert) -> None:
    server.latency = 0.05
    server.script(delay(0.05))
    before = time.monotonic()
    insert(make_row())
    assert time.monotonic() - before >= 0.1


def test_a_persistent_fault_follows_the_script_until_the_server_is_healthy(
    server: ScriptedBigQuery, insert: Insert
) -> None:
    server.script(status(429))
    server.always(status(503))
    for exception in (exceptions.TooManyRequests, *[exceptions.ServiceUnavailable] * 3):
        with pytest.raises(exception):
            insert(make_row())
    server.script(status(429))
    server.healthy()
    assert insert(make_row()) == []


# Poison


def test_a_refused_row_is_listed_with_its_reason_each_time(
    server: ScriptedBigQuery, insert: Insert
) -> None:
    server.refuse_row(lambda row: "poison" in row["payload"], "timeout", "Too slow.")
    bad = make_row(payload='"poison"')
    for _ in range(2):
        [refused] = insert(make_row(), bad)
        [error] = refused["errors"]
        assert (refused["index"], error["reason"], error["message"]) == (1, "timeout", "Too slow.")
    assert len(server.rows) == 2


@pytest.mark.parametrize("code", [400, 500])
def test_a_request_with_a_poisonous_row_is_refused_whole(
    server: ScriptedBigQuery, insert: Insert, code: int
) -> None:
    server.refuse_request(lambda row: row["source"] == "poison", status=code)
    with pytest.raises(exceptions.GoogleAPICallError) as refused:
        insert(make_row(), make_row(source="poison"))
    assert refused.value.code == code
    insert(make_row())
    assert len(server.rows) == 1


def test_a_row_is_stopped_once_and_then_stored(server: ScriptedBigQuery, insert: Insert) -> None:
    server.stop_row_once(lambda row: row["source"] == "unlucky")
    unlucky = make_row(source="unlucky")
    assert insert(make_row(), unlucky) == [{"index": 1, "errors": [STOPPED]}]
    assert insert(unlucky) == []
    assert len(server.rows) == 2


# Waiting, stopping, forking


def test_waiting_ends_as_soon_as_the_rows_are_there(
    server: ScriptedBigQuery, insert: Insert
) -> None:
    sender = threading.Thread(target=insert, args=(make_row(),))
    sender.start()
    server.wait_for_rows(1)
    server.wait_for_requests(1)
    sender.join()


def test_waiting_in_vain_says_how_many_there_are(server: ScriptedBigQuery) -> None:
    with pytest.raises(TimeoutError, match="0 of 1 rows"):
        server.wait_for_rows(1, timeout=0.01)
    with pytest.raises(TimeoutError, match="0 of 1 requests"):
        server.wait_for_requests(1, timeout=0.01)


def test_a_stop_drops_hung_requests_and_a_start_takes_up_again(
    server: ScriptedBigQuery, insert: Insert
) -> None:
    row = make_row()
    insert(row)
    server.script(hang())
    failures: list[Exception] = []

    def send() -> None:
        try:
            insert(row, timeout=60)
        except requests.exceptions.ConnectionError as error:
            failures.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    server.wait_for_requests(2)
    server.stop()
    sender.join(timeout=5)
    assert len(failures) == 1
    with pytest.raises(requests.exceptions.ConnectionError):
        insert(row)
    server.start()
    insert(row)
    assert server.rows == [row]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_can_send_and_holds_no_socket_of_the_server(
    server: ScriptedBigQuery, insert: Insert
) -> None:
    insert(make_row())
    url, body = server.url, orjson.dumps({"rows": [{"insertId": "c", "json": make_row()}]})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            path = "/bigquery/v2/projects/test/datasets/data/tables/events/insertAll"
            urllib.request.urlopen(url + path, data=body, timeout=5).close()
            signal.pause()
            code = 0
        finally:
            os._exit(code)
    try:
        server.wait_for_rows(2, timeout=5)
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=1)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_threads_sending_at_once_are_all_counted(server: ScriptedBigQuery) -> None:
    def send() -> None:
        for _ in range(10):
            row = make_row()
            entry = {"insertId": row["event_id"], "json": row}
            post(server, orjson.dumps({"rows": [entry]}))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(server.rows), len(server.requests), server.connections) == (80, 80, 80)


@pytest.fixture
def process() -> Iterator[ScriptedBigQuery]:
    """A handle on a server that runs as a process of its own: only its url is of use."""
    command = [sys.executable, str(Path(scripted_bigquery.__file__)), "--discard"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield ScriptedBigQuery(int(running.stdout.readline()))
        finally:
            running.terminate()


def test_as_a_process_of_its_own_it_keeps_counts(process: ScriptedBigQuery) -> None:
    row = make_row()
    body = orjson.dumps({"rows": [{"insertId": i, "json": row} for i in ("a", "a", "b")]})
    assert post(process, body)[0] == 200
    with urllib.request.urlopen(process.url + "/stats", timeout=5) as answer:
        stats = json.load(answer)
    assert stats.pop("connections") == 2
    assert stats == {"rows": 2, "requests": 1, "duplicates": 1, "bytes": len(body)}
    assert post(process, b"", path="/reset") == (200, {})
    with urllib.request.urlopen(process.url + "/stats", timeout=5) as answer:
        assert json.load(answer)["rows"] == 0
