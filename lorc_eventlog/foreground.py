"""The foreground: each event is sent in the call, for scripts and serverless functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorc_eventlog.client import open_client
from lorc_eventlog.event_client import Envelope, to_row
from lorc_eventlog.insert import insert_now
from lorc_eventlog.table import events_table

if TYPE_CHECKING:
    from google.cloud.bigquery import Client


class ForegroundWriter:
    """Takes envelopes as ``EventWriter`` does and delivers each before it returns.

    Args:
        bq_client: A ``google.cloud.bigquery.Client``; None makes one with the first event.

    Raises:
        RuntimeError: ``EVENTS_BQ_DATASET`` or ``EVENTS_BQ_TABLE`` is not set.
    """

    close_timeout = 0.0

    def __init__(self, bq_client: Client | None = None) -> None:
        events_table()
        self._client = bq_client

    def submit(self, envelope: Envelope) -> None:
        """Deliver ``envelope``; raises what :func:`lorc_eventlog.emit` raises."""
        if self._client is None:
            self._client = open_client()
        insert_now(self._client, events_table(), to_row(envelope))

    def flush(self, timeout: float | None = None) -> bool:  # noqa: ARG002
        """Return True: nothing is ever buffered."""
        return True

    def close(self) -> None:
        """Do nothing: nothing is ever buffered."""
