"""A way to a server on which answers are late, or do not arrive."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from typing import Self


class ChaosProxy:
    """Forwards connections to a port of this machine, and does something to some of the answers.

    Args:
        port: Where the server is, if it is.
        rng: Decides what happens.
    """

    def __init__(self, port: int, rng: random.Random) -> None:
        self.is_calm = True
        """Whether everything passes as it is."""
        self.done: Counter[str] = Counter()
        """What was done to answers, and how often."""
        self._target = ("127.0.0.1", port)
        self._rng = rng
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._target)
                except OSError:
                    self.done["nobody there"] += 1
                    client.close()
                    continue
                for work in (self._ask, self._answer):
                    threading.Thread(target=work, args=(client, server), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(2**16):
                server.sendall(data)
        _hang_up(client, server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(2**16):
                fate = "passed" if self.is_calm else self._fate()
                self.done[fate] += 1
                if fate == "dropped":
                    break
                if fate == "delayed":
                    time.sleep(self._rng.uniform(0.1, 3))  # what this is for
                client.sendall(data)
        _hang_up(client, server)

    def _fate(self) -> str:
        return self._rng.choices(["passed", "delayed", "dropped"], weights=[6, 2, 2])[0]


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
