"""The view that has each event once, against the emulator."""

from __future__ import annotations

from contextlib import closing

import pytest
from google.cloud import bigquery

from clients import Query
from lorc_eventlog import EventWriter, build_envelope, create_events_table


@pytest.mark.usefixtures("events_table")
def test_the_view_has_each_event_once(emulator_client: bigquery.Client, query: Query) -> None:
    """The emulator, like BigQuery after a minute, does not know an insertId again."""
    create_events_table(emulator_client, deduplicated_view=True)
    writer = EventWriter(emulator_client, flush_interval=0.01)
    events = [
        build_envelope(event_type="test.happened", payload={"number": number}, source="tests")
        for number in range(3)
    ]
    for event in [*events, *events[:2]]:
        writer.submit(event)
    writer.close()
    assert query("SELECT COUNT(*) AS n FROM events") == [{"n": 5}]
    assert query(
        "SELECT event_id, JSON_VALUE(payload, '$.number') AS number FROM events_deduplicated "
        "ORDER BY created_at, number"
    ) == [
        {"event_id": event["event_id"], "number": str(event["payload"]["number"])}
        for event in events
    ]


def test_the_view_has_the_columns_of_the_table(
    emulator_client: bigquery.Client, events_table: str, query: Query
) -> None:
    create_events_table(emulator_client, deduplicated_view=True)
    with closing(EventWriter(emulator_client)) as writer:
        writer.emit("test.happened", {}, source="tests")
    (row,) = query("SELECT * FROM events_deduplicated")
    table = emulator_client.get_table(events_table)
    assert list(row) == [column.name for column in table.schema]


def test_the_view_may_be_created_again_and_is_not_created_unasked(
    emulator_client: bigquery.Client, events_table: str
) -> None:
    dataset = events_table.partition(".")[0]
    assert [table.table_id for table in emulator_client.list_tables(dataset)] == ["events"]
    for _ in range(2):
        created = create_events_table(emulator_client, deduplicated_view=True)
        assert created.table_id == "events"
    assert sorted(table.table_id for table in emulator_client.list_tables(dataset)) == [
        "events",
        "events_deduplicated",
    ]
