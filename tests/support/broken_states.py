"""Environments in which no command can do its work, each made without a real BigQuery."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from lorc_eventlog.bigquery import create
from lorc_eventlog.bigquery.table import COLUMNS
from lorc_eventlog.cli import create_table, diagnosis, emit_lines, query, tail
from lorc_eventlog.shipping.lock import take_lock
from lorc_eventlog.spool.directory import Directory, File

Answer = tuple[int, Any]
"""Status and body; a body that is no text becomes JSON, a status of 0 is silence, -1 a close."""


def error(code: int, reason: str, message: str) -> Answer:
    """As BigQuery words it."""
    return code, {"error": {"code": code, "message": message, "errors": [{"reason": reason}]}}


TABLE = {
    "tableReference": {"projectId": "test-project", "datasetId": "data", "tableId": "events"},
    "type": "TABLE",
    "timePartitioning": {"type": "DAY"},
    "schema": {
        "fields": [
            {"name": name, "type": kind, "mode": mode} for name, (kind, mode) in COLUMNS.items()
        ]
    },
}
VIEW = {**TABLE, "type": "VIEW"}
NO_PAYLOAD = {
    **TABLE,
    "schema": {"fields": TABLE["schema"]["fields"][:-1]},  # type: ignore[index]
}
DATASET = {"datasetReference": {"projectId": "test-project", "datasetId": "data"}, "location": "EU"}


class Broken(NamedTuple):
    """What a state does to the environment."""

    patch: pytest.MonkeyPatch
    directory: Path
    mended: Event
    """Set by who wants BigQuery to take events at last."""

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self.patch.setenv(name, value)

    def name_the_table(self, dataset: str = "data", table: str = "events") -> None:
        self.set(EVENTS_BQ_DATASET=dataset, EVENTS_BQ_TABLE=table)

    def forget_credentials(self) -> None:
        self.name_the_table()
        self.set(NO_GCE_CHECK="true", CLOUDSDK_CONFIG=str(self.directory), PATH="")


@contextmanager
def answering(*routes: tuple[str, Answer], mended: Event | None = None) -> Iterator[str]:
    """Serve the answer of the first route whose text is in ``METHOD path``."""
    done = Event()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = f"{self.command} {self.path}"
            code, body = next(answer for text, answer in routes if text in asked)
            if mended is not None and mended.is_set():
                code, body = 200, {}
            if code <= 0:
                done.wait(600 if code == 0 else 0)
                self.close_connection = True
                return
            text = body if isinstance(body, str) else json.dumps(body)
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PUT = answer  # noqa: N815  http.server's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        done.set()
        server.shutdown()


@contextmanager
def _nothing(_: Broken) -> Iterator[None]:
    yield


def variables(**values: str) -> Callable[[Broken], Any]:
    """Set exactly these."""

    @contextmanager
    def state(broken: Broken) -> Iterator[None]:
        broken.set(**values)
        yield

    return state


SILENCE = (("", (0, "")),)


def bigquery(*routes: tuple[str, Answer]) -> Callable[[Broken], Any]:
    """Let BigQuery answer so."""

    @contextmanager
    def state(broken: Broken) -> Iterator[None]:
        broken.name_the_table()
        with answering(*routes, mended=broken.mended) as url:
            broken.set(BIGQUERY_EMULATOR_HOST=url)
            # So that nothing is tried again for half a minute.
            broken.patch.setattr(create, "PATIENCE", 5.0)
            broken.patch.setattr(query, "QUERY_PATIENCE", 0.1)
            broken.patch.setattr(emit_lines, "PATIENCE", 2.0)
            if routes == SILENCE:
                for module in (create_table, diagnosis, query, tail):
                    broken.patch.setattr(module, "REQUEST_TIMEOUT", 0.3)
            yield

    return state


def credentials(content: str | None) -> Callable[[Broken], Any]:
    """Name a file with this ``content``; None: no file."""

    @contextmanager
    def state(broken: Broken) -> Iterator[None]:
        broken.forget_credentials()
        file = broken.directory / "key.json"
        if content is not None:
            file.write_text(content)
        broken.set(GOOGLE_APPLICATION_CREDENTIALS=str(file))
        yield

    return state


@contextmanager
def _no_credentials(broken: Broken) -> Iterator[None]:
    broken.forget_credentials()
    yield


@contextmanager
def _refused_key(broken: Broken) -> Iterator[None]:
    broken.forget_credentials()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoded = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    refusal = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
    with answering(("POST /token", (400, refusal))) as url:
        account = {
            "type": "service_account",
            "client_email": "app@project.example",
            "project_id": "project",
            "token_uri": f"{url}/token",
            "private_key": encoded.decode(),
        }
        with credentials(json.dumps(account))(broken):
            yield


@contextmanager
def _nobody_listens(broken: Broken) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with bigquery()(broken):
        broken.set(BIGQUERY_EMULATOR_HOST=f"http://127.0.0.1:{port}")
        yield


def spool(change: Callable[[Path], object]) -> Callable[[Broken], Any]:
    """Do something to the directory of the spool."""

    @contextmanager
    def state(broken: Broken) -> Iterator[None]:
        broken.name_the_table()
        held = change(broken.directory / "spool")
        yield
        if isinstance(held, File):
            held.close()

    return state


def _make_for_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def _ship_from(path: Path) -> File:
    path.mkdir(mode=0o700)
    return take_lock(Directory(path, access=None, create=False), "data.events")


DENIED = error(
    403, "accessDenied", "Access Denied: Table test-project:data.events: Permission denied"
)
GONE = error(404, "notFound", "Not found: Table test-project:data.events")
NO_DATASET = error(404, "notFound", "Not found: Dataset test-project:data")
EXISTS = error(409, "duplicate", "Already Exists")
IS_A_VIEW = error(400, "invalid", "Cannot add rows to a table of type VIEW.")
NO_QUERIES = error(
    403,
    "accessDenied",
    "Access Denied: Project test-project: User does not have bigquery.jobs.create permission",
)
UNKNOWN_COLUMN = error(400, "invalidQuery", "Unrecognized name: correlation_id at [1:8]")
NO_SUCH_FIELD = {"reason": "invalid", "location": "payload", "message": "no such field: payload."}

STATES: dict[str, Callable[[Broken], Any]] = {
    "no variables": _nothing,
    "a dataset that cannot be": variables(EVENTS_BQ_DATASET="my data", EVENTS_BQ_TABLE="events"),
    "a table that cannot be": variables(EVENTS_BQ_DATASET="data", EVENTS_BQ_TABLE="my.events"),
    "an unknown sink": variables(
        EVENTS_BQ_DATASET="data", EVENTS_BQ_TABLE="events", EVENTS_BQ_SINK="stdout"
    ),
    "no credentials": _no_credentials,
    "a key file that is missing": credentials(None),
    "a key file that is not JSON": credentials("oops"),
    "a key file of another kind": credentials('{"type": "oops"}'),
    "a key that Google refuses": _refused_key,
    "nobody listens": _nobody_listens,
    "no answer": bigquery(*SILENCE),
    "closed connections": bigquery(("", (-1, ""))),
    "401": bigquery(("", error(401, "authError", "Invalid Credentials"))),
    "403": bigquery(("", DENIED)),
    "429": bigquery(("", error(429, "rateLimitExceeded", "Exceeded rate limits"))),
    "500": bigquery(("", error(500, "internalError", "An internal error occurred"))),
    "503": bigquery(("", error(503, "backendError", "Service is unavailable"))),
    "HTML of a proxy": bigquery(("", (200, "<html>Sign in</html>"))),
    "HTML of a proxy, 502": bigquery(("", (502, "<html>Bad gateway</html>"))),
    "HTML of another web server": bigquery(("", (404, "<html>Not found</html>"))),
    "a list": bigquery(("", (200, []))),
    "no project": bigquery(("", error(404, "notFound", "Not found: Project test-project"))),
    "no dataset": bigquery(("", NO_DATASET)),
    "no table": bigquery(("/datasets/data?", (200, DATASET)), ("", GONE)),
    "no permission to query": bigquery(
        ("/queries", NO_QUERIES), ("/jobs", NO_QUERIES), ("GET", (200, TABLE))
    ),
    "a view": bigquery(
        (
            "POST /bigquery/v2/projects/test-project/datasets/data/tables/events/insertAll",
            IS_A_VIEW,
        ),
        ("POST", EXISTS),
        ("/tables/", (200, VIEW)),
        ("", (200, DATASET)),
    ),
    "a column is missing": bigquery(
        ("/jobs", UNKNOWN_COLUMN),
        ("/queries", UNKNOWN_COLUMN),
        ("/insertAll", (200, {"insertErrors": [{"index": 0, "errors": [NO_SUCH_FIELD]}]})),
        ("POST", EXISTS),
        ("/tables/", (200, NO_PAYLOAD)),
        ("", (200, DATASET)),
    ),
    "a spool that is a file": spool(lambda path: path.write_text("")),
    "a spool that others may write to": spool(_make_for_all),
    "another process ships": spool(_ship_from),
}
