"""The shipper's reader: what living and dead processes appended, and what it leaves on disk."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.events.row import Row, row_at
from lorc_eventlog.shipping import segment as segment_module
from lorc_eventlog.shipping.follower import Follower, Found
from lorc_eventlog.shipping.lines import Lines
from lorc_eventlog.shipping.segment import Segment
from lorc_eventlog.spool.directory import Directory
from lorc_eventlog.spool.format import encode_line
from lorc_eventlog.spool.shipped import SegmentAppender, header_of
from shippers import TABLE, make_appender


def make_row(number: int) -> Row:
    return row_at(0.0, f"test.{number}", {"number": number}, "tests")


def append(appender: SegmentAppender, *numbers: int) -> None:
    for number in numbers:
        appender.append(encode_line(make_row(number)), time.monotonic())


def read(follower: Follower, limit: int = 1000) -> list[Row]:
    follower.look()
    rows = follower.read(limit)
    for _ in range(100):
        if len(rows) >= limit or not follower.has_unread:
            break
        rows += follower.read(limit - len(rows))
    return rows


def numbers(rows: list[Row]) -> list[int]:
    return [int(row["event_type"].removeprefix("test.")) for row in rows]


def said(notes: Notes, caplog: pytest.LogCaptureFixture) -> str:
    caplog.set_level(logging.INFO)
    notes.say()
    return caplog.text


def write_segment(path: Path, name: str, content: bytes) -> Path:
    file = path / f"{name}.ship"
    file.write_bytes(content)
    file.chmod(0o600)
    return file


HEADER = encode_line(header_of(TABLE))


def test_what_a_living_process_appends_is_read_in_its_order_and_once(
    follower: Follower, appender: SegmentAppender
) -> None:
    append(appender, 0, 1, 2)
    assert numbers(read(follower)) == [0, 1, 2]
    append(appender, 3)
    assert numbers(read(follower)) == [3]
    assert read(follower) == []


def test_events_whose_line_break_is_lost_are_read_together_although_fewer_were_asked_for(
    path: Path, follower: Follower
) -> None:
    first, second, third = (encode_line(make_row(number)) for number in range(3))
    write_segment(path, "1-1-1", HEADER + first + second[:-1] + b"x" + third + b"damage\n" + first)
    follower.look()
    assert numbers(follower.read(2)) == [0, 1, 2]
    assert numbers(follower.read(2)) == [0]


def test_what_is_acknowledged_is_blank_on_disk_and_the_segment_stays_while_it_is_written(
    path: Path, follower: Follower, appender: SegmentAppender
) -> None:
    append(appender, 0, 1, 2)
    rows = read(follower)
    follower.acknowledge(rows[:2])
    (segment,) = path.glob("*.ship")
    _, *lines = segment.read_bytes().split(b"\n")
    assert [line.strip() == b"" for line in lines] == [True, False, True]
    follower.acknowledge(rows[2:])
    append(appender, 3)
    assert numbers(read(follower)) == [3]


def test_a_segment_is_deleted_when_its_process_left_it_and_nothing_in_it_waits(
    path: Path, follower: Follower, appender: SegmentAppender
) -> None:
    append(appender, 0)
    rows = read(follower)
    appender.close_segment()
    follower.look()
    assert len(list(path.glob("*.ship"))) == 1
    assert not follower.found.is_empty
    follower.acknowledge(rows)
    assert list(path.glob("*.ship")) == []
    follower.look()
    assert follower.found == Found(0, None, is_empty=True)


def test_the_segments_of_a_process_are_read_in_their_order_without_another_look(
    path: Path, notes: Notes, follower: Follower
) -> None:
    appender = make_appender(path, notes, max_bytes=16 * 1000)
    append(appender, *range(30))
    assert len(list(path.glob("*.ship"))) > 5
    assert numbers(read(follower)) == [*range(30)]
    appender.abandon()


def test_what_was_appended_to_a_segment_before_the_next_was_begun_comes_first(
    path: Path, notes: Notes, follower: Follower
) -> None:
    appender = make_appender(path, notes, max_bytes=16 * 1000)
    append(appender, 0, 1)
    follower.look()
    append(appender, *range(2, 12))
    rows = follower.read(1000)
    assert numbers(rows + read(follower)) == [*range(12)]
    appender.abandon()


def test_every_process_has_its_turn(
    path: Path, notes: Notes, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_module, "READ_BYTES", 1000)
    monkeypatch.setattr(segment_module, "PIECES", 2)
    busy, quiet = make_appender(path, notes), make_appender(path, notes)
    append(busy, *range(100))
    append(quiet, 100)
    follower.look()
    first = follower.read(1000)
    assert 100 in numbers(first)
    assert len(first) < 20
    for appender in (busy, quiet):
        appender.abandon()


def test_what_was_read_before_the_disk_failed_is_not_lost(
    follower: Follower, appender: SegmentAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_module, "READ_BYTES", 1000)
    append(appender, *range(20))
    follower.look()
    next_lines, calls = Segment._next_lines, 0

    def fail_the_second_time(segment: Segment) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(5, "Input/output error")
        return next_lines(segment)

    monkeypatch.setattr(Segment, "_next_lines", fail_the_second_time)
    first = follower.read(1000)
    assert 0 < len(first) < 20
    assert numbers(first + read(follower)) == [*range(20)]


def test_a_limit_ends_a_read_in_the_middle_of_a_segment(
    follower: Follower, appender: SegmentAppender
) -> None:
    append(appender, *range(10))
    assert numbers(read(follower, 4)) == [0, 1, 2, 3]
    assert follower.has_unread
    assert numbers(read(follower, 100)) == [4, 5, 6, 7, 8, 9]


def test_lines_that_are_erased_are_passed_over_at_once_also_if_few_events_are_asked_for(
    path: Path, follower: Follower
) -> None:
    """A shipper that is full asks for one at a time; each time a piece of the file is read."""
    erased = b" " * 99 + b"\n"
    write_segment(path, "a-1-1", HEADER + erased * 5_000 + encode_line(make_row(1)))
    follower.look()
    assert numbers(follower.read(1)) == [1]


def test_a_line_that_is_being_written_waits_until_it_is_whole(
    path: Path, follower: Follower, appender: SegmentAppender
) -> None:
    append(appender, 0)
    (segment,) = path.glob("*.ship")
    line = encode_line(make_row(1))
    with segment.open("ab") as file:
        file.write(line[:20])
        file.flush()
        assert numbers(read(follower)) == [0]
        file.write(line[20:])
    assert numbers(read(follower)) == [1]


def test_a_last_line_without_its_line_break_is_an_event_once_its_process_is_gone(
    path: Path, follower: Follower
) -> None:
    write_segment(path, "1-1-1", HEADER + encode_line(make_row(0)) + encode_line(make_row(1))[:-1])
    rows = read(follower) + read(follower)
    assert numbers(rows) == [0, 1]
    follower.acknowledge(rows)
    follower.look()
    assert list(path.glob("*.ship*")) == []


@pytest.mark.parametrize("length", [1, 8, 9, 40])
def test_a_last_line_that_is_cut_off_is_no_damage_once_its_process_is_gone(
    path: Path, follower: Follower, length: int
) -> None:
    """A kill, or a full disk: the call did not return, or said that the event is lost."""
    cut_off = encode_line(make_row(1))[:length]
    write_segment(path, "1-1-1", HEADER + encode_line(make_row(0)) + cut_off)
    rows = read(follower) + read(follower)
    assert numbers(rows) == [0]
    follower.acknowledge(rows)
    follower.look()
    assert list(path.iterdir()) == []


def test_an_end_that_is_no_beginning_of_an_event_is_damage(path: Path, follower: Follower) -> None:
    write_segment(path, "1-1-1", HEADER + bytes(40))
    assert read(follower) + read(follower) == []
    follower.look()
    assert [file.name for file in path.iterdir()] == ["1-1-1.ship.damaged"]


def test_damaged_lines_cost_only_themselves_and_are_set_aside(
    path: Path,
    follower: Follower,
    notes: Notes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = encode_line({**make_row(1), "payload": None})
    content = HEADER + encode_line(make_row(0)) + bad + b"garbage\n" + encode_line(make_row(2))
    write_segment(path, "1-1-1", content)
    rows = read(follower)
    assert numbers(rows) == [0, 2]
    follower.acknowledge(rows)
    follower.look()
    assert [file.name for file in path.iterdir()] == ["1-1-1.ship.damaged"]
    assert "damaged" in said(notes, caplog)


def test_a_line_that_is_too_long_is_skipped_in_steps(
    path: Path, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_module, "READ_BYTES", 1000)
    monkeypatch.setattr(segment_module, "MAX_LINE_BYTES", 3000)
    content = HEADER + encode_line(make_row(0)) + b"x" * 9000 + b"\n" + encode_line(make_row(1))
    write_segment(path, "1-1-1", content)
    write_segment(path, "2-1-1", HEADER + b"y" * 9000)
    rows = read(follower)
    assert numbers(rows) == [0, 1]
    follower.acknowledge(rows)
    read(follower)
    follower.look()
    assert sorted(file.suffix for file in path.iterdir()) == [".damaged", ".damaged"]


def test_a_sparse_file_costs_neither_memory_nor_a_long_read(path: Path, follower: Follower) -> None:
    file = write_segment(path, "1-1-1", HEADER)
    os.truncate(file, 2**30)
    follower.look()
    started = time.monotonic()
    follower.read(1000)
    assert time.monotonic() - started < 5


def test_segments_of_another_table_are_reported_once_and_left_alone(
    path: Path, notes: Notes, follower: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    appender = make_appender(path, notes, table="other.\x1b[31mevents")
    append(appender, 0)
    assert read(follower) == []
    assert read(follower) == []
    text = said(notes, caplog)
    assert text.count("its events belong to other.\\x1b[31mevents") == 1
    assert len(list(path.glob("*.ship"))) == 1
    assert follower.found.is_empty
    appender.abandon()


def test_segments_of_a_later_version_are_left_alone(
    path: Path,
    follower: Follower,
    notes: Notes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_segment(path, "1-1-1", encode_line({**header_of(TABLE), "lorc_eventlog_ship": 2}))
    assert read(follower) == []
    assert "a later version" in said(notes, caplog)
    assert len(list(path.glob("*.ship"))) == 1


def test_a_segment_without_a_header_is_set_aside_and_an_empty_one_deleted(
    path: Path, follower: Follower
) -> None:
    write_segment(path, "1-1-1", b"")
    write_segment(path, "2-1-1", b"no header\n")
    assert read(follower) == []
    assert [file.name for file in path.iterdir()] == ["2-1-1.ship.damaged"]


def test_links_and_files_of_others_are_reported_and_not_touched(
    path: Path,
    follower: Follower,
    notes: Notes,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    target = tmp_path / "target"
    target.write_bytes(HEADER + encode_line(make_row(0)))
    (path / "1-1-1.ship").symlink_to(target)
    (path / "2-1-1.ship").hardlink_to(target)
    os.mkfifo(path / "3-1-1.ship")
    before = target.read_bytes()
    assert read(follower) == []
    text = said(notes, caplog)
    assert "symbolic links" in text
    assert "hard link" in text
    assert "not a regular file" in text
    assert target.read_bytes() == before


def test_a_draft_of_a_process_that_is_gone_is_deleted(path: Path, follower: Follower) -> None:
    write_segment(path, ".1-1-1", HEADER)
    follower.look()
    assert list(path.iterdir()) == []


def test_segments_of_which_events_wait_take_no_descriptors(path: Path, follower: Follower) -> None:
    for number in range(300):
        write_segment(path, f"{number}-1-1", HEADER + encode_line(make_row(number)))
    descriptors = Path("/proc/self/fd")
    before = len([*descriptors.iterdir()])
    rows = read(follower)
    assert sorted(numbers(rows)) == [*range(300)]
    assert len([*descriptors.iterdir()]) == before
    follower.acknowledge(rows)
    follower.look()
    assert list(path.iterdir()) == []


def test_a_row_that_is_left_is_found_by_the_next_shipper(
    path: Path, directory: Directory, follower: Follower, notes: Notes
) -> None:
    write_segment(path, "1-1-1", HEADER + encode_line(make_row(0)) + encode_line(make_row(1)))
    rows = read(follower)
    follower.leave(rows[:1])
    follower.acknowledge(rows[1:])
    assert read(follower) == []
    again = Follower(directory, Lines(directory), TABLE, notes)
    assert numbers(read(again)) == [0]


def test_what_the_disk_refuses_is_reported_and_tried_again(
    path: Path,
    directory: Directory,
    follower: Follower,
    notes: Notes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_segment(path, "1-1-1", HEADER + encode_line(make_row(0)))

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "listdir", refuse)
        assert read(follower) == []
    with monkeypatch.context() as broken:
        broken.setattr(directory, "open_file", refuse)
        assert read(follower) == []
    follower.look()
    with monkeypatch.context() as broken:
        broken.setattr(directory, "open_file", refuse)
        assert follower.read(10) == []
    rows = read(follower)
    assert numbers(rows) == [0]
    with monkeypatch.context() as broken:
        broken.setattr(directory, "open_file", refuse)
        follower.acknowledge(rows)
    with monkeypatch.context() as broken:
        broken.setattr(directory, "unlink", refuse)
        follower.look()
    text = said(notes, caplog)
    assert "cannot be searched" in text
    assert "cannot be read" in text
    assert "cannot be erased" in text
    assert "is delivered, but cannot be deleted" in text
    follower.look()
    assert list(path.iterdir()) == []


def test_a_segment_that_somebody_deletes_is_forgotten(path: Path, follower: Follower) -> None:
    file = write_segment(path, "1-1-1", HEADER + encode_line(make_row(0)))
    other = write_segment(path, "2-1-1", HEADER + encode_line(make_row(1)))
    follower.look()
    other.unlink()
    rows = follower.read(10)
    assert numbers(rows) == [0]
    file.unlink()
    follower.acknowledge(rows)
    follower.look()
    assert follower.found.is_empty


def at(seconds: float) -> bytes:
    return encode_line(row_at(seconds, "test.1", {}, "tests"))


def test_the_age_is_that_of_the_oldest_event_that_waits(path: Path, follower: Follower) -> None:
    """Not that of a process, which may have begun to write weeks ago."""
    assert follower.found.oldest is None
    write_segment(path, f"{5 * 10**9:020d}-1-1", HEADER + at(17.0) + at(18.0) + at(19.0))
    write_segment(path, "odd-1-1", HEADER)
    follower.look()
    assert follower.found.oldest == 17.0
    first = follower.read(1)
    assert follower.found.oldest == 17.0
    second = follower.read(1)
    follower.acknowledge(second)
    follower.look()
    assert follower.found.oldest == 17.0
    follower.acknowledge(first)
    follower.look()
    assert follower.found.oldest == 18.0  # read last, so that the next is no older
    follower.acknowledge(follower.read(9))
    follower.look()
    assert follower.found.oldest is None


def test_an_event_that_comes_after_a_silence_is_young(
    follower: Follower, appender: SegmentAppender
) -> None:
    append(appender, 0)  # whose time is that of 1970
    follower.look()
    assert follower.found.oldest == 0.0
    follower.acknowledge(follower.read(9))
    append(appender, 1)
    before = time.time()
    follower.look()
    assert follower.found.oldest is not None
    assert follower.found.oldest >= before


def test_a_time_that_is_none_counts_as_now(path: Path, follower: Follower) -> None:
    odd = encode_line({**make_row(0), "created_at": "yesterday"})
    before = time.time()
    write_segment(path, "1-1-1", HEADER + odd)
    follower.look()
    assert follower.found.oldest is not None
    assert follower.found.oldest >= before


def test_a_segment_that_vanishes_between_two_steps_costs_nothing(
    path: Path, directory: Directory, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_segment(path, "1-1-1", HEADER + encode_line(make_row(0)))
    names = directory.names()
    monkeypatch.setattr(directory, "names", lambda: [*names, "2-1-1.ship", ".3-1-1.ship"])
    rows = read(follower)
    assert numbers(rows) == [0]
    unlink = directory.unlink

    def unlink_twice(name: str) -> None:
        unlink(name)
        unlink(name)

    monkeypatch.setattr(directory, "unlink", unlink_twice)
    follower.acknowledge(rows)
    follower.look()
    assert list(path.iterdir()) == []


def test_what_a_living_process_has_not_finished_is_left_to_it(
    path: Path, directory: Directory, follower: Follower
) -> None:
    write_segment(path, "1-1-1", b"")
    write_segment(path, ".2-1-1", HEADER)
    files = [directory.open_file(name) for name in directory.names()]
    assert all(file.try_lock() for file in files)
    assert read(follower) == []
    assert len(list(path.iterdir())) == 2
    for file in files:
        file.close()
    follower.look()
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("is_held", [False, True])
def test_what_is_appended_after_somebody_truncated_the_segment_is_read(
    path: Path, follower: Follower, appender: SegmentAppender, *, is_held: bool
) -> None:
    append(appender, *range(20))
    rows = read(follower)
    if not is_held:
        follower.acknowledge(rows)
    (segment,) = path.glob("*.ship")
    os.truncate(segment, 0)
    if is_held:
        follower.look()
        follower.acknowledge(rows)
        assert segment.stat().st_size == 0
    append(appender, 20, 21)
    assert [row["event_type"] for row in read(follower)] == ["test.20", "test.21"]
