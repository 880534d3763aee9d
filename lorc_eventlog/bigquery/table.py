"""Which table the events go to, and what it looks like."""

from __future__ import annotations

import os
import re

DATASET_VARIABLE = "EVENTS_BQ_DATASET"
TABLE_VARIABLE = "EVENTS_BQ_TABLE"

COLUMNS = {
    "event_id": ("STRING", "REQUIRED"),
    "event_type": ("STRING", "REQUIRED"),
    "source": ("STRING", "REQUIRED"),
    "schema_ref": ("STRING", "NULLABLE"),
    "created_at": ("STRING", "REQUIRED"),
    "correlation_id": ("STRING", "NULLABLE"),
    "subject_id": ("STRING", "NULLABLE"),
    "payload": ("JSON", "REQUIRED"),
}
"""Name, type and mode of each column: one for each key of the envelope, in its order."""

CLUSTERING = ("event_type", "source")

# A project has dots only in the domain before it: example.com:project.
_DATASET = re.compile(r"(?:(?:[A-Za-z0-9.-]+:)?[A-Za-z0-9-]+\.)?[A-Za-z0-9_]+")
# A partition, such as $20261124, is for inserts alone.
_TABLE = re.compile(r"(?! )[\w -]*[\w-](?:\$\d+)?")


def events_table() -> str:
    """Name the table, ``dataset.table`` or ``project.dataset.table``, as the environment says.

    Raises:
        RuntimeError: ``EVENTS_BQ_DATASET`` or ``EVENTS_BQ_TABLE`` is not set (the message names
            each that is missing), or holds what cannot be a dataset or a table.
    """
    dataset = os.environ.get(DATASET_VARIABLE, "")
    table = os.environ.get(TABLE_VARIABLE, "")
    missing = [
        name for name, value in ((DATASET_VARIABLE, dataset), (TABLE_VARIABLE, table)) if not value
    ]
    if missing:
        msg = (
            f"{' and '.join(missing)} not set: set {DATASET_VARIABLE} to the BigQuery dataset "
            f"(dataset or project.dataset) and {TABLE_VARIABLE} to the table that the events go to"
        )
        raise RuntimeError(msg)
    if not _DATASET.fullmatch(dataset):
        msg = f"{DATASET_VARIABLE} is {dataset!r}: it must be dataset or project.dataset"
        raise RuntimeError(msg)
    if not _TABLE.fullmatch(table):
        msg = f"{TABLE_VARIABLE} is {table!r}: it must be the name of a table in {dataset}"
        raise RuntimeError(msg)
    return f"{dataset}.{table}"


def whole_table() -> str:
    """Name the table as all but an insert do: without a partition, such as ``$20261124``."""
    return events_table().partition("$")[0]


def events_project() -> str | None:
    """Return the project in ``EVENTS_BQ_DATASET``, or None if it names only a dataset."""
    return os.environ.get(DATASET_VARIABLE, "").rpartition(".")[0] or None
