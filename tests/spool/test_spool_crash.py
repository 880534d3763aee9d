"""Kills, at random moments and at every write, and outages longer than memory.

``LORC_EVENTLOG_SOAK=1`` runs the whole of it, in two minutes: 20 rounds of kills instead of 3, and
an outage of 100,000 events instead of 20,000.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import tracemalloc
from collections import defaultdict
from pathlib import Path

import pytest

from harness import (
    assert_adds_up,
    eventually,
    make_event,
    numbers_in,
    run_program,
    running_writer,
    start_program,
    submit_events,
)
from inside import held_in_memory
from lorc_eventlog.events.envelope import to_row
from lorc_eventlog.spool import survey
from lorc_eventlog.spool.format import HEADER, encode_line
from scripted_bigquery import ScriptedBigQuery, reset_after_storing, status

pytestmark = pytest.mark.process

SOAK = bool(os.environ.get("LORC_EVENTLOG_SOAK"))
ROUNDS = 20 if SOAK else 3
PROCESSES = 8

logger = logging.getLogger(__name__)


@pytest.mark.timeout(1200)
def test_eight_processes_are_killed_at_random_moments_and_no_event_is_lost(
    monkeypatch: pytest.MonkeyPatch, scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    monkeypatch.setattr(scripted, "_discard", True)  # ids are enough
    directory = tmp_path / "spool"
    seed = random.randrange(2**32)
    logger.info("seed %d", seed)
    random_source = random.Random(seed)
    acknowledged: set[str] = set()
    for round_number in range(ROUNDS):
        prefix = tmp_path / f"round-{round_number}"
        program = start_program("spool_log.py", directory, PROCESSES, prefix)
        assert program.stdout is not None
        killers = []
        for _ in range(PROCESSES):
            process = int(program.stdout.readline())
            moment = random_source.uniform(0.0, 1.5)
            killers.append(threading.Timer(moment, os.kill, [process, signal.SIGKILL]))
            killers[-1].start()
        _, said = program.communicate()
        assert program.returncode == 0, said
        for file in tmp_path.glob(f"{prefix.name}.*"):
            # The last line may not have been written to its end.
            acknowledged.update(file.read_text().split("\n")[:-1])
    delivered_before = scripted.stats()["rows"]
    on_disk = sum(report.events for report in survey(directory))
    with running_writer(spool_dir=directory) as writer:
        assert writer.drain_spool(300)
        assert_adds_up(writer.stats())
    logger.info(
        "%d log calls returned; %d events were delivered by those that were killed, %d were on "
        "disk before the later start",
        len(acknowledged), delivered_before, on_disk,
    )  # fmt: skip
    assert min(delivered_before, on_disk) > 0
    assert acknowledged - scripted._event_ids == set()
    assert scripted.duplicates == []
    assert all(path.name.endswith(".damaged") for path in directory.iterdir())


@pytest.mark.timeout(600)
def test_a_kill_after_any_change_on_disk_loses_nothing(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    """Adoption, delivery, striking off, logging and closing, cut off after each of their writes."""
    template = tmp_path / "spool"
    template.mkdir()
    rows = [to_row(make_event(number)) for number in range(14)]
    lines = list(map(encode_line, rows))
    garbage = b"garbage\n"
    half_struck = b" " * 300 + b"\n"
    contents = {
        "1-1-a": HEADER + b"".join(lines[:6]),
        "2-1-a": HEADER + half_struck + lines[6] + garbage + b"".join(lines[7:12]) + half_struck,
        "3-1-a": HEADER + lines[12] + lines[13] + lines[13][:100],
        "4-1-a": HEADER,
        "5-1-a": encode_line({"lorc_eventlog_spool": 2}),
    }
    for name, content in contents.items():
        (template / f"{name}.events").write_bytes(content)
    output = subprocess_output("spool_fault_points.py", template)
    kills = int(output) - 1
    assert kills > 20

    stored: defaultdict[str, set[str | None]] = defaultdict(set)
    for request in scripted.requests:
        stored[request.table.rpartition("_")[2]].update(request.insert_ids)
    for changes in range(1, kills + 2):
        directory = tmp_path / f"spool.{changes}"
        acknowledged = (directory / "acknowledged").read_text().split()
        expected = {row["event_id"] for row in rows}.union(acknowledged)
        assert expected <= stored[str(changes)], changes
        left = sorted(path.name for path in directory.iterdir())
        assert left == [
            "2-1-a.events.damaged", "3-1-a.events.damaged", "5-1-a.events", "acknowledged",
        ], changes  # fmt: skip


def subprocess_output(name: str, *arguments: object) -> str:
    program = start_program(name, *arguments)
    output, said = program.communicate(timeout=500)
    assert program.returncode == 0, said
    return output


def test_an_answer_that_is_lost_with_the_process_makes_no_second_row(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    """The same insertId is sent after the restart."""
    scripted.always(reset_after_storing())
    program = start_program("spool_log.py", tmp_path / "spool", 1, tmp_path / "acknowledged")
    assert program.stdout is not None
    process = int(program.stdout.readline())
    scripted.wait_for_rows(1, timeout=60)
    os.kill(process, signal.SIGKILL)
    program.communicate()
    scripted.healthy()
    assert sum(report.events for report in survey(tmp_path / "spool")) > 0
    with running_writer(spool_dir=tmp_path / "spool") as writer:
        assert writer.drain_spool(60)
    assert scripted.duplicates == []


@pytest.mark.timeout(600)
def test_an_outage_longer_than_memory_keeps_memory_flat_and_the_order(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    scripted.always(status(503))
    events = 100_000 if SOAK else 20_000
    with running_writer(spool_dir=tmp_path, capacity=1000) as writer:
        tracemalloc.start()
        submit_events(writer, range(5000))
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        submit_events(writer, range(5000, events - 5000))
        tracemalloc.start()
        submit_events(writer, range(events - 5000, events))
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held_in_memory(writer) <= 1000
        assert after < 2 * before + 1_000_000
        assert writer.stats().buffered == events
        scripted.healthy()
        assert writer.flush(100)
        assert_adds_up(writer.stats())
        assert writer.stats().delivered == events
    numbers = [event["payload"]["number"] for event in scripted.events()]
    assert numbers == list(range(events))
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_has_a_file_of_its_own_and_does_not_hold_that_of_the_parent(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    scripted.always(status(503))
    parent = start_program("spool_fork.py", tmp_path)
    assert parent.stdout is not None
    pids = {int(parent.stdout.readline()), int(parent.stdout.readline())}
    (child,) = pids - {parent.pid}
    try:
        reports = survey(tmp_path)
        assert {report.owner_pid for report in reports} == pids
        assert [(report.is_locked, report.events) for report in reports] == [(True, 1), (True, 1)]
        # Stopped, the child cannot adopt what the parent leaves, as it rightly would.
        os.kill(child, signal.SIGSTOP)
        stat = Path(f"/proc/{child}/stat")
        eventually(lambda: stat.read_text().rpartition(") ")[2].startswith("T"))
        parent.kill()
        parent.wait()
        locks = {report.owner_pid: report.is_locked for report in survey(tmp_path)}
        assert locks == {parent.pid: False, child: True}
        scripted.healthy()
        with running_writer(spool_dir=tmp_path) as writer:
            assert writer.drain_spool(20)
    finally:
        os.kill(child, signal.SIGKILL)
    parent.communicate()  # until the child has gone
    with running_writer(spool_dir=tmp_path) as writer:
        assert writer.drain_spool(20)
    assert numbers_in(scripted) == [0, 1]
    assert list(tmp_path.iterdir()) == []


def test_a_fork_while_files_are_adopted_leaves_no_lock_in_the_child(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    for number in range(300):
        path = tmp_path / f"{number:03d}-1-a.events"
        path.write_bytes(HEADER + encode_line(to_row(make_event(number))))
    scripted.always(status(503))
    run_program("spool_fork_early.py", tmp_path)
