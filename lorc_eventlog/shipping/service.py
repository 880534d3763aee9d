"""The shipper: its parts, what it says, and how it ends."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.insert_all import InsertAllTransport
from lorc_eventlog.delivery.batch import Bounds
from lorc_eventlog.delivery.dispatcher import Dispatcher
from lorc_eventlog.delivery.report import Report
from lorc_eventlog.delivery.senders import MAX_SENDERS
from lorc_eventlog.diagnostics import Notes, Throttle, escaped, logger
from lorc_eventlog.lifecycle import clock
from lorc_eventlog.shipping.dead_letters import FILE_NAME, DeadLetterFile
from lorc_eventlog.shipping.follower import Follower
from lorc_eventlog.shipping.lines import Lines
from lorc_eventlog.shipping.lock import take_lock
from lorc_eventlog.shipping.requirements import check_disk, check_table
from lorc_eventlog.shipping.shipping_queue import Recorder, ShippingQueue
from lorc_eventlog.spool.directory import Directory
from lorc_eventlog.spool.shipped import ledger_name, lock_name

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.bigquery.transport import Transport
    from lorc_eventlog.events.envelope import Envelope
    from lorc_eventlog.events.row import Row

CAPACITY = 10_000
"""Events in memory: enough for eight requests on their way and as many behind them."""

CAPACITY_BYTES = 64 * 2**20

GATHER_SECONDS = 0.05
"""Events are sent this long after they were read, although they are no full batch."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a shipper is told; the command line says what each means."""

    directory: Path
    table: str
    interval: float = 1.0
    batch_rows: int = 500
    dead_letters: Path | None = None
    transport: str = "rest"
    exactly_once: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a shipper is."""

    delivered: int
    rejected: int
    retries: int
    waiting: int
    """Events in memory, on their way included."""
    waiting_bytes: int
    """Bytes of the spool that are not read yet."""
    oldest: float | None
    """When the oldest event that waits happened, about, in seconds since the epoch."""
    last_success: float | None
    """When BigQuery last stored events, in seconds since the epoch."""
    last_error: str | None
    is_settled: bool
    """Whether nothing is in memory and everything that was read is erased."""
    is_empty: bool
    """Whether, besides, the directory holds nothing and no process writes to it."""
    looks: int = 0
    """How many times the directory was looked at."""


class Shipper:
    """Delivers what all processes of a machine write to one directory for one table.

    Threads: the one that calls waits and looks; the dispatcher's senders do the work.

    Args:
        settings: What to do.
        client: A BigQuery client for REST; None makes one on first use.

    Raises:
        AnotherShipperError: Another process ships from there.
        UnfitError: Exactly once cannot be had there.
        OSError: The directory cannot be opened, or is not safe; the message says what to do.
    """

    def __init__(self, settings: Settings, client: Client | None = None) -> None:
        self._settings = settings
        if settings.exactly_once:
            check_table(settings.table)
        with contextlib.ExitStack() as undo:
            self._directory = Directory(settings.directory, access=None, create=True)
            undo.callback(self._directory.close)
            if settings.exactly_once:
                check_disk(self._directory)
            lock_file = take_lock(self._directory, settings.table)
            undo.callback(lock_file.close)
            self._own_files = {lock_name(settings.table): lock_file}
            """What nobody may delete as long as this shipper runs."""
            letters = settings.dead_letters or settings.directory / FILE_NAME
            self._dead_letters = DeadLetterFile(letters)
            undo.callback(self._dead_letters.close)
            self._build(client, undo)
            self._open = undo.pop_all()

    def _build(self, client: Client | None, undo: contextlib.ExitStack) -> None:
        settings = self._settings
        self._is_closed = False
        self._letters: dict[str, list[tuple[Envelope, str]]] = {}
        """What became a dead letter that is not written yet, by the event's id."""
        self._troubles = Throttle(60.0)
        self._threads = Throttle(60.0)
        self._last_success: float | None = None
        self._delivered = 0
        notes = Notes()
        lines = Lines(self._directory)
        self._follower = Follower(self._directory, lines, settings.table, notes)
        transport, recorder = self._make_transport(client, lines, notes, undo)
        undo.callback(transport.reconnect)  # and so nothing of it is open
        self._queue = ShippingQueue(
            self._follower,
            Bounds(
                batch_rows=settings.batch_rows,
                flush_interval=min(GATHER_SECONDS, settings.interval),
                capacity=max(CAPACITY, 2 * settings.batch_rows),
                capacity_bytes=CAPACITY_BYTES,
                limits=transport.limits,
            ),
            keep=self._keep_dead_letter,
            forget=self._forget_dead_letters,
            interval=settings.interval,
            recorder=recorder,
        )
        spool_dir = str(settings.directory)
        self._dispatcher = Dispatcher(
            self._queue,
            transport,
            Report(notes, full="", spool_dir=spool_dir),
            flush_interval=min(GATHER_SECONDS, settings.interval),
            blocks=False,
            close_timeout=0.0,
            on_dead_letter=self._note_dead_letter,
            most_senders=1 if settings.exactly_once else MAX_SENDERS,
        )

    def _make_transport(
        self, client: Client | None, lines: Lines, notes: Notes, undo: contextlib.ExitStack
    ) -> tuple[Transport, Recorder | None]:
        settings = self._settings
        if settings.transport == "rest":
            return InsertAllTransport(client, settings.table), None
        # Only now, because it loads gRPC.
        if not settings.exactly_once:
            from lorc_eventlog.bigquery.storage_write import StorageWriteTransport

            return StorageWriteTransport(settings.table), None
        from lorc_eventlog.bigquery.storage_stream import StreamClient
        from lorc_eventlog.shipping.books import Books
        from lorc_eventlog.shipping.exactly_once import ExactlyOnceTransport
        from lorc_eventlog.shipping.ledger import Ledger

        ledger = Ledger(self._directory, ledger_name(settings.table))
        undo.callback(ledger.close)
        self._own_files[ledger_name(settings.table)] = ledger.file
        transport = ExactlyOnceTransport(
            settings.table,
            client=StreamClient(),
            follower=self._follower,
            books=Books(ledger, lines),
            notes=notes,
        )
        return transport, transport

    def _note_dead_letter(self, envelope: Envelope, reason: str) -> None:
        """Remember why BigQuery refused an event, until the letter is written."""
        # The same event may be in the directory twice.
        self._letters.setdefault(envelope["event_id"], []).append((envelope, reason))

    def _keep_dead_letter(self, row: Row) -> bool:
        """Write the letter of ``row``; False if the disk does not take it."""
        letters = self._letters[row["event_id"]]
        envelope, reason = letters[0]
        try:
            self._dead_letters.append(envelope, reason)
        except OSError as error:
            if self._troubles.lets_through(clock.monotonic()):
                logger.error(  # noqa: TRY400  the disk's words say it all
                    "%s takes no dead letters; event %s waits: %s",
                    self._dead_letters.path, envelope["event_id"], error.strerror,
                )  # fmt: skip
            return False
        self._forget_dead_letters([row])
        logger.error(
            "event %s (%s) is rejected and kept in %s: %s",
            envelope["event_id"], escaped(envelope["event_type"]),
            self._dead_letters.path, reason,
        )  # fmt: skip
        return True

    def _forget_dead_letters(self, rows: list[Row]) -> None:
        for row in rows:
            letters = self._letters[row["event_id"]]
            letters.pop(0)
            if not letters:
                del self._letters[row["event_id"]]

    def start(self) -> None:
        """Begin to deliver. To be called again, now and then: there may be no thread for it yet."""
        if not self._dispatcher.ensure_sender() and self._threads.lets_through(clock.monotonic()):
            logger.error("nothing is delivered until the system lets the shipper start a thread")

    def progress(self) -> Progress:
        """Return how far it is."""
        stats = self._dispatcher.stats()
        unkept = self._queue.unkept
        found = self._follower.found
        if stats.delivered > self._delivered:
            self._delivered, self._last_success = stats.delivered, time.time()
        return Progress(
            delivered=stats.delivered,
            rejected=stats.rejected - unkept,
            retries=stats.retries,
            waiting=stats.buffered + unkept,
            waiting_bytes=found.unread_bytes,
            oldest=found.oldest,
            last_success=self._last_success,
            last_error=stats.last_error,
            is_settled=self._queue.is_settled,
            is_empty=self._queue.is_settled and self._queue.looks > 0 and found.is_empty,
            looks=self._queue.looks,
        )

    @property
    def is_lost(self) -> bool:
        """Whether somebody deleted the directory, the lock or the ledger, or put another there.

        Applications then write to a new directory, which takes another shipper. Without the lock a
        second one could ship besides, and without the ledger the next one would send again what is
        on its way if this one were killed.
        """
        with contextlib.suppress(OSError):
            are_there = itertools.starmap(self._directory.holds, self._own_files.items())
            return self._follower.is_lost or not all(are_there)
        return False

    def stop_reading(self) -> None:
        """Take nothing more from the directory; what is in memory is still delivered."""
        self._queue.is_reading = False

    def wait_until(self, condition: Callable[[Progress], bool], timeout: float) -> bool:
        """Wait until ``condition`` holds of the progress; False if ``timeout`` comes first."""
        deadline = clock.monotonic() + timeout
        while not condition(self.progress()):
            if clock.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def close(self) -> None:
        """Give up the directory: another process may ship.

        If something is in memory, that is when this process ends; it stays on disk.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if not self._queue.is_settled:
            # Its threads may still send and erase: the lock is given up when the process ends.
            return
        self._dispatcher.close()  # its threads end
        self._open.close()
