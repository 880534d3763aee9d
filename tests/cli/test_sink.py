"""The commands where EVENTS_BQ_SINK says that events do not go to BigQuery."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from command_line import run


@pytest.mark.parametrize("name", ["console", "off"])
def test_draining_a_spool_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("EVENTS_BQ_SINK", name)
    result = run("spool", str(tmp_path), "--drain")
    assert result.exit_code == 1
    assert f"EVENTS_BQ_SINK is {name}: unset it, because --drain needs BigQuery" in result.stderr
    assert run("spool", str(tmp_path)).exit_code == 0


@pytest.mark.usefixtures("events_table")
@pytest.mark.parametrize("name", ["console", "off"])
def test_check_says_where_events_go_instead(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("EVENTS_BQ_SINK", name)
    result = run("check")
    assert result.exit_code == 0
    first, second, *_ = result.stdout.splitlines()
    assert f"EVENTS_BQ_SINK is {name}: programs with this variable write nothing" in first
    assert "unset it where events are to reach the table" in second
    [finding] = [
        each
        for each in json.loads(run("check", "--json").stdout)["findings"]
        if each["step"] == "sink"
    ]
    assert finding["ok"] is None


@pytest.mark.usefixtures("events_table")
def test_check_refuses_what_is_no_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTS_BQ_SINK", "stdout")
    result = run("check")
    assert result.exit_code == 1
    assert "EVENTS_BQ_SINK must be bigquery, console or off, not 'stdout'" in result.stdout


def test_emit_prints_the_event_or_discards_it(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("emit", "order.placed", "--source", "shop", "--payload", "-")
    lines = '{"number": 7}\nno object\n{"number": 8}\n'
    monkeypatch.setenv("EVENTS_BQ_SINK", "console")
    result = run(*command, stdin=lines)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.findall(r"order\.placed shop - (.+)", result.stderr) == [
        '{"number":7}',
        '{"number":8}',
    ]
    assert "EVENTS_BQ_SINK is console: nothing is written to BigQuery" in result.stderr

    monkeypatch.setenv("EVENTS_BQ_SINK", "off")
    result = run(*command, stdin='{"number": 7}')
    assert (result.exit_code, result.stdout) == (0, "")
    assert "number" not in result.stderr
