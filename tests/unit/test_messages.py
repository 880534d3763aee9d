"""``messages.txt`` lists each message of the package, so that a new one is read by somebody.

A message says in plain words what happened, what it means for the events, and what to do. After a
change, ``python tests/unit/test_messages.py`` writes the list anew; read what is new in it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import lorc_eventlog

PACKAGE = Path(lorc_eventlog.__file__).parent
FILE = Path(__file__).with_name("messages.txt")

SAYING = {
    "BadParameter",
    "Failure",
    "Finding",
    "Trouble",
    "UsageError",
    "UntrustedError",
    "_not_acknowledged",
    "check",
    "complain",
    "debug",
    "error",
    "exception",
    "exit",
    "info",
    "note",
    "say",
    "say_on_stderr",
    "tell",
    "warning",
}
"""Functions and classes whose texts people read."""

NAMED = {
    "be",
    "found",
    "full",
    "message",
    "msg",
    "said",
    "to_do",
    "told",
    "what",
    "what_to_do",
    "why",
}
"""Variables whose texts they read."""

NO_MESSAGES = ("SELECT", "CREATE", "(_PARTITIONTIME", "\b\n", "bold ")
"""SQL, help and colours."""


def messages_in(tree: ast.AST) -> Iterator[str]:
    """Texts with more than one word, with ``{…}`` for what is filled in."""
    for node in ast.walk(tree):
        values: list[ast.expr | None] = []
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in SAYING or name.endswith("Error"):
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
        elif isinstance(node, ast.Assign):
            names = {getattr(target, "id", "") for target in node.targets}
            if names & NAMED or all(name.strip("_").isupper() for name in names):
                values = [node.value]
        elif isinstance(node, (ast.Return, ast.Yield)):
            values = [node.value]
        for value in values:
            yield from _texts_of(value)


def _texts_of(value: ast.expr | None) -> Iterator[str]:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        text = value.value
    elif isinstance(value, ast.JoinedStr):
        text = "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{…}" for part in value.values
        )
    elif isinstance(value, (ast.Tuple, ast.List)):
        for element in value.elts:
            yield from _texts_of(element)
        return
    elif isinstance(value, ast.Dict):
        for element in value.values:
            yield from _texts_of(element)
        return
    elif isinstance(value, ast.IfExp):
        yield from _texts_of(value.body)
        yield from _texts_of(value.orelse)
        return
    elif isinstance(value, ast.BinOp):
        yield from _texts_of(value.left)
        yield from _texts_of(value.right)
        return
    else:
        return
    words = text.replace("{…}", "").split()
    if len(words) > 1 and not text.lstrip().startswith(NO_MESSAGES):
        yield " ".join(text.split())


def all_messages() -> str:
    """The list, by module."""
    blocks = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "storage_messages.py":  # what goes over the wire, which nobody reads
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = sorted(set(messages_in(tree)))
        if found:
            name = path.relative_to(PACKAGE.parent).as_posix()
            blocks.append("\n".join([f"# {name}", *found]))
    return "\n\n".join(blocks) + "\n"


def test_each_message_is_on_the_list() -> None:
    listed = FILE.read_text(encoding="utf-8").splitlines()
    found = all_messages().splitlines()
    new = [line for line in found if line not in listed]
    gone = [line for line in listed if line not in found]
    assert (new, gone) == ([], []), "read them, then run `python tests/unit/test_messages.py`"


if __name__ == "__main__":
    FILE.write_text(all_messages(), encoding="utf-8")
