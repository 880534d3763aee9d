"""The step of ``check`` that looks whether somebody ships from a spool directory."""

from __future__ import annotations

from pathlib import Path

from lorc_eventlog.bigquery.table import events_table
from lorc_eventlog.cli.diagnosis import Finding
from lorc_eventlog.cli.output import BAD, GOOD, UNKNOWN
from lorc_eventlog.spool import survey
from lorc_eventlog.spool.directory import Directory
from lorc_eventlog.spool.shipped import shipper_of


def check_shipper(path: Path) -> Finding:
    """Whether a process ships from the directory ``path``, and how much waits there."""
    to_do = f"run `lorc-eventlog ship {path}`"
    try:
        table = events_table()
    except RuntimeError:
        return Finding("shipper", UNKNOWN, "not checked")
    try:
        directory = Directory(path.absolute(), access=None, create=False)
    except FileNotFoundError:
        return Finding("shipper", BAD, f"{path} is not there, so that nobody ships from it", to_do)
    except OSError as error:
        return Finding("shipper", BAD, f"{path} cannot be used: {error.strerror}")
    try:
        shipper = shipper_of(directory, table)
        waiting = sum(
            report.events
            for report in survey(path)
            if report.is_for_a_shipper and report.table == table and not report.is_set_aside
        )
    except OSError as error:
        return Finding("shipper", BAD, f"{path} cannot be read: {error.strerror}")
    finally:
        directory.close()
    waits = f"{waiting:,} events wait"
    if shipper is None:
        found = f"no process ships from {path} into {table}: {waits}"
        return Finding("shipper", BAD, found, to_do)
    return Finding("shipper", GOOD, f"{shipper} ships from {path}: {waits}")
