"""spool_only: the log call writes a line, and that is all."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import (
    Records,
    assert_adds_up,
    environment,
    eventually,
    fork_and_wait,
    make_event,
    submit_events,
    threads,
)
from lorc_eventlog import BigQueryEventHandler, BigQueryEventProcessor, EventWriter, WriterStats
from lorc_eventlog.bigquery.table import events_table
from lorc_eventlog.delivery import spool_only as spool_only_module
from lorc_eventlog.lifecycle import clock, fork
from lorc_eventlog.spool import shipped
from lorc_eventlog.spool.format import decode_line
from lorc_eventlog.spool.shipped import lock_name
from lorc_eventlog.testing import capture_events


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "dataset")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def make_writer(path: Path, **options: Any) -> EventWriter:
    return EventWriter(spool_dir=path, spool_only=True, **options)


def rows(path: Path) -> list[dict[str, Any]]:
    found = []
    for segment in sorted(path.glob("*.ship")):
        for line in segment.read_bytes().splitlines()[1:]:
            row = decode_line(line)
            assert row is not None
            found.append(row)
    return found


def numbers(path: Path) -> list[int]:
    return sorted(json.loads(row["payload"])["number"] for row in rows(path))


def test_an_event_is_a_line_on_disk_when_the_call_returns(path: Path) -> None:
    writer = make_writer(path)
    event = make_event(1)
    writer.submit(event)
    assert rows(path) == [{**event, "payload": json.dumps(event["payload"], separators=(",", ":"))}]
    assert writer.stats() == WriterStats(1, 0, 0, 0, 0, 0, 1, None)
    assert writer.flush()
    writer.close()
    writer.submit(make_event(2))
    assert numbers(path) == [1, 2]


@pytest.mark.parametrize("make", [BigQueryEventHandler, BigQueryEventProcessor])
def test_handler_and_processor_take_the_option(path: Path, make: Any) -> None:
    adapter = make(source="tests", spool_dir=path, spool_only=True)
    if make is BigQueryEventHandler:
        logger = logging.getLogger("spool only")
        logger.setLevel(logging.INFO)
        logger.addHandler(adapter)
        logger.info("x", extra={"event_type": "test", "payload": {"number": 1}})
        logger.removeHandler(adapter)
    else:
        adapter(None, "info", {"event_type": "test", "payload": {"number": 1}})
    assert adapter.flush()
    adapter.close()
    assert numbers(path) == [1]


def test_options_that_do_not_fit_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="spool_only needs spool_dir"):
        EventWriter(spool_only=True)
    with pytest.raises(ValueError, match="spool_mode"):
        EventWriter(spool_dir=path, spool_mode="group")
    with pytest.raises(ValueError, match='"private" or "group"'):
        make_writer(path, spool_mode="all")
    with pytest.raises(ValueError, match="true or false"):
        EventWriter(spool_dir=path, spool_only=1)  # type: ignore[arg-type]

    class Client:
        def insert_rows_json(self) -> None: ...

    with pytest.raises(ValueError, match="bq_client would have no effect"):
        EventWriter(Client(), spool_dir=path, spool_only=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lorc-eventlog ship"):
        make_writer(path).drain_spool()


def test_nothing_that_speaks_to_bigquery_is_imported_and_no_thread_is_started(path: Path) -> None:
    code = f"""
import logging, sys, threading
from lorc_eventlog import BigQueryEventHandler
handler = BigQueryEventHandler(source="s", spool_dir={str(path)!r}, spool_only=True)
logger = logging.getLogger("a"); logger.setLevel(20); logger.addHandler(handler)
logger.info("x", extra={{"event_type": "t", "payload": {{"number": 1}}}})
unwanted = {{"google.cloud.bigquery", "requests", "grpc", "urllib3"}}
print(threading.active_count(), unwanted & {{*sys.modules}})
"""
    said = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment())
    assert said == "1 set()\n"
    assert numbers(path) == [1]


def test_many_threads_write_whole_lines(path: Path) -> None:
    writer = make_writer(path)
    with threads(8, lambda index: submit_events(writer, range(index * 500, index * 500 + 500))):
        pass
    assert numbers(path) == [*range(4000)]
    assert writer.stats().spooled == 4000


def test_a_captured_event_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVENTS_BQ_TABLE")
    with capture_events() as events:
        writer = make_writer(path)
        writer.submit(make_event(1))
        assert writer.stats().submitted == 0
    assert len(events) == 1
    with pytest.raises(RuntimeError, match="EVENTS_BQ_TABLE"):
        writer.submit(make_event(2))
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    writer.submit(make_event(3))
    assert numbers(path) == [3]


def test_a_child_of_a_fork_writes_a_segment_of_its_own(path: Path) -> None:
    writer = make_writer(path)
    writer.submit(make_event(0))

    def in_child() -> bool:
        submit_events(writer, range(1, 4))
        return writer.stats().spooled == 3

    assert fork_and_wait(in_child) == 0
    assert numbers(path) == [0, 1, 2, 3]
    assert len(list(path.glob("*.ship"))) == 2


def test_a_child_of_a_fork_before_the_first_event_begins_by_itself(path: Path) -> None:
    with capture_events():
        writer = make_writer(path)

    def in_child() -> bool:
        writer.submit(make_event(1))
        return writer.stats().spooled == 1

    assert fork_and_wait(in_child) == 0
    assert numbers(path) == [1]


def test_a_child_that_never_logs_began_nothing(path: Path) -> None:
    writer = make_writer(path)
    assert fork_and_wait(lambda: writer.stats().submitted == 0) == 0
    assert not path.exists()


def test_a_full_spool_drops_and_says_how_many_are_lost(path: Path) -> None:
    writer = make_writer(path, spool_max_bytes=1500)
    with Records() as records:
        submit_events(writer, range(20))
        assert not writer.flush()
    stats = writer.stats()
    assert_adds_up(stats)
    assert stats.dropped > 0
    assert stats.spooled == len(rows(path))
    (warning,) = records.texts(logging.WARNING)
    assert warning.startswith("lost 1 event: ")
    assert "spool_max_bytes" in warning


def test_overflow_block_waits_until_the_shipper_has_made_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_only_module, "POLL_SECONDS", 0.01)
    writer = make_writer(path, spool_max_bytes=3000, overflow="block")
    while writer.stats().spooled < 6:
        writer.submit(make_event(writer.stats().spooled))

    with threads(1, lambda _: submit_events(writer, range(100, 110))):
        eventually(lambda: len(list(path.glob("*.ship"))) > 2)
        while writer.stats().spooled < 16:
            for segment in sorted(path.glob("*.ship"))[:-1]:
                segment.unlink()
            time.sleep(0.01)
    assert writer.stats().dropped == 0


def test_overflow_block_looks_again_and_again_whether_there_is_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, pauses = [time.monotonic()], [0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        pauses[0] += 1
        if pauses[0] % 3 == 0:
            for segment in sorted(path.glob("*.ship"))[:-1]:
                segment.unlink()

    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    monkeypatch.setattr(spool_only_module, "time", SimpleNamespace(sleep=sleep))
    writer = make_writer(path, spool_max_bytes=3000, overflow="block")
    submit_events(writer, range(20))
    assert pauses[0] >= 3
    assert (writer.stats().spooled, writer.stats().dropped) == (20, 0)


def test_overflow_block_does_not_wait_for_what_is_not_about_room(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)
    writer = make_writer(path, overflow="block")
    with Records() as records:
        writer.submit(make_event(1))
    assert writer.stats().dropped == 1
    assert "chmod o-w" in records.texts(logging.WARNING)[0]


def test_a_directory_that_nobody_ships_is_reported_once_a_minute(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = make_writer(path)
    started = time.monotonic()
    with Records() as records:
        for seconds in (0, 30, 61, 62, 90, 130):
            now = started + seconds
            monkeypatch.setattr(clock, "monotonic", lambda now=now: now)
            writer.submit(make_event(seconds))
    warnings = records.texts(logging.WARNING)
    assert len(warnings) == 2
    assert f"lorc-eventlog ship {path}" in warnings[0]


def test_a_directory_that_a_shipper_has_is_not_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = make_writer(path)
    writer.submit(make_event(0))
    lock = path / lock_name(events_table())
    lock.touch(mode=0o600)
    later = time.monotonic() + 61
    monkeypatch.setattr(clock, "monotonic", lambda: later)
    with lock.open("r+") as shipper, Records() as records:
        fcntl.flock(shipper, fcntl.LOCK_EX)
        writer.submit(make_event(1))
    assert records.records == []


def test_a_disk_that_cannot_be_forced_is_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(5, "Input/output error")

    writer = make_writer(path)
    writer.submit(make_event(1))
    monkeypatch.setattr(shipped, "force_to_disk", refuse)
    with Records() as records:
        assert not writer.flush()
    assert "Input/output error" in records.texts(logging.ERROR)[0]


def refuse_once(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let forcing fail once; then the kernel takes all for written, and says that all is well."""
    codes = [code]

    def force(_: int) -> None:
        if codes:
            raise OSError(codes[0], os.strerror(codes.pop()))

    monkeypatch.setattr(shipped, "force_to_disk", force)


@pytest.mark.parametrize("overflow", ["drop", "block"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_an_event_that_is_written_and_not_forced_is_there_once_and_not_called_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch, overflow: str, code: int
) -> None:
    writer = make_writer(path, spool_sync="full", overflow=overflow)
    writer.submit(make_event(0))
    refuse_once(monkeypatch, code)
    with Records() as records:
        submit_events(writer, range(1, 3))
    assert [json.loads(row["payload"])["number"] for row in rows(path)] == [0, 1, 2]
    assert writer.stats().spooled == 3
    assert writer.stats().last_error == os.strerror(code)
    (told,) = records.texts(logging.ERROR)
    assert "cannot be forced to the disk" in told
    assert not writer.flush()


def test_a_disk_that_goes_on_refusing_to_force_is_reported_once_in_a_while(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = make_writer(path, spool_sync="full")
    monkeypatch.setattr(shipped, "force_to_disk", lambda _: os.fsync(99_999))
    with Records() as records:
        submit_events(writer, range(3))
    assert len(records.texts(logging.ERROR)) == 1
    assert writer.stats().spooled == 3


def test_what_could_not_be_forced_is_not_called_forced_by_a_second_flush(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = make_writer(path)
    writer.submit(make_event(0))
    refuse_once(monkeypatch, errno.EIO)
    assert not writer.flush()
    assert not writer.flush()


def test_a_second_thread_finds_the_table_found(path: Path) -> None:
    writer = make_writer(path)
    current = writer._dispatchers.current
    writer._dispatchers.begin()
    writer._dispatchers._begin()
    assert writer._dispatchers.current is current
    current.notice()  # there is no inbox to look into
    assert fork.has_forked() is False


def test_a_group_shares_the_directory(path: Path) -> None:
    writer = make_writer(path, spool_mode="group")
    writer.submit(make_event(1))
    (segment,) = path.glob("*.ship")
    assert (path.stat().st_mode & 0o7777, segment.stat().st_mode & 0o777) == (0o2770, 0o660)
