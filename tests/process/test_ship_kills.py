"""Applications and shipper are killed at random while BigQuery fails in turns.

``LORC_EVENTLOG_SOAK=300`` runs each for five minutes, with 2,500 events a second from each of four
applications.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import PROGRAMS, environment
from scripted_bigquery import ScriptedBigQuery, reset, reset_after_storing, status
from scripted_storage import Cut, ScriptedStorage, Silence, Step

SOAK = float(os.environ.get("LORC_EVENTLOG_SOAK", "0"))
SECONDS = SOAK or 6.0
RATE = 2500 if SOAK else 300
APPLICATIONS = 4


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def killed_at_random(
    path: Path, notes: Path, options: list[str], fail: Callable[[random.Random], object]
) -> Iterator[None]:
    """Run four applications and a shipper, and kill and start one of them again and again."""
    rng = random.Random(7)
    log = [str(PROGRAMS / "ship_log.py"), str(path), str(notes), str(RATE)]
    ship = ["-m", "lorc_eventlog", "ship", str(path), "--interval", "0.1", *options]
    commands = [ship, *[log] * APPLICATIONS]
    processes = [start(command) for command in commands]
    deadline = time.monotonic() + SECONDS
    try:
        # On a slow machine a process may not come to log before it is killed.
        while time.monotonic() < deadline or not has_many(notes):
            time.sleep(rng.uniform(0.1, 0.8))  # the moment of a kill is what is random here
            fail(rng)
            index = rng.choice([0, *range(APPLICATIONS + 1)])
            processes[index].send_signal(signal.SIGKILL)
            processes[index].wait()
            processes[index] = start(commands[index])
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def has_many(notes: Path) -> bool:
    return notes.exists() and notes.stat().st_size > 100_000


def drain(path: Path, options: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "lorc_eventlog", "ship", path, "--until-empty", *options],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100 + SOAK,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def check(notes: Path, rows: Counter[str]) -> None:
    """Compare what is stored with what was logged: the calls that returned, and that began."""
    words = [line.split() for line in notes.read_text().splitlines() if line.count(" ") == 1]
    started = {event for word, event in words if word == "started"}
    returned = {event for word, event in words if word == "returned"}
    print(f"{len(started):,} calls began, {len(returned):,} returned, {len(rows):,} stored")  # noqa: T201
    assert len(returned) > 100
    assert returned - rows.keys() == set()
    assert rows.keys() - started == set()


def test_over_rest_nothing_is_lost_whoever_is_killed(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    def fail(rng: random.Random) -> None:
        scripted.script(
            *rng.choices([status(503), status(429), reset(), reset_after_storing()], k=2)
        )

    path, notes = tmp_path / "spool", tmp_path / "notes"
    with killed_at_random(path, notes, [], fail):
        pass
    scripted.healthy()
    drain(path, [])
    check(notes, Counter(event["payload"]["id"] for event in scripted.events()))


def test_exactly_once_nothing_is_lost_or_doubled_whoever_is_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "dataset")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    options = ["--transport", "grpc", "--exactly-once", "--batch-rows", "500"]
    with ScriptedStorage() as server:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", server.address)

        def fail(rng: random.Random) -> None:
            steps: list[Step] = [Cut(stored=True), Cut(), Silence(store_after=0.5)]
            server.script(rng.choice(steps))

        path, notes = tmp_path / "spool", tmp_path / "notes"
        with killed_at_random(path, notes, options, fail):
            pass
        server.heal()
        drain(path, options)
        rows = Counter(json.loads(row["payload"])["id"] for row in server.rows())
    check(notes, rows)
    assert [event for event, times in rows.items() if times > 1] == []
