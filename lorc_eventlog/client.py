"""The BigQuery client: made when none was given, and given connections of its own after a fork."""

from __future__ import annotations

import copy
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from lorc_eventlog.table import events_project

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

EMULATOR_VARIABLE = "BIGQUERY_EMULATOR_HOST"
PROJECT_VARIABLE = "GOOGLE_CLOUD_PROJECT"
EMULATOR_PROJECT = "test-project"

import_guard = threading.RLock()
"""Held while Google's client is imported in the background.

A fork in the middle of an import would leave the child with a module that is locked for ever, so
the writer's fork hook takes this lock first.
"""

_abandoned: list[Any] = []


def open_client() -> Client:
    """Make a client from the environment.

    With ``BIGQUERY_EMULATOR_HOST`` (``http://localhost:9050`` or ``localhost:9050``) it goes to
    the emulator and needs no credentials. Its project is the one in ``EVENTS_BQ_DATASET`` if that
    names one, else ``GOOGLE_CLOUD_PROJECT`` and what Google's libraries find.

    Raises:
        google.auth.exceptions.DefaultCredentialsError: There are no credentials.
        OSError: There is no project.
    """
    with import_guard:
        # What the client would import later, in the middle of its work, included.
        import google.auth._default
        import google.auth.compute_engine
        import google.oauth2.credentials
        import google.oauth2.service_account  # noqa: F401
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


def renew_connections(client: Client) -> None:
    """Leave the parent's sockets to the parent: called in the child after a fork.

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
