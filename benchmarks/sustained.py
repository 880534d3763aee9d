"""A steady stream of events into a BigQuery that takes 100 ms to answer.

Each figure is from a process of its own:

    python -m benchmarks.sustained 20000 30
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from array import array
from typing import Any

import psutil

from benchmarks import arms
from benchmarks.events import MESSAGE, make_payload
from benchmarks.server import ROOT, Remote, environment, running_server

LATENCY = 0.1
TICK = 0.001
HELD = 0.98
"""A rate holds if so much of it was logged in the time, nothing was dropped, all arrived..."""
CATCH_UP = 2.0
"""... and the rest, once nothing more is logged, within so many seconds."""


def measure(*, rate: int, seconds: float, rates: list[int]) -> dict[str, Any]:
    """Return the figures at ``rate``, and the highest of ``rates`` that holds for 10 seconds.

    The same calls into a null handler show what of a percentile is the machine's.
    """
    control = one_rate(rate, min(10.0, seconds), handler="null")
    steady = one_rate(rate, seconds)
    highest = 0
    tried = []
    for higher in rates:
        figures = one_rate(higher, min(10.0, seconds))
        tried.append(figures)
        if not figures["holds"]:
            break
        highest = higher
    return {"control": control, "steady": steady, "highest_rate": highest, "tried": tried}


def one_rate(rate: int, seconds: float, handler: str = "ours") -> dict[str, Any]:
    """Run :func:`run` in a new process, against a new server."""
    with running_server(LATENCY) as server:
        program = [sys.executable, "-m", "benchmarks.sustained", str(rate), str(seconds)]
        answer = subprocess.run(
            [*program, handler, server.url],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(server),
        )
    if answer.returncode:
        raise RuntimeError(answer.stderr)
    figures: dict[str, Any] = json.loads(answer.stdout)
    return figures


class _Watch:
    """Looks ten times a second how large the backlog and the process are."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.memory_before = self._process.memory_info().rss
        self.memory = self.memory_before
        self.backlog = 0
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.1):
            self.backlog = max(self.backlog, self._writer.stats().buffered)
            self.memory = max(self.memory, self._process.memory_info().rss)

    def stop(self) -> None:
        self._done.set()
        self._thread.join()


def percentiles(durations: array[float]) -> dict[str, float]:
    """Return the microseconds within which so many percent of the calls ended."""
    ordered = sorted(durations)
    found = {f"p{p:g}": ordered[int(len(ordered) * p / 100)] for p in (50, 99, 99.9)}
    return {name: round(s * 1e6, 1) for name, s in (found | {"max": ordered[-1]}).items()}


def run_null(rate: int, seconds: float, server: Remote) -> dict[str, Any]:
    """Log into a null handler at the same rate, and collect the same garbage as ours has to."""
    import google.cloud.bigquery  # noqa: F401  for the size of the heap

    arm = arms.null_handler(server.url)
    durations = array("d", bytes(8 * round(rate * seconds)))
    lags = array("d", durations)
    arguments = arm.arguments(make_payload(0.2))
    log_steadily(arm, arguments, rate, durations, lags, time.perf_counter())
    return {
        "rate": rate,
        "seconds": seconds,
        "call_microseconds": percentiles(durations),
        "due_microseconds": percentiles(lags),
    }


def run(rate: int, seconds: float, server: Remote) -> dict[str, Any]:
    """Log ``rate`` events a second, each call on the clock, and see what arrives."""
    arm = arms.ours(server.url)
    writer = arm.handler.writer  # type: ignore[union-attr]
    arguments = arm.arguments(make_payload(0.2))
    arms.log_events(arm, arguments, 2 * arms.BATCH)
    arm.settle()
    server.reset()
    count = round(rate * seconds)
    durations = array("d", bytes(8 * count))
    lags = array("d", durations)
    watch = _Watch(writer)
    started = time.perf_counter()
    log_steadily(arm, arguments, rate, durations, lags, started)
    logging_took = time.perf_counter() - started
    settled = arm.settle()
    caught_up_after = time.perf_counter() - started - logging_took
    watch.stop()
    stats = writer.stats()
    arrived = server.stats()["events"]
    arm.close()
    return {
        "rate": rate,
        "seconds": seconds,
        "logged_per_second": round(count / logging_took),
        "logged": count,
        "arrived": arrived,
        "dropped": stats.dropped,
        "largest_backlog": watch.backlog,
        "memory_growth_mb": round((watch.memory - watch.memory_before) / 1e6, 1),
        "call_microseconds": percentiles(durations),
        "due_microseconds": percentiles(lags),
        "caught_up_after_seconds": round(caught_up_after, 2),
        "holds": bool(
            settled
            and arrived == count
            and logging_took <= seconds / HELD
            and caught_up_after <= CATCH_UP
        ),
    }


def log_steadily(
    arm: arms.Arm,
    arguments: dict[str, Any],
    rate: int,
    durations: array[float],
    lags: array[float],
    started: float,
) -> None:
    """Log, and note how long each call took, and how long after it was due it had returned."""
    log = arm.log
    clock = time.perf_counter
    logged = 0
    count = len(durations)
    while logged < count:
        due = min(count, round((clock() - started + TICK) * rate))
        for index in range(logged, due):
            before = clock()
            log(MESSAGE, **arguments)
            after = clock()
            durations[index] = after - before
            lags[index] = max(0.0, after - started - index / rate)
        logged = due
        time.sleep(max(0.0, started + logged / rate - clock() - TICK))


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rate", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("handler", nargs="?", choices=("ours", "null"), default="ours")
    parser.add_argument("url", nargs="?")
    options = parser.parse_args()
    if options.url is None:
        print(json.dumps(one_rate(options.rate, options.seconds, options.handler), indent=2))
    else:
        measured = run if options.handler == "ours" else run_null
        print(json.dumps(measured(options.rate, options.seconds, Remote(options.url))))


if __name__ == "__main__":
    main()
