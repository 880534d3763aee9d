"""``lorc-eventlog emulator``: a BigQuery on this machine, for whoever has no account."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from command_line import program, run, steps
from lorc_eventlog.cli import emulator as command

VARIABLES = (
    "BIGQUERY_EMULATOR_HOST",
    "BIGQUERY_STORAGE_EMULATOR_HOST",
    "EVENTS_BQ_DATASET",
    "EVENTS_BQ_TABLE",
)


def exported(printed: str) -> dict[str, str]:
    """What a shell has that was given the lines."""
    return dict(line.removeprefix("export ").split("=") for line in printed.splitlines())


@pytest.mark.process
@pytest.mark.skipif(find_spec("bqemulator") is None, reason="needs bqemulator")
def test_it_has_the_table_and_prints_what_to_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    with program("emulator", "--port", "0", "--grpc-port", "0") as running:
        assert running.stdout is not None
        assert running.stderr is not None
        lines = "".join(running.stdout.readline() for _ in VARIABLES)
        found = exported(lines)
        assert tuple(found) == VARIABLES
        for name, value in found.items():
            monkeypatch.setenv(name, value)
        checked = run("check", "--write")
        running.send_signal(signal.SIGINT)
        said = running.stderr.read()

    assert running.returncode == 0
    assert checked.exit_code == 0
    assert steps(checked)["table"] == "✓ test-project.demo.events"
    url = found["BIGQUERY_EMULATOR_HOST"]
    assert said.splitlines() == [
        "starting the emulator …",
        f"✓ a BigQuery runs at {url}, with the table test-project.demo.events in it",
        "Paste this where your program runs. Ctrl-C here stops it, and its data is gone then:",
    ]


class Stub:
    """In the place of bqemulator: the emulator that runs for all tests."""

    grpc_endpoint = "127.0.0.1:1"

    def __init__(self, url: str, *, ends: bool = False) -> None:
        self.rest_url = url
        self.events: list[str] = []
        self._ends = ends

    async def start(self) -> None:
        self.events.append("started")
        if self._ends:
            raise KeyboardInterrupt

    async def stop(self) -> None:
        self.events.append("stopped")


@pytest.fixture
def stub(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Stub:
    made = Stub(emulator)
    monkeypatch.setattr(command, "make_server", lambda *_: made)
    for name in VARIABLES:  # the command sets them
        monkeypatch.setenv(name, "")
    return made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    create = command.create_table

    def create_and_signal() -> str:
        os.kill(os.getpid(), number)
        return create()

    monkeypatch.setattr(command, "create_table", create_and_signal)
    monkeypatch.setenv("EVENTS_BQ_DATASET", f"test_{os.urandom(4).hex()}")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "mine")
    result = run("emulator", "--port", "0", "--grpc-port", "0")

    assert result.exit_code == 0
    assert exported(result.stdout)["EVENTS_BQ_TABLE"] == "mine"
    assert f"a BigQuery runs at {stub.rest_url}, with the table test-project.test_" in result.stderr
    assert stub.events == ["started", "stopped"]


def test_for_a_program_it_ends_with_standard_input_and_only_says_where_it_is(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with open(reading, encoding="utf-8") as ended:  # noqa: PTH123  a descriptor
        monkeypatch.setattr(sys, "stdin", ended)
        asyncio.run(command.run(0, 0, empty=True, until_stdin_ends=True))

    printed = capsys.readouterr()
    assert exported(printed.out) == {VARIABLES[0]: stub.rest_url, VARIABLES[1]: stub.grpc_endpoint}
    assert printed.err == ""


def test_empty_is_said(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(what: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert what == f"a BigQuery runs at {stub.rest_url}, with nothing in it"

    monkeypatch.setattr(command, "explain", end)
    assert run("emulator", "--port", "0", "--grpc-port", "0", "--empty").exit_code == 0


def test_ctrl_c_while_it_starts_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub("", ends=True)
    monkeypatch.setattr(command, "make_server", lambda *_: stub)
    result = run("emulator", "--port", "0", "--grpc-port", "0", "--until-stdin-ends")
    assert (result.exit_code, result.output) == (0, "")
    assert stub.events == ["started", "stopped"]


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_that_is_taken_is_one_line(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run("emulator", "--port", "0", "--grpc-port", "0", option, str(port))
    assert result.exit_code == 1
    assert result.stderr == (
        f"✗ port {port} is taken: Address already in use\n"
        f"  → stop what uses it (another emulator?), or choose another port with {option}\n"
    )


def test_a_port_that_is_not_ours_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", cannot)
    result = run("emulator", "--port", "80")
    assert result.exit_code == 1
    assert result.stderr.startswith("✗ port 80 cannot be used: Permission denied\n  → ")


def test_without_the_extra_it_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb_extensions", None)
    result = run("emulator", "--port", "0", "--grpc-port", "0")
    assert result.exit_code == 1
    start, what, to_do = result.stderr.splitlines()
    assert start == "starting the emulator …"
    assert what.startswith("✗ the emulator is not installed: ")
    assert to_do == "  → pip install 'lorc_eventlog[emulator]'"


def test_the_emulator_is_told_to_serve_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first test shows; where bqemulator is not there, this is all that can be shown."""
    imported: list[str] = []

    def module(name: str, **names: Any) -> None:
        made = ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)

    module("duckdb_extensions", import_extension=imported.append)
    module("bqemulator")
    module(
        "bqemulator.config",
        LogLevel=SimpleNamespace(CRITICAL="critical"),
        Settings=lambda **settings: settings,
    )
    module("bqemulator.server", EmulatorServer=lambda settings: settings)
    module("structlog", configure=lambda **_: None, make_filtering_bound_logger=lambda _: None)
    settings: Any = command.make_server(9050, 9060)
    assert imported == ["spatial"]
    assert settings["rest_host"] == settings["grpc_host"] == "127.0.0.1"
