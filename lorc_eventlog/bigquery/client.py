"""The BigQuery client: made when none was given, and given connections of its own after a fork."""

from __future__ import annotations

import copy
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lorc_eventlog.bigquery.table import events_project
from lorc_eventlog.lifecycle.fork import ForkLock
from lorc_eventlog.lifecycle.signals import without_signals

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

EMULATOR_VARIABLE = "BIGQUERY_EMULATOR_HOST"
PROJECT_VARIABLE = "GOOGLE_CLOUD_PROJECT"
EMULATOR_PROJECT = "test-project"

import_guard = ForkLock(fork_waits=60.0)
"""Held while Google's client is imported in the background.

A fork in the middle of an import would leave the child with a module that is locked for ever.
"""

_abandoned: list[Any] = []
_NEW_LOCKS: dict[type, Callable[[], object]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
}
_SESSION_MODULES = ("google.auth", "google.oauth2", "requests.", "http.cookiejar")


def prepare() -> None:
    """Import what can no longer be imported at exit; called when a writer is made.

    An import that registers with ``threading`` fails once the interpreter shuts down, and Google's
    client imports this module wherever pandas is installed.
    """
    import concurrent.futures.thread  # noqa: F401


def open_client() -> Client:
    """Make a client from the environment.

    With ``BIGQUERY_EMULATOR_HOST`` (``http://localhost:9050`` or ``localhost:9050``) it goes to
    the emulator and needs no credentials. Its project is the one in ``EVENTS_BQ_DATASET`` if that
    names one, else ``GOOGLE_CLOUD_PROJECT`` and what Google's libraries find.

    Raises:
        google.auth.exceptions.DefaultCredentialsError: There are no credentials.
        OSError: There is no project.
    """
    import_guard.run(without_signals, _import_google)
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery

    host = os.environ.get(EMULATOR_VARIABLE)
    if not host:
        return bigquery.Client(project=events_project())
    return bigquery.Client(
        project=events_project() or os.environ.get(PROJECT_VARIABLE) or EMULATOR_PROJECT,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": host if "://" in host else f"http://{host}"},
    )


def _import_google() -> None:
    # What the client would import later, in the middle of its work, included.
    import google.auth._default
    import google.auth.compute_engine
    import google.cloud.bigquery
    import google.oauth2.credentials
    import google.oauth2.service_account  # noqa: F401


def renew_connections(client: Client) -> None:
    """Leave the parent's sockets and locks to the parent: called in the child after a fork.

    A copied requests adapter keeps its settings and starts with no connection. The old one is
    kept for ever, because closing it takes locks that a thread of the parent may have held.
    """
    session_class = getattr(sys.modules.get("requests"), "Session", None)
    if session_class is None:  # not there, or not yet: then the client is not Google's
        return
    session = getattr(client, "_http", None)
    token_session = getattr(getattr(session, "_auth_request", None), "session", None)
    for owner in (session, token_session):
        if isinstance(owner, session_class):
            for prefix, adapter in list(owner.adapters.items()):
                _abandoned.append(adapter)
                owner.mount(prefix, copy.copy(adapter))
    _renew_locks(session, set())


def _renew_locks(owner: object, seen: set[int]) -> None:
    """Renew those of the session, its cookies and credentials, and of what they consist of.

    Each answer takes the lock of the cookies. One that a thread of the parent held at the fork
    would stop all senders of the child, except one that happens to get that thread's number.
    """
    seen.add(id(owner))
    attributes = getattr(owner, "__dict__", {})
    for name, value in list(attributes.items()):
        new_lock = _NEW_LOCKS.get(type(value))
        if new_lock is not None:
            attributes[name] = new_lock()
        elif id(value) not in seen and _is_of_the_session(value):
            _renew_locks(value, seen)


def _is_of_the_session(value: object) -> bool:
    return any(kind.__module__.startswith(_SESSION_MODULES) for kind in type(value).__mro__)
