"""The table: which one the environment names, how it is made, and what is wrong with it."""

from __future__ import annotations

import uuid

import pytest
from google.api_core.exceptions import Forbidden
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField

from clients import Query
from lorc_eventlog import Envelope, check_events_table, create_events_table, emit
from lorc_eventlog.bigquery.create import events_schema, events_table_ddl
from lorc_eventlog.bigquery.table import events_project
from lorc_eventlog.bigquery.table import events_table as table_of_the_environment
from scripted_bigquery import ScriptedBigQuery

DDL = """\
CREATE TABLE IF NOT EXISTS `project.dataset.events` (
    event_id STRING NOT NULL,
    event_type STRING NOT NULL,
    source STRING NOT NULL,
    schema_ref STRING,
    created_at STRING NOT NULL,
    correlation_id STRING,
    subject_id STRING,
    payload JSON NOT NULL
)
PARTITION BY DATE(_PARTITIONTIME)
CLUSTER BY event_type, source;"""


@pytest.fixture
def new_table(emulator: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a table that is not there yet, in a dataset that is not, in the environment."""
    dataset = f"test_{uuid.uuid4().hex}"
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", emulator)
    monkeypatch.setenv("EVENTS_BQ_DATASET", dataset)
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    return f"test-project.{dataset}.events"


def create_table(client: bigquery.Client, name: str, *columns: SchemaField) -> None:
    client.create_dataset(name.rpartition(".")[0])
    client.create_table(bigquery.Table(name, schema=columns))


def problems(client: bigquery.Client) -> list[str]:
    with pytest.raises(RuntimeError) as found:
        check_events_table(client)
    return str(found.value).splitlines()


def answer_table(
    monkeypatch: pytest.MonkeyPatch, client: bigquery.Client, answer: dict[str, object]
) -> None:
    """Let ``client`` find this table, as BigQuery describes tables."""
    reference = {"projectId": "test-project", "datasetId": "dataset", "tableId": "events"}
    table = bigquery.Table.from_api_repr({"tableReference": reference, **answer})
    monkeypatch.setattr(client, "get_table", lambda _, **__: table)


# The environment


@pytest.mark.parametrize(
    ("dataset", "table", "project"),
    [
        ("dataset", "events", None),
        ("my-project.data_1", "events", "my-project"),
        ("example.com:my-project.data", "events", "example.com:my-project"),
        ("dataset", "my events-2025$20250101", None),
        ("dataset", "события", None),
        ("dataset", "e", None),
    ],
)
def test_the_environment_names_the_table(
    monkeypatch: pytest.MonkeyPatch, dataset: str, table: str, project: str | None
) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", dataset)
    monkeypatch.setenv("EVENTS_BQ_TABLE", table)
    assert table_of_the_environment() == f"{dataset}.{table}"
    assert events_project() == project


@pytest.mark.parametrize(
    ("dataset", "table", "message"),
    [
        (None, "events", "^EVENTS_BQ_DATASET not set: set EVENTS_BQ_DATASET to the BigQuery data"),
        ("", "events", "^EVENTS_BQ_DATASET not set: "),
        ("dataset", None, "^EVENTS_BQ_TABLE not set: "),
        (None, None, "^EVENTS_BQ_DATASET and EVENTS_BQ_TABLE not set: "),
        ("my-dataset", "events", "^EVENTS_BQ_DATASET is 'my-dataset': it must be dataset or proj"),
        ("dataset.", "events", "^EVENTS_BQ_DATASET is 'dataset.': "),
        ("project.dataset.table", "events", "^EVENTS_BQ_DATASET is 'project.dataset.table': "),
        ("example.com:.dataset", "events", "^EVENTS_BQ_DATASET is 'example.com:.dataset': "),
        ("dataset", " events", "^EVENTS_BQ_TABLE is ' events': it must be the name of a table"),
        ("dataset", "events ", "^EVENTS_BQ_TABLE is 'events ': "),
        ("dataset", " ", "^EVENTS_BQ_TABLE is ' ': "),
        ("dataset", "a.events", "^EVENTS_BQ_TABLE is 'a.events': it must be the name of a table"),
        ("dataset", "`events`", "^EVENTS_BQ_TABLE is '`events`': "),
        ("dataset", "$20250101", "^EVENTS_BQ_TABLE is '.20250101': "),
        ("dataset", "events$", "^EVENTS_BQ_TABLE is 'events.': "),
        ("dataset", "events$x", "^EVENTS_BQ_TABLE is 'events.x': "),
    ],
)
def test_an_environment_that_names_no_table_is_a_runtime_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch, dataset: str | None, table: str | None, message: str
) -> None:
    for name, value in (("EVENTS_BQ_DATASET", dataset), ("EVENTS_BQ_TABLE", table)):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=message):
        table_of_the_environment()


def test_a_project_with_a_domain_is_understood_by_the_client(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "example.com:my-project.data")
    emit("a.b", {}, source="s", bq_client=client)
    assert scripted.requests[0].table == "example.com:my-project:data.events"


# The schema


def test_the_schema_has_a_column_for_each_key_of_the_envelope() -> None:
    assert [column.name for column in events_schema()] == list(Envelope.__annotations__)
    assert {column.name: column.field_type for column in events_schema()} == dict.fromkeys(
        Envelope.__annotations__, "STRING"
    ) | {"payload": "JSON"}


def test_the_ddl_is_the_documented_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert events_table_ddl("project.dataset.events") == DDL
    monkeypatch.setenv("EVENTS_BQ_DATASET", "project.dataset")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    assert events_table_ddl() == DDL


def test_the_ddl_makes_a_table_with_the_same_columns(
    query: Query,
    events_table: str,
    emulator_client: bigquery.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The emulator keeps neither partitions, clustering nor the JSON type of a table made by DDL.

    So these are compared as text, and JSON by what a query finds.
    """
    dataset = events_table.partition(".")[0]
    query(events_table_ddl(f"{dataset}.by_ddl"))
    by_ddl, by_client = (
        emulator_client.get_table(f"{dataset}.{name}") for name in ("by_ddl", "events")
    )
    assert [(column.name, column.mode) for column in by_ddl.schema] == [
        (column.name, column.mode) for column in by_client.schema
    ]
    assert by_client.time_partitioning.type_ == "DAY"
    assert by_client.time_partitioning.field is None
    assert ", ".join(by_client.clustering_fields) in events_table_ddl()

    monkeypatch.setenv("EVENTS_BQ_TABLE", "by_ddl")
    emit("a.b", {"x": [1]}, source="s", bq_client=emulator_client)
    assert query(
        "SELECT JSON_TYPE(payload) AS kind, JSON_QUERY(payload, '$.x[0]') AS x FROM by_ddl"
    )


# Making it


def test_the_table_and_its_dataset_are_made(
    new_table: str, emulator_client: bigquery.Client
) -> None:
    created = create_events_table(emulator_client)
    found = emulator_client.get_table(new_table)
    assert created.full_table_id == found.full_table_id == new_table.replace(".", ":", 1)
    assert [(column.name, column.field_type, column.mode) for column in found.schema] == [
        (column.name, column.field_type, column.mode) for column in events_schema()
    ]
    assert found.time_partitioning.type_ == "DAY"
    assert found.time_partitioning.field is None
    assert found.clustering_fields == ["event_type", "source"]
    check_events_table(emulator_client)


def test_making_it_again_leaves_it_and_its_rows_as_they_are(
    new_table: str, emulator_client: bigquery.Client
) -> None:
    create_events_table(emulator_client)
    emit("a.b", {}, source="s", bq_client=emulator_client)
    create_events_table(emulator_client)
    create_events_table(emulator_client, location="EU")
    assert len(list(emulator_client.list_rows(new_table))) == 1


def test_an_account_that_may_create_no_dataset_makes_the_table_in_one_that_is_there(
    new_table: str, emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator_client.create_dataset(new_table.rpartition(".")[0])

    def refuse(*_: object, **__: object) -> None:
        raise Forbidden("Access Denied: bigquery.datasets.create")  # type: ignore[no-untyped-call]

    monkeypatch.setattr(emulator_client, "create_dataset", refuse)
    create_events_table(emulator_client)
    check_events_table(emulator_client)


def test_the_dataset_is_made_where_location_says(
    new_table: str, emulator_client: bigquery.Client
) -> None:
    create_events_table(emulator_client, location="europe-west4")
    assert emulator_client.get_dataset(new_table.rpartition(".")[0]).location == "europe-west4"


def test_the_project_of_the_environment_comes_before_the_clients(
    new_table: str, emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = new_table.split(".")[1]
    monkeypatch.setenv("EVENTS_BQ_DATASET", f"elsewhere.{dataset}")
    assert create_events_table(emulator_client).project == "elsewhere"
    check_events_table(emulator_client)
    monkeypatch.setenv("EVENTS_BQ_DATASET", dataset)
    with pytest.raises(RuntimeError, match=rf"^table test-project\.{dataset}\.events not found"):
        check_events_table(emulator_client)


# Checking it


def test_a_missing_dataset_is_told_with_what_to_do(
    new_table: str, emulator_client: bigquery.Client
) -> None:
    assert problems(emulator_client) == [
        (
            f"table {new_table} not found: create it with lorc_eventlog.create_events_table(client)"
            f", or correct EVENTS_BQ_DATASET and EVENTS_BQ_TABLE"
        )
    ]


def test_a_missing_table_is_told_with_what_to_do(
    new_table: str, emulator_client: bigquery.Client
) -> None:
    emulator_client.create_dataset(new_table.rpartition(".")[0])
    [problem] = problems(emulator_client)
    assert problem.startswith(f"table {new_table} not found: create it with ")


def test_everything_that_is_wrong_is_told_at_once_with_what_to_do(
    new_table: str, emulator_client: bigquery.Client
) -> None:
    create_table(
        emulator_client,
        new_table,
        SchemaField("event_id", "INTEGER", "REQUIRED"),
        SchemaField("event_type", "STRING", "REPEATED"),
        SchemaField("source", "STRING", "NULLABLE"),  # takes every source, too
        SchemaField("created_at", "TIMESTAMP", "REQUIRED"),
        SchemaField("correlation_id", "STRING"),
        SchemaField("payload", "STRING", "REQUIRED"),
        SchemaField("tenant", "STRING", "REQUIRED"),
        SchemaField("branch", "STRING", "REQUIRED"),
        SchemaField("note", "STRING"),
    )
    anew = (
        "BigQuery cannot change a column in place, so create the table anew (create_events_table) "
        "and copy the rows"
    )
    assert problems(emulator_client) == [
        f"table {new_table} cannot take events:",
        f"- column event_id is INTEGER, must be STRING: {anew}",
        f"- column event_type is REPEATED STRING, must be STRING: {anew}",
        f"- column schema_ref is missing: ALTER TABLE `{new_table}` ADD COLUMN schema_ref STRING;",
        f"- column created_at is TIMESTAMP, must be STRING: {anew}",
        f"- column subject_id is missing: ALTER TABLE `{new_table}` ADD COLUMN subject_id STRING;",
        f"- column payload is STRING, must be JSON: {anew}",
        (
            f"- column tenant is REQUIRED and no event fills it: "
            f"ALTER TABLE `{new_table}` ALTER COLUMN tenant DROP NOT NULL;"
        ),
        (
            f"- column branch is REQUIRED and no event fills it: "
            f"ALTER TABLE `{new_table}` ALTER COLUMN branch DROP NOT NULL;"
        ),
    ]


def test_more_columns_are_no_problem_if_they_may_be_empty(
    new_table: str, emulator_client: bigquery.Client
) -> None:
    create_table(
        emulator_client,
        new_table,
        SchemaField("note", "STRING"),
        SchemaField("tags", "STRING", "REPEATED"),
        *events_schema(),
    )
    check_events_table(emulator_client)


def test_columns_that_take_some_events_only_are_told_with_what_to_do(
    scripted: ScriptedBigQuery,  # noqa: ARG001
    client: bigquery.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The emulator does not keep a maxLength, so the table is one that the test makes."""
    optional = ("schema_ref", "correlation_id", "subject_id")
    columns = [
        {
            "name": column.name,
            "type": column.field_type,
            "mode": "REQUIRED" if column.name in optional else column.mode,
        }
        | ({"maxLength": "20"} if column.name in ("event_type", "subject_id") else {})
        for column in events_schema()
    ]
    answer_table(monkeypatch, client, {"type": "TABLE", "schema": {"fields": columns}})
    alter = "ALTER TABLE `test-project.dataset.events` ALTER COLUMN"
    required = "is REQUIRED and not every event fills it"
    short = "takes no text of over 20 characters"
    assert problems(client) == [
        "table test-project.dataset.events cannot take events:",
        f"- column event_type {short}: {alter} event_type SET DATA TYPE STRING;",
        f"- column schema_ref {required}: {alter} schema_ref DROP NOT NULL;",
        f"- column correlation_id {required}: {alter} correlation_id DROP NOT NULL;",
        f"- column subject_id {required}: {alter} subject_id DROP NOT NULL;",
        f"- column subject_id {short}: {alter} subject_id SET DATA TYPE STRING;",
    ]


def test_the_case_of_a_columns_name_makes_no_difference(
    new_table: str, emulator_client: bigquery.Client
) -> None:
    create_table(
        emulator_client,
        new_table,
        *(
            SchemaField(column.name.title(), column.field_type, column.mode)
            for column in events_schema()
        ),
    )
    check_events_table(emulator_client)


@pytest.mark.parametrize("kind", ["VIEW", "EXTERNAL"])
def test_what_is_no_table_is_told_and_nothing_else(
    scripted: ScriptedBigQuery,  # noqa: ARG001
    client: bigquery.Client,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    answer_table(monkeypatch, client, {"type": kind, "schema": {"fields": []}})
    assert problems(client) == [
        "table test-project.dataset.events cannot take events:",
        f"- it is a {kind}, which takes no events: set EVENTS_BQ_TABLE to a table",
    ]


def test_what_bigquery_does_not_let_us_see_is_its_own_error(
    client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, **_: object) -> None:
        raise Forbidden(f"Access Denied: Table {name}")  # type: ignore[no-untyped-call]

    monkeypatch.setattr(client, "get_table", refuse)
    with pytest.raises(Forbidden, match="Access Denied"):
        check_events_table(client)
