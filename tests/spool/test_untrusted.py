"""A spool directory is untrusted input: what somebody else may have put there."""

from __future__ import annotations

import logging
import os
import resource
import stat
import sys
import time
from pathlib import Path

import pytest

from harness import (
    Records,
    assert_adds_up,
    make_event,
    numbers_in,
    running_writer,
)
from lorc_eventlog.spool import orphans
from lorc_eventlog.spool.format import HEADER, encode_header, encode_line
from scripted_bigquery import ScriptedBigQuery
from spools import TABLE, deliver_all, line, names, row, segment_of_the_dead


def test_a_row_with_a_payload_of_null_is_set_aside_and_nothing_behind_it_waits(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    rows = [row(number) for number in range(9)]
    rows[4]["payload"] = None  # type: ignore[typeddict-item]
    segment_of_the_dead(tmp_path, encode_header(TABLE) + b"".join(map(encode_line, rows)))
    segment_of_the_dead(tmp_path, encode_header(TABLE) + line(9), name="2-1-a")
    with Records() as records, running_writer(spool_dir=tmp_path) as writer:
        assert writer.drain_spool(10)
        assert_adds_up(writer.stats())
    assert numbers_in(scripted) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert names(tmp_path) == ["1-1-a.events.damaged"]
    (text,) = records.texts(logging.ERROR)
    assert "are damaged and set aside" in text


def outside(tmp_path: Path) -> tuple[Path, Path, bytes]:
    """A spool directory, and a file outside of it that would make a good segment."""
    directory = tmp_path / "spool"
    directory.mkdir()
    target = tmp_path / "target"
    target.write_bytes(HEADER + line(1) + b"garbage\n")
    return directory, target, target.read_bytes()


def test_a_symbolic_link_is_neither_followed_nor_blanked_nor_renamed(tmp_path: Path) -> None:
    directory, target, before = outside(tmp_path)
    (directory / "1-1-a.events").symlink_to(target)
    (directory / "2-1-a.events").symlink_to("/dev/zero")
    (directory / "3-1-a.events").symlink_to(directory)
    with Records() as records:
        assert deliver_all(directory) == []
    assert target.read_bytes() == before
    assert names(directory) == ["1-1-a.events", "2-1-a.events", "3-1-a.events"]
    assert "Is a symbolic link" in records.texts(logging.ERROR)[0]


def test_a_hard_link_is_neither_read_nor_blanked_nor_renamed(tmp_path: Path) -> None:
    directory, target, before = outside(tmp_path)
    (directory / "1-1-a.events").hardlink_to(target)
    with Records() as records:
        assert deliver_all(directory) == []
    assert target.read_bytes() == before
    assert names(directory) == ["1-1-a.events"]
    assert "has another name, a hard link" in records.texts(logging.ERROR)[0].lower()


def test_pipes_directories_and_devices_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1-1-a.events")
    (tmp_path / "2-1-a.events").mkdir()
    segment_of_the_dead(tmp_path, HEADER + line(1), name="3-1-a")
    with Records() as records:
        assert deliver_all(tmp_path) == [1]
    assert names(tmp_path) == ["1-1-a.events", "2-1-a.events"]
    assert len(records.texts(logging.ERROR)) == 2


def test_a_file_of_another_user_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment_of_the_dead(tmp_path, HEADER + line(1))
    with Records() as records, monkeypatch.context() as patch:
        patch.setattr(orphans, "owners_of", lambda _: {os.geteuid() + 1})
        assert deliver_all(tmp_path) == []
    assert f"Belongs to user {os.geteuid()}" in records.texts(logging.ERROR)[0]
    assert deliver_all(tmp_path) == [1]


def test_a_sparse_file_of_a_gibibyte_is_damage_and_in_nobodys_way(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    path = segment_of_the_dead(tmp_path, b"")
    os.truncate(path, 2**30)
    segment_of_the_dead(tmp_path, HEADER + line(1), name="2-1-a")
    with Records(), running_writer(spool_dir=tmp_path) as writer:
        writer.submit(make_event(2))
        assert writer.drain_spool(10)
    assert numbers_in(scripted) == [1, 2]
    assert names(tmp_path) == ["1-1-a.events.damaged"]


def test_no_log_call_waits_while_a_huge_file_is_read_and_memory_stays_flat(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    """300 MB without a line break, which cannot be passed over as a hole can."""
    huge = tmp_path / "1-1-a.events"
    with huge.open("wb") as file:
        for _ in range(300):
            file.write(b"x" * 1_000_000)
    longest = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Records(), running_writer(spool_dir=tmp_path, flush_interval=0.1) as writer:
        number = 0
        while huge.exists() and number < 10_000:
            started = time.monotonic()
            writer.submit(make_event(number))
            longest = max(longest, time.monotonic() - started)
            number += 1
            time.sleep(0.002)
        assert writer.drain_spool(30)
        assert "1-1-a.events.damaged" in names(tmp_path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert longest < 1.0  # on a busy machine; without the lock it is below 50 ms
    assert grown < 150_000 * (1 if sys.platform == "linux" else 1024)
    assert numbers_in(scripted) == list(range(number))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_modes_are_those_of_the_owner_alone_whatever_the_umask(
    down: ScriptedBigQuery, tmp_path: Path, umask: int
) -> None:
    directory = tmp_path / "a" / "b" / "spool"
    before = os.umask(umask)
    try:
        with running_writer(spool_dir=directory) as writer:
            writer.submit(make_event(1))
            (path,) = directory.iterdir()
            modes = [stat.S_IMODE(each.stat().st_mode) for each in (path, *path.parents[:3])]
            down.healthy()
    finally:
        os.umask(before)
    assert modes == [0o600, 0o700, 0o700, 0o700]


def test_an_existing_directory_keeps_its_mode(down: ScriptedBigQuery, tmp_path: Path) -> None:
    directory = tmp_path / "a" / "spool"
    directory.parent.mkdir()
    directory.parent.chmod(0o755)
    with running_writer(spool_dir=directory) as writer:
        writer.submit(make_event(1))
        assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o755
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        down.healthy()


SPOOFED = "1-1-a\nCRITICAL root spoofed \x1b[31m"


@pytest.mark.parametrize(
    "content",
    [HEADER + line(1), HEADER + line(1)[:-9], b"garbage\n", b"link", encode_header("x\ny") + b"."],
    ids=["adopted", "cut off", "damaged", "not adopted", "of another table"],
)
def test_no_message_holds_a_control_character_of_a_file_name_or_a_header(
    tmp_path: Path, content: bytes
) -> None:
    path = segment_of_the_dead(tmp_path / "spool\n\x1b", content, name=SPOOFED)
    if content == b"link":
        path.unlink()
        path.symlink_to("nowhere")
    with Records() as records:
        deliver_all(path.parent)
    texts = [record.getMessage() for record in records.records]
    assert texts
    assert all(text.isprintable() for text in texts)
    assert any("spoofed" in text for text in texts)
