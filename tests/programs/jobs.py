"""Jobs that each log one event; the handler is made when this module is imported.

JOBS_SPOOL_DIR names a spool directory, SPOOL_ONLY_DIR one that a shipper empties. Events wait for a
flush or the end of the process, not for the time.
"""

from __future__ import annotations

import logging
import os

from lorc_eventlog import BigQueryEventHandler
from shipped import spool_only_options

events = BigQueryEventHandler(
    source="tests",
    flush_interval=3600,
    close_timeout=60,
    **(spool_only_options() or {"spool_dir": os.environ.get("JOBS_SPOOL_DIR")}),
)
logger = logging.getLogger("app")
logger.setLevel(logging.INFO)
logger.addHandler(events)


def job(number: int) -> None:
    payload = {"number": number, "pid": os.getpid(), "text": "PrivateWord"}
    logger.info("x", extra={"event_type": "test", "payload": payload})


def job_that_flushes(number: int) -> None:
    job(number)
    events.flush()
