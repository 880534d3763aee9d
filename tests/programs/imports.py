"""Logs events in a process where the first import of Google's client is made difficult.

usage: imports.py HOW [MODULE]

    registers MODULE    Google's client imports MODULE, which registers with ``threading``
    thread              what Google's client imports registers by itself
    fails MODULE        the search for MODULE fails once
    warns MODULE        MODULE warns when it is imported
    descriptors         no file descriptor is free at first
"""

from __future__ import annotations

import importlib
import importlib.abc
import logging
import os
import resource
import sys
import threading
import time
import warnings

from lorc_eventlog import BigQueryEventHandler

HOW, MODULE = sys.argv[1], sys.argv[-1]


class Difficulty(importlib.abc.MetaPathFinder):
    """Comes in between when Google's client is imported."""

    happened = 0

    def find_spec(self, name: str, *_: object) -> None:
        if HOW == "registers" and name == "google.cloud.bigquery":
            importlib.import_module(MODULE)
            self.happened += 1
        elif HOW == "thread" and name == "google.cloud.bigquery":
            threading._register_atexit(print)  # type: ignore[attr-defined]
            self.happened += 1
        elif HOW == "fails" and name == MODULE and not self.happened:
            self.happened += 1
            raise OSError(24, "Too many open files", name)
        elif HOW == "warns" and name == MODULE:
            self.happened += 1
            warnings.warn(f"{name} is (old)", DeprecationWarning, stacklevel=2)


difficulty = Difficulty()
IS_AT_EXIT = HOW in ("registers", "thread")
handler = BigQueryEventHandler(source="tests", flush_interval=60.0 if IS_AT_EXIT else 0.01)
logger = logging.getLogger("app")
logger.setLevel(logging.INFO)
logger.addHandler(handler)
sys.meta_path.insert(0, difficulty)


def log(number: int) -> None:
    logger.info("x", extra={"event_type": "test.happened", "payload": {"number": number}})


if HOW == "descriptors":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (os.open(os.devnull, os.O_RDONLY), hard))
    log(0)
    while handler.writer.stats().retries == 0:
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    log(1)
else:
    log(0)
    if not IS_AT_EXIT:
        assert handler.flush(60), handler.writer.stats()
        assert difficulty.happened
    log(1)
