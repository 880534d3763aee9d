"""A WSGI application that logs one event for each request."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lorc_eventlog import BigQueryEventHandler
from shipped import spool_only_options

logger = logging.getLogger("app")
logger.setLevel(logging.INFO)
logger.addHandler(BigQueryEventHandler(source="tests", close_timeout=25, **spool_only_options()))


def log(number: int) -> None:
    payload = {"number": number, "pid": os.getpid(), "text": "PrivateWord"}
    logger.info("x", extra={"event_type": "test", "payload": payload})


if "QUIET_IMPORT" not in os.environ:
    log(0)  # before the fork, with --preload


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    log(int(environ["PATH_INFO"].strip("/")))
    headers = [
        ("Content-Type", "text/plain"),
        ("Content-Length", "2"),
        ("Worker", str(os.getpid())),
    ]
    start_response("200 OK", headers)
    return slowly(float(environ["QUERY_STRING"])) if environ["QUERY_STRING"] else [b"ok"]


def slowly(seconds: float) -> Iterator[bytes]:
    yield b"o"
    time.sleep(seconds)
    yield b"k"
