"""A living process appends to its segment while a shipper reads it and erases what is delivered.

``LORC_EVENTLOG_SOAK=60`` does it for a minute.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness import start_program
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.shipping.follower import Follower
from lorc_eventlog.shipping.lines import Lines
from lorc_eventlog.shipping.lock import take_lock
from lorc_eventlog.spool.directory import Access, Directory

SECONDS = float(os.environ.get("LORC_EVENTLOG_SOAK", "2"))
MAX_BYTES = 8 * 2**20
"""What the program may take."""


@pytest.mark.process
@pytest.mark.timeout(300 + 5 * SECONDS)
def test_at_full_speed_no_line_is_torn_no_byte_is_lost_and_space_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "dataset")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    path = tmp_path / "spool"
    notes = Notes()
    directory = Directory(path, access=Access.OWNER, create=True)
    lock = take_lock(directory, "dataset.events")  # else the program warns that nobody ships
    follower = Follower(directory, Lines(directory), "dataset.events", notes)
    read_from_threads: list[list[int]] = [[], []]
    most_bytes = 0
    program = start_program("ship_full_speed.py", path, SECONDS)
    try:
        while True:
            is_over = program.poll() is not None
            follower.look()
            while rows := follower.read(5000):
                for row in rows:
                    payload = json.loads(row["payload"])
                    read_from_threads[payload["thread"]].append(payload["number"])
                follower.acknowledge(rows)
            most_bytes = max(most_bytes, sum(directory.size(name) for name in directory.names()))
            if is_over and follower.found.is_empty:
                break
        printed, said = program.communicate()
    finally:
        program.kill()
    assert said == ""
    first, second, dropped = map(int, printed.split())
    print(f"{first + second:,} events, {most_bytes:,} bytes at most")  # noqa: T201
    assert dropped == 0
    assert first + second > 1000
    assert read_from_threads == [[*range(first)], [*range(second)]]
    assert not notes, "damage, or trouble with the disk"
    assert most_bytes <= MAX_BYTES
    assert [name for name in directory.names() if name.endswith(".ship")] == []
    lock.close()
    directory.close()
