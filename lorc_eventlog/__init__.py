"""Business events from Python logging into one BigQuery table.

PYTEST_DONT_REWRITE: pytest, which finds our plugin, would warn where this is imported before.
"""

from lorc_eventlog.adapters.handler import BigQueryEventHandler
from lorc_eventlog.adapters.processor import BigQueryEventProcessor
from lorc_eventlog.adapters.redaction import RedactionFilter
from lorc_eventlog.bigquery.create import check_events_table, create_events_table
from lorc_eventlog.delivery.stats import WriterStats
from lorc_eventlog.delivery.synchronous import ForegroundWriter, emit
from lorc_eventlog.delivery.writer import EventWriter
from lorc_eventlog.events.envelope import Envelope, build_envelope

__version__ = "0.1.0"

__all__ = [
    "BigQueryEventHandler",
    "BigQueryEventProcessor",
    "Envelope",
    "EventWriter",
    "ForegroundWriter",
    "RedactionFilter",
    "WriterStats",
    "build_envelope",
    "check_events_table",
    "create_events_table",
    "emit",
]
