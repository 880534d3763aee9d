"""What stands in the project's files more than once is the same everywhere."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import pytest

import lorc_eventlog

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_a_commit_is_checked_by_the_ruff_of_the_lint_environment() -> None:
    yaml = pytest.importorskip("yaml")
    (ruff,) = (name for name in PROJECT["dependency-groups"]["types"] if name.startswith("ruff>"))
    (local,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    assert local["repo"] == "local", "else it needs more than the package index"
    checked = [hook["entry"].removesuffix(" --force-exclude") for hook in local["hooks"]]
    assert [hook["additional_dependencies"] for hook in local["hooks"]] == [[ruff]] * len(checked)
    commands = text_of("tox.ini").partition("[testenv:lint]")[2]
    assert checked == ["ruff check", "ruff format"]
    assert all(f"    {command}" in commands for command in checked)


def test_the_changelog_ends_with_this_version_and_begins_with_what_is_not_released() -> None:
    first, *released = re.findall(r"(?m)^## \[(.+?)\](.*)$", text_of("CHANGELOG.md"))
    assert first == ("Unreleased", "")
    version, date = released[0]
    assert version == lorc_eventlog.__version__
    assert re.fullmatch(r" - \d{4}-\d\d-\d\d", date)


def test_editors_and_ruff_agree_on_the_length_of_a_line() -> None:
    editors = configparser.ConfigParser()
    editors.read_string("[top]\n" + text_of(".editorconfig"))
    assert editors["*"]["max_line_length"] == str(PROJECT["tool"]["ruff"]["line-length"])


def test_the_pythons_that_are_promised_are_those_that_are_tested() -> None:
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    tested = re.findall(
        r"py(3)(\d+)", text_of("tox.ini").partition("env_list = ")[2].split("\n")[0]
    )
    assert classified == [f"{major}.{minor}" for major, minor in tested]
    supported = text_of("SECURITY.md").partition("## Supported versions")[2]
    assert f"Python {classified[0]} to {classified[-1]}" in supported
