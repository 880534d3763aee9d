"""Makes committed streams, and not too many."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.storage_write import table_path
from lorc_eventlog.bigquery.transport import Failure, Reason
from lorc_eventlog.lifecycle import clock

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.storage_stream import StreamClient

MOST_STREAMS_AN_HOUR = 60
"""A shipper makes one stream, and one more for each fence. BigQuery allows a project 10,000 an
hour; more than this means that something is wrong."""


SECONDS_AN_HOUR = 3600.0


class StreamMaker:
    """Makes the streams of one shipper.

    Args:
        table: ``dataset.table`` or ``project.dataset.table``.
        client: Makes them.
    """

    def __init__(self, table: str, client: StreamClient) -> None:
        self._table = table
        self._client = client
        self._made_at: deque[float] = deque()

    def make(self, deadline: float) -> str | Failure:
        """Make a stream by ``deadline``, in monotonic seconds, and return its name."""
        now = clock.monotonic()
        while self._made_at and now - self._made_at[0] > SECONDS_AN_HOUR:
            self._made_at.popleft()
        if len(self._made_at) >= MOST_STREAMS_AN_HOUR:
            text = f"{MOST_STREAMS_AN_HOUR} streams were made within an hour: waiting"
            return Failure(Reason(text), stored="no")
        made = self._client.create(
            lambda project: table_path(project, self._table), max(0.0, deadline - now)
        )
        if isinstance(made, str):
            self._made_at.append(now)
        return made
