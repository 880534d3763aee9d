"""Applications that only write to disk, and the shipper that delivers for them.

Each part is from processes of its own:

    python -m benchmarks.ship                    all of it, in about six minutes
    python -m benchmarks.ship --quick            in under a minute, to see that it works
    python -m benchmarks.ship --only throughput

throughput   events a second that one shipper delivers over REST to a server that answers after
             100 ms, what processor time each takes, and the most memory of the shipper, by how
             many events wait
idle         percent of a core that a shipper takes while nothing comes
call         a log call with spool_only as a ratio of QueueHandler's
start        milliseconds that a program of one event takes longer than an empty interpreter
due          microseconds from when a call was due until it returned, at 20,000 events a second,
             while a shipper delivers them on the same machine
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks import arms
from benchmarks.events import make_payload
from benchmarks.figures import ratio, spread
from benchmarks.server import ROOT, Remote, environment, running_server
from benchmarks.sustained import LATENCY, log_steadily, percentiles

BURST = 300
RATE = 20_000


def throughput(*, events: list[int]) -> dict[str, Any]:
    """Return events a second and the most memory, by how many events wait for the shipper."""
    figures = {}
    for count in events:
        with running_server(LATENCY) as server, spool() as directory:
            _in_another_process(server, "write", str(directory), str(count))
            process = _start_shipper(server, directory, "--until-empty")
            try:
                figures[str(count)] = _watch(process, server, count)
            finally:
                process.kill()
                process.wait()
    return figures


def idle(*, seconds: float) -> dict[str, float]:
    """Return the percent of a core that a shipper takes beside an application that is silent."""
    with running_server() as server, spool() as directory:
        _in_another_process(server, "write", str(directory), "10")
        process = _start_shipper(server, directory)
        try:
            server.wait_for_events(10, 60)
            time.sleep(2)  # its senders rest
            watched = psutil.Process(process.pid)
            before = sum(watched.cpu_times()[:2])
            time.sleep(seconds)
            used = sum(watched.cpu_times()[:2]) - before
        finally:
            process.terminate()
            process.wait()
    return {"percent": round(100 * used / seconds, 2)}


def call(*, rounds: int) -> dict[str, Any]:
    """Return microseconds of a log call, of QueueHandler's, and the ratio."""
    with running_server() as server, spool() as directory:
        answer = _in_another_process(server, "call", str(directory), str(rounds))
    figures: dict[str, Any] = json.loads(answer)
    return figures


def start(*, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of a whole program, from its start to its end."""
    code = (
        "import logging, sys\n"
        "from lorc_eventlog import BigQueryEventHandler\n"
        "events = BigQueryEventHandler(source='s', spool_dir=sys.argv[1], spool_only=True)\n"
        "logger = logging.getLogger('a')\n"
        "logger.setLevel(logging.INFO)\n"
        "logger.addHandler(events)\n"
        "logger.info('x', extra={'event_type': 'a.b', 'payload': {'number': 1}})\n"
    )
    longer = []
    with tempfile.TemporaryDirectory() as compiled, spool() as directory:
        variables = environment(Remote("")) | {"PYTHONPYCACHEPREFIX": compiled}
        variables.pop("PYTHONDONTWRITEBYTECODE", None)
        for number in range(rounds + 1):
            empty = _milliseconds("pass", directory, variables)
            took = _milliseconds(code, directory, variables)
            if number:  # the first one compiles what is imported
                longer.append(took - empty)
    return {"milliseconds": spread(longer)}


def due(*, seconds: float) -> dict[str, Any]:
    """Return percentiles at 20,000 events a second beside a shipper, and of a null handler."""
    control = json.loads(_sustained(seconds, "null"))
    with running_server(LATENCY) as server, spool() as directory:
        process = _start_shipper(server, directory)
        try:
            answer = _in_another_process(server, "due", str(directory), str(seconds))
            figures: dict[str, Any] = json.loads(answer)
            arrived = server.wait_for_events(figures["logged"], 60)
        finally:
            process.terminate()
            process.wait()
    return {"control": control["due_microseconds"], **figures, "arrived": arrived}


# The processes


def _write(directory: str, count: str) -> None:
    """Leave so many events in a directory."""
    arm = arms.ours("", spool_dir=directory, spool_only=True, spool_max_bytes=2**40)
    arms.log_events(arm, arm.arguments(make_payload(0.2)), int(count))
    arm.close()


def _call(directory: str, rounds: str) -> None:
    ours = arms.ours("", spool_dir=directory, spool_only=True)
    queue = arms.queue_handler("")
    times: dict[str, list[float]] = {"ours": [], "QueueHandler": []}
    for number in range(int(rounds) + 3):
        for name, arm in (("ours", ours), ("QueueHandler", queue)):
            arguments = arm.arguments(make_payload(0.2))
            gc.collect()
            started = time.thread_time()
            arms.log_events(arm, arguments, BURST)
            took = (time.thread_time() - started) / BURST * 1e6
            queue.settle()
            if number >= 3:  # before that it warms up
                times[name].append(took)
    figures: dict[str, Any] = {name: spread(values) for name, values in times.items()}
    print(json.dumps({**figures, "ratio": ratio(times["ours"], times["QueueHandler"])}))


def _due(directory: str, seconds: str) -> None:
    arm = arms.ours("", spool_dir=directory, spool_only=True)
    count = round(RATE * float(seconds))
    durations = array("d", bytes(8 * count))
    lags = array("d", durations)
    arguments = arm.arguments(make_payload(0.2))
    arms.log_events(arm, arguments, BURST)
    log_steadily(arm, arguments, RATE, durations, lags, time.perf_counter())
    writer = arm.handler.writer  # type: ignore[union-attr]
    figures = {
        "call_microseconds": percentiles(durations),
        "due_microseconds": percentiles(lags),
        "logged": count + BURST,
        "dropped": writer.stats().dropped,
    }
    arm.close()
    print(json.dumps(figures))


_PARTS: dict[str, Callable[[str, str], None]] = {"write": _write, "call": _call, "due": _due}


@contextmanager
def spool() -> Iterator[Path]:
    """Make a directory for segments, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made) / "events"


def _in_another_process(server: Remote, *arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.ship", "--part", *arguments]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(server)
    ).stdout


def _sustained(seconds: float, handler: str) -> str:
    with running_server() as server:
        command = [sys.executable, "-m", "benchmarks.sustained", str(RATE), str(seconds), handler]
        return subprocess.run(
            [*command, server.url],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(server),
        ).stdout


def _start_shipper(server: Remote, directory: Path, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "lorc_eventlog", "ship", str(directory), *options],
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment(server),
    )


def _watch(process: subprocess.Popen[bytes], server: Remote, count: int) -> dict[str, float]:
    """Return what it took from the first event that arrived to the last."""
    watched = psutil.Process(process.pid)
    most, began, before, arrived = 0, 0.0, 0.0, 0
    first = 0
    while arrived < count:
        time.sleep(0.05)
        if process.poll() is not None:
            msg = f"{arrived} of {count} events arrived, exit code {process.returncode}"
            raise RuntimeError(msg)
        arrived = server.stats()["events"]
        most = max(most, watched.memory_info().rss)
        if arrived and not began:
            began, before, first = time.perf_counter(), sum(watched.cpu_times()[:2]), arrived
    seconds = time.perf_counter() - began
    processor = sum(watched.cpu_times()[:2]) - before
    return {
        "events_per_second": round((count - first) / seconds),
        "processor_microseconds": round(processor / max(1, count - first) * 1e6, 1),
        "memory_mb": round(most / 1e6, 1),
    }


def _milliseconds(code: str, directory: Path, variables: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, str(directory)], check=True, cwd=ROOT, env=variables
    )
    return (time.perf_counter() - started) * 1000


FULL: dict[str, Callable[[], dict[str, Any]]] = {
    "throughput": lambda: throughput(events=[10_000, 100_000, 1_000_000]),
    "idle": lambda: idle(seconds=60),
    "call": lambda: call(rounds=60),
    "start": lambda: start(rounds=15),
    "due": lambda: due(seconds=30),
}
QUICK: dict[str, Callable[[], dict[str, Any]]] = {
    "throughput": lambda: throughput(events=[10_000, 50_000]),
    "idle": lambda: idle(seconds=5),
    "call": lambda: call(rounds=10),
    "start": lambda: start(rounds=3),
    "due": lambda: due(seconds=3),
}


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, in under a minute")
    parser.add_argument("--only", choices=FULL, action="append", help="measure nothing else")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        name, *arguments = options.part
        _PARTS[name](*arguments)
        return
    for name, measure in (QUICK if options.quick else FULL).items():
        if options.only is None or name in options.only:
            print(json.dumps({name: measure()}), flush=True)


if __name__ == "__main__":
    main()
