"""Every snippet of README and docs does what its page says, pasted alone by a reader.

A page is walked from top to bottom in an empty folder. A block of Python whose first line names a
file (``# main.py``) is written there. Each block of Python, JSON and YAML runs in a process of its
own, and each command in a shell of its own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import lorc_eventlog
from clients import Query
from doc_pages import BLOCKS, Block, blocks_of, pages_with
from harness import LEAN

pytestmark = pytest.mark.process

PACKAGE = Path(lorc_eventlog.__file__).parent
IN_PROCESS = ("python", "json", "yaml")

CREDENTIALS = """
import google.auth
from google.auth.credentials import AnonymousCredentials

google.auth.default = lambda *_, **__: (AnonymousCredentials(), "test-project")
"""
"""The credentials and the project that the reader has."""

RUNNER = f"""{CREDENTIALS}
import json, logging.config, os, runpy, sys

import google.cloud.bigquery  # once, before the forks
import yaml

for where, language, file in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        if language == "python":
            runpy.run_path(file, run_name="__main__")
        else:
            with open(file, encoding="utf-8") as text:
                value = yaml.safe_load(text)  # JSON is YAML
            if isinstance(value, dict) and "handlers" in value:
                logging.config.dictConfig(value)
        sys.exit()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(f"{{where}} failed")
"""

NOT_RUN = {
    "pip install": "needs the package index",
    "python -m pip install": "needs the package index",
    "python -m tox": "runs these tests",
    "pipx run tox": "runs these tests",
    "uvx": "runs these tests",
    "tox run -e bench": "takes a quarter of an hour, and a machine that does nothing else",
    "python -m benchmarks.faults": "takes minutes",
    "pytest -s tests/": "takes minutes, and needs a checkout",
    "tox run -e py314": "takes minutes",
    "python -m benchmarks.ship": "takes minutes",
    "python -m benchmarks.storage": "takes minutes",
    "python -m benchmarks.tricks": "is for an idle machine",
    "gunicorn": "does not end; test_frameworks.py runs it",
    "uvicorn": "does not end; test_frameworks.py runs it",
    "python manage.py runserver": "does not end; test_frameworks.py runs the project by gunicorn",
    "celery": "does not end; test_frameworks.py runs the same as an example",
    "curl": "asks one of those",
    "lorc-eventlog emulator": "does not end; test_emulator.py runs it",
    "lorc-eventlog ship": "does not end; test_ship.py runs it",
    "sudo": "changes the machine",
    "journalctl": "needs systemd",
}
"""How commands begin that are not run here, and why."""

BEFORE = {
    "docs/start/test-fastapi.md": "docs/start/fastapi.md",
    "docs/start/test-django.md": "docs/start/django.md",
}
"""The page that the reader of a page has followed before: its files are there."""

NEEDS = {
    "docs/guides/celery.md": ["celery"],
    "docs/guides/opentelemetry.md": ["opentelemetry.sdk"],
    "docs/guides/private-data.md": ["pythonjsonlogger"],
    "docs/operate/monitoring.md": ["prometheus_client"],
    "docs/reference/payload.md": ["pandas"],  # test_payload_page.py runs what it can without it
    "docs/start/django.md": ["django", "starlette"],
    "docs/start/fastapi.md": ["fastapi", "asgi_correlation_id"],
    "docs/start/loguru.md": ["loguru"],
    "docs/start/test-django.md": ["django"],
    "docs/start/test-fastapi.md": ["fastapi", "asgi_correlation_id", "httpx"],
}
"""What a page needs besides this package."""


def without_variables(command: str) -> str:
    return re.sub(r"^(?:[A-Z_]+=\S+ )+", "", command)


def is_run(command: str) -> bool:
    return not without_variables(command).startswith(tuple(NOT_RUN))


def commands(block: Block) -> list[str]:
    return [line[2:] for line in block.code.splitlines() if line.startswith("$ ")]


def test_every_reason_for_not_running_a_command_is_needed() -> None:
    shown = [
        without_variables(command)
        for block in BLOCKS
        if block.language == "console"
        for command in commands(block)
    ]
    assert {start for start in NOT_RUN if not any(c.startswith(start) for c in shown)} == set()


class Reader:
    """Walks a page in a folder of its own."""

    def __init__(self, folder: Path, dataset: str) -> None:
        self.folder = folder
        self.dataset = dataset
        programs = folder / "bin"
        programs.mkdir()
        modules = {"python": "", "lorc-eventlog": "-m lorc_eventlog", "django-admin": "-m django"}
        for name, module in modules.items():
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
            program.chmod(0o755)
        (folder / "app" / "events").mkdir(parents=True)
        options = "-p no:bqemulator -p no:cacheprovider"
        if "lorc_eventlog" not in [plugin.name for plugin in entry_points(group="pytest11")]:
            options += " -p lorc_eventlog.pytest_plugin"
        self.environment = os.environ | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{LEAN}{os.pathsep}{PACKAGE.parent}",
            "PYTEST_ADDOPTS": options,
        }
        self._alone: list[tuple[str, str, str]] = []

    def read(self, page: str) -> None:
        if page == "docs/reference/payload.md":
            self.environment["IMPORT_EVERYTHING"] = "1"  # its pandas
        for block in blocks_of(BEFORE.get(page, ""), "console", "python"):
            if block.file is not None:
                block.write(self.folder)
            for command in commands(block):
                if command.startswith("django-admin"):
                    self._run(command)
        for block in blocks_of(page, "console", *IN_PROCESS):
            if block.language == "console":
                self._run_what_stands_alone()
                for command in filter(is_run, commands(block)):
                    self._run(command)
            else:
                self._take(block)
        self._run_what_stands_alone()

    def _take(self, block: Block) -> None:
        name = block.file
        if name is not None:
            block.write(self.folder)
            if re.search(r"(^|/)(test\w*|conftest)\.py$", name):
                return  # for pytest
        file = self.folder / f"line_{block.line}.{block.language}"
        file.write_text(self._here(block.code), encoding="utf-8")
        self._alone.append((str(block), block.language, str(file)))

    def _run_what_stands_alone(self) -> None:
        if not self._alone:
            return
        shown = self._finished([sys.executable, "-c", RUNNER], json.dumps(self._alone))
        self._alone.clear()
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert "lorc_eventlog: " not in shown.stderr, "an event was not recorded"

    def _run(self, command: str) -> None:
        ran = self._finished(["sh", "-c", self._here(command)])
        assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"

    def _finished(
        self, command: list[str], given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=self.folder,
            env=self.environment,
        )

    def _here(self, code: str) -> str:
        """Let code use the tests' dataset and folder, and no jq, which may not be there."""
        code = re.sub(r"^jq [^|]*", """printf '{"number": 1}\\n{"number": 2}\\n' """, code)
        code = re.sub(r"EVENTS_BQ_DATASET=\S+", f"EVENTS_BQ_DATASET={self.dataset}", code)
        code = code.replace("--location EU", "--location US")  # where that dataset is already
        return code.replace("/var/lib/", f"{self.folder}/")


@pytest.fixture
def reader(tmp_path: Path, events_table: str) -> Reader:
    return Reader(tmp_path, events_table.partition(".")[0])


@pytest.mark.parametrize("page", pages_with("console", *IN_PROCESS))
def test_a_page_works_from_top_to_bottom_in_an_empty_folder(page: str, reader: Reader) -> None:
    for module in NEEDS.get(page, []):
        pytest.importorskip(module)
    if any("lorc-eventlog" in block.code for block in blocks_of(page, "console")):
        pytest.importorskip("click")
        pytest.importorskip("rich")

    reader.read(page)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_recipe_for_beginners_delivers_its_event(
    page: str, query: Query, reader: Reader
) -> None:
    [block] = [b for b in blocks_of(page, "python") if "dictConfig" in b.code]
    reader._take(block)
    reader._run_what_stands_alone()

    assert query("SELECT event_type, source, correlation_id, payload FROM events") == [
        {
            "event_type": "email.received",
            "source": "gmail_ingester",
            "correlation_id": "trace-0001",
            "payload": {"subject": "My results", "labels": ["inbox", "unread"]},
        }
    ]
