"""The shape of the package: which module may import which, and how large each may be.

``LAYERS`` is the architecture. An import counts wherever it stands: in a function, or under
``TYPE_CHECKING``. What breaks a rule today is listed by name; a name that no longer breaks it must
leave the list.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import lorc_eventlog

PACKAGE = Path(lorc_eventlog.__file__).parent
TESTS = Path(__file__).parent.parent

LAYERS = (
    {"__init__", "__main__", "testing", "pytest_plugin"},
    {"adapters", "cli"},
    {"shipping"},
    {"delivery"},
    {"spool", "bigquery"},
    {"events", "lifecycle", "diagnostics"},
)
"""The folders and modules of the package, from top to bottom: each imports only from below."""

MODULE_LINES = 350
CLASS_LINES = 200
TEST_LINES = 600

UPWARD: set[tuple[str, str]] = set()

CIRCLES: set[tuple[str, ...]] = set()

LONG_MODULES: set[str] = set()

LONG_CLASSES: set[str] = set()

LONG_TESTS: set[str] = set()


def modules(package: Path) -> dict[str, Path]:
    """The modules of ``package`` by their names within it; a folder is its ``__init__``."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path) -> dict[str, set[str]]:
    """Which modules of ``package`` each of them imports."""
    known = modules(package)
    return {
        name: {target for target in _imported(path, package.name, known) if target != name}
        for name, path in known.items()
    }


def _imported(path: Path, package: str, known: Iterable[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            top, _, inside = module.partition(".")
            if top == package:
                submodule = ".".join(filter(None, (inside, name)))
                yield submodule if submodule in known else inside or "__init__"


def layer(module: str) -> int:
    """On which layer ``module`` lies; 0 is the top."""
    part = module.partition(".")[0]
    for number, parts in enumerate(LAYERS):
        if part in parts:
            return number
    msg = f"{module} lies on no layer: add {part} to LAYERS"
    raise AssertionError(msg)


def upward(package: Path) -> set[tuple[str, str]]:
    """The imports that go up: importer and imported."""
    return {
        (name, target)
        for name, targets in imports(package).items()
        for target in targets
        if layer(target) < layer(name)
    }


def circles(graph: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """The groups of nodes each of which reaches every other."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            for target in graph[ahead.pop()] - seen:
                seen.add(target)
                ahead.append(target)
        return seen

    reached = {node: reachable(node) for node in graph}
    return {
        tuple(sorted(other for other in reached[node] if node in reached[other]))
        for node in graph
        if node in reached[node]
    }


def folders(graph: dict[str, set[str]], but: Iterable[tuple[str, str]] = ()) -> dict[str, set[str]]:
    """Which folders each folder imports from: their modules may make no circle, and they one."""
    found: dict[str, set[str]] = {name.partition(".")[0]: set() for name in graph}
    for name, targets in graph.items():
        folder = name.partition(".")[0]
        for target in targets:
            if (name, target) not in but:
                found[folder].add(target.partition(".")[0])
        found[folder].discard(folder)
    return found


def long_files(root: Path, most: int) -> set[str]:
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if path.read_text(encoding="utf-8").count("\n") > most
    }


def long_classes(package: Path, most: int) -> set[str]:
    return {
        f"{path.relative_to(package).as_posix()}: {node.name}"
        for path in modules(package).values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > most
    }


def test_no_module_imports_from_a_layer_above() -> None:
    found = upward(PACKAGE)
    assert found - UPWARD == set(), "these imports go up"
    assert UPWARD - found == set(), "these are mended: take them off the list"


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = circles(imports(PACKAGE))
    assert found - CIRCLES == set(), "these modules import each other"
    assert CIRCLES - found == set(), "these are mended: take them off the list"


def test_no_folders_import_each_other_in_a_circle() -> None:
    found = circles(folders(imports(PACKAGE), but=UPWARD))
    assert found == set(), "these folders import each other"


def test_no_module_and_no_class_is_too_long_to_be_read() -> None:
    found = long_files(PACKAGE, MODULE_LINES)
    assert found - LONG_MODULES == set(), f"modules of more than {MODULE_LINES} lines"
    assert LONG_MODULES - found == set(), "these are mended: take them off the list"
    found = long_classes(PACKAGE, CLASS_LINES)
    assert found - LONG_CLASSES == set(), f"classes of more than {CLASS_LINES} lines"
    assert LONG_CLASSES - found == set(), "these are mended: take them off the list"


def test_no_test_file_is_too_long_to_be_read() -> None:
    found = long_files(TESTS, TEST_LINES)
    assert found - LONG_TESTS == set(), f"test files of more than {TEST_LINES} lines"
    assert LONG_TESTS - found == set(), "these are mended: take them off the list"


def test_the_map_for_contributors_has_every_folder_and_module() -> None:
    page = (TESTS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    places = set(re.findall(r"`(\w+)(?:/|\.py)`", page))
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {entry for entry in entries if not entry.startswith("__")} <= places


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that breaks the rules."""
    made = tmp_path / "made"
    for name, lines in {
        "__init__": ["from made.adapters.base import Adapter"],
        "adapters/__init__": [],
        "adapters/base": ["from made.delivery import writer", "import made.events.row"],
        "delivery/__init__": [],
        "delivery/writer": ["def late():", "    from made.bigquery import send", "    send()"],
        "bigquery/__init__": ["send = 1"],
        "bigquery/client": ["import logging", "from made.spool.store import Spool"],
        "spool/__init__": [],
        "spool/store": ["class Spool:", *["    a = 1"] * 9, "from made.bigquery import client"],
        "events/__init__": [],
        "events/row": ["if TYPE_CHECKING:", "    from made.delivery.writer import Writer"],
        "events/other": ["import made"],
        "diagnostics": ["import os", "from made.events import row as other"],
    }.items():
        path = made / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
    return made


def test_an_import_is_seen_wherever_it_stands(package: Path) -> None:
    found = imports(package)
    assert found["delivery.writer"] == {"bigquery"}
    assert found["adapters.base"] == {"delivery.writer", "events.row"}
    assert found["diagnostics"] == {"events.row"}
    assert upward(package) == {("events.row", "delivery.writer"), ("events.other", "__init__")}


def test_a_circle_is_seen_among_modules_and_among_folders(package: Path) -> None:
    graph = imports(package)
    assert circles(graph) == {("bigquery.client", "spool.store")}
    assert circles(folders(graph)) >= {("bigquery", "spool")}
    assert circles(folders(graph, but=[("spool.store", "bigquery.client")])) == {
        ("__init__", "adapters", "events"),
    }


def test_what_is_too_long_is_seen(package: Path) -> None:
    assert long_files(package, 10) == {"spool/store.py"}
    assert long_classes(package, 9) == {"spool/store.py: Spool"}
    assert long_classes(package, 10) == set()


def test_a_module_without_a_layer_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"fresh\.module lies on no layer: add fresh"):
        layer("fresh.module")


def test_a_relative_import_is_refused(package: Path) -> None:
    (package / "events" / "row.py").write_text("from . import other\n")
    with pytest.raises(AssertionError, match="a relative import"):
        imports(package)


def test_all_waiting_goes_by_one_clock() -> None:
    """Libraries that freeze the time for a test replace ``time.monotonic``."""
    found = [path.name for path in PACKAGE.rglob("*.py") if "time.monotonic" in path.read_text()]
    assert found == ["clock.py"]
