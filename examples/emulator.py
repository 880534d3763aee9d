"""A BigQuery on your machine, for trying things out: bqemulator, in a process of its own.

    python -m pip install --group emulator
    python examples/emulator.py

prints what to export, then serves until you press Enter or Ctrl-C. The quickstart and the tests
start it by `running_emulator`.
"""

import asyncio
import contextlib
import logging
import signal
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


@contextlib.contextmanager
def running_emulator(python: str = sys.executable) -> Iterator[Emulator]:
    """Serve an empty BigQuery for as long as the block lasts.

    The `python` may be another one, with dependencies of its own.
    """
    # A process of its own, because bqemulator configures logging and structlog for itself.
    command = [python, __file__, "0"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip() for _ in Emulator._fields]
            if not all(lines):
                msg = "bqemulator did not start; is the dependency group `emulator` installed?"
                raise RuntimeError(msg)
            yield Emulator(*(line.partition("=")[2] for line in lines))
        finally:
            process.kill()  # it has nothing to save


async def serve(port: int) -> None:
    """Serve until standard input has something to say, be it Enter or the parent's end."""
    try:
        import duckdb_extensions
        import structlog
    except ImportError as error:
        sys.exit(f"{error}: first, `python -m pip install --group emulator` (pip 25.1 or later)")

    # Before bqemulator is imported, which would log about it. Its failures are HTTP answers.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    from bqemulator.config import LogLevel, Settings
    from bqemulator.server import EmulatorServer

    duckdb_extensions.import_extension("spatial")  # from the package index, not DuckDB's own site
    settings = Settings(
        rest_port=port, grpc_port=0, log_level=LogLevel.CRITICAL, enable_format_extensions=False
    )
    server = EmulatorServer(settings)
    await server.start()
    told_to_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(PermissionError):  # /dev/null has nothing to wait for
        loop.add_reader(sys.stdin, told_to_end.set)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told_to_end.set)
    print(f"BIGQUERY_EMULATOR_HOST={server.rest_url}")
    print(f"BIGQUERY_STORAGE_EMULATOR_HOST={server.grpc_endpoint}", flush=True)
    await told_to_end.wait()
    await server.stop()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 9050))
