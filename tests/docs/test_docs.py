"""What README and docs say is so: their SQL runs, and what they name exists."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from google.cloud import bigquery

import lorc_eventlog
from clients import Query
from doc_pages import BLOCK, BLOCKS, DOCS, PAGES, ROOT, blocks_of, pages_with
from lorc_eventlog import BigQueryEventHandler, EventWriter
from lorc_eventlog.events.row import Row, row_bytes

PACKAGE = Path(lorc_eventlog.__file__).parent


OUTPUT = ("text", "")


def test_every_block_is_of_a_language_that_is_checked_here() -> None:
    known = {"python", "json", "yaml", "sql", "console", *OUTPUT}
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
            BLOCK.sub("", page.read_text(encoding="utf-8")),
            re.MULTILINE,
        )
    ] == []


def test_what_is_not_checked_holds_no_command() -> None:
    assert [
        str(block)
        for block in BLOCKS
        if block.language in OUTPUT and re.search(r"^(\$|>>>) ", block.code, re.MULTILINE)
    ] == []


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


def test_every_option_is_on_the_page_with_its_default() -> None:
    rows = dict(
        re.findall(
            r"^\| `(\w+)` \| (.+?) \|",
            (DOCS / "reference/options.md").read_text(encoding="utf-8"),
            re.MULTILINE,
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
        for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text)):
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


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
