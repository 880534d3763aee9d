"""Where in-process threads have limits, an application with spool_only is exact all the same.

Each test runs an environment and reads the segments that it left: every event is there once.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from celery_workers import shut_down_cold
from harness import PRIVATE, PROGRAMS, environment, eventually, numbers_in, run_program
from scripted_bigquery import ScriptedBigQuery
from shipped import VARIABLE, numbers_on_disk, payloads_on_disk


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "dataset")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The spool directory of every program that the test starts."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "spool"))
    return tmp_path / "spool"


# Ends without Python's exit functions


@pytest.mark.parametrize(
    ("way", "status", "times"),
    [("os._exit", 0, 1), ("execv", 0, 2), ("SIGKILL", -signal.SIGKILL, 1)],
)
def test_a_process_that_ends_without_exit_functions(
    path: Path, way: str, status: int, times: int
) -> None:
    """After execv the same process, by its number, logs the same events once more."""
    assert run_program("exits.py", way, status=status) == ""
    assert numbers_on_disk(path) == sorted([*range(30)] * times)


def test_a_runner_whose_tasks_end_by_os_exit(path: Path) -> None:
    python_path = f"{environment()['PYTHONPATH']}:{PROGRAMS}"
    assert run_program("task_runner.py", "nothing", PYTHONPATH=python_path) == ""
    assert numbers_on_disk(path) == [*range(7)]


# Forks


@pytest.mark.skipif(sys.platform != "linux", reason="the C library by its own name")
def test_a_fork_in_c_while_other_threads_log(path: Path) -> None:
    from test_fork_in_c import run_c_fork

    returned = Counter(map(int, run_c_fork("under load")))
    assert len(returned) > 50
    found = Counter(numbers_on_disk(path))
    assert set(found.values()) == {1}
    assert returned - found == Counter()
    # A child that Python itself lets hang may have written one event whose call did not return.
    assert len(found - returned) <= 20


@pytest.mark.parametrize("way", ["forks in C", "with fork hooks", "lazy apps"])
def test_uwsgi_without_threads(path: Path, way: str) -> None:
    pytest.importorskip("pyuwsgi", reason="pyuwsgi has no wheel for this Python")
    from test_uwsgi import WAYS, uwsgi

    with uwsgi(*WAYS[way], QUIET_IMPORT="1") as server:
        if way == "lazy apps":
            eventually(lambda: "".join(server.said).count("WSGI app 0") == 2, 30)
        server.ask_in_threads(100)
        assert numbers_on_disk(path) == [*range(1, 101), 999_999]
        server.process.kill()  # its workers end without any function of ours
    assert "lorc_eventlog" not in "".join(server.said)
    assert numbers_on_disk(path) == [*range(1, 101), 999_999]


# Greenlets


@pytest.mark.parametrize("patched", ["before", "after", "after an event"])
def test_gevent_whenever_it_patches(path: Path, patched: str) -> None:
    if importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    assert run_program("greenlets.py", "gevent", patched, "block", timeout=100) == ""
    first = [] if patched != "after an event" else [2000, 2001]
    assert numbers_on_disk(path) == [*range(2000), *first]


# What stands around a program


def test_a_jupyter_kernel_that_is_killed_or_restarted(path: Path) -> None:
    pytest.importorskip("ipykernel")
    from test_environments_scripts import CELL, LOG, kernel

    cell = CELL.replace("close_timeout=50", "close_timeout=50, **spool_only_options()")
    with kernel() as (manager, run_cell):
        run_cell("from shipped import spool_only_options" + cell + LOG.format(0))
        assert numbers_on_disk(path) == [0]
        manager.restart_kernel(now=True)
        run_cell("from shipped import spool_only_options" + cell + LOG.format(1))
        manager.shutdown_kernel(now=True)
    assert numbers_on_disk(path) == [0, 1]


def test_a_program_of_one_event_beside_pandas(path: Path) -> None:
    pytest.importorskip("pandas", reason="has no wheel for this Python")
    assert run_program("one_event.py", IMPORT_EVERYTHING="1") == ""
    assert numbers_on_disk(path) == [0]


# Workers


def test_an_rq_worker_whose_jobs_do_not_flush(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("rq")
    from test_environments_jobs import run_rq, running_redis

    with running_redis(tmp_path) as url:
        run_rq(url, "Worker", "jobs.job", 3)
    assert numbers_on_disk(path) == [0, 1, 2]


def test_celerys_cold_shutdown(path: Path, tmp_path: Path) -> None:
    from test_environments_celery import APPLICATION, IN_SETUP_LOGGING, REPORTS, TASKS

    application = APPLICATION.replace("close_timeout=60", "**spool_only_options()")
    assert application != APPLICATION
    (tmp_path / "main.py").write_text(
        "from shipped import spool_only_options\n" + application.format(IN_SETUP_LOGGING)
    )
    sent, said = shut_down_cold(tmp_path)
    assert "lorc_eventlog" not in said
    assert PRIVATE not in said
    found = Counter((event["pages"], event["logger"]) for event in payloads_on_disk(path))
    assert set(found.values()) == {1}
    assert {(pages, logger) for pages in sent for logger in (REPORTS, TASKS)} <= found.keys()


# And one shipper for several


def test_one_shipper_delivers_what_all_of_them_left(scripted: ScriptedBigQuery, path: Path) -> None:
    run_program("exits.py", "os._exit")
    run_program("exits.py", "execv")
    run_program("one_event.py")
    ship = [sys.executable, "-m", "lorc_eventlog", "ship", str(path), "--until-empty"]
    subprocess.run(ship, env=environment(), capture_output=True, timeout=100, check=True)
    assert numbers_in(scripted) == sorted([*[*range(30)] * 3, 0])
    assert list(path.glob("*.ship")) == []
