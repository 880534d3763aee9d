"""What is stored, recorded and erased: the ledger and the spool kept in step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.storage_messages import encode_rows
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
        self._to_erase: dict[int, tuple[Run, ...]] = {}
        """By slot of the ledger, lines that its record names and that the spool still holds."""
        self._erased: dict[int, tuple[Run, ...]] = {}
        """The same of lines that were erased and perhaps not forced to the disk."""

    @property
    def is_written(self) -> bool:
        """Whether the ledger says everything, and the spool holds nothing that is stored."""
        return not self._unrecorded and not self._to_erase

    def stored(self, intent: Intent) -> None:
        """Note that the rows of ``intent`` are stored: the next record says so."""
        self.end = intent.offset + intent.count
        self._unrecorded += intent.runs

    def write(self, intent: Intent | None) -> None:
        """Record what is stored and what is sent next, and erase what is stored.

        Raises:
            OSError: The disk refuses it. Nothing may be sent; it may be called again.
        """
        self._erase()
        slot = self._ledger.next_slot
        self._force(slot)
        stored = self._unrecorded
        self._ledger.write(stream=self.stream, end=self.end, stored=stored, intent=intent)
        self._unrecorded = ()
        if stored:
            self._to_erase[slot] = stored
        self._erase()

    def _erase(self) -> None:
        """Erase what the ledger says is stored.

        Hazard: an error may leave some of it in the spool. It must be erased before the record that
        names it is overwritten, or a later shipper takes it for new.
        """
        for slot, runs in list(self._to_erase.items()):
            self._lines.erase(runs)
            self._erased[slot] = runs
            del self._to_erase[slot]

    def _force(self, slot: int) -> None:
        """Force to the disk what the record in ``slot`` erased: the record will be overwritten."""
        self._lines.force(self._erased.get(slot, ()))
        self._erased.pop(slot, None)

    def recover(self) -> Pending | None:
        """Go on where the shipper before ended; return the request whose outcome is not known."""
        records = self._ledger.records
        for record in records:
            # A loss of power may have brought back what was erased and not forced.
            self._to_erase[record.number % SLOTS] = record.stored
            self._erase()
        if not records:
            return None
        self.stream, self.end = records[-1].stream, records[-1].end
        intent = records[-1].intent
        return None if intent is None else self._pending(intent)

    def _pending(self, intent: Intent) -> Pending:
        lines = self._lines.read(intent.runs)
        rows = encode_rows([row for _, row in lines])
        is_whole = rows.count == intent.count and checksum_of(rows) == intent.checksum
        return Pending(
            intent,
            rows,
            [key for key, _ in lines],
            copies=1,
            unanswered=True,
            needs_fence=not is_whole,
        )
