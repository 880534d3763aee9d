"""insertAll next to the Storage Write API: CPU of the client, bytes on the wire, events a second.

    python -m benchmarks.storage --events 100000 --rounds 5

Each figure is from a process of its own, and all that are compared are from the same round. The
transports get their rows in memory, the shippers find them in a spool directory. The servers are
processes of their own that count rows without decoding them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.events import make_fields, make_payload
from benchmarks.figures import ratio, spread

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.transport import Transport
    from lorc_eventlog.events.row import Row

ROOT = Path(__file__).parent.parent
PLACE = "/var/tmp"  # noqa: S108  on a disk, where /tmp is often memory
TABLE = "dataset.events"
REST = "insertAll"
GRPC = "AppendRows"
SHIP_REST = "shipper, insertAll"
SHIP_GRPC = "shipper, AppendRows"
SHIP_ONCE = "shipper, exactly once"
ARMS = (REST, GRPC, SHIP_REST, SHIP_GRPC, SHIP_ONCE)
COMPARED = {GRPC: REST, SHIP_GRPC: SHIP_REST, SHIP_ONCE: SHIP_REST}
REST_ROWS, GRPC_ROWS = 500, 10_000
"""What a shipper sends in one request by default."""
SETTINGS: dict[str, dict[str, Any]] = {
    SHIP_REST: {"batch_rows": REST_ROWS},
    SHIP_GRPC: {"batch_rows": GRPC_ROWS, "transport": "grpc"},
    SHIP_ONCE: {"batch_rows": GRPC_ROWS, "transport": "grpc", "exactly_once": True},
}
WARM_UP = 10_000
TIMEOUT = 600.0


def measure(*, rounds: int, events: int, kilobytes: float) -> dict[str, Any]:
    """Return for each arm microseconds of CPU an event, events a second, and bytes an event."""
    cpu: dict[str, list[float]] = {name: [] for name in ARMS}
    rate: dict[str, list[float]] = {name: [] for name in ARMS}
    sent: dict[str, list[float]] = {name: [] for name in ARMS}
    with running_servers() as (http, grpc):
        for _ in range(rounds):
            for name in ARMS:
                seconds, duration = in_a_process(name, events, kilobytes, http, grpc)
                cpu[name].append(seconds / events * 1e6)
                rate[name].append(events / duration)
        for name in ARMS:
            with counting(http) as (http_count, http_relay), counting(grpc) as (count, relay):
                in_a_process(name, events, kilobytes, http_relay, relay)
                sent[name].append((sum(http_count) + sum(count)) / (events + WARM_UP))
    return {
        name: {
            "microseconds": spread(cpu[name]),
            "rate": spread(rate[name]),
            "bytes": spread(sent[name]),
            "cpu ratio": ratio(cpu[name], cpu[COMPARED.get(name, name)]),
            "bytes ratio": ratio(sent[name], sent[COMPARED.get(name, name)]),
        }
        for name in ARMS
    }


def in_a_process(
    name: str, events: int, kilobytes: float, http: int, grpc: int
) -> tuple[float, float]:
    """Measure one arm in a new process: seconds of CPU, and of the clock."""
    program = [sys.executable, "-m", "benchmarks.storage", "--arm", name]
    program += ["--events", str(events), "--kilobytes", str(kilobytes)]
    environment = os.environ | {
        "BIGQUERY_EMULATOR_HOST": f"http://127.0.0.1:{http}",
        "BIGQUERY_STORAGE_EMULATOR_HOST": f"127.0.0.1:{grpc}",
        "GRPC_VERBOSITY": "NONE",
    }
    ran = subprocess.run(
        program, check=False, capture_output=True, text=True, cwd=ROOT, env=environment
    )
    if ran.returncode:
        raise RuntimeError(ran.stderr)
    seconds, duration = json.loads(ran.stdout)
    return seconds, duration


# In the process that is measured


def run(name: str, events: int, kilobytes: float) -> tuple[float, float]:
    """Send the events: seconds of CPU, and of the clock."""
    from lorc_eventlog.events.row import row_at

    rows = [
        row_at(time.time(), **make_fields(make_payload(kilobytes, number)))
        for number in range(events + WARM_UP)
    ]
    if name in SETTINGS:
        with tempfile.TemporaryDirectory(dir=PLACE) as directory:
            return _ship(Path(directory, "spool"), rows, events, SETTINGS[name])
    return _send(name, rows[:events], rows[events:])


def _send(name: str, rows: list[Row], first: list[Row]) -> tuple[float, float]:
    transport: Transport
    if name == REST:
        from lorc_eventlog.bigquery.insert_all import InsertAllTransport

        transport, size = InsertAllTransport(None, TABLE), REST_ROWS
    else:
        from lorc_eventlog.bigquery.storage_write import StorageWriteTransport

        transport, size = StorageWriteTransport(TABLE), GRPC_ROWS
    _send_all(transport, first, size)  # imports, and opens the connection
    with _clock() as seconds:
        _send_all(transport, rows, size)
    return seconds[0], seconds[1]


def _send_all(transport: Transport, rows: Sequence[Row], size: int) -> None:
    from lorc_eventlog.bigquery.transport import Answer

    for start in range(0, len(rows), size):
        result = transport.send(rows[start : start + size], timeout=60.0)
        if not isinstance(result, Answer):
            raise SystemExit(result.told(()))


def _ship(
    path: Path, rows: list[Row], events: int, settings: dict[str, Any]
) -> tuple[float, float]:
    from lorc_eventlog.diagnostics import Notes
    from lorc_eventlog.shipping.service import Settings, Shipper
    from lorc_eventlog.spool.directory import Access
    from lorc_eventlog.spool.format import encode_line
    from lorc_eventlog.spool.shipped import SegmentAppender

    def append(where: Path, some: Sequence[Row]) -> None:
        appender = SegmentAppender(
            where, access=Access.OWNER, table=TABLE, max_bytes=2**40, durable=False, notes=Notes()
        )
        for row in some:
            appender.append(encode_line(row), time.monotonic())
        appender.abandon()

    aside = path.with_name("aside")  # so that nothing is shipped before the clock runs
    append(aside, rows[:events])
    append(path, rows[events:])
    shipper = Shipper(Settings(directory=path, table=TABLE, **settings))
    shipper.start()
    shipper.wait_until(lambda progress: progress.is_empty, TIMEOUT)  # imports, and connects
    with _clock() as seconds:
        for segment in sorted(aside.glob("*.ship")):
            segment.rename(path / segment.name)
        if not shipper.wait_until(lambda p: p.delivered == len(rows), TIMEOUT):
            raise RuntimeError(shipper.progress())
        elapsed = time.monotonic()
        shipper.wait_until(lambda progress: progress.is_empty, TIMEOUT)
    return seconds[0], elapsed - seconds[2]


@contextmanager
def _clock() -> Iterator[list[float]]:
    figures: list[float] = []
    gc.collect()
    began, cpu = time.monotonic(), time.process_time()
    figures += [0.0, 0.0, began]
    yield figures
    figures[:2] = [time.process_time() - cpu, time.monotonic() - began]


# The servers


@contextmanager
def running_servers() -> Iterator[tuple[int, int]]:
    """Run both servers in processes of their own; gives their ports."""
    processes = []
    ports = []
    try:
        for kind in ("http", "grpc"):
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.storage", "--serve", kind],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            processes.append(process)
            assert process.stdout is not None
            ports.append(int(process.stdout.readline()))
        yield ports[0], ports[1]
    finally:
        for process in processes:
            process.terminate()
            process.wait()


class _InsertAll(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rows = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).rows += body.count(b'"insertId"')
        self.wfile.write(
            b"HTTP/1.1 200 -\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        )

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
        """Print no access log."""


def serve_http() -> None:
    """Take ``insertAll`` until terminated; the port is printed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _InsertAll)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def serve_grpc() -> None:
    """Take rows into any stream until terminated; the port is printed."""
    import grpc

    from lorc_eventlog.bigquery.storage_messages import (
        AppendRowsRequest,
        AppendRowsResponse,
        CreateWriteStreamRequest,
        WriteStream,
    )

    counted = _rows_as_bytes()

    class Handler(grpc.GenericRpcHandler):
        streams = 0

        def service(self, details: grpc.HandlerCallDetails) -> Any:
            if details.method.endswith("/AppendRows"):
                return grpc.stream_stream_rpc_method_handler(self.append)
            return grpc.unary_unary_rpc_method_handler(self.create)

        def create(self, encoded: bytes, _: grpc.ServicerContext) -> bytes:
            self.streams += 1
            parent = CreateWriteStreamRequest.FromString(encoded).parent
            name = f"{parent}/streams/{self.streams}"
            return bytes(WriteStream(name=name).SerializeToString())

        def append(self, requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
            rows = 0
            for encoded in requests:
                request = AppendRowsRequest.FromString(encoded)
                rows += len(counted.FromString(request.proto_rows.rows).rows)
                answer = AppendRowsResponse()
                answer.append_result.SetInParent()
                if request.HasField("offset"):
                    answer.append_result.offset.value = request.offset.value
                yield answer.SerializeToString()

    server = grpc.server(
        ThreadPoolExecutor(20), options=[("grpc.max_receive_message_length", 20 * 2**20)]
    )
    server.add_generic_rpc_handlers((Handler(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


def _rows_as_bytes() -> Any:
    """Return a message whose rows are not decoded."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="rows.proto", package="benchmarks")
    file.message_type.add(name="Rows").field.add(
        name="rows", number=1, label=field.LABEL_REPEATED, type=field.TYPE_BYTES
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("benchmarks.Rows"))


@contextmanager
def counting(port: int) -> Iterator[tuple[list[int], int]]:
    """Relay connections to ``port``; gives the bytes that pass, in either direction."""
    passed: list[int] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(2**18):
                passed.append(len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one side is gone
            pass

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(("127.0.0.1", port))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield passed, listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def table(figures: dict[str, Any]) -> str:
    """Return the figures as a table of Markdown."""
    lines = [
        "| arm | CPU, µs an event | ÷ insertAll's | bytes an event | ÷ insertAll's | events/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, found in figures.items():
        microseconds, cpu, sent, wire, rate = (
            found[key] for key in ("microseconds", "cpu ratio", "bytes", "bytes ratio", "rate")
        )
        lines.append(
            f"| {name} | {_spread(microseconds, 1)} | {_spread(cpu, 2)} | {sent[0]:.0f} | "
            f"{wire[0]:.2f} | {rate[0]:,.0f} ({rate[1]:,.0f} to {rate[2]:,.0f}) |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"


def main() -> None:
    """Print the table; or be one of the processes that it needs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kilobytes", type=float, default=0.2, help="how large a payload is")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=("http", "grpc"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_http() if options.serve == "http" else serve_grpc()
    elif options.arm:
        print(json.dumps(run(options.arm, options.events, options.kilobytes)))
    else:
        figures = measure(rounds=options.rounds, events=options.events, kilobytes=options.kilobytes)
        print(table(figures))


if __name__ == "__main__":
    main()
