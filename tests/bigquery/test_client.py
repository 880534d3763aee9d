"""The client that is made when none is given, and what becomes of it after a fork."""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import bigquery
from requests.cookies import RequestsCookieJar

from lorc_eventlog import emit
from lorc_eventlog.bigquery.client import open_client, renew_connections
from scripted_bigquery import ScriptedBigQuery


@pytest.fixture
def user_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that can be read without a network."""
    path = tmp_path / "credentials.json"
    secrets = {"client_id": "i", "client_secret": "s", "refresh_token": "t"}
    path.write_text(json.dumps({"type": "authorized_user", **secrets}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no gcloud that knows a project


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_the_emulator_is_named_with_or_without_a_scheme(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", f"{scheme}127.0.0.1:{scripted.port}")
    with closing(open_client()) as client:
        emit("a.b", {}, source="s", bq_client=client)
    assert len(scripted.rows) == 1


def test_the_emulator_needs_no_credentials_and_no_project(scripted: ScriptedBigQuery) -> None:
    with closing(open_client()) as client:
        assert isinstance(client._credentials, AnonymousCredentials)
        assert client.project == "test-project"
        emit("a.b", {}, source="s", bq_client=client)
    assert scripted.requests[0].table == "test-project:dataset.events"


@pytest.mark.parametrize("emulator", ["127.0.0.1:1", None])
@pytest.mark.parametrize(
    ("dataset", "project"),
    [("of-the-dataset.data", "of-the-dataset"), ("data", "of-the-environment")],
)
@pytest.mark.usefixtures("user_credentials")
def test_the_project_of_the_dataset_comes_before_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, emulator: str | None, dataset: str, project: str
) -> None:
    if emulator is not None:
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", emulator)
    monkeypatch.setenv("EVENTS_BQ_DATASET", dataset)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "of-the-environment")
    with closing(open_client()) as client:
        assert client.project == project


@pytest.mark.usefixtures("user_credentials")
def test_without_an_emulator_the_client_is_googles_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
    with closing(open_client()) as client:
        assert client._connection.API_BASE_URL == "https://bigquery.googleapis.com"
        assert client._credentials.refresh_token == "t"


def test_without_credentials_google_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "missing.json")
    with pytest.raises(DefaultCredentialsError, match=r"missing\.json"):
        open_client()


@pytest.mark.usefixtures("user_credentials")
def test_without_a_project_google_says_so() -> None:
    with pytest.raises(OSError, match="Project was not passed"):
        open_client()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_the_child_has_connections_of_its_own(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    emit("of.parent", {}, source="s", bq_client=client)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            renew_connections(client)
            emit("of.child", {}, source="s", bq_client=client)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    emit("of.parent", {}, source="s", bq_client=client)
    first, of_child, second = scripted.requests
    assert first.client_port == second.client_port != of_child.client_port
    assert [row["event_type"] for row in scripted.rows] == ["of.parent", "of.child", "of.parent"]


def test_renewed_connections_keep_their_settings(client: bigquery.Client) -> None:
    before = client._http.get_adapter("http://")
    before.max_retries = 7
    renew_connections(client)
    after = client._http.get_adapter("http://")
    assert after is not before
    assert after.max_retries == 7
    # The session that refreshes tokens has sockets, too.
    tokens = client._http._auth_request.session
    adapter = tokens.get_adapter("https://")
    renew_connections(client)
    assert tokens.get_adapter("https://") is not adapter


def test_a_client_of_another_make_is_left_alone() -> None:
    renew_connections(object())  # type: ignore[arg-type]


def test_where_requests_was_never_imported_there_is_nothing_to_renew(
    client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = client._http.get_adapter("https://")
    monkeypatch.delitem(sys.modules, "requests")
    renew_connections(client)
    assert client._http.get_adapter("https://") is before


def test_locks_of_the_session_its_cookies_and_its_credentials_are_new_in_a_child(
    client: bigquery.Client,
) -> None:
    class CallersCookies(RequestsCookieJar):
        pass

    session = client._http
    session.cookies = CallersCookies()
    session.credentials._callers = session  # a circle
    session.credentials._a_lock = threading.Lock()
    foreign = session.credentials._foreign = {"lock": threading.Lock()}
    owners: list[tuple[Any, str]] = [
        (session.cookies, "_cookies_lock"),
        (session._auth_request.session.cookies, "_cookies_lock"),
        (session.credentials, "_a_lock"),
    ]
    before = [getattr(owner, name) for owner, name in owners]
    its_lock = foreign["lock"]
    renew_connections(client)
    after = [getattr(owner, name) for owner, name in owners]
    assert [type(lock) for lock in after] == [type(lock) for lock in before]
    assert not {id(lock) for lock in before} & {id(lock) for lock in after}
    assert foreign["lock"] is its_lock
