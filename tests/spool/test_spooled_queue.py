"""The queue with disk behind it: whatever happens in whatever order, nothing is lost or doubled."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from harness import Records
from lorc_eventlog.bigquery.insert_all import LIMITS
from lorc_eventlog.bigquery.transport import Answer, Failure, Reason, RefusedRow
from lorc_eventlog.delivery.batch import Batch, Bounds
from lorc_eventlog.delivery.spooled_queue import SpooledQueue
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.events.row import Row
from lorc_eventlog.lifecycle import descriptors
from lorc_eventlog.spool import store
from lorc_eventlog.spool.format import HEADER
from lorc_eventlog.spool.spool import Spool
from lorc_eventlog.spool.survey import survey
from spools import EMPTY, TABLE, content, failing, line, names, number_of, row, segment_of_the_dead

FAILED = Failure(Reason("down"), what_to_do=None, may_be_the_rows=False, stored="no")


class Interruption(BaseException):
    """What a signal handler raises."""


def make_queue(directory: Path, *, max_bytes: int = 2**30, **options: Any) -> SpooledQueue:
    spool = Spool(directory, table=TABLE, max_bytes=max_bytes, durable=False, notes=Notes())
    return SpooledQueue(spool, Bounds(4, 0.0, 8, 2**20, LIMITS)._replace(**options))


def work(queue: SpooledQueue, now: float = 0.0) -> list[Row]:
    """Do what is to be done until nothing is; the rows in the order in which they are sent."""
    sent: list[Row] = []
    while True:
        take = queue.take(now, alone=False)
        if take.chore is not None:
            queue.chore_done(take.chore(), now)
        elif take.batch is not None:
            sent += take.batch.rows
            queue.succeeded(take.batch, Answer(), now)
        else:
            return sent


def numbers(rows: list[Row]) -> list[int]:
    return [number_of(each) for each in rows]


@pytest.fixture
def queue(tmp_path: Path) -> SpooledQueue:
    return make_queue(tmp_path)


def test_what_memory_does_not_hold_is_on_disk_and_sent_in_its_order(
    queue: SpooledQueue, tmp_path: Path
) -> None:
    for number in range(50):
        assert queue.accept(row(number), 0.0)
    assert (queue.held, queue.kept) == (50, 50)
    assert numbers(work(queue)) == list(range(50))
    assert (queue.held, queue.kept) == (0, 0)
    assert content(tmp_path) == EMPTY


def test_chores_and_batches_come_by_turns(queue: SpooledQueue, tmp_path: Path) -> None:
    segment_of_the_dead(tmp_path, HEADER + b"".join(map(line, range(100))))
    for number in range(8):
        assert queue.accept(row(number), 0.0)
    kinds = []
    for _ in range(6):
        take = queue.take(0.0, alone=False)
        if take.chore is not None:
            queue.chore_done(take.chore(), 0.0)
        if take.batch is not None:
            queue.succeeded(take.batch, Answer(), 0.0)
        kinds.append("chore" if take.chore else "batch" if take.batch else "wait")
    assert kinds == ["batch", "chore", "batch", "chore", "batch", "chore"]


def test_one_chore_at_a_time_is_handed_out(queue: SpooledQueue, tmp_path: Path) -> None:
    segment_of_the_dead(tmp_path, HEADER + b"".join(map(line, range(3))))
    chore = queue.take(0.0, alone=False).chore
    assert chore is not None
    other = queue.take(0.0, alone=False)
    assert (other.chore, other.batch) == (None, None)
    assert other.wait == 60.0
    queue.chore_done(chore(), 0.0)
    assert numbers(work(queue)) == [0, 1, 2]
    assert names(tmp_path) == []


def test_a_chore_that_is_interrupted_is_done_again(queue: SpooledQueue, tmp_path: Path) -> None:
    segment_of_the_dead(tmp_path, HEADER + b"".join(map(line, range(3))))
    assert queue.take(0.0, alone=False).chore is not None
    assert queue.chore_done(None, 0.0) == 0
    assert work(queue, 0.5) == []
    assert queue.take(0.5, alone=False).wait == 0.5
    assert numbers(work(queue, 1.0)) == [0, 1, 2]


def test_a_chore_that_is_interrupted_after_its_work_doubles_nothing(
    queue: SpooledQueue, tmp_path: Path
) -> None:
    segment_of_the_dead(tmp_path, HEADER + b"".join(map(line, range(3))))
    chore = queue.take(0.0, alone=False).chore
    assert chore is not None
    chore()
    queue.chore_done(None, 0.0)
    assert numbers(work(queue, 1.0)) == [0, 1, 2]


def test_a_chore_that_fails_is_reported_and_done_again(
    queue: SpooledQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment_of_the_dead(tmp_path, HEADER + line(0))

    def fail(*_: object) -> None:
        raise MemoryError

    chore = queue.take(0.0, alone=False).chore
    assert chore is not None
    with monkeypatch.context() as patch:
        patch.setattr("lorc_eventlog.spool.orphans.decode_header", fail)
        assert chore() is False
    queue.chore_done(False, 0.0)
    assert work(queue, 0.5) == []
    queue.look_now()
    assert numbers(work(queue, 1.0)) == [0]


def test_a_chore_that_fails_again_and_again_is_reported_once_a_minute(
    queue: SpooledQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    segment_of_the_dead(tmp_path, HEADER + line(0))
    monkeypatch.setattr("lorc_eventlog.spool.orphans.heapq.nsmallest", fail)
    with Records() as records:
        for now in range(3):
            work(queue, float(now))
        queue._spool._report._notes.say()
    (text,) = records.texts(logging.ERROR)
    assert "failed and is tried again: MemoryError" in text


def test_events_of_the_dead_are_sent_without_waiting_for_a_full_batch(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, flush_interval=1000.0)
    segment_of_the_dead(tmp_path, HEADER + line(0))
    assert numbers(work(queue)) == [0]


def test_events_of_the_dead_overtake_own_ones_that_are_only_on_disk(
    queue: SpooledQueue, tmp_path: Path
) -> None:
    segment_of_the_dead(tmp_path, HEADER + b"".join(map(line, range(100, 103))))
    chore = queue.take(0.0, alone=False).chore
    assert chore is not None
    for number in range(10):
        assert queue.accept(row(number), 0.0)
    position = queue.request_flush()
    queue.chore_done(chore(), 0.0)
    assert (position, queue.position, queue.held) == (10, 10, 13)
    assert not queue.holds_only_doubtful
    assert sorted(numbers(work(queue))) == [*range(10), 100, 101, 102]
    assert queue.settled(position)


def test_the_directory_is_looked_into_every_minute(queue: SpooledQueue, tmp_path: Path) -> None:
    assert work(queue) == []
    segment_of_the_dead(tmp_path, HEADER + line(0))
    assert work(queue, 59.0) == []
    assert queue.take(59.0, alone=False).wait == 1.0
    assert numbers(work(queue, 60.0)) == [0]


def test_looking_and_closing_wait_for_the_chore_that_runs(
    queue: SpooledQueue, tmp_path: Path
) -> None:
    for name in ("1-1-a", "2-1-a"):
        segment_of_the_dead(tmp_path, HEADER + b"".join(map(line, range(6))), name=name)
    chore = queue.take(0.0, alone=False).chore
    assert chore is not None
    chore()
    queue.look_now()
    queue.close()()
    assert [each.is_locked for each in survey(tmp_path)] == [True, False]
    assert not queue.is_drained
    queue.chore_done(True, 0.0)
    assert [each.is_locked for each in survey(tmp_path)] == [True, False]  # its rows are in memory
    work(queue)
    assert queue.is_drained
    assert names(tmp_path) == []


def test_a_full_spool_takes_no_row(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, max_bytes=2000)
    taken = 0
    while queue.accept(row(taken), 0.0):
        taken += 1
    assert not queue.accept_nested(row(100))
    assert numbers(work(queue)) == list(range(taken))
    assert queue.accept(row(101), 0.0)


def test_what_the_disk_refuses_goes_by_memory_while_there_is_room(
    queue: SpooledQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing(monkeypatch, "pwrite"):
        accepted = [queue.accept(row(number), 0.0) for number in range(10)]
        assert not queue.accept_nested(row(100))
    assert accepted == [True] * 8 + [False] * 2
    assert (queue.held, queue.kept) == (8, 0)
    assert numbers(work(queue)) == list(range(8))


def test_rows_of_an_inbox_go_to_disk_or_to_memory_if_that_fails(
    queue: SpooledQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert queue.inbox_room == 0
    queue.absorb([row(0)], 0.0)
    assert queue.kept == 1
    with failing(monkeypatch, "pwrite"):
        queue.absorb(list(map(row, range(1, 20))), 0.0)
    assert (queue.held, queue.kept) == (20, 1)
    assert numbers(work(queue)) == list(range(20))


def test_a_flush_waits_for_what_is_on_disk_alone_though_other_rows_overtake_it(
    queue: SpooledQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        assert queue.accept(row(number), 0.0)
    position = queue.request_flush()
    assert position == 12
    batch = queue.take(0.0, alone=False).batch
    assert batch is not None
    queue.succeeded(batch, Answer(), 0.0)
    with failing(monkeypatch, "pwrite"):
        for number in range(12, 16):
            assert queue.accept(row(number), 0.0)
    assert queue.position == 12  # they overtake
    sent = list(batch.rows)
    while not queue.settled(position):
        take = queue.take(0.0, alone=False)
        if take.chore is not None:
            queue.chore_done(take.chore(), 0.0)
        else:
            assert take.batch is not None
            sent += take.batch.rows
            queue.succeeded(take.batch, Answer(), 0.0)
    assert set(range(12)) <= set(numbers(sent))


@pytest.mark.parametrize("when", ["in the write", "in memory", "afterwards"])
def test_a_signal_handler_that_raises_leaves_a_row_out_or_in_and_counted(
    queue: SpooledQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def interrupt(owner: Any, name: str, *, before: bool) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(owner, name, real)
            if not before:
                real(*arguments, **options)
            raise Interruption

        monkeypatch.setattr(owner, name, call)

    assert queue.accept(row(0), 0.0)
    if when == "in the write":
        interrupt(os, "pwrite", before=False)
    else:
        interrupt(queue, "add", before=when == "in memory")
    with pytest.raises(Interruption):
        queue.accept(row(1), 0.0)
    is_in = when == "afterwards"
    assert queue.held == 1 + is_in
    assert sum(each.events for each in survey(tmp_path)) == 1
    assert numbers(work(queue)) == [0, 1][: 1 + is_in]
    assert content(tmp_path) == EMPTY


def test_own_events_that_are_damaged_are_lost_and_a_flush_does_not_wait_for_them(
    queue: SpooledQueue, tmp_path: Path
) -> None:
    for number in range(30):
        assert queue.accept(row(number), 0.0)
    position = queue.request_flush()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b'number\\":20', b'number\\":99'))
    lost = 0
    sent: list[Row] = []
    while not queue.settled(position):
        take = queue.take(0.0, alone=False)
        if take.chore is not None:
            lost += queue.chore_done(take.chore(), 0.0)
        else:
            assert take.batch is not None
            sent += take.batch.rows
            queue.succeeded(take.batch, Answer(), 0.0)
    assert lost == 1
    assert numbers(sent) == [number for number in range(30) if number != 20]
    work(queue)
    assert names(tmp_path) == [path.name + ".damaged"]


# Anything in any order


class Machine(RuleBasedStateMachine):
    """A process that logs, sends, forgets and dies, beside others that died before."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.now = 0.0
        self.count = itertools.count()
        self.in_flight: list[Batch] = []
        self.chore: Callable[[], object] | None = None
        self.chore_has_run = False
        self.submitted: set[str] = set()
        self.own: set[str] = set()
        self.may_be_twice: set[str] = set()
        self.stored: Counter[str] = Counter()
        self.dead: Counter[str] = Counter()
        self.flushes: list[tuple[int, set[str]]] = []
        self.nested: list[Row] = []
        self.disk_is_full = False
        self.disk_was_full = False
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(store, "SEGMENT_BYTES", 1500)
        self.patch.setattr(store, "clock", SimpleNamespace(monotonic=lambda: self.now))
        for name in ("pwrite", "ftruncate", "fchmod", "fstat"):
            self.patch.setattr(os, name, self.interrupted(name))
        self.queue = make_queue(self.directory)

    def interrupted(self, name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any) -> Any:
            if self.disk_is_full and name == "pwrite" and arguments[1].strip():  # no blanks
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            result = real(*arguments)
            while self.nested and name in self.where:
                nested = self.nested.pop()
                if self.queue.accept_nested(nested):
                    self.own.add(nested["event_id"])
                    self.submitted.add(nested["event_id"])
            return result

        return call

    def new_row(self) -> Row:
        return row(next(self.count))

    # The process

    @rule(count=st.integers(1, 12))
    def log(self, count: int) -> None:
        for _ in range(count):
            new = self.new_row()
            if self.queue.accept(new, self.now):
                self.own.add(new["event_id"])
                self.submitted.add(new["event_id"])
            else:
                assert self.disk_was_full

    @rule(where=st.sets(st.sampled_from(["pwrite", "ftruncate", "fchmod", "fstat"]), min_size=1))
    def log_in_the_middle_of_what_comes_next(self, where: set[str]) -> None:
        self.where = where
        self.nested.append(self.new_row())

    @rule()
    def take(self) -> None:
        take = self.queue.take(self.now, alone=False)
        if take.batch is not None:
            self.in_flight.append(take.batch)
        elif take.chore is not None:
            assert self.chore is None
            self.chore, self.chore_has_run = take.chore, False
        else:
            assert take.wait is not None
            assert take.wait > 0 or self.in_flight

    @precondition(lambda self: self.chore and not self.chore_has_run)
    @rule()
    def run_chore(self) -> None:
        assert self.chore is not None
        self.chore()
        self.chore_has_run = True

    @precondition(lambda self: self.chore)
    @rule()
    def end_chore(self) -> None:
        assert self.queue.chore_done(True if self.chore_has_run else None, self.now) == 0
        self.chore = None

    @precondition(lambda self: self.in_flight)
    @rule(refused=st.booleans(), again=st.booleans(), which=st.integers(0))
    def answer(self, refused: bool, again: bool, which: int) -> None:
        batch = self.in_flight.pop(which % len(self.in_flight))
        reason = RefusedRow(0, Reason("bad"), kind="bad", is_about_payload=True)
        repeat = (len(batch.rows) - 1,) if again and len(batch.rows) > 1 else ()
        answer = Answer((reason,) if refused and len(batch.rows) > 1 else (), repeat)
        verdict = self.queue.succeeded(batch, answer, self.now)
        self.stored.update(each["event_id"] for each in verdict.stored)
        if verdict.dead:
            self.queue.dead_lettered(batch, verdict.dead)
            self.dead.update(letter.row["event_id"] for letter in verdict.dead)

    @precondition(lambda self: self.in_flight)
    @rule()
    def fail(self) -> None:
        verdict = self.queue.failed(self.in_flight.pop(), FAILED, started=self.now, now=self.now)
        assert not verdict.dead

    @rule()
    def flush(self) -> None:
        unsettled = self.own - set(self.stored) - set(self.dead)
        self.flushes.append((self.queue.request_flush(), unsettled))

    @rule()
    def look(self) -> None:
        self.queue.look_now()

    @rule()
    def close(self) -> None:
        self.queue.close()()

    @rule(seconds=st.sampled_from([0.5, 5.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        self.disk_is_full = full
        self.disk_was_full |= full  # a new file is tried only once a second

    # Others

    @rule(count=st.integers(0, 6), header=st.sampled_from([HEADER, EMPTY]))
    def another_process_dies(self, count: int, header: bytes) -> None:
        rows = [self.new_row() for _ in range(count)]
        number = next(self.count)
        text = b"".join(store_line(each) for each in rows)
        segment_of_the_dead(self.directory, header + text, name=f"{number}-1-a")
        self.submitted.update(each["event_id"] for each in rows)

    @rule()
    def this_process_dies_and_starts_again(self) -> None:
        # What only memory has is lost, and what was stored and not yet erased may come again.
        on_disk = {each["event_id"] for each in self.rows_on_disk()}
        self.submitted &= on_disk | set(self.stored) | set(self.dead)
        self.may_be_twice |= on_disk
        self.own.clear()
        for descriptor in [*descriptors._open]:
            descriptors.close(descriptor)
        self.in_flight.clear()
        self.flushes.clear()
        self.nested.clear()
        self.chore = None
        self.now = 0.0
        self.queue = make_queue(self.directory)

    def rows_on_disk(self) -> list[Row]:
        from lorc_eventlog.spool.format import find_rows

        return [
            found
            for path in self.directory.iterdir()
            for text in path.read_bytes().split(b"\n")
            for _, _, found in find_rows(text)[0]
        ]

    # What holds at any moment

    @invariant()
    def the_books_balance(self) -> None:
        assert 0 <= self.queue.kept <= self.queue.held
        settled = set(self.stored) | set(self.dead)
        assert settled <= self.submitted
        assert len(self.submitted - settled) >= self.queue.held
        for ids in (self.stored, self.dead):
            assert all(count == 1 or each in self.may_be_twice for each, count in ids.items())

    @invariant()
    def a_flush_that_ends_left_nothing(self) -> None:
        for position, unsettled in self.flushes:
            if self.queue.settled(position):
                mine = unsettled - set(self.stored) - set(self.dead)
                held = {each["event_id"] for batch in self.in_flight for each in batch.rows}
                assert not mine & held

    def teardown(self) -> None:
        self.disk_is_full = False
        self.nested.clear()
        position = self.queue.request_flush()
        if self.chore is not None:
            self.queue.chore_done(None, self.now)
        for batch in self.in_flight:
            self.queue.give_back(batch, self.now)
        self.now += 1000.0
        for _ in range(3):
            self.queue.look_now()
            self.now += 100.0
            for each in work(self.queue, self.now):
                self.stored[each["event_id"]] += 1
        assert self.queue.settled(position)
        assert (self.queue.held, self.queue.kept) == (0, 0)
        assert self.queue.is_drained
        self.the_books_balance()
        assert self.submitted == set(self.stored) | set(self.dead)
        self.queue.close()()
        assert names(self.directory) == []
        self.patch.undo()
        shutil.rmtree(self.directory)


def store_line(each: Row) -> bytes:
    from lorc_eventlog.spool.format import encode_line

    return encode_line(each)


def test_log_calls_chores_answers_and_deaths_in_any_order_lose_and_double_nothing() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
