"""Rows for the tests of the transport."""

from __future__ import annotations

from typing import Any

from lorc_eventlog import build_envelope
from lorc_eventlog.events.envelope import to_row
from lorc_eventlog.events.row import Row


def make_row(subject_id: str | None = None, **payload: Any) -> Row:
    """A row with this payload, as it is sent."""
    return to_row(
        build_envelope(event_type="a.b", payload=payload, source="s", subject_id=subject_id)
    )
