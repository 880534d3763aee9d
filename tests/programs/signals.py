"""Blocks SIGTERM in its main thread, is sent one, and logs an event: signals.py WAY."""

from __future__ import annotations

import logging
import os
import signal
import sys

from lorc_eventlog import BigQueryEventHandler
from lorc_eventlog.lifecycle.signals import without_signals

way = sys.argv[1]
logger = logging.getLogger("app")
logger.setLevel(logging.INFO)
handler = BigQueryEventHandler(source="tests", background=way != "in the foreground")
logger.addHandler(handler)


def log(number: int) -> None:
    logger.info("x", extra={"event_type": "test", "payload": {"number": number}})


log(0)  # imports Google's client
assert handler.flush(30)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getpid(), signal.SIGTERM)
log(1)
assert handler.flush(30)
assert signal.sigpending() == {signal.SIGTERM}  # nobody has taken it
assert signal.sigwait({signal.SIGTERM}) == signal.SIGTERM
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

handled: list[int] = []
signal.signal(signal.SIGTERM, lambda number, _: handled.append(number))


def be_sent_one() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert handled == []


without_signals(be_sent_one)
assert handled == [signal.SIGTERM]
