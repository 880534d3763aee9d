"""``lorc-eventlog ship``: one process that delivers what all others wrote to a spool directory."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorc_eventlog.bigquery.table import events_table
from lorc_eventlog.cli.output import Trouble, examples
from lorc_eventlog.delivery.sinks import require_bigquery
from lorc_eventlog.diagnostics import logger

if TYPE_CHECKING:
    from lorc_eventlog.shipping.service import Progress, Shipper

STATUS_SECONDS = 60.0
"""Seconds between two lines about how far it is."""

TICK = 0.1


@click.command(
    "ship",
    epilog=examples(
        "lorc-eventlog ship /var/lib/app/events",
        "lorc-eventlog ship /var/lib/app/events --until-empty",
        "lorc-eventlog ship /var/lib/app/events --transport grpc --exactly-once",
    ),
)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--interval",
    type=click.FloatRange(0.01, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks at the directory.",
)
@click.option("--until-empty", is_flag=True, help="End when everything is delivered.")
@click.option(
    "--on-term",
    type=click.Choice(["stop", "drain"]),
    default="stop",
    show_default=True,
    help="On SIGTERM: settle what is on its way, or go on until the directory is empty and no "
    "process writes to it.",
)
@click.option(
    "--term-timeout",
    type=click.FloatRange(0, 86_400),
    default=10.0,
    show_default=True,
    help="Seconds that --on-term stop may take.",
)
@click.option(
    "--dead-letters",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file for events that BigQuery refuses; the default is dead-letters.jsonl in DIR.",
)
@click.option("--metrics-port", type=click.IntRange(1, 65_535), help="Serve Prometheus metrics.")
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Where to serve them.")
@click.option(
    "--transport",
    type=click.Choice(["rest", "grpc"]),
    default="rest",
    show_default=True,
    help="How BigQuery is spoken to: insertAll, or the Storage Write API.",
)
@click.option("--exactly-once", is_flag=True, help="Store no event twice; needs --transport grpc.")
@click.option("--batch-rows", type=click.IntRange(1, 50_000), help="The most events in a request.")
@click.pass_context
def ship(ctx: click.Context, /, **options: Any) -> None:
    """Deliver what applications with spool_only=True write to DIR, and follow them.

    Events of processes that live and of those that are dead are delivered alike. One process ships
    from a directory into a table: a second one ends with exit code 1.

    SIGTERM and SIGINT end it with exit code 0; what is not delivered then stays in DIR.
    """
    if options["exactly_once"] and options["transport"] != "grpc":
        msg = "--exactly-once needs --transport grpc"
        raise click.UsageError(msg)
    require_bigquery("ship")
    _log_to_stderr()
    with _shipping(options) as shipper, _metrics(shipper, options), _signals() as signals:
        shipper.start()
        _follow(shipper, signals, until_empty=options["until_empty"])
        if signals.came and options["on_term"] == "drain":
            logger.info("shipping until the directory is empty and no process writes to it")
            signals.came = False  # a second signal ends it
            _follow(shipper, signals, until_empty=True)
        shipper.stop_reading()
        settled = shipper.wait_until(lambda progress: progress.is_settled, options["term_timeout"])
        progress = shipper.progress()
        logger.info("%s", status_of(progress))
        if not settled:
            logger.warning("%d events on their way are sent again next time", progress.waiting)
    ctx.exit(0)


class _Signals:
    """Whether a signal asked the shipper to end."""

    def __init__(self) -> None:
        self.came = False

    def take(self, *_: object) -> None:
        self.came = True


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    before = {number: signal.signal(number, signals.take) for number in (15, 2)}
    try:
        yield signals
    finally:
        for number, action in before.items():
            signal.signal(number, action)


@contextlib.contextmanager
def _shipping(options: dict[str, Any]) -> Iterator[Shipper]:
    # gRPC reports what it does on standard error otherwise.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from lorc_eventlog.shipping.lock import AnotherShipperError
    from lorc_eventlog.shipping.service import Settings, Shipper

    grpc = options["transport"] == "grpc"
    settings = Settings(
        directory=options["directory"].absolute(),
        table=events_table(),
        interval=options["interval"],
        batch_rows=options["batch_rows"] or (10_000 if grpc else 500),
        dead_letters=options["dead_letters"],
        transport=options["transport"],
        exactly_once=options["exactly_once"],
    )
    try:
        shipper = Shipper(settings)
    except AnotherShipperError as error:
        raise Trouble(str(error)) from None
    except OSError as error:
        msg = f"{error.filename or settings.directory}: {error.strerror}"
        raise Trouble(msg) from None
    try:
        yield shipper
    finally:
        shipper.close()


@contextlib.contextmanager
def _metrics(shipper: Shipper, options: dict[str, Any]) -> Iterator[None]:
    port = options["metrics_port"]
    if port is None:
        yield
        return
    from lorc_eventlog.shipping.metrics import serving

    try:
        server = serving(shipper.progress, options["metrics_host"], port)
    except OSError as error:
        msg = f"metrics cannot be served on port {port}: {error.strerror}"
        raise Trouble(msg, "choose another --metrics-port") from None
    with server:
        yield


def _follow(shipper: Shipper, signals: _Signals, *, until_empty: bool) -> None:
    say_at = time.monotonic() + STATUS_SECONDS
    while not signals.came:
        progress = shipper.progress()
        if until_empty and progress.is_empty:
            return
        if time.monotonic() >= say_at:
            say_at += STATUS_SECONDS
            logger.info("%s", status_of(progress))
        time.sleep(TICK)


def status_of(progress: Progress) -> str:
    """Say in a line how far a shipper is."""
    line = (
        f"{progress.delivered:,} events delivered, {progress.rejected:,} rejected, "
        f"{progress.waiting:,} on their way, {progress.waiting_bytes:,} bytes unread"
    )
    if progress.oldest is not None:
        line += f", the oldest segment is {max(0.0, time.time() - progress.oldest):,.0f} s old"
    return line


def _log_to_stderr() -> None:
    """Print what the package reports, a line each with its time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
