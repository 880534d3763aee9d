"""Sends events by handler, processor and `emit` to a BigQuery on this machine, and queries them.

Run it:

    python -m pip install tox && python -m tox run -e quickstart
"""

import logging.config
import os
from datetime import date

import structlog
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from emulator import running_emulator
from lorc_eventlog import BigQueryEventProcessor, create_events_table, emit

COUNTS = """
SELECT event_type, source, COUNT(*) AS events
FROM demo.events
GROUP BY event_type, source
ORDER BY events DESC"""

FIELD = """
SELECT JSON_VALUE(payload, '$.questionnaire') AS questionnaire,
       COUNT(*) AS answers,
       ROUND(AVG(CAST(JSON_VALUE(payload, '$.score') AS INT64)), 1) AS mean_score
FROM demo.events
WHERE event_type = 'questionnaire.answered'
GROUP BY questionnaire
ORDER BY questionnaire"""

TRACE = """
SELECT SUBSTR(created_at, 12, 15) AS time, event_type, source, TO_JSON_STRING(payload) AS payload
FROM demo.events
WHERE correlation_id = 'trace-0007'
ORDER BY created_at"""

FOR_REAL = """
For a real project:

    gcloud auth application-default login          # or a service account
    export EVENTS_BQ_DATASET=my-project.my_dataset
    export EVENTS_BQ_TABLE=events

Then make the table once, by lorc_eventlog.create_events_table(bigquery.Client()), and add to your
logging what examples/dictconfig.json or examples/structlog_pipeline.py adds. Nothing else changes.
"""


def log_by_stdlib() -> None:
    """120 events by a handler that a dictConfig adds."""
    logging.config.dictConfig(
        {
            "version": 1,
            "handlers": {
                "console": {"class": "logging.StreamHandler", "level": "WARNING"},
                "events": {"class": "lorc_eventlog.BigQueryEventHandler"},
            },
            "root": {"level": "INFO", "handlers": ["console", "events"]},
        }
    )
    logger = logging.getLogger("ingester")
    logger.info("connected")  # no event_type: no event
    for number in range(120):
        logger.info(
            "email received",
            extra={
                "event_type": "email.received",
                "source": f"ingester/gmail/acct{number % 2 + 1}",
                "correlation_id": f"trace-{number:04}",
                "payload": {"subject": f"Question {number}", "labels": ["inbox", "unread"]},
            },
        )
    for handler in logging.getLogger().handlers:
        handler.flush()


def log_by_structlog() -> None:
    """90 events by a processor, their trace bound by contextvars."""
    to_bigquery = BigQueryEventProcessor(source="questionnaires")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            to_bigquery,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.ReturnLoggerFactory(),  # prints nothing
    )
    log = structlog.get_logger()
    for number in range(90):
        with structlog.contextvars.bound_contextvars(correlation_id=f"trace-{number:04}"):
            log.info(
                "answered",
                event_type="questionnaire.answered",
                questionnaire=("mood", "pain", "sleep")[number % 3],
                score=number % 11,
            )
    to_bigquery.flush()


def emit_at_once(client: bigquery.Client) -> None:
    """30 events, each in BigQuery when its call returns."""
    for number in range(30):
        emit(
            "report.sent",
            {"pages": 2 + number % 4, "until": date(2026, 1, 1)},
            source="reports",
            bq_client=client,
            correlation_id=f"trace-{number:04}",
        )


def show(client: bigquery.Client, sql: str) -> None:
    """Print a query and its answer as a table."""
    result = client.query(sql).result()
    names = [field.name for field in result.schema]
    print(sql, end="\n\n")
    print_table([names, *([str(value) for value in row] for row in result)])


def print_table(lines: list[list[str]]) -> None:
    """Print lines of cells in columns, the first line underlined."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["─" * width for width in widths])
    for cells in lines:
        print("   ", "  ".join(map(str.ljust, cells, widths)).rstrip())


def main() -> None:
    """Run the whole way in a few seconds."""
    with running_emulator() as emulator:
        os.environ["BIGQUERY_EMULATOR_HOST"] = emulator.url
        os.environ["EVENTS_BQ_DATASET"] = "demo"
        os.environ["EVENTS_BQ_TABLE"] = "events"
        client = bigquery.Client(
            project="test-project",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": emulator.url},
        )
        table = create_events_table(client)
        print(f"BigQuery's emulator serves at {emulator.url}, and has the table {table}.")
        log_by_stdlib()
        log_by_structlog()
        emit_at_once(client)
        print("120 events by logging, 90 by structlog and 30 by emit are written. By SQL:")
        for sql in (COUNTS, FIELD, TRACE):
            show(client, sql)
    print(FOR_REAL)


if __name__ == "__main__":
    main()
