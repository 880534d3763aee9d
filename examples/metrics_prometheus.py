"""Prometheus: the counters of `stats()`, read whenever Prometheus asks.

Run it:

    python -m pip install prometheus-client
    export EVENTS_BQ_DATASET=my-project.my_dataset EVENTS_BQ_TABLE=events
    python examples/metrics_prometheus.py
"""

import logging
from collections.abc import Iterator

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lorc_eventlog import BigQueryEventHandler


class EventMetrics(Collector):
    """Turns the counters of one handler or processor into metrics."""

    def __init__(self, events: BigQueryEventHandler) -> None:
        self.events = events

    def collect(self) -> Iterator[Metric]:
        """Give the numbers of this moment."""
        stats = self.events.writer.stats()
        ends = CounterMetricFamily("events", "What became of the events", labels=["end"])
        for end in ("delivered", "rejected", "dropped"):
            ends.add_metric([end], getattr(stats, end))
        yield ends
        yield CounterMetricFamily("events_retries", "Requests sent again", value=stats.retries)
        yield GaugeMetricFamily("events_buffered", "Waiting or on their way", value=stats.buffered)


def main() -> None:
    """Log three events and print the metrics that `start_http_server(8001)` would serve."""
    events = BigQueryEventHandler(source="ingester")
    logger = logging.getLogger("ingester")
    logger.addHandler(events)
    REGISTRY.register(EventMetrics(events))
    for _ in range(3):
        logger.warning("received", extra={"event_type": "email.received"})
    events.flush()
    print(generate_latest(REGISTRY).decode())


if __name__ == "__main__":
    main()
