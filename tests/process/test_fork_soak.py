"""Many forks: no event is lost, none comes twice, no child hangs.

With LORC_EVENTLOG_SOAK=seconds there are 200 forks of each kind, and a control beside them:

    LORC_EVENTLOG_SOAK=1 pytest -s tests/process/test_fork_soak.py
"""

from __future__ import annotations

import os
import sys
from collections import Counter

import pytest

from harness import PRIVATE, start_program
from scripted_bigquery import ScriptedBigQuery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the C library by its own name")

IS_SOAK = "LORC_EVENTLOG_SOAK" in os.environ
FORKS = 200 if IS_SOAK else 8
EVENTS = 20


def run(way: str, forks: int) -> tuple[int, int, int]:
    """How many children hung, how many failed, and how many events the parent logged."""
    program = start_program("fork_soak.py", way, forks, EVENTS)
    printed, said = program.communicate(timeout=60 + 25 * forks)
    assert (program.returncode, said) == (0, "")
    assert PRIVATE not in said
    hung, failed, logged = map(int, printed.split())
    return hung, failed, logged


def say(figures: str) -> None:
    print(figures)  # noqa: T201  what a soak is run for


@pytest.mark.timeout(120 + 25 * FORKS)
@pytest.mark.parametrize("way", ["Python", "C"])
def test_each_event_arrives_once_and_no_child_hangs(scripted: ScriptedBigQuery, way: str) -> None:
    """Python's forks come under load; those in C while no other thread runs Python."""
    hung, failed, logged = run(way, FORKS)

    expected = Counter({("before", 0): 1})
    expected.update(("parent", number) for number in range(logged))
    expected.update((f"child-{c}", n) for c in range(FORKS) for n in range(EVENTS))
    arrived = Counter((e["payload"]["name"], e["payload"]["number"]) for e in scripted.events())
    lost, doubled = (expected - arrived).total(), (arrived - expected).total()
    say(f"{FORKS} forks ({way}): {lost} lost, {doubled} doubled, {hung} hung, {failed} failed")
    assert (lost, doubled, hung, failed) == (0, 0, 0, 0)


@pytest.mark.skipif(not IS_SOAK, reason="LORC_EVENTLOG_SOAK=seconds is not set")
@pytest.mark.timeout(4000)
@pytest.mark.usefixtures("scripted")
def test_a_fork_in_c_while_another_thread_runs_python_hangs_without_this_package_too() -> None:
    """Nothing that a library could do: the interpreter's own lock is copied half taken."""
    hung = {way: run(way, 30)[0] for way in ("C, a thread runs, control", "C, a thread runs")}
    say(f"of 30 children hung: {hung}")
