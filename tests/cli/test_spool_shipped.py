"""``spool``, ``spool --drain`` and ``check --spool-dir`` where applications only write to disk."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from command_line import SECRET, run, steps
from harness import numbers_in
from lorc_eventlog import EventWriter
from lorc_eventlog.cli import drain
from lorc_eventlog.spool import survey
from lorc_eventlog.spool.format import encode_line
from lorc_eventlog.spool.shipped import header_of, ledger_name, lock_name
from scripted_bigquery import ScriptedBigQuery, status

TABLE = "dataset.events"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "dataset")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")


def write(path: Path, numbers: range, *, key: str = "text") -> EventWriter:
    """Write events as a process that goes on; closing the writer is its end."""
    writer = EventWriter(spool_dir=path, spool_only=True)
    for number in numbers:
        writer.emit("test.happened", {"number": number, key: SECRET}, source="tests")
    return writer


@contextmanager
def shipped_by_another(path: Path) -> Iterator[None]:
    """A process with a number of seven has the lock of the shipper."""
    lock = path / lock_name(TABLE)
    lock.touch(mode=0o600)
    lock.write_text("7".ljust(20) + "\n")
    with lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.usefixtures("dataset")
def test_events_that_wait_for_a_shipper_are_shown(path: Path) -> None:
    write(path, range(3)).close()
    living = write(path, range(1))
    (path / ".draft.ship").touch(mode=0o600)
    result = run("spool", str(path))
    assert f"- 4 events wait in {path}, 4 of them for a shipper\n" in result.stdout
    assert f"  → `lorc-eventlog ship {path}` delivers them, or --drain\n" in result.stdout
    assert result.exit_code == 0
    files = json.loads(run("spool", str(path), "--json").stdout)["files"]
    assert [(f["state"], f["events"], f["table"], f["trouble"]) for f in files] == [
        ("orphaned", 3, TABLE, None),
        ("alive", 1, TABLE, None),
    ]
    living.close()


def test_the_survey_tells_what_is_wrong_with_a_segment_for_a_shipper(path: Path) -> None:
    path.mkdir()
    for name, content in {
        "1-1-1-a.ship": encode_line({**header_of(TABLE), "lorc_eventlog_ship": 2}),
        "2-1-1-a.ship": b"no header\n",
        "3-1-1-a.ship.damaged": encode_line(header_of(TABLE)) + b"garbage\n",
    }.items():
        (path / name).write_bytes(content)
    later, headless, damaged = survey(path)
    assert (later.error, later.table) == ("Of a later version", None)
    assert (headless.table, headless.damaged_bytes) == (None, 9)
    assert (damaged.is_set_aside, damaged.is_for_a_shipper, damaged.damaged_bytes) == (
        True,
        True,
        7,
    )


@pytest.mark.usefixtures("dataset")
def test_the_survey_reads_what_another_user_of_the_group_wrote(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = EventWriter(spool_dir=path, spool_only=True, spool_mode="group")
    writer.emit("test.happened", {}, source="tests")
    writer.close()
    module = sys.modules["lorc_eventlog.spool.survey"]
    monkeypatch.setattr(module, "owners_of", lambda _: {12345})
    (report,) = survey(path)
    assert (report.events, report.error) == (1, None)
    path.chmod(0o700)
    (report,) = survey(path)
    assert report.error == f"Belongs to user {os.geteuid()}"


def test_drain_delivers_what_living_and_dead_processes_wrote(
    scripted: ScriptedBigQuery, path: Path
) -> None:
    write(path, range(300)).close()
    living = write(path, range(300, 400))
    result = run("spool", str(path), "--drain")
    assert result.stdout.endswith("✓ 400 events delivered, 0 rejected, 0 left\n")
    assert result.exit_code == 0
    assert numbers_in(scripted) == [*range(400)]
    assert len(list(path.glob("*.ship"))) == 1
    living.close()


def test_drain_delivers_segments_of_both_kinds(scripted: ScriptedBigQuery, path: Path) -> None:
    from command_line import left_by_a_dead_process

    path.mkdir(mode=0o700)
    left_by_a_dead_process(path, 3)
    write(path, range(2)).close()
    result = run("spool", str(path), "--drain")
    assert result.stdout.endswith("✓ 5 events delivered, 0 rejected, 0 left\n")
    assert len(scripted.events()) == 5


def test_drain_counts_dead_letters_and_says_where_they_are(
    scripted: ScriptedBigQuery, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.refuse_row(lambda row: "bad" in row["payload"], message=f"no {SECRET}")
    write(path, range(2)).close()
    write(path, range(2, 3), key="bad").close()
    result = run("spool", str(path), "--drain")
    assert result.stdout.endswith("✗ 2 events delivered, 1 rejected, 0 left\n")
    assert result.exit_code == 1
    assert f"is rejected and kept in {path / 'dead-letters.jsonl'}" in caplog.text
    assert SECRET not in result.output


def test_drain_gives_up_when_bigquery_takes_nothing(
    scripted: ScriptedBigQuery, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "PATIENCE", 0.5)
    scripted.always(status(403))
    write(path, range(3)).close()
    result = run("spool", str(path), "--drain")
    assert "✗ BigQuery takes no events: " in result.stderr
    assert result.stdout.endswith("✗ 0 events delivered, 0 rejected, 3 left\n")
    assert result.exit_code == 1
    scripted.healthy()
    scripted.wait_for_rows(3)  # it tries on until the process ends


@pytest.mark.usefixtures("scripted")
def test_drain_leaves_the_events_to_a_shipper_that_is_there(path: Path) -> None:
    write(path, range(3)).close()
    with shipped_by_another(path):
        result = run("spool", str(path), "--drain")
    assert f"- process 7 ships from {path} into {TABLE} already\n" in result.stderr
    assert result.stdout.endswith("✗ 0 events delivered, 0 rejected, 3 left\n")
    assert result.exit_code == 1


@pytest.mark.usefixtures("scripted")
def test_drain_does_not_ship_over_rest_what_is_shipped_exactly_once(path: Path) -> None:
    write(path, range(3)).close()
    (path / ledger_name(TABLE)).touch(mode=0o600)
    result = run("spool", str(path), "--drain")
    assert f"- {path} is shipped exactly once\n" in result.stderr
    assert "--drain --transport grpc --exactly-once`" in result.stderr.replace("\n    ", " ")
    assert result.stdout.endswith("✗ 0 events delivered, 0 rejected, 3 left\n")


@pytest.mark.usefixtures("scripted")
def test_drain_says_what_to_do_about_a_directory_that_is_not_safe(path: Path) -> None:
    write(path, range(3)).close()
    path.chmod(0o777)
    result = run("spool", str(path), "--drain")
    assert "chmod o-w" in result.stderr
    assert result.exit_code == 1


# check


@pytest.mark.usefixtures("no_credentials", "dataset")
def test_check_says_that_nobody_ships(path: Path) -> None:
    found = steps(run("check", "--spool-dir", str(path)))
    assert found["shipper"] == (
        f"✗ {path} is not there, so that nobody ships from it → run `lorc-eventlog ship {path}`"
    )
    write(path, range(3)).close()
    result = run("check", "--spool-dir", str(path))
    assert steps(result)["shipper"] == (
        f"✗ no process ships from {path} into {TABLE}: 3 events wait → run `lorc-eventlog ship "
        f"{path}`"
    )
    assert result.exit_code == 1
    with shipped_by_another(path):
        found = steps(run("check", "--spool-dir", str(path)))
    assert found["shipper"] == f"✓ process 7 ships from {path}: 3 events wait"
    assert found["variables"].startswith("✓")


@pytest.mark.usefixtures("no_credentials", "dataset")
def test_check_says_why_a_directory_cannot_be_looked_at(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.mkdir()
    path.chmod(0o777)
    assert "chmod o-w" in steps(run("check", "--spool-dir", str(path)))["shipper"]
    path.chmod(0o700)

    def refuse(_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("lorc_eventlog.cli.spool_check.survey", refuse)
    found = steps(run("check", "--spool-dir", str(path)))["shipper"]
    assert found == f"✗ {path} cannot be read: Input/output error"
    monkeypatch.delenv("EVENTS_BQ_TABLE")
    assert steps(run("check", "--spool-dir", str(path)))["shipper"] == "- not checked"
