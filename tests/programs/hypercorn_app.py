"""An ASGI application that logs one event for each request, as the page on processes says."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from lorc_eventlog import BigQueryEventHandler

if multiprocessing.parent_process() is not None:  # a worker, which hypercorn ends otherwise
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

logger = logging.getLogger("app")
logger.setLevel(logging.INFO)
logger.addHandler(BigQueryEventHandler(source="tests", flush_interval=3600, close_timeout=50))


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    while scope["type"] == "lifespan":
        step = (await receive())["type"]
        await send({"type": f"{step}.complete"})
        if step == "lifespan.shutdown":
            return
    payload = {"number": int(scope["path"].strip("/")), "text": "PrivateWord"}
    logger.info("x", extra={"event_type": "test", "payload": payload})
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})
