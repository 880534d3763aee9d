"""``lorc-eventlog check``: each step that can go wrong, and what to do about it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

from clients import Query
from command_line import Gate, run, steps
from lorc_eventlog.bigquery.create import events_schema


@pytest.mark.usefixtures("no_credentials")
def test_check_names_the_variables_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVENTS_BQ_DATASET")
    monkeypatch.delenv("EVENTS_BQ_TABLE")
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "localhost:9050")
    result = run("check")
    assert steps(result) == {
        "variables": "✗ EVENTS_BQ_DATASET and EVENTS_BQ_TABLE not set → set EVENTS_BQ_DATASET to "
        "the BigQuery dataset (dataset or project.dataset) and EVENTS_BQ_TABLE to the table that "
        "the events go to",
        # It goes on with what can be looked at without them.
        "credentials": "✓ none needed for the emulator at localhost:9050",
        "project": "✓ test-project, for the emulator",
        "dataset": "- not checked",
        "table": "- not checked",
        "columns": "- not checked",
        "permission": "- not checked",
    }
    assert result.exit_code == 1


@pytest.mark.usefixtures("no_credentials")
def test_check_says_that_there_are_no_credentials_and_where_they_come_from() -> None:
    result = run("check")
    found = steps(result)
    assert found["variables"] == "✓ EVENTS_BQ_DATASET=data EVENTS_BQ_TABLE=events"
    assert found["credentials"].startswith("✗ DefaultCredentialsError: ")
    assert found["credentials"].endswith(
        "→ check the credentials: GOOGLE_APPLICATION_CREDENTIALS, the service account that the "
        "process runs as, or `gcloud auth application-default login`; `lorc-eventlog emulator` "
        "needs none"
    )
    assert found["project"] == "- not checked"
    assert result.exit_code == 1


@pytest.mark.usefixtures("service_account")
def test_check_says_that_google_does_not_take_the_credentials(gate: Gate) -> None:
    answer = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
    gate.answers.append(("POST /token", 400, answer))
    result = run("check")
    assert "✗ RefreshError: invalid_grant: Invalid JWT Sig" in steps(result)["credentials"]
    assert "→ check the credentials" in steps(result)["credentials"]
    assert result.exit_code == 1


@pytest.mark.usefixtures("service_account")
def test_check_says_that_google_is_not_reached_and_blames_no_credentials(gate: Gate) -> None:
    gate.close()
    found = steps(run("check"))["credentials"]
    assert found.startswith("✗ TransportError: no connection to 127.0.0.1:")
    assert "→ try again; check the network" in found


@pytest.mark.usefixtures("gated_table")
def test_check_speaks_json_whatever_answers(gate: Gate) -> None:
    gate.answers.append(("GET", 200, []))  # type: ignore[arg-type]
    result = run("check", "--json")
    assert result.exit_code == 1
    [wrong] = [finding for finding in json.loads(result.stdout)["findings"] if not finding["ok"]][
        :1
    ]
    assert wrong["step"] == "dataset"
    assert wrong["found"].startswith("the answer is not one of BigQuery's (")
    assert wrong["to_do"].startswith("check what answers in its place: ")


@pytest.mark.usefixtures("gated_table")
def test_check_tells_what_the_project_lacks_from_what_the_account_lacks(gate: Gate) -> None:
    gate.refuse("GET .*/datasets/[^/]+$", 403, "accessNotConfigured", "BigQuery API is disabled")
    assert steps(run("check"))["dataset"] == (
        "✗ 403 accessNotConfigured: BigQuery API is disabled → enable the project's BigQuery API: "
        "`gcloud services enable bigquery.googleapis.com`"
    )


def test_check_says_where_the_project_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
    assert steps(run("check"))["project"] == "✓ my-project, from GOOGLE_CLOUD_PROJECT"


@pytest.mark.usefixtures("service_account")
def test_check_says_that_no_project_is_named(gate: Gate) -> None:
    gate.answers.append(("POST /token", 200, {"access_token": "t", "expires_in": 3600}))
    found = steps(run("check"))
    assert found["credentials"] == "✓ Google takes them: app@project.example"
    assert found["project"].startswith("✗ OSError: Project was not passed and could not be")
    assert found["project"].endswith(
        "→ set GOOGLE_CLOUD_PROJECT, or EVENTS_BQ_DATASET to project.dataset"
    )
    assert found["dataset"] == "- not checked"


@pytest.mark.usefixtures("no_dataset")
def test_check_says_that_there_is_no_dataset(no_dataset: str) -> None:
    result = run("check")
    assert steps(result)["dataset"] == (
        f"✗ test-project.{no_dataset} not found → `lorc-eventlog create-table` makes it, and the "
        f"table; or correct EVENTS_BQ_DATASET"
    )
    assert steps(result)["table"] == "- not checked"
    assert result.exit_code == 1


@pytest.mark.usefixtures("gated_table")
def test_check_says_that_there_is_no_project(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "my-projct.data")
    gate.refuse("GET .*/datasets/data$", 404, "notFound", "Not found: Project my-projct")
    found = steps(run("check"))
    assert found["project"] == "✓ my-projct, from EVENTS_BQ_DATASET"
    assert found["dataset"] == (
        "✗ there is no project my-projct → correct it: EVENTS_BQ_DATASET=project.dataset, else "
        "GOOGLE_CLOUD_PROJECT"
    )


@pytest.mark.usefixtures("no_dataset")
def test_check_says_that_bigquery_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:9")
    result = run("check")
    assert steps(result)["dataset"].startswith("✗ ConnectionError: ")
    assert "→ does an emulator run there? " in steps(result)["dataset"]
    assert result.exit_code == 1


def test_check_says_that_there_is_no_table(
    events_table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTS_BQ_TABLE", "evnts")
    result = run("check")
    dataset = events_table.partition(".")[0]
    assert steps(result)["dataset"] == f"✓ test-project.{dataset} in US"
    assert steps(result)["table"] == (
        f"✗ test-project.{dataset}.evnts not found → `lorc-eventlog create-table` makes it; or "
        f"correct EVENTS_BQ_TABLE"
    )
    assert steps(result)["columns"] == "- not checked"
    assert result.exit_code == 1


def test_check_says_that_the_payload_is_a_string(
    events_table: str, emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = [
        SchemaField("payload", "STRING") if column.name == "payload" else column
        for column in events_schema()
    ]
    name = events_table.replace("events", "wrong")
    emulator_client.create_table(bigquery.Table(f"test-project.{name}", schema=columns[1:]))
    monkeypatch.setenv("EVENTS_BQ_TABLE", "wrong")
    result = run("check")
    assert steps(result)["table"].startswith(
        f"✓ test-project.{name}, not partitioned by ingestion time → it takes events; a table of "
    )
    assert steps(result)["columns"] == (  # every problem is told
        f"✗ column event_id is missing → ALTER TABLE `test-project.{name}` ADD COLUMN event_id "
        f"STRING;✗ column payload is STRING, must be JSON → BigQuery cannot change a column in "
        f"place, so create the table anew (create_events_table) and copy the rows"
    )
    assert steps(result)["permission"].startswith("- ")  # and it goes on
    assert result.exit_code == 1


@pytest.mark.usefixtures("events_table")
def test_check_says_that_the_table_is_a_view(query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    query("CREATE VIEW a_view AS SELECT * FROM events")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "a_view")
    result = run("check")
    assert re.search(
        r"✗ \S+\.a_view is a VIEW, which takes no events → set EVENTS_BQ_TABLE to a table; ",
        steps(result)["table"],
    )
    assert steps(result)["columns"] == "- not checked"  # to say it once is enough
    assert list(steps(result))[-2:] == ["columns", "permission"]
    assert result.exit_code == 1


@pytest.mark.usefixtures("gated_table")
def test_check_says_that_the_account_may_not_insert(gate: Gate) -> None:
    gate.answers.append(("POST .*:testIamPermissions", 200, {}))
    result = run("check")
    assert re.fullmatch(
        r"✗ the account may not insert: it lacks bigquery\.tables\.updateData → grant it "
        r"roles/bigquery\.dataEditor on the dataset test_\w+",
        steps(result)["permission"],
    )
    assert result.exit_code == 1


@pytest.mark.usefixtures("gated_table")
def test_check_says_that_the_account_may_do_nothing(gate: Gate) -> None:
    gate.refuse("GET .*/datasets/[^/]+$", 403, "accessDenied", "Access Denied: Dataset d")
    gate.refuse("GET .*/tables/", 403, "accessDenied", "Access Denied: Table t")
    gate.refuse("POST .*:testIamPermissions", 403, "accessDenied", "Access Denied: Table t")
    gate.refuse("POST .*/insertAll", 403, "accessDenied", "Access Denied: Table t: Permission")
    result = run("check", "--write")
    found = steps(result)
    assert re.fullmatch(r"- the account may not look at test-project\.\w+ itself", found["dataset"])
    cure = "grant the process's account roles/bigquery.dataEditor on the dataset"
    assert found["table"].startswith(f"✗ 403 accessDenied: Access Denied: Table t → {cure}")
    assert found["permission"] == "- not checked: BigQuery does not say"
    assert found["written"].startswith("✗ BigQuery did not take event ")
    assert "(lorc_eventlog.check): 403 accessDenied: Access Denied: Table t" in found["written"]
    assert cure in found["written"]
    assert found["found"] == "- not checked"
    assert result.exit_code == 1


@pytest.mark.usefixtures("gated_table")
def test_check_is_content_with_an_account_that_may_write_and_not_look(gate: Gate) -> None:
    gate.refuse("GET .*/datasets/[^/]+$", 403, "accessDenied", "Access Denied: Dataset d")
    gate.refuse("POST .*/(jobs|queries)$", 403, "accessDenied", "Access Denied: jobs.create")
    granted = {"permissions": ["bigquery.tables.updateData"]}
    gate.answers.append(("POST .*:testIamPermissions", 200, granted))
    result = run("check", "--write")
    found = steps(result)
    assert found["dataset"].startswith("- the account may not look at ")
    assert found["permission"] == "✓ the account may insert (bigquery.tables.updateData)"
    assert found["written"].startswith("✓ event ")
    assert found["found"].startswith(
        "- not checked: the account may not query: 403 accessDenied: Access Denied: jobs.create"
    )
    assert result.exit_code == 0


@pytest.mark.usefixtures("gated_table")
def test_check_does_not_query_a_table_that_it_may_not_look_at(gate: Gate) -> None:
    gate.refuse("GET .*/tables/", 403, "accessDenied", "Access Denied: Table t")
    assert steps(run("check", "--write"))["found"] == (
        "- not checked: the account may not look at the table"
    )


@pytest.mark.usefixtures("events_table")
def test_check_writes_nothing_unless_it_is_told_to(query: Query) -> None:
    result = run("check")
    assert steps(result)["columns"] == "✓ all 8 columns take what an envelope holds"
    assert steps(result)["permission"] == (
        "- not checked: BigQuery does not say → `lorc-eventlog check --write` tries it"
    )
    assert result.exit_code == 0
    assert query("SELECT * FROM events") == []


@pytest.mark.usefixtures("events_table")
def test_check_writes_an_event_and_queries_it_back(query: Query) -> None:
    result = run("check", "--write")
    [event] = query("SELECT * FROM events")
    assert event["event_type"] == "lorc_eventlog.check"
    assert event["source"] == "lorc-eventlog check"
    assert steps(result)["permission"] == "- not checked: BigQuery does not say"
    assert steps(result)["written"] == (
        f"✓ event {event['event_id']} of the type lorc_eventlog.check"
    )
    assert re.fullmatch(r"✓ a query finds it \d+\.\d s later", steps(result)["found"])
    assert result.exit_code == 0


@pytest.mark.usefixtures("events_table")
def test_check_queries_until_the_event_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[], [], [{"f0_": 1}]])
    monkeypatch.setattr("lorc_eventlog.cli.diagnosis.run_query", lambda *_: next(answers))
    assert steps(run("check", "--write"))["found"].startswith("✓ a query finds it ")
    assert next(answers, None) is None


@pytest.mark.usefixtures("gated_table")
def test_check_says_that_no_query_finds_the_event(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorc_eventlog.cli.diagnosis.FIND_PATIENCE", 0.3)
    stored: dict[str, Any] = {"kind": "bigquery#tableDataInsertAllResponse"}
    gate.answers.append(("POST .*/insertAll", 200, stored))  # it is not
    result = run("check", "--write")
    assert steps(result)["found"] == "✗ no query finds it → query for it in some minutes"
    assert result.exit_code == 1


@pytest.mark.usefixtures("gated_table")
def test_check_says_that_the_query_fails(gate: Gate) -> None:
    gate.refuse("POST .*/(jobs|queries)$", 400, "invalidQuery", "Syntax error")
    assert steps(run("check", "--write"))["found"].startswith("✗ 400 invalidQuery: Syntax")


def test_check_speaks_json_to_programs(events_table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.loads(run("check", "--json").stdout)
    assert answer["ok"] is True
    assert answer["findings"][0] == {
        "step": "variables",
        "ok": True,
        "found": f"EVENTS_BQ_DATASET={events_table.partition('.')[0]} EVENTS_BQ_TABLE=events",
        "to_do": None,
    }
    monkeypatch.setenv("EVENTS_BQ_TABLE", "evnts")
    result = run("check", "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    assert {finding["step"]: finding["ok"] for finding in answer["findings"]} == {
        "variables": True, "credentials": True, "project": True, "dataset": True,
        "table": False, "columns": None, "permission": None,
    }  # fmt: skip
