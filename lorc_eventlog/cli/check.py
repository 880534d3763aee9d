"""``lorc-eventlog check``: is the way to the table open, and if not, where and what to do."""

from __future__ import annotations

import contextlib
from itertools import chain
from pathlib import Path

import click
from rich.console import Console

from lorc_eventlog.cli import storage_check
from lorc_eventlog.cli.diagnosis import CHECK_TYPE, STEPS, STEPS_OF_WRITING, complete, diagnose
from lorc_eventlog.cli.output import BAD, examples, print_json, quiet_grpc, say, transport_options
from lorc_eventlog.cli.spool_check import check_shipper


@click.command(
    epilog=examples(
        "lorc-eventlog check",
        "lorc-eventlog check --write",
        "lorc-eventlog check --transport grpc --exactly-once",
        "lorc-eventlog check --spool-dir /var/lib/app/events",
        "lorc-eventlog check --json | jq '.findings[] | select(.ok == false)'",
    )
)
@click.option(
    "--write", is_flag=True, help=f"Write one event, of the type {CHECK_TYPE}, and query it back."
)
@transport_options(
    transport="Which way: that of insertAll, or that of the Storage Write API.",
    exactly_once="See that `ship --exactly-once` can be had; needs --transport grpc.",
)
@click.option(
    "--spool-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The spool_dir of applications with spool_only=True: see that a process ships from it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
@click.pass_context
def check(
    ctx: click.Context,
    *,
    write: bool,
    transport: str,
    exactly_once: bool,
    spool_dir: Path | None,
    as_json: bool,
) -> None:
    """Walk the whole way to the table and say what is wrong.

    Looks at the variables, the credentials, the project, the dataset, the table, its columns and
    the permission to insert, and tells for each what to do. It writes nothing without --write.

    With --transport grpc it walks the way of a shipper over the Storage Write API instead: the
    credentials, the endpoint, the permission and the table.
    """
    grpc = transport == "grpc"
    if write and grpc:
        msg = "--write goes over REST: leave out --transport grpc"
        raise click.UsageError(msg)
    findings = []
    console = Console()
    if grpc:
        quiet_grpc()
        names = storage_check.STEPS
        if exactly_once:
            names = (names[0], storage_check.ONCE, *names[1:])
        steps = complete(storage_check.diagnose(exactly_once=exactly_once), names)
    else:
        steps = complete(diagnose(write=write), STEPS + (STEPS_OF_WRITING if write else ()))
    if spool_dir is not None:
        steps = chain([check_shipper(spool_dir)], steps)
        if exactly_once:
            steps = chain([storage_check.check_spool(spool_dir)], steps)
    with console.status("looking …") if not as_json else contextlib.nullcontext():
        for finding in steps:
            findings.append(finding)
            if not as_json:
                say(finding.mark, finding.found, finding.to_do, finding.step, console=console)
    ok = all(finding.mark != BAD for finding in findings)
    if as_json:
        print_json({"ok": ok, "findings": [finding.as_json() for finding in findings]}, indent=2)
    ctx.exit(0 if ok else 1)
