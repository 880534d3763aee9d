"""What the disk refuses is reported, and events go by memory."""

from __future__ import annotations

import errno
import fcntl
import logging
import logging.config
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import (
    Records,
    assert_adds_up,
    eventually,
    make_event,
    numbers_in,
    running_writer,
    sampled,
    submit_events,
)
from inside import queue_of, say_what_is_noted
from lorc_eventlog import EventWriter
from lorc_eventlog.spool import orphans
from lorc_eventlog.spool.format import HEADER, encode_line
from lorc_eventlog.spool.survey import survey
from scripted_bigquery import ScriptedBigQuery
from spools import (
    content,
    deliver_all,
    failing,
    line,
    load,
    names,
    open_spool,
    row,
    segment_of_the_dead,
)


def refused_and_recovered(writer: EventWriter, directory: Path, mend: Callable[[], object]) -> None:
    """Events go by memory while the disk refuses them, and to disk again afterwards."""
    with Records() as records:
        submit_events(writer, range(20))
        say_what_is_noted(writer)
        (text,) = records.texts(logging.ERROR)
    assert str(directory) in text
    assert "wait in memory only" in text
    assert writer.stats().dropped == 0
    mend()
    with Records() as records:

        def is_on_disk_again() -> bool:
            writer.submit(make_event(100))
            return queue_of(writer).kept > 0

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
            say_what_is_noted(writer)
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
        assert content(tmp_path).count(b"\n") == 4
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
        assert spool.store.append(encode_line(later), later)

        def write(descriptor: int, data: bytes, offset: int) -> int:
            monkeypatch.setattr(os, "pwrite", real_write)
            real_write(descriptor, data[:50], offset)
            assert spool.store.append(encode_line(nested))
            raise OSError(errno.EIO, "it fails")

        monkeypatch.setattr(os, "pwrite", write)
        if in_memory:
            assert not spool.store.append(encode_line(failed), failed)
        else:
            assert not spool.store.append(encode_line(failed))
        assert survey(tmp_path)[0].events == 2
        loaded = load(spool)
        assert loaded is not None
        assert (loaded.rows, loaded.lost) == ([nested], 0)
        spool.acknowledge([later, *loaded.rows])
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
            say_what_is_noted(writer)
            (text,) = records.texts(logging.ERROR)
            assert "No space left on device" in text
            assert 0 < sum(report.events for report in survey(directory)) < 200
            down.healthy()
            assert writer.flush(20)
            writer.submit(make_event(200))
            say_what_is_noted(writer)
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
    monkeypatch.setattr(orphans, "SCAN_INTERVAL", 0.02)
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
            say_what_is_noted(writer)
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
        say_what_is_noted(writer)
        texts = records.texts(logging.ERROR)
        assert any("cannot be erased" in text for text in texts)
        assert any("cannot be emptied" in text for text in texts)
    assert numbers_in(down) == list(range(5))


@pytest.mark.parametrize("call", ["unlink", "rename"])
def test_a_file_that_cannot_be_removed_is_reported_and_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    damage = b"" if call == "unlink" else b"garbage\n"
    segment_of_the_dead(tmp_path, HEADER + line(1) + damage)
    with Records() as records, failing(monkeypatch, call):
        assert deliver_all(tmp_path) == [1]
    assert any("is delivered, but stays" in text for text in records.texts(logging.ERROR))
    assert deliver_all(tmp_path) == []  # its lock is free, and the event was struck off
