"""Runs jobs in processes of the standard library: pools.py METHOD POOL JOBS.

METHOD is fork, spawn or forkserver. The jobs' module is imported in each process that runs one,
and makes the handler there; with fork it was made before.
"""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def run(number: int) -> None:
    import jobs

    jobs.job(number)


def by_process(context: Any, numbers: range) -> None:
    processes = [context.Process(target=run, args=(number,)) for number in numbers]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def by_pool(context: Any, numbers: range) -> None:
    with context.Pool(2) as pool:
        pool.map(run, numbers)
        pool.close()
        pool.join()


def by_executor(context: Any, numbers: range) -> None:
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        list(executor.map(run, numbers))


if __name__ == "__main__":
    method, pool, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if method == "fork":
        run(count)  # an event of the parent
    ways = {"Process": by_process, "Pool": by_pool, "ProcessPoolExecutor": by_executor}
    ways[pool](multiprocessing.get_context(method), range(count))
