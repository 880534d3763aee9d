"""README and docs as the tests read them: their blocks of code, and the files that these show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NOT_ON_THE_EMULATOR = re.compile(r"<!-- not on the emulator: .+ -->\n+\Z")
_FILE = re.compile(r"# ([\w/]+\.py)( \(at the end\))?\n")


@dataclass(frozen=True)
class Block:
    """A block of code, and where it stands."""

    page: str
    line: int
    language: str
    code: str
    not_on_the_emulator: bool

    @property
    def file(self) -> str | None:
        """The file that its first line names, such as ``# main.py``."""
        match = _FILE.match(self.code)
        return match[1] if match else None

    def write(self, folder: Path) -> None:
        """Write the file, or add to its end, as its first line says."""
        match = _FILE.match(self.code)
        assert match is not None
        with (folder / match[1]).open("a" if match[2] else "w", encoding="utf-8") as file:
            file.write(self.code)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        before = text[: match.start()]
        yield Block(
            page=page.relative_to(ROOT).as_posix(),
            line=before.count("\n") + 2,
            language=match[1],
            code=match[2],
            not_on_the_emulator=_NOT_ON_THE_EMULATOR.search(before) is not None,
        )


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def pages_with(*languages: str) -> list[str]:
    return sorted({block.page for block in BLOCKS if block.language in languages})


def blocks_of(page: str, *languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.page == page and block.language in languages]


def write_files(page: str, folder: Path) -> None:
    """Write the files that a page shows."""
    for block in blocks_of(page, "python"):
        if block.file is not None:
            block.write(folder)
