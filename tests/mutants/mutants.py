"""Run mutmut over what must not be wrong, and say for each group how many mutants the tests killed.

    python tests/mutants/mutants.py [--every 5] [--keep] [group ...]

Fails if a group is below ``GOAL``, or if a mutant survived that ``survivors.md`` does not explain.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

GOAL = 90.0
"""Per cent of the mutants of a group that the tests are to kill."""

GROUPS = {
    "queue": "delivery: batch books doubt fresh pace queue schedule suspicion",
    "classification": "bigquery: answers failures redaction storage_failures",
    "ledger": "shipping: books exactly_once ledger pending requests",
}
"""Folder and modules of each; ``only_mutate`` in pyproject.toml has them as well."""

KILLED = {1, 3, 37}
"""What mutmut notes for a test that failed."""

ALIVE = {0, 5, 33}
"""What it notes for a mutant that no test fails for, or reaches."""

NOT_TRIED = {None, 2}
"""What it notes before, and if it was interrupted."""

ROOT = Path(__file__).parents[2]
MADE = ROOT / "mutants"
EXPLAINED = Path(__file__).with_name("survivors.md")


class Change(NamedTuple):
    """What a mutant is, as ``survivors.md`` shows it."""

    function: str
    lines: tuple[str, ...]
    """Without indentation; each begins with what happens to it, - or +."""

    def __str__(self) -> str:
        return "\n".join([f"`{self.function}`", "", "```diff", *self.lines, "```"])


def modules(group: str) -> list[str]:
    """Name the modules of ``group``."""
    folder, _, names = GROUPS[group].partition(": ")
    return [f"lorc_eventlog.{folder}.{name}" for name in names.split()]


def exit_codes(module: str) -> dict[str, int | None]:
    """What mutmut noted for each mutant of ``module``; None if it was not tried."""
    path = MADE / f"{module.replace('.', '/')}.py.meta"
    noted = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    return {str(name): code for name, code in noted.items()}


def change_of(mutant: str) -> Change:
    """What mutmut changed to make ``mutant``."""
    module, _, name = mutant.rpartition(".")
    original = re.sub(r"__mutmut_\d+$", "", name)
    source = (MADE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    found = {
        node.name: (ast.get_source_segment(source, node) or "").splitlines()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name in (name, f"{original}__mutmut_orig")
    }
    before, after = (found[key][1:] for key in (f"{original}__mutmut_orig", name))
    if before == after:  # it changed the signature
        before, after = (found[key][:1] for key in (f"{original}__mutmut_orig", name))
    function = re.sub(r"^xǁ|^x_", "", original).replace("ǁ", ".")
    lines = difflib.ndiff(before, after)
    changed = [f"{line[0]} {line[2:].strip()}" for line in lines if line[0] in "-+"]
    return Change(f"{module.removeprefix('lorc_eventlog.')}.{function}", tuple(changed))


def explained() -> set[Change]:
    """The survivors that the page gives a reason for: each stands before one, as ``Change`` is."""
    text = EXPLAINED.read_text(encoding="utf-8")
    blocks = re.compile(r"^`([\w.]+)`\n\n```diff\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
    return {Change(function, (*lines.splitlines(),)) for function, lines in blocks.findall(text)}


def report(groups: list[str]) -> Iterator[str]:
    """Print a line for each group; yield what is wrong."""
    reasons = explained()
    seen: set[Change] = set()
    print("| group | mutants | killed | timed out | survived | of these explained |")  # noqa: T201
    print("| --- | --- | --- | --- | --- | --- |")  # noqa: T201
    for group in groups:
        codes: dict[str, int] = {}
        for module in modules(group):
            tried = exit_codes(module)
            codes |= {name: code or 0 for name, code in tried.items() if code not in NOT_TRIED}
        alive = {name: change_of(name) for name, code in codes.items() if code in ALIVE}
        killed = sum(code in KILLED for code in codes.values())
        late = len(codes) - killed - len(alive)
        known = sum(change in reasons for change in alive.values())
        seen |= {*alive.values()}
        share = 100 * (killed + late) / max(1, len(codes))
        numbers = f"{len(codes)} | {killed} ({share:.1f} %) | {late} | {len(alive)} | {known}"
        print(f"| {group} | {numbers} |")  # noqa: T201
        if share < GOAL:
            yield f"{group}: {share:.1f} % is less than {GOAL:.0f} %"
        for name, change in alive.items():
            if change not in reasons:
                yield f"{name} survived:\n\n{change}\n"
    if groups == [*GROUPS]:
        for change in sorted(reasons - seen):
            print(f"explained, but it did not survive:\n\n{change}\n")  # noqa: T201


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="default: all")
    parser.add_argument("--every", type=int, choices=[5, 10], help="try only every so manieth")
    parser.add_argument("--keep", action="store_true", help="report on what was tried already")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    groups = arguments.groups or [*GROUPS]
    if not arguments.keep:
        shutil.rmtree(MADE, ignore_errors=True)
        ends = {None: "", 5: "[05]", 10: "0"}[arguments.every]
        mutants = [f"{module}.*{ends}" for group in groups for module in modules(group)]
        command = ["mutmut", "run", "--max-children", str(arguments.processes), *mutants]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    wrong = [*report(groups)]
    print(*wrong, sep="\n")  # noqa: T201
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
