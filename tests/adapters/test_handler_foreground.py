"""The handler with background=False: each event is in BigQuery when the call returns."""

from __future__ import annotations

import logging
import logging.config
import logging.handlers
import os

import pytest

import lorc_eventlog.bigquery.insert_all
import lorc_eventlog.delivery.synchronous
from handlers import Attach, reports
from harness import PRIVATE
from lorc_eventlog import build_envelope
from lorc_eventlog.delivery.synchronous import ForegroundWriter
from scripted_bigquery import ScriptedBigQuery, hang, status


def test_in_the_foreground_an_event_is_there_when_the_call_returns(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    handler = attach(source="app", background=False)
    for number in range(3):
        logger.info("an event", extra={"event_type": "a.b", "payload": {"number": number}})
        assert scripted.events()[-1]["payload"] == {"number": number}
    assert handler.flush(0)
    assert [request.insert_ids for request in scripted.requests] == [
        (row["event_id"],) for row in scripted.rows
    ]
    assert scripted.connections == 1  # one client, and one connection, for all


def test_in_the_foreground_what_bigquery_refuses_goes_to_handle_error(
    scripted: ScriptedBigQuery,
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler = attach(source="app", background=False)
    scripted.script(status(400, message=f"Bad value {PRIVATE}"))
    for event_type in ("refused", "taken"):
        fields = {"event_type": event_type, "payload": {"x": PRIVATE}, "subject_id": PRIVATE}
        logger.info("an event", extra=fields)
    assert [row["event_type"] for row in scripted.rows] == ["taken"]
    [report] = reports(capsys)
    assert report.startswith(f"lorc_eventlog: event 'refused' of logger {logger.name!r} (")
    assert "is not recorded: RuntimeError: BigQuery did not take event " in report
    assert report.endswith("(refused): 400 invalid: Bad value …")
    stats = handler.writer.stats()
    assert (stats.submitted, stats.delivered, stats.rejected) == (2, 1, 1)
    assert stats.last_error is not None
    assert "400 invalid" in stats.last_error


def test_in_the_foreground_missing_credentials_go_to_handle_error(
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "missing.json")
    handler = attach(source="app", background=False)
    logger.info("an event", extra={"event_type": "a.b"})
    [report] = reports(capsys)
    why = (
        "RuntimeError: there is no BigQuery client: DefaultCredentialsError: File missing.json was "
        "not found.: check the credentials: "
    )
    assert why in report
    assert (handler.writer.stats().last_error or "").startswith(why)


def test_in_the_foreground_an_error_that_nobody_expects_is_told_by_its_type(
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise LookupError(PRIVATE)

    monkeypatch.setattr(lorc_eventlog.delivery.synchronous, "_insert", broken)
    handler = attach(source="app", background=False)
    logger.info("an event", extra={"event_type": "a.b"})
    [report] = reports(capsys)
    assert report.endswith(" is not recorded: LookupError")
    assert handler.writer.stats().last_error == "LookupError"


def test_in_the_foreground_an_outage_ends_after_the_timeout(
    scripted: ScriptedBigQuery,
    logger: logging.Logger,
    attach: Attach,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lorc_eventlog.bigquery.insert_all, "REQUEST_TIMEOUT", 0.5)
    scripted.always(hang())
    attach(source="app", background=False)
    logger.info("an event", extra={"event_type": "a.b"})
    [report] = reports(capsys)
    assert "ReadTimeout" in report


def test_in_the_foreground_the_writer_emits_like_any_other(
    scripted: ScriptedBigQuery, attach: Attach
) -> None:
    handler = attach(background=False)
    handler.writer.emit("a.b", {"a": 1}, source="app", subject_id="patient-17")
    [event] = scripted.events()
    assert (event["payload"], event["subject_id"]) == ({"a": 1}, "patient-17")
    with pytest.raises(ValueError, match="source must be"):
        handler.writer.emit("a.b", {}, source="")


def test_in_the_foreground_the_writer_takes_envelopes_like_any_other(
    scripted: ScriptedBigQuery, attach: Attach
) -> None:
    envelope = build_envelope(event_type="a.b", payload={"a": 1}, source="app")
    attach(background=False).writer.submit(envelope)
    assert scripted.events() == [envelope]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("logged_before", [1, 0], ids=["open connection", "no connection"])
def test_in_the_foreground_a_forked_child_has_connections_and_counters_of_its_own(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach, logged_before: int
) -> None:
    handler = attach(source="app", background=False)
    for _ in range(logged_before):
        logger.info("an event", extra={"event_type": "of.parent"})
    child = os.fork()
    if child == 0:
        code = 1
        try:
            before = handler.writer.stats().submitted
            logger.info("an event", extra={"event_type": "of.child"})
            code = 0 if (before, handler.writer.stats().submitted) == (0, 1) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    logger.info("an event", extra={"event_type": "of.parent"})
    *of_parent, of_child, last = scripted.requests
    ports = {request.client_port for request in (*of_parent, last)}
    assert len(ports) == 1
    assert of_child.client_port not in ports


def test_in_the_foreground_what_is_counted_while_a_child_begins_anew_stays_counted(
    scripted: ScriptedBigQuery, logger: logging.Logger, attach: Attach
) -> None:
    """A signal handler that logs in the middle of it has it begin anew, and the rest follows."""
    handler = attach(source="app", background=False)
    logger.info("an event", extra={"event_type": "a.b", "payload": {}})
    writer = handler.writer
    assert isinstance(writer, ForegroundWriter)
    writer.restart_in_child()
    assert writer.stats().delivered == 1
    logger.info("an event", extra={"event_type": "a.b", "payload": {}})
    assert writer.stats().delivered == len(scripted.rows) == 2
