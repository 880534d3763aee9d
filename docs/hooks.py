"""What the site has beside the pages in this directory: a page with the examples."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

EXAMPLES = Path(__file__).parent.parent / "examples"
INTRODUCTION = """\
# Examples

These are the files in the directory `examples`. The first lines of each say how to run it. The
tests run them all."""
PAGE = "reference/examples.md"
LANGUAGES = {".json": "json", ".py": "python", ".service": "ini", ".yaml": "yaml"}

NEEDS_NO_LABEL = {"", "meaning", "what happens", "why"}
"""Headings of columns that are plain without them."""

_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
_ROW = re.compile(r"<tr>.*?</tr>", re.DOTALL)
_HEAD = re.compile(r"<th>(.*?)</th>")
_LINK = re.compile(r"\]\((?:\.\./)+examples/?([\w.]*)\)")
_ROLE = re.compile(r":(?:attr|class|func|meth|mod):<code>~?([^<]*)</code>")
_TEST = re.compile(r"<code>test_\w+</code>")


def on_files(files: Any, config: Any) -> Any:
    """Add the page with the examples."""
    files.append(File.generated(config, PAGE, content=examples_page()))
    return files


def examples_page() -> str:
    """Make one page of all examples, a section for each."""
    sections = [INTRODUCTION]
    for path in sorted(EXAMPLES.iterdir()):
        if path.suffix in LANGUAGES:
            code = path.read_text(encoding="utf-8").strip()
            sections.append(
                f"## {path.name} {{ #{anchor(path.name)} }}\n\n"
                f"```{LANGUAGES[path.suffix]}\n{code}\n```"
            )
    return "\n\n".join(sections)


def anchor(name: str) -> str:
    """Name the section of an example."""
    return name.replace(".", "-")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to the directory of examples go to the page that is made of it."""
    examples = posixpath.relpath(PAGE, posixpath.dirname(page.file.src_uri))
    return _LINK.sub(
        lambda link: f"]({examples}{'#' + anchor(link[1]) if link[1] else ''})", markdown
    )


def stacked(table: re.Match[str]) -> str:
    """Let the style sheet show each row of a table of words as a paragraph on a phone.

    A table with numbers stays as it is, and scrolls.
    """
    html = table[0]
    if "text-align: right" in html:
        return html
    labels = [re.sub(r"<.*?>|\?$", "", label).strip() for label in _HEAD.findall(html)]
    if len(labels) < 3:
        labels = []

    def row(match: re.Match[str]) -> str:
        cells = iter(["", *labels[1:]])

        def cell(_: re.Match[str]) -> str:
            label = next(cells, "")
            return "<td>" if label in NEEDS_NO_LABEL else f'<td data-label="{label}: ">'

        return re.sub("<td>", cell, match[0])

    return f'<div class="stack">{_ROW.sub(row, html)}</div>'


def on_page_content(html: str, **_: Any) -> str:
    """Show what docstrings have of reStructuredText as HTML; break names of tests at _."""
    html = _TABLE.sub(stacked, html).replace("::</p>", ":</p>")
    html = _ROLE.sub(lambda role: f"<code>{role[1].removeprefix('lorc_eventlog.')}</code>", html)
    return _TEST.sub(lambda name: name[0].replace("_", "_<wbr>"), html)
