"""What the package adds to the start of a program."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.figures import spread
from benchmarks.server import ROOT, environment, running_server

IMPORTS = {
    "lorc_eventlog": "import lorc_eventlog",
    "google.cloud.bigquery": "import google.cloud.bigquery",
    "google.cloud.logging": "import google.cloud.logging",
    "OpenTelemetry": (
        "import opentelemetry.sdk._logs.export, opentelemetry.instrumentation.logging.handler, "
        "opentelemetry.exporter.otlp.proto.http._log_exporter"
    ),
    "watchtower": "import watchtower",
}
FIRST_EVENT = """
from benchmarks import arms, events
arm = arms.{arm}({url!r})
arms.log_events(arm, arm.arguments(events.make_payload(0.2)), {count})
arm.settle()
"""
ARMS = {
    "lorc_eventlog": ("ours", 1),
    "insert_rows_json by hand": ("by_hand", 500),
    "google-cloud-logging": ("google_cloud_logging", 1),
    "OpenTelemetry": ("opentelemetry", 1),
    "watchtower": ("watchtower", 1),
}


def measure(*, rounds: int) -> dict[str, Any]:
    """Return milliseconds over an empty interpreter, each the spread of so many starts."""
    with running_server() as server, tempfile.TemporaryDirectory() as compiled:
        variables = environment(server) | {"PYTHONPYCACHEPREFIX": compiled}
        variables.pop("PYTHONDONTWRITEBYTECODE", None)
        programs = {f"import {name}": code for name, code in IMPORTS.items()}
        for name, (arm, count) in ARMS.items():
            code = FIRST_EVENT.format(arm=arm, url=server.url, count=count)
            programs[f"first event of {name}"] = code
        for code in programs.values():
            _milliseconds(code, variables)  # compiles what is imported, once
        times: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(rounds):
            # Each with the empty interpreter next to it: what is shared cancels out.
            for name, code in programs.items():
                empty = _milliseconds("pass", variables)
                times[name].append(_milliseconds(code, variables) - empty)
    return {name: spread(values) for name, values in times.items()}


def _milliseconds(code: str, variables: dict[str, str]) -> float:
    # It leaves without exit functions: not the end is measured here.
    code += "\nimport os, sys\nsys.stdout.flush()\nos._exit(0)"
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT, env=variables
    )
    return (time.perf_counter() - started) * 1000
