"""What is in a spool directory, found without touching it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorc_eventlog.spool.format import HEADER, encode_line
from lorc_eventlog.spool.survey import SegmentReport, survey
from spools import (
    content,
    line,
    open_spool,
    row,
    segment_of_the_dead,
)


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
        assert spool.store.append(encode_line(own), own)
        reports = survey(tmp_path)
        spool.acknowledge([own])
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
    ],
    ids=[
        "whole", "last line cut off by a kill", "header cut off by a kill", "line cut off between",
        "struck off", "garbage", "garbage after a line break", "zeros",
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
    (tmp_path / "c.events").symlink_to("1-1-a.events")
    (tmp_path / "d.events").write_bytes(HEADER)
    (tmp_path / "d.events.damaged").hardlink_to(tmp_path / "d.events")
    (tmp_path / "e.events").write_bytes(encode_line({"lorc_eventlog_spool": 2}) + line(1))
    reports = survey(tmp_path)
    assert [(report.path.name, report.events, report.error) for report in reports] == [
        ("1-1-a.events", 1, None),
        ("a.events", 0, "Not a regular file"),
        ("b.events", 0, "Not a regular file"),
        ("c.events", 0, "Is a symbolic link"),
        ("d.events", 0, "Has another name, a hard link"),
        ("d.events.damaged", 0, "Has another name, a hard link"),
        ("e.events", 0, "Of a later version"),
    ]


def test_a_file_that_is_deleted_just_now_is_not_in_the_survey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = segment_of_the_dead(tmp_path, HEADER, name="1-1-a")
    segment_of_the_dead(tmp_path, HEADER + line(1), name="2-1-a")
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([gone, gone.with_name("2-1-a.events")]))
    gone.unlink()
    assert [report.events for report in survey(tmp_path)] == [1]


def test_a_survey_of_no_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        survey(tmp_path / "missing")
