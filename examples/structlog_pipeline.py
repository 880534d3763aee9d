"""structlog: one additional processor, unchanged log calls.

Run it:

    export EVENTS_BQ_DATASET=my-project.my_dataset EVENTS_BQ_TABLE=events
    python examples/structlog_pipeline.py
"""

import structlog

from lorc_eventlog import BigQueryEventProcessor


def main() -> None:
    """Log an ordinary line and two events of one trace."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            # Before the renderer, which then prints neither payloads nor subject_ids.
            BigQueryEventProcessor(source="questionnaires", redact_line=True),
            structlog.processors.JSONRenderer(),
        ]
    )
    log = structlog.get_logger()

    log.info("connected")  # no event_type: a line like any other
    with structlog.contextvars.bound_contextvars(
        correlation_id="trace-0001", subject_id="patient-17"
    ):
        # The payload is what is bound to the line ...
        log.info("answered", event_type="questionnaire.answered", questionnaire="sleep", score=7)
        # ... or what `payload` says.
        log.info("sent", event_type="report.sent", payload={"channel": "email", "pages": 3})


if __name__ == "__main__":
    main()
