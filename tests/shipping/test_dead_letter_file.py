"""The file of dead letters, and what a disk that does not take them holds up: nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness import make_event
from lorc_eventlog import Envelope
from lorc_eventlog.events.row import row_at
from lorc_eventlog.shipping.dead_letters import DeadLetterFile
from lorc_eventlog.shipping.service import Settings, Shipper
from lorc_eventlog.spool.format import encode_line
from lorc_eventlog.spool.shipped import header_of
from scripted_bigquery import ScriptedBigQuery
from scripted_storage import ScriptedStorage
from shippers import TABLE, shipping

HEADER = encode_line(header_of(TABLE))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "spool"
    made.mkdir(0o700)
    return made


def line(number: int, **payload: Any) -> bytes:
    payload = {"number": number, **payload}
    return encode_line(row_at(0.0, "test.happened", payload, "tests"))


def write_segment(path: Path, name: str, content: bytes) -> None:
    file = path / name
    file.write_bytes(content)
    file.chmod(0o600)
    file.rename(path / f"{name}.ship")  # at once: a shipper may read and delete it


def letters_in(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_file_that_somebody_moved_or_deleted_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    file = DeadLetterFile(path)
    file.append(make_event(1), "invalid")
    path.rename(tmp_path / "read")
    file.append(make_event(2), "invalid")
    assert len(letters_in(tmp_path / "read")) == len(letters_in(path)) == 1
    path.unlink()
    file.append(make_event(3), "invalid")
    assert len(letters_in(path)) == 1
    file.close()


def test_a_file_that_somebody_deletes_in_the_middle_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "letters"
    file = DeadLetterFile(path)
    write = os.write
    tries = []

    def delete_once(descriptor: int, data: bytes) -> int:
        tries.append(data)
        if len(tries) == 1:
            path.unlink()
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", delete_once)
    file.append(make_event(1), "invalid")
    file.close()
    assert len(tries) == 2
    assert len(letters_in(path)) == 1


def test_a_directory_that_somebody_deleted_is_made_anew_for_the_letter(tmp_path: Path) -> None:
    path = tmp_path / "spool" / "letters"
    path.parent.mkdir()
    file = DeadLetterFile(path)
    shutil.rmtree(path.parent)
    file.append(make_event(1), "invalid")
    file.close()
    assert len(letters_in(path)) == 1


def test_a_letter_without_room_does_not_cut_off_that_of_another_shipper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "letters"
    ours, others = DeadLetterFile(path), DeadLetterFile(path)
    other = threading.Thread(target=others.append, args=(make_event(1), "invalid"))
    write = os.write

    def is_full(*_: object) -> int:
        monkeypatch.setattr(os, "write", write)
        other.start()
        other.join(0.2)  # it waits until ours is cut off
        return 0

    monkeypatch.setattr(os, "write", is_full)
    with pytest.raises(OSError, match="No space left"):
        ours.append(make_event(2), "invalid")
    other.join()
    ours.append(make_event(3), "invalid")
    assert [json.loads(letter)["event"]["payload"]["number"] for letter in letters_in(path)] == [
        1,
        3,
    ]
    ours.close()
    others.close()


def test_whoever_keeps_the_file_locked_is_not_waited_for_with_each_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "letters"
    file = DeadLetterFile(path)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with path.open() as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        for _ in range(100):
            with pytest.raises(OSError, match="has it locked"):
                file.append(make_event(1), "invalid")
    assert sum(pauses) < 1.5
    file.append(make_event(1), "invalid")
    file.close()
    assert len(letters_in(path)) == 1


def test_letters_are_kept_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    file = DeadLetterFile(tmp_path / "letters")
    file.append(make_event(1), "invalid")
    file.close()
    assert len(letters_in(tmp_path / "letters")) == 1


def test_a_pipe_in_its_place_is_an_error_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "letters", 0o600)
    with pytest.raises(OSError, match="No such device or address"):
        DeadLetterFile(tmp_path / "letters")
    reader = os.open(tmp_path / "letters", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="not a regular file"):
        DeadLetterFile(tmp_path / "letters")
    os.close(reader)


def test_the_same_bad_event_twice_is_two_letters(scripted: ScriptedBigQuery, path: Path) -> None:
    """As after a backup was put back beside what it was made of."""
    scripted.refuse_row(lambda row: "bad" in row["payload"])
    content = HEADER + line(0) + line(1, bad=True)
    write_segment(path, "1-1-1", content)
    write_segment(path, "2-1-1", content)
    with shipping(path) as shipper:
        assert shipper.wait_until(lambda progress: progress.is_empty, 20)
        assert shipper.progress().rejected == 2
    assert len(letters_in(path / "dead-letters.jsonl")) == 2


@pytest.mark.parametrize("exactly_once", [False, True], ids=["rest", "exactly once"])
def test_letters_that_the_disk_does_not_take_hold_up_nothing(
    scripted: ScriptedBigQuery, path: Path, monkeypatch: pytest.MonkeyPatch, *, exactly_once: bool
) -> None:
    """Else a full disk would stay full: what is delivered makes room on it."""
    append = DeadLetterFile.append
    is_full = True

    def refuse(file: DeadLetterFile, envelope: Envelope, reason: str) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(file, envelope, reason)

    monkeypatch.setattr(DeadLetterFile, "append", refuse)
    scripted.refuse_row(lambda row: "poison" in row["payload"])
    with ScriptedStorage() as storage:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", storage.address)
        transport = "grpc" if exactly_once else "rest"
        for number in range(12):
            write_segment(path, f"1{number:02}-1-1", HEADER + line(0) + line(1, poison=True))
        settings = Settings(
            path, TABLE, interval=0.05, batch_rows=2, transport=transport, exactly_once=exactly_once
        )
        shipper = Shipper(settings)
        shipper.start()
        assert shipper.wait_until(lambda progress: progress.delivered == 12, 60)
        for number in range(20):
            write_segment(path, f"2{number:02}-1-1", HEADER + line(0))
        assert shipper.wait_until(lambda progress: progress.delivered == 32, 60)
        assert shipper.wait_until(lambda _: len([*path.glob("*.ship")]) == 12, 20)
        assert (shipper.progress().rejected, shipper.progress().waiting) == (0, 12)
        is_full = False
        assert shipper.wait_until(lambda progress: progress.is_empty, 20)
        assert (shipper.progress().rejected, shipper.progress().waiting) == (12, 0)
        shipper.close()
    assert len(letters_in(path / "dead-letters.jsonl")) == 12
