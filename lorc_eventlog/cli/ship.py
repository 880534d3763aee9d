"""``lorc-eventlog ship``: one process that delivers what all others wrote to a spool directory."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorc_eventlog.bigquery.table import events_table
from lorc_eventlog.cli.output import Trouble, examples, quiet_grpc, transport_options
from lorc_eventlog.cli.seconds import Seconds
from lorc_eventlog.delivery.sinks import require_bigquery
from lorc_eventlog.diagnostics import logger
from lorc_eventlog.lifecycle import clock

if TYPE_CHECKING:
    from lorc_eventlog.shipping.service import Progress, Settings, Shipper

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
    type=Seconds(0.01, 3600),
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
    type=Seconds(0, 86_400),
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
@transport_options(
    transport="How BigQuery is spoken to: insertAll, or the Storage Write API.",
    exactly_once="Store no event twice; needs --transport grpc.",
)
@click.option("--batch-rows", type=click.IntRange(1, 50_000), help="The most events in a request.")
@click.pass_context
def ship(ctx: click.Context, /, **options: Any) -> None:
    """Deliver what applications with spool_only=True write to DIR, and follow them.

    Events of processes that live and of those that are dead are delivered alike. One process ships
    from a directory into a table: a second one ends with exit code 1.

    SIGTERM and SIGINT end it with exit code 0; what is not delivered then stays in DIR.
    """
    require_bigquery("ship")
    _log_to_stderr()
    quiet_grpc()
    with (
        _signals() as signals,
        contextlib.closing(_Shipping(_settings(options))) as shipping,
        _metrics(shipping.progress, options),
    ):
        shipping.follow(signals, until_empty=options["until_empty"])
        if signals.came:
            logger.info("told to end")
        if signals.came and options["on_term"] == "drain":
            logger.info("shipping until the directory is empty and no process writes to it")
            signals.came = False  # a second signal ends it
            shipping.follow(signals, until_empty=True)
        shipping.settle(options["term_timeout"])
    ctx.exit(0)


class _Shipping:
    """The shipper of the directory, and of the one that comes in its place.

    Raises:
        Trouble: The directory cannot be shipped; the message says why.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._shipper = self._open()

    def _open(self) -> Shipper:
        from lorc_eventlog.shipping.lock import AnotherShipperError
        from lorc_eventlog.shipping.requirements import UnfitError
        from lorc_eventlog.shipping.service import Shipper

        settings = self._settings
        try:
            shipper = Shipper(settings)
        except AnotherShipperError as error:
            raise Trouble(str(error)) from None
        except UnfitError as error:
            msg = f"{error}: {error.to_do}"
            raise Trouble(msg) from None
        except OSError as error:
            msg = f"{error.filename or settings.directory}: {error.strerror}"
            raise Trouble(msg) from None
        how = settings.transport + (", exactly once" if settings.exactly_once else "")
        logger.info("shipping from %s to %s (%s)", settings.directory, settings.table, how)
        shipper.start()
        return shipper

    def progress(self) -> Progress:
        """Return how far it is."""
        return self._shipper.progress()

    def follow(self, signals: _Signals, *, until_empty: bool) -> None:
        """Ship until a signal comes or, if it is so, the directory is empty."""
        say_at = clock.monotonic() + STATUS_SECONDS
        while not signals.came:
            if self._shipper.is_lost:
                self._replace(signals)
                continue
            self._shipper.start()
            progress = self.progress()
            if until_empty and progress.is_empty:
                return
            if clock.monotonic() >= say_at:
                say_at += STATUS_SECONDS
                logger.info("%s", status_of(progress))
            time.sleep(TICK)

    def _replace(self, signals: _Signals) -> None:
        """Ship from the directory that applications write to now."""
        logger.error(
            "%s was deleted or replaced, or the lock or the ledger in it: what is in memory is "
            "delivered, then the directory that is there now",
            self._settings.directory,
        )
        self._shipper.stop_reading()
        said_at = -STATUS_SECONDS
        while not signals.came:
            if self.progress().is_settled:
                self._shipper.close()
                try:
                    self._shipper = self._open()
                except Trouble as error:
                    trouble = error.message
                else:
                    return
                if clock.monotonic() - said_at >= STATUS_SECONDS:
                    said_at = clock.monotonic()
                    logger.error("it cannot be shipped yet, which is tried again: %s", trouble)
            time.sleep(TICK)

    def settle(self, timeout: float) -> None:
        """Wait for what is on its way, for at most so many seconds, and say how far it came."""
        self._shipper.stop_reading()
        settled = self._shipper.wait_until(lambda progress: progress.is_settled, timeout)
        progress = self.progress()
        logger.info("%s", status_of(progress))
        if not settled:
            logger.warning("%d events on their way are sent again next time", progress.waiting)

    def close(self) -> None:
        """Give the directory up."""
        self._shipper.close()


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


def _settings(options: dict[str, Any]) -> Settings:
    from lorc_eventlog.shipping.service import Settings

    grpc = options["transport"] == "grpc"
    return Settings(
        directory=options["directory"].absolute(),
        table=events_table(),
        interval=options["interval"],
        batch_rows=options["batch_rows"] or (10_000 if grpc else 500),
        dead_letters=options["dead_letters"],
        transport=options["transport"],
        exactly_once=options["exactly_once"],
    )


@contextlib.contextmanager
def _metrics(progress: Callable[[], Progress], options: dict[str, Any]) -> Iterator[None]:
    port = options["metrics_port"]
    if port is None:
        yield
        return
    from lorc_eventlog.shipping.metrics import serving

    try:
        server = serving(progress, options["metrics_host"], port)
    except OSError as error:
        msg = f"metrics cannot be served on port {port}: {error.strerror}"
        raise Trouble(msg, "choose another --metrics-port") from None
    with server:
        yield


def status_of(progress: Progress) -> str:
    """Say in a line how far a shipper is."""
    line = (
        f"{progress.delivered:,} events delivered, {progress.rejected:,} rejected, "
        f"{progress.waiting:,} on their way, {progress.waiting_bytes:,} bytes unread"
    )
    if progress.oldest is not None:
        line += f", the oldest event is {max(0.0, time.time() - progress.oldest):,.0f} s old"
    return line


def _log_to_stderr() -> None:
    """Print what the package reports, a line each with its time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
