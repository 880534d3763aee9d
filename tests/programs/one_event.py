"""Logs one event and ends: one_event.py [WAY]."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from lorc_eventlog import BigQueryEventHandler
from shipped import spool_only_options

way = sys.argv[1] if len(sys.argv) > 1 else ""
logger = logging.getLogger("app")
logger.setLevel(logging.INFO)
handler = BigQueryEventHandler(
    source="tests",
    flush_interval=0.01 if way else 3600,
    close_timeout=60,
    **spool_only_options(),
)
logger.addHandler(handler)


def log(number: int) -> None:
    payload = {"number": number, "text": "PrivateWord"}
    logger.info("x", extra={"event_type": "test", "payload": payload})


if way == "no descriptor is free at first":
    import resource

    with Path("/dev/null").open() as lowest_free:
        FREE_DESCRIPTOR = lowest_free.fileno()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FREE_DESCRIPTOR, hard))
    log(1)
    deadline = time.monotonic() + 30
    while not handler.writer.stats().retries and time.monotonic() < deadline:
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

log(0)
