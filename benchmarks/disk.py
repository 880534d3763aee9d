"""What one log call costs whose event is on disk when the call returns.

Bursts shorter than a batch, each arm in turn, as in :mod:`benchmarks.call_cost`.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks import arms
from benchmarks.events import make_payload
from benchmarks.figures import ratio, spread
from benchmarks.server import environment, running_server

BURST = 300
PLACE = Path("/var/tmp")  # noqa: S108  on a disk, where /tmp is often memory
MEMORY = "lorc_eventlog, in memory"
SPOOL = 'lorc_eventlog, `spool_sync="normal"`'
SPOOL_FULL = 'lorc_eventlog, `spool_sync="full"`'
PERSIST = "persist-queue"
LOGSTASH = "python-logstash-async"
LOGSTASH_IN_THE_CALL = "python-logstash-async, written in the call"
ARMS: dict[str, Callable[[str, Path], arms.Arm]] = {
    MEMORY: lambda url, _: arms.ours(url),
    SPOOL: partial(arms.ours_on_disk, sync="normal"),
    SPOOL_FULL: partial(arms.ours_on_disk, sync="full"),
    PERSIST: arms.persist_queue,
    "persist-queue, `synchronous=NORMAL`": partial(arms.persist_queue, synchronous="NORMAL"),
    LOGSTASH_IN_THE_CALL: arms.logstash_async_in_the_call,
    LOGSTASH: arms.logstash_async,
}


def measure(*, rounds: int) -> dict[str, Any]:
    """Return microseconds of a call by arm, its ratios, and seconds until the disk has it."""
    with running_server() as server, tempfile.TemporaryDirectory(dir=PLACE) as directory:
        os.environ.update(environment(server))
        opened: dict[str, arms.Arm] = {}
        for number, (name, make) in enumerate(ARMS.items()):
            own = Path(directory, str(number))
            own.mkdir()
            opened[name] = make(server.url, own)
        try:
            return {"file_system": _file_system(PLACE), **_all_arms(opened, rounds)}
        finally:
            for arm in opened.values():
                arm.close()


def _all_arms(opened: dict[str, arms.Arm], rounds: int) -> dict[str, Any]:
    payload = make_payload(0.2)
    times: dict[str, list[float]] = {name: [] for name in opened}
    until_on_disk: dict[str, list[float]] = {name: [] for name in opened}
    warm_up = 1 + rounds // 10
    for number in range(warm_up + rounds):
        for name, arm in opened.items():
            arguments = arm.arguments(payload)
            gc.collect()
            started = time.perf_counter()
            arms.log_events(arm, arguments, BURST)
            seconds = time.perf_counter() - started
            if arm.wait_until_on_disk is not None:
                arm.wait_until_on_disk()
            on_disk_after = time.perf_counter() - started
            arm.settle()
            if number >= warm_up:
                times[name].append(seconds / BURST * 1e6)
                until_on_disk[name].append(on_disk_after)
    return {
        "arms": {
            name: {
                "microseconds": spread(values),
                "memory": ratio(values, times[MEMORY]),
                "spool": ratio(times[SPOOL], values),
                "spool_full": ratio(times[SPOOL_FULL], values),
                "seconds_until_on_disk": None if name == MEMORY else spread(until_on_disk[name]),
            }
            for name, values in times.items()
        }
    }


def _file_system(path: Path) -> str:
    """Return the type of the file system that holds ``path``."""
    mounted = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    return next(mounted[str(at)] for at in (path, *path.parents) if str(at) in mounted)
