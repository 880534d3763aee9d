"""``lorc-eventlog tail``: which events it shows, how, and what that costs."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.cloud import bigquery
from rich.highlighter import JSONHighlighter
from rich.text import Text

from clients import Query
from command_line import SECRET, SUBJECT, Gate, interrupt, log_events, run, shown
from lorc_eventlog import emit
from lorc_eventlog.bigquery.create import events_schema
from lorc_eventlog.cli import selection, tail


@pytest.mark.usefixtures("events_table")
def test_tail_shows_the_latest_events_without_their_data(emulator_client: bigquery.Client) -> None:
    log_events(emulator_client)
    result = run("tail")
    lines = [line[25:] for line in result.stdout.splitlines()]
    assert lines == [
        "email.received  gmail        trace-1",
        "email.archived  gmail/acct1  trace-2",
        "report.sent     reports      trace-1",
    ]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  email", result.stdout)
    assert SECRET not in result.output
    assert SUBJECT not in result.output
    assert result.exit_code == 0


@pytest.mark.usefixtures("events_table")
def test_tail_shows_the_data_if_it_is_told_to(emulator_client: bigquery.Client) -> None:
    log_events(emulator_client)
    lines = run("tail", "--show-data").stdout.splitlines()
    assert lines[1] == f'    subject {SUBJECT}  {{"subject": "{SECRET}"}}'
    assert lines[3] == "    {}"


@pytest.mark.usefixtures("events_table")
def test_tail_speaks_json_to_programs_and_keeps_the_data_to_itself(
    emulator_client: bigquery.Client,
) -> None:
    log_events(emulator_client)
    result = run("tail", "--json", "-n", "1", "--type", "email.received")
    event = json.loads(result.stdout)
    assert [*event] == [
        "event_id", "event_type", "source", "schema_ref", "created_at", "correlation_id",
    ]  # fmt: skip
    with_data = json.loads(run("tail", "--json", "--type", "email.received", "--show-data").stdout)
    assert with_data == event | {"subject_id": SUBJECT, "payload": {"subject": SECRET}}


@pytest.mark.usefixtures("events_table")
@pytest.mark.parametrize(
    ("arguments", "types"),
    [
        (["--type", "email.received"], ["email.received"]),
        (["--type", "email.*"], ["email.received", "email.archived"]),
        (["--type", "*.sent"], ["report.sent"]),
        (["--type", "e*.a*"], ["email.archived"]),
        (["--type", "**"], ["email.received", "email.archived", "report.sent"]),
        (["--type", "email"], []),
        (["--type", "e.ail.*"], []),
        (["--source", "gmail"], ["email.received"]),
        (["--correlation-id", "trace-1"], ["email.received", "report.sent"]),
        (["--correlation-id", "trace-1", "--type", "r*"], ["report.sent"]),
        (["--source", "x' OR 'a' = 'a"], []),
        (["--limit", "2"], ["email.archived", "report.sent"]),
    ],
    ids=" ".join,
)
def test_tail_selects(
    emulator_client: bigquery.Client, arguments: list[str], types: list[str]
) -> None:
    log_events(emulator_client)
    result = run("tail", *arguments)
    assert shown(result) == types
    assert ("no such events" in result.stderr) == (not types)
    assert result.exit_code == 0


@pytest.mark.usefixtures("events_table")
@pytest.mark.parametrize(
    ("since", "age", "is_shown"),
    [
        ("90s", timedelta(seconds=80), True),
        ("90s", timedelta(seconds=100), False),
        ("10m", timedelta(minutes=9), True),
        ("2h", timedelta(hours=3), False),
        ("7d", timedelta(days=6), True),
    ],
)
def test_tail_shows_nothing_older_than_since(
    emulator_client: bigquery.Client, query: Query, since: str, age: timedelta, is_shown: bool
) -> None:
    emit("a.b", {}, source="s", bq_client=emulator_client)
    created_at = (datetime.now(UTC) - age).isoformat(timespec="microseconds")
    query(f"UPDATE events SET created_at = '{created_at}' WHERE TRUE")
    assert shown(run("tail", "--since", since)) == (["a.b"] if is_shown else [])


@pytest.mark.usefixtures("gated_table")
def test_tail_reads_only_the_partitions_that_matter_and_values_are_parameters(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "emulator_host", lambda: None)
    run("tail", "--since", "2d", "--type", "email.*", "--source", "s'")
    jobs = [body["configuration"] for body in gate.bodies if "configuration" in body]
    dry_run, look = jobs
    assert dry_run["dryRun"] is True
    for job in jobs:
        sql = job["query"]["query"]
        assert (
            "WHERE (_PARTITIONTIME >= TIMESTAMP_TRUNC(@partition, DAY) OR _PARTITIONTIME IS NULL) "
            "AND created_at > @since" in sql
        )
        assert "subject_id" not in sql
        assert "payload" not in sql
        assert "'" not in sql
        assert job["query"]["useQueryCache"] is False  # it would hide what arrived
    values = {
        parameter["name"]: parameter["parameterValue"].get("value")
        for parameter in look["query"]["queryParameters"]
    }
    assert values["event_type"] == "email."
    assert values["source"] == "s'"
    # An hour earlier, because the clock of the one who logs may be ahead.
    partition = datetime.fromisoformat(values["partition"])
    since = datetime.fromisoformat(values["since"])
    assert since - partition == timedelta(hours=1)


@pytest.mark.usefixtures("gated_table")
def test_tail_says_first_what_bigquery_bills(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    answer: dict[str, Any] = {
        "jobReference": {"projectId": "test-project", "jobId": "dry"},
        "configuration": {"query": {}, "dryRun": True},
        "status": {"state": "DONE"},
    }
    monkeypatch.setattr(time, "sleep", interrupt)

    monkeypatch.setattr(tail, "emulator_host", lambda: None)

    def said(read: int, *arguments: str) -> str:
        answer["statistics"] = {"query": {"totalBytesProcessed": str(read)}}
        gate.answers[:] = [("POST .*/jobs$", 200, answer)]
        for module in (tail, selection):
            monkeypatch.setattr(module, "run_query", lambda *_: [])
        return run("tail", *arguments).stderr.splitlines()[0]

    assert said(0) == "each query scans 0 bytes, billed as 10 MiB"
    assert said(5 * 2**30) == "each query scans 5 GiB, billed as 5 GiB"
    assert said(1_700_000, "-f") == (
        "each query scans 1.6 MiB, billed as 10 MiB; 3,600 queries an hour: up to 35.2 GiB; "
        "Ctrl-C ends it"
    )
    assert "; 720 queries an hour: up to 7 GiB;" in said(0, "-f", "--interval", "5")


def test_tail_says_that_a_table_without_partitions_is_read_whole(
    events_table: str, emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"test-project.{events_table.replace('events', 'plain')}"
    emulator_client.create_table(bigquery.Table(name, schema=events_schema()))
    monkeypatch.setenv("EVENTS_BQ_TABLE", "plain")
    monkeypatch.setattr(tail, "emulator_host", lambda: None)
    emit("a.b", {}, source="s", bq_client=emulator_client)
    result = run("tail")
    assert result.stderr.startswith(
        f"{name} is not partitioned by ingestion time: each query scans all of it\n"
    )
    assert shown(result) == ["a.b"]


@pytest.mark.usefixtures("events_table")
def test_tail_speaks_of_no_bill_on_an_emulator(
    emulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("tail").stderr == f"asking the emulator at {emulator}\nno such events\n"
    monkeypatch.setattr(time, "sleep", interrupt)
    assert run("tail", "-f").stderr == f"asking the emulator at {emulator}; Ctrl-C ends it\n"


@pytest.mark.usefixtures("events_table")
def test_tail_lets_no_event_move_the_cursor(emulator_client: bigquery.Client) -> None:
    emit("a.\x1b[2J", {"x": "\x9b31m \x07"}, source="[red]s\n", bq_client=emulator_client)
    output = run("tail", "--show-data").stdout
    assert r"a.\x1b[2J  [red]s\n" in output
    assert r'{"x": "\x9b31m \u0007"}' in output


@pytest.mark.usefixtures("events_table")
def test_tail_folds_a_long_payload_to_the_width_of_a_terminal(
    emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit("a.b", {"x": "y" * 500}, source="s" * 50, bq_client=emulator_client)
    emit("a.c", {}, source="s", bq_client=emulator_client)
    assert len(run("tail", "--show-data").stdout.splitlines()[1]) == 513  # for grep: whole
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "70")
    first, data, second, _ = run("tail", "--show-data").stdout.splitlines()
    plain = re.sub(r"\x1b\[[\d;]*m", "", data)
    assert plain == '    {"x": "' + "y" * 58 + "…"
    assert plain != data  # it is in colour
    assert "s" * 50 in first
    assert "a.c" in second


@pytest.mark.usefixtures("events_table")
def test_tail_highlights_only_what_a_terminal_shows_because_that_takes_long(
    emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []

    class Highlighter(JSONHighlighter):
        def highlight(self, text: Text) -> None:
            lengths.append(len(text))

    monkeypatch.setattr(tail, "JSONHighlighter", Highlighter)
    emit("a.b", {"x": "y" * 10_000}, source="s", bq_client=emulator_client)
    run("tail", "--show-data")
    assert lengths == []
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "70")
    run("tail", "--show-data")
    assert lengths == [4 * 70]


@pytest.mark.usefixtures("events_table")
def test_tail_lets_a_star_stand_for_line_breaks_too(emulator_client: bigquery.Client) -> None:
    emit("a\nb.c", {}, source="s", bq_client=emulator_client)
    for pattern in ("*", "**", "*.c", "a*c"):
        assert shown(run("tail", "--type", pattern)) == [r"a\nb.c"]


def test_tail_shows_what_is_no_text(
    events_table: str, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    query(
        f"CREATE TABLE `{events_table}_of_others` (event_id STRING, event_type BYTES, "
        "source INT64, schema_ref STRING, created_at STRING, correlation_id BOOL, "
        "subject_id INT64, payload BYTES)"
    )
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events_of_others")
    query(
        f"INSERT INTO `{events_table}_of_others` "
        f"SELECT '1', b'a.b', 7, NULL, '{datetime.now(UTC).isoformat()}', TRUE, 8, b'{{}}'"
    )
    event, data = run("tail", "--show-data").stdout.splitlines()
    assert event[25:] == "b'a.b'  7  True"
    assert data == """    subject 8  "b'{}'\""""
    assert json.loads(run("tail", "--json").stdout)["event_type"] == "b'a.b'"
