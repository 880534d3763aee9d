"""``lorc-eventlog emulator``: a BigQuery on this machine, with the events table in it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from lorc_eventlog.bigquery.client import EMULATOR_VARIABLE, open_client
from lorc_eventlog.bigquery.create import create_events_table
from lorc_eventlog.bigquery.table import DATASET_VARIABLE, TABLE_VARIABLE
from lorc_eventlog.cli.output import GOOD, Trouble, examples, note, say

if TYPE_CHECKING:
    from bqemulator.server import EmulatorServer

STORAGE_VARIABLE = "BIGQUERY_STORAGE_EMULATOR_HOST"

HOST = "127.0.0.1"


@click.command(
    "emulator",
    epilog=examples("lorc-eventlog emulator", "lorc-eventlog emulator --port 9055 --grpc-port 0"),
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=9050,
    show_default=True,
    help="Where it serves BigQuery's REST API; 0 takes a free port.",
)
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65_535),
    default=9060,
    show_default=True,
    help="Where it serves the Storage Write API; 0 takes a free port.",
)
@click.option("--empty", is_flag=True, help="Create no dataset and no table.")
@click.option(
    "--until-stdin-ends",
    is_flag=True,
    help="For a program that starts the emulator: end when standard input does, explain nothing.",
)
def emulator(*, port: int, grpc_port: int, empty: bool, until_stdin_ends: bool) -> None:
    """Run a BigQuery on this machine, for development and tests.

    Creates the table that EVENTS_BQ_DATASET and EVENTS_BQ_TABLE name, demo.events by default,
    prints the variables to export where your program runs, and serves until Ctrl-C. The data is
    kept in memory, and gone then.

    It is bqemulator, and needs the extra: pip install 'lorc_eventlog[emulator]'
    """
    for option, number in (("--port", port), ("--grpc-port", grpc_port)):
        check_is_free(option, number)
    if not until_stdin_ends:
        note("starting the emulator …")
    with contextlib.suppress(KeyboardInterrupt):  # before the loop takes the signal
        asyncio.run(run(port, grpc_port, empty=empty, until_stdin_ends=until_stdin_ends))


def check_is_free(option: str, port: int) -> None:
    """Complain about a port that another program has."""
    with socket.socket() as tried:
        # As servers do it: connections that ended a moment ago do not take the port.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            is_taken = error.errno == errno.EADDRINUSE
            msg = f"port {port} {'is taken' if is_taken else 'cannot be used'}: {error.strerror}"
            to_do = f"stop what uses it (another emulator?), or choose another port with {option}"
            raise Trouble(msg, to_do) from None


async def run(port: int, grpc_port: int, *, empty: bool, until_stdin_ends: bool) -> None:
    """Serve until a signal, or the end of standard input."""
    async with serving(port, grpc_port) as server:
        told_to_end = asyncio.Event()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError):  # Windows, where Ctrl-C cancels this
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, told_to_end.set)
        if until_stdin_ends:
            loop.add_reader(sys.stdin, told_to_end.set)
        variables = {
            EMULATOR_VARIABLE: server.rest_url,
            STORAGE_VARIABLE: server.grpc_endpoint,
        }
        holds = "nothing"
        if not empty:
            variables[DATASET_VARIABLE] = os.environ.get(DATASET_VARIABLE) or "demo"
            variables[TABLE_VARIABLE] = os.environ.get(TABLE_VARIABLE) or "events"
            os.environ.update(variables)
            holds = f"the table {await asyncio.to_thread(create_table)}"
        if not until_stdin_ends:
            explain(f"a BigQuery runs at {server.rest_url}, with {holds} in it")
        for name, value in variables.items():
            click.echo(f"export {name}={shlex.quote(value)}")
        sys.stdout.flush()
        await told_to_end.wait()


def explain(what: str) -> None:
    """Tell a person what is there, and what to do."""
    say(GOOD, what, console=Console(stderr=True))
    note("Paste this where your program runs. Ctrl-C here stops it, and its data is gone then:")


def create_table() -> str:
    """Make the table that the environment names."""
    with contextlib.closing(open_client()) as client:
        return str(create_events_table(client))


@contextlib.asynccontextmanager
async def serving(port: int, grpc_port: int) -> AsyncIterator[EmulatorServer]:
    """Run bqemulator for as long as the block lasts."""
    server = make_server(port, grpc_port)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def make_server(port: int, grpc_port: int) -> Any:
    """Import bqemulator, and make a server that says nothing: its failures are HTTP answers."""
    try:
        import duckdb_extensions
        import structlog

        # Before it is imported, which it would log about.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        from bqemulator.config import LogLevel, Settings
        from bqemulator.server import EmulatorServer
    except ImportError as error:
        msg = f"the emulator is not installed: {error}"
        raise Trouble(msg, "pip install 'lorc_eventlog[emulator]'") from None
    duckdb_extensions.import_extension("spatial")  # from the package index, not DuckDB's own site
    return EmulatorServer(
        Settings(
            rest_host=HOST,
            grpc_host=HOST,
            rest_port=port,
            grpc_port=grpc_port,
            log_level=LogLevel.CRITICAL,
            enable_format_extensions=False,
        )
    )
