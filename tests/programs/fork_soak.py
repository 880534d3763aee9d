"""Many forks, one after another: fork_soak.py WAY FORKS EVENTS.

The WAYs, and what the parent does meanwhile:

- "Python": forks by ``os.fork`` while a thread of it logs
- "C": forks in C while nothing in it runs
- "C, a thread runs": forks in C while a thread of it runs Python
- "C, a thread runs, control": the same without this package: the child starts a thread, and both
  run Python

Each child logs EVENTS events and flushes; the parent logs one after each fork. It prints how many
children hung or failed, and how many events it logged.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

way, forks, events = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

PATIENCE = 20.0
"""Seconds; a child that takes longer hangs."""

fork: Callable[[], int] = ctypes.PyDLL(None).fork if way.startswith("C") else os.fork


def quiet() -> None:
    """Wait until no other thread runs Python."""
    before = None
    while True:
        frames = [
            (thread, frame, frame.f_lasti)
            for thread, frame in sys._current_frames().items()
            if thread != threading.get_ident()
        ]
        if frames == before:
            return
        before = frames
        time.sleep(0.01)


def run_python(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(100))


def fate(pid: int) -> str:
    """How the child ended: "hung", "failed" or "ended"."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return "failed" if status else "ended"
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


def fork_one(in_child: Callable[[], object]) -> str:
    pid = fork()
    if pid == 0:
        code = 1
        try:
            in_child()
            code = 0
        finally:
            os._exit(code)
    return fate(pid)


def with_the_package(stop: threading.Event) -> tuple[list[str], int]:  # noqa: C901
    from lorc_eventlog import BigQueryEventHandler

    interval = 0.02 if way == "Python" else 5  # a sender that waits for long runs no Python
    handler = BigQueryEventHandler(source="tests", flush_interval=interval, close_timeout=60)
    logger = logging.getLogger("app")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    numbers = itertools.count()

    def log(name: str, number: int) -> None:
        payload = {"name": name, "number": number, "text": "PrivateWord"}
        logger.info("x", extra={"event_type": "test", "payload": payload})

    def log_on() -> None:
        while not stop.is_set():
            log("parent", next(numbers))
            time.sleep(0.002)

    def in_child(child: int) -> None:
        for number in range(events):
            log(f"child-{child}", number)
        assert handler.flush(60)

    log("before", 0)
    assert handler.flush(60)
    if way == "Python":
        threading.Thread(target=log_on).start()
    elif way != "C":
        threading.Thread(target=run_python, args=(stop,)).start()
    fates = []
    for child in range(forks):
        if way != "Python":
            log("parent", next(numbers))
        if way == "C":
            assert handler.flush(60)
            quiet()
        fates.append(fork_one(functools.partial(in_child, child)))
    stop.set()
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join()
    assert handler.flush(60)
    return fates, next(numbers)


def without_it(stop: threading.Event) -> tuple[list[str], int]:
    import google.cloud.bigquery  # noqa: F401  so that the process is as large, and forks as slowly

    def work() -> None:
        for _ in range(events):
            sum(range(100_000))

    def in_child() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        work()
        thread.join()

    threading.Thread(target=run_python, args=(stop,)).start()
    fates = [fork_one(in_child) for _ in range(forks)]
    stop.set()
    return fates, 0


fates, logged = (without_it if way.endswith("control") else with_the_package)(threading.Event())
print(fates.count("hung"), fates.count("failed"), logged, flush=True)  # noqa: T201
