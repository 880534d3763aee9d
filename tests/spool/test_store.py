"""The buffer on disk: files, damage, disk faults, several writers, options."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import logging.config
import os
import random
import stat
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import (
    PRIVATE,
    Records,
    assert_adds_up,
    eventually,
    make_event,
    nothing_private_is_said,  # noqa: F401  an autouse fixture
    numbers_in,
    running_writer,
    sampled,
    submit_events,
)
from lorc_eventlog import BigQueryEventHandler, BigQueryEventProcessor, Envelope, EventWriter
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.events.envelope import to_row
from lorc_eventlog.events.row import Row
from lorc_eventlog.spool import store as spool_module
from lorc_eventlog.spool.store import (
    HEADER,
    SegmentReport,
    Spool,
    decode_line,
    encode_line,
    find_rows,
    survey,
)
from scripted_bigquery import ScriptedBigQuery, status


def row(number: int) -> Row:
    return to_row(make_event(number))


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
    path.write_bytes(content)
    return path


@contextmanager
def open_spool(directory: Path, **options: Any) -> Iterator[Spool]:
    notes = Notes()
    spool = Spool(directory, **{"max_bytes": 2**30, "durable": False, "notes": notes, **options})
    try:
        yield spool
    finally:
        spool.close()
        notes.say()


def deliver_all(directory: Path) -> list[int]:
    """Adopt and strike off everything in ``directory``; the numbers of the events."""
    numbers: list[int] = []
    with open_spool(directory) as spool:
        spool.adopt(0.0)
        while spool.has_adopted:
            rows, _, _ = spool.load(5)
            numbers += map(number_of, rows)
            spool.strike(rows)
    return numbers


def content(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.iterdir()))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def down(scripted: ScriptedBigQuery) -> ScriptedBigQuery:
    """A BigQuery that takes nothing until it is ``healthy()``."""
    scripted.always(status(503))
    return scripted


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int = errno.EIO) -> Iterator[None]:
    """Meanwhile the system call ``os.<name>`` fails."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        yield


# On disk from the call until BigQuery has it


def test_an_event_is_on_disk_when_the_call_returns(down: ScriptedBigQuery, tmp_path: Path) -> None:
    with running_writer(spool_dir=tmp_path) as writer:
        for number in range(3):
            writer.submit(make_event(number))
            (report,) = survey(tmp_path)
            assert report.events == number + 1
        down.healthy()


def test_an_event_that_is_delivered_is_erased_from_the_disk(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    scripted.stop_row_once(lambda sent: number_of(sent) == 0)  # so that one stays for a while
    with running_writer(spool_dir=tmp_path, batch_rows=1) as writer:
        submit_events(writer, range(1, 50))
        assert writer.flush(10)
        assert len(content(tmp_path)) == len(HEADER)
    assert names(tmp_path) == []


def test_a_delivered_event_is_erased_although_others_in_its_file_wait(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        rows = [row(number) for number in range(5)]
        for each in rows:
            assert spool.append(each, encode_line(each), in_memory=True)
        spool.strike(rows[1:3])
        left = content(tmp_path)
        assert [each["event_id"].encode() in left for each in rows] == [
            True, False, False, True, True,
        ]  # fmt: skip
        assert left.count(PRIVATE.encode()) == 3 * 2
        spool.strike([rows[0], *rows[3:]])
        assert content(tmp_path) == HEADER


def test_a_dead_letter_leaves_the_disk(scripted: ScriptedBigQuery, tmp_path: Path) -> None:
    scripted.refuse_row(lambda sent: number_of(sent) == 1)
    buried: list[Envelope] = []
    with running_writer(
        spool_dir=tmp_path, on_dead_letter=lambda envelope, _reason: buried.append(envelope)
    ) as writer:
        submit_events(writer, range(3))
        assert writer.flush(10)
        assert content(tmp_path) == HEADER
        assert_adds_up(writer.stats())
    assert [envelope["payload"]["number"] for envelope in buried] == [1]


def test_an_event_that_is_submitted_twice_is_struck_off_twice(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    event = make_event(1)
    with running_writer(spool_dir=tmp_path) as writer:
        writer.submit(event)
        writer.submit(event)
        assert writer.flush(10)
        assert content(tmp_path) == HEADER
    assert numbers_in(scripted) == [1]


def test_only_the_owner_can_read_files_and_directory(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    directory = tmp_path / "a" / "spool"
    with running_writer(spool_dir=directory) as writer:
        writer.submit(make_event(1))
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert [stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()] == [0o600]
        down.healthy()


def test_a_close_leaves_no_file_and_a_later_event_is_spooled_again(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    writer = EventWriter(spool_dir=tmp_path, flush_interval=0.01)
    for number in range(2):
        writer.submit(make_event(number))
        writer.close()
        assert names(tmp_path) == []
    assert numbers_in(scripted) == [0, 1]


def test_a_writer_without_events_makes_no_file(scripted: ScriptedBigQuery, tmp_path: Path) -> None:
    with running_writer(spool_dir=tmp_path / "spool"):
        pass
    assert names(tmp_path) == []
    assert scripted.requests == []


def test_a_relative_directory_stays_where_it_was_when_the_process_goes_elsewhere(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with running_writer(spool_dir="spool") as writer:
        monkeypatch.chdir(tmp_path / "elsewhere")
        writer.submit(make_event(1))
        assert len(names(tmp_path / "spool")) == 1
        down.healthy()


# More than memory holds


def test_what_memory_does_not_hold_waits_on_disk(down: ScriptedBigQuery, tmp_path: Path) -> None:
    with running_writer(spool_dir=tmp_path, capacity=10, batch_rows=5) as writer:
        with sampled(writer):
            submit_events(writer, range(200))
            assert writer._backlog.held <= 10
            assert writer.stats().buffered == 200
            down.healthy()
            assert writer.flush(30)
        assert_adds_up(writer.stats())
        assert writer.stats().dropped == 0
    assert numbers_in(down) == list(range(200))
    assert down.duplicates == []


def test_large_events_wait_on_disk_when_memory_is_full_of_bytes(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    with running_writer(spool_dir=tmp_path, capacity_bytes=1_000_000) as writer:
        for number in range(30):
            writer.submit(make_event(number, text="x" * 200_000))
        assert writer._backlog.held_bytes <= 2_500_000  # a read of 1 MiB may come on top
        down.healthy()
        assert writer.flush(30)
        assert writer.stats().delivered == 30
    assert numbers_in(down) == list(range(30))


def test_an_event_larger_than_the_memory_for_all_goes_by_disk(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    with running_writer(spool_dir=tmp_path, capacity_bytes=1) as writer:
        writer.submit(make_event(1, text="x" * 3_000_000))  # longer than one read
        writer.submit(make_event(2))
        assert writer.flush(10)
    assert numbers_in(scripted) == [1, 2]


def test_memory_is_not_filled_from_disk_beyond_its_bytes(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    lines = [encode_line(to_row(make_event(number, text="x" * 100_000))) for number in range(100)]
    segment_of_the_dead(tmp_path, HEADER + b"".join(lines))
    with running_writer(spool_dir=tmp_path, capacity_bytes=1_000_000) as writer:
        down.wait_for_requests(4)
        assert writer._backlog.held_bytes <= 3_000_000
        down.healthy()
        assert writer.drain_spool(30)
    assert numbers_in(down) == list(range(100))


def test_a_full_file_is_followed_by_another_and_deleted_when_delivered(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 2000)
    with running_writer(spool_dir=tmp_path, capacity=10, batch_rows=5) as writer:
        submit_events(writer, range(60))
        assert len(names(tmp_path)) > 3
        down.healthy()
        assert writer.flush(30)
        assert len(names(tmp_path)) == 1
    assert numbers_in(down) == list(range(60))


def test_beyond_spool_max_bytes_events_are_dropped_and_counted(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    with Records() as records:
        with running_writer(spool_dir=tmp_path, spool_max_bytes=20_000) as writer:
            submit_events(writer, range(200))
            stats = writer.stats()
            assert stats.dropped > 0
            assert_adds_up(stats)
            assert sum(report.size for report in survey(tmp_path)) <= 20_000
            down.healthy()
            assert writer.flush(10)
        assert any("events were dropped" in text for text in records.texts(logging.WARNING))
    assert numbers_in(down) == list(range(stats.buffered))


def test_beyond_spool_max_bytes_a_blocking_writer_waits(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    with running_writer(
        spool_dir=tmp_path, spool_max_bytes=20_000, overflow="block", batch_rows=10
    ) as writer:
        logging_thread = threading.Thread(target=submit_events, args=(writer, range(200)))
        logging_thread.start()
        down.wait_for_requests(2)
        assert logging_thread.is_alive()
        down.healthy()
        logging_thread.join(30)
        assert writer.flush(10)
        assert writer.stats().dropped == 0
    assert numbers_in(down) == list(range(200))


def test_a_small_spool_has_room_again_when_part_of_it_is_delivered(tmp_path: Path) -> None:
    """Blanks take room until their file is deleted, so the files are small, too."""
    waiting: list[Row] = []
    with open_spool(tmp_path, max_bytes=40_000) as spool:
        for number in range(1000):
            new = row(number)
            assert not spool.is_full(encode_line(new))
            assert spool.append(new, encode_line(new), in_memory=True)
            waiting.append(new)
            if len(waiting) == 20:  # never all of it
                spool.strike(waiting[:10])
                del waiting[:10]
        spool.strike(waiting)


# The files of the dead


def test_a_starting_writer_delivers_what_a_dead_process_left(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    segment_of_the_dead(tmp_path, HEADER + b"".join(map(line, range(20))))
    with Records() as records, running_writer(spool_dir=tmp_path) as writer:
        with sampled(writer):
            scripted.wait_for_rows(20)
            eventually(lambda: writer.stats().delivered == 20)
        assert_adds_up(writer.stats())
        assert names(tmp_path) == []
    assert numbers_in(scripted) == list(range(20))
    assert len(records.texts(logging.INFO)) == 1


def test_a_directory_that_is_not_there_yet_has_no_files(tmp_path: Path) -> None:
    with Records() as records:
        assert deliver_all(tmp_path / "missing") == []
    assert records.records == []


def test_every_minute_a_writer_looks_for_more(
    scripted: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spool_module.ADOPT_INTERVAL == 60
    monkeypatch.setattr(spool_module, "ADOPT_INTERVAL", 0.02)
    with running_writer(spool_dir=tmp_path):
        for number in range(3):
            segment_of_the_dead(tmp_path, HEADER + line(number))
            scripted.wait_for_rows(number + 1)
            eventually(lambda: names(tmp_path) == [])


def test_the_files_of_the_dead_are_delivered_oldest_first(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        segment_of_the_dead(tmp_path, HEADER + line(number), name=f"{number}-1-a")
    assert deliver_all(tmp_path) == [0, 1, 2]


def test_two_living_writers_never_have_the_same_file(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    with running_writer(spool_dir=tmp_path) as one, running_writer(spool_dir=tmp_path) as other:
        one.submit(make_event(1))
        other.submit(make_event(2))
        assert len(names(tmp_path)) == 2
        segment_of_the_dead(tmp_path, HEADER + line(3))
        for writer in (one, other):
            with writer._lock:
                assert writer._spool is not None
                writer._spool.adopt(time.monotonic())
                writer._work.notify_all()
        down.healthy()
        assert one.drain_spool(10)
        assert other.drain_spool(10)
        assert one.stats().submitted + other.stats().submitted == 3
    assert numbers_in(down) == [1, 2, 3]
    assert sum(request.rows for request in down.requests if request.status == 200) == 3


def test_of_many_files_some_are_adopted_at_a_time(
    scripted: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "MAX_ADOPTED", 3)
    for number in range(10):
        segment_of_the_dead(tmp_path, HEADER + line(number), name=f"{number}-1-a")
    with open_spool(tmp_path) as spool:
        spool.adopt(0.0)
        assert sum(report.is_locked for report in survey(tmp_path)) == 3
        assert spool.adopt_at == 1.0
    with running_writer(spool_dir=tmp_path) as writer:
        assert writer.drain_spool(10)
    assert numbers_in(scripted) == list(range(10))


def test_a_closed_writer_leaves_to_others_what_it_adopted_and_did_not_read(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    for name in ("1-1-a", "2-1-a"):
        segment_of_the_dead(tmp_path, HEADER + line(1), name=name)
    writer = EventWriter(spool_dir=tmp_path, capacity=1, batch_rows=1, close_timeout=0.01)
    down.wait_for_requests(1)
    writer.close()
    assert [report.is_locked for report in survey(tmp_path)] == [True, False]
    down.healthy()
    with running_writer(spool_dir=tmp_path) as other:
        assert other.drain_spool(10)
        eventually(lambda: names(tmp_path) == [])


def test_a_closed_writer_still_delivers_what_it_has_on_disk(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    writer = EventWriter(spool_dir=tmp_path, capacity=10, batch_rows=10, close_timeout=0.01)
    submit_events(writer, range(100))
    with Records() as records:
        writer.close()
        (text,) = records.texts(logging.ERROR)
    assert "100 events are not delivered yet (100 are kept in" in text
    del writer
    down.healthy()
    down.wait_for_rows(100)
    eventually(lambda: names(tmp_path) == [])


def test_a_dict_config_that_is_called_again_loses_nothing_that_is_spooled(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "class": "lorc_eventlog.BigQueryEventHandler",
        "source": "tests",
        "spool_dir": str(tmp_path),
        "spool_max_bytes": 10_000_000,
        "spool_sync": "normal",
        "capacity": 10,
        "batch_rows": 10,
        "close_timeout": 0.01,
        "flush_interval": 0.01,
    }
    name = "tests.spooled"
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"events": options},
        "loggers": {name: {"handlers": ["events"], "level": "INFO"}},
    }
    monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    for start in (0, 50):
        logging.config.dictConfig(config)
        for number in range(start, start + 50):
            extra = {"event_type": "test.happened", "payload": {"number": number}}
            logging.getLogger(name).info("an event", extra=extra)
    down.healthy()
    down.wait_for_rows(100)
    for handler in logging.getLogger(name).handlers:
        handler.close()
    eventually(lambda: names(tmp_path) == [])
    assert numbers_in(down) == list(range(100))
    assert down.duplicates == []


def test_a_file_that_is_delivered_by_another_just_now_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = segment_of_the_dead(tmp_path, HEADER + line(1))
    real_open = os.open

    def open_late(name: Any, *arguments: Any, **options: Any) -> int:
        if name == path:
            path.unlink(missing_ok=True)
        return real_open(name, *arguments, **options)

    with Records() as records, open_spool(tmp_path) as spool, monkeypatch.context() as patch:
        patch.setattr(os, "open", open_late)
        spool.adopt(0.0)
        assert not spool.has_adopted
    assert records.records == []


def test_a_file_that_is_deleted_before_it_is_locked_is_not_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = segment_of_the_dead(tmp_path, HEADER + line(1))
    real_flock = fcntl.flock

    def lock_late(descriptor: int, operation: int) -> None:
        path.unlink()
        real_flock(descriptor, operation)

    with open_spool(tmp_path) as spool, monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lock_late)
        spool.adopt(0.0)
        assert not spool.has_adopted


def test_a_new_file_that_another_takes_for_abandoned_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_flock = fcntl.flock
    stolen: list[int] = []

    def be_late(descriptor: int, operation: int) -> None:
        if not stolen:
            stolen.append(descriptor)
            deliver_all(tmp_path)
        real_flock(descriptor, operation)

    new = row(1)
    with open_spool(tmp_path) as spool:
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", be_late)
            assert spool.append(new, encode_line(new), in_memory=True)
        assert stolen
        (report,) = survey(tmp_path)
        assert (report.events, report.is_locked) == (1, True)
        spool.strike([new])


# Draining


def test_drain_delivers_all_that_no_living_process_has(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    segment_of_the_dead(tmp_path, HEADER + b"".join(map(line, range(1200))))
    with running_writer(spool_dir=tmp_path) as writer:
        assert writer.drain_spool(30)
        assert writer.stats().delivered == 1200
        assert names(tmp_path) == []
    assert numbers_in(scripted) == list(range(1200))


def test_drain_gives_up_at_its_timeout_and_may_be_called_again(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    segment_of_the_dead(tmp_path, HEADER + line(1))
    with running_writer(spool_dir=tmp_path) as writer:
        assert not writer.drain_spool(0.05)
        down.healthy()
        assert writer.drain_spool()


@pytest.mark.usefixtures("scripted")
def test_drain_ends_though_nothing_in_the_files_can_be_read(tmp_path: Path) -> None:
    segment_of_the_dead(tmp_path, b"garbage" * 1000)
    with running_writer(spool_dir=tmp_path) as writer:
        assert writer.drain_spool(10)
    assert names(tmp_path) == ["1-1-a.events.damaged"]


@pytest.mark.usefixtures("scripted")
def test_drain_without_a_spool_is_an_error() -> None:
    with running_writer() as writer, pytest.raises(ValueError, match="spool_dir is not set"):
        writer.drain_spool()


# The survey


def test_the_survey_tells_what_is_in_each_file(tmp_path: Path) -> None:
    rows = [row(number) for number in range(3)]
    rows[1]["created_at"] = "2025-01-01T00:00:00.000000+00:00"
    dead = segment_of_the_dead(
        tmp_path, HEADER + b"".join(map(encode_line, rows)) + b"garbage\n", name="1-77-a"
    )
    odd = segment_of_the_dead(tmp_path, b"", name="odd")
    damaged = tmp_path / "0-5-a.events.damaged"
    damaged.write_bytes(HEADER + b"garbage")
    (tmp_path / "something else").touch()
    before = content(tmp_path)
    own = row(4)
    with open_spool(tmp_path) as spool:
        assert spool.append(own, encode_line(own), in_memory=True)
        reports = survey(tmp_path)
        spool.strike([own])
    assert content(tmp_path) == before
    assert reports[0] == SegmentReport(
        damaged, 5, is_locked=False, is_set_aside=True, events=0,
        size=damaged.stat().st_size, oldest=None, damaged_bytes=7, error=None,
    )  # fmt: skip
    assert (reports[1].owner_pid, reports[1].is_locked) == (os.getpid(), True)
    assert (reports[1].events, reports[1].oldest) == (1, own["created_at"])
    assert reports[2] == SegmentReport(
        dead, 77, is_locked=False, is_set_aside=False, events=3,
        size=dead.stat().st_size, oldest="2025-01-01T00:00:00.000000+00:00",
        damaged_bytes=7, error=None,
    )  # fmt: skip
    assert reports[3] == SegmentReport(
        odd, None, is_locked=False, is_set_aside=False, events=0, size=0, oldest=None,
        damaged_bytes=0, error=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "damaged_bytes"),
    [
        (HEADER + line(1), 0),
        (HEADER + line(1) + line(2)[:-9], 0),
        (HEADER[:-9], 0),
        (HEADER + line(1)[:-9] + b"\n" + line(2), len(line(1)) - 9),
        (HEADER + b" " * 50 + b"\n" + line(2), 0),
        (b"garbage", 7),
        (b"\ngarbage", 7),
        (bytes(5000), 5000),
        (encode_line({"lorc_eventlog_spool": 2}), len(HEADER) - 1),
    ],
    ids=[
        "whole", "last line cut off by a kill", "header cut off by a kill", "line cut off between",
        "struck off", "garbage", "garbage after a line break", "zeros", "of a later version",
    ],
)  # fmt: skip
def test_the_survey_tells_damage_from_what_a_kill_leaves(
    tmp_path: Path, content: bytes, damaged_bytes: int
) -> None:
    segment_of_the_dead(tmp_path, content)
    (report,) = survey(tmp_path)
    assert (report.damaged_bytes, report.error) == (damaged_bytes, None)


def test_the_survey_goes_on_where_something_is_no_file(tmp_path: Path) -> None:
    segment_of_the_dead(tmp_path, HEADER + line(1), name="1-1-a")
    (tmp_path / "a.events").mkdir()
    os.mkfifo(tmp_path / "b.events")
    (tmp_path / "c.events").symlink_to("nowhere")
    reports = survey(tmp_path)
    assert [(report.path.name, report.events, report.error) for report in reports] == [
        ("1-1-a.events", 1, None),
        ("a.events", 0, "Is a directory"),
        ("b.events", 0, "Illegal seek"),
    ]


def test_a_survey_of_no_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        survey(tmp_path / "missing")


# Damage


def test_a_line_is_a_checksum_and_json() -> None:
    one = row(1)
    assert decode_line(encode_line(one)[:-1]) == one
    assert decode_line(b"00000000 {}") is None
    assert decode_line(b"") is None
    assert decode_line(b"%08x no JSON" % zlib.crc32(b"no JSON")) is None


def test_only_what_has_the_shape_of_a_row_is_an_event() -> None:
    for odd in ({"event_id": "1"}, {}, [1], "text"):
        text = encode_line(odd)[:-1]  # type: ignore[arg-type]
        assert find_rows(text) == ([], len(text))


@pytest.mark.parametrize("where", range(0, 20_000, 512))
def test_of_a_truncated_file_the_whole_lines_are_delivered_and_the_rest_is_set_aside(
    tmp_path: Path, where: int
) -> None:
    lines = [HEADER, *map(line, range(60))]
    whole = b"".join(lines)
    cut = whole[:where]
    segment_of_the_dead(tmp_path, cut)
    readable = [
        number for number in range(60)
        # Without its line break, too: the rest of the line is complete.
        if len(b"".join(lines[: number + 2])) - 1 <= len(cut)
    ]  # fmt: skip
    with Records() as records:
        assert deliver_all(tmp_path) == readable
    rest = cut[len(b"".join(lines[: len(readable) + 1])) :]
    if rest and readable:
        assert names(tmp_path) == ["1-1-a.events.damaged"]
        assert content(tmp_path).endswith(rest)
        assert PRIVATE.encode() not in content(tmp_path)[: -len(rest)]
        (text,) = records.texts(logging.WARNING)
        assert "is cut off" in text
    assert records.texts(logging.ERROR) == []


def test_a_flipped_bit_costs_the_one_event_that_it_is_in(tmp_path: Path) -> None:
    lines = [HEADER, *map(line, range(8))]
    whole = bytearray(b"".join(lines))
    random_source = random.Random(5)
    for flip in random_source.sample(range(len(whole) * 8), 1500):
        position, bit = divmod(flip, 8)
        flipped = bytearray(whole)
        flipped[position] ^= 1 << bit
        segment_of_the_dead(tmp_path, bytes(flipped))
        hit = bytes(whole[:position]).count(b"\n") - 1
        is_line_break = whole[position] == ord("\n")
        expected = [number for number in range(8) if number != hit or is_line_break]
        assert deliver_all(tmp_path) == expected, (position, bit)
        left = names(tmp_path)
        assert left in ([], ["1-1-a.events.damaged"])
        assert bool(left) == (expected != list(range(8)) or position < len(HEADER) - 1), position
        for name in left:
            (tmp_path / name).unlink()


def test_flipped_bits_among_struck_off_events_cost_nothing_else(tmp_path: Path) -> None:
    blanks = b" " * 299 + b"\n"
    whole = HEADER + line(0) + blanks + line(1) + blanks * 2 + line(2)
    random_source = random.Random(6)
    for position in random_source.sample(range(len(whole)), 400):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << random_source.randrange(8)
        segment_of_the_dead(tmp_path, bytes(flipped))
        with Records():
            delivered = deliver_all(tmp_path)
        assert len(delivered) >= 2 + (whole[position] in b" \n"), position
        for name in names(tmp_path):
            (tmp_path / name).unlink()


def test_a_kill_in_the_middle_of_striking_off_is_no_damage(tmp_path: Path) -> None:
    lines = b"".join(map(line, range(3)))
    for struck in range(2, len(lines), 7):
        segment_of_the_dead(tmp_path, HEADER + b" " * struck + lines[struck:] + line(3))
        with Records() as records:
            numbers = deliver_all(tmp_path)
        assert numbers[-1] == 3
        assert names(tmp_path) == []
        assert records.texts(logging.ERROR) == records.texts(logging.WARNING) == []


@pytest.mark.parametrize("garbage", [b"\0" * 5000, b"\n" * 100 + b"x", os.urandom(100_000)])
def test_a_garbage_file_is_set_aside_and_in_nobodys_way(
    scripted: ScriptedBigQuery, tmp_path: Path, garbage: bytes
) -> None:
    segment_of_the_dead(tmp_path, garbage)
    segment_of_the_dead(tmp_path, HEADER + line(1) + garbage + b"\n" + line(2), name="2-1-a")
    with Records() as records, running_writer(spool_dir=tmp_path) as writer:
        writer.submit(make_event(3))
        assert writer.drain_spool(10)
    assert numbers_in(scripted) == [1, 2, 3]
    assert names(tmp_path) == ["1-1-a.events.damaged", "2-1-a.events.damaged"]
    assert (tmp_path / "1-1-a.events.damaged").read_bytes() == garbage
    assert garbage in (tmp_path / "2-1-a.events.damaged").read_bytes()
    texts = records.texts(logging.ERROR) + records.texts(logging.WARNING)
    assert len(texts) == 2  # one a file, however many lines of it are damaged


def test_a_file_of_a_later_version_is_set_aside_as_it_is(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    later = encode_line({"lorc_eventlog_spool": 2}) + line(1)
    segment_of_the_dead(tmp_path, later)
    with Records() as records, running_writer(spool_dir=tmp_path) as writer:
        assert writer.drain_spool(10)
        (text,) = records.texts(logging.ERROR)
    assert "of a later version" in text
    assert names(tmp_path) == ["1-1-a.events.damaged"]
    assert content(tmp_path) == later
    assert scripted.rows == []


@pytest.mark.parametrize("length", [0, 10, len(HEADER)])
def test_a_file_without_events_is_deleted(tmp_path: Path, length: int) -> None:
    segment_of_the_dead(tmp_path, HEADER[:length])
    with Records() as records:
        assert deliver_all(tmp_path) == []
    assert names(tmp_path) == []
    assert records.texts(logging.ERROR) == []


def test_own_events_that_are_damaged_on_disk_count_as_dropped(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    with running_writer(spool_dir=tmp_path, capacity=10, batch_rows=10) as writer:
        submit_events(writer, range(30))
        (path,) = tmp_path.iterdir()
        lines = path.read_bytes().splitlines(keepends=True)
        lines[16] = lines[16].replace(b"number", b"nonsen")
        path.write_bytes(b"".join(lines))
        down.healthy()
        assert writer.flush(10)
        stats = writer.stats()
        assert (stats.delivered, stats.dropped) == (29, 1)
        assert_adds_up(stats)
        assert names(tmp_path) == [path.name + ".damaged"]
        writer.submit(make_event(30))
    assert numbers_in(down) == [number for number in range(31) if number != 15]


def test_a_flush_returns_though_the_last_event_is_damaged_on_disk(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    with running_writer(spool_dir=tmp_path, capacity=1, batch_rows=1) as writer:
        submit_events(writer, range(2))
        (path,) = tmp_path.iterdir()
        path.write_bytes(path.read_bytes().replace(b'number\\":1', b'number\\":7'))
        down.healthy()
        assert writer.flush(10)
        assert writer.stats().dropped == 1


def test_own_events_that_are_truncated_on_disk_count_as_dropped(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    with running_writer(spool_dir=tmp_path, capacity=1, batch_rows=1) as writer:
        submit_events(writer, range(5))
        (path,) = tmp_path.iterdir()
        os.truncate(path, len(HEADER))
        down.healthy()
        assert writer.flush(10)
        assert writer.stats().dropped == 4
        assert_adds_up(writer.stats())


def test_a_file_that_cannot_be_read_is_set_aside_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment_of_the_dead(tmp_path, HEADER + line(1))
    with Records() as records, open_spool(tmp_path) as spool:
        spool.adopt(0.0)
        with failing(monkeypatch, "pread"):
            assert spool.load(5) == ([], False, 0)
        assert not spool.has_adopted
    assert names(tmp_path) == ["1-1-a.events.damaged"]
    assert content(tmp_path).startswith(HEADER)
    assert "cannot be read" in records.texts(logging.ERROR)[0]


# Disk faults


def refused_and_recovered(writer: EventWriter, directory: Path, mend: Callable[[], object]) -> None:
    """Events go by memory while the disk refuses them, and to disk again afterwards."""
    with Records() as records:
        submit_events(writer, range(20))
        writer._notes.say()
        (text,) = records.texts(logging.ERROR)
    assert str(directory) in text
    assert "wait in memory only" in text
    assert writer.stats().dropped == 0
    mend()
    with Records() as records:

        def is_on_disk_again() -> bool:
            writer.submit(make_event(100))
            return writer._spool is not None and writer._spool.kept > 0

        eventually(is_on_disk_again)
        eventually(lambda: records.texts(logging.INFO))
        assert "events go to disk again" in records.texts(logging.INFO)[0]


def test_a_full_disk_is_reported_once_and_events_go_by_memory(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_writer(spool_dir=tmp_path) as writer:
        full = failing(monkeypatch, "pwrite", errno.ENOSPC)
        with Records() as records:
            with full:
                submit_events(writer, range(20))
            writer._notes.say()
            (text,) = records.texts(logging.ERROR)
        assert "No space left on device" in text
        assert writer.stats().buffered == 20
        down.healthy()
        assert writer.flush(10)
    assert numbers_in(down) == list(range(20))
    assert names(tmp_path) == []


def test_a_line_that_was_written_in_part_is_taken_back(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.pwrite
    with running_writer(spool_dir=tmp_path) as writer:
        writer.submit(make_event(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", lambda fd, data, at: real_write(fd, data[:50], at))
            writer.submit(make_event(1))
        writer.submit(make_event(2))
        assert content(tmp_path).count(b"\n") == 3
        assert survey(tmp_path)[0].events == 2
        down.healthy()
    assert numbers_in(down) == [0, 1, 2]


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_signal_handler_that_logs_while_a_write_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    failed, nested, later = row(0), row(1), row(2)
    real_write = os.pwrite
    with open_spool(tmp_path) as spool:
        assert spool.append(later, encode_line(later), in_memory=True)

        def write(descriptor: int, data: bytes, offset: int) -> int:
            monkeypatch.setattr(os, "pwrite", real_write)
            real_write(descriptor, data[:50], offset)
            assert spool.append(nested, encode_line(nested), in_memory=in_memory)
            raise OSError(errno.EIO, "it fails")

        monkeypatch.setattr(os, "pwrite", write)
        assert not spool.append(failed, encode_line(failed), in_memory=in_memory)
        assert survey(tmp_path)[0].events == 2
        rows, _, lost = spool.load(5)
        assert (rows, lost) == (([], 0) if in_memory else ([nested], 0))
        spool.strike([later, *(rows or [nested])])
        assert spool.kept == 0


@contextmanager
def small_disk(directory: Path, options: str) -> Iterator[None]:
    """Mount a file system of its own at ``directory``."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"only root can mount a disk that is full or read-only: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_disk_that_is_really_full_costs_no_event(down: ScriptedBigQuery, tmp_path: Path) -> None:
    directory = tmp_path / "disk"
    with (
        small_disk(directory, "size=16k"),
        Records() as records,
        running_writer(spool_dir=directory) as writer,
    ):
        with sampled(writer):
            submit_events(writer, range(200))
            writer._notes.say()
            (text,) = records.texts(logging.ERROR)
            assert "No space left on device" in text
            assert 0 < sum(report.events for report in survey(directory)) < 200
            down.healthy()
            assert writer.flush(20)
            writer.submit(make_event(200))
            writer._notes.say()
        assert any("events go to disk again" in text for text in records.texts(logging.INFO))
        assert writer.flush(10)
        assert names(directory) != []
        writer.close()
        assert names(directory) == []
    assert numbers_in(down) == list(range(201))


def test_a_read_only_disk_is_reported_and_used_when_it_can_be_written(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    directory = tmp_path / "disk"
    with small_disk(directory, "size=1m,ro"), running_writer(spool_dir=directory) as writer:
        remount = ["mount", "-o", "remount,rw", str(directory)]
        refused_and_recovered(writer, directory, lambda: subprocess.run(remount, check=True))
        down.healthy()
        assert writer.flush(10)
    assert len(set(numbers_in(down))) == 21


def test_files_on_a_read_only_disk_are_left_alone(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    directory = tmp_path / "disk"
    with small_disk(directory, "size=1m"):
        path = segment_of_the_dead(directory, HEADER + line(1))
        subprocess.run(["mount", "-o", "remount,ro", str(directory)], check=True)
        with Records() as records, running_writer(spool_dir=directory) as writer:
            assert writer.drain_spool(10)
            eventually(lambda: records.texts(logging.ERROR))
        assert "cannot be adopted" in records.texts(logging.ERROR)[0]
        assert path.read_bytes().count(b"\n") == 2
    assert scripted.rows == []


def test_a_file_in_place_of_the_directory_is_reported_and_the_directory_used_when_it_can_be(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    directory = tmp_path / "spool"
    directory.write_text("a file")
    with Records() as records, running_writer(spool_dir=directory) as writer:
        eventually(lambda: records.texts(logging.ERROR))
        assert "Not a directory" in records.texts(logging.ERROR)[0]
        refused_and_recovered(writer, directory, directory.unlink)
        down.healthy()
        assert writer.flush(10)
    assert len(set(numbers_in(down))) == 21


def test_a_file_that_someone_deletes_is_reported_and_followed_by_another(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "ADOPT_INTERVAL", 0.02)
    with (
        Records() as records,
        running_writer(spool_dir=tmp_path, capacity=10, batch_rows=5) as writer,
    ):
        submit_events(writer, range(30))
        (path,) = tmp_path.iterdir()
        path.unlink()
        eventually(lambda: any("deleted the file" in text for text in records.texts(logging.ERROR)))
        submit_events(writer, range(30, 40))
        assert len(names(tmp_path)) == 1
        down.healthy()
        assert writer.flush(10)
        assert_adds_up(writer.stats())
    assert numbers_in(down) == list(range(40))  # a deleted file that is open can be read


@pytest.mark.parametrize("call", ["flock", "fsync"])
def test_a_disk_that_cannot_lock_or_sync_is_no_place_for_events(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with running_writer(spool_dir=tmp_path, spool_sync="full") as writer:
        with Records() as records, monkeypatch.context() as patch:
            patch.setattr(fcntl if call == "flock" else os, call, fail)
            submit_events(writer, range(5))
            writer._notes.say()
            assert "No locks available" in records.texts(logging.ERROR)[0]
            assert names(tmp_path) == []
        assert writer.stats().buffered == 5
        down.healthy()
    assert numbers_in(down) == list(range(5))


def test_a_disk_that_cannot_lock_keeps_the_files_of_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    segment_of_the_dead(tmp_path, HEADER + line(1))
    with Records() as records, monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", fail)
        assert deliver_all(tmp_path) == []
    assert "cannot be adopted: No locks" in records.texts(logging.ERROR)[0]
    assert deliver_all(tmp_path) == [1]


def test_what_cannot_be_erased_is_reported_and_delivered(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Records() as records, running_writer(spool_dir=tmp_path) as writer:
        submit_events(writer, range(5))
        with failing(monkeypatch, "pwrite"), failing(monkeypatch, "ftruncate"):
            down.healthy()
            assert writer.flush(10)
        writer._notes.say()
        texts = records.texts(logging.ERROR)
        assert any("could not be struck off" in text for text in texts)
        assert any("which is delivered, stays" in text for text in texts)
    assert numbers_in(down) == list(range(5))


@pytest.mark.parametrize("call", ["unlink", "rename"])
def test_a_file_that_cannot_be_removed_is_reported_and_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    damage = b"" if call == "unlink" else b"garbage\n"
    segment_of_the_dead(tmp_path, HEADER + line(1) + damage)
    with Records() as records, failing(monkeypatch, call):
        assert deliver_all(tmp_path) == [1]
    assert any("which is delivered, stays" in text for text in records.texts(logging.ERROR))
    assert deliver_all(tmp_path) == []  # its lock is free, and the event was struck off


def test_a_file_that_cannot_be_set_aside_is_reported_and_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = segment_of_the_dead(tmp_path, encode_line({"lorc_eventlog_spool": 2}))
    with Records() as records, failing(monkeypatch, "rename"):
        assert deliver_all(tmp_path) == []
    assert "cannot be adopted" in records.texts(logging.ERROR)[0]
    (report,) = survey(tmp_path)
    assert (report.path, report.is_locked) == (path, False)


# Options


def test_full_sync_forces_each_event_to_disk_before_the_call_returns(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[bytes] = []

    def force(descriptor: int) -> None:
        forced.append(os.pread(descriptor, 100_000, 0))

    monkeypatch.setattr(spool_module, "_force_to_disk", force)
    with running_writer(spool_dir=tmp_path, spool_sync="full") as writer:
        for number in range(3):
            writer.submit(make_event(number))
            assert forced[-1].count(b'"event_id"') == number + 1
        assert len(forced) == 4  # the header, too
        down.healthy()


def test_normal_sync_leaves_it_to_the_system(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_force_to_disk", lambda _: pytest.fail("forced"))
    with running_writer(spool_dir=tmp_path) as writer:
        writer.submit(make_event(1))
        down.healthy()


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spool_max_bytes": 0}, "spool_max_bytes must be a whole number from 1 on, not 0"),
        ({"spool_sync": "off"}, 'spool_sync must be "normal" or "full", not \'off\''),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EventWriter(**options)


@pytest.mark.parametrize("adapter", [BigQueryEventHandler, BigQueryEventProcessor])
def test_adapters_take_the_options_as_json_has_them(
    scripted: ScriptedBigQuery, tmp_path: Path, adapter: Callable[..., Any]
) -> None:
    options = {"spool_dir": str(tmp_path), "spool_max_bytes": 1000, "spool_sync": "full"}
    made = adapter(source="tests", **json.loads(json.dumps(options)))
    made.writer.submit(make_event(1))
    made.close()
    assert numbers_in(scripted) == [1]
