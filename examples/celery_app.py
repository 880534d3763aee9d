"""Celery: tasks log events in worker processes, each event with the id of its workflow.

Run it:

    export EVENTS_BQ_DATASET=my-project.my_dataset EVENTS_BQ_TABLE=events
    export CELERY_BROKER_URL=redis://localhost
    cd examples
    celery --app celery_app worker --concurrency 2

and, in another shell with the same variables,

    celery --app celery_app call celery_app.send_report --args '[3]'
"""

import logging.config
from typing import Any

from celery import Celery, signals

logger = logging.getLogger("reports")


class TraceOfTask(logging.Filter):
    """Gives each record of a task the id of the task that started the workflow."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Set ``correlation_id``."""
        task = app.current_task
        record.correlation_id = task.request.root_id if task else None
        return True


@signals.setup_logging.connect  # otherwise Celery installs its own handlers
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
