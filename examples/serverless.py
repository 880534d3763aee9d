"""Serverless: deliver everything before answering, because nothing may run afterwards.

`handle` is a function for AWS Lambda or Google Cloud, which freeze the machine between two calls.
Run as a program, this is a job (Cloud Run, cron) that logs only a few events:

    export EVENTS_BQ_DATASET=my-project.my_dataset EVENTS_BQ_TABLE=events
    python examples/serverless.py
"""

import logging
from typing import Any

from lorc_eventlog import BigQueryEventHandler

logger = logging.getLogger("reports")
logger.setLevel(logging.INFO)


def send_report(pages: int) -> None:
    """Log one event."""
    logger.info("sent", extra={"event_type": "report.sent", "payload": {"pages": pages}})


def handle(event: dict[str, Any], context: object) -> dict[str, bool]:  # noqa: ARG001
    """Deliver a call's events in one request at its end."""
    to_bigquery = events_in_background()
    for pages in event["reports"]:
        send_report(pages)
    return {"delivered": to_bigquery.flush(timeout=5)}  # False: still buffered, for the next call


def events_in_background() -> BigQueryEventHandler:
    """Add the handler with the first call, and keep it for the calls after it."""
    for handler in logger.handlers:
        if isinstance(handler, BigQueryEventHandler):
            return handler
    handler = BigQueryEventHandler(source="reports_function")
    logger.addHandler(handler)
    return handler


def main() -> None:
    """Send each event within its log call: nothing to flush, whatever ends the job."""
    logger.addHandler(BigQueryEventHandler(source="reports_job", background=False))
    send_report(3)


if __name__ == "__main__":
    main()
