"""A table that is wrong is an outage: BigQuery refuses everything, and nothing is rejected."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from google.cloud import bigquery

from harness import Records, eventually, numbers_in, running_writer, sampled, submit_events
from lorc_eventlog.delivery import pace
from scripted_bigquery import ScriptedBigQuery, status


def refuse_all_rows(server: ScriptedBigQuery) -> None:
    server.refuse_row(
        lambda _row: True, message="no such field: subject_id.", location="subject_id"
    )


def refuse_all_requests(server: ScriptedBigQuery) -> None:
    server.always(status(400, "invalid", "Cannot add rows to a table of type VIEW."))


@pytest.mark.parametrize("make_wrong", [refuse_all_rows, refuse_all_requests])
def test_a_table_that_is_wrong_for_a_while_rejects_nothing(
    scripted: ScriptedBigQuery,
    client: bigquery.Client,
    monkeypatch: pytest.MonkeyPatch,
    make_wrong: Callable[[ScriptedBigQuery], None],
) -> None:
    monkeypatch.setattr(pace, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(pace, "MAX_PAUSE", 0.2)
    make_wrong(scripted)
    with Records() as said, running_writer(client, batch_rows=20) as writer, sampled(writer):
        for start in range(0, 200, 10):
            submit_events(writer, range(start, start + 10))
            writer.flush(0.01)
        eventually(lambda: any("lorc-eventlog check" in text for text in said.texts(logging.ERROR)))
        assert writer.stats().rejected == 0
        requests = len(scripted.requests)
        scripted._refused_rows.clear()
        scripted.healthy()
        assert writer.flush(30)
        stats = writer.stats()

    assert numbers_in(scripted) == list(range(200))
    assert (stats.delivered, stats.rejected) == (200, 0)
    assert requests < 200, "nearly every row was sent alone"
