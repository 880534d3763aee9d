"""What the tests of the command line share: run a command, read its output, stand in the way."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from google.cloud import bigquery

from harness import environment
from lorc_eventlog import emit
from lorc_eventlog.cli.app import commands

SECRET = "kidney"
SUBJECT = "patient-0815"


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    """Run a command in this process; a traceback is an error of the test."""
    result = CliRunner().invoke(commands, arguments, input=stdin, prog_name="lorc-eventlog")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@contextlib.contextmanager
def program(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command as a program of its own, and not longer than the test."""
    with subprocess.Popen(
        [sys.executable, "-m", "lorc_eventlog", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **{"env": environment(), **options},
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def steps(result: Result) -> dict[str, str]:
    """Each step of `check` with its mark, what was found and what is to do."""
    found: dict[str, str] = {}
    for line in result.stdout.splitlines():
        start = re.match(r"([✓✗-]) (\w+) +(.*)", line)
        if start:
            step = start[2]
            found[step] = found.get(step, "") + f"{start[1]} {start[3]}"
        else:
            found[step] += " " + line.strip()
    return found


def left_by_a_dead_process(directory: Path, count: int, **payload: str) -> None:
    """Events that a process, then killed, logged while BigQuery was down."""
    code = f"""if True:
        import os, signal
        from lorc_eventlog import EventWriter
        writer = EventWriter(spool_dir={str(directory)!r})
        for number in range({count}):
            payload = {{"{SECRET}": number, **{payload!r}}}
            writer.emit("a.b", payload, source="s", subject_id="{SUBJECT}")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    env = environment(BIGQUERY_EMULATOR_HOST="http://127.0.0.1:9")
    killed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def log_events(client: bigquery.Client) -> None:
    """Three events, of which one has everything that an envelope can hold."""
    emit("email.received", {"subject": SECRET}, source="gmail", bq_client=client,
         schema_ref="email.v1", correlation_id="trace-1", subject_id=SUBJECT)  # fmt: skip
    emit("email.archived", {}, source="gmail/acct1", bq_client=client, correlation_id="trace-2")
    emit("report.sent", {"pages": 3}, source="reports", bq_client=client, correlation_id="trace-1")


class Gate:
    """A way to the emulator on which some requests get an answer of ours instead."""

    def __init__(self, emulator: str) -> None:
        gate = self
        self.answers: list[tuple[str, int, dict[str, Any]]] = []
        """Pattern of method and path, status and body; the first that fits counts."""
        self.bodies: list[dict[str, Any]] = []
        """What was asked of BigQuery, for as much as it was JSON."""
        target = urllib.parse.urlsplit(emulator).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with contextlib.suppress(ValueError):
                    gate.bodies.append(json.loads(body))
                for pattern, code, answer in gate.answers:
                    if re.search(pattern, f"{self.command} {self.path.partition('?')[0]}"):
                        self.send(code, "application/json", json.dumps(answer).encode())
                        return
                headers = {name: value for name, value in self.headers.items() if name != "Host"}
                headers["Accept-Encoding"] = "identity"
                connection = http.client.HTTPConnection(target)
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                self.send(response.status, response.headers["Content-Type"], response.read())
                connection.close()

            do_GET = do_POST = do_DELETE = answer  # noqa: N815  http.server's names

            def send(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def refuse(self, pattern: str, code: int, reason: str, message: str) -> None:
        """Answer with an error as BigQuery words it."""
        error = {"code": code, "message": message, "errors": [{"reason": reason}]}
        self.answers.append((pattern, code, {"error": error}))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def shown(result: Result) -> list[str]:
    """The types of the events that were shown, in their order."""
    return [line.split()[2] for line in result.stdout.splitlines()]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
