"""BigQuery for the tests: an emulator, and a server that fails on a script."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.cloud import bigquery

from clients import Query, make_client
from emulator import Emulator, running_emulator
from lorc_eventlog import create_events_table
from lorc_eventlog.diagnostics import is_about_delivery
from scripted_bigquery import ScriptedBigQuery

# A shell in the background starts programs with SIGINT ignored, and ours would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

PROCESS = Path(__file__).parent / "process"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in ``tests/process``; tests elsewhere that start processes say so.

    Tests that ``LORC_EVENTLOG_SOAK=seconds`` makes longer may take so much longer.
    """
    soak = float(os.environ.get("LORC_EVENTLOG_SOAK", "0"))
    for item in items:
        if item.path.is_relative_to(PROCESS):
            item.add_marker(pytest.mark.process)
        if soak and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300 + 2 * soak))


NOTED = {
    "test_environments_celery",
    "test_exit",
    "test_fork",
    "test_fork_hooks",
    "test_fork_in_c",
    "test_imports",
}
"""Tests whose programs reach lines that no other test reaches, beside those of ``tests/cli``."""


@pytest.fixture(autouse=True)
def programs_note_what_they_reach_only_where_it_counts(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While coverage is measured: it takes a program a quarter of a second to begin."""
    path = request.path
    if path.stem not in NOTED and path.parent.name != "cli":
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


PRIVATE_WORDS = ("PrivateWord", "patient-17", "patient-0815", "kidney")
"""What the tests put into payloads and subject_ids."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,  # noqa: ARG001  pytest's name
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let no test pass during which anything private was printed."""
    report = yield
    if call.when == "teardown" and report.passed:  # the sections are those of the whole test
        printed = "".join(text for name, text in report.sections if "log" not in name)
        said = [word for word in PRIVATE_WORDS if word in printed]
        if said:
            report.outcome = "failed"
            report.longrepr = f"what was printed holds what is private: {said}"
    return report


@pytest.fixture(autouse=True)
def nothing_private_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever goes wrong: no diagnostic holds a payload or a subject_id, whatever its level."""
    caplog.set_level(logging.DEBUG, logger="lorc_eventlog")
    yield
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    texts = [logging.Formatter().format(record) for record in records if is_about_delivery(record)]
    assert [text for text in texts if any(word in text for word in PRIVATE_WORDS)] == []


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches a real BigQuery, whatever the shell has set."""
    for name in (
        "BIGQUERY_EMULATOR_HOST",
        "BIGQUERY_STORAGE_EMULATOR_HOST",
        "EVENTS_BQ_DATASET",
        "EVENTS_BQ_SINK",
        "EVENTS_BQ_TABLE",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_CLOUD_PROJECT",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def whole_emulator() -> Iterator[Emulator]:
    """Bqemulator, one for all tests: REST and gRPC.

    Where it cannot be installed beside what is tested, ``EMULATOR_PYTHON`` runs it.
    """
    python = os.environ.get("EMULATOR_PYTHON", sys.executable)
    if not shutil.which(python):
        pytest.skip(f"needs bqemulator, and there is no {python} to run it")
    with running_emulator(python) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def emulator(whole_emulator: Emulator) -> str:
    """The URL of bqemulator's REST API."""
    return whole_emulator.url


@pytest.fixture
def emulator_client(emulator: str) -> Iterator[bigquery.Client]:
    """A client of the emulator."""
    with closing(make_client(emulator)) as client:
        yield client


@pytest.fixture
def events_table(
    emulator: str, emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The name, ``dataset.table``, of an empty events table that the environment points to."""
    dataset = f"test_{uuid.uuid4().hex}"
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", emulator)
    monkeypatch.setenv("EVENTS_BQ_DATASET", dataset)
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    create_events_table(emulator_client)
    return f"{dataset}.events"


@pytest.fixture
def query(events_table: str, emulator_client: bigquery.Client) -> Query:
    """Run SQL in the dataset of ``events_table``, which it calls ``events``; gives dicts."""
    dataset = events_table.partition(".")[0]
    config = bigquery.QueryJobConfig(default_dataset=f"{emulator_client.project}.{dataset}")

    def run(sql: str) -> list[dict[str, Any]]:
        # Not query_and_wait: of the emulator's errors it makes an empty answer.
        return [dict(row.items()) for row in emulator_client.query(sql, config).result()]

    return run


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedBigQuery]:
    """A server that fails as it is told to, and that the environment points to."""
    with ScriptedBigQuery() as server:
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", server.url)
        monkeypatch.setenv("EVENTS_BQ_DATASET", "dataset")
        monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
        yield server


@pytest.fixture
def client(scripted: ScriptedBigQuery) -> Iterator[bigquery.Client]:
    """A client of ``scripted``."""
    with closing(make_client(scripted.url)) as made:
        yield made
