"""Connections: no request outlives its time, and a child of a fork has its own."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from google.auth.transport.requests import Request
from google.cloud import bigquery
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar

from clients import make_client
from harness import fork_and_wait
from lorc_eventlog import emit
from lorc_eventlog.bigquery.connections import (
    _LimitedSocket,
    limit_connections,
    reconnect,
    renew_connections,
    run_within,
)
from lorc_eventlog.bigquery.insert_all import InsertAllTransport
from lorc_eventlog.bigquery.transport import Answer, Failure
from rows import make_row
from scripted_bigquery import Fault, ScriptedBigQuery, delay, drip, hang

TABLE = "dataset.events"

LIMIT = 1.0
"""Seconds of a request that would not end; more than a slow machine needs for one that does."""

LATE = 20.0
"""Seconds after which it cannot be the limit that ended it."""


@contextmanager
def ends() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert LIMIT * 0.9 <= time.monotonic() - began < LATE


@contextmanager
def stubborn_server(behave: Any) -> Iterator[str]:
    """A server that does ``behave(socket)`` with each connection, on a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        done = threading.Event()

        def serve(connection: socket.socket) -> None:
            with connection:
                try:
                    behave(connection, done)
                except OSError:
                    return

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=[connection], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        done.set()
        listener.shutdown(socket.SHUT_RDWR)


# The time of a request


@pytest.mark.parametrize(
    "fault",
    [drip(0.05), drip(0.05, head=True), hang(), delay(3600.0)],
    ids=["body drips", "head drips", "no answer", "no answer after storing"],
)
@pytest.mark.parametrize("text", ["plain", "beyond ASCII: é"])
def test_a_request_ends_in_its_time_whatever_is_answered(
    scripted: ScriptedBigQuery, client: bigquery.Client, fault: Fault, text: str
) -> None:
    transport = InsertAllTransport(client, TABLE)
    assert transport.send([make_row()], timeout=LATE) == Answer()
    scripted.script(fault)
    with ends():
        failure = transport.send([make_row(x=text)], timeout=LIMIT)
    assert isinstance(failure, Failure)
    assert "no answer" in failure.reason.text
    assert failure.may_be_the_rows
    assert failure.stored == "unknown"
    assert transport.send([make_row()], timeout=LATE) == Answer()


def test_a_server_that_takes_the_rows_drop_by_drop_is_left() -> None:
    def sip(connection: socket.socket, done: threading.Event) -> None:
        while not done.wait(0.05):
            connection.recv(1)

    rows = [make_row(x="x" * 1_000_000) for _ in range(9)]
    with stubborn_server(sip) as url, make_client(url) as client, ends():
        failure = InsertAllTransport(client, TABLE).send(rows, timeout=LIMIT)
    assert isinstance(failure, Failure)
    assert "timed out" in failure.reason.text


def test_a_tls_handshake_that_does_not_end_is_left() -> None:
    def hold(connection: socket.socket, done: threading.Event) -> None:
        connection.recv(100)
        done.wait()

    with stubborn_server(hold) as url, make_client(url.replace("http", "https")) as client, ends():
        failure = InsertAllTransport(client, TABLE).send([make_row()], timeout=LIMIT)
    assert isinstance(failure, Failure)
    assert "no answer" in failure.reason.text


def test_a_proxy_that_drips_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def trickle(connection: socket.socket, done: threading.Event) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Drops: ")
        while not done.wait(0.05):
            connection.sendall(b"x")

    with stubborn_server(trickle) as url, make_client("https://bigquery.invalid") as client:
        monkeypatch.setenv("HTTPS_PROXY", url)
        for _ in range(2):
            with ends():
                failure = InsertAllTransport(client, TABLE).send([make_row()], timeout=LIMIT)
            assert isinstance(failure, Failure)


@pytest.fixture
def deaf_addresses(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A host of many addresses that take no connection: their backlog is full."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    port = listener.getsockname()[1]
    waiting = []
    for _ in range(8):
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", port))
        waiting.append(connection)
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))] * 40
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    yield port
    for connection in (listener, *waiting):
        connection.close()


def test_a_host_of_many_addresses_is_tried_no_longer_than_one(deaf_addresses: int) -> None:
    with make_client(f"http://127.0.0.1:{deaf_addresses}") as client, ends():
        failure = InsertAllTransport(client, TABLE).send([make_row()], timeout=LIMIT)
    assert isinstance(failure, Failure)
    assert "timed out" in failure.reason.text
    assert failure.stored == "no"


def test_refreshing_a_token_counts(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request waits for two minutes by itself, and is repeated."""
    limit_connections(client)
    scripted.script(drip(0.05))
    url = f"{scripted.url}/bigquery/v2/projects/p/datasets/d/tables/t/insertAll"

    def refresh(request: Request, *_: object) -> None:
        request(url, "POST", b'{"rows": [{"json": {}}]}')

    monkeypatch.setattr(client._http.credentials, "before_request", refresh)
    with ends():
        failure = InsertAllTransport(client, TABLE).send([make_row()], timeout=LIMIT)
    assert isinstance(failure, Failure)
    assert (failure.what_to_do, failure.stored) == (None, "no")


def test_when_the_time_is_over_nothing_is_sent_any_more(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    limit_connections(client)

    def send_twice() -> None:
        client._http.get(f"{scripted.url}/stats")
        time.sleep(0.2)
        client._http.get(f"{scripted.url}/stats")

    with pytest.raises(requests.exceptions.ConnectionError):
        run_within(0.1, send_twice)
    with pytest.raises(requests.exceptions.ConnectionError):
        run_within(-1.0, lambda: client._http.get(f"{scripted.url}/stats"))
    reconnect(client)
    with pytest.raises(requests.exceptions.ConnectionError):
        run_within(-1.0, lambda: client._http.get(f"{scripted.url}/stats"))


# Other requests of the application


def test_requests_without_a_limit_are_as_they_were(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    limit_connections(client)
    session = client._http
    assert session.get(f"{scripted.url}/stats", timeout=10).json()["requests"] == 0
    assert session.get(f"{scripted.url}/stats").json()["requests"] == 0
    with session.get(f"{scripted.url}/stats", stream=True) as streamed:
        assert streamed.raw.fileno() > 0
        assert b"requests" in streamed.raw.read()
    scripted.script(hang())
    path = "/bigquery/v2/projects/p/datasets/d/tables/t/insertAll"
    with pytest.raises(requests.exceptions.ReadTimeout):
        session.post(f"{scripted.url}{path}", data=b"{}", timeout=0.2)
    # A limit ends with what it is for.
    assert run_within(LATE, lambda: session.get(f"{scripted.url}/stats").ok)
    assert session.get(f"{scripted.url}/stats", timeout=None).ok


def test_a_session_keeps_its_adapters_and_what_they_are_set_to(client: bigquery.Client) -> None:
    class Own(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            self.made = getattr(self, "made", 0) + 1
            super().init_poolmanager(*arguments, socket_options=[(6, 1, 1)], **options)

    own = Own(pool_maxsize=3)
    client._http.mount("http://", own)
    managers = [own.poolmanager]
    for change in (limit_connections, limit_connections, reconnect, renew_connections):
        change(client)
        assert client._http.get_adapter("http://") is own
        managers.append(own.poolmanager)
    assert len({id(manager) for manager in managers}) == 1
    assert own.poolmanager.connection_pool_kw["socket_options"] == [(6, 1, 1)]
    assert own.poolmanager.connection_pool_kw["maxsize"] == 3
    assert own.made == 1


def test_a_connection_says_what_it_is(
    scripted: ScriptedBigQuery,
    client: bigquery.Client,
) -> None:
    limit_connections(client)
    pool = client._http.get_adapter("http://").poolmanager.connection_from_url(scripted.url)
    assert str(pool) == f"HTTPConnectionPool(host='127.0.0.1', port={scripted.port})"


class Slow(requests.adapters.BaseAdapter):
    """An adapter of somebody's own make."""

    def send(self, *_: object, **__: object) -> requests.Response:
        response = requests.Response()
        response.status_code = 200
        response._content = b'{"kind": "k"}'
        return response

    def close(self) -> None:
        pass


def test_an_adapter_of_another_make_is_left_alone() -> None:
    with make_client("http://bigquery.invalid") as client:
        client._http.mount("http://", Slow())
        transport = InsertAllTransport(client, TABLE)
        assert transport.send([make_row()], timeout=LATE) == Answer()
        transport.reconnect()
        renew_connections(client)
        assert transport.send([make_row()], timeout=LATE) == Answer()


def test_a_client_of_another_make_is_left_alone() -> None:
    client: Any = object()
    for change in (limit_connections, reconnect, renew_connections):
        change(client)


def test_where_requests_was_never_imported_there_is_nothing_to_renew(
    client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = client._http.get_adapter("https://").poolmanager.pools
    monkeypatch.delitem(sys.modules, "requests")
    renew_connections(client)
    assert client._http.get_adapter("https://").poolmanager.pools is before


def test_one_hung_request_holds_up_no_other(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    transport = InsertAllTransport(client, TABLE)
    scripted.script(*[hang(LATE)] * 12)
    hung = [
        threading.Thread(target=transport.send, args=[[make_row()]], kwargs={"timeout": LATE})
        for _ in range(12)
    ]
    for thread in hung:
        thread.start()
    scripted.wait_for_requests(12)
    assert transport.send([make_row()], timeout=LATE) == Answer()
    scripted.stop()
    for thread in hung:
        thread.join()
    scripted.start()


# New connections


def test_after_reconnect_the_next_request_opens_a_new_connection(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    transport = InsertAllTransport(client, TABLE)
    for _ in range(2):
        transport.send([make_row()], timeout=LATE)
    transport.reconnect()
    transport.send([make_row()], timeout=LATE)
    first, second, third = (request.client_port for request in scripted.requests)
    assert first == second != third


def test_reconnect_leaves_a_request_under_way_its_connection(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    transport = InsertAllTransport(client, TABLE)
    scripted.script(delay(0.5))
    found = []
    sending = threading.Thread(
        target=lambda: found.append(transport.send([make_row()], timeout=LATE))
    )
    sending.start()
    scripted.wait_for_requests(1)
    transport.reconnect()
    assert transport.send([make_row()], timeout=LATE) == Answer()
    sending.join()
    assert found == [Answer()]


def test_a_proxy_gets_new_connections_too(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", scripted.url)
    monkeypatch.setenv("NO_PROXY", "")
    with make_client("http://bigquery.invalid") as client:
        transport = InsertAllTransport(client, TABLE)
        for _ in range(2):
            transport.send([make_row()], timeout=LATE)
        before = scripted.connections
        transport.reconnect()
        transport.send([make_row()], timeout=LATE)
        assert (before, scripted.connections) == (1, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_the_child_has_connections_of_its_own(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    emit("of.parent", {}, source="s", bq_client=client)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            renew_connections(client)
            emit("of.child", {}, source="s", bq_client=client)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    emit("of.parent", {}, source="s", bq_client=client)
    first, of_child, second = scripted.requests
    assert first.client_port == second.client_port != of_child.client_port
    assert [row["event_type"] for row in scripted.rows] == ["of.parent", "of.child", "of.parent"]


def test_tokens_are_refreshed_over_new_connections_too(client: bigquery.Client) -> None:
    manager = client._http._auth_request.session.get_adapter("https://").poolmanager
    before = manager.pools
    renew_connections(client)
    assert manager.pools is not before


def test_locks_of_the_session_its_cookies_and_its_credentials_are_new_in_a_child(
    client: bigquery.Client,
) -> None:
    class CallersCookies(RequestsCookieJar):
        pass

    session = client._http
    session.cookies = CallersCookies()
    session.credentials._callers = session  # a circle
    session.credentials._a_lock = threading.Lock()
    foreign = session.credentials._foreign = {"lock": threading.Lock()}
    owners: list[tuple[Any, str]] = [
        (session.cookies, "_cookies_lock"),
        (session._auth_request.session.cookies, "_cookies_lock"),
        (session.credentials, "_a_lock"),
    ]
    before = [getattr(owner, name) for owner, name in owners]
    its_lock = foreign["lock"]
    renew_connections(client)
    after = [getattr(owner, name) for owner, name in owners]
    assert [type(lock) for lock in after] == [type(lock) for lock in before]
    assert not {id(lock) for lock in before} & {id(lock) for lock in after}
    assert foreign["lock"] is its_lock


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_pool_whose_lock_a_thread_of_the_parent_has_does_not_hold_up_the_child(
    scripted: ScriptedBigQuery,  # noqa: ARG001
    client: bigquery.Client,
) -> None:
    """Pools are closed at the end of the process at the latest, and take the lock for it."""
    transport = InsertAllTransport(client, TABLE)
    assert transport.send([make_row()], timeout=LATE) == Answer()
    pools = client._http.get_adapter("http://").poolmanager.pools
    [pool] = [pools[key] for key in pools.keys()]  # noqa: SIM118  it is no mapping that iterates
    own = InsertAllTransport(None, TABLE)
    assert own.send([make_row()], timeout=LATE) == Answer()
    with pool.pool.mutex:

        def close_in_child() -> bool:
            transport.restart_in_child()
            own.restart_in_child()
            pool.close()
            return transport.send([make_row()], timeout=LATE) == Answer()

        assert fork_and_wait(close_in_child) == 0
    assert transport.send([make_row()], timeout=LATE) == Answer()


def test_a_connection_that_is_made_too_late_is_closed() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with pytest.raises(TimeoutError, match="timed out"):
            run_within(-1.0, lambda: _LimitedSocket(ours))
        assert ours.fileno() == -1


def test_what_is_read_of_a_connection_may_be_closed_twice() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        raw = _LimitedSocket(ours).makefile("rb").detach()
        raw.close()
        raw.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_pool_that_is_closed_stays_closed_in_the_child(
    scripted: ScriptedBigQuery,  # noqa: ARG001
    client: bigquery.Client,
) -> None:
    transport = InsertAllTransport(client, TABLE)
    assert transport.send([make_row()], timeout=LATE) == Answer()
    pools = client._http.get_adapter("http://").poolmanager.pools
    [pool] = [pools[key] for key in pools.keys()]  # noqa: SIM118  it is no mapping that iterates
    client.close()
    pool.close()
    renew_connections(client)
    assert pool.pool is None
    assert transport.send([make_row()], timeout=LATE) == Answer()
