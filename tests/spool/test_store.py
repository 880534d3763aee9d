"""The files of this process: what a failing disk, a full one and a signal handler make of them."""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Records
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.spool import store as store_module
from lorc_eventlog.spool.format import MAX_LINE_BYTES
from lorc_eventlog.spool.orphans import Orphans
from lorc_eventlog.spool.report import SpoolReport
from lorc_eventlog.spool.segment import Segment
from lorc_eventlog.spool.store import Store
from lorc_eventlog.spool.survey import survey
from spools import EMPTY, TABLE, content, failing, line, names, row, segment_of_the_dead


class Setup:
    """A store in a directory of its own."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.notes = Notes()
        self.report = SpoolReport(directory, self.notes)
        defaults = {"table": TABLE, "max_bytes": 2**30, "durable": False}
        self.store = Store(
            directory,
            report=self.report,
            **{**defaults, **options},
        )
        self.done = self.store.done
        self.orphans = Orphans(directory, table=TABLE, report=self.report)

    def close(self) -> None:
        """Remove what is done, and say what is noted."""
        self.store.close()
        self.orphans.remove(self.done)
        self.notes.say()


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


class Interruption(BaseException):
    """What a signal handler raises."""


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("error", [Interruption(), TimeoutError("of an alarm handler")])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_handler_that_raises_in_a_write_leaves_nothing_of_it(
    setup: Setup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_memory: bool,
    error: BaseException,
    when: str,
) -> None:
    real_write = os.pwrite
    assert setup.store.append(line(0), row(0) if in_memory else None)
    segment = setup.store._active
    assert segment is not None
    before = content(tmp_path)

    def write(descriptor: int, data: bytes, offset: int) -> int:
        if when == "after":
            real_write(descriptor, data, offset)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", write)
        with pytest.raises(type(error)):
            setup.store.append(line(1), row(0) if in_memory else None)
    assert content(tmp_path) == before
    assert setup.store.unread == segment.unread == (0 if in_memory else 1)
    assert segment.live == (1 if in_memory else 0)
    assert segment.is_read == in_memory
    assert setup.store.append(line(2), row(0) if in_memory else None)
    assert [found.events for found in survey(tmp_path)] == [2]


def test_a_signal_handler_that_logs_and_raises_in_a_write_keeps_what_it_logged(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.pwrite
    assert setup.store.append(line(0))

    def write(descriptor: int, data: bytes, offset: int) -> int:
        monkeypatch.setattr(os, "pwrite", real_write)
        written = real_write(descriptor, data, offset)
        assert written == len(data)
        assert setup.store.append(line(2))
        raise Interruption

    monkeypatch.setattr(os, "pwrite", write)
    with pytest.raises(Interruption):
        setup.store.append(line(1))
    (found,) = survey(tmp_path)
    assert (found.events, found.damaged_bytes) == (2, 0)
    assert setup.store.unread == 2


def nested(monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[], Any]) -> None:
    """Let a signal handler run ``action`` once, at the end of a call of ``os.<name>``."""
    real = getattr(os, name)

    def call(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        monkeypatch.setattr(os, name, real)
        action()
        return result

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize("name", ["open", "pwrite", "fchmod"])
def test_a_signal_handler_that_logs_while_a_file_is_made_has_a_file_of_its_own(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    nested(monkeypatch, name, lambda: setup.store.append(line(1)))
    assert setup.store.append(line(2))
    assert [found.events for found in survey(tmp_path)] == [1, 1]
    assert setup.store.unread == 2
    rows = []
    while (segment := setup.store.unread_segment()) is not None:
        reading = segment.read(segment.read_to, 10)
        rows += reading.rows
        assert setup.store.take_in(reading) == 0
    assert len(rows) == 2
    assert setup.store.unread == 0


def test_a_signal_handler_that_logs_just_before_a_file_is_emptied_loses_nothing(
    setup: Setup, tmp_path: Path
) -> None:
    assert setup.store.append(line(0), row(0))
    segment = setup.store._active
    assert segment is not None
    segment.live -= 1
    setup.store.append(line(1))
    segment.empty()
    assert [found.events for found in survey(tmp_path)] == [2]


def test_a_line_over_10_megabytes_is_not_written(setup: Setup, tmp_path: Path) -> None:
    assert not setup.store.append(b"x" * MAX_LINE_BYTES + b"\n", row(0))
    assert names(tmp_path) == []


def test_a_file_that_others_always_take_is_a_refusal(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "lock", lambda _: False)
    with Records() as records:
        assert not setup.store.append(line(0))
        setup.close()
    assert "events wait in memory only" in records.texts(logging.ERROR)[0]
    assert names(tmp_path) == []


def test_two_threads_may_remove_files_at_the_same_time(setup: Setup) -> None:
    class Emptied(deque[Segment]):
        """Another thread takes the last one just now."""

        def __bool__(self) -> bool:
            return True

    setup.orphans.remove(Emptied())


def test_a_disk_that_fails_to_write_a_header_leaves_no_file(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing(monkeypatch, "pwrite", errno.EDQUOT):
        assert not setup.store.append(line(0))
    assert names(tmp_path) == []


def test_a_new_file_begins_with_the_header_and_is_emptied_to_it(
    setup: Setup, tmp_path: Path
) -> None:
    first = line(0)
    assert setup.store.append(first, row(0))
    segment = setup.store._active
    assert segment is not None
    assert content(tmp_path) == EMPTY + first
    segment.live -= 1
    setup.store.release(segment)
    assert content(tmp_path) == EMPTY
    setup.close()
    assert names(tmp_path) == []


def test_a_survey_says_why_a_file_cannot_be_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment_of_the_dead(tmp_path, EMPTY + b"".join(map(line, range(30))))
    real_read = os.pread

    def read(descriptor: int, size: int, offset: int) -> bytes:
        if offset == 0 and size > 4096:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_read(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", read)
    (found,) = survey(tmp_path)
    assert (found.events, found.error) == (0, "Input/output error")


def test_trouble_of_one_kind_is_said_once_a_minute(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert setup.store.append(line(0))
    with Records() as records:
        with failing(monkeypatch, "pwrite"):
            assert not setup.store.append(line(1))
            assert not setup.store.append(line(2))
        setup.close()
    assert len(records.texts(logging.ERROR)) == 1


@pytest.mark.parametrize("durable", [False, True])
def test_a_header_that_is_written_in_part_is_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    setup = Setup(tmp_path, durable=durable)
    real_write = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, at: real_write(fd, data[:10], at))
        assert not setup.store.append(line(0))
    assert names(tmp_path) == []
