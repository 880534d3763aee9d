"""docs/reference/payload.md as the tests read it: names, tables, both ways to encode a value."""

from __future__ import annotations

import ast
import json
import re
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from lorc_eventlog.events.payload import encode_payload

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "payload.md"
SECRET = "Ada Lovelace, born 1815"


def read_page() -> tuple[dict[str, Any], list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """Run the page's Python; give its names, and the lines of its tables."""
    text = PAGE.read_text(encoding="utf-8")
    app = sys.modules["app"] = types.ModuleType("app")  # pydantic looks for it
    names = vars(app)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for statement in ast.parse(block).body:
            run(ast.unparse(statement), names)
    becomes, refused = text.split("## What is refused")
    line = re.compile(r"^\| (.+?) \| `(.+)` \| `(.+)` \|$", re.MULTILINE)
    return names, line.findall(becomes), line.findall(refused)


MISSING: set[str] = set()
"""What the page imports and is not installed."""


def run(statement: str, names: dict[str, Any]) -> None:
    """Run a statement of the page, unless it needs a library that is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydantic.v1 warns of Python 3.14
            exec(compile(statement, PAGE.name, "exec", dont_inherit=True), names)
    except ModuleNotFoundError as error:
        MISSING.add(str(error.name).partition(".")[0])
    except NameError:
        if not MISSING:
            raise


def value_of(expression: str) -> Any:
    """Evaluate an example of the page; skips the test if its library is not installed."""
    try:
        return eval(expression, NAMES)
    except NameError:
        if not MISSING:
            raise
        pytest.skip(f"{', '.join(sorted(MISSING))}: not installed")


NAMES, BECOMES, REFUSED = read_page()


def expected(json_text: str) -> re.Pattern[str]:
    """The page's JSON as a pattern, in which an ellipsis stands for any text."""
    return re.compile(re.escape(json_text).replace("…", ".*"))


def slowly(value: object) -> str:
    """The JSON of ``value`` by the path for what orjson refuses: here a key with a surrogate."""
    text = encode_payload({"v": value, "\ud800": 0})
    assert text.startswith('{"v":')
    assert text.endswith(',"\ufffd":0}')
    return text[len('{"v":') : -len(',"\ufffd":0}')]


def fast(value: object) -> str:
    """The JSON of ``value`` as it is by itself."""
    text = encode_payload({"v": value})
    return text[len('{"v":') : -1]


def loads_strictly(text: str) -> Any:
    """Parse JSON as its standard has it, with neither NaN nor a key twice."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=no_key_twice)
