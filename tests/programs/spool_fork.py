"""Log an event, fork, log one in the child, and let both wait: spool_fork.py DIRECTORY.

Each process prints its id when its event is logged.
"""

import os
import sys
import time

from lorc_eventlog import EventWriter

writer = EventWriter(spool_dir=sys.argv[1])
writer.emit("test.happened", {"number": 0}, source="tests")
os.write(1, b"%d\n" % os.getpid())
if os.fork() == 0:
    writer.emit("test.happened", {"number": 1}, source="tests")
    os.write(1, b"%d\n" % os.getpid())
time.sleep(60)
