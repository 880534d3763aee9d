"""OpenTelemetry: a filter makes the id of the trace the `correlation_id` of its events.

Run it:

    python -m pip install opentelemetry-sdk
    export EVENTS_BQ_DATASET=my-project.my_dataset EVENTS_BQ_TABLE=events
    python examples/opentelemetry_trace.py
"""

import logging

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from lorc_eventlog import BigQueryEventHandler


class TraceId(logging.Filter):
    """Gives each record that has no ``correlation_id`` the id of the current trace."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Set ``correlation_id``."""
        context = trace.get_current_span().get_span_context()
        if context.is_valid and getattr(record, "correlation_id", None) is None:
            record.correlation_id = trace.format_trace_id(context.trace_id)
        return True


def main() -> None:
    """Log two events in one trace."""
    trace.set_tracer_provider(TracerProvider())
    events = BigQueryEventHandler(source="ingester")
    events.addFilter(TraceId())
    logging.basicConfig(level=logging.INFO)
    logging.getLogger().addHandler(events)
    logger = logging.getLogger("ingester")
    tracer = trace.get_tracer("ingester")

    with tracer.start_as_current_span("receive") as span:
        logger.info("received", extra={"event_type": "email.received"})
        with tracer.start_as_current_span("store"):
            logger.info("stored", extra={"event_type": "email.stored"})
    print(trace.format_trace_id(span.get_span_context().trace_id))


if __name__ == "__main__":
    main()
