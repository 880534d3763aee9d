"""``tests/lowest.txt``, which ``tox run -e lowest`` installs, has pyproject.toml's lower bounds."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, GROUPS = FILE["project"], FILE["dependency-groups"]

PINNED = dict(
    line.split("==")
    for line in (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)


def requirements() -> list[str]:
    """What a user may install: the dependencies, and those of all extras."""
    extras = PROJECT["optional-dependencies"]
    # What the emulator needs asks for newer versions of others: EMULATOR_PYTHON runs it.
    tested = [extras[name] for name in extras if name != "emulator"]
    return [*PROJECT["dependencies"], *chain(*tested)]


@pytest.mark.parametrize("requirement", requirements())
def test_each_dependency_is_tested_at_its_lower_bound(requirement: str) -> None:
    match = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+),<[\d.]+", requirement)
    assert match is not None, f"{requirement} has no lower and upper bound"
    name, lowest = match.groups()
    assert _release(PINNED[name]) == _release(lowest)


def test_the_emulator_of_the_extra_is_that_of_the_tests() -> None:
    ours, *others = PROJECT["optional-dependencies"]["emulator"]
    assert ours == "lorc_eventlog[cli]"
    assert {*GROUPS["emulator"]} == {*others}


def _release(version: str) -> list[int]:
    numbers = [int(number) for number in version.split(".")]
    while numbers[-1] == 0:
        numbers.pop()
    return numbers


def test_what_is_pinned_is_there_where_it_is_tested() -> None:
    found = {name: metadata.version(name) for name in PINNED}
    if found["google-cloud-bigquery"] != PINNED["google-cloud-bigquery"]:
        pytest.skip("these are not the lowest versions")
    assert found == PINNED
