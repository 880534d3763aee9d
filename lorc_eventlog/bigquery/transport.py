"""The seam between delivery and BigQuery: rows go in, and what became of them comes out.

Delivery's queue, senders and report know only this module. ``insert_all`` speaks REST behind it,
and ``storage_write`` gRPC; whoever makes a transport names one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from lorc_eventlog.bigquery.redaction import redact
from lorc_eventlog.diagnostics import escaped
from lorc_eventlog.events.payload import MOST_BYTES_A_CHARACTER

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold."""

    rows: int
    """The most rows."""
    request_bytes: int
    """The most bytes, with some room below BigQuery's own limit."""
    wire_bytes: Callable[[Row], int]
    """Returns how many bytes a row takes in a request at most."""
    bytes_a_character: int = MOST_BYTES_A_CHARACTER
    """The most that one character of a row takes: rows that fit by it are not measured."""
    most_bytes: Callable[[Sequence[Row], int], int] | None = None
    """Returns quickly how many bytes rows of so many characters (``row_bytes``) take at most, if
    there is a way: rows that fit by it are not measured one by one."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something failed: words of ours, and words of BigQuery that may quote a row.

    What an error says that never saw a row is all in ``text``. What BigQuery says about rows is in
    ``quoted``: it is redacted, and only when it is shown, because that takes long.
    """

    text: str
    quoted: str = ""

    def told(self, rows: Sequence[Row]) -> str:
        """Return the reason for a diagnostic, without any word that is private to ``rows``."""
        if not self.quoted:
            return escaped(self.text)
        return escaped(f"{self.text}: {redact(self.quoted, rows)}")


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that BigQuery names as one that it does not take."""

    index: int
    """Its index in the request."""
    reason: Reason
    kind: str
    """Equal for two rows that are refused for the same reason; never shown."""
    is_about_payload: bool
    """Whether the reason is the row's payload, so that no change to the table would help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """BigQuery answered: all rows are stored, except those that are named here."""

    refused: tuple[RefusedRow, ...] = ()
    again: tuple[int, ...] = ()
    """Indices of rows that are in order and were not stored: send them again."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The request failed, and the same rows may well pass later."""

    reason: Reason
    what_to_do: str | None = None
    """What an operator must mend; None if time mends it."""
    may_be_the_rows: bool = False
    """Whether the rows themselves are suspect if other requests pass: BigQuery or the connection
    broke on this request. Not so for a quota or a missing permission."""
    stored: Literal["no", "unknown"] = "unknown"
    """Whether the rows may have been stored all the same."""

    def told(self, rows: Sequence[Row]) -> str:
        """Return the reason, as :meth:`Reason.told`, and what to do."""
        reason = self.reason.told(rows)
        return f"{reason}: {self.what_to_do}" if self.what_to_do else reason


@dataclass(frozen=True, slots=True)
class Refusal:
    """BigQuery refused the request as a whole because of something in it; nothing is stored."""

    reason: Reason
    is_about_size: bool
    """Whether the request is too large, so that a single row of it can never pass."""

    def told(self, rows: Sequence[Row]) -> str:
        """Return the reason, as :meth:`Reason.told`."""
        return self.reason.told(rows)


class Transport(Protocol):
    """Sends rows to one table. Its methods are called by several threads at the same time."""

    limits: Limits

    @property
    def is_connected(self) -> bool:
        """Whether a client is there. Until then delivery sends one request at a time."""

    def send(self, rows: Sequence[Row], *, timeout: float) -> Answer | Failure | Refusal:
        """Send ``rows`` in one request that ends within ``timeout`` seconds of wall-clock time.

        The rows are complete (:func:`lorc_eventlog.events.row.finish`). Raises no ``Exception``:
        what the client raises is returned as a :class:`Failure` or :class:`Refusal`.
        """

    def reconnect(self) -> None:
        """Send what is sent from now on over new connections; a request under way keeps its own.

        For the end of the process: a connection that answers nothing may be a dead one.
        """

    def restart_in_child(self) -> None:
        """Leave connections and locks to the parent: called in the child after a fork."""
