"""What one log call costs its caller: bursts shorter than a batch, each arm in turn."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

from benchmarks import arms
from benchmarks.events import KILOBYTES, make_payload
from benchmarks.figures import ratio, spread
from benchmarks.server import Remote, environment, running_server

BURST = 300
DELIVER_NOTHING = {"null handler", "QueueHandler", "structlog"}
ARMS: dict[str, arms.Opener] = {
    "null handler": arms.null_handler,
    "QueueHandler": arms.queue_handler,
    "lorc_eventlog": arms.ours,
    "google-cloud-logging": arms.google_cloud_logging,
    "google-cloud-logging, batched": arms.google_cloud_logging_batched,
    "OpenTelemetry": arms.opentelemetry,
    "watchtower": arms.watchtower,
    "structlog": arms.structlog_alone,
    "structlog and lorc_eventlog": arms.structlog_with_ours,
}


def measure(*, rounds: int) -> dict[str, Any]:
    """Return microseconds of a call by payload and arm, and ours as a ratio of the others'."""
    with running_server() as server:
        os.environ.update(environment(server))
        opened = {name: make(server.url) for name, make in ARMS.items()}
        try:
            return {
                str(kilobytes): _one_payload(opened, kilobytes, rounds, server)
                for kilobytes in KILOBYTES
            }
        finally:
            for arm in opened.values():
                arm.close()


def _one_payload(
    opened: dict[str, arms.Arm], kilobytes: float, rounds: int, server: Remote
) -> dict[str, Any]:
    payload = make_payload(kilobytes)
    times: dict[str, list[float]] = {name: [] for name in opened}
    warm_up = 1 + rounds // 10
    for number in range(warm_up + rounds):
        for name, arm in opened.items():
            arguments = arm.arguments(payload)
            server.reset()
            gc.collect()
            started = time.perf_counter()
            arms.log_events(arm, arguments, BURST)
            seconds = time.perf_counter() - started
            arm.settle()
            arrived = server.stats()["events"]
            if arrived != BURST and name not in DELIVER_NOTHING:
                msg = f"{name}: {arrived} of {BURST} events arrived"
                raise RuntimeError(msg)
            if number >= warm_up:
                times[name].append(seconds / BURST * 1e6)
    own = times["lorc_eventlog"]
    result: dict[str, Any] = {
        name: {"microseconds": spread(values), "ours": ratio(own, values)}
        for name, values in times.items()
        if not name.startswith("structlog")
    }
    alone, together = times["structlog"], times["structlog and lorc_eventlog"]
    result["structlog"] = {"microseconds": spread(alone), "ours": ratio(together, alone)}
    result["structlog and lorc_eventlog"] = {
        "microseconds": spread(together),
        "ours": ratio(together, together),
    }
    return result
