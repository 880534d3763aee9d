"""Logs events and ends, in the way that its first argument names.

exits.py WAY [CLOSE_TIMEOUT]
"""

from __future__ import annotations

import atexit
import logging
import logging.config
import os
import signal
import sys
import threading
import time
from collections.abc import Callable


def log(number: int, logger: str = "app") -> None:
    payload = {"number": number, "text": "PrivateWord"}
    extra = {"event_type": "test", "payload": payload, "subject_id": f"PrivateWord-{number}"}
    logging.getLogger(logger).info("x", extra=extra)


def end(status: int = 0) -> None:
    """Leave, from now on by the clock of the test."""
    print("ends", flush=True)  # noqa: T201
    sys.exit(status)


way = sys.argv[1]
close_timeout = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0

if way == "atexit registered before the import":
    atexit.register(log, 100)

if way == "an exit function that takes long":

    def take_long() -> None:
        over = time.monotonic() + close_timeout
        while time.monotonic() < over:
            time.sleep(0.01)
        log(100)
        log(101)

    atexit.register(take_long)

if way == "a handler that an exit function makes":

    def make_and_log() -> None:
        add_handler()
        log(100)

    atexit.register(make_and_log)

if way == "multiprocessing was imported":
    pass

from lorc_eventlog import BigQueryEventHandler, Envelope, EventWriter  # noqa: E402
from shipped import spool_only_options  # noqa: E402

logging.getLogger("app").setLevel(logging.INFO)


def log_and_flush(_envelope: Envelope, _reason: str) -> None:
    log(100)
    handler.flush()


def add_handler(logger: str = "app") -> BigQueryEventHandler:
    handler = BigQueryEventHandler(
        source="tests",
        close_timeout=close_timeout,
        on_dead_letter=log_and_flush if way == "a dead letter callback" else None,
        **spool_only_options(),
    )
    logging.getLogger(logger).addHandler(handler)
    return handler


if way == "several handlers":
    for name in ("app.a", "app.b", "app.c"):
        add_handler(name)
    for number in range(30):
        log(number, f"app.{'abc'[number % 3]}")
    end()

if way == "a handler that an exit function makes":
    end()

CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"bq": {"class": "lorc_eventlog.BigQueryEventHandler", "source": "tests"}},
    "root": {"level": "INFO", "handlers": ["bq"]},
}

if way in ("dictConfig", "dictConfig in an exit function"):
    logging.config.dictConfig(CONFIG)
    if way == "dictConfig in an exit function":
        atexit.register(log, 100)
        atexit.register(logging.config.dictConfig, CONFIG)
    for number in range(30):
        log(number)
    end()

if way == "a writer that nobody refers to":

    def submit() -> None:
        writer = EventWriter(flush_interval=60)
        for number in range(30):
            writer.emit("test", {"number": number}, source="tests")

    submit()
    end()

handler = add_handler()

if way == "only in atexit":
    for number in range(30):
        atexit.register(log, number)
    end()

if way == "only in an atexit registered before the import":
    end()

for number in range(30):
    log(number)

if way == "a destructor when Python has ended":

    class LogsInTheEnd:
        def __del__(self, log: Callable[[int], None] = log) -> None:
            log(100)

    sys.modules["keeps it until the end"] = LogsInTheEnd()  # type: ignore[assignment]

if way == "atexit registered after the import":
    atexit.register(log, 100)
elif way == "sys.exit":
    end(3)
elif way == "an exception":
    raise ValueError("unhandled")
elif way == "closed":
    handler.close()
elif way == "logged after close":
    handler.close()
    log(100)
elif way == "logging.shutdown":
    logging.shutdown()
    log(100)
elif way == "SIGTERM":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("ready", flush=True)  # noqa: T201
    number = 30
    while True:
        log(number)
        print(number, flush=True)  # noqa: T201
        number += 1
        time.sleep(0.001)
elif way == "a thread that goes on":

    def go_on() -> None:
        for number in range(100, 200):
            log(number)
            time.sleep(0.002)

    threading.Thread(target=go_on).start()
elif way == "a daemon thread that goes on":

    def go_on_for_ever() -> None:
        while True:
            log(0)
            time.sleep(0.001)

    threading.Thread(target=go_on_for_ever, daemon=True).start()
elif way == "os._exit after a flush":
    handler.flush()
    os._exit(0)
elif way == "os._exit":
    os._exit(0)
elif way == "execv":
    os.execv(sys.executable, [sys.executable, __file__, "end of the script"])
elif way == "SIGKILL":
    os.kill(os.getpid(), signal.SIGKILL)

print("ends", flush=True)  # noqa: T201
