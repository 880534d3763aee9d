"""Where every event passes before it is sent: while somebody captures events, it goes no further.

:mod:`lorc_eventlog.testing` is what users see of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row

Collector = Callable[["Row"], object]

in_use = False
"""Whether an event may go elsewhere than to BigQuery. A plain flag: every log call reads it."""

_collectors: list[Collector] = []


def watch() -> None:
    """From now on let every event pass by here."""
    global in_use  # noqa: PLW0603  never false again: writers made meanwhile must be looked at
    in_use = True


def begin(collector: Collector) -> None:
    """From now on call ``collector``, on the thread that logs, with each event's row."""
    watch()
    _collectors.append(collector)


def end(collector: Collector) -> None:
    """Undo :func:`begin`."""
    _collectors.remove(collector)


def is_active() -> bool:
    """Whether events are captured now."""
    return bool(_collectors)


def take(row: Row) -> bool:
    """Hand ``row`` to all who capture; False if nobody does, so that it is to be sent."""
    collectors = tuple(_collectors)
    for collect in collectors:
        collect(row)
    return bool(collectors)
