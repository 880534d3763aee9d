"""OpenTelemetry makes no spans of the requests that deliver events."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from lorc_eventlog import EventWriter, emit
from lorc_eventlog.bigquery.spans import without_spans
from scripted_bigquery import ScriptedBigQuery

KEY = "suppress_instrumentation"


def test_instrumentation_is_suppressed_for_the_action_alone() -> None:
    context = pytest.importorskip("opentelemetry.context")
    assert without_spans(lambda: context.get_value(KEY)) is True
    assert context.get_value(KEY) is None
    with pytest.raises(ValueError, match="invalid literal"):
        without_spans(lambda: int("x"))
    assert context.get_value(KEY) is None


def test_nothing_is_done_where_opentelemetry_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.context", raising=False)
    assert without_spans(lambda: 5) == 5
    assert "opentelemetry.context" not in sys.modules


def test_a_context_that_is_broken_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.context", types.ModuleType("broken"))
    assert without_spans(lambda: 5) == 5


@pytest.fixture
def spans() -> Iterator[Any]:
    """The spans of every request that `requests` and urllib3 make."""
    pytest.importorskip("opentelemetry.instrumentation.requests")
    export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
    memory: Any = importlib.import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
    instrumentation: Any = importlib.import_module("opentelemetry.instrumentation.requests")
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    instrumentor = instrumentation.RequestsInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()


def test_no_request_that_delivers_an_event_has_a_span(
    spans: Any, scripted: ScriptedBigQuery, client: Any
) -> None:
    for bq_client in (None, client):
        writer = EventWriter(bq_client)
        writer.emit("a.b", {}, source="s")
        assert writer.flush(20)
        writer.close()
    emit("a.b", {}, source="s", bq_client=client)
    assert len(scripted.rows) == 3
    assert spans.get_finished_spans() == ()

    requests.get(scripted.url, timeout=20)
    assert len(spans.get_finished_spans()) == 1, "otherwise this test shows nothing"
