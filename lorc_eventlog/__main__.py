"""``lorc-eventlog``, also ``python -m lorc_eventlog``: the command line, if its extra is there."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; :mod:`lorc_eventlog.cli` says what it can do."""
    try:
        from lorc_eventlog.cli.app import commands
    except ModuleNotFoundError as missing:
        if missing.name not in {"click", "rich"}:
            raise
        sys.exit("lorc-eventlog needs its extra `cli`: pip install 'lorc_eventlog[cli]'")
    try:
        commands(prog_name="lorc-eventlog")
    except OSError as error:  # a disk that is full, or a standard output that is closed
        # So that Python, which flushes it once more at its end, has nothing to complain about.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"lorc-eventlog cannot write: {error.strerror}")


if __name__ == "__main__":
    main()
