"""``lorc-eventlog spool --drain --transport grpc``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc import StatusCode

from command_line import SECRET, left_by_a_dead_process, run
from lorc_eventlog import EventWriter
from lorc_eventlog.cli import drain
from lorc_eventlog.shipping import requirements
from scripted_storage import ScriptedStorage


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedStorage]:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "dataset")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    with ScriptedStorage() as scripted:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", scripted.address)
        yield scripted


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def write(path: Path, numbers: range, **payload: str) -> None:
    """Write events as a process that has ended, for a shipper."""
    writer = EventWriter(spool_dir=path, spool_only=True)
    for number in numbers:
        writer.emit("test.happened", {"number": number, **payload}, source="tests")
    writer.close()


def test_what_dead_processes_left_of_either_kind_goes_to_the_default_stream(
    server: ScriptedStorage, path: Path
) -> None:
    write(path, range(3))
    left_by_a_dead_process(path, 2)
    result = run("spool", str(path), "--drain", "--transport", "grpc")
    assert result.stdout.endswith("✓ 5 events delivered, 0 rejected, 0 left\n"), result.output
    assert {name.rpartition("/")[2] for name in server.streams} == {"_default"}
    assert len(server.rows()) == 5
    assert result.exit_code == 0


def test_what_waits_for_a_shipper_is_stored_exactly_once(
    server: ScriptedStorage, path: Path
) -> None:
    options = ("spool", str(path), "--drain", "--transport", "grpc", "--exactly-once")
    write(path, range(3))
    assert run(*options).exit_code == 0
    write(path, range(3, 5))
    assert run(*options).stdout.endswith("✓ 2 events delivered, 0 rejected, 0 left\n")
    assert server.numbers() == [0, 1, 2, 3, 4]
    assert server.calls["CreateWriteStream"] == 1


def test_what_is_refused_is_told_without_what_is_private(
    server: ScriptedStorage, path: Path
) -> None:
    left_by_a_dead_process(path, 1, poison=SECRET)
    result = run("spool", str(path), "--drain", "--transport", "grpc")
    assert "(a.b): BigQuery refuses the row: Field payload: invalid JSON value." in result.stderr
    assert SECRET not in result.output
    assert result.exit_code == 1
    assert server.rows() == []


def test_it_gives_up_after_a_while_and_loses_nothing(
    server: ScriptedStorage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "PATIENCE", 0.3)
    server.deny = (StatusCode.UNAVAILABLE, "The service is currently unavailable.")
    write(path, range(2))
    result = run("spool", str(path), "--drain", "--transport", "grpc")
    assert "✗ BigQuery takes no events: UNAVAILABLE" in result.stderr
    assert result.stdout.endswith("✗ 0 events delivered, 0 rejected, 2 left\n")
    server.deny = None


def test_what_exactly_once_needs_is_told(
    server: ScriptedStorage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del server  # it sets the variables
    write(path, range(1))
    options = ("spool", str(path), "--drain", "--transport", "grpc", "--exactly-once")
    monkeypatch.setattr(requirements, "file_system", lambda _: "nfs")
    result = run(*options)
    assert f"✗ {path} is on a network file system (nfs)" in result.stderr
    assert "→ name a directory on a disk of this machine" in result.stderr
    assert "needs --transport grpc" in run("spool", str(path), "--exactly-once").stderr
