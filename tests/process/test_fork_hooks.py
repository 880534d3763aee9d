"""Fork hooks of an application that log or flush, before ours and after ours."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from harness import numbers_in, run_program, start_program
from scripted_bigquery import ScriptedBigQuery

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

HOOKS = {
    "flushes before": [],
    "logs before": [50],
    "logs in the parent": [50],
    "logs in the child": [50],
}


FORKS = ("os.fork", "multiprocessing", "multiprocessing imported late", "billiard")
CASES = [
    (hook, registered, fork, spool)
    for hook in HOOKS
    for registered in ("before", "after")
    for fork in FORKS
    for spool in (False, True)
    if not spool or hook == "logs in the child"
]


@pytest.mark.parametrize(("hook", "registered", "fork", "spool"), CASES)
def test_every_event_arrives_once(
    scripted: ScriptedBigQuery, tmp_path: Path, hook: str, registered: str, fork: str, spool: bool
) -> None:
    """The bootstrap of multiprocessing and billiard clears all finalizers, ours as well."""
    if fork == "billiard":
        pytest.importorskip("billiard")
    way = f"{hook}, registered {registered} the import, {fork}"
    program = start_program("fork_hooks.py", way, *[tmp_path] * spool)
    try:
        _, said = program.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGABRT)  # faulthandler shows where each of them hangs
        _, said = program.communicate(timeout=30)
        pytest.fail(f"it hangs: {said}")
    assert (program.returncode, said) == (0, "")
    assert numbers_in(scripted) == [*range(5), *HOOKS[hook], *range(100, 105)]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_is_logged_before_multiprocessing_clears_its_finalizers_arrives(
    scripted: ScriptedBigQuery, method: str
) -> None:
    run_program("logs_when_imported.py", method)
    assert numbers_in(scripted) == [0, 0, 1, 2, 3]
