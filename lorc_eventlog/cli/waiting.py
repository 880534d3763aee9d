"""Says what a command waits for, before a person wonders."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from lorc_eventlog.bigquery.client import EMULATOR_VARIABLE
from lorc_eventlog.cli.output import note
from lorc_eventlog.lifecycle.signals import background_thread

SILENCE = 1.0
"""Seconds without a word. A command waits twice, for credentials and for an answer, and is to speak
within three."""


@contextlib.contextmanager
def telling(what: Callable[[], str]) -> Iterator[None]:
    """Print ``what()`` on standard error if the block takes longer than ``SILENCE``."""
    done = threading.Event()

    def tell() -> None:
        if not done.wait(SILENCE):
            note(what())

    with contextlib.suppress(RuntimeError):  # out of threads: then without a word
        background_thread(tell).start()
    try:
        yield
    finally:
        done.set()


def who_answers() -> str:
    """Name what takes the events: BigQuery, or an emulator and where it is."""
    host = emulator_host()
    return f"the emulator at {host}" if host else "BigQuery"


def emulator_host() -> str | None:
    """Return where the emulator is, None if it is BigQuery that answers."""
    return os.environ.get(EMULATOR_VARIABLE) or None
