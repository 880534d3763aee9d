"""Clients of the servers that the tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

Query = Callable[[str], list[dict[str, Any]]]


def make_client(url: str) -> bigquery.Client:
    """Make a client that needs no credentials and talks to ``url``."""
    return bigquery.Client(
        project="test-project",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": url},
    )
