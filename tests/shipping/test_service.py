"""The shipper as a whole: from segments on disk to BigQuery, over real HTTP and real gRPC."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from clients import Query
from emulator import Emulator
from harness import Records, eventually
from lorc_eventlog import Envelope
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.events.row import row_at
from lorc_eventlog.shipping import metrics as metrics_module
from lorc_eventlog.shipping import service as service_module
from lorc_eventlog.shipping.dead_letters import DeadLetterFile
from lorc_eventlog.shipping.lock import AnotherShipperError
from lorc_eventlog.shipping.metrics import serving
from lorc_eventlog.shipping.service import Settings, Shipper
from lorc_eventlog.spool.directory import Directory, UntrustedError
from lorc_eventlog.spool.format import encode_line
from lorc_eventlog.spool.shipped import SegmentAppender
from scripted_bigquery import ScriptedBigQuery, reset_after_storing, status
from scripted_storage import Cut, ScriptedStorage
from shippers import TABLE, make_appender, shipping


def append(appender: SegmentAppender, numbers: range, **payload: Any) -> None:
    for number in numbers:
        row = row_at(time.time(), "test.happened", {"number": number, **payload}, "tests")
        appender.append(encode_line(row), time.monotonic())


def numbers_in(server: ScriptedBigQuery) -> list[int]:
    return sorted(event["payload"]["number"] for event in server.events())


def test_events_of_a_living_process_arrive_and_their_segment_goes_with_it(
    scripted: ScriptedBigQuery, path: Path, appender: SegmentAppender
) -> None:
    append(appender, range(1000))
    with shipping(path) as shipper:
        assert shipper.wait_until(lambda progress: progress.delivered == 1000, 20)
        append(appender, range(1000, 1100))
        assert shipper.wait_until(lambda progress: progress.delivered == 1100, 20)
        assert not shipper.progress().is_empty
        appender.close_segment()
        assert shipper.wait_until(lambda progress: progress.is_empty, 20)
    assert numbers_in(scripted) == [*range(1100)]
    assert list(path.glob("*.ship")) == []


def test_an_outage_is_waited_out(
    scripted: ScriptedBigQuery, path: Path, appender: SegmentAppender
) -> None:
    scripted.script(status(503), reset_after_storing(), status(500), status(429))
    append(appender, range(50))
    with shipping(path) as shipper:
        assert shipper.wait_until(lambda progress: progress.delivered == 50, 60)
        progress = shipper.progress()
        assert progress.retries > 0
        assert progress.last_success is not None
    assert sorted(set(numbers_in(scripted))) == [*range(50)]


def test_a_thread_that_cannot_be_started_is_tried_again(
    scripted: ScriptedBigQuery,
    path: Path,
    appender: SegmentAppender,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append(appender, range(5))
    start = threading.Thread.start
    tries: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        if "sender" not in thread.name:
            start(thread)
            return
        tries.append(thread.name)
        raise RuntimeError("can't start new thread")

    with Records() as records, monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        with shipping(path) as shipper:
            shipper.start()
            assert len(tries) == 2
            assert str(records.texts(40)).count("lets the shipper start a thread") == 1
            limited.undo()
            shipper.start()
            assert shipper.wait_until(lambda progress: progress.delivered == 5, 20)
    assert numbers_in(scripted) == [*range(5)]


def test_a_refused_event_is_a_dead_letter_that_only_its_owner_can_read(
    scripted: ScriptedBigQuery, path: Path, appender: SegmentAppender, tmp_path: Path
) -> None:
    scripted.refuse_row(lambda row: "bad" in row["payload"])
    append(appender, range(3))
    append(appender, range(3, 4), bad=True)
    letters = tmp_path / "letters.jsonl"
    appender.close_segment()
    with shipping(path, dead_letters=letters) as shipper:
        assert shipper.wait_until(lambda progress: progress.is_empty, 20)
        assert (shipper.progress().delivered, shipper.progress().rejected) == (3, 1)
    (line,) = letters.read_text().splitlines()
    letter = json.loads(line)
    assert letter["event"]["payload"] == {"number": 3, "bad": True}
    assert letter["reason"]
    assert stat.S_IMODE(letters.stat().st_mode) == 0o600
    assert list(path.glob("*.ship")) == []


def test_a_disk_that_takes_no_dead_letters_keeps_the_event_in_the_spool(
    scripted: ScriptedBigQuery,
    path: Path,
    appender: SegmentAppender,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted.refuse_row(lambda row: "bad" in row["payload"])
    append(appender, range(1))
    append(appender, range(1, 2), bad=True)
    appender.close_segment()
    with Records() as records, monkeypatch.context() as broken:
        broken.setattr(os, "write", lambda *_: 0)
        with shipping(path) as shipper:
            assert shipper.wait_until(lambda progress: progress.delivered == 1, 20)
            eventually(lambda: "takes no dead letters" in str(records.texts(40)))
    (segment,) = path.glob("*.ship")
    assert b'"bad":true' in segment.read_bytes().replace(b"\\", b"")
    with shipping(path) as shipper:
        assert shipper.wait_until(lambda progress: progress.waiting == 1, 20)


def test_a_dead_letter_waits_until_the_disk_takes_it(
    scripted: ScriptedBigQuery,
    path: Path,
    appender: SegmentAppender,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted.refuse_row(lambda row: "bad" in row["payload"])
    append(appender, range(1))
    append(appender, range(1, 2), bad=True)
    appender.close_segment()
    tries: list[Envelope] = []
    write = DeadLetterFile.append

    def refuse_twice(letters: DeadLetterFile, envelope: Envelope, reason: str) -> None:
        tries.append(envelope)
        if len(tries) < 3:
            raise OSError(5, "Input/output error")
        write(letters, envelope, reason)

    monkeypatch.setattr(DeadLetterFile, "append", refuse_twice)
    with Records() as records, shipping(path) as shipper:
        assert shipper.wait_until(lambda progress: progress.is_empty, 30)
        assert shipper.progress().rejected == 1
    assert len([text for text in records.texts(40) if "takes no dead letters" in text]) == 1
    assert len((path / "dead-letters.jsonl").read_text().splitlines()) == 1


def test_a_second_shipper_is_refused_and_told_who_has_the_directory(
    scripted: ScriptedBigQuery, path: Path
) -> None:
    del scripted  # it must be there
    settings = Settings(directory=path, table=TABLE)
    with shipping(path):
        with pytest.raises(AnotherShipperError, match=f"process {os.getpid()} ships from"):
            Shipper(settings)
        other = Shipper(Settings(directory=path, table="dataset.others"))
        other.close()
    Shipper(settings).close()


def test_a_shipper_whose_lock_is_gone_is_lost(scripted: ScriptedBigQuery, path: Path) -> None:
    """A second one could ship the same events: ``rm`` of everything that is no segment."""
    del scripted  # it must be there
    with shipping(path) as shipper:
        assert not shipper.is_lost
        (lock,) = path.glob("*.lock")
        lock.unlink()
        assert shipper.is_lost
        with shipping(path) as other:
            assert shipper.is_lost
            assert not other.is_lost


def test_a_shipper_whose_ledger_is_gone_is_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one would not know what this one was sending when it was killed."""
    with ScriptedStorage() as server:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", server.address)
        with shipping(path, transport="grpc", exactly_once=True) as shipper:
            assert not shipper.is_lost
            (ledger,) = path.glob("*.ledger")
            ledger.unlink()
            assert shipper.is_lost


def test_a_lock_that_cannot_be_looked_at_is_not_gone(
    scripted: ScriptedBigQuery, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del scripted  # it must be there

    def refuse(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with shipping(path) as shipper:
        assert shipper.wait_until(lambda progress: progress.looks > 0, 20)
        with monkeypatch.context() as broken:
            broken.setattr(Directory, "holds", refuse)
            assert not shipper.is_lost


def test_a_shipper_with_requests_on_their_way_keeps_its_lock(
    scripted: ScriptedBigQuery, path: Path, appender: SegmentAppender
) -> None:
    """Its threads send and erase until the process ends: nobody else may ship until then."""
    scripted.always(status(503))
    append(appender, range(1))
    settings = Settings(directory=path, table=TABLE)
    shipper = Shipper(settings)
    shipper.start()
    assert shipper.wait_until(lambda progress: progress.retries > 0, 20)
    shipper.stop_reading()
    assert not shipper.wait_until(lambda progress: progress.is_settled, 0.1)
    shipper.close()
    with pytest.raises(AnotherShipperError):
        Shipper(settings)
    scripted.healthy()
    eventually(lambda: len(scripted.events()) == 1, 60)


@pytest.mark.parametrize("exactly_once", [False, True])
def test_a_shipper_that_is_closed_leaves_nothing_open(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, exactly_once: bool
) -> None:
    with ScriptedStorage() as server:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", server.address)
        # gRPC keeps what the first connection begins.
        counts = [ship_one(path, number, exactly_once=exactly_once) for number in range(6)]
    assert max(counts[3:]) <= counts[1]


def ship_one(path: Path, number: int, *, exactly_once: bool) -> int:
    """Ship one event; how many descriptors are open afterwards."""
    appender = make_appender(path, Notes())
    append(appender, range(number, number + 1))
    appender.abandon()
    with shipping(path, transport="grpc", exactly_once=exactly_once) as shipper:
        assert shipper.wait_until(lambda progress: progress.is_empty, 20)
    own = map(os.path.realpath, Path("/proc/self/fd").iterdir())
    return len([file for file in own if file.startswith(str(path))])


def test_clients_of_the_metrics_that_ask_nothing_are_let_go(
    scripted: ScriptedBigQuery, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del scripted  # it must be there
    monkeypatch.setattr(metrics_module, "REQUEST_TIMEOUT", 0.1)
    port = free_port()
    with (
        shipping(path) as shipper,
        serving(shipper.progress, "127.0.0.1", port),
        socket.create_connection(("127.0.0.1", port)) as silent,
    ):
        silent.settimeout(20)
        assert silent.recv(1) == b""


def test_a_directory_that_everybody_may_write_to_is_refused(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)
    with pytest.raises(UntrustedError, match="chmod o-w"):
        Shipper(Settings(directory=path, table=TABLE))


def test_memory_holds_no_more_than_its_capacity_while_bigquery_is_away(
    scripted: ScriptedBigQuery,
    path: Path,
    appender: SegmentAppender,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_module, "CAPACITY", 200)
    scripted.script(*[status(503)] * 4)
    append(appender, range(3000))
    with shipping(path, batch_rows=50) as shipper:
        most = 0

        def watch(progress: service_module.Progress) -> bool:
            nonlocal most
            most = max(most, progress.waiting)
            return progress.delivered == 3000

        assert shipper.wait_until(watch, 60)
        assert most <= 200
    assert numbers_in(scripted) == [*range(3000)]


def test_the_metrics_are_prometheus_text_on_the_address_that_was_asked_for(
    scripted: ScriptedBigQuery, path: Path, appender: SegmentAppender
) -> None:
    del scripted  # it must be there
    append(appender, range(7))
    with shipping(path) as shipper:
        assert shipper.wait_until(lambda progress: progress.delivered == 7, 20)
        port = free_port()
        with serving(shipper.progress, "127.0.0.1", port):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                text = answer.read().decode()
            with pytest.raises(urllib.error.HTTPError) as missing:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/other")
            missing.value.close()
            with (
                pytest.raises(OSError, match="in use"),
                serving(shipper.progress, "127.0.0.1", port),
            ):
                pass
    assert "lorc_eventlog_ship_delivered_total 7\n" in text
    assert "# TYPE lorc_eventlog_ship_oldest_seconds gauge" in text


def free_port() -> int:

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("exactly_once", [False, True])
def test_grpc_delivers_what_rest_delivers(
    path: Path, appender: SegmentAppender, monkeypatch: pytest.MonkeyPatch, *, exactly_once: bool
) -> None:
    with ScriptedStorage() as server:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", server.address)
        server.script(*[Cut(stored=exactly_once), Cut()] * 2)
        append(appender, range(500))
        append(appender, range(500, 501), poison="x")
        append(appender, range(501, 1000))
        appender.close_segment()
        options = {"transport": "grpc", "exactly_once": exactly_once, "batch_rows": 300}
        with shipping(path, **options) as shipper:
            assert shipper.wait_until(lambda progress: progress.is_empty, 60)
            assert (shipper.progress().delivered, shipper.progress().rejected) == (999, 1)
        assert server.numbers() == [*range(500), *range(501, 1000)]
        assert server.calls["CreateWriteStream"] == int(exactly_once)


def test_a_shipper_that_starts_again_goes_on_with_its_stream(
    path: Path, appender: SegmentAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedStorage() as server:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", server.address)
        for start in range(0, 300, 100):
            append(appender, range(start, start + 100))
            with shipping(path, transport="grpc", exactly_once=True) as shipper:
                assert shipper.wait_until(lambda progress: progress.delivered == 100, 60)
        assert server.numbers() == [*range(300)]
        assert server.calls["CreateWriteStream"] == 1


@pytest.mark.parametrize(
    "settings",
    [{}, {"transport": "grpc"}, {"transport": "grpc", "exactly_once": True}],
    ids=["rest", "grpc", "exactly once"],
)
def test_every_transport_delivers_to_an_emulator_that_others_wrote(
    whole_emulator: Emulator,
    events_table: str,
    query: Query,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", whole_emulator.storage)
    appender = make_appender(path, Notes(), table=events_table)
    append(appender, range(200))
    appender.close_segment()
    with shipping(path, table=events_table, **settings) as shipper:
        assert shipper.wait_until(lambda progress: progress.is_empty, 60), shipper.progress()
    numbers = "ARRAY_AGG(DISTINCT INT64(payload.number)) AS numbers"
    (found,) = query(f"SELECT COUNT(*) AS n, {numbers} FROM events")
    assert (found["n"], sorted(found["numbers"])) == (200, [*range(200)])
    appender.abandon()
