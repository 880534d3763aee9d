"""The application's side of a spool that a shipper empties."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.spool import shipped
from lorc_eventlog.spool.directory import Access, Directory
from lorc_eventlog.spool.format import decode_line
from lorc_eventlog.spool.shipped import (
    LaterVersionError,
    SegmentAppender,
    SpoolFullError,
    header_of,
    lock_name,
    table_of,
)

TABLE = "dataset.events"
LINE = b"a line\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def appender(path: Path, notes: Notes) -> Iterator[SegmentAppender]:
    made = make_appender(path, notes)
    yield made
    made.abandon()


def make_appender(
    path: Path, notes: Notes, *, max_bytes: int = 2**20, durable: bool = False
) -> SegmentAppender:
    return SegmentAppender(
        path, access=Access.OWNER, table=TABLE, max_bytes=max_bytes, durable=durable, notes=notes
    )


def segments(path: Path) -> list[Path]:
    return sorted(path.glob("*.ship"))


def lines(path: Path) -> list[bytes]:
    """The lines of all segments, without the headers."""
    return [line for file in segments(path) for line in file.read_bytes().splitlines(True)[1:]]


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_lines_follow_a_header_that_names_version_and_table(
    path: Path, appender: SegmentAppender
) -> None:
    appender.append(LINE, 0.0)
    appender.append(LINE, 0.0)
    (segment,) = segments(path)
    header, *rest = segment.read_bytes().splitlines(True)
    assert table_of(decode_line(header[:-1])) == TABLE
    assert rest == [LINE, LINE]
    assert is_locked(segment)


def test_a_header_of_a_later_version_is_told_from_a_damaged_one() -> None:
    assert table_of(None) is None
    assert table_of({"something": "else"}) is None
    with pytest.raises(LaterVersionError):
        table_of({**header_of(TABLE), "lorc_eventlog_ship": 2})
    with pytest.raises(LaterVersionError):
        table_of({**header_of(TABLE), "table": 7})


def test_a_segment_that_is_large_is_closed_and_the_next_one_comes_after_it(
    path: Path, notes: Notes
) -> None:
    appender = make_appender(path, notes, max_bytes=16 * 400)
    for number in range(40):
        appender.append(b"%060d\n" % number, 0.0)
    assert len(segments(path)) > 5
    assert lines(path) == [b"%060d\n" % number for number in range(40)]
    assert [is_locked(segment) for segment in segments(path)][-2:] == [False, True]
    appender.abandon()


def test_a_segment_that_was_idle_for_a_minute_is_closed(
    path: Path, appender: SegmentAppender
) -> None:
    appender.append(LINE, 0.0)
    appender.close_if_idle(59.0)
    assert is_locked(segments(path)[0])
    appender.append(LINE, 100.0)
    assert [is_locked(segment) for segment in segments(path)] == [False, True]
    appender.close_if_idle(161.0)
    assert not any(is_locked(segment) for segment in segments(path))


def test_at_the_limit_lines_are_refused_until_the_shipper_has_deleted_something(
    path: Path, notes: Notes
) -> None:
    appender = make_appender(path, notes, max_bytes=2000)
    line = b"x" * 99 + b"\n"
    while sum(segment.stat().st_size for segment in segments(path)) <= 1800:
        appender.append(line, 0.0)
    with pytest.raises(SpoolFullError, match="2,000"):
        appender.append(line, 1.0)
    segments(path)[0].unlink()
    with pytest.raises(SpoolFullError):  # it looks only now and then
        appender.append(line, 1.01)
    appender.append(line, 2.0)
    assert sum(segment.stat().st_size for segment in segments(path)) <= 2000
    appender.abandon()


def test_a_line_over_the_limit_is_refused_before_anything_is_made(path: Path, notes: Notes) -> None:
    appender = make_appender(path, notes, max_bytes=len(LINE) - 1)
    with pytest.raises(SpoolFullError):
        appender.append(LINE, 0.0)
    assert not path.exists()


@pytest.mark.parametrize("durable", [True, False])
def test_a_line_that_lacks_only_its_line_break_is_written(
    path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch, *, durable: bool
) -> None:
    """A reader finds it: refused and written again it would be two events."""
    appender = make_appender(path, notes, durable=durable)
    forced: list[int] = []
    monkeypatch.setattr(shipped, "force_to_disk", forced.append)
    appender.append(LINE, 0.0)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:-1]))
        appender.append(LINE, 0.0)
    assert len(forced) == (2 if durable else 0)
    appender.append(LINE, 0.0)
    assert lines(path) == [LINE, LINE[:-1], LINE]
    assert len(segments(path)) == 2
    appender.abandon()


def test_a_line_that_is_cut_off_counts_as_refused_and_spoils_no_other(
    path: Path, appender: SegmentAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    appender.append(LINE, 0.0)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:3]))
    with pytest.raises(OSError, match="No space left"):
        appender.append(LINE, 0.0)
    monkeypatch.undo()
    appender.append(LINE, 0.0)
    assert lines(path) == [LINE, LINE[:3], LINE]


def test_a_segment_that_cannot_be_begun_leaves_nothing_behind(
    path: Path, appender: SegmentAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(OSError, match="No space left"):
        appender.append(LINE, 0.0)
    monkeypatch.undo()
    assert list(path.iterdir()) == []
    appender.append(LINE, 0.0)
    assert lines(path) == [LINE]


def test_a_draft_that_a_shipper_cleared_away_is_begun_again(
    path: Path, appender: SegmentAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    refusals = [BlockingIOError(), FileNotFoundError()]

    def refuse(descriptor: int, operation: int) -> None:
        if refusals:
            raise refusals.pop()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)
    appender.append(LINE, 0.0)
    assert lines(path) == [LINE]
    refusals.extend([BlockingIOError()] * 9)
    appender.close_segment()
    with pytest.raises(BlockingIOError):
        appender.append(LINE, 0.0)


def test_a_directory_that_vanished_is_made_again(path: Path, appender: SegmentAppender) -> None:
    appender.append(LINE, 0.0)
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    appender.append(LINE, 0.5)  # nobody looks that often
    appender.append(LINE, 2.0)
    assert lines(path) == [LINE]


def test_a_segment_that_somebody_deleted_is_reported_and_replaced(
    path: Path, notes: Notes, appender: SegmentAppender, caplog: pytest.LogCaptureFixture
) -> None:
    appender.append(LINE, 0.0)
    segments(path)[0].unlink()
    appender.append(LINE, 2.0)
    notes.say()
    assert lines(path) == [LINE]
    assert "somebody deleted" in caplog.text


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_line_is_on_the_disk_when_the_call_returns(
    path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch, *, durable: bool
) -> None:
    forced: list[int] = []
    monkeypatch.setattr(shipped, "force_to_disk", forced.append)
    appender = make_appender(path, notes, durable=durable)
    appender.append(LINE, 0.0)
    appender.append(LINE, 0.0)
    assert len(forced) == (2 if durable else 0)
    appender.abandon()


def test_force_covers_the_segments_that_were_closed_and_are_not_deleted(
    path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[int] = []
    appender = make_appender(path, notes, max_bytes=16 * 200)
    appender.force()
    for number in range(10):
        appender.append(b"%060d\n" % number, 0.0)
    count = len(segments(path))
    segments(path)[0].unlink()
    monkeypatch.setattr(shipped, "force_to_disk", forced.append)
    appender.force()
    assert len(forced) == count - 1
    appender.force()
    assert len(forced) == count
    appender.close_segment()
    appender.close_segment()
    appender.abandon()


def test_whether_a_shipper_has_the_directory_is_seen_by_its_lock(
    path: Path, appender: SegmentAppender
) -> None:
    assert appender.is_shipped()  # nobody knows yet
    appender.append(LINE, 0.0)
    assert not appender.is_shipped()
    lock = path / lock_name(TABLE)
    lock.touch(mode=0o600)
    assert not appender.is_shipped()
    with lock.open("r+") as shipper:
        fcntl.flock(shipper, fcntl.LOCK_EX)
        assert appender.is_shipped()
    lock.chmod(0o622)
    assert appender.is_shipped()  # that cannot be known


def test_a_full_spool_is_told_from_other_refusals_of_the_disk() -> None:
    assert SpoolFullError(5).errno == errno.EDQUOT


def test_a_directory_that_is_renamed_is_left_and_what_is_in_it_stays(
    path: Path, appender: SegmentAppender, tmp_path: Path
) -> None:
    appender.append(LINE, 0.0)
    path.rename(tmp_path / "moved")
    appender.append(LINE, 0.5)
    appender.append(LINE, 2.0)
    assert (lines(tmp_path / "moved"), lines(path)) == ([LINE, LINE], [LINE])
    assert not is_locked(segments(tmp_path / "moved")[0])


def test_a_process_that_may_not_look_any_more_still_writes(
    path: Path, appender: SegmentAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was root when it began, and has given up its rights since."""

    def refuse(*_: object) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    appender.append(b"1\n", 0.0)
    with monkeypatch.context() as other_user:
        other_user.setattr(Directory, "is_deleted", property(refuse))
        appender.append(b"2\n", 2.0)
        assert lines(path) == [b"1\n", b"2\n"]
        other_user.setattr(Directory, "size", refuse)
        appender.close_segment()
    appender.append(b"3\n", 4.0)
    assert len(segments(path)) == 2
