"""Fixtures for the tests of the spool."""

from __future__ import annotations

import pytest

from scripted_bigquery import ScriptedBigQuery, status


@pytest.fixture
def down(scripted: ScriptedBigQuery) -> ScriptedBigQuery:
    """A BigQuery that takes nothing until it is ``healthy()``."""
    scripted.always(status(503))
    return scripted
