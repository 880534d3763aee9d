"""Start `lorc-eventlog emulator` from a program, such as a test: a BigQuery on your machine.

    pip install 'lorc_eventlog[emulator]'

By hand, start the command itself. The quickstart and the tests start it by `running_emulator`.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple


class Emulator(NamedTuple):
    """Where an emulator is."""

    url: str
    """For BIGQUERY_EMULATOR_HOST."""
    storage: str
    """For BIGQUERY_STORAGE_EMULATOR_HOST, which `lorc-eventlog ship --transport grpc` uses."""


COMMAND = "emulator --port 0 --grpc-port 0 --empty --until-stdin-ends"


@contextlib.contextmanager
def running_emulator(python: str = sys.executable) -> Iterator[Emulator]:
    """Serve an empty BigQuery for as long as the block lasts.

    The `python` may be another one, with dependencies of its own.
    """
    with subprocess.Popen(
        [python, "-m", "lorc_eventlog", *COMMAND.split()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip() for _ in Emulator._fields]
            if not all(lines):
                msg = "the emulator did not start; what it wrote to standard error says why"
                raise RuntimeError(msg)
            yield Emulator(*(line.partition("=")[2] for line in lines))
        finally:
            process.kill()  # it has nothing to save
