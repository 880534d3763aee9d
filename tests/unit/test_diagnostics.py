"""What the package says about itself: seldom, and never at the cost of the application."""

from __future__ import annotations

import io
import logging
import sys
from collections import deque
from typing import Any

import pytest

from lorc_eventlog.diagnostics import (
    Notes,
    Throttle,
    describe,
    escaped,
    is_about_delivery,
    loss,
    say_on_stderr,
)
from lorc_eventlog.events.row import row_at


def test_a_throttle_lets_one_message_of_a_kind_through_in_each_interval() -> None:
    throttle = Throttle(60.0)
    assert throttle.lets_through(0.0)
    assert not throttle.lets_through(59.9)
    assert throttle.lets_through(59.9, "another kind")
    assert throttle.lets_through(60.0)


def test_notes_are_logged_in_their_order_when_they_are_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes = Notes()
    notes.note(logging.WARNING, "%d events were dropped", 3)
    notes.note(logging.ERROR, "BigQuery does not take events")
    assert caplog.records == []
    notes.say()
    notes.say()
    assert [(record.name, record.levelname, record.message) for record in caplog.records] == [
        ("lorc_eventlog", "WARNING", "3 events were dropped"),
        ("lorc_eventlog", "ERROR", "BigQuery does not take events"),
    ]


def test_a_filter_that_raises_costs_no_other_note(
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(record: logging.LogRecord) -> bool:
        if "first" in record.getMessage():
            raise LookupError("PrivateWord")
        return True

    logger = logging.getLogger("lorc_eventlog")
    monkeypatch.setattr(logger, "filters", [broken])
    notes = Notes()
    notes.note(logging.WARNING, "%s note", "first")
    notes.note(logging.WARNING, "%s note", "second")
    notes.say()
    assert capsys.readouterr().err == "lorc_eventlog: logging raised LookupError for: first note\n"
    assert [record.message for record in caplog.records] == ["second note"]


def test_a_note_is_said_once_though_two_threads_say_it() -> None:
    class Taken(deque[Any]):
        """Notes that another thread takes just before we do."""

        def popleft(self) -> Any:
            self.clear()
            return super().popleft()

    notes = Notes()
    notes._notes = Taken([(logging.WARNING, "taken", ())])
    notes.say()


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("lorc_eventlog", True),
        ("google.auth.transport.requests", True),
        ("urllib3.connectionpool", True),
        ("requests.sessions", True),
        ("app", False),
        ("google_ingester", False),
        ("requests_of_patients", False),
        ("lorc_eventlog_app", False),
        ("root", False),
        (None, False),
    ],
)
def test_which_loggers_tell_how_events_are_delivered(name: str | None, verdict: bool) -> None:
    assert is_about_delivery(logging.makeLogRecord({"name": name})) == verdict


class BrokenStderr(io.StringIO):
    def write(self, text: str) -> int:
        raise LookupError(text)


CLOSED_STDERR = io.StringIO()
CLOSED_STDERR.close()


@pytest.mark.parametrize("stderr", [None, CLOSED_STDERR, BrokenStderr(), object()])
def test_without_a_stderr_that_works_nothing_is_said_and_nothing_raised(
    monkeypatch: pytest.MonkeyPatch, stderr: Any
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    say_on_stderr("something")


def test_the_message_of_an_error_is_told_if_the_package_wrote_it() -> None:
    with pytest.raises(ValueError, match="source is missing") as own:
        row_at(0.0, "a.b", {}, None)
    assert describe(own.value) == "ValueError: source is missing: it must be a non-empty string"


@pytest.mark.parametrize(
    "error", [ValueError("PrivateWord"), RuntimeError("PrivateWord"), LookupError("PrivateWord")]
)
def test_the_message_of_any_other_error_is_not(error: Exception) -> None:
    assert describe(error) == type(error).__name__  # one that was never raised
    with pytest.raises(type(error)):
        raise error
    assert describe(error) == type(error).__name__


def test_an_error_that_is_handled_already_is_told_as_none() -> None:
    """For a subclass of the handler may call handleError at any time."""
    assert loss("a.b", None) == "event 'a.b' is not recorded: NoneType"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a.b", "a.b"),
        ("größer, 大", "größer, 大"),
        ("a\nCRITICAL root forged", r"a\nCRITICAL root forged"),
        ("\x1b[31m\x07\x7f\x9b2J", r"\x1b[31m\x07\x7f\x9b2J"),
        ("\u2028\u202e\ud800", r"\u2028\u202e\ud800"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_a_dictconfig_that_disables_all_loggers_silences_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does by default: ours exists as soon as the class of the handler is found."""
    monkeypatch.setattr(logging.getLogger("lorc_eventlog"), "disabled", True)
    notes = Notes()
    notes.note(logging.WARNING, "lost %s", "3 events")
    notes.say()
    assert caplog.messages == ["lost 3 events"]


@pytest.mark.parametrize(
    "name", ["charset_normalizer", "chardet.charsetprober", "lorc_eventlog.diagnostics"]
)
def test_what_a_library_says_about_the_page_of_a_gateway_is_about_delivery(name: str) -> None:
    """requests guesses its encoding, and tells of it in hundreds of lines at DEBUG."""
    assert is_about_delivery(logging.makeLogRecord({"name": name}))
