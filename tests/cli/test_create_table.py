"""``lorc-eventlog create-table``: makes what is not there, and leaves what is."""

from __future__ import annotations

import pytest
from google.cloud import bigquery

from clients import Query
from command_line import Gate, run
from lorc_eventlog import emit
from lorc_eventlog.bigquery.create import events_schema


def test_create_table_makes_the_dataset_and_the_table(
    no_dataset: str, emulator_client: bigquery.Client
) -> None:
    result = run("create-table", "--location", "EU")
    name = f"test-project.{no_dataset}.events"
    assert result.stdout.splitlines() == [
        f"✓ {name} is created",
        "✓ all 8 columns take what an envelope holds",
    ]
    assert result.exit_code == 0
    assert emulator_client.get_table(name).clustering_fields == ["event_type", "source"]
    assert emulator_client.get_dataset(f"test-project.{no_dataset}").location == "EU"
    assert run("create-table").stdout.startswith(f"✓ {name} was there already\n")


def test_create_table_says_that_the_one_there_does_not_fit(
    events_table: str, emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = events_table.replace("events", "wrong")
    emulator_client.create_table(bigquery.Table(f"test-project.{name}", schema=events_schema()[1:]))
    monkeypatch.setenv("EVENTS_BQ_TABLE", "wrong")
    result = run("create-table")
    assert "✗ column event_id is missing\n  → ALTER TABLE" in result.stdout
    assert result.exit_code == 1


def test_create_table_prints_the_ddl_without_asking_bigquery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "project.data")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    result = run("create-table", "--print-ddl")
    assert result.stdout.startswith("CREATE TABLE IF NOT EXISTS `project.data.events` (\n")
    assert result.stdout.endswith("CLUSTER BY event_type, source;\n")
    assert result.exit_code == 0


def test_create_table_makes_the_deduplicated_view(
    no_dataset: str, emulator_client: bigquery.Client
) -> None:
    result = run("create-table", "--deduplicated-view")
    view = f"test-project.{no_dataset}.events_deduplicated"
    assert result.stdout.splitlines()[2:] == [f"✓ {view} has each event once"]
    assert emulator_client.get_table(view).table_type == "VIEW"
    assert result.exit_code == 0


def test_create_table_says_that_there_is_a_table_where_the_view_is_to_be(
    events_table: str, emulator_client: bigquery.Client
) -> None:
    emulator_client.create_table(f"test-project.{events_table}_deduplicated")
    result = run("create-table", "--deduplicated-view")
    assert result.stderr == (
        f"✗ test-project.{events_table}_deduplicated is a TABLE, not the view: rename it and run "
        f"this again\n"
    )
    assert result.exit_code == 1


def test_create_table_says_that_the_dataset_is_elsewhere(events_table: str) -> None:
    result = run("create-table", "--location", "EU")
    dataset = events_table.partition(".")[0]
    assert result.stdout.splitlines()[-2:] == [
        f"✗ {dataset} was there already, in US",
        "  → leave out --location, or name another dataset",
    ]
    assert result.exit_code == 1
    assert run("create-table", "--location", "us").exit_code == 0


@pytest.mark.usefixtures("events_table")
def test_create_table_refuses_a_location_that_the_ddl_cannot_name() -> None:
    result = run("create-table", "--print-ddl", "--location", "EU")
    assert "--location has no effect with --print-ddl" in result.stderr
    assert result.exit_code == 2


@pytest.mark.usefixtures("gated_table")
@pytest.mark.parametrize("what", ["datasets/[^/]+$", "tables$"])
def test_create_table_does_not_wait_for_ever(
    what: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also how long the emulator may take for its answer to the first request.
    monkeypatch.setattr("lorc_eventlog.bigquery.create.PATIENCE", 3.0)
    gate.refuse(f"(GET|POST) .*/{what}", 503, "backendError", "Error encountered")
    result = run("create-table")
    assert result.stderr.startswith(
        "✗ 503 backendError: Error encountered\n  → does an emulator run"
    )
    assert result.exit_code == 1


def test_create_table_prints_the_ddl_of_the_deduplicated_view(
    query: Query, events_table: str, emulator_client: bigquery.Client
) -> None:
    _, ddl, end = run("create-table", "--deduplicated-view", "--print-ddl").stdout.split(";")
    assert ddl.startswith(f"\nCREATE VIEW IF NOT EXISTS `{events_table}_deduplicated` AS\nSELECT")
    assert end == "\n"
    query(ddl)
    emit("a.b", {}, source="s", bq_client=emulator_client)
    query("INSERT INTO events SELECT * FROM events")
    assert query("SELECT COUNT(*) AS number FROM events_deduplicated") == [{"number": 1}]
