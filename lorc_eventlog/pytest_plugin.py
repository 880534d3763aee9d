"""The fixture ``captured_events``, which pytest finds by itself where this package is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lorc_eventlog import Envelope


@pytest.fixture
def captured_events() -> Iterator[list[Envelope]]:
    """The events of this test, which are not sent; see ``lorc_eventlog.testing.capture_events``.

    Example:
        A test that asks for it:

            def test_an_email_is_an_event(captured_events):
                receive_email(subject="My results")
                assert captured_events[0]["event_type"] == "email.received"
    """
    from lorc_eventlog.testing import capture_events

    with capture_events() as events:
        yield events
