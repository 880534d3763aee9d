"""What is stored, recorded and erased: the ledger and the spool kept in step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.storage_messages import Event
from lorc_eventlog.shipping.ledger import SLOTS, Intent, Ledger, Run
from lorc_eventlog.shipping.pending import Pending, checksum_of

if TYPE_CHECKING:
    from lorc_eventlog.shipping.lines import Lines


class Books:
    """Records before anything is sent or erased, and erases only what is recorded.

    Not thread-safe: the one thread that sends owns it.

    Args:
        ledger: The ledger, opened.
        lines: Reads and erases lines of the spool.
    """

    def __init__(self, ledger: Ledger, lines: Lines) -> None:
        self.stream: str | None = None
        """The stream in use."""
        self.end = 0
        """How many rows it holds."""
        self._ledger = ledger
        self._lines = lines
        self._unrecorded: tuple[Run, ...] = ()
        """Lines whose rows are stored, which the ledger does not say yet."""
        self._erased: list[set[str]] = [set() for _ in range(SLOTS)]
        """By slot of the ledger, the segments in which lines of its record were erased."""

    @property
    def is_written(self) -> bool:
        """Whether the ledger says everything."""
        return not self._unrecorded

    def stored(self, intent: Intent) -> None:
        """Note that the rows of ``intent`` are stored: the next record says so."""
        self.end = intent.offset + intent.count
        self._unrecorded += intent.runs

    def write(self, intent: Intent | None) -> None:
        """Record what is stored and what is sent next, and erase what is stored.

        Raises:
            OSError: The disk refuses it. Nothing may be sent; it may be called again.
        """
        slot = self._ledger.next_slot
        # What the record in this slot erased must be erased on the disk before the record goes.
        self._lines.force(self._erased[slot])
        self._erased[slot] = set()
        stored = self._unrecorded
        self._ledger.write(stream=self.stream, end=self.end, stored=stored, intent=intent)
        self._unrecorded = ()
        self._erased[slot] = self._lines.erase(stored)

    def recover(self) -> Pending | None:
        """Go on where the shipper before ended; return the request whose outcome is not known."""
        records = self._ledger.records
        for record in records:
            # A loss of power may have brought back what was erased and not forced.
            self._erased[record.number % SLOTS] = self._lines.erase(record.stored)
        if not records:
            return None
        self.stream, self.end = records[-1].stream, records[-1].end
        intent = records[-1].intent
        return None if intent is None else self._pending(intent)

    def _pending(self, intent: Intent) -> Pending:
        lines = self._lines.read(intent.runs)
        serialized = [Event(**row).SerializeToString() for _, row in lines]
        is_whole = len(lines) == intent.count and checksum_of(serialized) == intent.checksum
        return Pending(
            intent,
            serialized,
            [key for key, _ in lines],
            copies=1,
            unanswered=True,
            needs_fence=not is_whole,
        )
