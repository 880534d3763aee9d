"""What a shipper leaves alone, for now or for good, and when it says that nothing waits."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from harness import eventually
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.events.row import row_at
from lorc_eventlog.shipping.follower import Follower
from lorc_eventlog.spool.directory import Directory, File
from lorc_eventlog.spool.format import encode_line
from lorc_eventlog.spool.shipped import SegmentAppender, header_of
from scripted_bigquery import ScriptedBigQuery
from scripted_storage import ScriptedStorage
from shippers import TABLE, shipping

HEADER = encode_line(header_of(TABLE))


def line(number: int) -> bytes:
    return encode_line(row_at(0.0, "test.happened", {"number": number}, "tests"))


def write_segment(path: Path, name: str, content: bytes) -> Path:
    file = path / f"{name}.ship"
    file.write_bytes(content)
    file.chmod(0o600)
    return file


def said(notes: Notes, caplog: pytest.LogCaptureFixture) -> str:
    notes.say()
    return caplog.text


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_many_segments_of_another_table_are_one_message_and_no_memory(
    path: Path, follower: Follower, notes: Notes, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(150):
        table = "others.events" if number < 20 else f"others.events{number}"
        file = write_segment(path, f"{number}-1-1", encode_line(header_of(table)))
        follower.look()
        assert follower.found.is_empty
        follower.look()
        file.unlink()
    follower.look()
    text = said(notes, caplog)
    assert text.count("belong to others.events,") == 1
    assert text.count("is left alone, as are others like it") == 100
    assert follower._left_alone._others == set()


def test_a_link_that_is_there_for_a_moment_costs_no_event(
    scripted: ScriptedBigQuery, path: Path, tmp_path: Path, appender: SegmentAppender
) -> None:
    """As a backup makes it."""
    appender.append(line(0), 0.0)
    with shipping(path) as shipper:
        assert shipper.wait_until(lambda progress: progress.delivered == 1, 20)
        (segment,) = path.glob("*.ship")
        os.link(segment, tmp_path / "backup")
        looks = shipper.progress().looks
        assert shipper.wait_until(lambda progress: progress.looks > looks + 2, 20)
        assert shipper.progress().is_empty  # it is left alone, which was said
        (tmp_path / "backup").unlink()
        appender.append(line(1), 0.0)
        assert shipper.wait_until(lambda progress: progress.delivered == 2, 20)
        appender.close_segment()
        eventually(lambda: not [*path.glob("*.ship")])
    assert len(scripted.events()) == 2


def test_a_directory_that_cannot_be_searched_is_not_called_empty(
    path: Path, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_segment(path, "1-1-1", HEADER + line(0))

    def refuse(_: Directory) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as broken:
        broken.setattr(Directory, "names", refuse)
        follower.look()
    assert not follower.found.is_empty


def test_a_segment_that_cannot_be_read_is_not_called_empty_and_takes_no_descriptor(
    path: Path, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_segment(path, "1-1-1", HEADER + line(0))
    write_segment(path, "2-1-1", b"no header\n")

    def refuse(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = open_files()
    for name in ("read", "try_lock"):
        with monkeypatch.context() as broken:
            broken.setattr(File, name, refuse)
            for _ in range(10):
                follower.look()
        assert open_files() == before
        assert not follower.found.is_empty


def test_a_living_segment_without_a_header_is_not_called_empty(
    path: Path, follower: Follower, appender: SegmentAppender
) -> None:
    appender.append(line(0), 0.0)
    (segment,) = path.glob("*.ship")
    descriptor = os.open(segment, os.O_WRONLY)
    os.pwrite(descriptor, bytes(10), 0)
    os.close(descriptor)
    follower.look()
    assert not follower.found.is_empty
    appender.close_segment()
    follower.look()
    assert follower.found.is_empty
    assert [file.suffix for file in path.iterdir()] == [".damaged"]


def test_what_is_no_file_of_ours_keeps_nobody_waiting(
    path: Path, follower: Follower, notes: Notes, caplog: pytest.LogCaptureFixture
) -> None:
    (path / "1-1-1.ship").mkdir()
    (path / "2-1-1.ship").symlink_to(path / "elsewhere")
    for _ in range(3):
        follower.look()
        assert follower.found.is_empty
    text = said(notes, caplog)
    assert text.count("is left alone: Is a directory") == 1
    assert text.count("is left alone: Too many levels of symbolic links") == 1


def test_a_name_that_is_no_text_does_not_stop_exactly_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedStorage() as server:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", server.address)
        path.mkdir(0o700)
        write_segment(path, "1-1-\udcff", HEADER + line(0))
        write_segment(path, "2-1-1", HEADER + line(1))
        with shipping(path, transport="grpc", exactly_once=True) as shipper:
            assert shipper.wait_until(lambda progress: progress.is_empty, 20)
            assert shipper.progress().retries == 0
        assert server.numbers() == [1]


def test_hundreds_of_segments_are_shipped_exactly_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedStorage() as server:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", server.address)
        path.mkdir(0o700)
        for number in range(600):
            write_segment(path, f"{number}-1-1", HEADER + line(number))
        with shipping(path, transport="grpc", exactly_once=True) as shipper:
            assert shipper.wait_until(lambda progress: progress.is_empty, 60)
        assert server.numbers() == [*range(600)]


def test_hundreds_of_segments_with_a_bad_event_each_hold_up_nobody(
    scripted: ScriptedBigQuery, path: Path
) -> None:
    scripted.refuse_row(lambda row: row["source"] == "bad", location="source")
    path.mkdir(0o700)
    bad = encode_line(row_at(0.0, "test.happened", {}, "bad"))
    for number in range(300):
        write_segment(path, f"{number}-1-1", HEADER + bad)
    with shipping(path) as shipper:
        assert shipper.wait_until(lambda progress: progress.waiting == 300, 20)
        write_segment(path, "999-1-1", HEADER + line(0))
        assert shipper.wait_until(lambda progress: progress.delivered == 1, 60)
        scripted._refused_rows.clear()


def test_a_file_of_nothing_but_damage_holds_up_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedStorage() as server:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", server.address)
        path.mkdir(0o700)
        damage = write_segment(path, "1-1-1", HEADER)
        os.truncate(damage, 2**40)
        write_segment(path, "2-1-1", HEADER + line(1))
        with shipping(path, transport="grpc", exactly_once=True) as shipper:
            assert shipper.wait_until(lambda progress: progress.delivered == 1, 20)
            assert not shipper.progress().is_empty
        assert server.numbers() == [1]
