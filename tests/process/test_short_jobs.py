"""A child that somebody forked for a job delivers early: it may end by os._exit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from harness import eventually, fork_and_wait, make_event, numbers_in, run_program, running_writer
from lorc_eventlog.lifecycle import fork
from scripted_bigquery import ScriptedBigQuery

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_a_child_of_os_fork_does_not_wait_for_flush_interval(scripted: ScriptedBigQuery) -> None:
    with running_writer(flush_interval=3600) as writer:
        writer.submit(make_event(0))

        def work() -> bool:
            writer.submit(make_event(1))
            eventually(lambda: writer.stats().delivered == 1)
            return True

        assert fork_and_wait(work) == 0
        assert numbers_in(scripted) == [1]
        assert not fork.may_end_at_once()  # the parent itself
    assert numbers_in(scripted) == [0, 1]


def test_a_child_of_a_pool_or_server_that_ends_in_order_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = ModuleType("gunicorn.arbiter")
    exec("def spawn(fork, action): return fork(action)", vars(server))
    assert fork_and_wait(fork.may_end_at_once) == 0
    assert server.spawn(fork_and_wait, lambda: not fork.may_end_at_once()) == 0
    monkeypatch.setitem(sys.modules, "uwsgi", ModuleType("uwsgi"))
    assert fork_and_wait(lambda: not fork.may_end_at_once()) == 0


def test_a_child_of_multiprocessing_delivers_at_its_end(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    case = "logs in the child, after, in memory"
    run_program("fork_hooks.py", "multiprocessing", tmp_path, case)
    requests = len(scripted.requests)
    assert numbers_in(scripted) == [*range(5), 50, *range(100, 105)]
    assert requests == 2  # one of each process
