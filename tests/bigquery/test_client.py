"""The client that is made when none is given."""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import bigquery

from lorc_eventlog import emit
from lorc_eventlog.bigquery.client import open_client, said_once
from lorc_eventlog.bigquery.imports import despite_warnings
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


# What google-auth says meanwhile


@pytest.fixture
def metadata_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that is none of Google's."""

    def look(**_: object) -> Any:
        logger = logging.getLogger("google.auth.compute_engine._metadata")
        for attempt in range(1, 4):
            logger.warning("Metadata server unavailable on attempt %s of %s", attempt, 3)
        raise DefaultCredentialsError("none were found")

    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(bigquery, "Client", look)


@pytest.mark.usefixtures("metadata_is_away")
def test_while_there_are_no_credentials_google_auth_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(5):
        with pytest.raises(DefaultCredentialsError):
            open_client()
    assert caplog.messages == ["Metadata server unavailable on attempt 1 of 3"]
    # What another thread does is its own affair.
    logging.getLogger("google.auth.compute_engine._metadata").warning(
        "Metadata server unavailable on attempt %s of %s", 1, 3
    )
    assert len(caplog.messages) == 2
    said_once.run(lambda: None)  # credentials are there again
    with pytest.raises(DefaultCredentialsError):
        open_client()
    assert len(caplog.messages) == 3


def test_a_warning_that_is_made_an_error_costs_no_client(
    user_credentials: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As google-auth warns of a user's own credentials, and -W error makes errors of warnings."""
    original = bigquery.Client

    def warn(**options: Any) -> bigquery.Client:
        warnings.warn("Your application has authenticated as (you)?", UserWarning, stacklevel=2)
        return original(**options)

    monkeypatch.setattr(bigquery, "Client", warn)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_client().close()


def test_a_warning_that_cannot_be_ignored_is_raised() -> None:
    def raise_it() -> None:
        raise UserWarning("always")

    with warnings.catch_warnings(), pytest.raises(UserWarning):
        despite_warnings(raise_it)
