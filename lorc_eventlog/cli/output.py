"""What the commands print: findings, notes, events and numbers, with control characters escaped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import IO, Any, TypeVar

import click
from rich.console import Console
from rich.text import Text

from lorc_eventlog.diagnostics import escaped

GOOD, BAD, UNKNOWN = "✓", "✗", "-"

_Function = TypeVar("_Function", bound=Callable[..., Any])

STYLES = {GOOD: "bold green", BAD: "bold red", UNKNOWN: "yellow"}


class Trouble(click.ClickException):
    """Something is wrong, and it is not the command line: exit code 1."""

    def __init__(self, what: str, to_do: str | None = None) -> None:
        super().__init__(what)
        self.to_do = to_do

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002  click's signature
        """Print it as ``check`` prints what it finds."""
        say(BAD, self.message, self.to_do, console=Console(stderr=True))


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
    line = Text.assemble((f"{mark} ", STYLES[mark]), (name, "bold"), escaped(what))
    console.print(line, soft_wrap=True)
    if to_do:
        line = Text.assemble(" " * len(name), ("  → ", "cyan"), escaped(to_do))
        console.print(line, soft_wrap=True)


def note(what: str) -> None:
    """Print on standard error what is not a result."""
    Console(stderr=True).print(Text(escaped(what), "dim"), soft_wrap=True)


def print_json(value: object, *, indent: int | None = None) -> None:
    """Print ``value`` for a program; what JSON does not know becomes its ``str``."""
    text = json.dumps(value, indent=indent, default=str)
    # The only control character that JSON does not escape itself.
    click.echo(text.replace("\x7f", "\\u007f"))


def in_a_line(value: object) -> str:
    """Make ``value`` fit a line; a table that others made may hold more than text."""
    return "" if value is None else escaped(str(value))


def in_bytes(count: int) -> str:
    """Say a number of bytes as a person would."""
    from rich.filesize import pick_unit_and_suffix

    unit, suffix = pick_unit_and_suffix(count, ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"], 1024)
    return f"{count / unit:,.{0 if unit == 1 else 1}f} {suffix}".replace(".0 ", " ")


def quiet_grpc() -> None:
    """Keep gRPC from reporting on standard error what it does: before it is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def examples(*lines: str) -> str:
    """Make the end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def transport_options(*, transport: str, exactly_once: str) -> Callable[[_Function], _Function]:
    """Give a command ``--transport`` and ``--exactly-once``, with this help."""

    def check(ctx: click.Context, _: click.Parameter, value: bool) -> bool:  # noqa: FBT001
        if value and ctx.params["transport"] != "grpc":
            msg = "--exactly-once needs --transport grpc"
            raise click.UsageError(msg)
        return value

    def add(command: _Function) -> _Function:
        once = click.option("--exactly-once", is_flag=True, callback=check, help=exactly_once)
        which = click.option(
            "--transport",
            type=click.Choice(["rest", "grpc"]),
            default="rest",
            show_default=True,
            is_eager=True,  # so that the other option knows it
            help=transport,
        )
        return which(once(command))

    return add
