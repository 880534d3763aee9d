"""The background: rows go into memory in the call, and to BigQuery in batches by threads."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lorc_eventlog.bigquery.client import import_guard, open_client, prepare, renew_connections
from lorc_eventlog.bigquery.failures import RequestRefusedError, TryAgainError, as_failure
from lorc_eventlog.bigquery.insert_all import LIMITS, REQUEST_TIMEOUT, insert_rows
from lorc_eventlog.bigquery.table import events_table
from lorc_eventlog.bigquery.transport import Answer, Failure, Reason, Refusal, RefusedRow
from lorc_eventlog.delivery.options import (
    MAX_SECONDS,
    check,
    check_client,
    check_path,
    check_seconds,
    check_whole,
)
from lorc_eventlog.delivery.queue import Batch, DeadLetter, DeliveryQueue
from lorc_eventlog.diagnostics import Notes, Throttle, logger, say_on_stderr
from lorc_eventlog.events import capture
from lorc_eventlog.events.envelope import Envelope, to_envelope, to_row
from lorc_eventlog.events.row import Row, draft_at, finish, row_bytes
from lorc_eventlog.lifecycle import exit as process_exit
from lorc_eventlog.lifecycle import fork
from lorc_eventlog.lifecycle.signals import BackgroundThread

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.events.models import Payload
    from lorc_eventlog.spool.synchronous import Spool

MAX_SENDERS = 8
"""Threads that send at the same time: 20,000 events a second at 100 ms each need four."""

IDLE_SECONDS = 5.0
"""After so long without work every sender but one leaves."""

SHORTEST_WATCH = 0.05
"""Seconds; events are not looked for more often than that."""

MAX_BATCH_ROWS = 50_000
"""BigQuery takes no more rows in a request, and recommends about 500."""

_unclosed: set[EventWriter] = set()
"""Keeps a writer alive, although nobody else does, until what it holds is delivered."""

_messages = fork.ForkLock(fork_waits=5.0)
"""Keeps a fork from coming in the middle of a message of a sender thread.

Python's ``stderr`` has a lock that nobody releases in the child of a fork: if a thread of the
parent was writing, the child would wait for it for ever.
"""

DeadLetterCallback = Callable[[Envelope, str], object]


@dataclass(frozen=True, slots=True)
class WriterStats:
    """What became of the events: ``submitted`` is all of them, and the sum of the four ends.

    Each process counts its own events; after a fork the child starts at zero.
    """

    submitted: int
    delivered: int
    rejected: int
    """Dead letters: BigQuery will never take them."""
    dropped: int
    """Lost to a full buffer."""
    retries: int
    """Requests that failed and whose rows are sent again."""
    buffered: int
    """Waiting, or on their way."""
    last_error: str | None


class EventWriter:
    """Takes envelopes from any thread and delivers them to BigQuery in the background.

    Threads: :meth:`submit` runs on the caller's thread and appends to memory. Sender threads
    (daemons, started with the first event and, under load, up to eight) take batches and send
    them. At exit, when no thread can be started, the thread that flushes sends.

    Lock: ``_lock`` guards every field below it in ``_begin``, the backlog included. It is
    re-entrant, because a signal handler may log in the middle of a log call. It is never held
    over the network, a callback or a fork, whose child begins with a new one. Two conditions
    share it: ``_work`` wakes senders, ``_progress`` wakes those who wait for a flush or for room.

    Args:
        bq_client: A ``google.cloud.bigquery.Client``; None makes one in the background, on first
            use (:func:`lorc_eventlog.bigquery.client.open_client`).
        batch_rows: The most rows in one request, at most BigQuery's 50,000.
        flush_interval: Seconds after which a batch is sent though it is not full.
        capacity: The most events in memory, those on their way included.
        capacity_bytes: The most bytes of JSON that they are together, roughly.
        overflow: What a full buffer does to a new event: ``"drop"`` counts and warns, and never
            blocks the application; ``"block"`` waits for room.
        close_timeout: Seconds that :meth:`close` and the exit of the process wait for delivery.
        on_dead_letter: Called with the envelope and BigQuery's reason for each event that
            BigQuery will never take, on a sender thread. Without it, an ERROR is logged.
        spool_dir: A directory that keeps each event from the log call until BigQuery has it.
            Memory then holds ``capacity`` events of them; processes may share the directory.
        spool_max_bytes: The most disk that this process takes; then ``overflow`` decides.
        spool_sync: ``"normal"`` survives the death of the process, ``"full"`` that of the machine
            (each log call then waits for the disk).

    Raises:
        RuntimeError: ``EVENTS_BQ_DATASET`` or ``EVENTS_BQ_TABLE`` is not set.
        ValueError: An option has a value that it cannot have.
    """

    def __init__(
        self,
        bq_client: Client | None = None,
        *,
        batch_rows: int = 500,
        flush_interval: float = 1.0,
        capacity: int = 100_000,
        capacity_bytes: int = 64 * 2**20,
        overflow: Literal["drop", "block"] = "drop",
        close_timeout: float = 10.0,
        on_dead_letter: DeadLetterCallback | None = None,
        spool_dir: str | os.PathLike[str] | None = None,
        spool_max_bytes: int = 2**30,
        spool_sync: Literal["normal", "full"] = "normal",
    ) -> None:
        check_client(bq_client)
        check_whole("batch_rows", batch_rows, MAX_BATCH_ROWS)
        check_seconds("flush_interval", flush_interval)
        check_whole("capacity", capacity)
        check_whole("capacity_bytes", capacity_bytes)
        check(overflow in ("drop", "block"), "overflow", overflow, '"drop" or "block"')
        check_seconds("close_timeout", close_timeout)
        check(
            on_dead_letter is None or callable(on_dead_letter),
            "on_dead_letter",
            on_dead_letter,
            "a callable (in a dictConfig: ext://package.function)",
        )
        check_path("spool_dir", spool_dir)
        check_whole("spool_max_bytes", spool_max_bytes)
        check(spool_sync in ("normal", "full"), "spool_sync", spool_sync, '"normal" or "full"')
        self._table = "" if capture.is_active() else events_table()
        self._given_client = bq_client
        self._batch_rows = batch_rows
        self._flush_interval = flush_interval
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._overflow = overflow
        self.close_timeout = close_timeout
        self._on_dead_letter = on_dead_letter
        self._spool_dir = None if spool_dir is None else os.path.abspath(spool_dir)  # noqa: PTH100
        self._spool_max_bytes = spool_max_bytes
        self._spool_durable = spool_sync == "full"
        self._client = bq_client
        _import_now_what_is_needed_later()
        prepare()
        self._begin()
        fork.register(self)
        process_exit.register(self)
        self._look_for_events_of_the_dead()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._progress = threading.Condition(self._lock)
        self._backlog = DeliveryQueue(
            batch_rows=self._batch_rows,
            flush_interval=self._flush_interval,
            capacity=self._capacity,
            capacity_bytes=self._capacity_bytes,
            limits=LIMITS,
        )
        self._is_watched = False
        self._notes: Notes = Notes()
        self._spool = self._make_spool() if self._table else None
        self._senders: set[threading.Thread] = set()
        self._idle_senders = 0
        self._helpers: set[threading.Thread] = set()
        self._closed = False
        self._exit_deadline: float | None = None
        self._delivered = 0
        self._rejected = 0
        self._dropped = 0
        self._dropped_unsaid = 0
        self._retries = 0
        self._in_order_to = 0
        self._last_error: str | None = None
        self._said_failing = False
        self._failure_throttle = Throttle(60.0)
        self._drop_throttle = Throttle(5.0)

    def _make_spool(self) -> Spool | None:
        if self._spool_dir is None:
            return None
        from pathlib import Path

        from lorc_eventlog.spool.synchronous import Spool

        return Spool(
            Path(self._spool_dir),
            table=self._table,
            max_bytes=self._spool_max_bytes,
            durable=self._spool_durable,
            notes=self._notes,
        )

    def _look_for_events_of_the_dead(self) -> None:
        if self._spool is not None:
            with self._lock:
                self._start_sender()

    # In the call

    def emit(
        self,
        event_type: str,
        payload: Payload,
        *,
        source: str,
        schema_ref: str | None = None,
        correlation_id: str | None = None,
        subject_id: str | None = None,
    ) -> None:
        """Build an envelope and submit it; arguments as for ``build_envelope``.

        Raises:
            ValueError: The event is none; nothing was submitted.
        """
        self.submit_row(
            draft_at(
                time.time(), event_type, payload, source, schema_ref, correlation_id, subject_id
            )
        )

    def submit(self, envelope: Envelope) -> None:
        """Take ``envelope`` for delivery. What happens to its payload afterwards is ignored.

        Raises:
            ValueError: The payload cannot be JSON; nothing was submitted.
        """
        self.submit_row(to_row(envelope))

    def submit_row(self, row: Row) -> None:
        """Take ``row`` for delivery, as :meth:`submit` takes an envelope."""
        if capture.in_use and self._is_captured(row):
            return
        if not fork.page[0]:
            fork.restart_if_forked()
        # Not acquire() and try: a signal handler that raises in between would leave it locked.
        with self._lock:
            if self._spool is None and self._backlog.has_room(row_bytes(row)):
                self._hold(row)
                if self._exit_deadline is None:
                    return
            else:
                self._submit_to_spool_or_overflow(row)
        self._notes.say()
        if self._exit_deadline is not None:
            self._deliver_late()

    def _is_captured(self, row: Row) -> bool:
        if capture.take(row):
            return True
        self._find_table()
        return False

    def _find_table(self) -> None:
        with self._lock:
            if not self._table:  # made while events were captured
                self._table = events_table()
                self._spool = self._make_spool()
                self._look_for_events_of_the_dead()

    def _hold(self, row: Row) -> None:
        backlog = self._backlog
        was_full = backlog.holds_full_batch
        # First, so that a call that a signal handler ends leaves no row that nobody looks for.
        if not (backlog.fresh or self._is_watched) or not self._senders:
            self._wake_sender()
        backlog.add(row, time.monotonic())
        if backlog.holds_full_batch and not was_full:
            if self._idle_senders:
                self._wake_sender()
            else:  # all wait for BigQuery, which may take its time
                self._share_the_load()

    def _submit_to_spool_or_overflow(self, row: Row) -> None:
        line = b"" if self._spool is None else self._spool.encode(finish(row))
        while not self._keep(row, line):
            if not (self._overflow == "block" and self._wait_for_room()):
                self._drop()
                return

    def _keep(self, row: Row, line: bytes) -> bool:
        backlog = self._backlog
        has_room = backlog.has_room(row_bytes(row))
        spool = self._spool
        if spool is not None:
            if spool.is_full(line):
                return False
            in_memory = has_room and not spool.unread
            if spool.append(row, line, in_memory=in_memory) and not in_memory:
                if not backlog.held:  # else a sender comes by when there is room
                    self._wake_sender()
                return True
        if not has_room:
            return False
        self._hold(row)
        return True

    def _wait_for_room(self) -> bool:
        if self._is_in_callback():
            return False  # nobody else would make room
        if not self._buffered or not self._wake_sender():
            return False
        self._progress.wait()
        return True

    def _drop(self) -> None:
        self._dropped += 1
        self._dropped_unsaid += 1
        if self._drop_throttle.lets_through(time.monotonic()):
            self._say_drops()

    def _say_drops(self) -> None:
        count, self._dropped_unsaid = self._dropped_unsaid, 0
        self._notes.note(
            logging.WARNING,
            "%d events were dropped: the buffer is full (capacity %d events, %d bytes); "
            "last error from BigQuery: %s",
            count,
            self._capacity,
            self._capacity_bytes,
            self._last_error,
        )

    # Waiting for delivery

    def flush(self, timeout: float | None = None) -> bool:
        """Send what is buffered and wait until it is settled.

        Args:
            timeout: Seconds to wait at most; None waits for as long as it takes.

        Returns:
            Whether everything submitted before the call is in BigQuery, or was given up and
            reported. False says that ``timeout`` came first; the events stay in the buffer.
        """
        fork.restart_if_forked()
        deadline = None if timeout is None else time.monotonic() + min(timeout, MAX_SECONDS)
        with self._lock:
            position = self._hurry()
            if self._is_in_callback():
                return self._backlog.settled(position)
            if self._exit_deadline is not None:  # logging flushes and closes once more at the end
                deadline = min(self._exit_deadline, deadline or self._exit_deadline)
            send_here = self._buffered > 0 and not self._wake_sender()
        if send_here:
            self._send_until(position, deadline)
        with self._lock:
            while not self._backlog.settled(position):
                seconds = None if deadline is None else deadline - time.monotonic()
                if seconds is not None and seconds <= 0:
                    return False
                self._progress.wait(seconds)
        return True

    def drain_spool(self, timeout: float | None = None) -> bool:
        """Deliver all that is in ``spool_dir``, but for what other living processes deliver.

        :meth:`stats` tells how far it is, to another thread or between two calls: events that
        dead processes left count as submitted when they are read.

        Args:
            timeout: Seconds to wait at most; None waits for as long as it takes.

        Returns:
            Whether it is all in BigQuery, or was given up and reported. False says that
            ``timeout`` came first, or that the process is ending; the rest stays on disk.

        Raises:
            ValueError: The writer has no ``spool_dir``.
        """
        if self._spool_dir is None:
            msg = "spool_dir is not set: there is nothing to drain"
            raise ValueError(msg)
        fork.restart_if_forked()
        if not capture.is_active():
            self._find_table()
        if self._spool is None:  # made while events are captured
            return True
        deadline = None if timeout is None else time.monotonic() + min(timeout, MAX_SECONDS)
        with self._lock:
            self._spool.adopt()
            while self._buffered or not self._spool.is_drained:
                seconds = None if deadline is None else deadline - time.monotonic()
                if not self._wake_sender() or (seconds is not None and seconds <= 0):
                    return False
                self._hurry()
                self._progress.wait(seconds)
        self._notes.say()
        return True

    def close(self) -> None:
        """Flush for at most ``close_timeout`` seconds; then the sender threads end.

        What could not be delivered by then is reported, and still sent as long as the process
        lives. Events that are submitted later are delivered too: the writer starts again.
        """
        fork.restart_if_forked()
        if self._exit_deadline is None:  # else it is done
            self._close_by(time.monotonic() + self.close_timeout, logger.error)

    def _close_by(self, deadline: float, say: Callable[[str], object]) -> None:
        try:
            settled = self.flush(max(0.0, deadline - time.monotonic()))
        except BaseException:  # Ctrl-C while it waits
            self._say_what_is_left(say)
            raise
        with self._lock:
            self._closed = True
            self._work.notify_all()
            senders = self._senders - {threading.current_thread()}
            left = self._buffered
            if self._spool is not None:
                self._spool.close()
            if self._dropped_unsaid:
                self._say_drops()
        self._notes.say()
        if not settled:
            self._say_what_is_left(say)
        if left:
            return
        _unclosed.discard(self)
        for sender in senders:
            sender.join(max(0.0, deadline - time.monotonic()))

    def _say_what_is_left(self, say: Callable[[str], object]) -> None:
        with self._lock:
            left = self._buffered
            why = self._last_error or "BigQuery did not answer"
            kept = 0 if self._spool is None else self._spool.kept
        where = f" ({kept} are kept in {self._spool_dir} for the next start)" if kept else ""
        what = "1 event is" if left == 1 else f"{left} events are"
        say(f"{what} not delivered yet{where}: {why}")

    def stats(self) -> WriterStats:
        """Return the counters, all taken at one moment."""
        fork.restart_if_forked()
        with self._lock:
            buffered = self._buffered
            return WriterStats(
                submitted=self._delivered + self._rejected + self._dropped + buffered,
                delivered=self._delivered,
                rejected=self._rejected,
                dropped=self._dropped,
                retries=self._retries,
                buffered=buffered,
                last_error=self._last_error,
            )

    @property
    def _buffered(self) -> int:
        return self._backlog.held + (self._spool.unread if self._spool is not None else 0)

    def _hurry(self) -> int:
        position = self._backlog.position
        if self._spool is not None:
            position += self._spool.unread
        self._backlog.request_flush(position)
        self._work.notify_all()
        return position

    # Sender threads

    def _wake_sender(self) -> bool:
        """Wake a sender, or start one; False if none can be started any more."""
        self._closed = False
        if self._senders:
            self._work.notify()
            return True
        return self._start_sender()

    def _start_sender(self) -> bool:
        sender = BackgroundThread(
            self._send_until_idle, f"lorc_eventlog-sender-{len(self._senders) + 1}"
        )
        _unclosed.add(self)
        process_exit.watch_pools()
        self._senders.add(sender)
        try:
            sender.start()
        except RuntimeError:  # the interpreter is shutting down (3.12+), or out of threads
            self._senders.discard(sender)
            return False
        except BaseException:  # raised by a signal handler, such as the SystemExit for SIGTERM
            self._senders.discard(sender)  # it adds itself, should it run
            raise
        return True

    def _send_until_idle(self) -> None:
        with self._lock:
            self._senders.add(threading.current_thread())
        try:
            while (batch := self._next_batch()) is not None:
                self._say()
                self._send(batch, REQUEST_TIMEOUT)
        finally:
            with self._lock:
                self._senders.discard(threading.current_thread())

    def _next_batch(self) -> Batch | None:
        with self._lock:
            idle_since = time.monotonic()
            while self._buffered or not self._closed:
                now = time.monotonic()
                batch, seconds = self._take(now)
                if batch is not None:
                    self._share_the_load()
                    return batch
                if self._notes:
                    self._say_without_lock()
                    continue
                idle = idle_since + IDLE_SECONDS - now
                if idle <= 0 and len(self._senders) > 1:
                    self._work.notify()  # it may have been this one that was told of a row
                    break
                if idle > 0:
                    seconds = self._watch(idle if seconds is None else min(seconds, idle))
                self._idle_senders += 1
                self._work.wait(seconds)
                self._idle_senders -= 1
                self._is_watched = False
            self._senders.discard(threading.current_thread())
            if self._closed and not self._buffered:
                _unclosed.discard(self)
                if self._spool is not None:
                    self._spool.close()
            return None

    def _say(self) -> None:
        _messages.run(self._notes.say)

    def _say_without_lock(self) -> None:
        self._lock.release()
        try:
            self._say()
        finally:
            self._lock.acquire()

    def _watch(self, seconds: float) -> float:
        """While events come, look for the next by the clock instead of being woken by it.

        To wake a thread costs the log call that does it, and then those that wait for the
        interpreter while the thread runs.
        """
        if not self._backlog.fresh and self._flush_interval >= SHORTEST_WATCH:
            self._is_watched = True
            return min(seconds, self._flush_interval)
        return seconds

    def _take(self, now: float) -> tuple[Batch | None, float | None]:
        spool = self._spool
        if spool is None:
            batch, seconds, _ = self._backlog.take(now, alone=self._client is None)
            return batch, seconds
        has_more = self._load_from(spool, now)
        # What waited on disk is sent in its order.
        in_order = spool.unread > 0 or not self._backlog.settled(self._in_order_to)
        batch, seconds, _ = self._backlog.take(now, alone=self._client is None or in_order)
        until_adoption = 0.0 if has_more else spool.look(now)
        return batch, until_adoption if seconds is None else min(seconds, until_adoption)

    def _load_from(self, spool: Spool, now: float) -> bool:
        room = self._capacity - self._backlog.held
        if (
            not spool.has_work(now)
            or room < min(self._batch_rows, self._capacity)
            or self._backlog.held_bytes >= self._capacity_bytes
        ):
            return False
        room_bytes = self._capacity_bytes - self._backlog.held_bytes
        rows, own, lost = spool.load(min(room, self._batch_rows), room_bytes, now)
        self._dropped += lost
        self._backlog.skip(lost)
        if not rows:
            self._progress.notify_all()
        for row in rows:
            self._backlog.add(row, time.monotonic())
        if own:
            self._in_order_to = self._backlog.position
        else:
            self._backlog.request_flush()
        return spool.has_work(now)

    def _share_the_load(self) -> None:
        backlog = self._backlog
        if backlog.holds_full_batch and not backlog.in_outage and self._client is not None:
            self._work.notify()
            if len(self._senders) < MAX_SENDERS:
                self._start_sender()

    def _send_until(self, position: int, deadline: float | None) -> None:
        """Do a sender's work on the calling thread."""
        thread = threading.current_thread()
        with self._lock:
            self._helpers.add(thread)
        try:
            self._help_until(position, deadline)
        finally:
            with self._lock:
                self._helpers.discard(thread)

    def _is_in_callback(self) -> bool:
        """Whether a dead-letter callback calls, which cannot wait for its own batch."""
        thread = threading.current_thread()
        return thread in self._senders or thread in self._helpers

    def _help_until(self, position: int, deadline: float | None) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                remaining = REQUEST_TIMEOUT if deadline is None else deadline - now
                if self._backlog.settled(position) or remaining <= 0:
                    return
                batch, seconds = self._take(now)
                if batch is None:
                    self._work.wait(remaining if seconds is None else min(remaining, seconds))
                    continue
            self._send(batch, min(REQUEST_TIMEOUT, remaining))

    # One request and what becomes of it

    def _send(self, batch: Batch, timeout: float) -> None:
        started = time.monotonic()
        for row in batch.rows:
            finish(row)
        result: Answer | Failure | Refusal
        try:
            answer = insert_rows(self._open_client(), self._table, batch.rows, timeout=timeout)
        except TryAgainError as failure:
            result = Failure(
                Reason(str(failure)),
                what_to_do=failure.what_to_do,
                may_be_the_rows=failure.may_be_the_rows,
                stored="unknown",
            )
        except RequestRefusedError as refusal:
            result = Refusal(Reason(str(refusal)), is_about_size=str(refusal).startswith("413"))
        else:
            result = Answer(
                tuple(
                    RefusedRow(index, Reason(why), why, is_about_payload=True)
                    for index, why in answer.refused.items()
                ),
                tuple(answer.again),
            )
        self._apply(batch, result, started)

    def _apply(self, batch: Batch, result: Answer | Failure | Refusal, started: float) -> None:
        now = time.monotonic()
        with self._lock:
            if isinstance(result, Answer):
                verdict = self._backlog.succeeded(batch, result, now)
                self._settle(verdict.stored, delivered=len(verdict.stored))
                if self._said_failing:
                    self._said_failing = False
                    self._notes.note(
                        logging.INFO, "BigQuery takes events again; %d are buffered", self._buffered
                    )
            elif isinstance(result, Refusal):
                self._last_error = result.reason.text
                verdict = self._backlog.refused(batch, result, now)
            else:
                self._last_error = result.reason.text
                verdict = self._backlog.failed(batch, result, started=started, now=now)
                self._retries += not verdict.dead
                if self._failure_throttle.lets_through(now, result.what_to_do):
                    self._said_failing = True
                    self._notes.note(
                        logging.ERROR if result.what_to_do else logging.WARNING,
                        "BigQuery does not take events for now, they wait: %s",
                        result.reason.text,
                    )
            self._tell()
        self._say()
        for letter in verdict.dead:
            self._bury(batch, letter)

    def _open_client(self) -> Client:
        import_guard.run(_import_what_requests_needs)
        if self._client is None:
            try:
                self._client = open_client()
            except Exception as error:  # noqa: BLE001  whatever it is, the events wait for it
                raise as_failure(error, ()) from None
        return self._client

    def _bury(self, batch: Batch, letter: DeadLetter) -> None:
        row, reason = letter.row, letter.reason.text
        what = (row["event_id"], row["event_type"], reason)
        if self._on_dead_letter is None:
            self._notes.note(logging.ERROR, "event %s (%s) is rejected: %s", *what)
        else:
            try:
                self._on_dead_letter(to_envelope(row), reason)
            except BaseException as error:  # noqa: BLE001  the user's code must not end a sender
                self._notes.note(
                    logging.ERROR,
                    # Not what it says: that may quote the payload.
                    "on_dead_letter raised %s for event %s (%s), which is rejected: %s",
                    type(error).__name__,
                    *what,
                )
        self._say()
        with self._lock:
            self._last_error = reason
            self._backlog.dead_lettered(batch, [letter])
            self._settle([row], rejected=1)
            self._tell()

    def _settle(self, rows: list[Row], *, delivered: int = 0, rejected: int = 0) -> None:
        if self._spool is not None:
            self._spool.strike(rows)
        self._delivered += delivered
        self._rejected += rejected

    def _tell(self) -> None:
        self._progress.notify_all()
        self._work.notify()

    # Exit and fork

    def hasten(self, now: float) -> None:
        """Send what is buffered at once: the process ends."""
        with self._lock:
            self._backlog.retry_now(now)
            self._hurry()

    def finish(self, deadline: float) -> None:
        """Deliver what is buffered by ``deadline``, or say what is left."""
        with self._lock:
            if self._exit_deadline is not None:
                return  # multiprocessing's exit came first
            self._exit_deadline = deadline
        self._close_by(deadline, say_on_stderr)

    def _deliver_late(self) -> None:
        """Deliver what is logged after our exit function ran: nothing later would."""
        self._close_by(self._exit_deadline or 0.0, say_on_stderr)

    def restart_in_child(self) -> None:
        """Leave what is buffered, and the connections, to the parent."""
        self._begin()
        self._client = self._given_client
        if self._client is not None:
            renew_connections(self._client)
        _unclosed.discard(self)
        process_exit.register(self)


def _import_what_requests_needs() -> None:
    """Import what requests would import with its first request.

    A fork may come in between: every request of the child would wait for that import for ever.
    """
    import encodings.idna  # noqa: F401
    import netrc  # noqa: F401


def _import_now_what_is_needed_later() -> None:
    """Import what takes too long for ``import lorc_eventlog``, and must not wait for a log call.

    A fork in the middle of an import would leave the child with a module that is locked for ever.
    """
    import random  # noqa: F401

    import lorc_eventlog.events.plain_values  # noqa: F401
