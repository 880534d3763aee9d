"""Fork while a writer adopts files, then die: spool_fork_early.py DIRECTORY.

It fails if the living children keep a file of DIRECTORY locked.
"""

import os
import signal
import sys
from pathlib import Path

from lorc_eventlog import EventWriter
from lorc_eventlog.spool import survey

directory = Path(sys.argv[1])
CHILDREN = 20

reading, writing = os.pipe()
ready, begun = os.pipe()
parent = os.fork()
if parent == 0:
    os.close(writing)
    EventWriter(spool_dir=directory)
    for _ in range(CHILDREN):
        if os.fork() == 0:
            os.write(begun, b"x")
            os.read(reading, 1)  # until the first process ends
            os._exit(0)
    for _ in range(CHILDREN):
        os.read(ready, 1)
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(parent, 0)
locked = [report.path.name for report in survey(directory) if report.is_locked]
if locked:
    sys.exit(f"{locked} are still locked")
