"""The Storage Write API through a proxy, as gRPC takes one from the environment."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from lorc_eventlog.bigquery.storage_write import StorageWriteTransport
from lorc_eventlog.bigquery.transport import Answer
from lorc_eventlog.events.row import row_at
from scripted_storage import ScriptedStorage


class Proxy:
    """Takes one CONNECT to any host, and leads it to ``port``."""

    def __init__(self, port: int) -> None:
        self.asked: list[str] = []
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        self.asked.append(head.decode().splitlines()[0])
        server = socket.create_connection(("127.0.0.1", self._port))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=self._pump, args=(server, client), daemon=True).start()
        self._pump(client, server)
        for end in (client, server):
            end.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one side is gone
            pass

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def server() -> Iterator[ScriptedStorage]:
    with ScriptedStorage() as scripted:
        yield scripted


def test_a_proxy_of_the_environment_is_used(
    server: ScriptedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(server.port)
    monkeypatch.setenv("https_proxy", proxy.url)
    for name in ("no_proxy", "no_grpc_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", "storage.example:443")
    transport = StorageWriteTransport("dataset.events")
    rows = [row_at(0.0, "test.happened", {"number": 0}, "tests")]
    assert transport.send(rows, timeout=20) == Answer()
    assert proxy.asked == ["CONNECT storage.example:443 HTTP/1.1"]
    assert server.numbers() == [0]
    transport.reconnect()
    proxy.close()
