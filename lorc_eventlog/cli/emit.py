"""``lorc-eventlog emit``: an event, or one for each line of standard input."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import click
from rich.console import Console

from lorc_eventlog.cli.emit_lines import Complain, as_object, deliver, read_rows
from lorc_eventlog.cli.output import BAD, Trouble, examples, note, say
from lorc_eventlog.cli.query import connected
from lorc_eventlog.cli.waiting import telling, who_answers
from lorc_eventlog.delivery.sinks import SINK_VARIABLE, chosen_sink, sink_name
from lorc_eventlog.events.row import row_at

if TYPE_CHECKING:
    import io

    from lorc_eventlog.events.row import Row


class Emit(click.Command):
    """Quotes nothing that it does not understand: it may be a part of a payload."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line."""
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            msg = "There is no such option."
            raise click.NoSuchOption(error.option_name, msg, error.possibilities, ctx) from None
        if ctx.args:
            msg = "TYPE is the only argument; does a payload lack its quotes?"
            raise click.UsageError(msg, ctx)
        return rest


@click.command(
    "emit",
    cls=Emit,
    context_settings={"allow_extra_args": True},
    epilog=examples(
        "lorc-eventlog emit backup.finished --source cron --payload '{\"files\": 1204}'",
        "jq -c '.orders[]' orders.json | lorc-eventlog emit order.placed --source shop --payload -",
    ),
)
@click.argument("event_type", metavar="TYPE")
@click.option("--source", required=True, help="Who says so, such as nightly_backup.")
@click.option("--payload", required=True, help="A JSON object; - reads standard input.")
@click.option("--schema-ref", help="The name of the payload's schema, such as backup.v1.")
@click.option("--correlation-id", help="Ties the events of one trace together.")
@click.option("--subject-id", help="Who the event is about.")
@click.pass_context
def emit(
    ctx: click.Context,
    *,
    event_type: str,
    source: str,
    payload: str,
    schema_ref: str | None,
    correlation_id: str | None,
    subject_id: str | None,
) -> None:
    """Write an event of the type TYPE, as from cron or a script.

    Prints the event_id of each event that BigQuery has, in the order of the input. Standard error
    names the lines that are not there; nothing is sent any more when the command has ended.

    The first line of standard input decides: if it is a JSON object, every line is to be one, each
    of them an event, and a line that is none costs only itself. Else all of it is one object, and
    one event. Empty input is none.

    What stands on the command line can be seen by other users of the machine; standard input
    cannot.
    """

    def make_row(found: dict[str, Any]) -> Row:
        now = time.time()
        return row_at(now, event_type, found, source, schema_ref, correlation_id, subject_id)

    complaints = []

    def complain(where: str, why: str) -> None:
        complaints.append(where)
        say(BAD, f"{where}: {why}", console=Console(stderr=True))

    try:
        row = make_row({} if payload == "-" else as_object(payload))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    batches: Iterable[dict[str, Row]] = [{"the event": row}]
    if payload == "-":
        if sys.stdin is None:
            msg = "there is no standard input"
            raise Trouble(msg)
        if sys.stdin.isatty():
            note("reading JSON from standard input; Ctrl-D ends it")
        stream = cast("io.BufferedReader", sys.stdin.buffer)
        batches = read_rows(stream, make_row, complain)
    write(batches, complain)
    ctx.exit(1 if complaints else 0)


def write(batches: Iterable[dict[str, Row]], complain: Complain) -> None:
    """Write the events to BigQuery and print their ids, or hand them to another sink."""
    sink = chosen_sink()
    if sink is None:
        with contextlib.ExitStack() as stack:
            with telling(lambda: f"waiting for the credentials for {who_answers()}"):
                client = stack.enter_context(connected())
            for rows in batches:
                for event_id in deliver(client, rows, complain):
                    click.echo(event_id)
        return
    for rows in batches:
        for row in rows.values():
            sink(row)
    note(f"{SINK_VARIABLE} is {sink_name()}: nothing is written to BigQuery")
