"""Fork hooks of the application that log, in applications that fork as the argument says.

    fork_hooks.py FORK SPOOL_DIR [CASE]

The case, or each of CASES, is a process of its own, which imports the package for itself. They run
side by side, and all have Google's client from the process that starts them, because it takes ten
times as long to import as all that they do. Each logs 0 to 4, the hook one event from 50 on, and
its child 100 to 104; the payload names the case.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from itertools import product
from typing import Any, cast

import google.cloud.bigquery  # noqa: F401

fork, spool, *only = sys.argv[1:]

HOOKS = ("flushes before", "logs before", "logs in the parent", "logs in the child")
CASES = [
    *(", ".join((*case, "in memory")) for case in product(HOOKS, ("before", "after"))),
    "logs in the child, before, with a spool",
    "logs in the child, after, with a spool",
]

logger = logging.getLogger("app")
logger.setLevel(logging.INFO)
next_number = iter(range(50, 100))


def log(number: int) -> None:
    payload = {"case": case, "number": number, "text": "PrivateWord"}
    logger.info("x", extra={"event_type": "test", "payload": payload})


def log_one() -> None:
    log(next(next_number))


def flush() -> None:
    (handler,) = logger.handlers
    assert cast("Any", handler).flush(20)


def register(hook: str) -> None:
    if hook == "flushes before":
        os.register_at_fork(before=flush)
    elif hook == "logs before":
        os.register_at_fork(before=log_one)
    elif hook == "logs in the parent":
        os.register_at_fork(after_in_parent=log_one)
    else:
        os.register_at_fork(after_in_child=log_one)


def work() -> None:
    for number in range(100, 105):
        log(number)


def run() -> None:
    hook, registered, buffer = case.split(", ")
    if fork == "multiprocessing":  # before the package; the others after its first sender started
        importlib.import_module(fork)
    if registered == "before":
        register(hook)
    from lorc_eventlog import BigQueryEventHandler

    spool_dir = os.path.join(spool, case) if buffer == "with a spool" else None  # noqa: PTH118
    logger.addHandler(BigQueryEventHandler(source="tests", flush_interval=60, spool_dir=spool_dir))
    if registered == "after":
        register(hook)
    for number in range(5):
        log(number)
    if fork == "os.fork":
        pid = os.fork()
        if pid == 0:
            work()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    else:
        module = fork.partition(" ")[0]
        context: Any = importlib.import_module(module).get_context("fork")
        process = context.Process(target=work)
        process.start()
        process.join()
        assert process.exitcode == 0, process.exitcode


pids = {}
for case in only or CASES:
    pid = os.fork()
    if pid == 0:
        run()
        sys.exit(0)
    pids[pid] = case
failed = [case for pid, case in pids.items() if os.waitpid(pid, 0)[1]]
assert not failed, failed
