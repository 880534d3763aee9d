"""What README and docs show is so: every block of code in them runs, and what they name exists."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.cloud import bigquery

import lorc_eventlog
from clients import Query
from lorc_eventlog import BigQueryEventHandler, EventWriter
from lorc_eventlog.events.row import Row, row_bytes

ROOT = Path(__file__).parent.parent.parent
PACKAGE = Path(lorc_eventlog.__file__).parent
DOCS = ROOT / "docs"
EXAMPLES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (ROOT / "examples").iterdir()
    if path.is_file()
}
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NOT_ON_THE_EMULATOR = re.compile(r"<!-- not on the emulator: .+ -->\n+\Z")


@dataclass(frozen=True)
class Block:
    """A block of code, and where it stands."""

    page: str
    line: int
    language: str
    code: str
    not_on_the_emulator: bool

    @property
    def is_in_an_example(self) -> bool:
        """Whether it is part of an example, and so runs with it."""
        return any(self.code in text for text in EXAMPLES.values())

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        before = text[: match.start()]
        yield Block(
            page=page.relative_to(ROOT).as_posix(),
            line=before.count("\n") + 2,
            language=match[1],
            code=match[2],
            not_on_the_emulator=_NOT_ON_THE_EMULATOR.search(before) is not None,
        )


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
IN_PROCESS = ("python", "json", "yaml")
OUTPUT = ("text", "")


def pages_with(*languages: str) -> list[str]:
    return sorted({block.page for block in BLOCKS if block.language in languages})


def blocks_of(page: str, *languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.page == page and block.language in languages]


def test_every_block_is_of_a_language_that_is_checked_here() -> None:
    known = {*IN_PROCESS, *OUTPUT, "sql", "console"}
    assert {str(block) for block in BLOCKS if block.language not in known} == set()
    fences = sum(
        len(re.findall(r"^\s*(?:```|~~~)", page.read_text(encoding="utf-8"), re.MULTILINE))
        for page in PAGES
    )
    assert fences == 2 * len(BLOCKS), "a block that is indented, or not closed"


def test_no_block_is_code_by_its_indentation_alone() -> None:
    """Four spaces after an empty line, and not under a list's item or a directive."""
    assert [
        f"{page.relative_to(ROOT)}: {line}"
        for page in PAGES
        for line in re.findall(
            r"^(?![ *\d:-]).*\n\n {4,}(\S.*)$",
            _BLOCK.sub("", page.read_text(encoding="utf-8")),
            re.MULTILINE,
        )
    ] == []


def test_what_is_not_checked_holds_no_command() -> None:
    assert [
        str(block)
        for block in BLOCKS
        if block.language in OUTPUT and re.search(r"^(\$|>>>) ", block.code, re.MULTILINE)
    ] == []


# Python, JSON, YAML: the blocks of a page run one after the other, in one process

CREDENTIALS = """
import google.auth
from google.auth.credentials import AnonymousCredentials

google.auth.default = lambda *_, **__: (AnonymousCredentials(), "test-project")
"""
"""The credentials and the project that the reader has."""

RUNNER = f"""{CREDENTIALS}
import json, logging.config, sys

import yaml

sys.modules["app"] = app = type(sys)("app")
exec(sys.argv[1], vars(app))
for page, line, language, code in json.load(sys.stdin):
    if language == "python":
        exec(compile("\\n" * (line - 1) + code, page, "exec", dont_inherit=True), vars(app))
    else:
        value = json.loads(code) if language == "json" else yaml.safe_load(code)
        if isinstance(value, dict) and "handlers" in value:
            logging.config.dictConfig(value)
"""

DJANGO = (
    "from django.conf import settings\nsettings.configure(ROOT_URLCONF='app')\nurlpatterns = []"
)

GIVEN = {
    "docs/guides/frameworks.md": f"{DJANGO}\nLOGGING = {{'version': 1}}",  # a project of Django
    "docs/operate/spool.md": (
        "from google.cloud import bigquery\n"
        "from lorc_eventlog import BigQueryEventHandler, create_events_table\n"
        "client = bigquery.Client()"
    ),
    "docs/guides/testing.md": (
        "import logging\n"
        "import pytest\n"
        "def receive_email(subject):\n"
        "    extra = {'event_type': 'email.received', 'payload': {'subject': subject}}\n"
        "    logging.getLogger('ingester').info('received', extra=extra)"
    ),
}
"""What the reader of a page has already."""


def shown_here(code: str, directory: Path) -> str:
    """Let ``code`` keep its files in ``directory`` instead of where the page does."""
    return code.replace("/var/lib/", f"{directory}/")


def run_page(page: str, directory: Path) -> subprocess.CompletedProcess[str]:
    blocks = [
        (block.page, block.line, block.language, shown_here(block.code, directory))
        for block in blocks_of(page, *IN_PROCESS)
        if not block.is_in_an_example
    ]
    return subprocess.run(
        [sys.executable, "-c", RUNNER, GIVEN.get(page, "")],
        input=json.dumps(blocks),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )


@pytest.mark.process
@pytest.mark.usefixtures("events_table")
@pytest.mark.parametrize("page", pages_with(*IN_PROCESS))
def test_the_code_of_a_page_runs(page: str, tmp_path: Path) -> None:
    if page == "docs/guides/frameworks.md":
        pytest.importorskip("django")
        pytest.importorskip("fastapi")
        pytest.importorskip("pythonjsonlogger")
    if (
        page == "docs/reference/payload.md"
    ):  # test_payload_page.py runs what it can of it, without pandas, too
        pytest.importorskip("pandas")

    shown = run_page(page, tmp_path)

    assert shown.returncode == 0, shown.stderr
    assert "lorc_eventlog: " not in shown.stderr, "an event was not recorded"


@pytest.mark.process
@pytest.mark.usefixtures("events_table")
def test_the_code_of_the_readme_delivers_three_events(query: Query, tmp_path: Path) -> None:
    run_page("README.md", tmp_path)

    found = query("SELECT event_type, source, correlation_id, payload FROM events")
    assert sorted(found, key=lambda row: row["event_type"]) == [
        {
            "event_type": "email.received",
            "source": "gmail_ingester",
            "correlation_id": "trace-0001",
            "payload": {"subject": "My results", "labels": ["inbox", "unread"]},
        },
        {
            "event_type": "questionnaire.answered",
            "source": "questionnaires",
            "correlation_id": None,
            "payload": {"event": "answered", "score": 7},
        },
        {
            "event_type": "report.sent",
            "source": "reports",
            "correlation_id": None,
            "payload": {"pages": 3},
        },
    ]


@pytest.mark.process
@pytest.mark.usefixtures("events_table")
def test_the_start_page_delivers_two_events(query: Query, tmp_path: Path) -> None:
    run_page("docs/index.md", tmp_path)

    assert query("SELECT event_type, source FROM events ORDER BY created_at") == [
        {"event_type": "email.received", "source": "gmail_ingester"},
        {"event_type": "questionnaire.answered", "source": "questionnaires"},
    ]


@pytest.mark.process
def test_the_tests_on_the_page_about_testing_pass(tmp_path: Path) -> None:
    blocks = [block.code for block in blocks_of("docs/guides/testing.md", "python")]
    module = tmp_path / "test_page.py"
    module.write_text("\n\n".join([GIVEN["docs/guides/testing.md"], *blocks]), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    shown = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "lorc_eventlog.pytest_plugin",
            "-p",
            "no:bqemulator",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert "1 passed" in shown.stdout, shown.stdout


def test_an_example_of_which_a_page_shows_a_part_runs_in_the_tests() -> None:
    shown = {
        name
        for block in BLOCKS
        if block.language in IN_PROCESS
        for name, text in EXAMPLES.items()
        if block.code in text
    }
    tests = "".join(
        (ROOT / "tests" / name).read_text(encoding="utf-8")
        for name in ("docs/test_examples.py", "adapters/test_frameworks.py")
    )
    assert {name for name in shown if name.removesuffix(".py") not in tests} == set()


# SQL


@pytest.mark.usefixtures("events_table")
@pytest.mark.parametrize("page", pages_with("sql"))
def test_the_sql_of_a_page_runs(page: str, emulator_client: bigquery.Client) -> None:
    dataset = os.environ["EVENTS_BQ_DATASET"]
    for number, block in enumerate(blocks_of(page, "sql")):
        if block.not_on_the_emulator:
            continue
        sql = re.sub(r"\b(?:project\.dataset|my_dataset)\.", f"{dataset}.", block.code)
        if block.code.startswith("CREATE TABLE"):
            sql = sql.replace(".events`", f".made_by_block_{number}`")
        try:
            emulator_client.query(sql).result()
        except Exception as error:
            error.add_note(str(block))
            raise


def test_sql_that_the_emulator_does_not_know_is_at_least_bigquerys() -> None:
    sqlglot = pytest.importorskip("sqlglot")
    blocks = [block for block in BLOCKS if block.not_on_the_emulator]
    assert blocks
    for block in blocks:
        (statement,) = sqlglot.parse(block.code, read="bigquery")
        assert statement is not None


@pytest.mark.usefixtures("events_table")
def test_the_queries_of_the_table_page_find_what_they_say(
    query: Query, emulator_client: bigquery.Client
) -> None:
    payload = {"subject": "My results", "labels": ["inbox", "unread"], "score": 7}
    for event_type in ("email.received", "email.received", "email.archived"):
        lorc_eventlog.emit(
            event_type,
            payload,
            source="gmail_ingester",
            correlation_id="trace-0001",
            subject_id="patient-17",
            bq_client=emulator_client,
        )

    def found(part: str) -> list[dict[str, object]]:
        (sql,) = (b.code for b in blocks_of("docs/guides/table.md", "sql") if part in b.code)
        return query(sql.replace("my_dataset.", ""))

    assert len(found("event_type = 'email.received'\n  AND")) == 2
    assert len(found("correlation_id = 'trace-0001'")) == 3
    assert (
        found("AS first_label")
        == [{"subject": "My results", "first_label": "inbox", "score": 7}] * 2
    )
    assert found("UNNEST") == [{"label": "inbox", "emails": 2}, {"label": "unread", "emails": 2}]
    assert [row["events"] for row in found("AS day")] == [2, 1]
    assert found("HAVING copies") == []
    assert len(found("QUALIFY")) == 3
    found("DELETE FROM")
    assert found("AS events_left") == [{"events_left": 0}]


# Commands

NOT_RUN = {
    "pip install": "needs the package index",
    "python -m pip install": "needs the package index",
    "python -m tox": "runs these tests",
    "tox run -e bench": "takes a quarter of an hour, and a machine that does nothing else",
    "python -m benchmarks.faults": "takes minutes",
    "python -m benchmarks.tricks": "is for an idle machine",
    "gunicorn": "does not end; test_frameworks.py runs it",
    "python examples/emulator.py": "does not end; the tests run it",
    "lorc-eventlog ship": "does not end; test_ship.py runs it",
}
"""How commands begin that are not run here, and why."""


def is_run(command: str) -> bool:
    return not command.startswith(tuple(NOT_RUN))


COMMANDS = {
    page: [
        line[2:]
        for block in blocks_of(page, "console")
        for line in block.code.splitlines()
        if line.startswith("$ ")
    ]
    for page in pages_with("console")
}


def test_every_reason_for_not_running_a_command_is_needed() -> None:
    commands = [command for page in COMMANDS.values() for command in page]
    assert {
        start for start in NOT_RUN if not any(command.startswith(start) for command in commands)
    } == set()


def as_run_here(command: str, dataset: str, directory: Path) -> str:
    """Let ``command`` use the tests' dataset and directory, and no jq, which may not be there."""
    command = re.sub(r"^jq [^|]*", """printf '{"number": 1}\\n{"number": 2}\\n' """, command)
    command = re.sub(r"EVENTS_BQ_DATASET=\S+", f"EVENTS_BQ_DATASET={dataset}", command)
    command = command.replace("--location EU", "--location US")  # where that dataset is already
    return shown_here(command, directory)


@pytest.mark.process
@pytest.mark.parametrize("page", [page for page in COMMANDS if any(map(is_run, COMMANDS[page]))])
def test_the_commands_of_a_page_run(page: str, events_table: str, tmp_path: Path) -> None:
    if any("lorc-eventlog" in command for command in COMMANDS[page]):
        pytest.importorskip("click")
        pytest.importorskip("rich")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("python", ""), ("lorc-eventlog", " -m lorc_eventlog")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{arguments} "$@"\n')
        program.chmod(0o755)
    (programs / "sitecustomize.py").write_text(CREDENTIALS)
    (tmp_path / "app" / "events").mkdir(parents=True)
    dataset = events_table.partition(".")[0]

    for command in filter(is_run, COMMANDS[page]):
        ran = subprocess.run(
            ["sh", "-c", as_run_here(command, dataset, tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env=os.environ
            | {
                "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": f"{programs}{os.pathsep}{PACKAGE.parent}",
            },
        )
        assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"


# What the pages name


def test_every_test_that_the_page_about_reliability_names_exists() -> None:
    defined = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    rows = re.findall(
        r"^\| (.+) \| (.+) \| `(test_\w+)` \|$",
        (DOCS / "operate/reliability.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rows) > 30
    assert {test for *_, test in rows} - defined == set()


def test_the_page_about_reliability_has_a_place_for_the_comparison() -> None:
    text = (DOCS / "operate/reliability.md").read_text(encoding="utf-8")
    assert text.count("<!-- faults:begin -->") == text.count("<!-- faults:end -->") == 1


@pytest.mark.parametrize("page", ["README.md", "docs/reference/options.md"])
def test_every_option_is_on_the_page_with_its_default(page: str) -> None:
    rows = dict(
        re.findall(
            r"^\| `(\w+)` \| (.+?) \|", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    handler = inspect.signature(BigQueryEventHandler).parameters
    for name, parameter in (handler | inspect.signature(EventWriter).parameters).items():
        if name in ("level", "writer_options"):  # logging's own; the options after it
            continue
        if isinstance(parameter.default, (bool, str)):
            assert rows[name] == f"`{json.dumps(parameter.default)}`", name
        elif isinstance(parameter.default, (int, float)):
            assert float(re.sub(r"[`,_]", "", rows[name])) == parameter.default, name
        else:
            assert parameter.default is None
            assert name in rows


def test_the_messages_on_the_page_about_operating_are_those_of_the_package() -> None:
    constants = {
        re.sub(r"%[sd]", "…", node.value)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    text = (DOCS / "operate/monitoring.md").read_text(encoding="utf-8")
    section = text.partition("## Messages")[2].partition("\n## ")[0]
    messages = re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
    assert len(messages) > 5
    for message in messages:
        part = message.strip("… ")
        assert any(part in constant for constant in constants), message


@pytest.mark.parametrize("page", ["docs/reference/options.md", "docs/operate/monitoring.md"])
def test_what_an_event_counts_as_is_what_the_writer_counts(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    row: Any = dict.fromkeys(Row.__annotations__, "")
    assert re.findall(r"(\d+) for each event|\(payload \+ (\d+)\)", text) in (
        [(f"{row_bytes(row)}", "")],
        [("", f"{row_bytes(row)}")],
    )


def test_the_options_of_a_command_are_on_its_page_with_their_defaults() -> None:
    pytest.importorskip("rich")
    click = pytest.importorskip("click")
    from lorc_eventlog.cli.app import commands

    page = (DOCS / "reference/cli.md").read_text(encoding="utf-8")
    for name, command in commands.commands.items():
        section = page.partition(f"## `{name}`")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| (`-.+?) \| (.*?) ?\|", section, re.MULTILINE)
        shown = {
            option.strip("`"): default.strip("`")
            for names, default in rows
            for option in names.split(", ")
        }
        of_the_command = {
            option: parameter
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for option in parameter.opts
        }
        for option, parameter in of_the_command.items():
            assert option in section, f"{name} {option}"
            if option in shown:
                default = str(parameter.default) if parameter.show_default else ""
                assert shown[option] in (default, "all"), f"{name} {option}"
        for option in re.findall(r"`(--?[a-z][a-z-]*)", section):
            assert option in of_the_command, f"{name} {option}"


def test_links_lead_somewhere() -> None:
    """Between the files; `mkdocs build --strict` looks at those between the pages' sections."""
    broken = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", text)):
            path, _, section = target.partition("#")
            if "://" in target:
                continue
            if not (page.parent / path).exists() or (
                section and page.parent == ROOT and section not in sections_of(page.parent / path)
            ):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def sections_of(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_readme_has_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
