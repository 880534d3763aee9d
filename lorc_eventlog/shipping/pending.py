"""A request that is on its way into a committed stream, and what its intent is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorc_eventlog.shipping.ledger import MAX_RUN_BYTES, MAX_RUNS, Intent, run_bytes
from lorc_eventlog.shipping.segment import key_of

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.storage_messages import EncodedRows
    from lorc_eventlog.shipping.segment import Place


@dataclass(slots=True)
class Pending:
    """A request whose outcome is not known."""

    intent: Intent
    rows: EncodedRows
    """The rows; fewer if the spool does not hold them all any more."""
    places: Sequence[Place | tuple[str, int]]
    """Where each row is; after a start only the name of the segment, and the offset."""
    copies: int = 0
    """How many times it was sent, as far as anybody knows."""
    unanswered: bool = False
    """Whether one of these copies got no answer, so that it may still be stored."""
    is_suspect: bool = False
    """Whether the last copy may have failed because of a row."""
    needs_fence: bool = False

    def keys(self) -> Iterator[tuple[str, int]]:
        """Name the lines of its rows."""
        return (place if len(place) == 2 else key_of(place) for place in self.places)


def checksum_of(rows: EncodedRows) -> str:
    """Return a checksum of rows, of where each ends, and of their order."""
    return hashlib.blake2b(rows.data, digest_size=16).hexdigest()


def most_in_runs(places: Sequence[Place]) -> int:
    """Return how many of the first lines are at most as many runs as a record holds."""
    runs, size, last, reached = 0, 0, None, 0
    for count, (segment, start, end) in enumerate(places):
        if segment is not last or start != reached:
            runs += 1
            size += run_bytes(segment.name)
            if runs > MAX_RUNS or size > MAX_RUN_BYTES:
                return count
            last = segment
        reached = end
    return len(places)
