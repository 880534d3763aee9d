"""``lorc-eventlog spool``: what waits on disk, and with ``--drain`` its delivery."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from lorc_eventlog.bigquery.table import events_table
from lorc_eventlog.cli.drain import Drained, drain, ship
from lorc_eventlog.cli.output import (
    BAD,
    GOOD,
    UNKNOWN,
    Trouble,
    examples,
    in_bytes,
    print_json,
    quiet_grpc,
    say,
    transport_options,
)
from lorc_eventlog.cli.query import connected
from lorc_eventlog.delivery.sinks import require_bigquery
from lorc_eventlog.diagnostics import escaped
from lorc_eventlog.spool.shipped import SUFFIX as SHIPPED_SUFFIX
from lorc_eventlog.spool.shipped import ledger_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.cloud.bigquery import Client

    from lorc_eventlog.spool import SegmentReport

WIDEST_LINE = 200
"""Where there is no terminal."""


@click.command(
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
@click.option("--drain", "is_drained", is_flag=True, help="Deliver what waits there.")
@transport_options(
    transport="How --drain speaks to BigQuery: insertAll, or the Storage Write API.",
    exactly_once="Store nothing twice of what waits for a shipper; needs --transport grpc.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def spool(
    ctx: click.Context,
    *,
    directory: Path,
    is_drained: bool,
    transport: str,
    exactly_once: bool,
    as_json: bool,
) -> None:
    """Show the events that wait on disk in DIR, a spool_dir.

    With --drain, deliver them, but for those of living processes, which do it themselves, and of
    other tables. It delivers what waits for a shipper as `lorc-eventlog ship --until-empty` does,
    but waits for no living process to end. What BigQuery does not take for a minute stays on disk.

    The exit code is 1 if a file is damaged or cannot be read, and with --drain if an event was
    rejected or is left.
    """
    if is_drained:
        require_bigquery("--drain")
    reports = look_at_spool(directory)
    shown: dict[str, Any] = {}
    if is_drained:
        ours = (None, own_table())
        waiting = [
            report
            for report in reports
            if report.table in ours
            and (state_of(report) == "orphaned" or (report.is_for_a_shipper and report.events))
        ]
        shown = drain_spool(directory, waiting, transport=transport, exactly_once=exactly_once)
        reports = look_at_spool(directory)
        # This process may still hold them. What living processes wrote meanwhile is not left.
        orphans = {report.path for report in waiting if state_of(report) == "orphaned"}
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
            "table": report.table,
            "trouble": trouble_of(report),
        }
        for report in reports
    ]
    if as_json:
        print_json(shown, indent=2)
    else:
        print_spool(directory, shown)
    troubled = any(file["trouble"] for file in shown["files"])
    wrong = troubled or shown.get("left") or shown.get("rejected")
    ctx.exit(1 if wrong else 0)


def look_at_spool(directory: Path) -> list[SegmentReport]:
    """Give the files in ``directory``."""
    from lorc_eventlog.spool import survey

    try:
        return survey(directory)
    except OSError as error:
        msg = f"{error.filename} cannot be read: {error.strerror}"
        raise Trouble(msg) from None


def own_table() -> str | None:
    """Return the table that the environment names; None if it names none."""
    try:
        return events_table()
    except RuntimeError:
        return None


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


def drain_spool(
    directory: Path, waiting: list[SegmentReport], *, transport: str, exactly_once: bool
) -> dict[str, int]:
    """Deliver the segments that are ``waiting``, and show how far it is."""
    from rich.progress import Progress

    console = Console(stderr=True)
    of_shippers = [report for report in waiting if report.is_for_a_shipper]
    expected = sum(report.events for report in waiting)
    parts: list[Drained] = []

    connection: Any = connected() if transport == "rest" else contextlib.nullcontext()
    if transport == "grpc":
        quiet_grpc()
    with connection as client, Progress(console=console, transient=True) as progress:
        task = progress.add_task("delivering", total=expected)

        def show(count: int) -> None:
            done = sum(part.delivered + part.rejected for part in parts)
            progress.update(task, completed=done + count)

        if len(of_shippers) < len(waiting) or not of_shippers:
            parts.append(drain(client, directory, show))
        if of_shippers:
            parts += ship_once(client, directory, show, exactly_once=exactly_once)
    for part in parts:
        if part.gave_up is not None:
            say(BAD, f"BigQuery takes no events: {part.gave_up}", console=console)
        for message in part.reasons:
            say(BAD, message, console=console)
    return {
        "delivered": sum(part.delivered for part in parts),
        "rejected": sum(part.rejected for part in parts),
    }


def ship_once(
    client: Client | None, directory: Path, show: Callable[[int], object], *, exactly_once: bool
) -> list[Drained]:
    """Deliver what waits for a shipper, unless one is there or the directory needs another."""
    from lorc_eventlog.shipping.lock import AnotherShipperError
    from lorc_eventlog.shipping.requirements import UnfitError

    table = events_table()
    console = Console(stderr=True)
    if (directory / ledger_name(table)).exists() and not exactly_once:
        # A request whose answer is not known yet would be there twice.
        say(
            UNKNOWN,
            f"{directory} is shipped exactly once",
            f"`lorc-eventlog spool {directory} --drain --transport grpc --exactly-once`",
            console=console,
        )
        return []
    try:
        return [ship(client, directory.absolute(), table, show, exactly_once=exactly_once)]
    except UnfitError as error:
        raise Trouble(str(error), error.to_do) from None
    except AnotherShipperError as error:
        say(UNKNOWN, str(error), "it delivers what is there", console=console)
        return []
    except OSError as error:
        msg = f"{error.filename or directory}: {error.strerror}"
        raise Trouble(msg) from None


def print_spool(directory: Path, shown: dict[str, Any]) -> None:
    """Show a person what is in ``directory``, and what became of what was."""
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = WIDEST_LINE
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    for name in ("owner", "state", "events", "size", "oldest"):
        right = name in {"events", "size"}
        table.add_column(name, no_wrap=True, justify="right" if right else "left")
    styles = {"alive": "green", "orphaned": "yellow"}
    for file in shown["files"]:
        table.add_row(
            Text(escaped(file["file"])),
            str(file["owner_pid"] or "-"),
            Text(file["state"], "bold red" if file["trouble"] else styles[file["state"]]),
            f"{file['events']:,}",
            in_bytes(file["bytes"]),
            Text(escaped(file["oldest"] or "-")[:19].replace("T", " ")),
        )
    if shown["files"]:
        console.print(table)
    for file in shown["files"]:
        if file["trouble"]:
            say(BAD, f"{file['file']}: {file['trouble']}", console=Console(stderr=True))
    print_other_tables(shown)
    if "left" in shown:
        done, rejected, left = (f"{shown[name]:,}" for name in ("delivered", "rejected", "left"))
        mark = BAD if shown["left"] or shown["rejected"] else GOOD
        say(mark, f"{done} events delivered, {rejected} rejected, {left} left")
        return
    waiting = f"{shown['events']:,} events wait in {directory}"
    orphaned = sum(
        file["events"]
        for file in shown["files"]
        if file["state"] == "orphaned" and not waits_for_a_shipper(file)
    )
    to_ship = sum(file["events"] for file in shown["files"] if waits_for_a_shipper(file))
    if orphaned:
        waiting += f", {orphaned:,} of them of dead processes"
        say(UNKNOWN, waiting, "the next process with this spool_dir delivers them, or --drain")
    elif to_ship:
        waiting += f", {to_ship:,} of them for a shipper"
        say(UNKNOWN, waiting, f"`lorc-eventlog ship {directory}` delivers them, or --drain")
    else:
        say(GOOD, waiting)


def waits_for_a_shipper(file: dict[str, Any]) -> bool:
    """Whether only a shipper delivers the file."""
    return str(file["file"]).endswith(SHIPPED_SUFFIX)


def print_other_tables(shown: dict[str, Any]) -> None:
    """Show which events only processes of other tables deliver."""
    ours = own_table()
    others: Counter[str] = Counter()
    for file in shown["files"]:
        if file["state"] == "orphaned" and ours is not None and file["table"] not in {None, ours}:
            others[file["table"]] += file["events"]
    for table, events in others.items():
        say(
            UNKNOWN,
            f"{events:,} events of dead processes belong to the table {table}",
            "its processes deliver them, or --drain with EVENTS_BQ_DATASET and EVENTS_BQ_TABLE "
            "set to it",
        )
