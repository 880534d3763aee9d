"""Environments that a command finds: a gate before the emulator, no dataset, no credentials."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from command_line import Gate
from lorc_eventlog.cli import waiting


@pytest.fixture(autouse=True)
def no_word_on_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command says only after a while is said in the tests that are about it."""
    monkeypatch.setattr(waiting, "SILENCE", 600.0)


@pytest.fixture
def gate(emulator: str) -> Iterator[Gate]:
    made = Gate(emulator)
    yield made
    made.close()


@pytest.fixture
def gated_table(gate: Gate, events_table: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`events_table`, by way of the gate."""
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", gate.url)
    return events_table


@pytest.fixture
def no_dataset(emulator: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment names a dataset that is not there."""
    dataset = f"test_{os.urandom(8).hex()}"
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", emulator)
    monkeypatch.setenv("EVENTS_BQ_DATASET", dataset)
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    return dataset


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine of which Google knows nothing."""
    monkeypatch.setenv("EVENTS_BQ_DATASET", "data")
    monkeypatch.setenv("EVENTS_BQ_TABLE", "events")
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # asks no metadata server
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no gcloud


@pytest.fixture
def service_account(
    no_credentials: None,  # noqa: ARG001  a fixture cannot be marked to use another
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A key file, of which the gate is the judge."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    file = tmp_path / "key.json"
    file.write_text(
        json.dumps(
            {
                "type": "service_account",
                "client_email": "app@project.example",
                "token_uri": f"{gate.url}/token",
                "private_key": key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ).decode(),
            }
        )
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
