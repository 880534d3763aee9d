"""Questions to the events table: pruned to the partitions that matter, patient, and in order.

For the command line; nothing that logs events asks BigQuery anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from lorc_eventlog.bigquery import failures
from lorc_eventlog.bigquery.client import open_client
from lorc_eventlog.bigquery.failures import as_failure
from lorc_eventlog.bigquery.insert_all import REQUEST_TIMEOUT
from lorc_eventlog.bigquery.table import events_table, whole_table
from lorc_eventlog.bigquery.transport import Refusal
from lorc_eventlog.cli.output import Trouble
from lorc_eventlog.cli.waiting import emulator_host

if TYPE_CHECKING:
    from google.api_core.retry import Retry
    from google.cloud.bigquery import Client, QueryJob, QueryJobConfig, Table, TableReference
    from google.cloud.bigquery.query import ArrayQueryParameter, ScalarQueryParameter

    Parameter = ScalarQueryParameter | ArrayQueryParameter

ONE_TRY: Any = None
"""``retry`` of a request whose failure is what we want to know (Google's types forbid None)."""

_QUERY_PERMISSION = "bigquery.jobs.create"

QUERY_PATIENCE = 10.0
"""Seconds to try again what fails for the moment."""

QUERY_TIMEOUT = 120.0
"""Seconds to wait for the rows of a query."""

WAIT = "try again; check the network, and https://status.cloud.google.com for an outage"

LOOK_AT_EMULATOR = (
    "does an emulator run there? `lorc-eventlog emulator` starts one; correct "
    "BIGQUERY_EMULATOR_HOST, or unset it to use BigQuery"
)

GRANT_QUERIES = "grant the account roles/bigquery.jobUser on the project"

CLOCK_SKEW = timedelta(hours=1)
"""So far may the clock of the one who logs be ahead of BigQuery's, which chooses the partition."""


@contextlib.contextmanager
def connected() -> Iterator[Client]:
    """Make the client of a command."""
    events_table()  # what is missing here is the first thing to say
    try:
        client = open_client()
    except Exception as error:  # noqa: BLE001  google-auth raises anything for a file that is no key
        raise Trouble(*why_no_client(error)) from None
    with contextlib.closing(client):
        yield client


def events_reference(client: Client) -> TableReference:
    """The table that the environment names."""
    from google.cloud.bigquery import TableReference

    return TableReference.from_string(whole_table(), default_project=client.project)


def ingestion_partitions(table: Table) -> str | None:
    """How long a partition is (``DAY``, ``HOUR``, …), None without partitions by ingestion."""
    partitioning = table.time_partitioning
    return None if partitioning is None or partitioning.field else partitioning.type_


def in_partitions(table: Table, oldest: datetime) -> tuple[str, list[Parameter]]:
    """Make the condition that keeps a query from partitions without events since ``oldest``.

    Rows that were just written are in no partition yet: their _PARTITIONTIME is NULL.
    """
    from google.cloud.bigquery import ScalarQueryParameter

    kind = ingestion_partitions(table)
    if kind is None:
        return "", []
    return (
        f"(_PARTITIONTIME >= TIMESTAMP_TRUNC(@partition, {kind}) OR _PARTITIONTIME IS NULL) AND ",
        [ScalarQueryParameter("partition", "TIMESTAMP", oldest - CLOCK_SKEW)],
    )


def run_query(client: Client, sql: str, parameters: list[Parameter]) -> list[dict[str, Any]]:
    """Run ``sql`` and give its rows."""
    from google.cloud.bigquery import QueryJobConfig

    config = QueryJobConfig(use_query_cache=False, query_parameters=parameters)
    job = start_query(client, sql, config)
    rows = job.result(retry=query_retry(), job_retry=ONE_TRY, timeout=QUERY_TIMEOUT)
    return [dict(row.items()) for row in rows]


def start_query(client: Client, sql: str, config: QueryJobConfig) -> QueryJob:
    """Hand BigQuery a query, trying again for a while what fails for the moment."""
    return client.query(
        sql, config, retry=query_retry(), job_retry=ONE_TRY, timeout=REQUEST_TIMEOUT
    )


def query_retry() -> Retry:
    """As BigQuery's client does it, but for ``QUERY_PATIENCE``, and not for ten minutes."""
    from google.cloud.bigquery import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(QUERY_PATIENCE)


def as_text(moment: datetime) -> str:
    """As ``created_at`` is written, so that texts compare as times do."""
    return moment.isoformat(timespec="microseconds")


def client_errors() -> tuple[type[Exception], ...]:
    """What BigQuery's client raises when BigQuery, the network or the credentials fail."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import RequestException

    return GoogleAPIError, GoogleAuthError, RequestException, TimeoutError


def what_failed(error: Exception) -> tuple[str, str | None]:
    """Say what ``error`` means, and what to do."""
    from google.api_core.exceptions import NotFound

    failure = as_failure(error)
    told = failure.reason.told(())
    if isinstance(failure, Refusal):
        return told, "`lorc-eventlog check` tells whether the table is as it must be"
    if isinstance(error, NotFound):
        if not error.errors:  # BigQuery names what it did not find; this is another web server
            return told, what_to_wait_for()
        return told, "`lorc-eventlog check` tells what is missing"
    if _QUERY_PERMISSION in told:
        return told, GRANT_QUERIES
    return told, failure.what_to_do or what_to_wait_for()


def what_to_wait_for() -> str:
    """Say what to do about what time may mend."""
    return LOOK_AT_EMULATOR if emulator_host() else WAIT


def not_understood(error: Exception) -> tuple[str, str]:
    """Say of what nobody expected only its type, because it may quote what is private."""
    return (
        f"the answer is not one of BigQuery's ({type(error).__name__})",
        (
            "check what answers in its place: a proxy, or BIGQUERY_EMULATOR_HOST; if it is "
            "BigQuery, please report this as a bug of lorc_eventlog"
        ),
    )


def why_no_client(error: Exception) -> tuple[str, str | None]:
    """Say why there are no credentials, or no client."""
    failure = failures.why_no_client(error)
    return failure.reason.told(()), failure.what_to_do or WAIT
