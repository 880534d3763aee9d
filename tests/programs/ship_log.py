"""Logs events with spool_only at a rate, and notes each before and after its call.

ship_log.py SPOOL_DIR NOTES RATE
"""

import os
import sys
import time
import uuid

from lorc_eventlog import EventWriter


def main() -> None:
    directory, notes, rate = sys.argv[1], sys.argv[2], float(sys.argv[3])
    file = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    process = uuid.uuid4().hex
    writer = EventWriter(spool_dir=directory, spool_only=True, spool_max_bytes=2**28)
    number = 0
    due = time.monotonic()
    while True:
        number += 1
        event = f"{process}-{number}"
        os.write(file, f"started {event}\n".encode())
        writer.emit("test.happened", {"id": event}, source="ship_log")
        if writer.stats().dropped == 0:
            os.write(file, f"returned {event}\n".encode())
        due += 1 / rate
        pause = due - time.monotonic()
        if pause > 0:
            time.sleep(pause)


main()
