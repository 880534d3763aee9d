"""What `import lorc_eventlog` costs: nothing that an application may not need."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import pytest

import lorc_eventlog


def run(program: str) -> str:
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert completed.stderr == ""
    return completed.stdout


def test_the_import_loads_neither_googles_client_nor_structlog() -> None:
    loaded = run("import sys, lorc_eventlog; print(*sys.modules)").split()
    assert "lorc_eventlog.delivery.writer" in loaded
    for name in ("google.cloud.bigquery", "google.auth", "google.api_core", "requests"):
        assert name not in loaded
    assert "structlog" not in loaded


@pytest.mark.parametrize(
    "use",
    [
        "import lorc_eventlog",
        "import lorc_eventlog; lorc_eventlog.EventWriter(client)",
        "import lorc_eventlog.cli.app, lorc_eventlog.shipping.service",
    ],
    ids=["the package", "a writer over REST", "the command line and the shipper"],
)
def test_grpc_and_the_storage_write_api_are_loaded_by_nobody_who_does_not_use_them(
    use: str,
) -> None:
    """Google's client imports grpc itself; the package's modules for it are what counts there."""
    program = f"""
import os, sys
os.environ.update(EVENTS_BQ_DATASET="dataset", EVENTS_BQ_TABLE="events")
if "client" in {use!r}:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery
    client = bigquery.Client(project="p", credentials=AnonymousCredentials())
before = set(sys.modules)
{use}
print(*set(sys.modules) - before)
"""
    loaded = run(program).split()
    assert "lorc_eventlog" in loaded
    assert [name for name in loaded if ".storage_" in name and "cli" not in name] == []
    assert [name for name in loaded if name.startswith(("grpc", "google.protobuf"))] == []


def test_without_a_spool_dir_nothing_of_the_spool_is_imported() -> None:
    program = """
import os, sys
os.environ.update(EVENTS_BQ_DATASET="dataset", EVENTS_BQ_TABLE="events")
import lorc_eventlog
lorc_eventlog.EventWriter()
print(*sys.modules)
"""
    assert [name for name in run(program).split() if "spool" in name] == []


def test_no_environment_variable_is_needed_to_import() -> None:
    assert not {"EVENTS_BQ_DATASET", "EVENTS_BQ_TABLE"} & os.environ.keys()
    assert run("import lorc_eventlog; print(lorc_eventlog.__all__)")


def test_the_processor_needs_no_structlog() -> None:
    program = """
import os, sys
sys.modules["structlog"] = None
os.environ.update(EVENTS_BQ_DATASET="dataset", EVENTS_BQ_TABLE="events")
from lorc_eventlog import BigQueryEventProcessor
event = {"event": "started"}
print(BigQueryEventProcessor()(None, "info", event) is event)
"""
    assert run(program) == "True\n"


def test_everything_public_is_there_and_documented() -> None:
    assert sorted(lorc_eventlog.__all__) == [
        "BigQueryEventHandler",
        "BigQueryEventProcessor",
        "Envelope",
        "EventWriter",
        "ForegroundWriter",
        "RedactionFilter",
        "WriterStats",
        "build_envelope",
        "check_events_table",
        "create_events_table",
        "emit",
    ]
    for name in lorc_eventlog.__all__:
        assert getattr(lorc_eventlog, name).__doc__


def test_the_version_is_that_of_the_distribution() -> None:
    assert lorc_eventlog.__version__ == version("lorc_eventlog")


def test_the_time_that_the_import_takes_is_reported(
    record_property: Callable[[str, object], None],
) -> None:
    def seconds(program: str) -> float:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            run(program)
            times.append(time.perf_counter() - started)
        return min(times)

    more = seconds("import lorc_eventlog") - seconds("pass")
    record_property("import_milliseconds", round(1000 * more))
    print(f"import lorc_eventlog takes {1000 * more:.0f} ms more than an empty interpreter")  # noqa: T201


@pytest.mark.parametrize("name", ["google.cloud.bigquery", "structlog"])
def test_what_is_not_imported_is_there_for_these_tests(name: str) -> None:
    """Otherwise the tests above would show nothing."""
    assert run(f"import sys, {name}; print({name!r} in sys.modules)") == "True\n"
