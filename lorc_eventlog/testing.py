"""For the tests of applications: which events would have gone to BigQuery?

For pytest there is the fixture ``captured_events`` (:mod:`lorc_eventlog.pytest_plugin`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lorc_eventlog.events import capture
from lorc_eventlog.events.envelope import Envelope, to_envelope

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row

__all__ = ["capture_events"]


@contextmanager
def capture_events() -> Iterator[list[Envelope]]:
    """Collect the envelopes that would have been sent; send none.

    Captured is what handlers, processors, ``EventWriter`` and ``emit`` are given during the block
    in any thread of this process, whenever they were made. What is no event, or a bad one, is
    treated as ever: passed by, reported, or raised. The payload is as BigQuery would hold it: a
    datetime is a string, a tuple a list. A captured event needs no BigQuery and no environment
    variable, and ``stats()`` does not count it.

    Blocks may be nested or overlap: each collects everything that happens while it is open.

    A handler, processor or ``EventWriter`` that is *made* during a block needs no environment
    variable either, starts no thread and opens no ``spool_dir``. It makes up for that with the
    first event after the last block: that one goes to BigQuery like any other, or, if
    ``EVENTS_BQ_DATASET`` or ``EVENTS_BQ_TABLE`` is not set, is refused by the ``RuntimeError`` that
    says so (a log call reports it, and does not raise).

    What was logged before the block is still on its way, and is not held up. A process that is
    forked during the block captures into a list of its own.

    Yields:
        The list that grows with each event, in the order of the calls. It stays as it is after
        the block.

    Example:
        In a test:

            with capture_events() as events:
                receive_email(subject="My results")
            assert [event["event_type"] for event in events] == ["email.received"]
    """
    events: list[Envelope] = []

    def collect(row: Row) -> None:
        events.append(to_envelope(row))

    capture.begin(collect)
    try:
        yield events
    finally:
        capture.end(collect)
