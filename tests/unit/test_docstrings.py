"""Each public name has a docstring with an example, and the example runs."""

from __future__ import annotations

import inspect
import logging
import textwrap
from typing import Any

import pytest
import structlog
from google.cloud import bigquery

import lorc_eventlog
from clients import make_client
from lorc_eventlog import BigQueryEventHandler, EventWriter, pytest_plugin, testing

PUBLIC = {
    **{name: getattr(lorc_eventlog, name) for name in lorc_eventlog.__all__},
    "testing.capture_events": testing.capture_events,
    "pytest_plugin.captured_events": pytest_plugin.captured_events,
    "EventWriter.aflush": EventWriter.aflush,
}

NOT_RUN = {
    "create_events_table": "asks for the credentials of a real BigQuery",
    "check_events_table": "asks for the credentials of a real BigQuery",
    "EventWriter.aflush": "is the body of an asynchronous generator",
}
"""What is only compiled, and why."""


def example_of(thing: object) -> str:
    """The code of its section "Example"."""
    documented = getattr(thing, "__wrapped__", thing)  # a fixture is an object of pytest's
    _, _, section = (inspect.getdoc(documented) or "").partition("\nExample:\n")
    text = section.partition("\n\n")[2]
    return textwrap.dedent(text) if text.startswith("        ") else ""


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_has_an_example(name: str) -> None:
    code = example_of(PUBLIC[name])
    assert code, f"{name} has no section `Example:` with a sentence and indented code"
    compile(code if name not in NOT_RUN else _as_a_generator(code), name, "exec")


def _as_a_generator(code: str) -> str:
    return f"async def example():\n{textwrap.indent(code, '    ')}"


def receive_email(subject: str) -> None:
    payload = {"subject": subject}
    logging.getLogger("app").warning(
        "x", extra={"event_type": "email.received", "payload": payload}
    )


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in NOT_RUN])
def test_each_example_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    with testing.capture_events() as events:
        handler = BigQueryEventHandler(source="tests")
        request.addfinalizer(structlog.reset_defaults)
        logger = logging.getLogger("app")
        logger.addHandler(handler)
        request.addfinalizer(lambda: logger.removeHandler(handler))
        names: dict[str, Any] = {
            **vars(lorc_eventlog),
            "bigquery": bigquery,
            "capture_events": testing.capture_events,
            "client": make_client("http://127.0.0.1:1"),
            "handler": handler,
            "logging": logging,
            "receive_email": receive_email,
            "structlog": structlog,
        }
        exec(example_of(PUBLIC[name]), names)
        if name == "pytest_plugin.captured_events":
            names["test_an_email_is_an_event"](events)
