"""The steps from the environment to the table: what each of them finds, and what to do."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lorc_eventlog.bigquery.client import PROJECT_VARIABLE, open_client
from lorc_eventlog.bigquery.create import table_problems
from lorc_eventlog.bigquery.failures import GRANT
from lorc_eventlog.bigquery.insert_all import REQUEST_TIMEOUT, insert_now
from lorc_eventlog.bigquery.table import (
    COLUMNS,
    DATASET_VARIABLE,
    TABLE_VARIABLE,
    events_project,
    events_table,
)
from lorc_eventlog.cli.output import BAD, GOOD, UNKNOWN
from lorc_eventlog.cli.query import (
    ONE_TRY,
    client_errors,
    events_reference,
    in_partitions,
    ingestion_partitions,
    not_understood,
    run_query,
    what_failed,
    why_no_client,
)
from lorc_eventlog.cli.waiting import emulator_host
from lorc_eventlog.delivery.sinks import SINK_VARIABLE, sink_name
from lorc_eventlog.events.row import row_at
from lorc_eventlog.lifecycle import clock

if TYPE_CHECKING:
    from google.api_core.exceptions import GoogleAPICallError
    from google.cloud.bigquery import Client, Table, TableReference

STEPS = ("variables", "credentials", "project", "dataset", "table", "columns", "permission")
"""What ``check`` looks at, in its order."""

STEPS_OF_WRITING = ("written", "found")
"""What follows with ``--write``."""

CHECK_TYPE = "lorc_eventlog.check"
CHECK_SOURCE = "lorc-eventlog check"

INSERT_PERMISSION = "bigquery.tables.updateData"

FIND_PATIENCE = 60.0
"""Seconds until a query must find the event that was written."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one step of ``check`` found."""

    step: str
    mark: str
    """``GOOD``, ``BAD``, or ``UNKNOWN`` if it was not, or could not be, looked at."""
    found: str
    to_do: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As ``--json`` shows it."""
        ok = {GOOD: True, BAD: False, UNKNOWN: None}[self.mark]
        return {"step": self.step, "ok": ok, "found": self.found, "to_do": self.to_do}


def complete(findings: Iterable[Finding], steps: tuple[str, ...]) -> Iterator[Finding]:
    """Add the steps that were not reached, each in its place."""
    left = list(steps)

    def before(step: str | None) -> Iterator[Finding]:
        while left and left[0] != step:
            yield Finding(left.pop(0), UNKNOWN, "not checked")

    try:
        for finding in findings:
            if finding.step in left:  # else one more finding of the same step
                yield from before(finding.step)
                left.pop(0)
            yield finding
    except Exception as error:  # noqa: BLE001  by its type alone: it may quote what is private
        yield Finding(left.pop(0), BAD, *not_understood(error))
    yield from before(None)


def diagnose(*, write: bool) -> Iterator[Finding]:
    """Look at one step after the other, for as long as it makes sense."""
    yield from check_sink()
    variables = check_variables()
    yield variables
    credentials = check_credentials()
    yield credentials
    if credentials.mark == BAD:
        return
    try:
        client = open_client()
    except OSError as error:
        yield Finding("project", BAD, *why_no_client(error))
        return
    with contextlib.closing(client):
        source = where_it_is_from(client.project, is_emulator=bool(emulator_host()))
        yield Finding("project", GOOD, f"{client.project}, {source}")
        if variables.mark == GOOD:
            yield from check_bigquery(client, write=write)


def where_it_is_from(project: str, *, is_emulator: bool) -> str:
    """Who named ``project``."""
    if events_project():
        return f"from {DATASET_VARIABLE}"
    if os.environ.get(PROJECT_VARIABLE) == project:
        return f"from {PROJECT_VARIABLE}"
    return "for the emulator" if is_emulator else "from the credentials"


def check_sink() -> Iterator[Finding]:
    """Say where events go, if that is not BigQuery."""
    try:
        name = sink_name()
    except RuntimeError as error:
        yield Finding("sink", BAD, str(error), f"unset {SINK_VARIABLE}")
        return
    if name != "bigquery":
        found = f"{SINK_VARIABLE} is {name}: programs with this variable write nothing to BigQuery"
        yield Finding("sink", UNKNOWN, found, "unset it where events are to reach the table")


def check_variables() -> Finding:
    """Whether the environment names a table."""
    try:
        events_table()
    except RuntimeError as error:
        found, _, to_do = str(error).rpartition(": ")
        return Finding("variables", BAD, found, to_do)
    values = (f"{name}={os.environ[name]}" for name in (DATASET_VARIABLE, TABLE_VARIABLE))
    return Finding("variables", GOOD, " ".join(values))


def check_credentials() -> Finding:
    """Whether there are credentials that Google takes."""
    emulator = emulator_host()
    if emulator:
        return Finding("credentials", GOOD, f"none needed for the emulator at {emulator}")
    import google.auth
    from google.auth.transport.requests import Request
    from google.cloud.bigquery import Client

    try:
        credentials, _ = google.auth.default(scopes=Client.SCOPE)
        credentials.refresh(functools.partial(Request(), timeout=REQUEST_TIMEOUT))
    except Exception as error:  # noqa: BLE001  google-auth raises anything for a file that is no key
        found, to_do = why_no_client(error)
        if isinstance(error, google.auth.exceptions.DefaultCredentialsError):
            to_do = f"{to_do}; `lorc-eventlog emulator` needs none"
        return Finding("credentials", BAD, found, to_do)
    account = getattr(credentials, "service_account_email", None) or "a user's account"
    return Finding("credentials", GOOD, f"Google takes them: {account}")


def check_bigquery(client: Client, *, write: bool) -> Iterator[Finding]:
    """Look at the dataset and what is in it."""
    from google.api_core.exceptions import Forbidden, NotFound

    reference = events_reference(client)
    dataset = f"{reference.project}.{reference.dataset_id}"
    try:
        location = client.get_dataset(dataset, retry=ONE_TRY, timeout=REQUEST_TIMEOUT).location
        yield Finding("dataset", GOOD, f"{dataset}{f' in {location}' if location else ''}")
    except NotFound as error:
        yield Finding("dataset", BAD, *dataset_not_found(error, dataset))
        return
    except client_errors() as error:
        found, to_do = what_failed(error)
        if not isinstance(error, Forbidden) or to_do != GRANT:
            yield Finding("dataset", BAD, found, to_do or f"correct {DATASET_VARIABLE}")
            return
        # An account may well write to a table without this.
        yield Finding("dataset", UNKNOWN, f"the account may not look at {dataset} itself")

    table = None
    try:
        table = client.get_table(reference, retry=ONE_TRY, timeout=REQUEST_TIMEOUT)
    except NotFound:
        yield Finding(
            "table",
            BAD,
            f"{reference} not found",
            f"`lorc-eventlog create-table` makes it; or correct {TABLE_VARIABLE}",
        )
        return
    except client_errors() as error:
        yield Finding("table", BAD, *what_failed(error))
    else:
        kind = check_kind(table)
        yield kind
        if kind.mark == GOOD:
            yield from check_columns(table)
    permission = check_permission(client, reference)
    if permission.mark == UNKNOWN and not write:
        permission = replace(permission, to_do="`lorc-eventlog check --write` tries it")
    yield permission
    if write:
        yield from check_by_writing(client, table)


def dataset_not_found(error: GoogleAPICallError, dataset: str) -> tuple[str, str | None]:
    """Tell a dataset that is not there from a project that is not, and from no BigQuery at all."""
    if not error.errors:
        return what_failed(error)
    project = dataset.rpartition(".")[0]
    if f"Not found: Project {project}" in str(error):
        return (
            f"there is no project {project}",
            f"correct it: {DATASET_VARIABLE}=project.dataset, else GOOGLE_CLOUD_PROJECT",
        )
    return (
        f"{dataset} not found",
        f"`lorc-eventlog create-table` makes it, and the table; or correct {DATASET_VARIABLE}",
    )


def check_kind(table: Table) -> Finding:
    """Whether it is a table that can be written to, and how it is partitioned."""
    name = str(table.reference)
    if table.table_type != "TABLE":
        return Finding(
            "table",
            BAD,
            f"{name} is a {table.table_type}, which takes no events",
            f"set {TABLE_VARIABLE} to a table; `lorc-eventlog create-table` makes one",
        )
    if ingestion_partitions(table) is None:
        return Finding(
            "table",
            GOOD,
            f"{name}, not partitioned by ingestion time",
            "it takes events; a table of `lorc-eventlog create-table` costs less to query",
        )
    return Finding("table", GOOD, name)


def check_columns(table: Table) -> Iterator[Finding]:
    """Whether the table takes every key of the envelope."""
    problems = list(table_problems(table))
    for found, to_do in problems:
        yield Finding("columns", BAD, found, to_do)
    if not problems:
        yield Finding("columns", GOOD, f"all {len(COLUMNS)} columns take what an envelope holds")


def check_permission(client: Client, reference: TableReference) -> Finding:
    """Whether the account may insert, as BigQuery says without trying."""
    try:
        granted = client.test_iam_permissions(
            reference, [INSERT_PERMISSION], retry=ONE_TRY, timeout=REQUEST_TIMEOUT
        ).get("permissions", ())
    except client_errors():  # an emulator, or a policy that forbids to ask
        return Finding("permission", UNKNOWN, "not checked: BigQuery does not say")
    if INSERT_PERMISSION in granted:
        return Finding("permission", GOOD, f"the account may insert ({INSERT_PERMISSION})")
    return Finding(
        "permission",
        BAD,
        f"the account may not insert: it lacks {INSERT_PERMISSION}",
        f"grant it roles/bigquery.dataEditor on the dataset {reference.dataset_id}",
    )


def check_by_writing(client: Client, table: Table | None) -> Iterator[Finding]:
    """Write one event that says what it is, and query it back."""
    from google.api_core.exceptions import Forbidden
    from google.cloud.bigquery import ScalarQueryParameter

    event = row_at(time.time(), CHECK_TYPE, {}, CHECK_SOURCE)
    event_id = event["event_id"]
    try:
        insert_now(client, events_table(), event)
    except RuntimeError as error:
        yield Finding("written", BAD, str(error))
        return
    yield Finding("written", GOOD, f"event {event_id} of the type {CHECK_TYPE}")

    if table is None:
        yield Finding("found", UNKNOWN, "not checked: the account may not look at the table")
        return
    where, parameters = in_partitions(table, datetime.now(UTC))
    # S608: the name is checked, the values are parameters.
    sql = f"SELECT 1 FROM `{events_reference(client)}` WHERE {where}event_id = @event_id"  # noqa: S608
    parameters.append(ScalarQueryParameter("event_id", "STRING", event_id))
    started = clock.monotonic()
    try:
        while not run_query(client, sql, parameters):
            if clock.monotonic() - started > FIND_PATIENCE:
                yield Finding("found", BAD, "no query finds it", "query for it in some minutes")
                return
            time.sleep(0.2)
    except Forbidden as error:  # one that only writes need not
        what, _ = what_failed(error)
        yield Finding("found", UNKNOWN, f"not checked: the account may not query: {what}")
    except client_errors() as error:
        yield Finding("found", BAD, *what_failed(error))
    else:
        yield Finding("found", GOOD, f"a query finds it {clock.monotonic() - started:.1f} s later")
