"""Random operations, one invariant: each event is delivered once, or dead, or dropped.

A seeded generator, so that a failure is repeated by its seed. LORC_EVENTLOG_SOAK=seconds in the
environment goes on with new seeds for so long:

    LORC_EVENTLOG_SOAK=600 pytest tests/delivery/test_soak.py
"""

from __future__ import annotations

import faulthandler
import itertools
import logging
import os
import random
import threading
import time
from collections import Counter

import pytest

from harness import (
    assert_adds_up,
    make_event,
    sampled,
)
from lorc_eventlog import Envelope, EventWriter
from lorc_eventlog.delivery import pace
from scripted_bigquery import (
    ScriptedBigQuery,
    answer_lost,
    close_connection,
    delay,
    half_answer,
    malformed_json,
    reset,
    reset_after_storing,
    status,
)

FAULTS = [
    status(429),
    status(500),
    status(502),
    status(503),
    status(403),
    status(403, "quotaExceeded"),
    status(404),
    reset(),
    reset_after_storing(),
    answer_lost(),
    half_answer(),
    malformed_json(),
    close_connection(),
    delay(0.05),
]
SEEDS = 6


class Soak:
    """One run: writers that come and go, a server that fails, processes that fork."""

    def __init__(self, seed: int, server: ScriptedBigQuery) -> None:
        self.choice = random.Random(seed)
        self.server = server
        self.numbers = itertools.count()
        self.submitted: Counter[int] = Counter()
        self.dead: Counter[int] = Counter()
        self.lock = threading.Lock()
        self.closed: list[EventWriter] = []
        self.children: list[tuple[int, int, int]] = []
        self.writer = self.open()
        server.refuse_row(lambda row: number_of(row) % 97 == 13)
        server.refuse_request(lambda row: number_of(row) % 397 == 29, 413)
        server.stop_row_once(lambda row: number_of(row) % 61 == 7)

    def open(self) -> EventWriter:
        return EventWriter(
            batch_rows=self.choice.choice([1, 5, 50, 500]),
            flush_interval=self.choice.choice([0.0, 0.01, 0.2]),
            capacity=self.choice.choice([20, 200, 100_000]),
            overflow=self.choice.choice(["drop", "drop", "block"]),
            close_timeout=self.choice.choice([0.0, 0.1, 5.0]),
            on_dead_letter=self.bury,
        )

    def bury(self, envelope: Envelope, _reason: str) -> None:
        with self.lock:
            self.dead[envelope["payload"]["number"]] += 1

    def log(self) -> None:
        for _ in range(self.choice.choice([1, 5, 40])):
            number = next(self.numbers)
            self.submitted[number] += 1
            self.writer.submit(make_event(number))

    def log_in_threads(self) -> None:
        taken = [[next(self.numbers) for _ in range(20)] for _ in range(3)]

        def log(numbers: list[int]) -> None:
            for number in numbers:
                self.writer.submit(make_event(number))

        running = [threading.Thread(target=log, args=(numbers,)) for numbers in taken]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        self.submitted.update(itertools.chain(*taken))

    def flush(self) -> None:
        self.writer.flush(self.choice.choice([0.0, 0.01, 0.3]))

    def close(self) -> None:
        self.writer.close()

    def reopen(self) -> None:
        self.writer.close()
        self.closed.append(self.writer)
        self.writer = self.open()

    def fail(self) -> None:
        self.server.script(*self.choice.choices(FAULTS, k=self.choice.choice([1, 2, 4])))

    def stop(self) -> None:
        self.server.stop()
        threading.Event().wait(0.02)
        self.server.start()

    def rest(self) -> None:
        threading.Event().wait(0.01)

    def fork(self) -> None:
        """A child logs, flushes and tells how many of its events are dead and dropped."""
        numbers = [next(self.numbers) for _ in range(10)]
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                faulthandler.dump_traceback_later(30)  # if it hangs
                self.lock = threading.Lock()
                self.dead.clear()
                for number in numbers:
                    self.writer.submit(make_event(number))
                settled = self.writer.flush(60)
                assert_adds_up(self.writer.stats())
                dead = ",".join(map(str, self.dead.elements()))
                os.write(write, f"{settled} {self.writer.stats().dropped} {dead}".encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            told, dropped, dead = pipe.read().split(" ")
        os.waitpid(pid, 0)
        assert (told, dropped) == ("True", "0")
        self.submitted.update(numbers)
        self.dead.update(int(number) for number in dead.split(",") if number)

    def run(self, steps: int) -> None:
        operations = [self.log] * 8 + [self.log_in_threads, self.flush, self.flush, self.close]
        operations += [
            self.reopen,
            self.fail,
            self.fail,
            self.stop,
            self.rest,
            self.rest,
            self.fork,
        ]
        for _ in range(steps):
            self.choice.choice(operations)()
        self.server.healthy()
        for writer in [*self.closed, self.writer]:
            assert writer.flush(60), writer.stats()
            writer.close()
        self.check()

    def check(self) -> None:
        stored = Counter(event["payload"]["number"] for event in self.server.events())
        dropped = 0
        for writer in [*self.closed, self.writer]:
            stats = writer.stats()
            assert_adds_up(stats)
            assert stats.buffered == 0
            dropped += stats.dropped
        assert self.server.duplicates == []
        assert max((stored + self.dead).values(), default=0) <= 1, "one came twice"
        assert set(self.dead) == {
            number for number in self.dead if number % 97 == 13 or number % 397 == 29
        }
        lost = self.submitted - stored - self.dead
        assert sum(lost.values()) == dropped
        assert (stored + self.dead) - self.submitted == Counter()


def number_of(row: dict[str, str]) -> int:
    return int(row["payload"].split(":")[1].split(",")[0])


def run_soak(seed: int, server: ScriptedBigQuery) -> None:
    soak = Soak(seed, server)
    with sampled(soak.writer):
        soak.run(60)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(pace, "MAX_PAUSE", 0.05)


@pytest.fixture(autouse=True)
def no_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest logs to a file, whose lock a thread may hold at a fork: for ever, in the child."""
    logger = logging.getLogger("lorc_eventlog")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_operations_lose_nothing_and_double_nothing(
    scripted: ScriptedBigQuery, seed: int
) -> None:
    run_soak(seed, scripted)


@pytest.mark.timeout(0)
@pytest.mark.skipif(
    "LORC_EVENTLOG_SOAK" not in os.environ, reason="LORC_EVENTLOG_SOAK=seconds is not set"
)
@pytest.mark.usefixtures("scripted")
def test_the_same_for_as_long_as_you_like() -> None:
    until = time.monotonic() + float(os.environ["LORC_EVENTLOG_SOAK"])
    seed = int(time.time())
    while time.monotonic() < until:
        seed += 1
        with ScriptedBigQuery() as server:
            os.environ["BIGQUERY_EMULATOR_HOST"] = server.url
            try:
                run_soak(seed, server)
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise
