"""``lorc-eventlog emit``: which events are in BigQuery when it ends, and which lines are not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

import pytest
from click.testing import Result, _NamedTextIOWrapper

from clients import Query
from command_line import SECRET, SUBJECT, program, run
from lorc_eventlog.bigquery.insert_all import REQUEST_TIMEOUT
from lorc_eventlog.cli import emit_lines, query, waiting
from lorc_eventlog.delivery import pace, suspicion
from lorc_eventlog.lifecycle import exit as process_exit
from scripted_bigquery import (
    Fault,
    ScriptedBigQuery,
    delay,
    hang,
    reset,
    reset_after_storing,
    status,
)

EMIT_LINES = ("emit", "a.b", "--source", "s", "--payload", "-")
waiting_in_reality = waiting.SILENCE
LINES = '{"a": 1}\n{"a": 2}\n{"a": 3}\n'


def emit_lines_of(stdin: str | bytes) -> Result:
    return run(*EMIT_LINES, stdin=stdin)


@pytest.mark.usefixtures("events_table")
def test_emit_writes_an_event_and_prints_its_id(query: Query) -> None:
    result = run(
        "emit", "backup.finished", "--source", "cron", "--payload", '{"files": 1204, "é": [1e400]}',
        "--schema-ref", "backup.v1", "--correlation-id", "trace-1", "--subject-id", SUBJECT,
    )  # fmt: skip
    [event] = query("SELECT * EXCEPT (created_at) FROM events")
    assert event == {
        "event_id": result.stdout.strip(),
        "event_type": "backup.finished",
        "source": "cron",
        "schema_ref": "backup.v1",
        "correlation_id": "trace-1",
        "subject_id": SUBJECT,
        "payload": {"files": 1204, "é": [None]},
    }
    assert (result.stderr, result.exit_code) == ("", 0)


@pytest.mark.usefixtures("events_table")
@pytest.mark.parametrize(
    ("stdin", "payloads"),
    [
        ('{"a": 1}', [{"a": 1}]),
        ('\n{\n  "a": [\n    1\n  ]\n}\n', [{"a": [1]}]),
        ('\n{"a": 1}\n\n{"a": 2}\n{"a": 3}', [{"a": 1}, {"a": 2}, {"a": 3}]),
        ("", []),
        (" \n\n", []),
    ],
    ids=["one object", "one object on many lines", "one object on each line", "empty", "blank"],
)
def test_emit_reads_standard_input(
    query: Query, stdin: str, payloads: list[dict[str, Any]]
) -> None:
    result = emit_lines_of(stdin)
    events = query("SELECT event_id, payload FROM events ORDER BY created_at")
    assert [event["payload"] for event in events] == payloads
    assert result.stdout.split() == [event["event_id"] for event in events]
    assert (result.stderr, result.exit_code) == ("", 0)


@pytest.mark.usefixtures("events_table")
def test_emit_writes_more_lines_than_it_keeps_on_their_way(
    query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emit_lines, "BATCH_ROWS", 10)
    stdin = "".join(f'{{"i": {number}}}\n' for number in range(36))
    result = emit_lines_of(stdin)
    events = query("SELECT event_id FROM events ORDER BY created_at")
    assert result.stdout.split() == [event["event_id"] for event in events]
    assert len(events) == 36


@pytest.mark.usefixtures("events_table")
@pytest.mark.parametrize("line", [f'{{"{SECRET}": ', f'["{SECRET}"]', SECRET, "[" * 100_000])
def test_emit_tells_the_line_that_is_no_object_and_sends_the_others(
    query: Query, line: str
) -> None:
    stdin = f'{{"a": 1}}\n{line}\n{{"a": 3}}'
    result = emit_lines_of(stdin)
    assert result.stderr == "✗ line 2: the payload is no JSON object\n"
    assert len(result.stdout.split()) == len(query("SELECT 1 FROM events")) == 2
    assert result.exit_code == 1


@pytest.mark.usefixtures("events_table")
@pytest.mark.parametrize("stdin", [SECRET, f'{SECRET}\n{{"a": 1}}', "\n{\n", b"\xff\xfe"])
def test_emit_tells_that_standard_input_holds_nothing_of_use(stdin: str | bytes) -> None:
    result = emit_lines_of(stdin)
    assert result.stderr == "✗ standard input: the payload is no JSON object\n"
    assert (result.stdout, result.exit_code) == ("", 1)


@pytest.mark.parametrize(
    ("event_type", "payload", "message"),
    [
        ("a.b", f"{{{SECRET}}}", "the payload is no JSON object"),
        ("a.b", f'"{SECRET}"', "the payload is no JSON object"),
        ("", "{}", "event_type must be a non-empty string, not an empty string"),
        ("", "-", "event_type must be a non-empty string, not an empty string"),
        ("a.b", '{"a":' * 501 + "1" + "}" * 501, "payload is nested too deeply: BigQuery takes"),
    ],
)
def test_emit_refuses_an_event_that_is_none(event_type: str, payload: str, message: str) -> None:
    result = run("emit", event_type, "--source", "s", "--payload", payload)
    assert f"Error: {message}" in result.stderr
    assert SECRET not in result.output
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--payload", '{"name":', f"{SECRET}}}"], "TYPE is the only argument; does a payload"),
        (["--payload", '{"name":', f"--{SECRET}}}"], "There is no such option."),
        (["--payload", "{}", "--subjct-id", SECRET], "There is no such option. Did you mean"),
    ],
)
def test_emit_quotes_nothing_of_a_payload_that_lacks_its_quotes(
    arguments: list[str], message: str
) -> None:
    result = run("emit", "a.b", "--source", "s", *arguments)
    assert f"Error: {message}" in result.stderr
    assert SECRET not in result.output
    assert result.exit_code == 2


@pytest.mark.usefixtures("scripted")
def test_emit_says_that_there_is_no_standard_input() -> None:
    """As Python finds it after ``<&-``."""
    shell = ["sh", "-c", 'exec "$@" <&-', "sh"]
    command = [*shell, sys.executable, "-m", "lorc_eventlog", *EMIT_LINES]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.stdout, ended.stderr) == ("", "✗ there is no standard input\n")
    assert ended.returncode == 1


@pytest.mark.usefixtures("scripted")
def test_emit_puts_lines_together_that_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit_lines, "READ_BYTES", 5)
    lines = "".join(f'{{"i": {"1" * number}}}\n\n' for number in range(1, 20))
    result = emit_lines_of(f"{lines}{SECRET}")
    assert len(result.stdout.split()) == 19
    assert result.stderr == "✗ line 39: the payload is no JSON object\n"


def test_emit_sends_a_line_when_it_comes_and_says_so(scripted: ScriptedBigQuery) -> None:
    with program(*EMIT_LINES, stdin=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for number in range(3):
            running.stdin.write(f'{{"number": {number}}}\n')
            running.stdin.flush()
            event_id = running.stdout.readline().strip()
            assert scripted.rows[number]["event_id"] == event_id
        printed, said = running.communicate(timeout=30)
        assert printed == ""
        assert re.sub("waiting for .*\n", "", said) == ""
        assert running.returncode == 0


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_emit_tells_what_bigquery_refuses_and_by_which_line(
    scripted: ScriptedBigQuery, bad: int
) -> None:
    scripted.refuse_row(lambda row: f'"a":{bad}' in row["payload"], message=f"no {bad} {SECRET}")
    result = emit_lines_of(LINES.replace("}", f', "{SECRET}": 0}}'))
    assert result.stderr == f"✗ line {bad}: BigQuery refuses it: invalid at payload: no … …\n"
    assert result.stdout.split() == [row["event_id"] for row in scripted.rows]
    assert len(scripted.rows) == 2
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("code", "script"),
    # The fifth request is then that of the line after it.
    [(400, []), (413, [*[delay(0.0)] * 4, status(503)]), (500, [])],
)
def test_emit_finds_the_line_that_breaks_its_request(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch, code: int, script: list[Fault]
) -> None:
    monkeypatch.setattr(pace, "FIRST_PAUSE", 0.01)
    for name in ("PATIENCE_WITH_A_ROW", "PATIENCE_IN_SILENCE"):
        monkeypatch.setattr(suspicion, name, 0.01)
    scripted.refuse_request(lambda row: '"a":2' in row["payload"], code)
    scripted.script(*script)
    result = emit_lines_of(LINES)
    assert re.fullmatch(rf"✗ line 2: BigQuery refuses it: {code}[^\n]+\n", result.stderr)
    stored = {json.loads(row["payload"])["a"]: row["event_id"] for row in scripted.rows}
    assert result.stdout.split() == [stored[1], stored[3]]
    assert result.exit_code == 1


@pytest.mark.parametrize("fault", [status(429), status(503), reset(), reset_after_storing()])
def test_emit_tries_again_what_may_pass_and_keeps_the_order(
    scripted: ScriptedBigQuery, fault: Fault
) -> None:
    scripted.script(fault)
    scripted.stop_row_once(lambda row: '"a":1' in row["payload"])
    result = emit_lines_of(LINES)
    ids = {json.loads(row["payload"])["a"]: row["event_id"] for row in scripted.rows}
    assert result.stdout.split() == [ids[number] for number in (1, 2, 3)]
    assert (result.stderr, result.exit_code) == ("", 0)


@pytest.mark.parametrize(
    ("code", "reason"),
    [(401, "InvalidOperation: "), (403, "403 accessDenied: "), (404, "404 notFound: ")],
)
def test_emit_gives_up_at_once_what_time_does_not_mend(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    monkeypatch.setattr(emit_lines, "BATCH_ROWS", 2)
    scripted.script(delay(0.0))
    scripted.always(status(code))
    result = emit_lines_of('{"a": 1}\n{"a": 2}\n\n{"a": 4}\n{"a": 5}\n{"a": 6}\n')
    said = f"✗ line 4 to 5 are not in BigQuery, no line after 5 is: {reason}"
    assert (result.stderr[: len(said)], result.stderr.count("\n")) == (said, 2)
    assert result.stdout.split() == [row["event_id"] for row in scripted.rows]
    assert (len(scripted.rows), len(scripted.requests), result.exit_code) == (2, 2, 1)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (status(429), "is not"),
        (status(503), "may or may not be"),
        (reset(), "may or may not be"),
        (hang(), "may or may not be"),
    ],
)
def test_emit_gives_up_after_a_while_and_sends_nothing_afterwards(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch, fault: Fault, what: str
) -> None:
    monkeypatch.setattr(emit_lines, "PATIENCE", 0.5)
    writers = set(process_exit._participants)
    scripted.always(fault)
    started = time.monotonic()
    result = emit_lines_of('{"a": 1}')
    assert time.monotonic() - started < REQUEST_TIMEOUT / 2
    said = f"✗ line 1 {what} in BigQuery, no line after 1 is: "
    assert (result.stderr[: len(said)], result.stderr.count("\n")) == (said, 2)
    assert (result.stdout, result.exit_code) == ("", 1)
    assert set(process_exit._participants) <= writers  # one would go on in the background


def test_emit_names_each_line_that_bigquery_puts_off(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emit_lines, "PATIENCE", 2.0)
    scripted.refuse_row(lambda row: '"a":2' not in row["payload"], reason="backendError")
    result = emit_lines_of(LINES)
    assert result.stderr == (
        "✗ line 1, line 3 are not in BigQuery, no line after 3 is: BigQuery puts them off\n"
        f"  → {query.LOOK_AT_EMULATOR}\n"
    )
    assert result.stdout.split() == [row["event_id"] for row in scripted.rows]


@pytest.mark.parametrize(
    ("arguments", "where"),
    [(["--payload", "{}"], "the event"), (["--payload", "-"], "standard input")],
)
def test_emit_says_that_the_only_event_is_not_delivered(
    scripted: ScriptedBigQuery, arguments: list[str], where: str
) -> None:
    scripted.always(status(403))
    result = run("emit", "a.b", "--source", "s", *arguments, stdin="{\n}")
    assert result.stderr.startswith(f"✗ {where} is not in BigQuery: 403 accessDenied: ")
    assert (result.stdout, result.exit_code) == ("", 1)


# While it waits


def test_emit_says_within_three_seconds_that_it_waits_and_for_what(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2 * waiting_in_reality < 3
    monkeypatch.setattr(waiting, "SILENCE", 0.0)
    monkeypatch.setattr(emit_lines, "PATIENCE", 1.0)
    scripted.always(hang())
    credentials, request, *_ = run("emit", "a.b", "--source", "s", "--payload", "{}").stderr.split(
        "\n"
    )
    where = f"the emulator at {scripted.url}"
    assert credentials == f"waiting for the credentials for {where}"
    assert request == f"waiting for {where}: no answer yet; giving up after 1 s without progress"


def test_emit_says_why_it_waits(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SILENCE", 0.3)
    monkeypatch.setattr(emit_lines, "PATIENCE", 2.0)
    scripted.always(status(503))
    said = run("emit", "a.b", "--source", "s", "--payload", "{}").stderr
    assert f"waiting for the emulator at {scripted.url}: 503" in said


def test_emit_works_without_threads_for_words(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(waiting, "background_thread", cannot)
        result = run("emit", "a.b", "--source", "s", "--payload", "{}")
    assert (result.exit_code, len(scripted.rows)) == (0, 1)


def test_emit_says_that_it_reads_what_a_person_types(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_NamedTextIOWrapper, "isatty", lambda _: True)
    result = emit_lines_of('{"a": 1}')
    assert "reading JSON from standard input; Ctrl-D ends it" in result.stderr
    assert (result.exit_code, len(scripted.rows)) == (0, 1)
