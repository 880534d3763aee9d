"""What tox does beside tox.ini: skip what cannot be run here."""

from __future__ import annotations

import re
from typing import Any

from packaging.requirements import Requirement
from tox.execute.request import StdinSource
from tox.plugin import impl
from tox.tox_env.errors import Skip

TOO_NEW = "py315"

# As uv and as pip say it.
NO_WHEEL = re.compile(r"(\S+) has no usable wheels|No matching distribution found for ([^\s;]+)")


@impl
def tox_on_install(tox_env: Any, arguments: Any, section: str, of_type: str) -> None:  # noqa: ARG001
    """Skip a Python for which a dependency has no wheel yet.

    Try without building anything; what fails for another reason fails again, and is told.
    """
    if tox_env.name != TOO_NEW or not isinstance(arguments, (list, tuple)):
        return
    wanted = [str(argument) for argument in arguments if isinstance(argument, Requirement)]
    if not wanted:
        return
    uv = getattr(tox_env.installer, "uv", None)
    pip = [uv, "pip"] if uv else ["python", "-I", "-m", "pip"]
    command = [*pip, "install", "--dry-run", "--only-binary", ":all:", *wanted]
    tried = tox_env.execute(command, stdin=StdinSource.OFF, run_id="wheels", show=False)
    missing = NO_WHEEL.search(tried.out + tried.err)
    if tried.exit_code and missing:
        msg = f"{missing[1] or missing[2]} has no wheel for it"
        raise Skip(msg)


@impl
def tox_before_run_commands(tox_env: Any) -> None:
    """Skip the report on coverage where the Python that notes it is not installed."""
    if tox_env.name == "coverage" and not any(tox_env.core["work_dir"].glob(".coverage.*")):
        msg = "no tests noted what they reach"
        raise Skip(msg)
