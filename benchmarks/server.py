"""The other side of every benchmark: one HTTP server, in a process of its own, for all arms.

It takes BigQuery's ``insertAll`` (and checks the rows as the tests' server does), Google Cloud
Logging's ``entries:write``, OTLP and CloudWatch's ``PutLogEvents``, counts the events in each
request by the marker that every event carries, and fails on a script.

    python -m benchmarks.server --latency 0.1
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MARKER = re.compile(rb"marker-\d{8}")
_INSERT_ALL = re.compile(r"/bigquery/v2/projects/[^/]+/datasets/[^/]+/tables/[^/]+/insertAll.*")


class Remote:
    """A running server, as a benchmark sees it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def stats(self) -> dict[str, int]:
        """Return ``events`` that arrived, how many ``distinct``, and in how many ``requests``."""
        answer: dict[str, int] = self._ask("GET", "/stats")
        return answer

    def reset(self) -> None:
        """Forget what has arrived, and the script."""
        self._ask("POST", "/reset")

    def script(self, *faults: str, then: str = "ok") -> None:
        """Meet each of the next requests with a fault, and all later ones with ``then``.

        ``ok``; a status such as ``503``; ``lost``: the events are stored and the connection closed
        without an answer; ``hang``: silence.
        """
        self._ask("POST", "/script", {"faults": faults, "then": then})

    def wait_for(self, events: int, timeout: float) -> dict[str, int]:
        """Return the counts once ``events`` distinct ones are there, or after ``timeout``."""
        deadline = time.monotonic() + timeout
        while (stats := self.stats())["distinct"] < events and time.monotonic() < deadline:
            time.sleep(0.01)
        return stats

    def wait_for_events(self, events: int, timeout: float) -> int:
        """Return how many events arrived once ``events`` did, or after ``timeout``."""
        deadline = time.monotonic() + timeout
        while (arrived := self.stats()["events"]) < events and time.monotonic() < deadline:
            time.sleep(0.01)
        return arrived

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(  # noqa: S310  our own URL
            self.url + path, method=method, data=json.dumps(body or {}).encode()
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.load(answer)


def environment(server: Remote) -> dict[str, str]:
    """Return the environment of a benchmark's process: its modules and where events go."""
    paths = (str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", ""))
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "BIGQUERY_EMULATOR_HOST": server.url,
        "EVENTS_BQ_DATASET": "dataset",
        "EVENTS_BQ_TABLE": "events",
        "NO_GCE_CHECK": "true",  # google-cloud-logging asks no metadata server what it runs on
        "GCE_METADATA_IP": "127.0.0.1:1",
        "GCE_METADATA_HOST": "127.0.0.1:1",
    }


@contextmanager
def running_server(latency: float = 0.0) -> Iterator[Remote]:
    """Run a server that answers after ``latency`` seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.server", "--latency", str(latency)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(Remote("")),
    )
    try:
        assert process.stdout is not None
        yield Remote(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.terminate()
        process.wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, latency: float) -> None:
        from scripted_bigquery import ScriptedBigQuery

        super().__init__(("127.0.0.1", 0), _Connection)
        self.latency = latency
        self.bigquery = ScriptedBigQuery(discard=True)
        self.lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        with self.lock:
            self.bigquery.clear()
            self.faults: deque[str] = deque()
            self.then = "ok"
            self.markers: Counter[bytes] = Counter()
            self.insert_ids: set[str] = set()
            self.requests = 0

    def store(self, body: bytes, insert_ids: list[str]) -> None:
        """Count the markers in ``body``; where events have ids, one that is known is no other."""
        markers = MARKER.findall(body)
        with self.lock:
            self.requests += 1
            if len(insert_ids) == len(markers):
                markers = [
                    marker
                    for marker, insert_id in zip(markers, insert_ids, strict=True)
                    if insert_id not in self.insert_ids
                ]
                self.insert_ids.update(insert_ids)
            self.markers.update(markers)

    def stats(self) -> dict[str, int]:
        with self.lock:
            return {
                "events": self.markers.total(),
                "distinct": len(self.markers),
                "requests": self.requests,
            }


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        """Tell what arrived."""
        self._answer(200, json.dumps(self.server.stats()).encode())

    def do_POST(self) -> None:
        """Take a request of one of the four protocols, or of the benchmark."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path == "/reset":
            self.server.clear()
            self._answer(200, b"{}")
        elif self.path == "/script":
            script = json.loads(body)
            self.server.faults.extend(script["faults"])
            self.server.then = script["then"]
            self._answer(200, b"{}")
        else:
            self._meet(
                self.server.faults.popleft() if self.server.faults else self.server.then, body
            )

    def _meet(self, fault: str, body: bytes) -> None:
        if fault == "hang":
            time.sleep(3600)
        time.sleep(self.server.latency)
        if fault.isdigit():
            self._answer(int(fault), b'{"error": {"code": %d, "message": "no"}}' % int(fault))
            return
        status, content = self._take(body)
        if fault == "lost":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._answer(status, content)

    def _take(self, body: bytes) -> tuple[int, bytes]:
        insert_ids: list[str] = []
        status, content = 200, b"{}"
        if _INSERT_ALL.fullmatch(self.path):
            status, content, _ = self.server.bigquery.insert_all("t", body, time.monotonic(), 0)
            if status != 200:
                return status, content
            insert_ids = [row["insertId"] for row in json.loads(body)["rows"]]
        elif self.path == "/v2/entries:write":
            entries = json.loads(body)["entries"]
            insert_ids = [entry["insertId"] for entry in entries if "insertId" in entry]
        elif self.path == "/v1/logs":
            content = b""
        self.server.store(body, insert_ids)
        return status, content

    def _answer(self, status: int, content: bytes) -> None:
        kind = "application/x-protobuf" if self.path == "/v1/logs" else "application/json"
        if "X-Amz-Target" in self.headers:
            kind = "application/x-amz-json-1.1"
        head = (
            f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        self.wfile.write(head.encode() + content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
        """Print no access log."""


def main() -> None:
    """Serve until terminated; the port is printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    server = _Server(parser.parse_args().latency)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
