"""Applications, shipper and emulator are killed, answers get lost, the disk is full: by SQL.

tox run -e soak                 ten minutes
SOAK=120 tox run -e soak        two
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from chaos_proxy import ChaosProxy
from clients import make_client
from harness import PROGRAMS, environment, eventually
from lorc_eventlog import create_events_table

SECONDS = float(os.environ.get("SOAK", "0"))
RATE = 50
APPLICATIONS = 3
DISK = 8 * 2**20

pytestmark = [
    pytest.mark.skipif(not SECONDS, reason="SOAK=seconds is not set"),
    pytest.mark.timeout(SECONDS * 2 + 900),
]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that can be filled; without the right to mount one, an ordinary directory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)]
    is_mounted = (
        shutil.which("mount") is not None
        and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )
    yield disk
    if is_mounted:
        subprocess.run(["umount", "-l", disk], check=False)


class Running:
    """A program that is killed and started again."""

    def __init__(self, *command: object) -> None:
        self._command = [sys.executable, *map(str, command)]
        self.kills = 0
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self.kills += 1


@contextmanager
def full(disk: Path) -> Iterator[bool]:
    """Leave no room on ``disk``; whether that can be."""
    if not disk.is_mount():
        yield False
        return
    ballast = disk / "ballast"
    try:
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        yield True
    finally:
        ballast.unlink(missing_ok=True)


def is_up(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def calls_in(notes: Path) -> defaultdict[str, set[str]]:
    """The events whose calls began, returned or dropped them."""
    calls: defaultdict[str, set[str]] = defaultdict(set)
    for line in notes.read_text().splitlines():
        if line.count(" ") == 1:  # a kill may cut one off
            word, event = line.split()
            calls[word].add(event)
    return calls


def test_what_was_logged_is_in_the_table_whatever_happens(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(15)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    spool, notes = small_disk / "spool", tmp_path / "notes"
    emulator = Running(PROGRAMS / "lasting_emulator.py", tmp_path / "data", port)
    programs = [emulator]
    done: Counter[str] = Counter()
    try:
        with (
            ChaosProxy(port, rng) as proxy,
            closing(make_client(f"http://127.0.0.1:{port}")) as client,
        ):
            monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", proxy.url)
            monkeypatch.setenv("EVENTS_BQ_DATASET", "soak")
            monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
            eventually(lambda: is_up(port))
            create_events_table(client)
            log = (PROGRAMS / "chaos_log.py", spool, notes, RATE)
            ship = ("-m", "lorc_eventlog", "ship", spool)
            shipper = Running(*ship, "--interval", "0.1")
            applications = [Running(*log) for _ in range(APPLICATIONS)]
            programs += [shipper, *applications]
            proxy.is_calm = False
            ends = time.monotonic() + SECONDS
            while time.monotonic() < ends:
                time.sleep(rng.uniform(0.5, 3))  # the moment of a fault is what is random here
                fault = rng.choice(["application", "application", "shipper", "emulator", "disk"])
                done[fault] += 1
                if fault == "disk":
                    with full(small_disk) as is_full:
                        done["disk was full"] += is_full
                        time.sleep(rng.uniform(0.5, 3))
                    continue
                hit = {"shipper": shipper, "emulator": emulator}.get(
                    fault, rng.choice(applications)
                )
                hit.kill()
                time.sleep(rng.uniform(0, 2))
                hit.start()
            for program in (shipper, *applications):
                program.kill()
            proxy.is_calm = True
            eventually(lambda: is_up(port))
            drained = subprocess.run(
                [sys.executable, *map(str, ship), "--until-empty"],
                env=environment(),
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            assert drained.returncode == 0, drained.stderr
            found = client.query("SELECT JSON_VALUE(payload, '$.id') AS id FROM soak.events")
            rows = Counter(row["id"] for row in found.result())
    finally:
        for program in programs:
            program.kill()

    calls = calls_in(notes)
    print(  # noqa: T201
        f"{ {word: len(events) for word, events in calls.items()} }, rows {rows.total():,}, "
        f"different {len(rows):,}, faults {dict(done)}, answers {dict(proxy.done)}"
    )
    assert calls["returned"] - rows.keys() == set()
    assert rows.keys() - calls["started"] == set()
