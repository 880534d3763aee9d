"""Servers and workers that run while a test talks to them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from harness import LEAN, PACKAGE, eventually

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

GUNICORN = (
    *("gunicorn", "--bind", "127.0.0.1:0", "--workers", "2"),
    "--no-control-socket",  # it would be in the developer's home
)
UVICORN = ("uvicorn", "--host", "127.0.0.1", "--port", "0")


class Program:
    """A program that is running, and what it has said on stderr so far."""

    def __init__(self, process: subprocess.Popen[str], said: list[str]) -> None:
        self.process = process
        self.said = said

    def wait_for(self, pattern: str, count: int = 1) -> str:
        """Return the last of ``count`` matches of ``pattern``, once there are so many."""
        matches: list[str] = []

        def is_said() -> bool:
            assert self.process.poll() is None, "".join(self.said)
            matches[:] = re.findall(pattern, "".join(self.said))
            return len(matches) >= count

        eventually(is_said, timeout=30)
        return matches[-1]

    def terminate(self) -> None:
        """Send SIGTERM, as a deployment does, and wait until the program has ended."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)  # gunicorn gives its workers 30


@contextmanager
def running(*command: str, folder: Path, **changes: str) -> Iterator[Program]:
    """Run a module of this Python's installation, such as a server, in ``folder``."""
    folders = (PACKAGE, folder, EXAMPLES, Path(__file__).parent, LEAN)
    python_path = os.pathsep.join(map(str, folders))
    with (
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": python_path} | changes,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        ThreadPoolExecutor() as reader,
    ):
        said: list[str] = []
        assert process.stderr is not None
        reader.submit(keep_reading, process.stderr, said)
        try:
            yield Program(process, said)
        finally:
            process.kill()


def keep_reading(stream: IO[str], lines: list[str]) -> None:
    lines.extend(stream)


def start_server(program: Program) -> str:
    """Wait until the server answers and give its address."""
    address = program.wait_for(r"http://127\.0\.0\.1:\d+")
    program.wait_for(r"startup complete|Booting worker")
    return address
