"""Every message of delivery: its words, and how often it comes.

What is noted under the dispatcher's lock is said when the lock is free: handlers are other
people's code. A reason that may quote rows is redacted only when it is shown, which takes long.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lorc_eventlog.diagnostics import Notes, Throttle
from lorc_eventlog.lifecycle.fork import ForkLock

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.transport import Failure, Reason
    from lorc_eventlog.delivery.batch import Trouble
    from lorc_eventlog.events.row import Row

OUTAGE_INTERVAL = 60.0
"""Seconds between two messages about the same kind of outage."""

DROP_INTERVAL = 5.0
"""Seconds between two messages about events that were dropped."""

LOOK_AT_THE_TABLE = "run `lorc-eventlog check`"

_saying = ForkLock(fork_waits=5.0)
"""Keeps a fork from coming in the middle of a message of a sender thread.

Python's ``stderr`` has a lock that nobody releases in the child of a fork.
"""


class Left(NamedTuple):
    """What is not delivered in the end."""

    events: int
    kept: int
    """How many of them are on disk."""
    in_doubt: Trouble | None
    """Those that BigQuery refused for a reason that may be the table's."""


class Cause:
    """Why BigQuery did not accept some rows, as text once somebody asks for it.

    No message may hold it in another form: it refers to the rows.
    """

    __slots__ = ("_reason", "_rows", "_text", "_what_to_do")

    def __init__(self, reason: Reason, rows: Sequence[Row], what_to_do: str | None = None) -> None:
        self._reason = reason
        self._rows = rows
        self._what_to_do = what_to_do
        self._text: str | None = None

    def __str__(self) -> str:
        # Hazard: another thread may tell it at the same time. It sets the text before it lets go
        # of the rows, so the rows must be read before the text.
        rows = self._rows
        text = self._text
        if text is None:
            text = self._reason.told(rows)
            if self._what_to_do:
                text = f"{text}: {self._what_to_do}"
            self._text = text
            self._rows = ()
        return text


def count_of(events: int) -> str:
    """Return ``1 event``, ``1,204 events``."""
    return "1 event" if events == 1 else f"{events:,} events"


def are(events: int) -> str:
    """Return ``1 event is``, ``1,204 events are``."""
    return f"{count_of(events)} {'is' if events == 1 else 'are'}"


class Report:
    """Notes the messages of one dispatcher, whose lock guards every method but :meth:`say`.

    Args:
        notes: Takes the messages.
        full: Says what is full when an event is dropped: ``the buffer is full (...)``.
        spool_dir: Where undelivered events stay; None if they are lost with the process.
    """

    def __init__(self, notes: Notes, *, full: str, spool_dir: str | None) -> None:
        self.last_error: Cause | str | None = None
        """The reason of the last failure; ``str`` of it takes long."""
        self._notes = notes
        self._full = full
        self._spool_dir = spool_dir
        self._in_outage = False
        self._outages = Throttle(OUTAGE_INTERVAL)
        self._drops = Throttle(DROP_INTERVAL)
        self._dropped = 0

    @property
    def has_news(self) -> bool:
        """Whether something is noted that is not said yet."""
        return bool(self._notes)

    def say(self) -> None:
        """Say what is noted, and let no fork come in between. Takes as long as handlers take."""
        _saying.run(self._notes.say)

    def failed(self, failure: Failure, rows: Sequence[Row], *, waiting: int, now: float) -> None:
        """A request failed and is tried again."""
        self.last_error = Cause(failure.reason, rows, failure.what_to_do)
        self._outage(failure.what_to_do, waiting, now)

    def interrupted(self, error: BaseException, *, waiting: int, now: float) -> None:
        """An exception that no transport returns ended a request, which is tried again."""
        # Not what it says: that may quote the payload.
        self.last_error = f"{type(error).__name__} was raised while a request was on its way"
        self._outage(None, waiting, now)

    def refused(self, reason: Reason, rows: Sequence[Row]) -> None:
        """BigQuery refused a request or a row."""
        self.last_error = Cause(reason, rows)

    def in_trouble(self, trouble: Trouble, now: float) -> None:
        """BigQuery refuses rows for a reason that may be the table's, and stores no others."""
        self.last_error = Cause(trouble.reason, trouble.rows)
        if self._outages.lets_through(now, LOOK_AT_THE_TABLE):
            self._in_outage = True
            self._notes.note(
                logging.ERROR,
                "BigQuery refuses all events, so the table may be wrong; retrying, %s waiting: "
                "%s: %s",
                are(trouble.count),
                self.last_error,
                LOOK_AT_THE_TABLE,
            )

    def accepted(self, *, waiting: int) -> None:
        """BigQuery stored rows."""
        if self._in_outage:
            self._in_outage = False
            self._notes.note(
                logging.INFO,
                "BigQuery is accepting events again; %s waiting",
                are(waiting),
            )

    def dropped(self, count: int, now: float) -> None:
        """Events found no room."""
        self._dropped += count
        if self._drops.lets_through(now):
            self.note_drops()

    def damaged(self, count: int) -> None:
        """Events could no longer be read from the disk."""
        self._notes.note(logging.ERROR, "lost %s: damaged on disk", count_of(count))

    def note_drops(self) -> None:
        """Note how many events were dropped since the last message about it."""
        count, self._dropped = self._dropped, 0
        if count:
            self._notes.note(
                logging.WARNING,
                "lost %s: %s; last error from BigQuery: %s",
                count_of(count),
                self._full,
                self.last_error or "none",
            )

    def rejected(
        self, row: Row, cause: Cause, *, is_handled: bool, failure: BaseException | None
    ) -> None:
        """BigQuery will never take ``row``; ``failure`` is what ``on_dead_letter`` raised."""
        self.last_error = cause
        what = (row["event_id"], row["event_type"], cause)
        if not is_handled:
            self._notes.note(logging.ERROR, "event %s (%s) is rejected: %s", *what)
        elif failure is not None:
            self._notes.note(
                logging.ERROR,
                # Not what it says: that may quote the payload.
                "on_dead_letter raised %s for event %s (%s), which is rejected: %s",
                type(failure).__name__,
                *what,
            )

    def left_by_close(self, left: Left, why: str) -> str:
        """Tell that ``close`` ended before everything was delivered."""
        where = "" if self._spool_dir is None else f" ({left.kept:,} of them in {self._spool_dir})"
        return (
            f"{are(left.events)} still waiting{where}: {self._why(left, why)}"
            f"; they are sent for as long as the process lives: {self._last(left)}"
        )

    def left_at_exit(self, left: Left, why: str) -> str:
        """Tell what becomes of events that are not delivered when the process ends."""
        why, last = self._why(left, why), self._last(left)
        if self._spool_dir is None:
            return f"lost {count_of(left.events)}: {why} (set spool_dir to keep them): {last}"
        told = []
        if left.events > left.kept:
            told.append(f"lost {count_of(left.events - left.kept)} that the disk did not take")
        if left.kept:
            stay = "stays" if left.kept == 1 else "stay"
            told.append(f"{count_of(left.kept)} {stay} in {self._spool_dir} for the next start")
        return f"{'; '.join(told)}: {why}: {last}"

    def _why(self, left: Left, why: str) -> str:
        return why if left.in_doubt is None else f"{why}, and refused {left.in_doubt.count:,}"

    def _last(self, left: Left) -> str:
        doubt = left.in_doubt
        if doubt is not None:
            return f"{Cause(doubt.reason, doubt.rows)}: {LOOK_AT_THE_TABLE}"
        return str(self.last_error or "BigQuery did not answer")

    def _outage(self, what_to_do: str | None, waiting: int, now: float) -> None:
        if self._outages.lets_through(now, what_to_do):
            self._in_outage = True
            self._notes.note(
                logging.ERROR if what_to_do else logging.WARNING,
                "BigQuery is not accepting events; retrying, %s waiting: %s",
                are(waiting),
                self.last_error,
            )
