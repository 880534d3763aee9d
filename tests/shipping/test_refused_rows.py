"""Rows that BigQuery refuses, as many as they are, hold up no good row of another process.

Each run takes no time: the clock goes on by what delivery waits for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorc_eventlog.bigquery.insert_all import LIMITS
from lorc_eventlog.bigquery.transport import Answer, Failure, Reason, RefusedRow
from lorc_eventlog.delivery.batch import Bounds
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.events.row import Row, row_at
from lorc_eventlog.shipping.follower import Follower
from lorc_eventlog.shipping.lines import Lines
from lorc_eventlog.shipping.shipping_queue import ShippingQueue
from lorc_eventlog.spool.directory import Access, Directory
from lorc_eventlog.spool.format import encode_line
from lorc_eventlog.spool.shipped import header_of
from shippers import TABLE

CAPACITY = 1_000
CAPACITY_BYTES = 2**20
BATCH_ROWS = 100
ANSWER_SECONDS = 0.1

DOWN = Failure(Reason("503"), None, may_be_the_rows=False, stored="no")
BAD, GOOD = "test.bad", "test.good"


class UnexpectedError(Exception):
    pass


class Machine:
    """A shipper's queue over a real directory, with one sender, a clock, and a table.

    Args:
        path: The spool directory.
    """

    def __init__(self, path: Path) -> None:
        self.now = 1000.0
        self.stored: dict[str, int] = {}
        self.dead: dict[str, int] = {}
        self.requests = 0
        self.most_held = 0
        self.is_table_wrong = False
        self.is_down = False
        self.breaks_at: int | None = None
        """After so many dead letters, one ends in an exception that nobody foresaw."""
        self._path = path
        self._directory = Directory(path, access=Access.OWNER, create=True)
        self.follower = Follower(self._directory, Lines(self._directory), TABLE, Notes())
        bounds = Bounds(
            batch_rows=BATCH_ROWS,
            flush_interval=0.05,
            capacity=CAPACITY,
            capacity_bytes=CAPACITY_BYTES,
            limits=LIMITS,
        )
        self.queue = ShippingQueue(
            self.follower,
            bounds,
            keep=self._keep,
            forget=list,
            interval=1.0,
            recorder=None,
        )

    def close(self) -> None:
        self._directory.close()

    def log(self, process: int, *types: str, text: str = "") -> None:
        """Append events to the segment of a process."""
        file = self._path / f"{process:020}-1-000000-a.ship"
        is_new = not file.exists()
        with file.open("ab") as segment:
            if is_new:
                file.chmod(0o600)
                segment.write(encode_line(header_of(TABLE)))
            line = {
                kind: encode_line(row_at(0.0, kind, {"text": text}, "tests")) for kind in set(types)
            }
            segment.write(b"".join(line[kind] for kind in types))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Ship for so long, or until it is so; whether it is."""
        end = self.now + seconds
        while self.now < end and not until():
            self._step()
        return until()

    def _step(self) -> None:
        queue = self.queue
        take = queue.take(self.now, alone=False)
        if take.chore is not None:
            try:
                result = take.chore()
            except UnexpectedError:
                result = None
            queue.chore_done(result, self.now)
            self.now += 0.001
        elif take.batch is None:
            assert take.wait is not None
            self.now += max(take.wait, 0.001)
        else:
            self.requests += 1
            started = self.now
            self.now += ANSWER_SECONDS
            if self.is_down:
                queue.failed(take.batch, DOWN, started=started, now=self.now)
                return
            answer = Answer(tuple(self._refusals(take.batch.rows)))
            verdict = queue.succeeded(take.batch, answer, self.now)
            self._count(self.stored, verdict.stored)
            queue.dead_lettered(take.batch, verdict.dead)
        self.most_held = max(self.most_held, queue.held)

    def _refusals(self, rows: list[Row]) -> Iterator[RefusedRow]:
        for index, row in enumerate(rows):
            if self.is_table_wrong or row["event_type"] == BAD:
                yield RefusedRow(index, Reason("no such field"), "no", is_about_payload=False)

    def _keep(self, row: Row) -> bool:
        if self.breaks_at == sum(self.dead.values()):
            self.breaks_at = None
            raise UnexpectedError
        self._count(self.dead, [row])
        return True

    @staticmethod
    def _count(counts: dict[str, int], rows: list[Row]) -> None:
        for row in rows:
            counts[row["event_type"]] = counts.get(row["event_type"], 0) + 1


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    random.seed(1)
    made = Machine(tmp_path / "spool")
    yield made
    made.close()


def stored(machine: Machine, count: int) -> Callable[[], bool]:
    return lambda: machine.stored.get(GOOD, 0) == count


def dead(machine: Machine, count: int) -> Callable[[], bool]:
    return lambda: machine.dead.get(BAD, 0) == count


SIZES = pytest.mark.parametrize("size", [0, 2_000])
"""Rows fill the memory by their number, or by their bytes."""


@SIZES
def test_more_refused_rows_than_memory_holds_keep_no_row_of_another_process_waiting(
    machine: Machine, size: int
) -> None:
    machine.log(1, *[BAD] * 2 * CAPACITY, text="x" * size)
    machine.log(2, *[GOOD] * 10)
    assert machine.run(10, stored(machine, 10))
    machine.log(3, BAD, *[GOOD] * 10)
    assert machine.run(60, stored(machine, 20))


def test_rows_that_come_when_memory_is_full_of_refused_ones_are_read(machine: Machine) -> None:
    machine.log(1, *[BAD] * 2 * CAPACITY)
    machine.run(30)
    machine.log(2, *[GOOD] * 10)
    assert machine.run(120, stored(machine, 10))


@pytest.mark.parametrize("is_first", [True, False])
def test_each_refused_row_is_a_dead_letter_while_others_are_delivered(
    machine: Machine, *, is_first: bool
) -> None:
    count, seconds = 2 * CAPACITY, 0
    if is_first:
        machine.log(1, *[BAD] * count)
    while not dead(machine, count)():
        machine.log(2, *[GOOD] * 10)
        if seconds == 3 and not is_first:
            machine.log(1, *[BAD] * count)
        machine.run(1.0)
        seconds += 1
        assert 10 * seconds - machine.stored.get(GOOD, 0) < 300
        assert seconds < 600
    assert machine.run(10, stored(machine, 10 * seconds))
    assert machine.most_held < 2 * CAPACITY


@SIZES
def test_a_wrong_table_does_not_fill_the_memory_and_is_waited_out(
    machine: Machine, size: int
) -> None:
    machine.is_table_wrong = True
    for process in range(3):
        machine.log(process, *[GOOD] * 2 * CAPACITY, text="x" * size)
    machine.run(2 * 3600)
    most_rows = CAPACITY_BYTES // size if size else CAPACITY
    assert machine.most_held < 2 * most_rows
    assert machine.requests < 1_000
    machine.is_table_wrong = False
    assert machine.run(300, stored(machine, 6 * CAPACITY))
    assert machine.dead == {}


def test_an_outage_beside_rows_in_doubt_does_not_fill_the_memory(machine: Machine) -> None:
    machine.log(1, *[BAD] * 2 * CAPACITY)
    machine.log(2, *[GOOD] * 10)
    machine.run(10)
    machine.is_down = True
    for process in range(2, 5):
        machine.log(process, *[GOOD] * 2 * CAPACITY)
    machine.run(3600)
    assert machine.most_held < 2 * CAPACITY + BATCH_ROWS
    machine.is_down = False
    assert machine.run(300, stored(machine, 6 * CAPACITY + 10))


def test_a_dead_letter_that_ends_in_an_exception_is_written_by_the_next_chore(
    machine: Machine,
) -> None:
    machine.breaks_at = 3
    machine.log(1, *[BAD, GOOD] * 5)
    assert machine.run(60, lambda: machine.queue.looks > 1 and machine.queue.is_settled)
    assert machine.breaks_at is None
    assert machine.dead == {BAD: 5}
    assert machine.stored == {GOOD: 5}
