"""Logs an event that only an orderly exit delivers, and waits for SIGTERM: sigterm.py WAY."""

from __future__ import annotations

import atexit
import logging
import logging.config
import os
import signal
import sys
import time

# A shell, or the coverage of the tests, may have set something.
signal.signal(signal.SIGTERM, signal.SIG_DFL)

import lorc_eventlog  # noqa: E402, F401  registers its exit function, which runs after ours

way = sys.argv[1]
logging.config.dictConfig(
    {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {
            "events": {
                "class": "lorc_eventlog.BigQueryEventHandler",
                "source": "tests",
                "flush_interval": 3600,
                "deliver_on_sigterm": True,
            }
        },
        "root": {"level": "INFO", "handlers": ["events"]},
    }
)


def log(number: int) -> None:
    logging.info("x", extra={"event_type": "test", "payload": {"number": number}})  # noqa: LOG015


def wait_for_signals() -> None:
    # Hazard: Python notes a signal that comes while time.sleep begins, and calls the handler when
    # it ends.
    while True:
        time.sleep(0.1)


def hang() -> None:
    print("exits", flush=True)  # noqa: T201
    wait_for_signals()


def status_of_child(*numbers: int) -> int:
    """Fork a child that logs ``numbers``, end it by SIGTERM, and tell how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        if "coverage" in sys.modules:  # sets a handler in each process that it measures
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in numbers:
            log(number)
        os.write(writing, b"ready")
        wait_for_signals()
    os.read(reading, 5)
    os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if way == "children":
    print(status_of_child(), status_of_child(1))  # noqa: T201
elif way == "hangs at the exit":
    atexit.register(hang)
log(0)
print("ready", flush=True)  # noqa: T201
wait_for_signals()
