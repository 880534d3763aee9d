"""Events are on disk from the log call until BigQuery has them, and more than memory holds."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import (
    PRIVATE,
    Records,
    assert_adds_up,
    make_event,
    numbers_in,
    running_writer,
    sampled,
    submit_events,
)
from inside import held_in_memory, lock_of, queue_of
from lorc_eventlog import BigQueryEventHandler, BigQueryEventProcessor, Envelope, EventWriter
from lorc_eventlog.spool import segment, store
from lorc_eventlog.spool.format import HEADER, encode_line
from lorc_eventlog.spool.survey import survey
from scripted_bigquery import ScriptedBigQuery
from spools import (
    EMPTY,
    content,
    names,
    number_of,
    open_spool,
    row,
    segment_of_the_dead,
)


def test_an_event_is_on_disk_when_the_call_returns(down: ScriptedBigQuery, tmp_path: Path) -> None:
    with running_writer(spool_dir=tmp_path) as writer:
        for number in range(3):
            writer.submit(make_event(number))
            (report,) = survey(tmp_path)
            assert report.events == number + 1
        down.healthy()


def test_an_event_logged_in_the_middle_of_a_log_call_is_on_disk_too(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    with running_writer(spool_dir=tmp_path) as writer:
        lock_of(writer).run(writer.submit, make_event(0))
        (report,) = survey(tmp_path)
        assert report.events == 1
        down.healthy()
        assert writer.flush(10)

    assert numbers_in(down) == [0]


def test_an_event_that_is_delivered_is_erased_from_the_disk(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    scripted.stop_row_once(lambda sent: number_of(sent) == 0)  # so that one stays for a while
    with running_writer(spool_dir=tmp_path, batch_rows=1) as writer:
        submit_events(writer, range(1, 50))
        assert writer.flush(10)
        assert content(tmp_path) == EMPTY
    assert names(tmp_path) == []


def test_a_delivered_event_is_erased_although_others_in_its_file_wait(tmp_path: Path) -> None:
    with open_spool(tmp_path) as spool:
        rows = [row(number) for number in range(5)]
        for each in rows:
            assert spool.store.append(encode_line(each), each)
        spool.acknowledge(rows[1:3])
        left = content(tmp_path)
        assert [each["event_id"].encode() in left for each in rows] == [
            True, False, False, True, True,
        ]  # fmt: skip
        assert left.count(PRIVATE.encode()) == 3 * 2
        spool.acknowledge([rows[0], *rows[3:]])
        assert content(tmp_path) == EMPTY


def test_a_dead_letter_leaves_the_disk(scripted: ScriptedBigQuery, tmp_path: Path) -> None:
    scripted.refuse_row(lambda sent: number_of(sent) == 1)
    buried: list[Envelope] = []
    with running_writer(
        spool_dir=tmp_path, on_dead_letter=lambda envelope, _reason: buried.append(envelope)
    ) as writer:
        submit_events(writer, range(3))
        assert writer.flush(10)
        assert content(tmp_path) == EMPTY
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
        assert content(tmp_path) == EMPTY
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
            assert held_in_memory(writer) <= 10
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
        assert queue_of(writer).held_bytes <= 2_500_000  # a read of 1 MiB may come on top
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
    lines = [encode_line(row(number, text="x" * 100_000)) for number in range(100)]
    segment_of_the_dead(tmp_path, HEADER + b"".join(lines))
    with running_writer(spool_dir=tmp_path, capacity_bytes=1_000_000) as writer:
        down.wait_for_requests(4)
        assert queue_of(writer).held_bytes <= 3_000_000
        down.healthy()
        assert writer.drain_spool(30)
    assert numbers_in(down) == list(range(100))


def test_a_full_file_is_followed_by_another_and_deleted_when_delivered(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SEGMENT_BYTES", 2000)
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
        assert any("the spool is full" in text for text in records.texts(logging.WARNING))
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
    waiting: list[Any] = []
    with open_spool(tmp_path, max_bytes=40_000) as spool:
        for number in range(1000):
            new = row(number)
            assert not spool.store.is_full(encode_line(new))
            assert spool.store.append(encode_line(new), new)
            waiting.append(new)
            if len(waiting) == 20:  # never all of it
                spool.acknowledge(waiting[:10])
                del waiting[:10]
        spool.acknowledge(waiting)


# Options


def test_full_sync_forces_each_event_to_disk_before_the_call_returns(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[bytes] = []

    def force(descriptor: int) -> None:
        forced.append(os.pread(descriptor, 100_000, 0))

    monkeypatch.setattr(segment, "force_to_disk", force)
    with running_writer(spool_dir=tmp_path, spool_sync="full") as writer:
        for number in range(3):
            writer.submit(make_event(number))
            assert forced[-1].count(b'"event_id"') == number + 1
        assert len(forced) == 4  # the header, too
        down.healthy()


def test_normal_sync_leaves_it_to_the_system(
    down: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "force_to_disk", lambda _: pytest.fail("forced"))
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
