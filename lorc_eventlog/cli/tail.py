"""``lorc-eventlog tail``: the latest events, and with ``-f`` those that arrive."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.text import Text

from lorc_eventlog.bigquery.insert_all import REQUEST_TIMEOUT
from lorc_eventlog.bigquery.table import COLUMNS
from lorc_eventlog.cli.output import examples, in_a_line, in_bytes, note, print_json
from lorc_eventlog.cli.query import (
    ONE_TRY,
    connected,
    events_reference,
    ingestion_partitions,
    run_query,
)
from lorc_eventlog.cli.seconds import Seconds
from lorc_eventlog.cli.selection import (
    Selection,
    arriving,
    bytes_read,
    creation_times,
    tail_query,
    there_already,
)
from lorc_eventlog.cli.waiting import emulator_host, who_answers
from lorc_eventlog.diagnostics import escaped

if TYPE_CHECKING:
    from google.cloud.bigquery import Client, Table

PRIVATE_COLUMNS = ("subject_id", "payload")

LEAST_BYTES_BILLED = 10 * 2**20
"""BigQuery bills at least so much for a query of one table."""

WIDEST_COLUMN = 40

DURATION_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def as_duration(_: click.Context, __: click.Parameter, value: str) -> timedelta:
    """Read a time such as 90s, 10m, 2h or 7d."""
    match = re.fullmatch(r"(\d{1,5})([smhd])", value)
    if match is None:
        msg = f"{value!r} is no time such as 90s, 10m, 2h or 7d"
        raise click.BadParameter(msg)
    return timedelta(**{DURATION_UNITS[match[2]]: int(match[1])})


@click.command(
    epilog=examples(
        "lorc-eventlog tail --type 'email.*' --since 10m",
        "lorc-eventlog tail -f --source gmail_ingester",
        "lorc-eventlog tail --correlation-id trace-0001 --since 7d --show-data",
        "lorc-eventlog tail --show-data --json -n 1000 | jq .payload.subject",
    )
)
@click.option("--type", "event_type", metavar="TYPE", help="Of this type; * stands for anything.")
@click.option("--source", help="From this source.")
@click.option("--correlation-id", help="Of this trace.")
@click.option(
    "--since",
    metavar="TIME",
    callback=as_duration,
    default="1h",
    show_default=True,
    help="Not older than this: 90s, 10m, 2h, 7d.",
)
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="The most events to begin with, the latest ones.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on and show events as they arrive.")
@click.option(
    "--interval",
    type=Seconds(0.1, 3600),
    default=1.0,
    show_default=True,
    help="From one query to the next with -f.",
)
@click.option("--show-data", is_flag=True, help="Show subject_id and payload, too.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
def tail(
    *,
    event_type: str | None,
    source: str | None,
    correlation_id: str | None,
    since: timedelta,
    limit: int,
    follow: bool,
    interval: float,
    show_data: bool,
    as_json: bool,
) -> None:
    """Show the latest events.

    Standard error first says what BigQuery bills for a query, or that an emulator answers. Each
    query reads only the partitions that can hold such events, and rows that are in no partition
    yet. Times are UTC.
    """
    columns = tuple(name for name in COLUMNS if show_data or name not in PRIVATE_COLUMNS)
    selection = Selection(event_type, source, correlation_id, since, columns)
    ctrl_c = contextlib.suppress(KeyboardInterrupt) if follow else contextlib.nullcontext()
    with ctrl_c, connected() as client:
        table = client.get_table(events_reference(client), retry=ONE_TRY, timeout=REQUEST_TIMEOUT)
        for line in explain(client, table, selection, interval if follow else None):
            note(line)
        seen = there_already(client, table, selection) if follow else {}
        events = run_query(client, *tail_query(table, selection, latest=limit))[::-1]
        show = print_json if as_json else Lines(events).show
        for event in events:
            show(event)
        if follow:
            seen |= creation_times(events)
            for event in arriving(client, table, selection, seen, interval=interval, tell=note):
                show(event)
        elif not events:
            note("no such events")


def explain(
    client: Client, table: Table, selection: Selection, interval: float | None
) -> Iterator[str]:
    """Say who is asked, and what that costs; nobody bills the queries of an emulator."""
    if emulator_host():
        yield f"asking {who_answers()}" + ("" if interval is None else "; Ctrl-C ends it")
        return
    if ingestion_partitions(table) is None:
        yield (
            f"{table.reference} is not partitioned by ingestion time: each query scans all of it"
        )
    yield cost(bytes_read(client, table, selection), interval)


def cost(read: int, interval: float | None) -> str:
    """Say what BigQuery would bill for a query that reads so many bytes, and for following."""
    billed = max(read, LEAST_BYTES_BILLED)
    message = f"each query scans {in_bytes(read)}, billed as {in_bytes(billed)}"
    if interval is not None:
        count = round(3600 / interval)
        message += f"; {count:,} queries an hour: up to {in_bytes(count * billed)}; Ctrl-C ends it"
    return message


class Lines:
    """Shows events for a person: a line each, and a second one with their data."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._console = Console()
        self._widths = {"event_type": 0, "source": 0}
        for event in events:
            self._cells(event)

    def _cells(self, event: dict[str, Any]) -> list[str]:
        """Fill up type and source of ``event`` to the width of the widest so far."""
        cells = []
        for name, widest in self._widths.items():
            cell = in_a_line(event[name])
            width = max(widest, min(cell_len(cell), WIDEST_COLUMN))
            self._widths[name] = width
            cells.append(cell + " " * (width - cell_len(cell)))
        return cells

    def show(self, event: dict[str, Any]) -> None:
        """Print ``event`` in the columns of those before it."""
        cells = self._cells(event)
        line = Text.assemble(
            (in_a_line(event["created_at"])[:23].replace("T", " "), "dim"),
            "  ",
            (cells[0], "bold cyan"),
            "  ",
            (cells[1], "green"),
            "  ",
            (in_a_line(event["correlation_id"]), "magenta"),
        )
        line.rstrip()
        self._console.print(line, soft_wrap=True)
        if "payload" in event:
            data = Text("    ")
            if event["subject_id"] is not None:
                data.append(f"subject {in_a_line(event['subject_id'])}  ", "yellow")
            payload = json.dumps(event["payload"], ensure_ascii=False, default=str)
            if self._console.is_terminal:
                # Cut before it is highlighted, which takes time; some characters have no width.
                payload = payload[: 4 * self._console.width]
                data.append_text(JSONHighlighter()(escaped(payload)))
                data.truncate(self._console.width, overflow="ellipsis")
            else:
                data.append(escaped(payload))
            self._console.print(data, soft_wrap=True)
