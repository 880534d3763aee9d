"""Decides about rows that BigQuery refuses for a reason that may be the table's.

Such rows wait apart. One is given up only if it was refused three times, over at least a minute,
with another row stored between each two. If nothing else is stored, the table is in trouble, and
the rows wait until an operator has mended it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

from lorc_eventlog.delivery.batch import Batch, Doubt, part
from lorc_eventlog.delivery.fresh import fitting
from lorc_eventlog.delivery.pace import Pace
from lorc_eventlog.events.row import row_bytes

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.transport import Limits, Reason, RefusedRow

REFUSALS_AGAINST_A_ROW = 3
"""A row is given up after this many refusals, with another row stored between each two..."""

PATIENCE_IN_DOUBT = 60.0
"""... and over at least so many seconds."""

MAX_PAUSE_IN_DOUBT = 20.0
"""Seconds at most between two tries of a row, while others are stored."""

REFUSALS_IN_TROUBLE = 3
"""After this many refused requests with nothing stored in between, the table is in trouble."""

PROBE_ROWS = 10
"""So many rows at most are sent at a time while the table is in trouble."""

TRIES_OF_A_GROUP = 3
"""After this many refused requests with the same rows, one of these is sent alone."""

AFTER_THE_FIRST = 1.0
"""Seconds that the others wait for the first when something was stored again."""


class Moment(NamedTuple):
    """What had happened when a result came."""

    now: float
    stored: int
    """Rows that were stored before it."""
    began: int
    """Batches that had begun to fail."""


class DoubtPolicy:
    """What to do with rows in doubt. It holds none: they are passed in, and returned."""

    def __init__(self, *, batch_rows: int, limits: Limits) -> None:
        self.pace = Pace()
        """How often they are probed while the table is in trouble."""
        self.are_passing = False
        """Whether some were stored, and none refused since: then all may go at the same time."""
        self._batch_rows = min(batch_rows, limits.rows)
        self._limits = limits

    # When they are sent

    def due_at(self, doubts: Iterable[Doubt], *, in_trouble: bool) -> float:
        """Return when one of ``doubts`` is due; infinite if there is none."""
        due_at = min((doubt.due for doubt in doubts), default=math.inf)
        return max(due_at, self.pace.resume_at) if in_trouble else due_at

    def choose(
        self, doubts: Iterable[Doubt], now: float, *, stored: int, in_trouble: bool
    ) -> tuple[Batch, list[Doubt]]:
        """Return what to send of ``doubts``, of which one is due, and the others."""
        due = sorted((doubt for doubt in doubts if doubt.due <= now), key=_first)
        most = self._batch_rows
        if in_trouble:
            due, most = [min(due, key=lambda doubt: doubt.due)], PROBE_ROWS
        if _is_unclear(due[0], stored):
            # There may be good rows among them, and nothing else that could show it.
            due, most = due[:1], 1
        elif due[0].is_alone:
            due = due[:1]
        else:
            due = [d for d in due if not (d.is_alone or _is_unclear(d, stored))]
        rows = [*islice(chain.from_iterable(doubt.rows for doubt in due), most)]
        room = fitting(rows, sum(map(row_bytes, rows)), self._limits)
        chosen = set(due)
        others = [doubt for doubt in doubts if doubt not in chosen]
        sent: list[Doubt] = []
        for doubt in due:
            count = min(room, len(doubt.rows))
            sent += part(doubt, range(count))
            others += part(doubt, range(count, len(doubt.rows)))
            room -= count
        positions = [position for doubt in sent for position in doubt.positions]
        return Batch(rows[: len(positions)], positions, sent_at=now, doubts=sent), others

    def try_again(self, doubts: Iterable[Doubt], now: float, *, are_passing: bool) -> None:
        """Try ``doubts`` now, because something was stored again: all if some of them were."""
        self.pace.succeeded()
        self.are_passing |= are_passing
        for number, doubt in enumerate(sorted(doubts, key=_first)):
            after = 0.0 if are_passing or number == 0 else AFTER_THE_FIRST
            doubt.due = min(doubt.due, now) if after == 0 else max(doubt.due, now + after)

    # What a result means

    def refused(
        self, batch: Batch, refused: Mapping[int, RefusedRow], moment: Moment
    ) -> list[Doubt]:
        """Return the rows of ``batch`` that were ``refused``, each for itself, and none stored."""
        alike: dict[str, list[int]] = {}
        for index in sorted(refused):
            alike.setdefault(refused[index].kind, []).append(index)
        doubts: list[Doubt] = []
        for indexes in alike.values():
            reason = refused[indexes[0]].reason
            found = _pick(batch, indexes, reason, moment)
            doubts += [self._refused(doubt, reason, moment) for doubt in found]
        return doubts

    def put_back(self, batch: Batch, indexes: Iterable[int], moment: Moment) -> list[Doubt]:
        """Return rows of ``batch``, which is in doubt, that this request says nothing about."""
        doubts = _pick(batch, sorted(indexes), batch.doubts[0].reason, moment)
        return [self._paused(doubt, moment) for doubt in doubts]

    def blamed(
        self, batch: Batch, reason: Reason, moment: Moment, *, is_evidence: bool
    ) -> list[Doubt]:
        """Return the rows of ``batch``, a request that did not pass, whichever is to blame.

        While others pass, they are divided until the one to blame stands alone.
        """
        rows = range(len(batch.rows))
        doubts = _pick(batch, rows, reason, moment)
        if len(rows) == 1 and is_evidence:
            return [self._refused(doubts[0], reason, moment)]
        if len(rows) > 1 and all(moment.stored > doubt.stored for doubt in doubts):
            return self.divided(batch, reason, moment)
        return [self._paused(replace(doubt, reason=reason), moment) for doubt in doubts]

    def divided(self, batch: Batch, reason: Reason, moment: Moment) -> list[Doubt]:
        """Return the rows of ``batch``, which are several, to be sent in smaller requests."""
        doubts = _pick(batch, range(len(batch.rows)), reason, moment)
        if len(doubts) == 1:
            count = len(batch.rows)
            doubts = part(doubts[0], range(count // 2)) + part(doubts[0], range(count // 2, count))
        return [
            replace(
                doubt,
                reason=reason,
                due=moment.now,
                tries=0,
                is_alone=True,
                stored=moment.stored,
                began=moment.began,
            )
            for doubt in doubts
        ]

    def _refused(self, doubt: Doubt, reason: Reason, moment: Moment) -> Doubt:
        is_first = doubt.refusals == 0
        refusals = doubt.refusals + (is_first or moment.stored > doubt.stored)
        since = moment.now if is_first else doubt.since
        return replace(
            self._paused(doubt, moment),
            reason=reason,
            refusals=refusals,
            since=since,
            is_given_up=refusals >= REFUSALS_AGAINST_A_ROW
            and moment.now - since >= PATIENCE_IN_DOUBT,
        )

    def _paused(self, doubt: Doubt, moment: Moment) -> Doubt:
        tries = doubt.tries + 1
        due = moment.now + self.pace.pause(tries, MAX_PAUSE_IN_DOUBT)
        return replace(doubt, tries=tries, due=due, stored=moment.stored, began=moment.began)


def _is_unclear(doubt: Doubt, stored: int) -> bool:
    """Whether requests with these rows did not pass, and nothing else that was sent since."""
    return doubt.refusals == 0 and doubt.tries >= TRIES_OF_A_GROUP and doubt.stored == stored


def _first(doubt: Doubt) -> int:
    return doubt.positions[0]


def _pick(batch: Batch, indexes: Sequence[int], reason: Reason, moment: Moment) -> list[Doubt]:
    """Return rows of ``batch`` with their histories; if it was not in doubt, with a new one."""
    doubts: Iterable[Doubt] = batch.doubts or (
        Doubt(
            batch.rows,
            batch.positions,
            reason=reason,
            due=moment.now,
            stored=moment.stored,
            began=moment.began,
        ),
    )
    found: list[Doubt] = []
    start = 0
    for doubt in doubts:
        stop = start + len(doubt.rows)
        found += part(doubt, [index - start for index in indexes if start <= index < stop])
        start = stop
    return found
