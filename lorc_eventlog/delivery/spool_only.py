"""Applications that only write to disk: the log call appends a line, and another process delivers.

There is no sender, no client and no connection, so that there is nothing that a fork, a greenlet,
a late import or a short life could break.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.table import events_table
from lorc_eventlog.delivery.report import DROP_INTERVAL, count_of
from lorc_eventlog.delivery.stats import NO_EVENTS, WriterStats
from lorc_eventlog.diagnostics import Notes, Throttle
from lorc_eventlog.events.row import Row, finish
from lorc_eventlog.lifecycle import clock, fork
from lorc_eventlog.lifecycle.locks import Lock
from lorc_eventlog.spool.directory import Access
from lorc_eventlog.spool.format import encode_line
from lorc_eventlog.spool.shipped import NotForcedError, SegmentAppender

if TYPE_CHECKING:
    from lorc_eventlog.delivery.options import WriterOptions

POLL_SECONDS = 0.1
"""Seconds between two tries of a call that waits for the disk (``overflow="block"``)."""

LOOK_FOR_SHIPPER_SECONDS = 60.0

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
"""What ``overflow="block"`` waits for: a full disk, a full quota, ``spool_max_bytes``."""


class SpoolOnly:
    """Takes rows as a dispatcher does, and appends each to a segment.

    Threads: everything runs on the caller's. Lock: ``_lock`` guards the appender and the counters.
    It is held over a write to the disk, which every other call would wait for, too; never while a
    call waits for room, over a message or a fork.

    Args:
        appender: Writes to the spool directory.
        blocks: Whether a call waits for room when the disk is full.
        notes: Takes what is to be reported.
    """

    def __init__(self, appender: SegmentAppender, *, blocks: bool, notes: Notes) -> None:
        self.inbox = NoInbox()
        self._appender = appender
        self._path = appender.path
        self._blocks = blocks
        self._notes = notes
        self._lock = Lock()
        self._spooled = 0
        self._dropped = 0
        self._dropped_unsaid = 0
        self._last_error: str | None = None
        self._drops = Throttle(DROP_INTERVAL)
        self._is_forgotten = False
        """Whether the disk refused to hold something: the kernel may have forgotten it since, and
        say of the next attempt to force it that all is well."""
        self._refusals = Throttle(DROP_INTERVAL)
        self._look_for_shipper_at = clock.monotonic() + LOOK_FOR_SHIPPER_SECONDS

    def submit(self, row: Row) -> None:
        """Append ``row``; what the disk refuses is dropped, or waited for."""
        line = encode_line(finish(row))
        while True:
            now = clock.monotonic()
            error = self._lock.run(self._append, line, now)
            if error is None:
                break
            if not (self._blocks and error.errno in _NO_ROOM):
                self._lock.run(self._drop, error)
                break
            self._notes.say()
            time.sleep(POLL_SECONDS)
        if now >= self._look_for_shipper_at:
            self._look_for_shipper()
        self._notes.say()

    def _append(self, line: bytes, now: float) -> OSError | None:
        try:
            self._appender.append(line, now)
        except NotForcedError as error:  # it is written: once more would be a second event
            self._not_forced(error)
        except OSError as error:
            return error
        self._spooled += 1
        return None

    def _not_forced(self, error: OSError) -> None:
        self._is_forgotten = True
        self._last_error = error.strerror or type(error).__name__
        if self._refusals.lets_through(clock.monotonic()):
            self._notes.note(
                logging.ERROR,
                "spool %s cannot be forced to the disk: %s",
                self._path, self._last_error,
            )  # fmt: skip

    def _drop(self, error: OSError) -> None:
        self._dropped += 1
        self._dropped_unsaid += 1
        self._last_error = error.strerror or type(error).__name__
        if self._drops.lets_through(clock.monotonic()):
            count, self._dropped_unsaid = self._dropped_unsaid, 0
            self._notes.note(
                logging.WARNING,
                "lost %s: the spool directory %s does not take them: %s",
                count_of(count), self._path, self._last_error,
            )  # fmt: skip

    def _look_for_shipper(self) -> None:
        """Warn if nobody delivers what is written here."""
        self._look_for_shipper_at = clock.monotonic() + LOOK_FOR_SHIPPER_SECONDS
        if self._lock.run(self._appender.is_shipped):
            return
        self._notes.note(
            logging.WARNING,
            "no process delivers the events in %s: run `lorc-eventlog ship %s`",
            self._path, self._path,
        )  # fmt: skip

    def notice(self) -> None:
        """Do nothing: there is no inbox."""

    def flush(self, deadline: float | None = None) -> bool:  # noqa: ARG002  the disk decides
        """Force everything to the disk; whether it is there, and nothing was dropped."""
        dropped = self._dropped
        self._lock.run(self._force)
        self._notes.say()
        return not (self._is_forgotten or dropped)

    def _force(self) -> None:
        try:
            self._appender.force()
            self._appender.close_if_idle(clock.monotonic())
        except OSError as error:
            self._not_forced(error)

    def stats(self) -> WriterStats:
        """Return the counters, all taken at one moment."""
        return self._lock.run(self._count)

    def _count(self) -> WriterStats:
        return replace(
            NO_EVENTS,
            submitted=self._spooled + self._dropped,
            dropped=self._dropped,
            spooled=self._spooled,
            last_error=self._last_error,
        )

    def close(self) -> None:
        """Give the segment up, so that a shipper can delete it; later events begin another."""
        self._lock.run(self._appender.close_segment)

    def abandon(self) -> None:
        """Leave the segment to the parent: called in the child of a fork."""
        self._appender.abandon()


class SpoolOnlyDelivery:
    """Stands for :class:`~lorc_eventlog.delivery.dispatchers.Dispatchers` with ``spool_only``.

    Args:
        options: What the writer is told.
    """

    def __init__(self, options: WriterOptions) -> None:
        self.current: SpoolOnly
        """Takes new rows; there is none before :meth:`begin`."""
        self._options = options
        self._lock = Lock()
        self._table: str | None = None
        fork.register(self)

    def begin(self) -> None:
        """Find the table that events are written for.

        Raises:
            RuntimeError: ``EVENTS_BQ_DATASET`` or ``EVENTS_BQ_TABLE`` is not set.
        """
        if self._table is None:
            self._lock.run(self._begin)

    def _begin(self) -> None:
        if self._table is None:
            table = events_table()
            self.current = self._make(table)
            self._table = table

    def all(self) -> list[SpoolOnly]:
        """Return the one that takes rows, if there is one yet."""
        fork.restart_if_forked()
        return [] if self._table is None else [self.current]

    def ready(self) -> SpoolOnly:
        """Return the one that takes new rows.

        It may be older than gevent's patch: its lock is never held while greenlets switch, so that
        the interpreter's own lock will do.
        """
        return self.current

    def restart_in_child(self) -> None:
        """Begin a segment of the child's own with its first event."""
        self._lock = Lock()
        if self._table is not None:
            of_parent = self.current
            self.current = self._make(self._table)
            of_parent.abandon()

    def _make(self, table: str) -> SpoolOnly:
        options, notes = self._options, Notes()
        appender = SegmentAppender(
            Path(options.spool_dir or ""),
            access=Access.GROUP if options.spool_mode == "group" else Access.OWNER,
            table=table,
            max_bytes=options.spool_max_bytes,
            durable=options.spool_sync == "full",
            notes=notes,
        )
        return SpoolOnly(appender, blocks=options.overflow == "block", notes=notes)


class NoInbox:
    """Sends every log call to :meth:`SpoolOnly.submit`."""

    limit = 0

    def __init__(self) -> None:
        self.rows: deque[Row] = deque()
