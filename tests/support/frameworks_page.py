"""The code that docs/guides/frameworks.md shows, which tests run."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "guides" / "frameworks.md"


def blocks(language: str, heading: str) -> list[str]:
    """The code blocks of a section of the page."""
    section = re.search(
        rf"^## {heading}\n(.*?)(?=^## |\Z)",
        PAGE.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    assert section is not None
    return re.findall(rf"^```{language}\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
