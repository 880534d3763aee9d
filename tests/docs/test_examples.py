"""The examples do what they show, started as a reader starts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clients import Query

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def run_example(name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=60, check=True
    )


@pytest.mark.usefixtures("events_table")
def test_dictconfig_logs_every_line_and_delivers_the_events(query: Query) -> None:
    lines = run_example("dictconfig.py").stderr.splitlines()

    assert [line.partition("ingester: ")[2] for line in lines] == [
        "connected",
        "email received",
        "email archived",
    ]
    assert query("SELECT * EXCEPT (event_id, created_at) FROM events ORDER BY created_at") == [
        {
            "event_type": "email.received",
            "source": "gmail_ingester",
            "schema_ref": "email.v1",
            "correlation_id": "trace-0001",
            "subject_id": "patient-17",
            "payload": {"subject": "My results", "labels": ["inbox", "unread"]},
        },
        {
            "event_type": "email.archived",
            "source": "gmail_archiver",
            "schema_ref": None,
            "correlation_id": None,
            "subject_id": None,
            "payload": {},
        },
    ]


@pytest.mark.usefixtures("events_table")
def test_structlog_pipeline_renders_every_line_and_delivers_the_events(query: Query) -> None:
    lines = run_example("structlog_pipeline.py").stdout.splitlines()

    assert ['"event": "connected"' in lines[0], len(lines)] == [True, 3]
    assert not any("patient-17" in line or "sleep" in line or "pages" in line for line in lines)
    assert query("SELECT * EXCEPT (event_id, created_at) FROM events ORDER BY created_at") == [
        {
            "event_type": "questionnaire.answered",
            "source": "questionnaires",
            "schema_ref": None,
            "correlation_id": "trace-0001",
            "subject_id": "patient-17",
            "payload": {"event": "answered", "questionnaire": "sleep", "score": 7},
        },
        {
            "event_type": "report.sent",
            "source": "questionnaires",
            "schema_ref": None,
            "correlation_id": "trace-0001",
            "subject_id": "patient-17",
            "payload": {"channel": "email", "pages": 3},
        },
    ]


def test_quickstart_shows_its_events_by_sql_and_nothing_else_is_said() -> None:
    shown = run_example("quickstart.py")

    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["questionnaire.answered", "questionnaires", "90"] in lines
    assert ["report.sent", "reports", "30"] in lines
    assert ["pain", "30", "4.9"] in lines
    assert '{"subject":"Question 7","labels":["inbox","unread"]}' in shown.stdout
    assert shown.stdout.rstrip().endswith("Nothing else changes.")
    assert shown.stderr == ""
