"""Celery: tasks log events from worker processes, each with the id of the workflow it belongs to.

Run it by

    export EVENTS_BQ_DATASET=my-project.my_dataset EVENTS_BQ_TABLE=events
    export CELERY_BROKER_URL=redis://localhost
    cd examples
    celery --app celery_app worker --concurrency 2

and from another shell, with the same variables,

    celery --app celery_app call celery_app.send_report --args '[3]'
"""

import logging.config
from typing import Any

from celery import Celery, signals

logger = logging.getLogger("reports")


class TraceOfTask(logging.Filter):
    """Gives each record of a task the id of the task that began it all."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Set ``correlation_id``."""
        task = app.current_task
        record.correlation_id = task.request.root_id if task else None
        return True


@signals.setup_logging.connect  # without this, Celery puts its own handlers into place
def configure_logging(**_: Any) -> None:
    """Configure the worker, before it forks."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"task": {"()": TraceOfTask}},
            "handlers": {
                "console": {"class": "logging.StreamHandler"},
                "events": {
                    "class": "lorc_eventlog.BigQueryEventHandler",
                    "source": "reports",
                    "filters": ["task"],
                },
            },
            "root": {"level": "INFO", "handlers": ["console", "events"]},
        }
    )


app = Celery()  # its broker: CELERY_BROKER_URL


@app.task
def send_report(pages: int) -> None:
    """Log one event."""
    extra = {"event_type": "report.sent", "payload": {"pages": pages}}
    logger.info("report sent", extra=extra)
