"""Whether a full buffer, or a long run, makes an event dearer."""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks import arms, cpu_per_event
from benchmarks.events import make_payload
from benchmarks.figures import ratio, spread
from benchmarks.server import ROOT, Remote, environment, running_server

BUFFERED = (0, 10_000, 90_000)
BURST = 100
OPTIONS = {"capacity": 200_000, "capacity_bytes": 2**30, "close_timeout": 0.5}


def measure(*, rounds: int, events: list[int]) -> dict[str, Any]:
    """Return the call by how many events wait, and CPU for an event by how many there are."""
    with running_server() as server, running_server() as silent:
        cpu = _cpu_by_events(server, max(3, rounds // 10), events)
        silent.script(then="hang")
        program = [sys.executable, "-m", "benchmarks.growth", str(rounds), server.url, silent.url]
        answer = subprocess.run(
            program, check=False, capture_output=True, text=True, cwd=ROOT, env=environment(server)
        )
    if answer.returncode:
        raise RuntimeError(answer.stderr)
    return {"call_by_buffered": json.loads(answer.stdout), "cpu_by_events": cpu}


def _cpu_by_events(server: Remote, rounds: int, events: list[int]) -> dict[str, Any]:
    times: dict[int, list[float]] = {count: [] for count in events}
    for number in range(rounds):
        for count in events:
            if count < max(events) or number == 0:  # a million take long, and vary little
                runs = max(1, 20_000 // count)
                times[count].append(
                    cpu_per_event.microseconds("lorc_eventlog", count, server, runs=runs)
                )
    first = spread(times[events[0]])[0]
    return {
        str(count): {
            "microseconds": spread(values),
            "first": spread([v / first for v in values]),
            "processes": len(values),
        }
        for count, values in times.items()
    }


def call_by_buffered(rounds: int, server: Remote, silent: Remote) -> dict[str, Any]:
    """Log in turn into a buffer that is emptied, and others whose server does not answer."""
    payload = make_payload(0.2)
    filled = {}
    for count in BUFFERED:
        where = silent if count else server
        os.environ.update(environment(where))
        filled[count] = arms.ours(where.url, name=f"ours{count}", **OPTIONS)
        arms.log_events(filled[count], filled[count].arguments(payload), count or BURST)
        time.sleep(1.0)  # until it has made its client, from the environment
    times: dict[int, list[float]] = {count: [] for count in BUFFERED}
    for number in range(3 + rounds):
        for count, arm in filled.items():
            arguments = arm.arguments(payload)
            if not count:
                arm.settle()
            gc.collect()
            started = time.perf_counter()
            arms.log_events(arm, arguments, BURST)
            if number >= 3:
                times[count].append((time.perf_counter() - started) / BURST * 1e6)
    return {
        str(count): {"microseconds": spread(values), "empty": ratio(values, times[0])}
        for count, values in times.items()
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int)
    parser.add_argument("url")
    parser.add_argument("silent_url")
    options = parser.parse_args()
    urls = Remote(options.url), Remote(options.silent_url)
    print(json.dumps(call_by_buffered(options.rounds, *urls)), flush=True)
    os._exit(0)  # not the exit of a user: what waits is for nobody


if __name__ == "__main__":
    main()
