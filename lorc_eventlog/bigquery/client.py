"""The BigQuery client that is made when none was given."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from lorc_eventlog.bigquery.imports import despite_warnings, import_client
from lorc_eventlog.bigquery.table import events_project

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

_T = TypeVar("_T")

EMULATOR_VARIABLE = "BIGQUERY_EMULATOR_HOST"
PROJECT_VARIABLE = "GOOGLE_CLOUD_PROJECT"
EMULATOR_PROJECT = "test-project"


def open_client() -> Client:
    """Make a client from the environment.

    With ``BIGQUERY_EMULATOR_HOST`` (``http://localhost:9050`` or ``localhost:9050``) it goes to
    the emulator and needs no credentials. Its project is the one in ``EVENTS_BQ_DATASET`` if that
    names one, else ``GOOGLE_CLOUD_PROJECT`` and what Google's libraries find.

    Raises:
        google.auth.exceptions.DefaultCredentialsError: There are no credentials.
        OSError: There is no project.
    """
    import_client()
    said_once.install()
    return despite_warnings(_open)


def _open() -> Client:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery

    host = os.environ.get(EMULATOR_VARIABLE)
    if not host:
        return said_once.run(functools.partial(bigquery.Client, project=events_project()))
    return bigquery.Client(
        project=events_project() or os.environ.get(PROJECT_VARIABLE) or EMULATOR_PROJECT,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": host if "://" in host else f"http://{host}"},
    )


class _SaidOnce(logging.Filter):
    """Lets google-auth say once what it would say in each try while there are no credentials.

    It filters only what is said by threads that deliver events, and only while they do.
    """

    def __init__(self) -> None:
        super().__init__()
        self._threads: set[int] = set()
        self._said: set[tuple[str, str]] = set()

    def install(self) -> None:
        """Filter what the loggers of google-auth say, once it is imported."""
        for name in list(logging.root.manager.loggerDict):
            if name.startswith(("google.auth", "google.oauth2")):
                logging.getLogger(name).addFilter(self)

    def run(self, action: Callable[[], _T]) -> _T:
        """Call ``action``. Once it succeeds, everything may be said again."""
        thread = threading.get_ident()
        try:
            self._threads.add(thread)
            result = action()
            self._said.clear()
            return result
        finally:
            self._threads.discard(thread)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is another thread's, or the first of its kind."""
        kind = (record.name, str(record.msg))
        if record.thread not in self._threads or kind not in self._said:
            self._said.add(kind)
            return True
        return False


said_once = _SaidOnce()
