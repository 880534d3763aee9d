"""Keeps OpenTelemetry from tracing the requests that deliver events."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

_SUPPRESS = "suppress_instrumentation"
"""The key that the instrumentations look for in the context."""

_Result = TypeVar("_Result")


def without_spans(action: Callable[[], _Result]) -> _Result:
    """Return ``action()``, during which instrumentations of this thread make no spans.

    A span of each request would tell nobody anything, cost more than the events, and be one more
    request where it is exported over HTTP.
    """
    context: Any = sys.modules.get("opentelemetry.context")
    if context is None:
        return action()
    try:
        token = context.attach(context.set_value(_SUPPRESS, True))  # noqa: FBT003  its signature
    except Exception:  # noqa: BLE001  a broken context must not cost the events
        return action()
    try:
        return action()
    finally:
        context.detach(token)  # which reports an error, and raises none
