"""How an application tests its events, without BigQuery and without environment variables.

Run it:

    python -m pytest examples/test_with_captured_events.py
"""

import logging

from lorc_eventlog import BigQueryEventHandler, Envelope
from lorc_eventlog.testing import capture_events

logger = logging.getLogger("ingester")


def receive(subject: str) -> None:
    """Stand for the application."""
    if not subject:
        logger.warning("an email without a subject")
        return
    extra = {"event_type": "email.received", "payload": {"subject": subject}}
    logger.info("email received", extra=extra)


def configure() -> None:
    """Stand for the application's logging."""
    logger.setLevel(logging.INFO)
    logger.handlers = [BigQueryEventHandler(source="gmail_ingester")]


def test_an_email_is_one_event(captured_events: list[Envelope]) -> None:
    """The fixture captures for the whole test."""
    configure()
    receive("My results")
    [event] = captured_events
    assert event["event_type"] == "email.received"
    assert event["source"] == "gmail_ingester"
    assert event["payload"] == {"subject": "My results"}


def test_an_email_without_a_subject_is_none() -> None:
    """The context manager captures for a part of it."""
    with capture_events() as events:
        configure()
        receive("")
    assert events == []
