"""Fork hooks of an application that log or flush, before ours and after ours."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from harness import numbers_in, run_program, start_program
from scripted_bigquery import ScriptedBigQuery

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

BY_THE_HOOK = {
    "flushes before": [],
    "logs before": [50],
    "logs in the parent": [50],
    "logs in the child": [50],
}


@pytest.mark.parametrize(
    "fork", ["os.fork", "multiprocessing", "multiprocessing imported late", "billiard"]
)
def test_every_event_arrives_once(scripted: ScriptedBigQuery, tmp_path: Path, fork: str) -> None:
    """The bootstrap of multiprocessing and billiard clears all finalizers, ours as well."""
    if fork == "billiard":
        pytest.importorskip("billiard")
    program = start_program("fork_hooks.py", fork, tmp_path)
    try:
        _, said = program.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGABRT)  # faulthandler shows where each of them hangs
        _, said = program.communicate(timeout=30)
        pytest.fail(f"it hangs: {said}")
    assert (program.returncode, said) == (0, "")
    arrived: defaultdict[str, list[int]] = defaultdict(list)
    for event in scripted.events():
        arrived[event["payload"]["case"]].append(event["payload"]["number"])
    expected = {
        case: [*range(5), *BY_THE_HOOK[case.partition(",")[0]], *range(100, 105)]
        for case in arrived
    }
    assert len(arrived) == 10
    assert {case: sorted(numbers) for case, numbers in arrived.items()} == expected


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_is_logged_before_multiprocessing_clears_its_finalizers_arrives(
    scripted: ScriptedBigQuery, method: str
) -> None:
    run_program("logs_when_imported.py", method)
    assert numbers_in(scripted) == [0, 0, 1, 2, 3]
