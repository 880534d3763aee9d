"""What stands around a program: libraries that are installed, options of Python, a kernel."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import PRIVATE, PROGRAMS, environment, numbers_in
from scripted_bigquery import ScriptedBigQuery

ONE_EVENT = PROGRAMS / "one_event.py"


def run(*command: str | Path, **changes: str) -> str:
    """Run a program on this Python to its end; give what it says on stderr."""
    completed = subprocess.run(
        [sys.executable, *command],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert PRIVATE not in completed.stderr
    return completed.stderr


def test_a_program_of_one_event_beside_pandas(scripted: ScriptedBigQuery) -> None:
    """Google's client imports pandas where it is there, which cannot begin at exit."""
    pytest.importorskip("pandas", reason="has no wheel for this Python")
    assert run(ONE_EVENT, IMPORT_EVERYTHING="1") == ""

    assert numbers_in(scripted) == [0]


def test_a_program_of_one_event_that_makes_errors_of_warnings(scripted: ScriptedBigQuery) -> None:
    assert run("-W", "error", ONE_EVENT) == ""

    assert numbers_in(scripted) == [0]


def test_a_program_of_one_event_under_ddtrace(scripted: ScriptedBigQuery) -> None:
    """It patches modules as they are imported, and has threads and exit functions of its own."""
    if importlib.util.find_spec("ddtrace") is None:
        pytest.skip("ddtrace has no wheel for this Python")
    program = "from ddtrace.commands.ddtrace_run import main; main()"
    said = run(
        *("-c", program, sys.executable, ONE_EVENT),
        DD_TRACE_ENABLED="true",
        DD_INSTRUMENTATION_TELEMETRY_ENABLED="false",
        DD_TRACE_AGENT_URL="http://127.0.0.1:1",
    )
    assert "lorc_eventlog" not in said

    assert numbers_in(scripted) == [0]


def test_a_program_that_has_no_descriptor_free_at_first(scripted: ScriptedBigQuery) -> None:
    """Nothing can be imported meanwhile, and no connection be made."""
    said = run(ONE_EVENT, "no descriptor is free at first")
    assert "Traceback" not in said

    assert numbers_in(scripted) == [0, 1], said


# A Jupyter kernel

CELL = """
import logging
from lorc_eventlog import BigQueryEventHandler
logger = logging.getLogger("app")
logger.setLevel(logging.INFO)
logger.addHandler(BigQueryEventHandler(source="tests", flush_interval=3600, close_timeout=50))
"""
LOG = 'logger.info("x", extra={{"event_type": "test", "payload": {{"number": {}}}}})'


@contextmanager
def kernel() -> Iterator[tuple[Any, Callable[[str], None]]]:
    """A kernel, and a function that runs a cell in it."""
    pytest.importorskip("ipykernel")
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", env=environment())
    manager.shutdown_wait_time = 60  # then it kills

    def run_cell(code: str) -> None:
        answer = client.execute_interactive(code, timeout=60, output_hook=said.append)
        assert answer["content"]["status"] == "ok", answer

    said: list[Any] = []
    try:
        yield manager, run_cell
    finally:
        client.stop_channels()
        if manager.is_alive():
            manager.shutdown_kernel(now=True)


def test_a_jupyter_kernel_delivers_when_it_is_restarted_and_when_it_is_shut_down(
    scripted: ScriptedBigQuery,
) -> None:
    with kernel() as (manager, run_cell):
        run_cell(CELL + LOG.format(0))
        manager.restart_kernel()
        assert numbers_in(scripted) == [0]
        run_cell(CELL + LOG.format(1))
        manager.shutdown_kernel()

    assert numbers_in(scripted) == [0, 1]
