"""Logs events with spool_only, on a disk that is full at times, and notes each call on another.

    chaos_log.py SPOOL_DIR NOTES RATE

It notes that a call began, and that it returned unless the event was dropped.
"""

import os
import sys
import time
import uuid

from lorc_eventlog import EventWriter

directory, notes, rate = sys.argv[1], sys.argv[2], float(sys.argv[3])
file = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
process = uuid.uuid4().hex
writer = EventWriter(spool_dir=directory, spool_only=True, spool_max_bytes=2**26)
number = dropped = 0
while True:
    number += 1
    event = f"{process}-{number}"
    os.write(file, f"started {event}\n".encode())
    writer.emit("test.happened", {"id": event, "text": "x" * 200}, source="chaos_log")
    before, dropped = dropped, writer.stats().dropped
    os.write(file, f"{'returned' if dropped == before else 'dropped'} {event}\n".encode())
    time.sleep(1 / rate)
