"""``lorc-eventlog``, also ``python -m lorc_eventlog``: the command line, if its extra is there."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; :mod:`lorc_eventlog.cli` says what it can do."""
    try:
        from lorc_eventlog.cli import commands
    except ModuleNotFoundError as missing:
        if missing.name not in {"click", "rich"}:
            raise
        sys.exit("lorc-eventlog needs its extra `cli`: pip install 'lorc_eventlog[cli]'")
    commands(prog_name="lorc-eventlog")


if __name__ == "__main__":
    main()
