"""Celery: what its default logging removes, and what it kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_workers import make_broker, running_celery, send_tasks, shut_down_cold
from doc_pages import blocks_of
from scripted_bigquery import ScriptedBigQuery

APPLICATION = """
import logging
import os
import time
from celery import Celery, signals
from celery.utils.log import get_task_logger
from lorc_eventlog import BigQueryEventHandler

app = Celery()
events = BigQueryEventHandler(source="reports", flush_interval=3600, close_timeout=60)

{}

@signals.worker_ready.connect
def tell(**_):
    os.write(2, b"celery@test ready\\n")


@app.task
def send_report(pages):
    for logger in (logging.getLogger("reports"), get_task_logger("tasks")):
        payload = {{"pages": pages, "logger": logger.name, "text": "PrivateWord"}}
        logger.info("x", extra={{"event_type": "report.sent", "payload": payload}})
    os.write(2, b"report %d sent\\n" % pages)
    time.sleep(0.05)
"""
ON_THE_ROOT_LOGGER = "logging.getLogger().addHandler(events)"
IN_SETUP_LOGGING = f"""
@signals.setup_logging.connect
def configure_logging(**_):
    logging.basicConfig(level="INFO")
    {ON_THE_ROOT_LOGGER}
"""
KEYS = ("after_setup_logger", "propagate", "worker_hijack_root_logger")
"""Words of the code on the page, each in one block."""
REPORTS, TASKS = "reports", "tasks"


@pytest.mark.parametrize(
    ("configuration", "loggers"),
    [
        (ON_THE_ROOT_LOGGER, []),
        (IN_SETUP_LOGGING, [REPORTS, TASKS]),
        ("after_setup_logger", [REPORTS, TASKS]),
        ("propagate", [REPORTS]),
        ("worker_hijack_root_logger", [REPORTS]),
    ],
    ids=["default", "setup_logging", "after_setup_logger", "own logger", "no hijack"],
)
def test_which_loggers_events_arrive_as_the_page_says(
    scripted: ScriptedBigQuery, tmp_path: Path, configuration: str, loggers: list[str]
) -> None:
    """Those of get_task_logger do not propagate to the root logger, unless Celery sets up none."""
    code = [block.code for block in blocks_of("docs/guides/celery.md", "python")]
    shown = {key: block for block in code for key in KEYS if key in block}
    (tmp_path / "main.py").write_text(APPLICATION.format(shown.get(configuration, configuration)))
    make_broker(tmp_path)
    with running_celery(tmp_path, "--concurrency", "1", "--loglevel", "INFO") as worker:
        send_tasks(tmp_path, "send_report", 2)
        worker.wait_for(r"report \d sent", 2)
        worker.terminate()

    arrived = [(e["payload"]["pages"], e["payload"]["logger"]) for e in scripted.events()]
    assert sorted(arrived) == [(pages, logger) for pages in (0, 1) for logger in loggers]


def test_a_cold_shutdown_ends_and_what_was_logged_is_delivered(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    """No thread of ours takes the SIGTERM of a worker process, which hangs billiard."""
    (tmp_path / "main.py").write_text(APPLICATION.format(IN_SETUP_LOGGING))
    sent, said = shut_down_cold(tmp_path)
    assert "lost" not in said
    arrived = [(e["payload"]["pages"], e["payload"]["logger"]) for e in scripted.events()]
    assert {(pages, logger) for pages in sent for logger in (REPORTS, TASKS)} <= set(arrived)
    assert len(arrived) == len(set(arrived))
