"""``lorc-eventlog create-table``: the dataset, the table and the view, unless they exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from lorc_eventlog.bigquery.create import (
    create_events_table,
    deduplicated_view_ddl,
    events_table_ddl,
)
from lorc_eventlog.bigquery.insert_all import REQUEST_TIMEOUT
from lorc_eventlog.cli.diagnosis import Finding, check_columns
from lorc_eventlog.cli.output import BAD, GOOD, examples, say
from lorc_eventlog.cli.query import ONE_TRY, connected, events_reference

if TYPE_CHECKING:
    from google.cloud.bigquery import Client


@click.command(
    "create-table",
    epilog=examples(
        "lorc-eventlog create-table --location EU",
        "lorc-eventlog create-table --print-ddl | bq query --nouse_legacy_sql",
    ),
)
@click.option("--location", help="Where a new dataset is kept, such as EU or europe-west4.")
@click.option(
    "--deduplicated-view", is_flag=True, help="Make a view of it that has each event once, too."
)
@click.option("--print-ddl", is_flag=True, help="Print the SQL; ask BigQuery for nothing.")
@click.pass_context
def create_table(
    ctx: click.Context, *, location: str | None, deduplicated_view: bool, print_ddl: bool
) -> None:
    """Create the events table and its dataset, unless they exist.

    The table is partitioned by the day of ingestion and clustered by event_type and source. What
    is there is left as it is.
    """
    if print_ddl:
        if location is not None:
            msg = "--location has no effect with --print-ddl"
            raise click.UsageError(msg)
        click.echo(events_table_ddl())
        if deduplicated_view:
            click.echo(deduplicated_view_ddl())
        return
    from google.api_core.exceptions import NotFound

    with connected() as client:
        reference = events_reference(client)
        try:
            client.get_table(reference, retry=ONE_TRY, timeout=REQUEST_TIMEOUT)
            done = "was there already"
        except NotFound:
            done = "is created"
        table = create_events_table(client, location=location, deduplicated_view=deduplicated_view)
        findings = [Finding("table", GOOD, f"{reference} {done}"), *check_columns(table)]
        if location is not None:
            findings += check_location(client, reference.dataset_id, location)
        if deduplicated_view:
            findings.append(Finding("view", GOOD, f"{reference}_deduplicated has each event once"))
    for finding in findings:
        say(finding.mark, finding.found, finding.to_do)
    ctx.exit(0 if all(finding.mark == GOOD for finding in findings) else 1)


def check_location(client: Client, dataset: str, location: str) -> Iterator[Finding]:
    """Whether the dataset is where it was asked for; one that was there already stays in place."""
    found = client.get_dataset(dataset, retry=ONE_TRY, timeout=REQUEST_TIMEOUT).location
    if found.upper() != location.upper():
        to_do = "leave out --location, or name another dataset"
        yield Finding("dataset", BAD, f"{dataset} was there already, in {found}", to_do)
