"""Compiles what the tests import, once, for the workers that are about to start.

In a new environment each of them would otherwise compile all of it for itself, at the same time,
which takes longer than the tests of most folders. Two collect half of the tests each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def main() -> None:
    compiled = f"conftest.{sys.implementation.cache_tag}-pytest-{pytest.__version__}.pyc"
    if (TESTS / "__pycache__" / compiled).exists():
        return
    folders = sorted(str(folder.parent) for folder in TESTS.glob("*/test_*.py"))
    folders = list(dict.fromkeys(folders))
    collect = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "--quiet"]
    both = [
        subprocess.Popen([*collect, *half], stdout=subprocess.DEVNULL)
        for half in (folders[::2], folders[1::2])
    ]
    for one in both:
        one.wait()


if __name__ == "__main__":
    main()
