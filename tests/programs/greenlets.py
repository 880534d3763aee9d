"""Logs 2,000 events from greenlets and ends: greenlets.py LIBRARY PATCHED OVERFLOW.

LIBRARY is gevent or eventlet; PATCHED says whether it patches the standard library before or after
the handler is made, or after the handler has delivered an event.
"""

from __future__ import annotations

import importlib
import logging
import sys

library, patched, overflow = sys.argv[1:]

if patched == "before":
    from greenlet_library import patch

    patch(library)

from lorc_eventlog import BigQueryEventHandler  # noqa: E402
from shipped import spool_only_options  # noqa: E402

logger = logging.getLogger("app")
logger.setLevel(logging.INFO)
handler = BigQueryEventHandler(
    source="tests",
    flush_interval=0.05,
    overflow="drop" if overflow == "drop" else "block",
    capacity=100_000 if overflow == "drop" else 100,
    batch_rows=50,
    close_timeout=60,
    **spool_only_options(),
)
logger.addHandler(handler)


def log(number: int) -> None:
    payload = {"number": number, "text": "PrivateWord"}
    logger.info("x", extra={"event_type": "test", "payload": payload})


if patched == "after an event":
    log(2000)
    assert handler.flush(30)
    log(2001)

if patched != "before":
    from greenlet_library import patch

    patch(library)

greenlets = importlib.import_module(library)


def log_some(first: int) -> None:
    for number in range(first, first + 500):
        log(number)
        if number % 7 == 0:
            greenlets.sleep(0.001)


running = [greenlets.spawn(log_some, first) for first in range(0, 2000, 500)]
for greenlet in running:
    greenlet.get() if library == "gevent" else greenlet.wait()
