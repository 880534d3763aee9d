"""What the spool says of its troubles."""

from __future__ import annotations

import logging
from pathlib import Path

from harness import PRIVATE, Records
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.spool.report import SpoolReport


def test_a_fault_is_told_once_a_minute_by_its_kind_alone() -> None:
    notes = Notes()
    report = SpoolReport(Path("/spool"), notes)
    with Records() as said:
        for _ in range(3):
            report.fault(LookupError(PRIVATE))
        notes.say()
    assert said.texts(logging.ERROR) == [
        "spool /spool: reading or removing files failed and is tried again: LookupError"
    ]
