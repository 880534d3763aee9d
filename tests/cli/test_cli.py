"""The command line: every command against the emulator, and each way in which it can go wrong."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField
from rich.highlighter import JSONHighlighter
from rich.text import Text

from clients import Query
from lorc_eventlog import __main__ as entry
from lorc_eventlog import emit
from lorc_eventlog.bigquery.insert_all import REQUEST_TIMEOUT
from lorc_eventlog.bigquery.table import events_schema
from lorc_eventlog.cli import app as cli
from lorc_eventlog.cli import drain, emit_lines, tail
from lorc_eventlog.cli.app import commands
from lorc_eventlog.cli.query import run_query
from lorc_eventlog.delivery import queue as backlog
from lorc_eventlog.lifecycle import processes as lifetime
from scripted_bigquery import (
    Fault,
    ScriptedBigQuery,
    delay,
    hang,
    reset,
    reset_after_storing,
    status,
)

SECRET = "kidney"
SUBJECT = "patient-0815"


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    """Run a command in this process; a traceback is an error of the test."""
    result = CliRunner().invoke(commands, arguments, input=stdin, prog_name="lorc-eventlog")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@contextlib.contextmanager
def program(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command as a program of its own, and not longer than the test."""
    with subprocess.Popen(
        [sys.executable, "-m", "lorc_eventlog", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def steps(result: Result) -> dict[str, str]:
    """Each step of `check` with its mark, what was found and what is to do."""
    found: dict[str, str] = {}
    for line in result.stdout.splitlines():
        start = re.match(r"([✓✗-]) (\w+) +(.*)", line)
        if start:
            step = start[2]
            found[step] = found.get(step, "") + f"{start[1]} {start[3]}"
        else:
            found[step] += " " + line.strip()
    return found


def log_events(client: bigquery.Client) -> None:
    """Three events, of which one has everything that an envelope can hold."""
    emit("email.received", {"subject": SECRET}, source="gmail", bq_client=client,
         schema_ref="email.v1", correlation_id="trace-1", subject_id=SUBJECT)  # fmt: skip
    emit("email.archived", {}, source="gmail/acct1", bq_client=client, correlation_id="trace-2")
    emit("report.sent", {"pages": 3}, source="reports", bq_client=client, correlation_id="trace-1")


class Gate:
    """A way to the emulator on which some requests get an answer of ours instead."""

    def __init__(self, emulator: str) -> None:
        gate = self
        self.answers: list[tuple[str, int, dict[str, Any]]] = []
        """Pattern of method and path, status and body; the first that fits counts."""
        self.bodies: list[dict[str, Any]] = []
        """What was asked of BigQuery, for as much as it was JSON."""
        target = urllib.parse.urlsplit(emulator).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with contextlib.suppress(ValueError):
                    gate.bodies.append(json.loads(body))
                for pattern, code, answer in gate.answers:
                    if re.search(pattern, f"{self.command} {self.path.partition('?')[0]}"):
                        self.send(code, "application/json", json.dumps(answer).encode())
                        return
                headers = {name: value for name, value in self.headers.items() if name != "Host"}
                headers["Accept-Encoding"] = "identity"
                connection = http.client.HTTPConnection(target)
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                self.send(response.status, response.headers["Content-Type"], response.read())
                connection.close()

            do_GET = do_POST = do_DELETE = answer  # noqa: N815  http.server's names

            def send(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def refuse(self, pattern: str, code: int, reason: str, message: str) -> None:
        """Answer with an error as BigQuery words it."""
        error = {"code": code, "message": message, "errors": [{"reason": reason}]}
        self.answers.append((pattern, code, {"error": error}))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def gate(emulator: str) -> Iterator[Gate]:
    made = Gate(emulator)
    yield made
    made.close()


@pytest.fixture
def gated_table(gate: Gate, events_table: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`events_table`, by way of the gate."""
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", gate.url)
    return events_table


@pytest.fixture
def no_dataset(emulator: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment names a dataset that is not there."""
    dataset = f"test_{os.urandom(8).hex()}"
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", emulator)
    monkeypatch.setenv("EVENTS_BQ_DATASET", dataset)
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    return dataset


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine of which Google knows nothing."""
    monkeypatch.setenv("EVENTS_BQ_DATASET", "data")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # asks no metadata server
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no gcloud


@pytest.fixture
def service_account(
    no_credentials: None,  # noqa: ARG001  a fixture cannot be marked to use another
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A key file, of which the gate is the judge."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    file = tmp_path / "key.json"
    file.write_text(
        json.dumps(
            {
                "type": "service_account",
                "client_email": "app@project.example",
                "token_uri": f"{gate.url}/token",
                "private_key": key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ).decode(),
            }
        )
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))


# The program


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
    assert run("emit", "a.b", "--source", "s").exit_code == 2
    assert run("spool", "/does/not/exist").exit_code == 2


@pytest.mark.usefixtures("events_table", "emulator_client")
def test_a_terminal_without_unicode_gets_escapes() -> None:
    with program("check", env={**os.environ, "PYTHONIOENCODING": "ascii"}) as process:
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


# check


@pytest.mark.usefixtures("no_credentials")
def test_check_names_the_variables_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVENTS_BQ_DATASET")
    monkeypatch.delenv("EVENTS_BQ_TABLE")
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "localhost:9050")
    result = run("check")
    assert steps(result) == {
        "variables": "✗ EVENTS_BQ_DATASET and EVENTS_BQ_TABLE not set → set EVENTS_BQ_DATASET to "
        "the BigQuery dataset (dataset or project.dataset) and EVENTS_BQ_TABLE to the table that "
        "the events go to",
        # It goes on with what can be looked at without them.
        "credentials": "✓ none needed for the emulator at localhost:9050",
        "project": "✓ test-project, for the emulator",
        "dataset": "- not checked",
        "table": "- not checked",
        "columns": "- not checked",
        "permission": "- not checked",
    }
    assert result.exit_code == 1


@pytest.mark.usefixtures("no_credentials")
def test_check_says_that_there_are_no_credentials_and_where_they_come_from() -> None:
    result = run("check")
    found = steps(result)
    assert found["variables"] == "✓ EVENTS_BQ_DATASET=data EVENTS_BQ_TABLE=events"
    assert found["credentials"].startswith(
        "✗ DefaultCredentialsError: Your default credentials were not found."
    )
    assert found["credentials"].endswith(
        "→ check the credentials: GOOGLE_APPLICATION_CREDENTIALS, the service account that the "
        "process runs as, or `gcloud auth application-default login`"
    )
    assert found["project"] == "- not checked"
    assert result.exit_code == 1


@pytest.mark.usefixtures("service_account")
def test_check_says_that_google_does_not_take_the_credentials(gate: Gate) -> None:
    answer = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
    gate.answers.append(("POST /token", 400, answer))
    result = run("check")
    assert "✗ RefreshError: invalid_grant: Invalid JWT Sig" in steps(result)["credentials"]
    assert "→ check the credentials" in steps(result)["credentials"]
    assert result.exit_code == 1


@pytest.mark.usefixtures("service_account")
def test_check_says_that_google_is_not_reached_and_blames_no_credentials(gate: Gate) -> None:
    gate.close()
    found = steps(run("check"))["credentials"]
    assert found.startswith("✗ TransportError: HTTPConnectionPool")
    assert "→ try again: it is the network" in found


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


@pytest.mark.usefixtures("gated_table")
def test_check_speaks_json_whatever_answers(gate: Gate) -> None:
    gate.answers.append(("GET", 200, []))  # type: ignore[arg-type]
    result = run("check", "--json")
    assert result.exit_code == 1
    [wrong] = [finding for finding in json.loads(result.stdout)["findings"] if not finding["ok"]][
        :1
    ]
    assert wrong["step"] == "dataset"
    assert wrong["found"].startswith("an answer that makes no sense, or a fault of ours (")
    assert wrong["to_do"].startswith("is it BigQuery that answers (BIGQUERY_EMULATOR_HOST)?")


@pytest.mark.usefixtures("gated_table")
def test_a_command_says_in_a_line_that_an_answer_makes_no_sense(gate: Gate) -> None:
    gate.answers.append(("GET", 200, []))  # type: ignore[arg-type]
    result = run("tail")
    assert result.stderr.startswith("✗ an answer that makes no sense, or a fault of ours (")
    assert (result.stdout, result.exit_code) == ("", 1)


def test_what_is_said_does_not_reach_the_terminal_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "\x1b[31mred"
    directory.mkdir()
    assert run("spool", str(directory)).stdout.endswith("\\x1b[31mred\n")


@pytest.mark.usefixtures("gated_table")
def test_check_tells_what_the_project_lacks_from_what_the_account_lacks(gate: Gate) -> None:
    gate.refuse("GET .*/datasets/[^/]+$", 403, "accessNotConfigured", "BigQuery API is disabled")
    assert steps(run("check"))["dataset"] == (
        "✗ 403 accessNotConfigured: BigQuery API is disabled → enable the project's BigQuery API: "
        "`gcloud services enable bigquery.googleapis.com`"
    )


def test_check_says_where_the_project_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
    assert steps(run("check"))["project"] == "✓ my-project, from GOOGLE_CLOUD_PROJECT"


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


@pytest.mark.usefixtures("service_account")
def test_check_says_that_no_project_is_named(gate: Gate) -> None:
    gate.answers.append(("POST /token", 200, {"access_token": "t", "expires_in": 3600}))
    found = steps(run("check"))
    assert found["credentials"] == "✓ Google takes them: app@project.example"
    assert found["project"].startswith("✗ OSError: Project was not passed and could not be")
    assert found["project"].endswith(
        "→ set GOOGLE_CLOUD_PROJECT, or EVENTS_BQ_DATASET to project.dataset"
    )
    assert found["dataset"] == "- not checked"


@pytest.mark.usefixtures("no_dataset")
def test_check_says_that_there_is_no_dataset(no_dataset: str) -> None:
    result = run("check")
    assert steps(result)["dataset"] == (
        f"✗ test-project.{no_dataset} not found → `lorc-eventlog create-table` makes it, and the "
        f"table; or correct EVENTS_BQ_DATASET"
    )
    assert steps(result)["table"] == "- not checked"
    assert result.exit_code == 1


@pytest.mark.usefixtures("gated_table")
def test_check_says_that_there_is_no_project(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "my-projct.data")
    gate.refuse("GET .*/datasets/data$", 404, "notFound", "Not found: Project my-projct")
    found = steps(run("check"))
    assert found["project"] == "✓ my-projct, from EVENTS_BQ_DATASET"
    assert found["dataset"] == (
        "✗ there is no project my-projct → correct it: EVENTS_BQ_DATASET=project.dataset, else "
        "GOOGLE_CLOUD_PROJECT"
    )


@pytest.mark.usefixtures("no_dataset")
def test_check_says_that_bigquery_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:9")
    result = run("check")
    assert steps(result)["dataset"].startswith("✗ ConnectionError: ")
    assert "→ try again: it is the network (or BIGQUERY_EMULATOR_HOST" in steps(result)["dataset"]
    assert result.exit_code == 1


def test_check_says_that_there_is_no_table(
    events_table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTS_BQ_TABLE", "evnts")
    result = run("check")
    dataset = events_table.partition(".")[0]
    assert steps(result)["dataset"] == f"✓ test-project.{dataset} in US"
    assert steps(result)["table"] == (
        f"✗ test-project.{dataset}.evnts not found → `lorc-eventlog create-table` makes it; or "
        f"correct EVENTS_BQ_TABLE"
    )
    assert steps(result)["columns"] == "- not checked"
    assert result.exit_code == 1


def test_check_says_that_the_payload_is_a_string(
    events_table: str, emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = [
        SchemaField("payload", "STRING") if column.name == "payload" else column
        for column in events_schema()
    ]
    name = events_table.replace("events", "wrong")
    emulator_client.create_table(bigquery.Table(f"test-project.{name}", schema=columns[1:]))
    monkeypatch.setenv("EVENTS_BQ_TABLE", "wrong")
    result = run("check")
    assert steps(result)["table"].startswith(
        f"✓ test-project.{name}, not partitioned by ingestion time → it takes events; a table of "
    )
    assert steps(result)["columns"] == (  # every problem is told
        f"✗ column event_id is missing → ALTER TABLE `test-project.{name}` ADD COLUMN event_id "
        f"STRING;✗ column payload is STRING, must be JSON → BigQuery cannot change a column in "
        f"place, so create the table anew (create_events_table) and copy the rows"
    )
    assert steps(result)["permission"].startswith("- ")  # and it goes on
    assert result.exit_code == 1


@pytest.mark.usefixtures("events_table")
def test_check_says_that_the_table_is_a_view(query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    query("CREATE VIEW a_view AS SELECT * FROM events")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "a_view")
    result = run("check")
    assert re.search(
        r"✗ \S+\.a_view is a VIEW, which takes no events → set EVENTS_BQ_TABLE to a table; ",
        steps(result)["table"],
    )
    assert steps(result)["columns"] == "- not checked"  # to say it once is enough
    assert list(steps(result))[-2:] == ["columns", "permission"]
    assert result.exit_code == 1


def test_a_table_that_is_named_with_a_partition_is_looked_at_as_a_whole(
    events_table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inserts may name a partition, queries may not."""
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events$20261124")
    assert steps(run("check"))["table"] == f"✓ test-project.{events_table}"
    assert run("tail").stderr.endswith("no such events\n")
    assert f"TABLE IF NOT EXISTS `{events_table}` (" in run("create-table", "--print-ddl").stdout


@pytest.mark.usefixtures("gated_table")
def test_check_says_that_the_account_may_not_insert(gate: Gate) -> None:
    gate.answers.append(("POST .*:testIamPermissions", 200, {}))
    result = run("check")
    assert re.fullmatch(
        r"✗ the account may not insert: it lacks bigquery\.tables\.updateData → grant it "
        r"roles/bigquery\.dataEditor on the dataset test_\w+",
        steps(result)["permission"],
    )
    assert result.exit_code == 1


@pytest.mark.usefixtures("gated_table")
def test_check_says_that_the_account_may_do_nothing(gate: Gate) -> None:
    gate.refuse("GET .*/datasets/[^/]+$", 403, "accessDenied", "Access Denied: Dataset d")
    gate.refuse("GET .*/tables/", 403, "accessDenied", "Access Denied: Table t")
    gate.refuse("POST .*:testIamPermissions", 403, "accessDenied", "Access Denied: Table t")
    gate.refuse("POST .*/insertAll", 403, "accessDenied", "Access Denied: Table t: Permission")
    result = run("check", "--write")
    found = steps(result)
    assert re.fullmatch(r"- the account may not look at test-project\.\w+ itself", found["dataset"])
    cure = "grant the process's account roles/bigquery.dataEditor on the dataset"
    assert found["table"].startswith(f"✗ 403 accessDenied: Access Denied: Table t → {cure}")
    assert found["permission"] == "- not checked: BigQuery does not say"
    assert found["written"].startswith("✗ BigQuery did not take event ")
    assert "(lorc_eventlog.check): 403 accessDenied: Access Denied: Table t" in found["written"]
    assert cure in found["written"]
    assert found["found"] == "- not checked"
    assert result.exit_code == 1


@pytest.mark.usefixtures("gated_table")
def test_check_is_content_with_an_account_that_may_write_and_not_look(gate: Gate) -> None:
    gate.refuse("GET .*/datasets/[^/]+$", 403, "accessDenied", "Access Denied: Dataset d")
    gate.refuse("POST .*/(jobs|queries)$", 403, "accessDenied", "Access Denied: jobs.create")
    granted = {"permissions": ["bigquery.tables.updateData"]}
    gate.answers.append(("POST .*:testIamPermissions", 200, granted))
    result = run("check", "--write")
    found = steps(result)
    assert found["dataset"].startswith("- the account may not look at ")
    assert found["permission"] == "✓ the account may insert (bigquery.tables.updateData)"
    assert found["written"].startswith("✓ event ")
    assert found["found"].startswith(
        "- not checked: the account may not query: 403 accessDenied: Access Denied: jobs.create"
    )
    assert result.exit_code == 0


@pytest.mark.usefixtures("gated_table")
def test_check_does_not_query_a_table_that_it_may_not_look_at(gate: Gate) -> None:
    gate.refuse("GET .*/tables/", 403, "accessDenied", "Access Denied: Table t")
    assert steps(run("check", "--write"))["found"] == (
        "- not checked: the account may not look at the table"
    )


@pytest.mark.usefixtures("events_table")
def test_check_writes_nothing_unless_it_is_told_to(query: Query) -> None:
    result = run("check")
    assert steps(result)["columns"] == "✓ all 8 columns take what an envelope holds"
    assert steps(result)["permission"] == (
        "- not checked: BigQuery does not say → `lorc-eventlog check --write` tries it"
    )
    assert result.exit_code == 0
    assert query("SELECT * FROM events") == []


@pytest.mark.usefixtures("events_table")
def test_check_writes_an_event_and_queries_it_back(query: Query) -> None:
    result = run("check", "--write")
    [event] = query("SELECT * FROM events")
    assert event["event_type"] == "lorc_eventlog.check"
    assert event["source"] == "lorc-eventlog check"
    assert steps(result)["permission"] == "- not checked: BigQuery does not say"
    assert steps(result)["written"] == (
        f"✓ event {event['event_id']} of the type lorc_eventlog.check"
    )
    assert re.fullmatch(r"✓ a query finds it \d+\.\d s later", steps(result)["found"])
    assert result.exit_code == 0


@pytest.mark.usefixtures("events_table")
def test_check_queries_until_the_event_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[], [], [{"f0_": 1}]])
    monkeypatch.setattr("lorc_eventlog.cli.check.run_query", lambda *_: next(answers))
    assert steps(run("check", "--write"))["found"].startswith("✓ a query finds it ")
    assert next(answers, None) is None


@pytest.mark.usefixtures("gated_table")
def test_check_says_that_no_query_finds_the_event(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorc_eventlog.cli.check.FIND_PATIENCE", 0.3)
    stored: dict[str, Any] = {"kind": "bigquery#tableDataInsertAllResponse"}
    gate.answers.append(("POST .*/insertAll", 200, stored))  # it is not
    result = run("check", "--write")
    assert steps(result)["found"] == "✗ no query finds it → query for it in some minutes"
    assert result.exit_code == 1


@pytest.mark.usefixtures("gated_table")
def test_check_says_that_the_query_fails(gate: Gate) -> None:
    gate.refuse("POST .*/(jobs|queries)$", 400, "invalidQuery", "Syntax error")
    assert steps(run("check", "--write"))["found"].startswith("✗ 400 invalidQuery: Syntax")


def test_check_speaks_json_to_programs(events_table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.loads(run("check", "--json").stdout)
    assert answer["ok"] is True
    assert answer["findings"][0] == {
        "step": "variables",
        "ok": True,
        "found": f"EVENTS_BQ_DATASET={events_table.partition('.')[0]} EVENTS_BQ_TABLE=events",
        "to_do": None,
    }
    monkeypatch.setenv("EVENTS_BQ_TABLE", "evnts")
    result = run("check", "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    assert {finding["step"]: finding["ok"] for finding in answer["findings"]} == {
        "variables": True, "credentials": True, "project": True, "dataset": True,
        "table": False, "columns": None, "permission": None,
    }  # fmt: skip


# create-table


def test_create_table_makes_the_dataset_and_the_table(
    no_dataset: str, emulator_client: bigquery.Client
) -> None:
    result = run("create-table", "--location", "EU")
    name = f"test-project.{no_dataset}.events"
    assert result.stdout.splitlines() == [
        f"✓ {name} is created",
        "✓ all 8 columns take what an envelope holds",
    ]
    assert result.exit_code == 0
    assert emulator_client.get_table(name).clustering_fields == ["event_type", "source"]
    assert emulator_client.get_dataset(f"test-project.{no_dataset}").location == "EU"
    assert run("create-table").stdout.startswith(f"✓ {name} was there already\n")


def test_create_table_says_that_the_one_there_does_not_fit(
    events_table: str, emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = events_table.replace("events", "wrong")
    emulator_client.create_table(bigquery.Table(f"test-project.{name}", schema=events_schema()[1:]))
    monkeypatch.setenv("EVENTS_BQ_TABLE", "wrong")
    result = run("create-table")
    assert "✗ column event_id is missing\n  → ALTER TABLE" in result.stdout
    assert result.exit_code == 1


def test_create_table_prints_the_ddl_without_asking_bigquery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVENTS_BQ_DATASET", "project.data")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    result = run("create-table", "--print-ddl")
    assert result.stdout.startswith("CREATE TABLE IF NOT EXISTS `project.data.events` (\n")
    assert result.stdout.endswith("CLUSTER BY event_type, source;\n")
    assert result.exit_code == 0


def test_create_table_makes_the_deduplicated_view(
    no_dataset: str, emulator_client: bigquery.Client
) -> None:
    result = run("create-table", "--deduplicated-view")
    view = f"test-project.{no_dataset}.events_deduplicated"
    assert result.stdout.splitlines()[2:] == [f"✓ {view} has each event once"]
    assert emulator_client.get_table(view).table_type == "VIEW"
    assert result.exit_code == 0


def test_create_table_says_that_there_is_a_table_where_the_view_is_to_be(
    events_table: str, emulator_client: bigquery.Client
) -> None:
    emulator_client.create_table(f"test-project.{events_table}_deduplicated")
    result = run("create-table", "--deduplicated-view")
    assert result.stderr == (
        f"✗ test-project.{events_table}_deduplicated is a TABLE, not the view: rename it and run "
        f"this again\n"
    )
    assert result.exit_code == 1


def test_create_table_says_that_the_dataset_is_elsewhere(events_table: str) -> None:
    result = run("create-table", "--location", "EU")
    dataset = events_table.partition(".")[0]
    assert result.stdout.splitlines()[-2:] == [
        f"✗ {dataset} was there already, in US",
        "  → leave out --location, or name another dataset",
    ]
    assert result.exit_code == 1
    assert run("create-table", "--location", "us").exit_code == 0


@pytest.mark.usefixtures("events_table")
def test_create_table_refuses_a_location_that_the_ddl_cannot_name() -> None:
    result = run("create-table", "--print-ddl", "--location", "EU")
    assert "--location has no effect with --print-ddl" in result.stderr
    assert result.exit_code == 2


@pytest.mark.usefixtures("gated_table")
@pytest.mark.parametrize("what", ["datasets/[^/]+$", "tables$"])
def test_create_table_does_not_wait_for_ever(
    what: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also how long the emulator may take for its answer to the first request.
    monkeypatch.setattr("lorc_eventlog.bigquery.table.PATIENCE", 3.0)
    gate.refuse(f"(GET|POST) .*/{what}", 503, "backendError", "Error encountered")
    result = run("create-table")
    assert result.stderr.startswith("✗ 503 backendError: Error encountered\n  → try again: ")
    assert result.exit_code == 1


def test_create_table_prints_the_ddl_of_the_deduplicated_view(
    query: Query, events_table: str, emulator_client: bigquery.Client
) -> None:
    _, ddl, end = run("create-table", "--deduplicated-view", "--print-ddl").stdout.split(";")
    assert ddl.startswith(f"\nCREATE VIEW IF NOT EXISTS `{events_table}_deduplicated` AS\nSELECT")
    assert end == "\n"
    query(ddl)
    emit("a.b", {}, source="s", bq_client=emulator_client)
    query("INSERT INTO events SELECT * FROM events")
    assert query("SELECT COUNT(*) AS number FROM events_deduplicated") == [{"number": 1}]


# Every command that needs BigQuery


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
        assert result.stderr.startswith("✗ DefaultCredentialsError: Your default credentials were")
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


# tail


def shown(result: Result) -> list[str]:
    """The types of the events that were shown, in their order."""
    return [line.split()[2] for line in result.stdout.splitlines()]


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
def test_tail_reads_only_the_partitions_that_matter_and_values_are_parameters(gate: Gate) -> None:
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

    def said(read: int, *arguments: str) -> str:
        answer["statistics"] = {"query": {"totalBytesProcessed": str(read)}}
        gate.answers[:] = [("POST .*/jobs$", 200, answer)]
        for module in (cli, tail):
            monkeypatch.setattr(module, "run_query", lambda *_: [])
        return run("tail", *arguments).stderr.splitlines()[0]

    assert said(0) == "a look reads 0 bytes, billed as 10 MiB"
    assert said(5 * 2**30) == "a look reads 5 GiB, billed as 5 GiB"
    assert said(1_700_000, "-f") == (
        "a look reads 1.6 MiB, billed as 10 MiB; 3,600 looks an hour: up to 35.2 GiB; "
        "Ctrl-C ends it"
    )
    assert "; 720 looks an hour: up to 7 GiB;" in said(0, "-f", "--interval", "5")


def test_tail_says_that_a_table_without_partitions_is_read_whole(
    events_table: str, emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"test-project.{events_table.replace('events', 'plain')}"
    emulator_client.create_table(bigquery.Table(name, schema=events_schema()))
    monkeypatch.setenv("EVENTS_BQ_TABLE", "plain")
    emit("a.b", {}, source="s", bq_client=emulator_client)
    result = run("tail")
    assert result.stderr.startswith(
        f"{name} is not partitioned by ingestion time: a look reads all of it\n"
    )
    assert shown(result) == ["a.b"]


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

    monkeypatch.setattr(cli, "JSONHighlighter", Highlighter)
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


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("events_table")
def test_ctrl_c_is_how_tail_f_ends_and_is_no_end_of_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "run_query", interrupt)
    result = run("tail", "-f")
    assert (result.stdout, result.exit_code) == ("", 0)
    assert "Aborted" not in result.stderr
    assert run("tail").exit_code == 1


@pytest.mark.usefixtures("events_table")
def test_tail_f_shows_what_another_process_logs_within_three_seconds() -> None:
    code = """if True:
        import logging, lorc_eventlog
        logging.getLogger().addHandler(lorc_eventlog.BigQueryEventHandler(source="s"))
        while True:
            logging.error("…", extra={"event_type": "a.b", "payload": {}})
            input()  # an exit would deliver at once; this is the pace of a process that goes on
    """
    lines: queue.Queue[str] = queue.Queue()
    ages = []
    with program("tail", "-f", "--json", env={**os.environ, "PYTHONUNBUFFERED": "1"}) as tailing:
        assert tailing.stdout is not None
        assert tailing.stderr is not None
        reader = threading.Thread(target=lambda: [*map(lines.put, tailing.stdout or ())])
        reader.start()
        assert "3,600 looks an hour" in tailing.stderr.readline()
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as logging_one:
            assert logging_one.stdin is not None
            for _ in range(3):
                event = json.loads(lines.get(timeout=30))
                created = datetime.fromisoformat(event["created_at"])
                ages.append((datetime.now(UTC) - created).total_seconds())
                logging_one.stdin.write(b"\n")
                logging_one.stdin.flush()
            logging_one.kill()
        tailing.send_signal(signal.SIGINT)
        assert tailing.wait(timeout=10) == 0
        assert tailing.stderr.read() == ""
        reader.join()
    assert event["event_type"] == "a.b"
    assert min(ages) < 3  # on a busy machine one may take longer


class Looks:
    """What happens between the looks of `tail -f`; after the last, Ctrl-C."""

    def __init__(self, *between: Callable[[], object]) -> None:
        self._between = [*between]
        self.intervals: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.intervals.append(seconds)
        if not self._between:
            raise KeyboardInterrupt
        self._between.pop(0)()


def follow(monkeypatch: pytest.MonkeyPatch, looks: Looks, *arguments: str) -> Result:
    monkeypatch.setattr(time, "sleep", looks)
    return run("tail", "-f", *arguments)


Store = Callable[..., None]


@pytest.fixture
def store(query: Query) -> Store:
    """Store an event of each type, created so many minutes before the test began."""
    now = datetime.now(UTC)

    def store(*event_types: str, age: float) -> None:
        created_at = (now - timedelta(minutes=age)).isoformat(timespec="microseconds")
        rows = ", ".join(
            f"(GENERATE_UUID(), '{event_type}', 's', '{created_at}', JSON '{{}}')"
            for event_type in event_types
        )
        query(
            f"INSERT INTO events (event_id, event_type, source, created_at, payload) VALUES {rows}"
        )

    return store


def store_again(query: Query) -> None:
    """Store each event once more, as when an answer was lost."""
    query("INSERT INTO events SELECT * FROM events")


def left_out(gate: Gate) -> list[list[str]]:
    """The event_ids that each query left out by name."""
    values = [
        parameter["parameterValue"]["arrayValues"]
        for body in gate.bodies
        for parameter in body.get("configuration", {}).get("query", {}).get("queryParameters", ())
        if parameter["name"] == "seen"
    ]
    return [[value["value"] for value in ids] for ids in values]


def test_tail_f_shows_each_event_once_also_if_it_arrives_late(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store("first", age=3)
    looks = Looks(lambda: store("second", age=1), lambda: store("late", age=5), lambda: None)
    result = follow(monkeypatch, looks, "--interval", "0.5")
    assert shown(result) == ["first", "second", "late"]
    assert looks.intervals == [0.5] * 4
    assert result.exit_code == 0


def test_tail_f_shows_once_what_arrives_while_it_begins(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store("a", age=1)
    monkeypatch.setattr(cli, "there_already", lambda *_: {})  # it was not, yet
    assert shown(follow(monkeypatch, Looks(lambda: None))) == ["a"]


def test_tail_shows_once_what_is_stored_twice(
    store: Store, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store_third_twice() -> None:
        store("third", age=1)
        store_again(query)

    store("first", age=3)
    store("second", age=2)
    store_again(query)
    assert shown(run("tail", "-n", "2")) == ["first", "second"]
    looks = Looks(store_third_twice, lambda: store_again(query))
    assert shown(follow(monkeypatch, looks)) == ["first", "second", "third"]


def test_tail_f_shows_a_late_event_although_it_is_older_than_what_the_limit_left_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store("a", "b", "c", age=2)
    result = follow(monkeypatch, Looks(lambda: store("late", age=5), lambda: None), "-n", "2")
    *first, late = shown(result)
    assert len({*first} & {"a", "b", "c"}) == len(first) == 2
    assert late == "late"


@pytest.mark.usefixtures("gated_table")
def test_tail_f_names_a_bounded_number_of_events_and_says_once_what_it_may_miss(
    store: Store, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def burst() -> None:
        store("a", age=50)
        store("b", age=40)
        store("c", age=30)

    def hold_up() -> None:
        store("too late", age=55)
        store("late", age=45)

    monkeypatch.setattr(tail, "MOST_SEEN", 2)
    result = follow(monkeypatch, Looks(burst, hold_up, lambda: None))
    assert shown(result) == ["a", "b", "c", "late"]
    assert result.stderr.count("more than 2 events since then: one that arrives late is ") == 1
    assert max(map(len, left_out(gate))) == 2


def test_tail_f_takes_nothing_that_was_there_for_news_however_much_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold_up() -> None:
        store("too late", age=35)
        store("late", age=25)

    store("a", "b", age=40)
    store("c", "d", age=30)
    store("e", age=20)
    store("f", age=10)
    monkeypatch.setattr(tail, "MOST_SEEN", 2)
    result = follow(monkeypatch, Looks(lambda: None, hold_up, lambda: None), "-n", "1")
    assert shown(result) == ["f", "late"]
    assert result.stderr.count("more than 2 events since then") == 1


@pytest.mark.usefixtures("gated_table")
def test_tail_f_leaves_no_event_out_by_name_that_is_too_old_anyway(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    ages = {"old": 61, "new": 59}
    seen = {name: (now - timedelta(minutes=age)).isoformat() for name, age in ages.items()}
    monkeypatch.setattr(cli, "there_already", lambda *_: seen)
    follow(monkeypatch, Looks(lambda: None))
    assert left_out(gate)[-1] == ["new"]


@pytest.mark.usefixtures("events_table")
def test_tail_f_shows_nothing_that_the_limit_left_out(
    emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_events(emulator_client)
    result = follow(monkeypatch, Looks(lambda: None, lambda: None), "-n", "2")
    assert shown(result) == ["email.archived", "report.sent"]


@pytest.mark.usefixtures("events_table")
def test_tail_f_brings_more_events_than_one_look_takes_in_their_order(
    emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "FOLLOW_ROWS", 2)
    looks = Looks(lambda: log_events(emulator_client))
    result = follow(monkeypatch, looks)
    assert shown(result) == ["email.received", "email.archived", "report.sent"]
    assert len(looks.intervals) == 2  # and does not sleep while there are more


@pytest.mark.usefixtures("events_table")
def test_tail_f_sleeps_when_an_outage_interrupts_a_burst(
    emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([False, False, True, True, False])

    def ask(*question: Any) -> list[dict[str, Any]]:
        if next(failures):
            raise TimeoutError
        return run_query(*question)

    monkeypatch.setattr(tail, "FOLLOW_ROWS", 2)
    monkeypatch.setattr(tail, "run_query", ask)
    looks = Looks(lambda: log_events(emulator_client), lambda: None, lambda: None)
    assert len(shown(follow(monkeypatch, looks))) == 3
    assert len(looks.intervals) == 4  # before the first look, after each failure, and at the end


def test_tail_f_loses_no_event_of_a_burst_of_one_moment(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "FOLLOW_ROWS", 2)
    monkeypatch.setattr(tail, "MOST_SEEN", 3)
    result = follow(monkeypatch, Looks(lambda: store(*"abcdefg", age=1)))
    assert sorted(shown(result)) == [*"abcdefg"]


@pytest.mark.usefixtures("gated_table")
def test_tail_f_waits_for_the_end_of_an_outage(
    gate: Gate, emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorc_eventlog.cli.query.QUERY_PATIENCE", 0.0)

    def begin() -> None:
        log_events(emulator_client)
        gate.refuse("POST .*/jobs$", 503, "backendError", "Error encountered")

    result = follow(monkeypatch, Looks(begin, lambda: None, gate.answers.clear))
    assert shown(result) == ["email.received", "email.archived", "report.sent"]
    assert result.stderr.count("503 backendError: Error encountered; trying again") == 1
    assert result.exit_code == 0


@pytest.mark.usefixtures("gated_table")
@pytest.mark.parametrize(
    ("code", "reason", "to_do"),
    [
        (404, "notFound", "\n  → `lorc-eventlog check` tells what is missing\n"),
        (403, "accessDenied", "\n  → grant the process's account roles/bigquery.dataEditor on "),
        (400, "invalidQuery", ""),
        (413, "uploadTooLarge", ""),
    ],
    ids=[404, 403, 400, 413],
)
def test_tail_f_ends_with_what_time_does_not_mend(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, code: int, reason: str, to_do: str
) -> None:
    looks = Looks(lambda: gate.refuse("POST .*/jobs$", code, reason, "No table t"))
    result = follow(monkeypatch, looks)
    assert f"✗ {code} {reason}: No table t" in result.stderr
    assert to_do in result.stderr
    assert result.exit_code == 1


# emit


EMIT_LINES = ("emit", "a.b", "--source", "s", "--payload", "-")
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
        assert running.communicate(timeout=30) == ("", "")
        assert running.returncode == 0


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_emit_tells_what_bigquery_refuses_and_by_which_line(
    scripted: ScriptedBigQuery, bad: int
) -> None:
    scripted.refuse_row(lambda row: f'"a":{bad}' in row["payload"], message=f"no {bad} {SECRET}")
    result = emit_lines_of(LINES.replace("}", f', "{SECRET}": 0}}'))
    assert result.stderr == f"✗ line {bad}: invalid at the row: no … …\n"
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
    for name in ("PATIENCE_WITH_A_ROW", "PATIENCE_IN_SILENCE", "FIRST_PAUSE"):
        monkeypatch.setattr(backlog, name, 0.01)
    scripted.refuse_request(lambda row: '"a":2' in row["payload"], code)
    scripted.script(*script)
    result = emit_lines_of(LINES)
    assert re.fullmatch(rf"✗ line 2: {code}[^\n]+\n", result.stderr)
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
    assert (result.stderr[: len(said)], result.stderr.count("\n")) == (said, 1)
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
    writers = set(lifetime.writers)
    scripted.always(fault)
    started = time.monotonic()
    result = emit_lines_of('{"a": 1}')
    assert time.monotonic() - started < REQUEST_TIMEOUT / 2
    said = f"✗ line 1 {what} in BigQuery, no line after 1 is: "
    assert (result.stderr[: len(said)], result.stderr.count("\n")) == (said, 1)
    assert (result.stdout, result.exit_code) == ("", 1)
    assert set(lifetime.writers) <= writers  # one would go on in the background


def test_emit_names_each_line_that_bigquery_puts_off(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emit_lines, "PATIENCE", 2.0)
    scripted.refuse_row(lambda row: '"a":2' not in row["payload"], reason="backendError")
    result = emit_lines_of(LINES)
    assert result.stderr == (
        "✗ line 1, line 3 are not in BigQuery, no line after 3 is: BigQuery puts them off\n"
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


# spool


def left_by_a_dead_process(directory: Path, count: int) -> None:
    """Events that a process, then killed, logged while BigQuery was down."""
    code = f"""if True:
        import os, signal
        from lorc_eventlog import EventWriter
        writer = EventWriter(spool_dir={str(directory)!r})
        for number in range({count}):
            writer.emit("a.b", {{"{SECRET}": number}}, source="s", subject_id="{SUBJECT}")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    env = {**os.environ, "BIGQUERY_EMULATOR_HOST": "http://127.0.0.1:9"}
    killed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


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
    env = {**os.environ, "BIGQUERY_EMULATOR_HOST": "http://127.0.0.1:9"}
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
        "file", "owner_pid", "state", "events", "bytes", "oldest", "trouble",
    ]  # fmt: skip


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
    assert result.stderr == "✗ sub.events: it cannot be read: Is a directory\n"
    assert "- 3 events wait in" in result.stdout
    assert result.exit_code == 1
    result = run("spool", str(spool_dir), "--drain")
    assert "✗ sub.events: it cannot be read: Is a directory\n" in result.stderr
    assert result.stdout.endswith("✓ 3 events delivered, 0 rejected, 0 left\n")
    assert result.exit_code == 1


def test_a_spool_that_cannot_be_read_is_wrong(
    spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the refusal is played."""

    def refuse(directory: Path) -> None:
        raise PermissionError(13, "Permission denied", str(directory))

    monkeypatch.setattr("lorc_eventlog.spool.store.survey", refuse)
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
    scripted.always(delay(0.15))
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
    """A writer waits for ten seconds at the end of its process, unless it is told not to."""
    left_by_a_dead_process(spool_dir, 3)
    scripted.always(status(403))
    code = """if True:
        import sys
        from lorc_eventlog.cli import app as cli
        from lorc_eventlog.cli import drain
        drain.PATIENCE = 2.0
        cli.commands(["spool", sys.argv[1], "--drain"])
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, str(spool_dir)], stdout=subprocess.PIPE, text=True
    ) as ended:
        assert ended.stdout is not None
        while " 3 left" not in ended.stdout.readline():
            pass
        assert ended.wait(timeout=8) == 1
