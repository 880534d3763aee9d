"""Forks while events are logged, in the way that its first argument names.

    forks.py WAY CHILDREN EVENTS

Each process logs events numbered from 0, whose payload names the process.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from lorc_eventlog import BigQueryEventHandler
from lorc_eventlog.delivery import pace

if TYPE_CHECKING:
    from google.cloud import bigquery

pace.MAX_PAUSE = 0.1

way, children, events = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def make_client() -> bigquery.Client:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery

    return bigquery.Client(
        project="test",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": os.environ["BIGQUERY_EMULATOR_HOST"]},
    )


handler = BigQueryEventHandler(
    make_client() if "given client" in way else None,
    source="tests",
    flush_interval=0.02,
    batch_rows=20,
    capacity=50 if "full" in way else 100_000,
    overflow="block" if "full" in way else "drop",
    close_timeout=20.0,
)
logger = logging.getLogger("app")
logger.setLevel(logging.INFO)
logger.addHandler(handler)


def log(number: int, name: str) -> None:
    payload = {"pid": os.getpid(), "name": name, "number": number, "text": "PrivateWord"}
    logger.info("x", extra={"event_type": "test", "payload": payload})


def log_some(name: str) -> None:
    for number in range(events):
        log(number, name)
        if number % 10 == 0:
            time.sleep(0.001)


def in_child(name: str, how: str) -> None:
    log_some(name)
    if how == "flush":
        assert handler.flush(20)
        os._exit(0)
    sys.exit(0)


def wait_for(pids: list[int]) -> None:
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0, status


def by_os_fork() -> None:
    stop = threading.Event()

    def log_on() -> None:
        number = events
        while not stop.is_set():
            log(number, "parent")
            number += 1
            time.sleep(0.0005)
        print(number, flush=True)  # noqa: T201

    load = threading.Thread(target=log_on, daemon=True)  # so that a failure ends the program
    load.start()
    log_some("parent")
    pids = []
    for child in range(children):
        pid = os.fork()
        if pid == 0:
            in_child(f"child-{child}", "flush" if child % 2 else "exit")
        pids.append(pid)
        time.sleep(0.003)
        if len(pids) == 4:
            wait_for(pids)
            pids.clear()
    stop.set()
    load.join()


def by_process() -> None:
    context = multiprocessing.get_context("fork")
    log_some("parent")
    processes = [
        context.Process(target=log_some, args=(f"child-{child}",)) for child in range(children)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    print(events, flush=True)  # noqa: T201


def by_pool() -> None:
    log_some("parent")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for child in range(children):
            pool.apply_async(log_some, (f"child-{child}",))
        pool.close()
        pool.join()
    print(events, flush=True)  # noqa: T201


def before_the_first_event() -> None:
    pids = []
    for child in range(children):
        pid = os.fork()
        if pid == 0:
            in_child(f"child-{child}", "exit")
        pids.append(pid)
    wait_for(pids)
    log_some("parent")
    print(events, flush=True)  # noqa: T201


def during_the_import() -> None:
    """Fork again and again while the sender imports google.cloud.bigquery."""
    assert "google.cloud.bigquery" not in sys.modules
    log_some("parent")
    pids = []
    for child in range(children):
        pid = os.fork()
        if pid == 0:
            in_child(f"child-{child}", "exit")
        pids.append(pid)
        time.sleep(0.02)
    wait_for(pids)
    print(events, flush=True)  # noqa: T201


def grandchildren() -> None:
    log_some("parent")
    pid = os.fork()
    if pid == 0:
        log_some("child-0")
        grandchild = os.fork()
        if grandchild == 0:
            in_child("child-1", "exit")
        wait_for([grandchild])
        sys.exit(0)
    wait_for([pid])
    print(events, flush=True)  # noqa: T201


{
    "os.fork": by_os_fork,
    "Process": by_process,
    "Pool": by_pool,
    "before the first event": before_the_first_event,
    "during the import": during_the_import,
    "grandchildren": grandchildren,
}[way.split(", ")[0]]()
