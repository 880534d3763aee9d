"""Deliver a spool and die after the n-th write to it, for every n: spool_fault_points.py TEMPLATE.

For each n, TEMPLATE is copied to TEMPLATE.n and the table is called ``table_n``. A process
adopts and delivers the copy, logs events of its own, and kills itself as soon as it has made n
changes on disk. Then another one starts and delivers what is left. The last n is the first that
nobody dies of. The ids of events whose log call has returned are in TEMPLATE.n/acknowledged.
"""

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from lorc_eventlog import EventWriter, build_envelope
from lorc_eventlog.lifecycle import descriptors

CHANGES = (
    (os, "pwrite"),
    (os, "ftruncate"),
    (os, "unlink"),
    (os, "rename"),
    (descriptors, "open_here"),
    (descriptors, "close"),
)


def die_after(changes: int) -> None:
    """Kill this process as soon as it has made so many changes."""
    left = itertools.count(changes - 1, -1)

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = change(*arguments, **options)
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for owner, name in CHANGES:
        setattr(owner, name, dying(getattr(owner, name)))


def run(directory: Path, *, changes: int | None) -> None:
    client = bigquery.Client(
        project="test-project",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": os.environ["BIGQUERY_EMULATOR_HOST"]},
    )
    acknowledged = os.open(directory / "acknowledged", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    if changes is not None:
        die_after(changes)
    writer = EventWriter(client, spool_dir=directory, batch_rows=4, flush_interval=0.0)
    if changes is not None:
        for number in range(5):
            event = build_envelope(
                event_type="test.happened", payload={"number": number}, source="tests"
            )
            writer.submit(event)
            os.write(acknowledged, event["event_id"].encode() + b"\n")
    if not writer.drain_spool(30):
        os._exit(1)
    writer.close()


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a process of its own; its exit status, or minus the signal."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    template = Path(sys.argv[1])
    for changes in itertools.count(1):
        directory = template.with_name(f"{template.name}.{changes}")
        shutil.copytree(template, directory)
        os.environ["EVENTS_BQ_TABLE"] = f"table_{changes}"
        status = in_child(lambda: run(directory, changes=changes))  # noqa: B023
        if status not in (0, -signal.SIGKILL):
            sys.exit(f"{changes}: status {status}")
        later = in_child(lambda: run(directory, changes=None))  # noqa: B023
        if later != 0:
            sys.exit(f"{changes}: the later start ended with {later}")
        if status == 0:
            sys.stdout.write(f"{changes}\n")
            return


main()
