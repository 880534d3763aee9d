"""The first import of Google's client: at exit, half-way, without descriptors, with warnings."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness import PROGRAMS, environment, numbers_in
from scripted_bigquery import ScriptedBigQuery


def run(*arguments: str, options: tuple[str, ...] = ()) -> str:
    """Run the program with these options of Python; give what it says."""
    ran = subprocess.run(
        [sys.executable, *options, PROGRAMS / "imports.py", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.parametrize(
    "how",
    [
        ("registers", "concurrent.futures.thread"),  # as pandas does
        ("registers", "concurrent.futures.process"),
        ("thread", ""),
    ],
    ids=" ".join,
)
def test_a_program_of_two_events_delivers_them_at_its_end(
    scripted: ScriptedBigQuery, how: tuple[str, str]
) -> None:
    """The import of Google's client, which takes a second, then comes with the exit."""
    assert run(*how) == ""
    assert numbers_in(scripted) == [0, 1]


@pytest.mark.parametrize(
    "module",
    [
        "encodings.idna",
        "netrc",
        "asyncio.trsock",
        "urllib3.util.retry",
        "requests.adapters",
        "google.auth.transport.requests",
        "google.api_core.exceptions",
        "google.cloud.bigquery.table",
    ],
)
def test_an_import_that_fails_half_way_is_made_again_from_its_beginning(
    scripted: ScriptedBigQuery, module: str
) -> None:
    said = run("fails", module)
    assert (
        f"Google's client cannot be imported: OSError: [Errno 24] Too many open files: '{module}'"
        in said
    )
    assert numbers_in(scripted) == [0, 1]


def test_events_are_delivered_once_a_file_descriptor_is_free(scripted: ScriptedBigQuery) -> None:
    assert "Too many open files" in run("descriptors")
    assert numbers_in(scripted) == [0, 1]


@pytest.mark.parametrize("module", ["urllib3.util.retry", "google.cloud.bigquery.client"])
def test_a_warning_that_is_made_an_error_costs_no_event(
    scripted: ScriptedBigQuery, module: str
) -> None:
    """So it is with -W error, and while another thread is in catch_warnings()."""
    assert run("warns", module, options=("-W", "error")) == ""
    assert numbers_in(scripted) == [0, 1]
