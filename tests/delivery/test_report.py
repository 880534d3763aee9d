"""The words of delivery's messages: how many events, what became of them, and why."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from harness import PRIVATE, Records, make_event
from lorc_eventlog.bigquery.transport import Failure, Reason
from lorc_eventlog.delivery.batch import Trouble
from lorc_eventlog.delivery.report import Cause, Left, Report, are
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.events.envelope import to_row

ROW = to_row(make_event(1))
REFUSED = Reason("400 invalid", quoted=f"no such field: {PRIVATE}")


def make_report(spool_dir: str | None = None) -> Report:
    return Report(Notes(), full="the buffer is full (capacity 5 events)", spool_dir=spool_dir)


def said_by(report: Report, level: int) -> list[str]:
    with Records() as said:
        report.say()
    return said.texts(level)


def test_one_event_is_and_several_are() -> None:
    assert [are(count) for count in (0, 1, 2, 1204)] == [
        "0 events are",
        "1 event is",
        "2 events are",
        "1,204 events are",
    ]


def test_a_reason_is_redacted_once_it_is_asked_for_and_then_forgets_the_rows() -> None:
    cause = Cause(REFUSED, [ROW], "mend the table")
    assert list(cause._rows) == [ROW]
    for _ in range(2):
        assert str(cause) == "400 invalid: no such field: …: mend the table"
        assert list(cause._rows) == []


@pytest.mark.parametrize(
    ("what_to_do", "level"), [(None, logging.WARNING), ("grant it", logging.ERROR)]
)
def test_an_outage_is_told_once_a_minute_with_what_waits(
    what_to_do: str | None, level: int
) -> None:
    report = make_report()
    failure = Failure(
        Reason("503 backendError"), what_to_do=what_to_do, may_be_the_rows=False, stored="no"
    )
    for second in range(59):
        report.failed(failure, [ROW], waiting=1204, now=float(second))
    (message,) = said_by(report, level)
    end = "" if what_to_do is None else f": {what_to_do}"
    assert message == (
        "BigQuery is not accepting events; retrying, 1,204 events are waiting: 503 backendError"
        + end
    )
    report.failed(failure, [ROW], waiting=1, now=60.0)
    assert len(said_by(report, level)) == 1
    report.accepted(waiting=7)
    report.accepted(waiting=7)
    assert said_by(report, logging.INFO) == [
        "BigQuery is accepting events again; 7 events are waiting"
    ]


def test_a_table_that_may_be_wrong_is_told_with_the_command_that_looks() -> None:
    report = make_report()
    for second in range(59):
        report.in_trouble(Trouble(12, REFUSED, [ROW]), float(second))
    assert said_by(report, logging.ERROR) == [
        (
            "BigQuery refuses all events, so the table may be wrong; retrying, 12 events are "
            "waiting: 400 invalid: no such field: …: run `lorc-eventlog check`"
        )
    ]


def test_dropped_events_are_lost_and_say_why() -> None:
    report = make_report()
    for _ in range(3):
        report.dropped(1, 0.0)
    report.note_drops()
    report.note_drops()
    assert said_by(report, logging.WARNING) == [
        "lost 1 event: the buffer is full (capacity 5 events); last error from BigQuery: none",
        "lost 2 events: the buffer is full (capacity 5 events); last error from BigQuery: none",
    ]


WAITED = "BigQuery did not accept them within 10 s"


@pytest.mark.parametrize(
    ("spool_dir", "left", "told"),
    [
        (
            None,
            Left(300, 0, None),
            f"lost 300 events: {WAITED} (set spool_dir to keep them): BigQuery did not answer",
        ),
        (
            None,
            Left(300, 0, Trouble(2, REFUSED, [ROW])),
            (
                f"lost 300 events: {WAITED}, and refused 2 (set spool_dir to keep them): "
                "400 invalid: no such field: …: run `lorc-eventlog check`"
            ),
        ),
        (
            "/spool",
            Left(300, 300, None),
            f"300 events stay in /spool for the next start: {WAITED}: BigQuery did not answer",
        ),
        (
            "/spool",
            Left(3, 1, None),
            (
                "lost 2 events that the disk did not take; 1 event stays in /spool for the next "
                f"start: {WAITED}: BigQuery did not answer"
            ),
        ),
        (
            "/spool",
            Left(2, 0, None),
            f"lost 2 events that the disk did not take: {WAITED}: BigQuery did not answer",
        ),
    ],
)
def test_at_exit_what_is_gone_is_lost(spool_dir: str | None, left: Left, told: str) -> None:
    assert make_report(spool_dir).left_at_exit(left, WAITED) == told


@pytest.mark.parametrize(("spool_dir", "where"), [(None, ""), ("/spool", " (1 of them in /spool)")])
def test_after_a_close_it_is_still_sent(spool_dir: str | None, where: str) -> None:
    assert make_report(spool_dir).left_by_close(Left(2, 1, None), WAITED) == (
        f"2 events are still waiting{where}: {WAITED}; they are sent for as long as the process "
        "lives: BigQuery did not answer"
    )


def test_control_characters_of_an_event_forge_no_line() -> None:
    report = make_report()
    row: Any = {**ROW, "event_type": "t\nCRITICAL root spoofed \x1b[31m"}
    report.rejected(row, Cause(REFUSED, [row]), is_handled=False, failure=None)
    (message,) = said_by(report, logging.ERROR)
    assert "(t\\nCRITICAL root spoofed \\x1b[31m) is rejected" in message
    assert message.isprintable()
