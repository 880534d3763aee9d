"""Where events go in development, tests and builds, instead of BigQuery: ``EVENTS_BQ_SINK``."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from lorc_eventlog.diagnostics import escaped, say
from lorc_eventlog.events.row import Row, finish

SINK_VARIABLE = "EVENTS_BQ_SINK"
SINKS = ("bigquery", "console", "off")

Sink = Callable[[Row], object]

_STYLES = ("dim", "bold cyan", "green", "magenta", "")
"""Of the time, the type, the source, the correlation id and the payload."""

_unsaid = iter(["events are discarded"])
"""Empty after the first message: taking the next of an iterator is whole for every thread."""


def sink_name() -> str:
    """Name the sink that the environment chooses: ``bigquery``, ``console`` or ``off``.

    Raises:
        RuntimeError: It names none of the three.
    """
    name = os.environ.get(SINK_VARIABLE) or SINKS[0]
    if name not in SINKS:
        msg = f"{SINK_VARIABLE} must be bigquery, console or off, not {name!r}"
        raise RuntimeError(msg)
    return name


def chosen_sink() -> Sink | None:
    """Return what takes the events instead of BigQuery, None for BigQuery.

    Raises:
        RuntimeError: The environment names no sink that there is.
    """
    return {"bigquery": None, "console": print_event, "off": discard}[sink_name()]


def require_bigquery(what: str) -> None:
    """Raise RuntimeError unless events go to BigQuery, so that ``what`` makes sense."""
    name = sink_name()
    if name != "bigquery":
        msg = f"{SINK_VARIABLE} is {name}: unset it, because {what} needs BigQuery"
        raise RuntimeError(msg)


def discard(row: Row) -> None:  # noqa: ARG001  a sink's signature
    """Do nothing with ``row``; says so once in a process."""
    for what in _unsaid:
        say(logging.INFO, "%s is off: %s, and nothing reaches BigQuery", SINK_VARIABLE, what)


def print_event(row: Row) -> None:
    """Print ``row`` as one line on stderr, without its ``subject_id``.

    Never through logging, where it would come by here again. It raises nothing: a stderr that is
    closed, or somebody's own, must not break the log call.
    """
    stream = sys.stderr
    if stream is None:
        return
    finish(row)
    parts = (
        f"{row['created_at'][11:23]}Z",
        row["event_type"],
        row["source"],
        row["correlation_id"] or "-",
        row["payload"],
    )
    texts = [escaped(part) for part in parts]
    with contextlib.suppress(Exception):
        if not (stream.isatty() and _print_in_colour(stream, texts)):
            stream.write(" ".join(texts) + "\n")
            stream.flush()


def _print_in_colour(stream: Any, texts: list[str]) -> bool:
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return False
    line = Text(" ").join(map(Text, texts, _STYLES))
    Console(file=stream).print(line, soft_wrap=True)
    return True
