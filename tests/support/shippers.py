"""A shipper in the process of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.shipping.service import Settings, Shipper
from lorc_eventlog.spool.directory import Access
from lorc_eventlog.spool.shipped import SegmentAppender

TABLE = "dataset.events"


def make_appender(
    path: Path,
    notes: Notes,
    *,
    table: str = TABLE,
    max_bytes: int = 2**24,
    durable: bool = False,
) -> SegmentAppender:
    """Make what an application writes to a spool directory with."""
    return SegmentAppender(
        path, access=Access.OWNER, table=table, max_bytes=max_bytes, durable=durable, notes=notes
    )


@contextmanager
def shipping(path: Path, **settings: Any) -> Iterator[Shipper]:
    """Run a shipper; in the end it delivers what it has read."""
    shipper = Shipper(Settings(**{"directory": path, "table": TABLE, "interval": 0.05, **settings}))
    shipper.start()
    try:
        yield shipper
    finally:
        shipper.stop_reading()
        shipper.wait_until(lambda progress: progress.is_settled, 20)
        shipper.close()
        shipper.close()  # which changes nothing
