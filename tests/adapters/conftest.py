"""Loggers with the handler: one that only the test knows, and the root."""

from __future__ import annotations

import json
import logging
import logging.config
import logging.handlers
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handlers import Attach
from lorc_eventlog import BigQueryEventHandler
from scripted_bigquery import ScriptedBigQuery


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger that only the test knows."""
    made = logging.getLogger(f"app.{uuid.uuid4().hex}")
    made.setLevel(logging.DEBUG)
    yield made
    made.handlers.clear()


@pytest.fixture
def attach(scripted: ScriptedBigQuery, logger: logging.Logger) -> Iterator[Attach]:
    """Make a handler of ``scripted`` and add it to ``logger``."""
    made = []

    def attach(**options: Any) -> BigQueryEventHandler:
        handler = BigQueryEventHandler(**options)
        logger.addHandler(handler)
        made.append(handler)
        return handler

    yield attach
    scripted.healthy()
    for handler in made:
        handler.close()


@pytest.fixture
def configure() -> Iterator[Callable[..., BigQueryEventHandler]]:
    """Configure logging as an application does: JSON, and the handler at the root, at DEBUG."""
    root, google = logging.getLogger(), logging.getLogger("google")
    before = root.level, root.handlers[:], google.propagate
    google.propagate = True  # google-auth turns it off, unless the application configures it

    def configure(**options: Any) -> BigQueryEventHandler:
        config = {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"events": {"class": "lorc_eventlog.BigQueryEventHandler", **options}},
            "root": {"level": "DEBUG", "handlers": ["events"]},
        }
        logging.config.dictConfig(json.loads(json.dumps(config)))
        [handler] = root.handlers
        assert isinstance(handler, BigQueryEventHandler)
        return handler

    yield configure
    for handler in root.handlers:
        if isinstance(handler, BigQueryEventHandler):
            handler.close()
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    google.propagate = before[2]
    google.setLevel(logging.NOTSET)
