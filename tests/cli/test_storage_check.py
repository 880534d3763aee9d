"""``lorc-eventlog check --transport grpc``: the way of a shipper over the Storage Write API."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from grpc import StatusCode

from command_line import run, steps
from lorc_eventlog.bigquery import storage_connection
from lorc_eventlog.cli import storage_check
from lorc_eventlog.shipping import requirements
from lorc_eventlog.spool.directory import Directory
from scripted_storage import ScriptedStorage


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedStorage]:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "dataset")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with ScriptedStorage() as scripted:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", scripted.address)
        yield scripted


def test_it_walks_the_whole_way_and_writes_nothing(server: ScriptedStorage) -> None:
    result = run("check", "--transport", "grpc", "--exactly-once")
    assert steps(result) == {
        "variables": "✓ EVENTS_BQ_DATASET=dataset EVENTS_BQ_TABLE=events",
        "partition": "✓ dataset.events is a whole table",
        "credentials": f"✓ none needed for the emulator at {server.address}",
        "project": "✓ test-project, for the emulator",
        "endpoint": f"✓ {server.address} answers",
        "permission": "✓ the account may append rows (bigquery.tables.updateData)",
        "table": "✓ projects/test-project/datasets/dataset/tables/events; "
        "`lorc-eventlog check` looks at its columns",
    }
    assert result.exit_code == 0
    assert server.calls == {"GetWriteStream": 1}


@pytest.mark.parametrize(
    ("code", "words", "step", "found", "to_do"),
    [
        (
            StatusCode.PERMISSION_DENIED,
            "Permission 'TABLES_UPDATE_DATA' denied on resource 'projects/p' (or it may not exist)",
            "permission",
            "✗ PERMISSION_DENIED: Permission 'TABLES_UPDATE_DATA' denied",
            "roles/bigquery.dataEditor",
        ),
        (
            StatusCode.NOT_FOUND,
            "Requested entity was not found.",
            "table",
            "✗ NOT_FOUND: Requested entity was not found.",
            "create-table",
        ),
        (StatusCode.UNAVAILABLE, "overloaded", "permission", "✗ UNAVAILABLE", "try again"),
        (StatusCode.UNIMPLEMENTED, "", "permission", "- not checked: the endpoint", ""),
    ],
)
def test_it_tells_what_keeps_rows_from_being_appended(
    server: ScriptedStorage, code: StatusCode, words: str, step: str, found: str, to_do: str
) -> None:
    server.deny = (code, words)
    shown = steps(run("check", "--transport", "grpc"))[step]
    assert shown.startswith(found)
    assert to_do in shown


def test_an_endpoint_that_is_not_there_is_told_with_the_proxy_that_may_be_missing(
    server: ScriptedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    del server  # it sets the variables
    monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", "127.0.0.1:9")
    result = run("check", "--transport", "grpc")
    found = steps(result)["endpoint"]
    assert found.startswith("✗ UNAVAILABLE: failed to connect to all addresses")
    assert "127.0.0.1:9" in found
    assert "https_proxy" in found
    assert steps(result)["permission"] == "- not checked"
    assert result.exit_code == 1


@pytest.mark.usefixtures("no_credentials")
def test_credentials_and_project_that_are_missing_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BIGQUERY_STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    found = steps(run("check", "--transport", "grpc"))
    assert found["credentials"].startswith("✗ DefaultCredentialsError: ")
    token = AnonymousCredentials()
    monkeypatch.setattr("google.auth.default", lambda **_: (token, None))
    found = steps(run("check", "--transport", "grpc"))
    assert found["project"].endswith("or EVENTS_BQ_DATASET to project.dataset")
    monkeypatch.setattr("google.auth.default", lambda **_: (token, "found"))
    monkeypatch.setattr(storage_check, "REQUEST_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(storage_connection, "HOST", address)
        found = steps(run("check", "--transport", "grpc"))
    assert found["credentials"] == "✓ Google takes them"
    assert found["project"] == "✓ found, from the credentials"
    assert found["endpoint"].startswith(f"✗ {address} does not answer within 0 s")


def test_variables_that_are_missing_end_it(
    server: ScriptedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    del server  # it sets the variables
    monkeypatch.delenv("EVENTS_BQ_TABLE")
    found = steps(run("check", "--transport", "grpc"))
    assert found["variables"].startswith("✗ EVENTS_BQ_TABLE not set")
    assert found["endpoint"] == "- not checked"


def test_a_partition_is_refused_with_exactly_once(
    server: ScriptedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    del server  # it sets the variables
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events$20261124")
    assert steps(run("check", "--transport", "grpc", "--exactly-once"))["partition"] == (
        "✗ exactly once needs a whole table; EVENTS_BQ_TABLE names the partition $20261124 "
        "→ set EVENTS_BQ_TABLE=events, or leave out --exactly-once"
    )
    assert "partition" not in steps(run("check", "--transport", "grpc"))


def test_the_disk_of_the_spool_is_looked_at(
    server: ScriptedStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del server  # it sets the variables
    tmp_path.chmod(0o700)
    arguments = ("check", "--transport", "grpc", "--exactly-once", "--spool-dir")
    found = steps(run(*arguments, str(tmp_path)))["disk"]
    assert found == f"✓ {tmp_path} is on a disk of this machine"
    assert steps(run(*arguments, str(tmp_path / "none")))["disk"].startswith("- not checked: ")
    monkeypatch.setattr(requirements, "file_system", lambda _: "nfs4")
    found = steps(run(*arguments, str(tmp_path)))["disk"]
    assert found.startswith(f"✗ {tmp_path} is on a network file system (nfs4)")


def test_options_that_do_not_go_together_are_refused() -> None:
    assert "needs --transport grpc" in run("check", "--exactly-once").stderr
    assert "goes over REST" in run("check", "--transport", "grpc", "--write").stderr


# The file system of a directory


@pytest.mark.parametrize(
    ("kind", "is_local"),
    [
        *((kind, False) for kind in ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs")),
        *((kind, True) for kind in ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuse.mergerfs")),
        ("", True),
    ],
)
def test_network_file_systems_are_refused_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, *, is_local: bool
) -> None:
    tmp_path.chmod(0o700)
    directory = Directory(tmp_path, access=None, create=False)
    monkeypatch.setattr(requirements, "file_system", lambda _: kind)
    if is_local:
        requirements.check_disk(directory)
    else:
        with pytest.raises(requirements.UnfitError, match="on a network file system") as refused:
            requirements.check_disk(directory)
        assert refused.value.to_do == "name a directory on a disk of this machine"
    directory.close()


def test_the_file_system_is_that_of_the_mount_whatever_else_is_mounted_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = (
        "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "40 21 0:44 / /data rw,relatime shared:9 master:2 - nfs4 server:/data rw\n"
    )
    (tmp_path / "mountinfo").write_text(mounts)
    (tmp_path / "fdinfo").mkdir()
    (tmp_path / "fdinfo" / "5").write_text("pos:\t0\nflags:\t0200000\nmnt_id:\t40\nino:\t2\n")
    (tmp_path / "fdinfo" / "6").write_text("pos:\t0\nmnt_id:\t99\n")
    (tmp_path / "fdinfo" / "7").write_text("pos:\t0\n")
    monkeypatch.setattr(requirements, "PROC", tmp_path)
    assert [requirements.file_system(number) for number in (5, 6, 7, 8)] == ["nfs4", "", "", ""]


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="this is not Linux")
def test_the_file_system_of_a_real_directory_is_known(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    assert requirements.file_system(descriptor) != ""
    os.close(descriptor)
