"""Processes that log until they are killed: spool_log.py DIRECTORY PROCESSES ACKNOWLEDGED.

The id of each process is printed when it begins. The id of each event whose log call has returned
is appended to the file ACKNOWLEDGED.<number of the process>.
"""

import os
import sys

import google.cloud.bigquery  # noqa: F401  so that delivery begins at once

from lorc_eventlog import EventWriter, build_envelope


def log_until_killed(directory: str, acknowledged: str) -> None:
    writer = EventWriter(spool_dir=directory, flush_interval=0.05)
    descriptor = os.open(acknowledged, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(1, b"%d\n" % os.getpid())
    number = 0
    while True:
        number += 1
        payload = {"number": number, "text": "x" * (number % 300)}
        event = build_envelope(event_type="test.happened", payload=payload, source="tests")
        writer.submit(event)
        os.write(descriptor, event["event_id"].encode() + b"\n")


def main() -> None:
    directory, processes, acknowledged = sys.argv[1:]
    for index in range(int(processes)):
        if os.fork() == 0:
            log_until_killed(directory, f"{acknowledged}.{index}")
    for _ in range(int(processes)):
        os.wait()


main()
