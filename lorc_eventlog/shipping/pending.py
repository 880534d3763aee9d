"""A request that is on its way into a committed stream, and what its intent is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorc_eventlog.shipping.ledger import MAX_RUNS, Intent

if TYPE_CHECKING:
    from lorc_eventlog.shipping.follower import Place


@dataclass(slots=True)
class Pending:
    """A request whose outcome is not known."""

    intent: Intent
    serialized: list[bytes]
    """The rows; empty if the spool does not hold them any more."""
    places: list[tuple[str, int]]
    """Segment and offset of each row."""
    copies: int = 0
    """How many times it was sent, as far as anybody knows."""
    unanswered: bool = False
    """Whether one of these copies got no answer, so that it may still be stored."""
    needs_fence: bool = False


def checksum_of(serialized: Sequence[bytes]) -> str:
    """Return a checksum of rows, of where each ends, and of their order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in serialized:
        digest.update(len(row).to_bytes(4, "big"))
        digest.update(row)
    return digest.hexdigest()


def most_in_runs(places: Sequence[Place]) -> int:
    """Return how many of the first lines are at most as many runs as a record holds."""
    runs = 0
    last: Place | None = None
    for count, place in enumerate(places):
        if last is None or last.segment is not place.segment or last.end != place.start:
            runs += 1
            if runs > MAX_RUNS:
                return count
        last = place
    return len(places)
