"""CPU of the process for each delivered event: from the call until the server has it.

Each figure is from a process of its own, which imports only what its arm needs:

    python -m benchmarks.cpu_per_event lorc_eventlog 20000
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from typing import Any

from benchmarks import arms
from benchmarks.events import make_payload
from benchmarks.figures import ratio, spread
from benchmarks.server import ROOT, Remote, environment, running_server

WARM_UP = 2 * arms.BATCH
TIMEOUT = 300.0

ARMS: dict[str, arms.Opener] = {
    "floor": arms.floor,
    "lorc_eventlog": arms.ours_blocking,
    "emit in the call": arms.emit_in_the_call,
    "insert_rows_json by hand": arms.by_hand,
    "google-cloud-logging": arms.google_cloud_logging,
    "google-cloud-logging, batched": arms.google_cloud_logging_batched,
    "OpenTelemetry": arms.opentelemetry_large_queue,
    "watchtower": arms.watchtower,
}
SLOW = {"emit in the call", "google-cloud-logging"}  # a request for each event, or for each ten


def measure(*, rounds: int, events: int) -> dict[str, Any]:
    """Return microseconds of CPU an event by arm, and as a ratio of the floor's and of ours."""
    times: dict[str, list[float]] = {name: [] for name in ARMS}
    with running_server() as server:
        for _ in range(rounds):
            for name in ARMS:
                count = events // 10 if name in SLOW else events
                times[name].append(microseconds(name, count, server))
    return {
        name: {
            "microseconds": spread(values),
            "floor": ratio(values, times["floor"]),
            "ours": ratio(times["lorc_eventlog"], values),
        }
        for name, values in times.items()
    }


def microseconds(name: str, events: int, server: Remote, *, runs: int = 1) -> float:
    """Measure one arm in a new process: the median of so many ``runs`` there."""
    program = [sys.executable, "-m", "benchmarks.cpu_per_event", name, str(events), str(runs)]
    program.append(server.url)
    answer = subprocess.run(
        program, check=False, capture_output=True, text=True, cwd=ROOT, env=environment(server)
    )
    if answer.returncode:
        raise RuntimeError(answer.stderr)
    return float(answer.stdout)


def run(name: str, events: int, runs: int, server: Remote) -> float:
    """Measure in this process; raises if an event did not arrive."""
    arm = ARMS[name](server.url)
    arguments = arm.arguments(make_payload(0.2))
    arms.log_events(arm, arguments, WARM_UP)
    arm.settle()
    figures = []
    for _ in range(runs):
        server.reset()
        gc.collect()
        started = time.process_time()
        arms.log_events(arm, arguments, events)
        arm.settle()
        figures.append((time.process_time() - started) / events * 1e6)
        arrived = server.stats()["events"]
        if arrived != events and name != "floor":
            msg = f"{name}: {arrived} of {events} events arrived"
            raise RuntimeError(msg)
    arm.close()
    return spread(figures)[0]


def main() -> None:
    """Print the microseconds of CPU for an event."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("events", type=int)
    parser.add_argument("runs", type=int, nargs="?", default=1)
    parser.add_argument("url", nargs="?")
    options = parser.parse_args()
    print(json.dumps(run(options.arm, options.events, options.runs, Remote(options.url))))


if __name__ == "__main__":
    main()
