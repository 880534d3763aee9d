"""A program that logs when it is imported, as its children do: logs_when_imported.py METHOD.

The children import it before the bootstrap of multiprocessing, which clears all finalizers.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
from typing import Any

from lorc_eventlog import BigQueryEventHandler

logger = logging.getLogger("app")
logger.setLevel(logging.INFO)
logger.addHandler(BigQueryEventHandler(source="tests", flush_interval=60))


def log(*numbers: int) -> None:
    for number in numbers:
        payload = {"number": number, "text": "PrivateWord"}
        logger.info("x", extra={"event_type": "test", "payload": payload})


log(0)

if __name__ == "__main__":
    context: Any = multiprocessing.get_context(sys.argv[1])
    process = context.Process(target=log, args=(1, 2, 3))
    process.start()
    process.join()
    assert process.exitcode == 0
