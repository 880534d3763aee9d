"""Pytest as mutmut runs it: the same examples each time, quick tests first.

``[tool.mutmut]`` in pyproject.toml loads it; no other run of the tests has it.
"""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import Phase, settings

SLOW = ("model", "kill_after", "long_ago")
"""Tests with a second or more of work: most mutants are dead before these begin."""

TIMED = "hold_up_no_other_thread"
"""A test with a bound of time, which fails now and then on a machine that does nothing but this."""

os.environ["LORC_EVENTLOG_EXAMPLES"] = "25"

settings.register_profile(
    "mutants",
    derandomize=True,  # or a mutant would live on one day and die on the next
    database=None,
    deadline=None,
    max_examples=30,
    phases=[Phase.explicit, Phase.generate],  # no search for a smaller example
)
settings.load_profile("mutants")


def pytest_configure() -> None:
    """Spare each mutant's process, which is forked, to look through what was imported before."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow tests last, because the first failure ends the run."""
    items[:] = [item for item in items if TIMED not in item.nodeid]
    items.sort(key=lambda item: any(word in item.nodeid for word in SLOW))
