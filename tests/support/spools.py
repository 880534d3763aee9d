"""Spool directories for the tests: rows and lines, files of dead processes, a disk that fails."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import make_event
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.events.envelope import to_row
from lorc_eventlog.events.row import Row
from lorc_eventlog.spool.format import encode_header, encode_line
from lorc_eventlog.spool.spool import Loaded, Spool

TABLE = "dataset.events"
"""The table of the server in the tests."""

EMPTY = encode_header(TABLE)
"""A segment of this version without events."""


def row(number: int, **payload: Any) -> Row:
    return to_row(make_event(number, **payload))


def line(number: int) -> bytes:
    return encode_line(row(number))


def number_of(stored: Mapping[str, Any]) -> int:
    number = json.loads(stored["payload"])["number"]
    assert isinstance(number, int)
    return number


def segment_of_the_dead(directory: Path, content: bytes, *, name: str = "1-1-a") -> Path:
    """A file as a process leaves it that is killed."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}.events"
    half_made = directory / "half-made"
    half_made.write_bytes(content)
    return half_made.rename(path)  # a writer that looks just now finds all of it


@contextmanager
def open_spool(directory: Path, **options: Any) -> Iterator[Spool]:
    notes = Notes()
    defaults = {"table": TABLE, "max_bytes": 2**30, "durable": False, "notes": notes}
    spool = Spool(directory, **{**defaults, **options})
    try:
        yield spool
    finally:
        spool.close()()
        notes.say()


def load(spool: Spool, rows: int = 5) -> Loaded | None:
    """Do one chore; what it brought, or None if there is none."""
    now = time.monotonic()
    chore = spool.next_chore(rows, 2**20, now)
    return None if chore is None else spool.chore_done(chore(), now)


def deliver_all(directory: Path, **options: Any) -> list[int]:
    """Adopt and acknowledge everything in ``directory``; the numbers of the events."""
    numbers: list[int] = []
    with open_spool(directory, **options) as spool:
        while (loaded := load(spool)) is not None:
            numbers += map(number_of, loaded.rows)
            spool.acknowledge(loaded.rows)
        assert spool.is_drained
    return numbers


def content(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.iterdir()))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int = errno.EIO) -> Iterator[None]:
    """Meanwhile the system call ``os.<name>`` fails."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        yield
