"""How the events table is made, and how it is checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lorc_eventlog.bigquery.table import (
    CLUSTERING,
    COLUMNS,
    DATASET_VARIABLE,
    TABLE_VARIABLE,
    events_project,
    whole_table,
)

if TYPE_CHECKING:
    from google.cloud.bigquery import Client, SchemaField, Table

_DEDUPLICATED = """\
SELECT * FROM `{}` WHERE TRUE
QUALIFY ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY created_at) = 1"""

PATIENCE = 30.0
"""Seconds to wait for an answer, and to try again what fails for the moment."""


def events_schema() -> list[SchemaField]:
    """Return the columns of the events table as the BigQuery client takes them."""
    from google.cloud.bigquery import SchemaField

    return [SchemaField(name, kind, mode=mode) for name, (kind, mode) in COLUMNS.items()]


def events_table_ddl(table: str | None = None) -> str:
    """Return the ``CREATE TABLE`` statement of the events table.

    Args:
        table: ``dataset.table`` or ``project.dataset.table``; None takes the environment's.
    """
    columns = ",\n".join(
        f"    {name} {kind}{' NOT NULL' if mode == 'REQUIRED' else ''}"
        for name, (kind, mode) in COLUMNS.items()
    )
    return (
        f"CREATE TABLE IF NOT EXISTS `{table or whole_table()}` (\n{columns}\n)\n"
        f"PARTITION BY DATE(_PARTITIONTIME)\n"
        f"CLUSTER BY {', '.join(CLUSTERING)};"
    )


def deduplicated_view_ddl(table: str | None = None) -> str:
    """Return the ``CREATE VIEW`` statement of the view that has each event once.

    Args:
        table: ``dataset.table`` or ``project.dataset.table``; None takes the environment's.
    """
    name = table or whole_table()
    return f"CREATE VIEW IF NOT EXISTS `{name}_deduplicated` AS\n{_DEDUPLICATED.format(name)};"


def create_events_table(
    client: Client, *, location: str | None = None, deduplicated_view: bool = False
) -> Table:
    """Create the events table, and its dataset, unless they are there.

    The table is partitioned by the day of ingestion and clustered by event_type and source.
    Both names come from the environment (:func:`events_table`). May be called again: what is
    there is left as it is; :func:`check_events_table` says whether it fits.

    Args:
        client: A ``google.cloud.bigquery.Client`` that may create tables and, if the dataset is
            not there, datasets.
        location: Where a new dataset is kept, such as ``EU``; None takes the client's.
        deduplicated_view: Whether to create, beside the table, the view ``<table>_deduplicated``
            too, which has each event once. BigQuery itself sorts out an event that is sent twice
            only within about a minute; an event may be sent again later, after a kill or a long
            outage.

    Raises:
        RuntimeError: An environment variable is not set, or there is a table where the view is to
            be.
        google.api_core.exceptions.GoogleAPICallError: BigQuery refused, as it says.

    Example:
        Once, in the set-up of a deployment:

            create_events_table(bigquery.Client(), location="EU")
    """
    from google.api_core.exceptions import NotFound
    from google.cloud import bigquery

    table = bigquery.Table(_full_name(client), schema=events_schema())
    table.time_partitioning = bigquery.TimePartitioning(type_=bigquery.TimePartitioningType.DAY)
    table.clustering_fields = CLUSTERING
    dataset = bigquery.Dataset(f"{table.project}.{table.dataset_id}")
    if location is not None:
        dataset.location = location
    try:
        client.get_dataset(dataset.reference, **_patiently())
    except NotFound:  # only then, because few accounts may create a dataset
        client.create_dataset(dataset, exists_ok=True, **_patiently())
    created = _create_or_get(client, table)
    if deduplicated_view:
        view = bigquery.Table(f"{table.project}.{table.dataset_id}.{table.table_id}_deduplicated")
        view.view_query = _DEDUPLICATED.format(_full_name(client))
        kind = _create_or_get(client, view).table_type
        if kind != "VIEW":
            msg = f"{view.reference} is a {kind}, not the view: rename it and run this again"
            raise RuntimeError(msg)
    return created


def _create_or_get(client: Client, table: Table) -> Table:
    from google.api_core.exceptions import Conflict

    try:
        return client.create_table(table, **_patiently())
    except Conflict:  # not by exists_ok=True, which then gets it without a timeout
        return client.get_table(table.reference, **_patiently())


def _patiently() -> dict[str, Any]:
    """Wait for ``PATIENCE`` and not, as Google's client does by itself, for ever."""
    from google.cloud.bigquery import DEFAULT_RETRY

    return {"retry": DEFAULT_RETRY.with_timeout(PATIENCE), "timeout": PATIENCE}


def check_events_table(client: Client) -> None:
    """Check that the events table is there and takes every column of the envelope.

    Args:
        client: A ``google.cloud.bigquery.Client`` that may read the table's metadata.

    Raises:
        RuntimeError: Lists everything that is wrong, each with what to do; or an environment
            variable is not set.
        google.api_core.exceptions.GoogleAPICallError: BigQuery did not let us look.

    Example:
        At the start of a program that must not run without its table:

            check_events_table(bigquery.Client())
    """
    from google.api_core.exceptions import NotFound

    name = _full_name(client)
    try:
        table = client.get_table(name, **_patiently())
    except NotFound:
        msg = (
            f"table {name} not found: create it with lorc_eventlog.create_events_table(client), "
            f"or correct {DATASET_VARIABLE} and {TABLE_VARIABLE}"
        )
        raise RuntimeError(msg) from None
    problems = [f"- {found}: {to_do}" for found, to_do in table_problems(table)]
    if problems:
        raise RuntimeError("\n".join([f"table {name} cannot take events:", *problems]))


def table_problems(table: Table) -> Iterator[tuple[str, str]]:
    """What keeps ``table`` from taking events: what is found, and what to do about it."""
    if table.table_type != "TABLE":
        yield (
            f"it is a {table.table_type}, which takes no events",
            f"set {TABLE_VARIABLE} to a table",
        )
        return
    # To BigQuery, Payload and payload are one column.
    columns = {column.name.lower(): column for column in table.schema}
    for name, (kind, mode) in COLUMNS.items():
        if name in columns:
            yield from _column_problems(table, columns[name], kind, mode)
        else:
            yield (
                f"column {name} is missing",
                f"ALTER TABLE `{table.reference}` ADD COLUMN {name} {kind};",
            )
    for name, column in columns.items():
        if name not in COLUMNS and column.mode == "REQUIRED":
            yield (
                f"column {column.name} is REQUIRED and no event fills it",
                _nullable(table, column),
            )


def _column_problems(
    table: Table, column: SchemaField, kind: str, mode: str
) -> Iterator[tuple[str, str]]:
    if column.field_type != kind or column.mode == "REPEATED":
        repeated = "REPEATED " if column.mode == "REPEATED" else ""
        yield (
            f"column {column.name} is {repeated}{column.field_type}, must be {kind}",
            (
                "BigQuery cannot change a column in place, so create the table anew "
                "(create_events_table) and copy the rows"
            ),
        )
        return
    if column.mode == "REQUIRED" and mode == "NULLABLE":
        yield (
            f"column {column.name} is REQUIRED and not every event fills it",
            _nullable(table, column),
        )
    if column.max_length is not None:
        yield (
            f"column {column.name} takes no text of over {column.max_length} characters",
            f"ALTER TABLE `{table.reference}` ALTER COLUMN {column.name} SET DATA TYPE {kind};",
        )


def _nullable(table: Table, column: SchemaField) -> str:
    return f"ALTER TABLE `{table.reference}` ALTER COLUMN {column.name} DROP NOT NULL;"


def _full_name(client: Client) -> str:
    table = whole_table()
    return table if events_project() else f"{client.project}.{table}"
