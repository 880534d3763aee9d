"""The metrics of a shipper, as Prometheus reads them. No label comes from an event."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorc_eventlog.shipping.service import Progress

PREFIX = "lorc_eventlog_ship"

REQUEST_TIMEOUT = 10.0
"""Seconds in which a client asks. One that does not would keep a thread and a descriptor."""


def text_of(progress: Progress, now: float) -> str:
    """Return the metrics in Prometheus' text format."""
    metrics = [
        ("delivered_total", "counter", "Events that BigQuery stored.", progress.delivered),
        ("rejected_total", "counter", "Events that became dead letters.", progress.rejected),
        ("retries_total", "counter", "Requests that failed and were retried.", progress.retries),
        ("waiting_events", "gauge", "Events in memory.", progress.waiting),
        ("waiting_bytes", "gauge", "Bytes in the directory not read yet.", progress.waiting_bytes),
        (
            "oldest_seconds",
            "gauge",
            "Age of the oldest event that waits.",
            0.0 if progress.oldest is None else max(0.0, now - progress.oldest),
        ),
        (
            "last_success_timestamp_seconds",
            "gauge",
            "When BigQuery last stored events.",
            progress.last_success or 0.0,
        ),
    ]
    lines = []
    for name, kind, meaning, value in metrics:
        lines += [
            f"# HELP {PREFIX}_{name} {meaning}",
            f"# TYPE {PREFIX}_{name} {kind}",
            f"{PREFIX}_{name} {value}",
        ]
    return "\n".join(lines) + "\n"


def serving(
    progress: Callable[[], Progress], host: str, port: int
) -> contextlib.AbstractContextManager[None]:
    """Serve the metrics of ``progress`` under ``/metrics`` for as long as the block lasts.

    Raises:
        OSError: The port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            body = text_of(progress(), time.time()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    return _running(server)


@contextlib.contextmanager
def _running(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(
        target=server.serve_forever, name="lorc_eventlog-metrics", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
