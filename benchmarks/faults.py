"""The same faults met by lorc_eventlog and by three other ways to deliver logs.

Writes a table into docs/operate/reliability.md, and prints it. Each cell is a program of its own,
with each library's default options, against a server of its own:

    python -m benchmarks.faults
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from benchmarks import arms
from benchmarks.events import MESSAGE, make_payload
from benchmarks.server import ROOT, Remote, environment, running_server

PAGE = ROOT / "docs" / "operate" / "reliability.md"
PATIENCE = 45.0
"""A program that has not ended after so many seconds is ended."""

LIBRARIES: dict[str, arms.Opener] = {
    "lorc_eventlog": arms.ours,
    "google-cloud-logging": arms.google_cloud_logging,
    "OpenTelemetry": arms.opentelemetry,
    "watchtower": arms.watchtower,
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and the program that meets it."""

    what: str
    events: int
    program: Callable[[arms.Arm, int, Remote], None]
    script: tuple[str, ...] = ()
    then: str = "ok"
    latency: float = 0.0


def log_numbered(arm: arms.Arm, numbers: range) -> None:
    """Log one event for each number, each with a marker of its own."""
    for number in numbers:
        arm.log(MESSAGE, **arm.arguments(make_payload(0.2, number)))


def log_and_flush(arm: arms.Arm, events: int, server: Remote) -> None:  # noqa: ARG001
    """Log, flush, end."""
    log_numbered(arm, range(events))
    arm.settle()


def log_and_end(arm: arms.Arm, events: int, server: Remote) -> None:  # noqa: ARG001
    """Log and end, without a flush: the library's own exit function has to do it."""
    log_numbered(arm, range(events))


def log_in_child(arm: arms.Arm, events: int, server: Remote) -> None:
    """Log one event, then the others in a process of multiprocessing that is forked."""
    _fork(arm, events, server, log_and_end)


def log_in_child_and_flush(arm: arms.Arm, events: int, server: Remote) -> None:
    """Do the same; the child flushes before it ends."""
    _fork(arm, events, server, log_and_flush)


def _fork(
    arm: arms.Arm,
    events: int,
    server: Remote,
    program: Callable[[arms.Arm, int, Remote], None],
) -> None:
    log_numbered(arm, range(events, events + 1))
    arm.settle()
    server.reset()
    child = multiprocessing.get_context("fork").Process(target=program, args=(arm, events, server))
    child.start()
    child.join(PATIENCE / 2)
    if child.exitcode is None:
        child.kill()


def log_into_outage(arm: arms.Arm, events: int, server: Remote) -> None:
    """Log far more than a buffer holds while the server refuses; then it is well, and flush."""
    process = psutil.Process()
    before = process.memory_info().rss
    log_numbered(arm, range(events))
    print(f"memory {(process.memory_info().rss - before) / 1e6:.0f}", flush=True)
    server.script()
    arm.settle()


def flush_with_timeout(arm: arms.Arm, events: int, server: Remote) -> None:  # noqa: ARG001
    """Ask for a flush of one second, in the way of the library if it has one."""
    log_numbered(arm, range(events))
    started = time.monotonic()
    if arm.handler is not None and hasattr(arm.handler, "writer"):
        arm.handler.flush(timeout=1.0)  # type: ignore[call-arg]
    elif getattr(arm.settle, "__name__", "") == "force_flush":
        arm.settle(timeout_millis=1000)  # type: ignore[call-arg]
    else:
        arm.settle()
    print(f"flush {time.monotonic() - started:.1f}", flush=True)
    os._exit(0)


FAULTS = {
    "outage": Fault(
        "3 x 503 and 3 x 429, then health",
        700,
        log_and_flush,
        ("503", "503", "503", "429", "429", "429"),
    ),
    "answers": Fault("3 answers lost after storing", 700, log_and_flush, ("lost",) * 3),
    "down": Fault("down (503) when the program ends", 100, log_and_end, then="503"),
    "child": Fault("logged in a forked child", 100, log_in_child),
    "child-flush": Fault("logged in a forked child that flushes", 100, log_in_child_and_flush),
    "exit": Fault("the program ends with 10,000 events waiting", 10_000, log_and_end, latency=0.05),
    "full": Fault(
        "200,000 events during an outage (503), then health",
        200_000,
        log_into_outage,
        then="503",
    ),
    "flush": Fault("flush of 1 s, no answer", 10, flush_with_timeout, then="hang"),
}


def meet(fault: str, library: str) -> str:
    """Let ``library`` meet ``fault``; what happened, as a cell of the table."""
    case = FAULTS[fault]
    with running_server(case.latency) as server:
        server.script(*case.script, then=case.then)
        started = time.monotonic()
        program = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults", fault, library, server.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(server),
        )
        ended = True
        try:
            said, complained = program.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            ended = False
            program.kill()
            said, complained = program.communicate()
        took = (
            f"{time.monotonic() - started:.1f} s" if ended else f"not over after {PATIENCE:.0f} s"
        )
        stats = server.wait_for(case.events, 0.5)
    figures = dict(line.split() for line in said.splitlines())
    if case.program is flush_with_timeout:
        return f"{figures['flush']} s" if figures else took
    missing = case.events - stats["distinct"]
    cell = f"{missing:,} {'lost' if ended else 'not delivered'}"
    if twice := stats["events"] - stats["distinct"]:
        cell += f", {twice:,} twice"
    if missing and ended and f"{missing} " in complained.replace(",", ""):
        cell += " (and says so)"
    if figures:
        cell += f", +{figures['memory']} MB"
    return f"{cell}; {took}"


def table(faults: list[str]) -> str:
    """Let every library meet the faults; return the table."""
    lines = [
        f"| fault | events | {' | '.join(LIBRARIES)} |",
        f"| --- | ---: | {' | '.join('---' for _ in LIBRARIES)} |",
    ]
    for fault in faults:
        cells = []
        for library in LIBRARIES:
            cells.append(meet(fault, library))
            print(f"{fault}, {library}: {cells[-1]}", file=sys.stderr, flush=True)
        case = FAULTS[fault]
        lines.append(f"| {case.what} | {case.events:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(lines: str) -> None:
    """Write the table between the markers of the page."""
    text, found = re.subn(
        r"(<!-- faults:begin -->\n).*?(<!-- faults:end -->)",
        lambda markers: f"{markers[1]}\n{lines}\n\n{markers[2]}",
        PAGE.read_text(),
        flags=re.DOTALL,
    )
    if found != 1:
        msg = f"{found} pairs of faults:begin and faults:end in {PAGE}"
        raise ValueError(msg)
    PAGE.write_text(text)


def main() -> None:
    """Write the table, or print one line or cell; with a URL, be the program of that cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fault", choices=FAULTS, nargs="?")
    parser.add_argument("library", choices=LIBRARIES, nargs="?")
    parser.add_argument("url", nargs="?")
    options = parser.parse_args()
    if options.url is not None:
        case = FAULTS[options.fault]
        arm = LIBRARIES[options.library](options.url)
        case.program(arm, case.events, Remote(options.url))
    elif options.library is not None:
        print(meet(options.fault, options.library))
    elif options.fault is not None:
        print(table([options.fault]))
    else:
        lines = table(list(FAULTS))
        print(lines)
        write(lines)


if __name__ == "__main__":
    main()
