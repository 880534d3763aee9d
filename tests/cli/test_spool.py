"""``lorc-eventlog spool``: what waits on disk, and its delivery."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import Query
from command_line import SECRET, left_by_a_dead_process, run
from harness import environment
from lorc_eventlog.cli import drain
from lorc_eventlog.spool.format import encode_header
from scripted_bigquery import (
    ScriptedBigQuery,
    delay,
    status,
)


@contextlib.contextmanager
def living_process(directory: Path) -> Iterator[None]:
    """A process that goes on, with one event in a BigQuery that does not answer."""
    code = f"""if True:
        from lorc_eventlog import EventWriter
        writer = EventWriter(spool_dir={str(directory)!r}, close_timeout=0)
        writer.emit("a.b", {{}}, source="s")
        print(flush=True)
        input()
    """
    env = environment(BIGQUERY_EMULATOR_HOST="http://127.0.0.1:9")
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate(b"\n")


@pytest.fixture
def spool_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "spool"
    directory.mkdir()
    return directory


@pytest.mark.usefixtures("events_table")
def test_spool_shows_who_cares_for_the_events(spool_dir: Path) -> None:
    with living_process(spool_dir):
        left_by_a_dead_process(spool_dir, 3)
        result = run("spool", str(spool_dir))
        as_json = run("spool", str(spool_dir), "--json")
    alive, orphaned = result.stdout.splitlines()[1:3]
    assert re.fullmatch(r"\d+-(\d+)-\w+\.events +\1 +alive +1 +\d+ bytes +[\d-]+ [\d:]+ *", alive)
    assert re.fullmatch(r"\d+-(\d+)-\w+\.events +\1 +orphaned +3 +.+", orphaned)
    assert result.stdout.endswith(
        f"- 4 events wait in {spool_dir}, 3 of them of dead processes\n"
        f"  → the next process with this spool_dir delivers them, or --drain\n"
    )
    assert SECRET not in result.output
    assert result.exit_code == 0

    answer = json.loads(as_json.stdout)
    assert answer["events"] == 4
    assert [file["state"] for file in answer["files"]] == ["alive", "orphaned"]
    assert [*answer["files"][0]] == [
        "file", "owner_pid", "state", "events", "bytes", "oldest", "table", "trouble",
    ]  # fmt: skip


@pytest.mark.usefixtures("scripted")
def test_events_of_another_table_are_shown_and_not_drained(
    spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by_a_dead_process(spool_dir, 3)
    monkeypatch.setenv("EVENTS_BQ_TABLE", "other")
    left_by_a_dead_process(spool_dir, 2)
    result = run("spool", str(spool_dir), "--drain")
    assert "- 3 events of dead processes belong to the table dataset.events\n" in result.stdout
    assert result.stdout.endswith("✓ 2 events delivered, 0 rejected, 0 left\n")
    assert result.exit_code == 0
    [file] = json.loads(run("spool", str(spool_dir), "--json").stdout)["files"]
    assert (file["table"], file["state"], file["events"]) == ("dataset.events", "orphaned", 3)
    monkeypatch.delenv("EVENTS_BQ_TABLE")
    assert "belong to the table" not in run("spool", str(spool_dir)).stdout


def test_a_line_break_in_a_file_name_or_a_table_is_escaped(
    spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "dataset")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    name = "1-2-a\n\x1b[31mspoofed.events"
    (spool_dir / name).write_bytes(encode_header("other\nspoofed") + b"garbage\n")
    result = run("spool", str(spool_dir))
    assert "\x1b" not in result.output
    assert not any(text.startswith("spoofed") for text in result.output.splitlines())


def test_an_empty_spool_is_fine(spool_dir: Path) -> None:
    result = run("spool", str(spool_dir))
    assert result.stdout == f"✓ 0 events wait in {spool_dir}\n"
    assert result.exit_code == 0


def test_a_damaged_file_is_wrong(spool_dir: Path) -> None:
    (spool_dir / "1-2-3.events.damaged").write_bytes(b"???")
    result = run("spool", str(spool_dir))
    assert re.search(
        r"^1-2-3\.events\.damaged +2 +damaged +0 +3 bytes +- *$", result.stdout, re.MULTILINE
    )
    assert result.stderr == "✗ 1-2-3.events.damaged: 3 bytes of it are damaged\n"
    assert result.exit_code == 1


@pytest.mark.usefixtures("scripted")
def test_damage_is_seen_before_anyone_delivers_the_rest(spool_dir: Path) -> None:
    left_by_a_dead_process(spool_dir, 3)
    [path] = spool_dir.iterdir()
    path.write_bytes(path.read_bytes() + b"garbage\n")
    result = run("spool", str(spool_dir))
    assert re.search(r"\.events +\d+ +orphaned +3 ", result.stdout)
    assert result.stderr == f"✗ {path.name}: 7 bytes of it are damaged\n"
    assert result.exit_code == 1
    [file] = json.loads(run("spool", str(spool_dir), "--json").stdout)["files"]
    assert (file["state"], file["trouble"]) == ("orphaned", "7 bytes of it are damaged")


@pytest.mark.usefixtures("scripted")
def test_what_is_no_file_is_named_and_the_rest_is_shown_and_drained(spool_dir: Path) -> None:
    left_by_a_dead_process(spool_dir, 3)
    (spool_dir / "sub.events").mkdir()
    result = run("spool", str(spool_dir))
    assert result.stderr == "✗ sub.events: it cannot be read: Not a regular file\n"
    assert "- 3 events wait in" in result.stdout
    assert result.exit_code == 1
    result = run("spool", str(spool_dir), "--drain")
    assert "✗ sub.events: it cannot be read: Not a regular file\n" in result.stderr
    assert result.stdout.endswith("✓ 3 events delivered, 0 rejected, 0 left\n")
    assert result.exit_code == 1


def test_a_spool_that_cannot_be_read_is_wrong(
    spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the refusal is played."""

    def refuse(directory: Path) -> None:
        raise PermissionError(13, "Permission denied", str(directory))

    monkeypatch.setattr("lorc_eventlog.spool.survey", refuse)
    result = run("spool", str(spool_dir))
    assert result.stderr == f"✗ {spool_dir} cannot be read: Permission denied\n"
    assert result.exit_code == 1


@pytest.mark.usefixtures("events_table")
def test_drain_delivers_what_dead_processes_left(query: Query, spool_dir: Path) -> None:
    with living_process(spool_dir):
        left_by_a_dead_process(spool_dir, 3)
        result = run("spool", str(spool_dir), "--drain")
    assert query("SELECT COUNT(*) AS number FROM events") == [{"number": 3}]
    assert "alive" in result.stdout
    assert result.stdout.endswith("✓ 3 events delivered, 0 rejected, 0 left\n")
    assert SECRET not in result.output
    assert result.exit_code == 0


def test_drain_shows_how_far_it_is(
    scripted: ScriptedBigQuery, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by_a_dead_process(spool_dir, 2000)
    scripted.script(*[delay(seconds) for seconds in (0.3, 0.6, 0.9, 1.2)])
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run("spool", str(spool_dir), "--drain")
    assert "delivering" in result.stderr
    assert re.search(r"(25|50|75)%", result.stderr)
    assert "2,000 events delivered" in result.stdout


@pytest.mark.usefixtures("scripted")
def test_drain_speaks_json_to_programs(spool_dir: Path) -> None:
    left_by_a_dead_process(spool_dir, 3)
    result = run("spool", str(spool_dir), "--drain", "--json")
    expected = {"delivered": 3, "rejected": 0, "left": 0, "events": 0, "files": []}
    assert json.loads(result.stdout) == expected


def test_drain_tells_what_bigquery_refuses(scripted: ScriptedBigQuery, spool_dir: Path) -> None:
    left_by_a_dead_process(spool_dir, 3)
    scripted.refuse_row(lambda row: ":1}" in row["payload"], message=f"no {SECRET}")
    result = run("spool", str(spool_dir), "--drain")
    assert re.search(r"✗ event [\w-]{36} \(a\.b\): invalid at ", result.stderr)
    assert result.stdout == "✗ 2 events delivered, 1 rejected, 0 left\n"
    assert SECRET not in result.output
    assert result.exit_code == 1


def test_drain_gives_up_after_a_while_and_loses_nothing(
    scripted: ScriptedBigQuery, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by_a_dead_process(spool_dir, 3)
    monkeypatch.setattr(drain, "PATIENCE", 2.0)
    scripted.always(status(403))
    result = run("spool", str(spool_dir), "--drain")
    assert "✗ BigQuery takes no events: 403 accessDenied: " in result.stderr
    assert result.stdout.endswith("✗ 0 events delivered, 0 rejected, 3 left\n")
    assert result.exit_code == 1
    scripted.healthy()
    scripted.wait_for_rows(3)  # it tries on until the process ends


def test_drain_ends_when_it_has_given_up(scripted: ScriptedBigQuery, spool_dir: Path) -> None:
    """Delivery waits for ten seconds at the end of its process, unless its time-out is 0."""
    left_by_a_dead_process(spool_dir, 3)
    scripted.always(status(403))
    code = """if True:
        import sys
        from lorc_eventlog.cli import app as cli
        from lorc_eventlog.cli import drain
        options = drain.WriterOptions
        def made(**given):
            assert given["close_timeout"] == 0
            return options(**given)
        drain.WriterOptions = made
        drain.PATIENCE = 2.0
        cli.commands(["spool", sys.argv[1], "--drain"])
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, str(spool_dir)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as ended:
        assert ended.stdout is not None
        while " 3 left" not in ended.stdout.readline():
            pass
        assert ended.wait(timeout=60) == 1
