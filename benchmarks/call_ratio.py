"""What a log call costs here, as a ratio of what it costs in another checkout of the package.

python -m benchmarks.call_ratio --against DIR [--rounds 40]

A process for each of the two, and a burst of each in turn, so that what else the machine does
touches both alike. The ratios are those of bursts of the same round, and the time is the calling
thread's own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import arms
from benchmarks.events import KILOBYTES, make_fields, make_payload
from benchmarks.figures import ratio, spread
from benchmarks.server import environment, running_server

BURST = 300
ON_DISK = "log, spooled"
HERE = Path(__file__).parent.parent


def measure(against: Path, *, rounds: int) -> dict[str, dict[str, Any]]:
    """Return microseconds of both and their ratio, by what is called and its payload."""
    with running_server() as server:
        settings = os.environ | environment(server)
        children = [start(HERE, server.url, settings), start(against, server.url, settings)]
        times: dict[str, tuple[list[float], list[float]]] = {}
        try:
            for number in range(rounds + 3):
                for name in (
                    "submit_row",
                    "QueueHandler",
                    *(f"log {size} KB" for size in KILOBYTES),
                    ON_DISK,
                ):
                    order = (0, 1) if number % 2 else (1, 0)
                    took = {index: ask(children[index], name) for index in order}
                    if number >= 3:  # before that it warms up
                        for index, seconds in took.items():
                            times.setdefault(name, ([], []))[index].append(seconds)
        finally:
            for child in children:
                child.terminate()
    return {
        name: {"here": spread(here), "there": spread(there), "ratio": ratio(here, there)}
        for name, (here, there) in times.items()
    }


def start(package: Path, url: str, settings: dict[str, str]) -> subprocess.Popen[str]:
    """Start a process that measures the package in ``package``, with the benchmarks of this one."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import lorc_eventlog; sys.path[0] = "
        "sys.argv[2]; from benchmarks.call_ratio import answer; answer(sys.argv[3])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(package), str(HERE), url],
        env=settings,
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(child: subprocess.Popen[str], name: str) -> float:
    """Have ``child`` call once more; returns the microseconds of a call."""
    assert child.stdin is not None
    assert child.stdout is not None
    print(name, file=child.stdin, flush=True)
    return float(child.stdout.readline())


def answer(url: str) -> None:
    """Measure what is asked for, line by line."""
    arm, queue_arm = arms.ours(url), arms.queue_handler(url)
    calls = {"QueueHandler": log_call(queue_arm, make_payload(0.2))}
    for size in KILOBYTES:
        calls[f"log {size} KB"] = log_call(arm, make_payload(size))
    calls["submit_row"] = submit_call(arm)
    with tempfile.TemporaryDirectory() as directory:
        on_disk = arms.ours_on_disk(url, Path(directory), sync="normal")
        calls[ON_DISK] = log_call(on_disk, make_payload(0.2))
        _answer(calls, [arm, queue_arm, on_disk])


def _answer(calls: dict[str, Callable[[], object]], opened: list[arms.Arm]) -> None:
    for line in sys.stdin:
        call = calls[line.strip()]
        gc.collect()
        started = time.thread_time()
        for _ in range(BURST):
            call()
        seconds = time.thread_time() - started
        for arm in opened:
            arm.settle()
        print(seconds / BURST * 1e6, flush=True)


def log_call(arm: arms.Arm, payload: dict[str, Any]) -> Callable[[], object]:
    """Return a log call of ``payload``."""
    arguments = arm.arguments(payload)
    return lambda: arm.log("email received", **arguments)


def submit_call(arm: arms.Arm) -> Callable[[], object]:
    """Return a call of ``submit_row`` with a row that is made already."""
    handler: Any = arm.handler
    submit = handler.writer.submit_row
    row = {"event_id": "", **make_fields({}), "schema_ref": None, "created_at": time.time()}
    row["payload"] = json.dumps(make_payload(0.2))
    return lambda: submit({**row})


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, required=True, help="another checkout")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    print(f"{'':12} {'here':>8} {'there':>8} {'ratio':>7}  (microseconds a call, median)")
    for name, figures in measure(options.against.resolve(), rounds=options.rounds).items():
        here, there, both = (figures[key][0] for key in ("here", "there", "ratio"))
        print(f"{name:12} {here:8.2f} {there:8.2f} {both:7.3f}")


if __name__ == "__main__":
    main()
