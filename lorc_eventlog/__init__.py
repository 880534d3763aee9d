"""Business events from Python logging into one BigQuery table, without losing one."""

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
