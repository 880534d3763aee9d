"""Measure everything, then write benchmarks/results.json and what the page about performance shows.

python -m benchmarks            a quarter of an hour, on a machine that does nothing else
python -m benchmarks --quick    two minutes, to see that it works
python -m benchmarks --only call_cost --only start
python -m benchmarks --no-measure   only write the page anew
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import call_cost, cpu_per_event, disk, growth, page, plot, start, sustained

PACKAGES = (
    "google-cloud-bigquery",
    "google-cloud-logging",
    "opentelemetry-sdk",
    "watchtower",
    "python-logstash-async",
    "persist-queue",
    "structlog",
    "orjson",
)

FULL: dict[str, Callable[[], dict[str, Any]]] = {
    "call_cost": lambda: call_cost.measure(rounds=40),
    "disk": lambda: disk.measure(rounds=20),
    "cpu_per_event": lambda: cpu_per_event.measure(rounds=9, events=20_000),
    "sustained": lambda: sustained.measure(
        rate=20_000, seconds=30, rates=[25_000, 30_000, 35_000, 40_000, 45_000, 50_000]
    ),
    "growth": lambda: growth.measure(rounds=100, events=[1_000, 100_000, 1_000_000]),
    "start": lambda: start.measure(rounds=15),
}
QUICK: dict[str, Callable[[], dict[str, Any]]] = {
    "call_cost": lambda: call_cost.measure(rounds=3),
    "disk": lambda: disk.measure(rounds=2),
    "cpu_per_event": lambda: cpu_per_event.measure(rounds=1, events=10_000),
    "sustained": lambda: sustained.measure(rate=20_000, seconds=5, rates=[30_000]),
    "growth": lambda: growth.measure(rounds=10, events=[1_000, 10_000]),
    "start": lambda: start.measure(rounds=2),
}


def main() -> None:
    """Measure what is asked for; figures of an earlier run stay where nothing is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, in under two minutes")
    parser.add_argument("--only", choices=FULL, action="append", help="measure nothing else")
    parser.add_argument("--no-measure", action="store_true", help="only write the page anew")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    if page.RESULTS.exists():
        results = json.loads(page.RESULTS.read_text())
    if not options.no_measure:
        machine = describe_machine()
        if results.get("machine") != machine:  # figures of two machines do not compare
            results = {"machine": machine, "quick": []}
        for name, measure in (QUICK if options.quick else FULL).items():
            if options.only is None or name in options.only:
                began = time.monotonic()
                results[name] = measure()
                results["quick"] = [*({*results["quick"]} - {name}), *[name] * options.quick]
                print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
                page.RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    page.write(results)
    if results.keys() >= {"call_cost", "cpu_per_event"}:
        plot.draw(results, page.PLOT)


def describe_machine() -> dict[str, Any]:
    """Return what a figure depends on, and nothing by which the machine is known."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.partition(":")[2].strip()
            for line in information.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    main()
