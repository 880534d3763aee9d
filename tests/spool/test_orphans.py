"""The files of dead processes: who adopts them, when, and how they are drained."""

from __future__ import annotations

import fcntl
import logging
import logging.config
import os
from pathlib import Path
from typing import Any

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
from inside import look_for_orphans
from lorc_eventlog import EventWriter
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.spool import orphans, report
from lorc_eventlog.spool.format import HEADER, encode_header, encode_line
from lorc_eventlog.spool.report import SpoolReport
from lorc_eventlog.spool.spool import Loaded
from lorc_eventlog.spool.survey import survey
from scripted_bigquery import ScriptedBigQuery
from spools import (
    TABLE,
    content,
    deliver_all,
    line,
    load,
    names,
    open_spool,
    row,
    segment_of_the_dead,
)


def test_a_starting_writer_delivers_what_a_dead_process_left(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    segment_of_the_dead(tmp_path, HEADER + b"".join(map(line, range(20))))
    with Records() as records, running_writer(spool_dir=tmp_path) as writer:
        with sampled(writer):
            scripted.wait_for_rows(20)
            eventually(lambda: writer.stats().delivered == 20)
        assert_adds_up(writer.stats())
        eventually(lambda: names(tmp_path) == [])
    assert numbers_in(scripted) == list(range(20))
    assert len(records.texts(logging.INFO)) == 1


def test_a_directory_that_is_not_there_yet_has_no_files(tmp_path: Path) -> None:
    with Records() as records:
        assert deliver_all(tmp_path / "missing") == []
    assert records.records == []


def test_every_minute_a_writer_looks_for_more(
    scripted: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert orphans.SCAN_INTERVAL == 60
    monkeypatch.setattr(orphans, "SCAN_INTERVAL", 0.02)
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
            look_for_orphans(writer)
        down.healthy()
        assert one.drain_spool(10)
        assert other.drain_spool(10)
        assert one.stats().submitted + other.stats().submitted == 3
    assert numbers_in(down) == [1, 2, 3]
    assert sum(request.rows for request in down.requests if request.status == 200) == 3


def test_of_many_files_some_are_adopted_at_a_time(
    scripted: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "MOST_OPEN", 3)
    for number in range(10):
        segment_of_the_dead(tmp_path, HEADER + line(number), name=f"{number}-1-a")
    with open_spool(tmp_path) as spool:
        loaded = load(spool, 100)
        assert loaded is not None
        assert sum(each.is_locked for each in survey(tmp_path)) == len(loaded.rows) == 3
        spool.acknowledge(loaded.rows)
    with running_writer(spool_dir=tmp_path) as writer:
        assert writer.drain_spool(10)
    assert numbers_in(scripted) == list(range(3, 10))


def test_a_closed_writer_leaves_to_others_what_it_adopted_and_did_not_read(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    for name in ("1-1-a", "2-1-a"):
        segment_of_the_dead(tmp_path, HEADER + line(1), name=name)
    writer = EventWriter(spool_dir=tmp_path, capacity=1, batch_rows=1, close_timeout=0.01)
    down.wait_for_requests(1)
    writer.close()
    assert [each.is_locked for each in survey(tmp_path)] == [True, False]
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
    assert "100 events are still waiting (100 of them in" in text
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
        assert load(spool) == Loaded()
        assert load(spool) is None
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
        assert load(spool) == Loaded()
        assert load(spool) is None


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
            assert spool.store.append(encode_line(new), new)
        assert stolen
        (report,) = survey(tmp_path)
        assert (report.events, report.is_locked) == (1, True)
        spool.acknowledge([new])


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


def test_a_closed_spool_leaves_to_others_what_it_has_read_in_part_and_acknowledged(
    tmp_path: Path,
) -> None:
    segment_of_the_dead(tmp_path, HEADER + b"".join(map(line, range(10))))
    with open_spool(tmp_path) as spool:
        loaded = load(spool, 2)
        assert loaded is not None
        spool.acknowledge(loaded.rows)
        spool.close()()
        assert [each.is_locked for each in survey(tmp_path)] == [False]
        assert deliver_all(tmp_path) == list(range(2, 10))


def test_files_of_a_later_version_are_reported_once_a_minute_and_stay(tmp_path: Path) -> None:
    later = encode_line({"lorc_eventlog_spool": 2}) + line(1)
    for number in range(3):
        segment_of_the_dead(tmp_path, later, name=f"{number}-1-a")
    with Records() as records:
        assert deliver_all(tmp_path) == []
    assert len(records.texts(logging.ERROR)) == 1
    assert content(tmp_path) == later * 3


# A directory of several tables


def test_events_of_another_table_are_left_to_its_processes_and_reported_once(
    scripted: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "SCAN_INTERVAL", 0.02)
    for number in range(3):
        segment_of_the_dead(
            tmp_path, encode_header("other.table") + line(number), name=f"{number}-1-a"
        )
    segment_of_the_dead(tmp_path, encode_header(TABLE) + line(3), name="3-1-a")
    segment_of_the_dead(tmp_path, HEADER + line(4), name="4-1-a")  # of version 0.1.0
    before = content(tmp_path)
    with Records() as records, running_writer(spool_dir=tmp_path) as writer:
        assert writer.drain_spool(10)
        assert names(tmp_path) == [f"{number}-1-a.events" for number in range(3)]
        segment_of_the_dead(tmp_path, encode_header(TABLE) + line(5), name="5-1-a")
        scripted.wait_for_rows(3)  # it has looked again
    assert numbers_in(scripted) == [3, 4, 5]
    assert content(tmp_path) == before[: len(content(tmp_path))]
    (text,) = records.texts(logging.WARNING)
    assert "0-1-a.events, and maybe in other files there, belong to the table other.table" in text
    assert "delivers to dataset.events" in text
    assert [each.table for each in survey(tmp_path)] == ["other.table"] * 3
    monkeypatch.setenv("EVENTS_BQ_DATASET", "other")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "table")
    with running_writer(spool_dir=tmp_path) as writer:
        assert writer.drain_spool(10)
    assert names(tmp_path) == []
    assert {request.table.partition(":")[2] for request in scripted.requests} == {
        "dataset.events",
        "other.table",
    }


def test_events_of_a_living_process_of_another_table_are_nothing_to_report(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    with running_writer(spool_dir=tmp_path) as writer:
        writer.submit(make_event(1))
        with Records() as records:
            assert deliver_all(tmp_path, table="other.table") == []
        assert records.records == []
        down.healthy()


def test_of_very_many_tables_only_some_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MOST_TABLES", 3)
    for number in range(10):
        header = encode_header(f"other.table_{number}" + "x" * 1000)
        segment_of_the_dead(tmp_path, header + line(number), name=f"{number}-1-a")
    with Records() as records:
        assert deliver_all(tmp_path) == []
    texts = records.texts(logging.WARNING)
    assert len(texts) == 3
    assert max(map(len, texts)) < 700


# Very many files


def test_two_thousand_files_are_delivered_like_one(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    for number in range(2000):
        segment_of_the_dead(tmp_path, encode_header(TABLE) + line(number), name=f"{number:04}-1-a")
    with Records() as records, running_writer(spool_dir=tmp_path, flush_interval=1.0) as writer:
        scripted.wait_for_rows(2000, timeout=30)
        eventually(lambda: names(tmp_path) == [])
        assert_adds_up(writer.stats())
    assert numbers_in(scripted) == list(range(2000))
    assert len(records.texts(logging.INFO)) < 50


def test_more_names_than_are_held_in_memory_are_all_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "NAMES", 7)
    monkeypatch.setattr(orphans, "MOST_OPEN", 5)
    for number in range(50):
        segment_of_the_dead(tmp_path, HEADER + line(number), name=f"{number:02}-1-a")
    (tmp_path / "00-0-0.events").symlink_to("nowhere")
    with Records():
        assert deliver_all(tmp_path) == list(range(50))


@pytest.mark.parametrize(("limit", "most"), [(-1, 512), (8, 1), (1024, 128), (1_000_000, 512)])
def test_the_files_that_are_open_at_a_time_are_a_share_of_what_the_process_may_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, most: int
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: limit)
    made = orphans.Orphans(tmp_path, table=TABLE, report=SpoolReport(tmp_path, Notes()))
    assert made._most_open == most
