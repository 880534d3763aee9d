"""A fork in C, as uWSGI makes it, runs none of Python's fork hooks: the child still starts anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from harness import PRIVATE, numbers_in, start_program
from lorc_eventlog.spool import survey
from scripted_bigquery import ScriptedBigQuery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the C library by its own name")

PARENT, CHILD = range(5), range(100, 105)

WAYS = {
    "sender idle": (["5 5"], [*range(10), *CHILD]),
    "sender idle, given client": (["5 5"], [*range(10), *CHILD]),
    "sender idle, exits by itself": ([], [*range(10), *CHILD]),
    "child logs nothing, flushes": (["0 0"], [*PARENT]),
    "child logs nothing, ends": ([], [*PARENT]),
    "locks held": (["5 5"], [*PARENT, *CHILD]),
    "threads first": (["16 16"], [*PARENT, *range(100, 116)]),
    "hook after only": (["5 5"], [*PARENT, *CHILD]),
    "grandchild": (["5 5"] * 3, [*PARENT, *CHILD, *range(200, 205), *range(300, 305)]),
    "before the first event": (["5 5"], [*PARENT, *CHILD]),
    "made in the child": (["5 5"], [*CHILD]),
}


def run_c_fork(way: str, *arguments: object) -> list[str]:
    """Run the program; what it prints, a line each."""
    program = start_program("c_forks.py", way, *arguments)
    try:
        printed, said = program.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGABRT)  # faulthandler shows where each of them hangs
        _, said = program.communicate(timeout=30)
        pytest.fail(f"it hangs: {said}")
    assert (program.returncode, said) == (0, "")
    assert PRIVATE not in said
    return printed.splitlines()


@pytest.mark.parametrize("spool", [False, True], ids=["in memory", "with a spool"])
@pytest.mark.parametrize("way", WAYS)
def test_parent_and_child_deliver_their_own_events_once(
    scripted: ScriptedBigQuery, tmp_path: Path, way: str, spool: bool
) -> None:
    if way == "hook after only" and sys.version_info >= (3, 13):
        pytest.skip("Python itself ends a process that calls this hook and not the one before")
    printed, numbers = WAYS[way]
    assert run_c_fork(way, *[tmp_path] * spool) == printed
    assert numbers_in(scripted) == numbers
    assert scripted.duplicates == []
    assert sum(report.events for report in survey(tmp_path)) == 0


def test_no_two_processes_make_the_same_id() -> None:
    """BigQuery would drop one of two events that have the same."""
    made = run_c_fork("ids")
    assert len(set(made)) == len(made) == 3 + 4 + 4 * 20
    for event_id in made:
        assert str(uuid.UUID(event_id)) == event_id
        assert (uuid.UUID(event_id).version, uuid.UUID(event_id).variant) == (4, uuid.RFC_4122)
    assert {event_id[19] for event_id in made} == set("89ab")
