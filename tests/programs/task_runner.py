"""Runs each task in a fork that ends by os._exit, as Airflow's task runners do: task_runner.py WAY.

Airflow 2    logging.shutdown() after the task
Airflow 3    exit functions of the parent are forgotten, those of the child are run
nothing      as a runner of one's own
flush        the same; each task flushes
"""

from __future__ import annotations

import atexit
import logging
import os
import sys

import jobs

way = sys.argv[1]


def run_task(number: int) -> None:
    if way == "Airflow 3":
        atexit._clear()
    (jobs.job_that_flushes if way == "flush" else jobs.job)(number)
    if way == "Airflow 2":
        logging.shutdown()
    elif way == "Airflow 3":
        atexit._run_exitfuncs()
    os._exit(0)


jobs.job(6)  # the parent's own
import google.cloud.bigquery  # noqa: E402, F401  once, and not in each child

for number in range(6):
    pid = os.fork()
    if pid == 0:
        run_task(number)
    assert os.waitpid(pid, 0)[1] == 0
