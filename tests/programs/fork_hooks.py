"""Fork hooks of the application that log, in the way that the argument names.

    fork_hooks.py WAY [SPOOL_DIR]

WAY is "HOOK, registered before|after the import, FORK". The parent logs 0 to 4, the hook one event
from 50 on, the child 100 to 104.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

hook, registered, fork = sys.argv[1].split(", ")

if fork == "multiprocessing":  # before the package; the others after its first sender has started
    importlib.import_module(fork)

logger = logging.getLogger("app")
logger.setLevel(logging.INFO)
next_number = iter(range(50, 100))


def log(number: int) -> None:
    payload = {"number": number, "text": "PrivateWord"}
    logger.info("x", extra={"event_type": "test", "payload": payload})


def log_one() -> None:
    log(next(next_number))


def register() -> None:
    if hook == "flushes before":
        os.register_at_fork(before=lambda: handler.flush(20))
    elif hook == "logs before":
        os.register_at_fork(before=log_one)
    elif hook == "logs in the parent":
        os.register_at_fork(after_in_parent=log_one)
    else:
        os.register_at_fork(after_in_child=log_one)


if registered == "registered before the import":
    register()

from lorc_eventlog import BigQueryEventHandler  # noqa: E402

handler = BigQueryEventHandler(
    source="tests", flush_interval=60, spool_dir=sys.argv[2] if len(sys.argv) > 2 else None
)
logger.addHandler(handler)
if registered == "registered after the import":
    register()


def work() -> None:
    for number in range(100, 105):
        log(number)


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
