"""Serves a BigQuery whose data outlives it, until it is killed.

    lasting_emulator.py DATA_DIR PORT

It commits each insertAll to a file of DuckDB before it answers.
"""

import asyncio
import logging
import sys
from pathlib import Path

import duckdb_extensions
import structlog

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

from bqemulator.config import LogLevel, PersistenceMode, Settings  # noqa: E402
from bqemulator.server import EmulatorServer  # noqa: E402


async def serve(directory: Path, port: int) -> None:
    server = EmulatorServer(
        Settings(
            rest_port=port,
            grpc_port=0,
            log_level=LogLevel.CRITICAL,
            enable_format_extensions=False,
            persistence_mode=PersistenceMode.PERSISTENT,
            data_dir=directory,
        )
    )
    await server.start()
    await asyncio.Event().wait()


duckdb_extensions.import_extension("spatial")
asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
