"""A BigQuery that fails on a script: ``insertAll`` over real HTTP, for the real client.

    with ScriptedBigQuery() as server:
        server.script(status(503), reset(), reset_after_storing())  # one a request, then health
        client = bigquery.Client(
            project="test",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": server.url},
        )

Answers, limits and messages are BigQuery's own (https://cloud.google.com/bigquery/docs/error-messages
and the reports of its users); every table exists and has the columns of the events table.
A forked child may talk to the server over HTTP, and must not touch the object.

It also runs by itself, and then answers ``GET /stats`` and ``POST /reset``:

    python tests/support/scripted_bigquery.py --port 0 --latency 0.1 --discard
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import socketserver
import struct
import sys
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal, Self

import orjson

Row = dict[str, Any]
Predicate = Callable[[Row], bool]

MAX_REQUEST_BYTES = 10 * 1024 * 1024
MAX_REQUEST_ROWS = 50_000
REQUIRED_COLUMNS = ("event_id", "event_type", "source", "created_at", "payload")
NULLABLE_COLUMNS = ("schema_ref", "correlation_id", "subject_id")
COLUMNS = frozenset(REQUIRED_COLUMNS + NULLABLE_COLUMNS)

_INSERT_ALL = re.compile(
    r"/bigquery/v2/projects/([^/]+)/datasets/([^/]+)/tables/([^/]+)/insertAll(?:\?.*)?"
)
# Google's name of each status, and BigQuery's usual reason for it. No reason: Google's front end
# answers before BigQuery does, with a page of HTML.
_STATUSES = {
    400: ("INVALID_ARGUMENT", "invalid"),
    401: ("UNAUTHENTICATED", "authError"),
    403: ("PERMISSION_DENIED", "accessDenied"),
    404: ("NOT_FOUND", "notFound"),
    413: ("INVALID_ARGUMENT", ""),
    429: ("RESOURCE_EXHAUSTED", "rateLimitExceeded"),
    500: ("INTERNAL", "internalError"),
    502: ("UNAVAILABLE", ""),
    503: ("UNAVAILABLE", "backendError"),
    504: ("DEADLINE_EXCEEDED", "backendError"),
}
_MESSAGES = {
    "invalid": "Request contains an invalid argument.",
    "authError": "Request had invalid authentication credentials. Expected OAuth 2 access token,"
    " login cookie or other valid authentication credential.",
    "accessDenied": "Access Denied: Table {table}: Permission bigquery.tables.updateData denied on"
    " table {table} (or it may not exist).",
    "quotaExceeded": "Quota exceeded: Your project exceeded quota for tabledata.insertAll bytes per"
    " second per project.",
    "rateLimitExceeded": "Exceeded rate limits: too many api requests per user per method for this"
    " user_method.",
    "notFound": "Not found: Table {table}",
    "internalError": "An internal error occurred and the request could not be completed.",
    "backendError": "Error encountered during execution. Retrying may solve the problem.",
}


@dataclass(frozen=True)
class Fault:
    """What happens to one ``insertAll`` request instead of the right thing."""

    name: str
    stores: bool = True
    seconds: float = 0.0  # before the answer
    status: int = 200
    reason: str = ""
    message: str = ""
    sends: Literal["all", "half", "malformed", "nothing", "head and drops", "drops"] = "all"
    content: bytes | None = None  # instead of BigQuery's own
    location: str = ""
    every: float = 0.0  # seconds between two drops
    ending: Literal["keep-alive", "close", "reset"] = "keep-alive"


def status(code: int, reason: str = "", message: str = "") -> Fault:
    """Nothing is stored; the answer is this error (413 and 502 without a reason: HTML)."""
    if code not in _STATUSES:
        raise ValueError(f"no answer is known for status {code}")
    return Fault("status", stores=False, status=code, reason=reason, message=message)


def reset() -> Fault:
    """Nothing is stored; the connection is reset (RST)."""
    return Fault("reset", stores=False, sends="nothing", ending="reset")


def reset_after_storing() -> Fault:
    """The rows are stored; the connection is reset (RST) without an answer."""
    return Fault("reset_after_storing", sends="nothing", ending="reset")


def answer_lost() -> Fault:
    """The rows are stored; the connection is closed in good order (FIN) without an answer."""
    return Fault("answer_lost", sends="nothing", ending="close")


def half_answer() -> Fault:
    """The rows are stored; the connection is closed in the middle of the answer's body."""
    return Fault("half_answer", sends="half", ending="close")


def malformed_json() -> Fault:
    """The rows are stored; the answer is a 200 whose body is cut-off JSON."""
    return Fault("malformed_json", sends="malformed")


def close_connection() -> Fault:
    """All is well, but the connection, promised to be kept alive, is closed afterwards."""
    return Fault("close_connection", ending="close")


def delay(seconds: float) -> Fault:
    """The rows are stored at once; the answer comes so much later."""
    return Fault("delay", seconds=seconds)


def hang(seconds: float = 3600.0) -> Fault:
    """Nothing is stored; silence for so long (or until the server stops), then a close."""
    return Fault("hang", stores=False, seconds=seconds, sends="nothing", ending="close")


def drip(seconds: float, *, head: bool = False) -> Fault:
    """Nothing is stored; a 200 that never ends, neither its body nor, if so, its head."""
    return Fault("drip", stores=False, every=seconds, sends="drops" if head else "head and drops")


def answer(content: bytes, code: int = 200) -> Fault:
    """Nothing is stored; the answer is this, whatever it is."""
    return Fault("answer", stores=False, status=code, content=content)


def redirect(code: int) -> Fault:
    """Nothing is stored; the answer sends the client on to a path that answers each GET."""
    return Fault("redirect", stores=False, status=code, content=b"", location="/elsewhere")


@dataclass(frozen=True)
class RequestRecord:
    """One ``insertAll`` request as it arrived, and what became of it."""

    arrived: float  # time.monotonic()
    table: str  # project:dataset.table
    rows: int
    size: int  # bytes of the body
    insert_ids: tuple[str | None, ...]
    status: int | None  # None: not answered
    fault: str | None  # name of the Fault, None: none
    client_port: int  # the same for all requests of one connection


def error_body(code: int, reason: str = "", message: str = "", table: str = "") -> bytes:
    """The body of an error answer, as BigQuery or the front end before it writes it."""
    status_name, usual_reason = _STATUSES[code]
    reason = reason or usual_reason
    if not reason:
        page = f"<!DOCTYPE html>\n<title>Error {code} ({HTTPStatus(code).phrase})!!1</title>\n"
        return page.encode()
    message = message or _MESSAGES.get(reason, reason).format(table=table)
    errors = [{"message": message, "domain": "global", "reason": reason}]
    error = {"code": code, "message": message, "errors": errors, "status": status_name}
    return orjson.dumps({"error": error})


def row_error(reason: str, location: str = "", message: str = "") -> dict[str, str]:
    return {"reason": reason, "location": location, "debugInfo": "", "message": message}


def schema_error(row: Row) -> dict[str, str] | None:
    """BigQuery's complaint about a row of the events table, if it has one."""
    for name, value in row.items():
        if name not in COLUMNS:
            return row_error("invalid", name, f"no such field: {name}.")
        if isinstance(value, dict | list) or (name == "payload" and not isinstance(value, str)):
            return row_error("invalid", name, f"This field: {name} is not a record.")
    for name in REQUIRED_COLUMNS:
        if row.get(name) is None:
            message = f"Missing required field: Msg_0_CLOUD_QUERY_TABLE.{name}."
            return row_error("invalid", "", message)
    try:
        orjson.loads(row["payload"])
    except orjson.JSONDecodeError as error:
        return row_error("invalid", "payload", f"Invalid JSON in field payload: {error.msg}")
    return None


def parse_request(body: bytes) -> tuple[list[Row], list[str | None], bool]:
    """The rows, their insertIds and skipInvalidRows; a ValueError where the body is no request."""
    request = orjson.loads(body)
    try:
        rows = [dict(entry["json"]) for entry in request["rows"]]
        insert_ids = [entry.get("insertId") for entry in request["rows"]]
        return rows, insert_ids, bool(request.get("skipInvalidRows"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Not an insertAll request: {error!r}") from error


class ScriptedBigQuery:
    """The server. Start it as a context manager; ``stop`` and ``start`` keep rows and port."""

    def __init__(self, port: int = 0, *, latency: float = 0.0, discard: bool = False) -> None:
        self.port = port
        self.latency = latency  # seconds before each answer
        self.oversized_status = 413  # BigQuery: 400 just over the limit, 413 far over it
        self._discard = discard
        self._changed = threading.Condition()
        self._listener: _Listener | None = None
        self._script: deque[Fault] = deque()
        self._always: Fault | None = None
        self._refused_rows: list[tuple[Predicate, dict[str, str]]] = []
        self._refused_requests: list[tuple[Predicate, int]] = []
        self._stopped_once: list[tuple[Predicate, set[str]]] = []
        self.connections = 0
        self.clear()
        _servers.add(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        self._listener = _Listener(self)
        self.port = self._listener.server_address[1]
        threading.Thread(
            target=self._listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def stop(self) -> None:
        """Refuse connections and drop the open ones, hung requests included."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # What it does wrong.

    def script(self, *faults: Fault) -> None:
        """Each of the next requests meets one of these faults, in this order."""
        with self._changed:
            self._script.extend(faults)

    def always(self, fault: Fault) -> None:
        """Every request meets this fault once the script is used up, until ``healthy``."""
        with self._changed:
            self._always = fault

    def healthy(self) -> None:
        """Forget what is left of the script and ``always``. Poison rules stay."""
        with self._changed:
            self._script.clear()
            self._always = None

    def refuse_row(
        self,
        predicate: Predicate,
        reason: str = "invalid",
        message: str = "Row refused.",
        location: str = "payload",
    ) -> None:
        """Never store rows for which the predicate holds; as sent, a payload is text."""
        self._refused_rows.append((predicate, row_error(reason, location, message)))

    def refuse_request(self, predicate: Predicate, status: int = 400) -> None:
        """Requests with a row that the predicate holds for are answered with this status."""
        self._refused_requests.append((predicate, status))

    def stop_row_once(self, predicate: Predicate) -> None:
        """Each row that the predicate holds for is ``stopped`` when first sent, stored later."""
        self._stopped_once.append((predicate, set()))

    # What it saw.

    def clear(self) -> None:
        """Forget all rows, requests and ids."""
        with self._changed:
            self._rows: list[Row] = []
            self._requests: list[RequestRecord] = []
            self._row_count = self._request_count = self._bytes = 0
            self._insert_ids: defaultdict[str, set[str]] = defaultdict(set)
            self._event_ids: set[str] = set()
            self._duplicates: set[str] = set()

    @property
    def rows(self) -> list[Row]:
        """All stored rows in order, the payload as it was sent."""
        with self._changed:
            return list(self._rows)

    def events(self) -> list[Row]:
        """All stored rows in order, the payload parsed."""
        return [{**row, "payload": orjson.loads(row["payload"])} for row in self.rows]

    @property
    def requests(self) -> list[RequestRecord]:
        with self._changed:
            return list(self._requests)

    @property
    def duplicates(self) -> list[str]:
        """The event_ids stored more than once, whatever their insertIds."""
        with self._changed:
            return sorted(self._duplicates)

    def stats(self) -> dict[str, int]:
        with self._changed:
            return {
                "rows": self._row_count,
                "requests": self._request_count,
                "duplicates": len(self._duplicates),
                "bytes": self._bytes,
                "connections": self.connections,
            }

    def wait_for_rows(self, count: int, timeout: float = 60.0) -> None:
        """Return once so many rows are stored; a TimeoutError that says how many are."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._row_count >= count, timeout):
                raise TimeoutError(f"{self._row_count} of {count} rows after {timeout} s")

    def wait_for_requests(self, count: int, timeout: float = 60.0) -> None:
        """Return once so many requests have come in, answered or not, as ``wait_for_rows``."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._request_count >= count, timeout):
                raise TimeoutError(f"{self._request_count} of {count} requests after {timeout} s")

    # How it answers.

    def insert_all(
        self, table: str, body: bytes, arrived: float, client_port: int
    ) -> tuple[int, bytes, Fault | None]:
        """Store and record one request: the status and body to answer with, and the fault."""
        rows: list[Row] = []
        insert_ids: list[str | None] = []
        skip_invalid_rows = False
        unreadable: str | None = None
        try:
            rows, insert_ids, skip_invalid_rows = parse_request(body)
        except ValueError as error:
            unreadable = f"Invalid JSON payload received. {error}"
        with self._changed:
            fault = self._script.popleft() if self._script else self._always
        if fault is not None and not fault.stores:
            refusal: Fault | None = fault
        else:
            refusal = self._refusal(len(body), rows, unreadable)
        if refusal is None:
            code, content = 200, self._insert(table, rows, insert_ids, skip_invalid_rows)
        elif refusal.content is not None or refusal.sends == "nothing" or refusal.every:
            code, content = refusal.status, refusal.content or b""
        else:
            code = refusal.status
            content = error_body(code, refusal.reason, refusal.message, table)
        record = RequestRecord(
            arrived=arrived,
            table=table,
            rows=len(rows),
            size=len(body),
            insert_ids=tuple(insert_ids),
            status=None if fault and fault.sends == "nothing" else code,
            fault=fault.name if fault else None,
            client_port=client_port,
        )
        with self._changed:
            self._request_count += 1
            self._bytes += len(body)
            if not self._discard:
                self._requests.append(record)
            self._changed.notify_all()
        return code, content, fault

    def _refusal(self, size: int, rows: list[Row], unreadable: str | None) -> Fault | None:
        if size > MAX_REQUEST_BYTES:
            if self.oversized_status == 413:
                return status(413)
            message = f"Request payload size exceeds the limit: {MAX_REQUEST_BYTES} bytes."
            return status(self.oversized_status, "badRequest", message)
        if unreadable is not None:
            return status(400, message=unreadable)
        if not rows:
            return status(400, message="No rows present in the request.")
        if len(rows) > MAX_REQUEST_ROWS:
            limit = f"limit: {MAX_REQUEST_ROWS} row count: {len(rows)}."
            return status(400, message=f"too many rows present in the request, {limit}")
        poisoned = (status(code) for holds, code in self._refused_requests if any(map(holds, rows)))
        return next(poisoned, None)

    def _insert(
        self, table: str, rows: list[Row], insert_ids: list[str | None], skip_invalid_rows: bool
    ) -> bytes:
        errors = {index: error for index, row in enumerate(rows) if (error := self._error(row))}
        if errors and not skip_invalid_rows:
            errors = {index: errors.get(index, row_error("stopped")) for index in range(len(rows))}
        good = ((rows[i], insert_ids[i]) for i in range(len(rows)) if i not in errors)
        self._store(table, good)
        answer: dict[str, Any] = {"kind": "bigquery#tableDataInsertAllResponse"}
        if errors:
            answer["insertErrors"] = [{"index": i, "errors": [e]} for i, e in errors.items()]
        return orjson.dumps(answer)

    def _error(self, row: Row) -> dict[str, str] | None:
        if error := schema_error(row):
            return error
        for holds, error in self._refused_rows:
            if holds(row):
                return error
        for holds, already_stopped in self._stopped_once:
            if holds(row) and row["event_id"] not in already_stopped:
                already_stopped.add(row["event_id"])
                return row_error("stopped")
        return None

    def _store(self, table: str, rows: Iterable[tuple[Row, str | None]]) -> None:
        with self._changed:
            known = self._insert_ids[table]
            for row, insert_id in rows:
                if insert_id is not None:
                    if insert_id in known:
                        continue
                    known.add(row["event_id"] if row["event_id"] == insert_id else insert_id)
                if row["event_id"] in self._event_ids:
                    self._duplicates.add(row["event_id"])
                self._event_ids.add(row["event_id"])
                self._row_count += 1
                if not self._discard:
                    self._rows.append(row)
            self._changed.notify_all()


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, bigquery: ScriptedBigQuery) -> None:
        self.bigquery = bigquery
        self.stopping = threading.Event()
        self.open_sockets: set[socket.socket] = set()
        super().__init__(("127.0.0.1", bigquery.port), _Connection)

    def get_request(self) -> tuple[socket.socket, Any]:
        accepted, address = super().get_request()
        self.open_sockets.add(accepted)
        self.bigquery.connections += 1
        return accepted, address

    def shutdown_request(self, request: Any) -> None:
        self.open_sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # the client, or stop(), hung up
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
        for open_socket in tuple(self.open_sockets):
            try:
                open_socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has just ended by itself

    def close_in_forked_child(self) -> None:
        for inherited in (self.socket, *self.open_sockets):
            descriptor = inherited.detach()
            if descriptor != -1:
                os.close(descriptor)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def _respond(self) -> None:
        size = int(self.headers["Content-Length"] or 0)
        body = self.rfile.read(size)
        if len(body) < size:  # the client died while it sent
            self.close_connection = True
            return
        arrived = time.monotonic()
        bigquery = self.server.bigquery
        path = _INSERT_ALL.fullmatch(self.path)
        if self.command == "POST" and path:
            table = "{}:{}.{}".format(*path.groups())
            client_port = self.client_address[1]
            code, content, fault = bigquery.insert_all(table, body, arrived, client_port)
            self.server.stopping.wait(bigquery.latency + (fault.seconds if fault else 0.0))
            self._answer(code, content, fault)
        elif self.command == "POST" and self.path == "/reset":
            bigquery.clear()
            self._answer(200, b"{}")
        elif self.command == "GET" and self.path == "/elsewhere":
            self._answer(200, b'{"kind": "somebody else\'s"}')
        elif self.command == "GET" and self.path == "/stats":
            self._answer(200, orjson.dumps(bigquery.stats()))
        else:
            message = f"Not found: {self.command} {self.path}"
            self._answer(404, error_body(404, message=message))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _respond

    def _answer(self, code: int, content: bytes, fault: Fault | None = None) -> None:
        sends, ending = (fault.sends, fault.ending) if fault else ("all", "keep-alive")
        if sends == "malformed":
            content = content[: len(content) // 2]
        if fault and fault.every:
            self._drip(fault)
        elif sends != "nothing":
            kind = "text/html" if content.startswith(b"<") else "application/json"
            head = (
                f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\n"
                f"Content-Type: {kind}; charset=UTF-8\r\nContent-Length: {len(content)}\r\n"
                f"{f'Location: {fault.location}' if fault and fault.location else 'X-Other: -'}"
                "\r\n\r\n"
            )
            sent = content[: len(content) // 2] if sends == "half" else content
            self.wfile.write(head.encode() + sent)  # one write: no wait for a delayed ACK
        if ending == "reset":
            linger_for_no_time = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_no_time)
            # Closed here and now: the shutdown that socketserver begins with would send a FIN.
            os.close(self.connection.detach())
        if ending != "keep-alive":
            self.close_connection = True

    def _drip(self, fault: Fault) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n"
        self.wfile.write(head + (b"X-Drops: " if fault.sends == "drops" else b"\r\n"))
        while not self.server.stopping.wait(fault.every):
            self.wfile.write(b"x")

    def log_message(self, format: str, *args: object) -> None:
        """Print no access log."""


_servers: weakref.WeakSet[ScriptedBigQuery] = weakref.WeakSet()


def _let_go_in_forked_child() -> None:
    # A copy held by a child would keep a stopped server's port open and hold back a reset.
    for server in _servers:
        listener, server._listener = server._listener, None
        if listener is not None:
            listener.close_in_forked_child()


os.register_at_fork(after_in_child=_let_go_in_forked_child)


def main() -> None:
    parser = argparse.ArgumentParser(description="A scripted BigQuery, alone and healthy.")
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free one; printed")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--discard", action="store_true", help="keep counts and ids, no rows")
    options = parser.parse_args()
    with ScriptedBigQuery(options.port, latency=options.latency, discard=options.discard) as server:
        print(server.port, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
