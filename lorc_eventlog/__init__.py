"""Business events from Python logging into one BigQuery table, without losing one.

PYTEST_DONT_REWRITE: pytest, which finds our plugin, would warn where this is imported before.
"""

from lorc_eventlog.event_client import Envelope, build_envelope, emit
from lorc_eventlog.handler import BigQueryEventHandler
from lorc_eventlog.processor import BigQueryEventProcessor
from lorc_eventlog.table import check_events_table, create_events_table
from lorc_eventlog.writer import EventWriter, WriterStats

__all__ = [
    "BigQueryEventHandler",
    "BigQueryEventProcessor",
    "Envelope",
    "EventWriter",
    "WriterStats",
    "build_envelope",
    "check_events_table",
    "create_events_table",
    "emit",
]
