"""The program: how it starts, what it says when it cannot, and never a traceback."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.cloud import bigquery

from command_line import Gate, program, run, steps
from harness import environment
from lorc_eventlog import __main__ as entry
from lorc_eventlog import emit
from lorc_eventlog.cli.app import commands


def test_the_program_needs_its_extra_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "lorc_eventlog.cli.app")
    monkeypatch.setitem(sys.modules, "click", None)  # as if it were not installed
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == (
        "lorc-eventlog needs its extra `cli`: pip install 'lorc_eventlog[cli]'"
    )


def test_another_module_that_is_missing_is_not_explained_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "lorc_eventlog.cli.app")
    monkeypatch.setitem(sys.modules, "lorc_eventlog.cli.check", None)
    with pytest.raises(ModuleNotFoundError):
        entry.main()


def test_the_package_imports_nothing_of_the_command_line() -> None:
    code = (
        "import sys, lorc_eventlog; print({'click', 'rich', 'lorc_eventlog.cli'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_the_module_is_the_program() -> None:
    with program("--help") as process:
        output, errors = process.communicate()
    assert output.startswith("Usage: lorc-eventlog [OPTIONS] COMMAND")
    assert (errors, process.returncode) == ("", 0)


def test_the_version_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", {"lorc_eventlog": "1.2.3"}.__getitem__)
    assert run("--version").stdout == "lorc-eventlog, version 1.2.3\n"


@pytest.mark.parametrize("command", ["check", "create-table", "emit", "spool", "tail"])
def test_each_command_explains_itself_with_examples(command: str) -> None:
    help_text = run(command, "--help").stdout
    assert f"Examples:\n    lorc-eventlog {command} " in help_text.replace("check\n", "check \n")
    assert run(command, "-h").stdout == help_text


def test_a_command_line_that_is_not_understood_exits_with_2() -> None:
    assert run("chekc").exit_code == 2
    assert run("tail", "--since", "soon").exit_code == 2
    assert run("tail", "--limit", "0").exit_code == 2
    for interval in ("0", "3601", "nan", "inf", "1e20", "now"):
        assert run("tail", "--interval", interval).exit_code == 2
        assert run("ship", ".", "--interval", interval).exit_code == 2
    assert run("ship", ".", "--term-timeout", "nan").exit_code == 2
    assert run("emit", "a.b", "--source", "s").exit_code == 2
    assert run("spool", "/does/not/exist").exit_code == 2


@pytest.mark.usefixtures("events_table", "emulator_client")
def test_a_terminal_without_unicode_gets_escapes() -> None:
    with program("check", env=environment(PYTHONIOENCODING="ascii")) as process:
        output, errors = process.communicate()
    assert output.startswith(r"\u2713 variables")
    assert (errors, process.returncode) == ("", 0)


def test_the_commands_run_without_a_real_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    assert commands.main(["spool", str(tmp_path)], standalone_mode=False) == 0
    assert output.getvalue().startswith("✓ 0 events wait in ")


@pytest.mark.usefixtures("gated_table")
def test_a_command_says_in_a_line_that_an_answer_makes_no_sense(gate: Gate) -> None:
    gate.answers.append(("GET", 200, []))  # type: ignore[arg-type]
    result = run("tail")
    assert result.stderr.startswith("✗ the answer is not one of BigQuery's (")
    assert (result.stdout, result.exit_code) == ("", 1)


FORGED = "a\n✓ forged \x1b[31m\x7f\x9b2J\u202e"


def is_printable(output: str) -> bool:
    """Whether the lines of ``output`` hold nothing that forges, moves or recolours."""
    return all(line.isprintable() for line in output.split("\n")) and "\n✓ forged" not in output


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_name_of_a_file_does_not_reach_the_terminal_as_it_is(
    options: list[str], tmp_path: Path
) -> None:
    directory = tmp_path / FORGED
    directory.mkdir()
    (directory / f"{FORGED}.events").mkdir()
    result = run("spool", str(directory), *options)
    assert result.exit_code == 1
    assert is_printable(result.stdout)
    assert is_printable(result.stderr)


@pytest.mark.usefixtures("events_table")
@pytest.mark.parametrize("options", [[], ["--json"], ["--show-data"], ["--show-data", "--json"]])
def test_an_event_does_not_reach_the_terminal_as_it_is(
    options: list[str], emulator_client: bigquery.Client
) -> None:
    emit(FORGED, {FORGED: FORGED}, source=FORGED, bq_client=emulator_client,
         schema_ref=FORGED, correlation_id=FORGED, subject_id=FORGED)  # fmt: skip
    result = run("tail", *options)
    assert result.exit_code == 0
    assert "forged" in result.stdout
    assert is_printable(result.stdout)


@pytest.mark.usefixtures("gated_table")
@pytest.mark.parametrize(
    "arguments",
    [("check",), ("check", "--json"), ("tail",), ("create-table",)],
    ids=" ".join,
)
def test_what_bigquery_says_does_not_reach_the_terminal_as_it_is(
    arguments: tuple[str, ...], gate: Gate
) -> None:
    gate.refuse("GET", 403, "accessDenied", FORGED)
    result = run(*arguments)
    assert result.exit_code == 1
    assert "forged" in result.output
    assert is_printable(result.output)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is full")  # noqa: PTH110
@pytest.mark.parametrize("command", [["--help"], ["create-table", "--print-ddl"]])
def test_a_disk_that_is_full_is_said_in_a_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "data")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        ended = subprocess.run(
            [sys.executable, "-m", "lorc_eventlog", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == "lorc-eventlog cannot write: No space left on device\n"


def test_a_table_that_is_named_with_a_partition_is_looked_at_as_a_whole(
    events_table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inserts may name a partition, queries may not."""
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events$20261124")
    assert steps(run("check"))["table"] == f"✓ test-project.{events_table}"
    assert run("tail").stderr.endswith("no such events\n")
    assert f"TABLE IF NOT EXISTS `{events_table}` (" in run("create-table", "--print-ddl").stdout


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("command", ["check", "tail"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "IsADirectoryError: "),
        (b"[]", "no credentials (AttributeError)"),
        (b"\x30\x82secret\xff", "DefaultCredentialsError: "),
        (b'{"type": "service_account", "key": "secret"}', "DefaultCredentialsError: "),
    ],
    ids=["a directory", "a list", "another format", "a key without fields"],
)
def test_a_key_file_that_is_none_is_said_in_a_line_without_a_word_of_it(
    command: str,
    content: bytes | None,
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "key.json"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    result = run(command)
    assert result.exit_code == 1
    said = result.stdout + result.stderr
    assert re.search(rf"✗ (credentials +)?{re.escape(found)}.*\n +→ check the credentials: ", said)
    assert "secret" not in said


@pytest.mark.parametrize(
    "arguments",
    [("tail",), ("create-table",), ("emit", "a.b", "--source", "s", "--payload", "{}")],
    ids=lambda arguments: arguments[0],
)
class TestWithoutAWay:
    """A command that cannot reach the table says so in a line, and what to do."""

    def test_variables(self, arguments: tuple[str, ...]) -> None:
        result = run(*arguments)
        assert result.stderr.startswith("✗ EVENTS_BQ_DATASET and EVENTS_BQ_TABLE not set: set ")
        assert (result.stdout, result.exit_code) == ("", 1)

    @pytest.mark.usefixtures("no_credentials")
    def test_credentials(self, arguments: tuple[str, ...]) -> None:
        result = run(*arguments)
        assert result.stderr.startswith("✗ DefaultCredentialsError: ")
        assert "\n  → check the credentials: " in result.stderr
        assert (result.stdout, result.exit_code) == ("", 1)

    @pytest.mark.usefixtures("service_account")
    def test_project(self, arguments: tuple[str, ...]) -> None:
        result = run(*arguments)
        assert result.stderr.startswith("✗ OSError: Project was not passed and could not be det")
        assert "\n  → set GOOGLE_CLOUD_PROJECT, " in result.stderr
        assert (result.stdout, result.exit_code) == ("", 1)

    @pytest.mark.usefixtures("gated_table")
    def test_permission(self, arguments: tuple[str, ...], gate: Gate) -> None:
        gate.refuse("/tables/", 403, "accessDenied", "Access Denied: Table t")
        result = run(*arguments)
        assert "403 accessDenied: Access Denied: Table t" in result.stderr
        assert "grant the process's account roles/bigquery.dataEditor" in result.stderr
        assert (result.stdout, result.exit_code) == ("", 1)
