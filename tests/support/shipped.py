"""What programs with ``spool_only`` wrote, read from their segments as a shipper reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorc_eventlog.spool.format import decode_line, find_rows
from lorc_eventlog.spool.shipped import table_of

VARIABLE = "SPOOL_ONLY_DIR"
"""Names the spool directory of a program that only writes to disk."""


def spool_only_options() -> dict[str, Any]:
    """Options of a program's handler: none unless ``SPOOL_ONLY_DIR`` is set."""
    directory = os.environ.get(VARIABLE)
    return {} if directory is None else {"spool_dir": directory, "spool_only": True}


def payloads_on_disk(directory: Path) -> list[dict[str, Any]]:
    """The payload of each event. Nothing else may be there: no torn line, no damage, no draft."""
    return [payload for segment in sorted(directory.iterdir()) for payload in _payloads(segment)]


def numbers_on_disk(directory: Path) -> list[int]:
    """The numbers of the events, in order; one that is there twice is here twice."""
    return sorted(payload["number"] for payload in payloads_on_disk(directory))


def _payloads(segment: Path) -> Iterator[dict[str, Any]]:
    assert segment.suffix == ".ship", segment
    header, *lines = segment.read_bytes().split(b"\n")
    assert table_of(decode_line(header)) is not None
    assert lines.pop() == b"", f"the last line of {segment} has no line break"
    for line in lines:
        ((_, _, row),), damaged = find_rows(line)
        assert damaged == 0
        yield json.loads(row["payload"])
