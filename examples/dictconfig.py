"""Standard logging, configured by a JSON file: one additional handler, unchanged log calls.

Run it:

    export EVENTS_BQ_DATASET=my-project.my_dataset EVENTS_BQ_TABLE=events
    python examples/dictconfig.py
"""

import json
import logging.config
from pathlib import Path

logger = logging.getLogger("ingester")


def main() -> None:
    """Log an ordinary line and two events."""
    config = Path(__file__).with_name("dictconfig.json")
    logging.config.dictConfig(json.loads(config.read_text(encoding="utf-8")))

    logger.info("connected")  # no event_type: a line like any other
    logger.info(
        "email received",
        extra={
            "event_type": "email.received",
            "schema_ref": "email.v1",
            "correlation_id": "trace-0001",
            "subject_id": "patient-17",
            "payload": {"subject": "My results", "labels": ["inbox", "unread"]},
        },
    )
    logger.info(
        "email archived",
        extra={"event_type": "email.archived", "source": "gmail_archiver"},
    )
    # Nothing to flush: what is still buffered is delivered when the process ends.


if __name__ == "__main__":
    main()
