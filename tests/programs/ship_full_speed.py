"""Logs with spool_only as fast as it can, from two threads, for a time.

ship_full_speed.py SPOOL_DIR SECONDS

Prints how many events each thread logged, and how many the disk refused.
"""

from __future__ import annotations

import sys
import threading
import time

from lorc_eventlog import EventWriter


def main() -> None:
    directory, seconds = sys.argv[1], float(sys.argv[2])
    # Sixteen segments of half a mebibyte: it can go on only if space is freed.
    writer = EventWriter(
        spool_dir=directory, spool_only=True, spool_max_bytes=8 * 2**20, overflow="block"
    )
    counts = [0, 0]
    end = time.monotonic() + seconds

    def log(index: int) -> None:
        while time.monotonic() < end:
            payload = {"thread": index, "number": counts[index]}
            writer.emit("test.happened", payload, source="tests")
            counts[index] += 1

    threads = [threading.Thread(target=log, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    print(*counts, writer.stats().dropped)  # noqa: T201


main()
