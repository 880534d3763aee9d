"""What goes wrong with the disk is reported and waited out, and nothing that is on it is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import Records, eventually, make_event, numbers_in, threads
from lorc_eventlog import EventWriter
from lorc_eventlog.delivery import spool_only
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.events.row import row_at
from lorc_eventlog.shipping import dead_letters
from lorc_eventlog.shipping.dead_letters import DeadLetterFile
from lorc_eventlog.shipping.follower import Follower
from lorc_eventlog.shipping.lines import Lines
from lorc_eventlog.shipping.service import Progress, Settings, Shipper
from lorc_eventlog.spool.directory import Access, Directory, File
from lorc_eventlog.spool.format import encode_line
from lorc_eventlog.spool.shipped import header_of
from scripted_bigquery import ScriptedBigQuery
from shipped import numbers_on_disk
from shippers import TABLE, shipping

HEADER = encode_line(header_of(TABLE))
ERRORS = 40


def line(number: int, size: int = 0) -> bytes:
    payload = {"number": number, "text": "x" * size}
    return encode_line(row_at(time.time(), "test.happened", payload, "tests"))


def write_segments(path: Path, count: int) -> None:
    """A segment of one event for each of so many dead processes."""
    path.mkdir(mode=0o700)
    for number in range(count):
        file = path / f"{number:020}-{number}-000000-a.ship"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(descriptor, HEADER + line(number))
        os.close(descriptor)


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.mark.process
def test_thousands_of_segments_are_delivered_with_few_files_open(
    scripted: ScriptedBigQuery, path: Path
) -> None:
    """``LORC_EVENTLOG_SOAK=1`` makes it 10,000."""
    count = 10_000 if "LORC_EVENTLOG_SOAK" in os.environ else 1_500
    write_segments(path, count)
    most = 0

    def watch(progress: Progress) -> bool:
        nonlocal most
        most = max(most, open_files())
        return progress.is_empty

    before = open_files()
    with shipping(path) as shipper:
        assert shipper.wait_until(watch, 200), shipper.progress()
    assert numbers_in(scripted) == [*range(count)]
    assert most < before + 400
    assert list(path.glob("*.ship*")) == []


# On a small file system of its own


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB; only root can make one."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a disk")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


@pytest.mark.process
def test_a_full_disk_is_shipped_and_takes_events_again(
    scripted: ScriptedBigQuery, disk: Path
) -> None:
    writer = EventWriter(spool_dir=disk / "spool", spool_only=True, overflow="drop")
    with Records() as records:
        number = 0
        while writer.stats().dropped == 0:
            writer.emit("test.happened", {"number": number, "text": "x" * 1000}, source="tests")
            number += 1
    assert "No space left on device" in str(records.texts(30))
    kept = writer.stats().spooled
    writer.close()
    with shipping(disk / "spool") as shipper:
        assert shipper.wait_until(lambda progress: progress.is_empty, 60)
    assert numbers_in(scripted) == [*range(kept)]
    assert writer.stats().dropped == 1
    writer.emit("test.happened", {"number": kept}, source="tests")
    assert writer.stats().dropped == 1
    assert numbers_on_disk_but_for_the_shippers(disk / "spool") == [kept]
    writer.close()


def numbers_on_disk_but_for_the_shippers(path: Path) -> list[int]:
    for name in path.iterdir():
        if name.suffix != ".ship":
            name.unlink()
    return numbers_on_disk(path)


@pytest.mark.process
def test_overflow_block_waits_for_a_full_disk(
    scripted: ScriptedBigQuery, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()

    def wait(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    monkeypatch.setattr(spool_only, "time", SimpleNamespace(sleep=wait))
    writer = EventWriter(spool_dir=disk / "spool", spool_only=True, overflow="block")
    filler = disk / "filler"
    writer.emit("test.happened", {"number": 0}, source="tests")
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with shipping(disk / "spool", interval=3600) as shipper:
        assert shipper.wait_until(lambda progress: progress.delivered == 1, 20)

        def submit(_: int) -> None:
            for number in range(1, 30):
                writer.emit("test.happened", {"number": number, "text": "x" * 500}, source="t")

        with threads(1, submit):
            assert waits.wait(30)
            filler.unlink()
    writer.close()
    with shipping(disk / "spool") as shipper:
        assert shipper.wait_until(lambda progress: progress.is_empty, 60)
    assert (writer.stats().spooled, writer.stats().dropped) == (30, 0)
    assert numbers_in(scripted) == [*range(30)]


@pytest.mark.process
def test_a_disk_that_becomes_read_only_takes_no_events_until_it_is_writable(
    scripted: ScriptedBigQuery, disk: Path
) -> None:
    writer = EventWriter(spool_dir=disk / "spool", spool_only=True)
    writer.emit("test.happened", {"number": 0}, source="tests")
    writer.close()
    remount(disk, "ro")
    with Records() as records:
        writer.emit("test.happened", {"number": 1}, source="tests")
    assert writer.stats().dropped == 1
    assert "Read-only file system" in records.texts(30)[0]
    with pytest.raises(OSError, match="Read-only file system"):
        Shipper(Settings(directory=disk / "spool", table=TABLE))
    remount(disk, "rw")
    writer.emit("test.happened", {"number": 2}, source="tests")
    writer.close()
    with shipping(disk / "spool") as shipper:
        assert shipper.wait_until(lambda progress: progress.is_empty, 20)
    assert numbers_in(scripted) == [0, 2]


def remount(disk: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)


# Where nobody is root


def make_follower(path: Path, notes: Notes) -> tuple[Directory, Follower]:
    directory = Directory(path, access=Access.OWNER, create=True)
    return directory, Follower(directory, Lines(directory), TABLE, notes)


def test_a_shipper_waits_while_its_disk_is_read_only(
    scripted: ScriptedBigQuery, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an error of the file system. Nothing can be opened for writing, and so is read."""
    opened = Directory.open

    def refuse(directory: Directory, name: str, flags: int = os.O_RDONLY) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(directory, name, flags)

    path.mkdir(mode=0o700)
    with shipping(path) as shipper:
        with monkeypatch.context() as broken, Records() as records:
            broken.setattr(Directory, "open", refuse)
            (path / "1-1-1-a.ship").write_bytes(HEADER + line(1))
            (path / "1-1-1-a.ship").chmod(0o600)
            eventually(lambda: "Read-only file system" in str(records.texts(ERRORS)), 20)
        assert shipper.wait_until(lambda progress: progress.delivered == 1, 20)
    assert numbers_in(scripted) == [1]


def test_what_cannot_be_erased_is_erased_later_before_anything_else_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_segments(path, 2)
    (path / f"{5:020}-5-000000-a.ship").write_bytes(HEADER + line(5) + line(6))
    (path / f"{5:020}-5-000000-a.ship").chmod(0o600)
    notes = Notes()
    directory, follower = make_follower(path, notes)
    follower.look()
    rows = follower.read(3)
    assert len(rows) == 3

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as broken, Records() as records:
        broken.setattr(File, "write", refuse)
        broken.setattr(Directory, "unlink", refuse)
        follower.acknowledge(rows)
        assert not follower.has_unread
        assert follower.read(10) == []
        follower.look()
        notes.say()
        said = records.texts(ERRORS)
    (erased,) = [text for text in said if "cannot be erased" in text]
    assert "could be sent again" in erased
    assert "Read-only file system" in erased
    follower.look()
    rows = follower.read(10)
    assert [row["payload"][:11] for row in rows] == ['{"number":6']
    assert len(list(path.glob("*.ship"))) == 1
    directory.close()


def test_a_file_system_without_locks_is_reported_once_and_events_are_delivered(
    scripted: ScriptedBigQuery, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application's locks failed as well: it had to be another one then, or another time."""
    write_segments(path, 20)
    shipper = Shipper(Settings(directory=path, table=TABLE, interval=0.05))

    def refuse(_: File) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with Records() as records, monkeypatch.context() as broken:
        broken.setattr(File, "try_lock", refuse)
        shipper.start()
        assert shipper.wait_until(lambda progress: progress.delivered == 20, 30)
        eventually(lambda: records.texts(ERRORS))
        assert len(list(path.glob("*.ship"))) == 20  # whose process may still write
    assert shipper.wait_until(lambda progress: progress.is_empty, 30)
    (said,) = records.texts(ERRORS)
    assert said.endswith("cannot be read, which is tried again: No locks available")
    shipper.close()
    assert numbers_in(scripted) == [*range(20)]


def test_a_file_system_without_locks_takes_no_events_and_no_shipper(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "dataset")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    writer = EventWriter(spool_dir=path, spool_only=True, overflow="block")
    with Records() as records:
        writer.emit("test.happened", {}, source="tests")
    assert writer.stats().dropped == 1
    assert "does not take them: No locks available" in records.texts(30)[0]
    before = open_files()
    with pytest.raises(OSError, match="No locks available"):
        Shipper(Settings(directory=path, table=TABLE))
    assert open_files() == before


def test_a_disk_that_is_full_from_the_start_is_shipped(
    scripted: ScriptedBigQuery, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the number of the process nor the file of dead letters has room on it."""
    write_segments(path, 3)
    scripted.refuse_row(lambda row: '"number":1,' in row["payload"])
    opened = os.open

    def no_room(name: Any, flags: int, *rest: Any, **options: Any) -> int:
        if str(name).endswith("dead-letters.jsonl"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(name, flags, *rest, **options)

    def no_room_for_numbers(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "open", no_room)
        full.setattr(File, "write", no_room_for_numbers)
        shipper = Shipper(Settings(directory=path, table=TABLE, interval=0.05))
    with monkeypatch.context() as full, Records() as records:
        full.setattr(os, "open", no_room)
        shipper.start()
        eventually(lambda: "takes no dead letters" in str(records.texts(ERRORS)))
    assert shipper.wait_until(lambda progress: progress.is_empty, 30)
    shipper.close()
    assert numbers_in(scripted) == [0, 2]
    assert '"number":1' in (path / "dead-letters.jsonl").read_text()


def test_a_dead_letter_that_could_not_be_forced_is_there_once_after_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = DeadLetterFile(tmp_path / "letters")
    with monkeypatch.context() as patch:
        patch.setattr(dead_letters, "force_to_disk", lambda _: os.fsync(99_999))
        with pytest.raises(OSError, match="Bad file descriptor"):
            letters.append(make_event(1), "invalid")
    letters.append(make_event(1), "invalid")
    letters.close()
    assert len((tmp_path / "letters").read_bytes().splitlines()) == 1


def test_a_file_of_dead_letters_that_cannot_be_opened_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        DeadLetterFile(path / "letters")
    path.mkdir()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "open", refuse)
        DeadLetterFile(path / "letters").close()  # it was not opened yet


def test_a_shipper_sees_that_its_directory_was_replaced(
    scripted: ScriptedBigQuery, path: Path
) -> None:
    write_segments(path, 1)
    with shipping(path) as shipper:
        assert shipper.wait_until(lambda progress: progress.is_empty, 20)
        assert not shipper.is_lost
        shutil.rmtree(path)
        eventually(lambda: shipper.is_lost, 20)
    assert numbers_in(scripted) == [0]
