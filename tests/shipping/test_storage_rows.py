"""Rows over real gRPC, through the shipper: what is refused, and how many streams are made."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from harness import eventually
from lorc_eventlog.bigquery.storage_stream import StreamClient
from lorc_eventlog.bigquery.transport import Failure, Reason
from lorc_eventlog.delivery import suspicion
from lorc_eventlog.delivery.batch import Verdict
from lorc_eventlog.delivery.queue import DeliveryQueue
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.events.row import row_at
from lorc_eventlog.shipping import requirements
from lorc_eventlog.shipping.requirements import UnfitError
from lorc_eventlog.shipping.service import Settings, Shipper
from lorc_eventlog.spool.directory import Access
from lorc_eventlog.spool.format import encode_line
from lorc_eventlog.spool.shipped import SegmentAppender
from scripted_storage import InAnswer, ScriptedStorage

TABLE = "dataset.events"
SECRET = "Kidney"


@contextmanager
def storage(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[ScriptedStorage]:
    with ScriptedStorage(**options) as server:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", server.address)
        yield server


def write(path: Path, numbers: range, poisonous: Collection[int] = ()) -> None:
    """Write events as a process that has ended."""
    appender = SegmentAppender(
        path, access=Access.OWNER, table=TABLE, max_bytes=2**30, durable=False, notes=Notes()
    )
    for number in numbers:
        payload: dict[str, Any] = {"number": number, "text": SECRET}
        if number in poisonous:
            payload["poison"] = SECRET
        row = row_at(time.time(), "test.happened", payload, "tests", subject_id=SECRET)
        appender.append(encode_line(row), time.monotonic())
    appender.abandon()


def ship(path: Path, *, exactly_once: bool, **settings: Any) -> tuple[int, int]:
    """Ship until the directory is empty; how many events were delivered, and rejected."""
    shipper = Shipper(
        Settings(
            path, TABLE, interval=0.05, transport="grpc", exactly_once=exactly_once, **settings
        )
    )
    shipper.start()
    try:
        assert shipper.wait_until(lambda progress: progress.is_empty, 120), shipper.progress()
        return shipper.progress().delivered, shipper.progress().rejected
    finally:
        shipper.stop_reading()
        shipper.close()


@pytest.mark.parametrize("exactly_once", [False, True], ids=["default stream", "exactly once"])
@pytest.mark.parametrize(
    ("poisonous", "most_row_errors"),
    [({299}, 1000), ({0, 7, 100, 299, 599}, 2)],
    ids=["one row", "a list cut short"],
)
def test_of_600_rows_the_poisonous_are_dead_letters_and_the_others_are_stored_once(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    poisonous: set[int],
    most_row_errors: int,
    *,
    exactly_once: bool,
) -> None:
    write(path, range(600), poisonous)
    with storage(monkeypatch, most_row_errors=most_row_errors) as server:
        assert ship(path, exactly_once=exactly_once, batch_rows=600) == (
            600 - len(poisonous),
            len(poisonous),
        )
        assert server.numbers() == [n for n in range(600) if n not in poisonous]
        assert max(request.rows for request in server.requests) == 600
    letters = [json.loads(line) for line in (path / "dead-letters.jsonl").read_text().splitlines()]
    assert {letter["event"]["payload"]["number"] for letter in letters} == poisonous
    assert len(letters) == len(poisonous)
    assert "BigQuery refuses the row: Field payload: invalid JSON value." in caplog.text
    assert SECRET not in caplog.text


def test_a_stream_is_made_at_the_start_and_for_each_fence_and_for_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with storage(monkeypatch) as server:
        write(path, range(10))
        ship(path, exactly_once=True)
        assert server.calls["CreateWriteStream"] == 1
        write(path, range(10, 20))
        ship(path, exactly_once=True)  # it goes on with its stream
        assert server.calls["CreateWriteStream"] == 1
        # A late copy, and then a refusal: only the fence tells what became of the rows.
        for fences in (1, 2):
            server.script(
                InAnswer(StatusCode.ALREADY_EXISTS, "expected offset 9, received 0"),
            )
            write(path, range(20 + 10 * fences, 30 + 10 * fences))
            ship(path, exactly_once=True)
            assert server.calls["FinalizeWriteStream"] == fences
            assert server.calls["CreateWriteStream"] == 1 + fences
        assert server.numbers() == [*range(20), *range(30, 50)]


@pytest.mark.parametrize("is_late", [False, True], ids=["never stored", "stored late"])
def test_a_row_that_breaks_each_request_is_a_dead_letter_or_stored_and_costs_no_other_row(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, is_late: bool
) -> None:
    """When it is given up, nobody knows what becomes of its last copy."""
    monkeypatch.setattr(suspicion, "PATIENCE_WITH_A_ROW", 0.0)
    append, failed = StreamClient.append, DeliveryQueue.failed
    copies: list[tuple[Any, ...]] = []
    dead: list[object] = []

    def break_it(client: StreamClient, stream: str, offset: int, rows: Any, timeout: float) -> Any:
        if b'"number":5,' not in rows.data:
            return append(client, stream, offset, rows, timeout)
        copies.append((client, stream, offset, rows, 10.0))
        if dead:  # it is mended now
            return append(*copies[-1])
        return Failure(Reason("INTERNAL"), None, may_be_the_rows=True, stored="unknown")

    def note(*arguments: Any, **times: Any) -> Verdict:
        verdict = failed(*arguments, **times)
        dead.extend(verdict.dead)
        if verdict.dead and is_late:
            append(*copies[-1])
        return verdict

    finalize = StreamClient.finalize
    fences: list[str] = []

    def finalize_late(client: StreamClient, stream: str, timeout: float) -> Any:
        fences.extend([stream] * bool(dead))
        if 0 < len(fences) < 4:
            return Failure(Reason("no answer"), None, may_be_the_rows=False, stored="unknown")
        return finalize(client, stream, timeout)

    monkeypatch.setattr(StreamClient, "finalize", finalize_late)
    monkeypatch.setattr(StreamClient, "append", break_it)
    monkeypatch.setattr(DeliveryQueue, "failed", note)
    with storage(monkeypatch) as server:
        write(path, range(10))
        settings = Settings(path, TABLE, interval=0.05, transport="grpc", exactly_once=True)
        shipper = Shipper(settings)
        shipper.start()

        def is_known(count: int) -> bool:
            return bool(dead) or shipper.progress().delivered >= count

        numbers = iter(range(10, 200))
        while not dead:
            number = next(numbers)
            write(path, range(number, number + 1))
            eventually(partial(is_known, number), 60)
        assert shipper.wait_until(lambda progress: progress.is_empty, 60), shipper.progress()
        delivered, rejected = shipper.progress().delivered, shipper.progress().rejected
        shipper.close()
        stored = sorted(server.numbers())
    assert (delivered, rejected) == (len(stored), not is_late)
    letters = (path / "dead-letters.jsonl").read_text().splitlines()
    assert (stored.count(5), len(letters)) == ((1, 0) if is_late else (0, 1))
    assert [n for n in stored if n != 5] == [n for n in range(number + 1) if n != 5]


def is_delivered(shipper: Shipper, count: int) -> bool:
    return shipper.progress().delivered == count


@pytest.mark.parametrize("exactly_once", [False, True], ids=["default stream", "exactly once"])
def test_a_restart_of_the_server_is_waited_out(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, exactly_once: bool
) -> None:
    with storage(monkeypatch) as server:
        settings = Settings(
            path, TABLE, interval=0.05, transport="grpc", exactly_once=exactly_once, batch_rows=10
        )
        shipper = Shipper(settings)
        shipper.start()
        for start in (0, 50, 100):
            write(path, range(start, start + 50))
            eventually(partial(is_delivered, shipper, start + 50), 60)
            server.restart()
        shipper.stop_reading()
        shipper.close()
        assert server.numbers() == [*range(150)]
        assert server.calls["CreateWriteStream"] == exactly_once


def test_a_shipper_without_events_makes_no_stream(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with storage(monkeypatch) as server:
        ship(path, exactly_once=True)
        assert server.calls == {}


def test_a_finalize_that_tells_its_count_only_once_keeps_nobody_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with storage(monkeypatch) as server:
        write(path, range(3))
        ship(path, exactly_once=True)
        server.counts_once = True
        (stream,) = server.streams.values()
        stream.is_finalized = True  # by a shipper that was killed before its ledger knew
        write(path, range(3, 6))
        ship(path, exactly_once=True)
        assert server.numbers() == [0, 1, 2, 3, 4, 5]
        assert server.calls["CreateWriteStream"] == 2
    assert "may be twice" not in caplog.text  # no copy was without an answer


@pytest.mark.parametrize(
    ("table", "kind", "words"),
    [
        ("dataset.events$20261124", "ext4", "names the partition"),
        (TABLE, "fuse.sshfs", "is on a network file system"),
    ],
)
def test_exactly_once_is_refused_where_it_cannot_be_had(
    path: Path, monkeypatch: pytest.MonkeyPatch, table: str, kind: str, words: str
) -> None:
    monkeypatch.setattr(requirements, "file_system", lambda _: kind)
    with pytest.raises(UnfitError, match=words):
        Shipper(Settings(path, table, transport="grpc", exactly_once=True))
    Shipper(Settings(path, table, transport="grpc")).close()
