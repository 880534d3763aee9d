"""What the tests of the delivery engine share: events, a writer, and what must always hold."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lorc_eventlog
from lorc_eventlog import Envelope, EventWriter, WriterStats, build_envelope
from scripted_bigquery import ScriptedBigQuery

PROGRAMS = Path(__file__).parent.parent / "programs"
PACKAGE = Path(lorc_eventlog.__file__).parent.parent
LEAN = PROGRAMS / "lean"

PRIVATE = "PrivateWord"
"""Stands in every payload and every subject_id, and must stand in no diagnostic."""


def make_event(number: int, **payload: Any) -> Envelope:
    """An event that can be told from the others by its number."""
    return build_envelope(
        event_type="test.happened",
        payload={"number": number, "text": PRIVATE, **payload},
        source="tests",
        subject_id=f"{PRIVATE}-{number}",
    )


def submit_events(writer: EventWriter, numbers: range) -> None:
    for number in numbers:
        writer.submit(make_event(number))


def refuse_odd(server: ScriptedBigQuery) -> None:
    """Refuse the rows of events with odd numbers."""
    server.refuse_row(
        lambda row: int(row["payload"].split(":")[1].split(",")[0]) % 2 == 1,
        message=f"Could not parse '{PRIVATE}'",
    )


def numbers_in(server: ScriptedBigQuery) -> list[int]:
    """The numbers of all stored rows, in order; one that is stored twice is here twice."""
    return sorted(event["payload"]["number"] for event in server.events())


@contextmanager
def running_writer(client: Any = None, **options: Any) -> Iterator[EventWriter]:
    """A writer that sends at once, and whose close waits for delivery."""
    writer = EventWriter(client, **{"flush_interval": 0.01, **options})
    try:
        yield writer
    finally:
        writer.close()


def assert_adds_up(stats: WriterStats) -> None:
    ends = (stats.delivered, stats.rejected, stats.dropped, stats.buffered, stats.spooled)
    assert stats.submitted == sum(ends), stats
    assert min(ends) >= 0, stats


@contextmanager
def sampled(writer: EventWriter) -> Iterator[None]:
    """Meanwhile, another thread looks whether the counters add up."""
    wrong: list[WriterStats] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.0005):
            stats = writer.stats()
            ends = (stats.delivered, stats.rejected, stats.dropped, stats.buffered, stats.spooled)
            if stats.submitted != sum(ends) or min(ends) < 0:
                wrong.append(stats)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield
    finally:
        done.set()
        sampler.join()
    assert wrong == []


def eventually(condition: Callable[[], object], timeout: float = 60.0) -> None:
    """Return once ``condition`` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout} s"
        time.sleep(0.002)


@contextmanager
def threads(count: int, work: Callable[[int], object]) -> Iterator[None]:
    """Run ``work(index)`` in so many threads; leave when all are done."""
    running = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        for thread in running:
            thread.join()


class Records(logging.Handler):
    """Keeps the records of the ``lorc_eventlog`` logger while it is in the ``with``."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._logger = logging.getLogger("lorc_eventlog")

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def texts(self, level: int) -> list[str]:
        return [record.getMessage() for record in self.records if record.levelno == level]

    def __enter__(self) -> Self:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._logger.removeHandler(self)


def environment(**changes: str) -> dict[str, str]:
    """The environment of a program: the tests' own, with this package to import.

    See ``programs/lean/sitecustomize.py``: ``IMPORT_EVERYTHING="1"`` if it matters what is there.
    """
    folders = (PACKAGE, Path(__file__).parent, LEAN)
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))} | changes


class Program(subprocess.Popen[str]):
    """A program that a ``with`` block kills if the test fails, instead of waiting for its end."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.kill()
        super().__exit__(kind, error, traceback)


def start_program(name: str, *arguments: object, **changes: str) -> Program:
    """Start a program of ``tests/programs`` on this Python."""
    return Program(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-W",
            "ignore:This process",
            PROGRAMS / name,
            *map(str, arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**changes),
        start_new_session=True,
    )


def run_program(
    name: str, *arguments: object, status: int = 0, timeout: float = 60.0, **changes: str
) -> str:
    """Run a program of ``tests/programs`` to its end; give what it says on stderr."""
    program = start_program(name, *arguments, **changes)
    try:
        _, said = program.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        program.kill()
        raise
    assert program.returncode == status, said
    assert PRIVATE not in said
    return said


def fork_and_wait(in_child: object) -> int:
    """Run ``in_child`` in a fork; 0 if it returned true."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if in_child() else 2  # type: ignore[operator]
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, wait_status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(wait_status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -9
