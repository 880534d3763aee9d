"""InsertAllTransport behind the seam: what it sends, returns, and says of its limits."""

from __future__ import annotations

from typing import Any

import pytest
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import bigquery
from hypothesis import given
from hypothesis import strategies as st

from lorc_eventlog import build_envelope
from lorc_eventlog.bigquery import insert_all
from lorc_eventlog.bigquery.insert_all import LIMITS, InsertAllTransport, encode_request
from lorc_eventlog.bigquery.transport import Answer, Failure, Reason, Refusal, Transport
from lorc_eventlog.events.envelope import to_row
from lorc_eventlog.events.row import Row
from scripted_bigquery import ScriptedBigQuery, status

TABLE = "dataset.events"


def make_row(subject_id: str | None = None, **payload: Any) -> Row:
    return to_row(
        build_envelope(event_type="a.b", payload=payload, source="s", subject_id=subject_id)
    )


@pytest.fixture
def transport(client: bigquery.Client) -> Transport:
    return InsertAllTransport(client, TABLE)


def test_rows_are_stored_and_the_others_named(
    scripted: ScriptedBigQuery, transport: Transport
) -> None:
    scripted.refuse_row(lambda row: "bad" in row["payload"], "invalid", "Not that.")
    scripted.refuse_row(lambda row: "later" in row["payload"], "stopped")
    rows = [make_row(), make_row(x="bad"), make_row(x="later")]
    answer = transport.send(rows, timeout=10)
    assert isinstance(answer, Answer)
    assert [refused.index for refused in answer.refused] == [1]
    assert answer.again == (2,)
    assert scripted.rows == rows[:1]


def test_a_request_that_fails_or_is_refused_is_returned_and_not_raised(
    scripted: ScriptedBigQuery, transport: Transport
) -> None:
    scripted.script(status(503), status(400))
    assert isinstance(transport.send([make_row()], timeout=10), Failure)
    assert isinstance(transport.send([make_row()], timeout=10), Refusal)
    assert transport.send([make_row()], timeout=10) == Answer()


def test_without_a_client_it_makes_one_with_the_first_request(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_credentials() -> bigquery.Client:
        raise DefaultCredentialsError("none were found")

    transport = InsertAllTransport(None, TABLE)
    transport.reconnect()
    assert not transport.is_connected
    with monkeypatch.context() as patch:
        patch.setattr(insert_all, "open_client", no_credentials)
        failure = transport.send([make_row()], timeout=10)
    assert isinstance(failure, Failure)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in (failure.what_to_do or "")
    assert transport.send([make_row()], timeout=10) == Answer()
    assert transport.is_connected
    assert len(scripted.rows) == 1
    transport.restart_in_child()
    assert not transport.is_connected


def test_after_reconnect_the_next_request_opens_a_new_connection(
    scripted: ScriptedBigQuery, transport: Transport
) -> None:
    for _ in range(2):
        transport.send([make_row()], timeout=10)
    transport.reconnect()
    transport.send([make_row()], timeout=10)
    first, second, third = (request.client_port for request in scripted.requests)
    assert first == second != third


def test_a_reason_is_told_without_what_it_quotes_of_the_rows() -> None:
    assert Reason("503").told([]) == "503"
    assert Reason("invalid", "Bad value: Ada").told([make_row(x="Ada")]) == "invalid: Bad value: …"


TEXT = st.text(max_size=60)


@given(
    st.lists(
        st.tuples(TEXT, TEXT, st.none() | TEXT, st.none() | TEXT, TEXT, TEXT),
        min_size=1,
        max_size=3,
    )
)
def test_a_request_is_never_larger_than_its_rows_are_said_to_be(texts: list[Any]) -> None:
    rows: list[Row] = [
        {
            "event_id": event_id,
            "event_type": event_type,
            "source": source,
            "schema_ref": schema_ref,
            "created_at": "2026-11-24T00:00:00.000000+00:00",
            "correlation_id": schema_ref,
            "subject_id": subject_id,
            "payload": payload,
        }
        for event_type, source, schema_ref, subject_id, payload, event_id in texts
    ]
    assert len(encode_request(rows).encode()) <= sum(map(LIMITS.wire_bytes, rows))
