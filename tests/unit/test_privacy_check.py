"""The check of ``tests/conftest.py`` that no diagnostic holds a payload or a subject_id."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

PROGRAM = """
import logging, os, sys

def test_printed():
    print("PrivateWord", file=sys.stderr)

def test_written():
    os.write(2, b"patient-17")

def test_logged():
    logging.getLogger("lorc_eventlog").debug("PrivateWord")

def test_logged_by_googles_client():
    logging.getLogger("google.auth").warning("kidney")

def test_logged_with_a_traceback():
    try:
        raise ValueError("patient-0815")
    except ValueError:
        logging.getLogger("lorc_eventlog").exception("no word of it")

def test_fine():
    logging.getLogger("app").warning("PrivateWord")
    print("nothing private")
"""


def test_what_is_private_is_found_wherever_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(PROGRAM)
    folders = [ROOT / "tests", ROOT / "tests" / "support", ROOT / "examples", ROOT]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-rE", "-p", "conftest", "-p", "no:cacheprovider"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "PYTEST_ADDOPTS": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "6 passed, 5 errors" in ended.stdout, ended.stdout + ended.stderr
    found = set(re.findall(r"^ERROR test_it\.py::(\w+)", ended.stdout, re.MULTILINE))
    assert found == {*re.findall(r"def (\w+)", PROGRAM)} - {"test_fine"}
