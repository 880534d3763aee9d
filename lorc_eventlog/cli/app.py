"""``lorc-eventlog``: is the way to BigQuery open, what arrives, and what waits on disk.

Exit codes: 0 fine, 1 something is wrong, 2 the command line is not understood. Results go to
standard output, everything else to standard error. A payload or a ``subject_id`` is shown only
with ``--show-data``.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click
from rich.cells import cell_len
from rich.console import Console
from rich.filesize import pick_unit_and_suffix
from rich.highlighter import JSONHighlighter
from rich.progress import Progress
from rich.table import Table as RichTable
from rich.text import Text

from lorc_eventlog.bigquery.client import open_client
from lorc_eventlog.bigquery.insert_all import REQUEST_TIMEOUT
from lorc_eventlog.bigquery.table import (
    COLUMNS,
    create_events_table,
    deduplicated_view_ddl,
    events_table,
    events_table_ddl,
)
from lorc_eventlog.cli.check import (
    BAD,
    CHECK_TYPE,
    GOOD,
    STEPS,
    STEPS_OF_WRITING,
    UNKNOWN,
    Finding,
    check_columns,
    complete,
    diagnose,
)
from lorc_eventlog.cli.drain import drain
from lorc_eventlog.cli.emit_lines import as_object, deliver, read_rows
from lorc_eventlog.cli.query import (
    ONE_TRY,
    client_errors,
    events_reference,
    ingestion_partitions,
    not_understood,
    run_query,
    what_failed,
    why_no_client,
)
from lorc_eventlog.cli.tail import (
    Selection,
    arriving,
    bytes_read,
    creation_times,
    tail_query,
    there_already,
)
from lorc_eventlog.events.row import row_at

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.events.row import Row
    from lorc_eventlog.spool.store import SegmentReport

STYLES = {GOOD: "bold green", BAD: "bold red", UNKNOWN: "yellow"}

PRIVATE_COLUMNS = ("subject_id", "payload")

LEAST_BYTES_BILLED = 10 * 2**20
"""BigQuery bills at least so much for a query of one table."""

WIDEST_COLUMN = 40

WIDEST_LINE = 200
"""Where there is no terminal."""


class Trouble(click.ClickException):
    """Something is wrong, and it is not the command line: exit code 1."""

    def __init__(self, what: str, to_do: str | None = None) -> None:
        super().__init__(what)
        self.to_do = to_do

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002  click's signature
        """Say it as ``check`` says what it finds."""
        say(BAD, self.message, self.to_do, console=Console(stderr=True))


class Commands(click.Group):
    """Turns what the package and BigQuery's client raise into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the command line names."""
        try:
            return super().invoke(ctx)
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # click's own ways to end
                raise
            trouble = Trouble(str(error))
        except click.ClickException:  # before Google's client is imported for nothing
            raise
        except client_errors() as error:
            trouble = Trouble(*what_failed(error))
        except OSError:  # of a stream; main() says it
            raise
        except Exception as error:  # noqa: BLE001  a traceback helps nobody at night
            trouble = Trouble(*not_understood(error))
        # Not in the except clauses: the client's error may quote what is nobody's business.
        raise trouble


def examples(*lines: str) -> str:
    """Make the end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lorc_eventlog")
def commands() -> None:
    """Look after the BigQuery table that lorc_eventlog writes events to.

    The table is the one that EVENTS_BQ_DATASET and EVENTS_BQ_TABLE name; with
    BIGQUERY_EMULATOR_HOST it is one of an emulator. When nothing arrives, start with
    `lorc-eventlog check`.

    Exit codes: 0 fine, 1 something is wrong, 2 the command line is not understood.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without UTF-8 gets "\u2713" for a check mark, and no traceback.
            stream.reconfigure(errors="backslashreplace")


# check


@commands.command(
    epilog=examples(
        "lorc-eventlog check",
        "lorc-eventlog check --write",
        "lorc-eventlog check --json | jq '.findings[] | select(.ok == false)'",
    )
)
@click.option(
    "--write", is_flag=True, help=f"Write one event, of the type {CHECK_TYPE}, and query it back."
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
@click.pass_context
def check(ctx: click.Context, *, write: bool, as_json: bool) -> None:
    """Walk the whole way to the table and say what is wrong.

    Looks at the variables, the credentials, the project, the dataset, the table, its columns and
    the permission to insert, and tells for each what to do. It writes nothing without --write.
    """
    findings = []
    console = Console()
    steps = complete(diagnose(write=write), STEPS + (STEPS_OF_WRITING if write else ()))
    with console.status("looking …") if not as_json else contextlib.nullcontext():
        for finding in steps:
            findings.append(finding)
            if not as_json:
                say(finding.mark, finding.found, finding.to_do, finding.step, console=console)
    ok = all(finding.mark != BAD for finding in findings)
    if as_json:
        shown = {"ok": ok, "findings": [finding.as_json() for finding in findings]}
        click.echo(json.dumps(shown, indent=2))
    ctx.exit(0 if ok else 1)


# create-table


@commands.command(
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


# tail


DURATION_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def as_duration(_: click.Context, __: click.Parameter, value: str) -> timedelta:
    """Read a time such as 90s, 10m, 2h or 7d."""
    match = re.fullmatch(r"(\d{1,5})([smhd])", value)
    if match is None:
        msg = f"{value!r} is no time such as 90s, 10m, 2h or 7d"
        raise click.BadParameter(msg)
    return timedelta(**{DURATION_UNITS[match[2]]: int(match[1])})


def as_interval(_: click.Context, __: click.Parameter, value: float) -> float:
    """Refuse also nan, which click finds in every range."""
    if not 0.1 <= value <= 3600:
        msg = f"{value} is not from 0.1 to 3600"
        raise click.BadParameter(msg)
    return value


@commands.command(
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
    metavar="SECONDS",
    callback=as_interval,
    default=1.0,
    show_default=True,
    help="From one look to the next with -f, 0.1 to 3600.",
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

    What BigQuery would bill for a look is said first, on standard error. Only the partitions that
    can hold such events are read, and rows that are in no partition yet. Times are UTC.
    """
    columns = tuple(name for name in COLUMNS if show_data or name not in PRIVATE_COLUMNS)
    selection = Selection(event_type, source, correlation_id, since, columns)
    ctrl_c = contextlib.suppress(KeyboardInterrupt) if follow else contextlib.nullcontext()
    with ctrl_c, connected() as client:
        table = client.get_table(events_reference(client), retry=ONE_TRY, timeout=REQUEST_TIMEOUT)
        if ingestion_partitions(table) is None:
            note(f"{table.reference} is not partitioned by ingestion time: a look reads all of it")
        note(cost(bytes_read(client, table, selection), interval if follow else None))
        seen = there_already(client, table, selection) if follow else {}
        events = run_query(client, *tail_query(table, selection, latest=limit))[::-1]
        show = show_json if as_json else Lines(events).show
        for event in events:
            show(event)
        if follow:
            seen |= creation_times(events)
            for event in arriving(client, table, selection, seen, interval=interval, tell=note):
                show(event)
        elif not events:
            note("no such events")


def cost(read: int, interval: float | None) -> str:
    """Say what BigQuery would bill for a look that reads so many bytes, and for following."""
    billed = max(read, LEAST_BYTES_BILLED)
    message = f"a look reads {in_bytes(read)}, billed as {in_bytes(billed)}"
    if interval is not None:
        looks = round(3600 / interval)
        message += f"; {looks:,} looks an hour: up to {in_bytes(looks * billed)}; Ctrl-C ends it"
    return message


def in_bytes(count: int) -> str:
    """Say a number of bytes as a person would."""
    unit, suffix = pick_unit_and_suffix(count, ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"], 1024)
    return f"{count / unit:,.{0 if unit == 1 else 1}f} {suffix}".replace(".0 ", " ")


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
                data.append_text(JSONHighlighter()(printable(payload)))
                data.truncate(self._console.width, overflow="ellipsis")
            else:
                data.append(printable(payload))
            self._console.print(data, soft_wrap=True)


def in_a_line(value: object) -> str:
    """Make ``value`` fit a line; a table that others made may hold more than text."""
    return "" if value is None else printable(str(value))


def show_json(event: dict[str, Any]) -> None:
    """Print ``event`` for a program."""
    click.echo(json.dumps(event, default=str))


# emit


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


@commands.command(
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
def emit_events(
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
        stream = cast("io.BufferedReader", sys.stdin.buffer)
        batches = read_rows(stream, make_row, complain)
    with connected() as client:
        for rows in batches:
            for event_id in deliver(client, rows, complain):
                click.echo(event_id)
    ctx.exit(1 if complaints else 0)


# spool


@commands.command(
    "spool",
    epilog=examples(
        "lorc-eventlog spool /var/lib/app/events",
        "lorc-eventlog spool /var/lib/app/events --drain",
        "lorc-eventlog spool /var/lib/app/events --json | jq .events",
    ),
)
@click.argument(
    "directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--drain", "is_drained", is_flag=True, help="Deliver what dead processes left there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show_spool(ctx: click.Context, *, directory: Path, is_drained: bool, as_json: bool) -> None:
    """Show the events that wait on disk in DIR, a spool_dir.

    With --drain, deliver them, but for those of living processes, which do it themselves. What
    BigQuery does not take for a minute stays on disk.

    The exit code is 1 if a file is damaged or cannot be read, and with --drain if an event was
    rejected or is left.
    """
    reports = look_at_spool(directory)
    shown: dict[str, Any] = {}
    if is_drained:
        orphans = {report.path for report in reports if state_of(report) == "orphaned"}
        expected = sum(report.events for report in reports if report.path in orphans)
        shown = drain_spool(directory, expected)
        reports = look_at_spool(directory)
        # This process may still hold them.
        shown["left"] = sum(report.events for report in reports if report.path in orphans)
    shown["events"] = sum(report.events for report in reports if not report.is_set_aside)
    shown["files"] = [
        {
            "file": report.path.name,
            "owner_pid": report.owner_pid,
            "state": state_of(report),
            "events": report.events,
            "bytes": report.size,
            "oldest": report.oldest,
            "trouble": trouble_of(report),
        }
        for report in reports
    ]
    if as_json:
        click.echo(json.dumps(shown, indent=2))
    else:
        print_spool(directory, shown)
    troubled = any(file["trouble"] for file in shown["files"])
    wrong = troubled or shown.get("left") or shown.get("rejected")
    ctx.exit(1 if wrong else 0)


def look_at_spool(directory: Path) -> list[SegmentReport]:
    """Give the files in ``directory``."""
    from lorc_eventlog.spool.store import survey

    try:
        return survey(directory)
    except OSError as error:
        msg = f"{error.filename} cannot be read: {error.strerror}"
        raise Trouble(msg) from None


def state_of(report: SegmentReport) -> str:
    """Say in a word who cares for the file."""
    if report.is_set_aside:
        return "damaged"
    return "alive" if report.is_locked else "orphaned"


def trouble_of(report: SegmentReport) -> str | None:
    """Say what is wrong with the file."""
    if report.error is not None:
        return f"it cannot be read: {report.error}"
    if report.damaged_bytes or report.is_set_aside:
        return f"{in_bytes(report.damaged_bytes)} of it are damaged"
    return None


def drain_spool(directory: Path, expected: int) -> dict[str, int]:
    """Deliver what is in ``directory``, and show how far it is."""
    console = Console(stderr=True)
    with connected() as client, Progress(console=console, transient=True) as progress:
        task = progress.add_task("delivering", total=expected)
        drained = drain(client, directory, lambda count: progress.update(task, completed=count))
    if drained.gave_up is not None:
        say(BAD, f"BigQuery takes no events: {drained.gave_up}", console=console)
    for message in drained.rejected:
        say(BAD, message, console=console)
    return {"delivered": drained.delivered, "rejected": len(drained.rejected)}


def print_spool(directory: Path, shown: dict[str, Any]) -> None:
    """Show a person what is in ``directory``, and what became of what was."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDEST_LINE
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    for name in ("owner", "state", "events", "size", "oldest"):
        right = name in {"events", "size"}
        table.add_column(name, no_wrap=True, justify="right" if right else "left")
    styles = {"alive": "green", "orphaned": "yellow"}
    for file in shown["files"]:
        table.add_row(
            Text(printable(file["file"])),
            str(file["owner_pid"] or "-"),
            Text(file["state"], "bold red" if file["trouble"] else styles[file["state"]]),
            f"{file['events']:,}",
            in_bytes(file["bytes"]),
            Text(printable(file["oldest"] or "-")[:19].replace("T", " ")),
        )
    if shown["files"]:
        console.print(table)
    for file in shown["files"]:
        if file["trouble"]:
            say(BAD, f"{printable(file['file'])}: {file['trouble']}", console=Console(stderr=True))
    if "left" in shown:
        done, rejected, left = (f"{shown[name]:,}" for name in ("delivered", "rejected", "left"))
        mark = BAD if shown["left"] or shown["rejected"] else GOOD
        say(mark, f"{done} events delivered, {rejected} rejected, {left} left")
        return
    waiting = f"{shown['events']:,} events wait in {directory}"
    orphaned = sum(file["events"] for file in shown["files"] if file["state"] == "orphaned")
    if orphaned:
        waiting += f", {orphaned:,} of them of dead processes"
        say(UNKNOWN, waiting, "the next process with this spool_dir delivers them, or --drain")
    else:
        say(GOOD, waiting)


# What the commands share


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


def printable(value: str | None) -> str:
    """Escape what would move the cursor or recolour the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in value or ""
    )


def say(
    mark: str,
    what: str,
    to_do: str | None = None,
    step: str | None = None,
    *,
    console: Console | None = None,
) -> None:
    """Print a line with its mark, and one that says what to do."""
    console = console or Console()
    name = "" if step is None else f"{step:<13}"
    line = Text.assemble((f"{mark} ", STYLES[mark]), (name, "bold"), printable(what))
    console.print(line, soft_wrap=True)
    if to_do:
        line = Text.assemble(" " * len(name), ("  → ", "cyan"), printable(to_do))
        console.print(line, soft_wrap=True)


def note(what: str) -> None:
    """Say on standard error what is no result."""
    Console(stderr=True).print(Text(printable(what), "dim"), soft_wrap=True)
