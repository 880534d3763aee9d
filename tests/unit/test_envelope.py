"""The core: what an envelope is, and how one event is written at once."""

from __future__ import annotations

import enum
import re
import time
import uuid
from collections import ChainMap, UserDict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest
from google.cloud import bigquery
from hypothesis import given
from hypothesis import strategies as st

import lorc_eventlog.bigquery.insert_all
from clients import Query
from lorc_eventlog import Envelope, build_envelope, emit
from lorc_eventlog.events.envelope import to_envelope, to_row
from lorc_eventlog.events.row import (
    _SHORT,
    _SHORT_PAYLOAD,
    SMALL_ROW,
    Row,
    draft_at,
    finish,
    finish_all,
    row_at,
    row_bytes,
)
from scripted_bigquery import ScriptedBigQuery, status

KEYS = [
    "event_id",
    "event_type",
    "source",
    "schema_ref",
    "created_at",
    "correlation_id",
    "subject_id",
    "payload",
]


class Kind(enum.StrEnum):
    RECEIVED = "email.received"


class OldKind(str, enum.Enum):  # noqa: UP042  how it was done before Python 3.11
    RECEIVED = "email.received"


class Unreadable(Mapping[str, Any]):
    """A mapping, such as a row of a database that is gone, whose error tells what it holds."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __getitem__(self, key: str) -> Any:
        raise KeyError(self.secret)

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


def build(**changes: Any) -> Envelope:
    arguments: dict[str, Any] = {
        "event_type": "email.received",
        "payload": {"subject": "Hello"},
        "source": "gmail_ingester",
    }
    return build_envelope(**(arguments | changes))


def error_texts(error: BaseException | None) -> str:
    """All that an error and those that it came from can tell, suppressed ones included."""
    texts = []
    while error is not None:
        texts.append(repr(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


# The envelope


def test_an_envelope_has_exactly_the_eight_keys_in_their_order() -> None:
    assert list(build()) == KEYS
    assert list(Envelope.__annotations__) == KEYS


def test_an_envelope_holds_what_it_was_given() -> None:
    envelope = build(schema_ref="email.v1", correlation_id="trace-1", subject_id="patient-17")
    del envelope["event_id"], envelope["created_at"]
    assert envelope == {
        "event_type": "email.received",
        "source": "gmail_ingester",
        "schema_ref": "email.v1",
        "correlation_id": "trace-1",
        "subject_id": "patient-17",
        "payload": {"subject": "Hello"},
    }


def test_what_is_optional_is_none() -> None:
    envelope = build()
    assert envelope["schema_ref"] is None
    assert envelope["correlation_id"] is None
    assert envelope["subject_id"] is None


def test_each_event_has_a_uuid4_of_its_own() -> None:
    ids = [build()["event_id"] for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {uuid.UUID(event_id).version for event_id in ids} == {4}
    assert ids[0] == str(uuid.UUID(ids[0]))


def test_created_at_is_now_in_utc_with_microseconds() -> None:
    before = datetime.now(UTC)
    created_at = build()["created_at"]
    after = datetime.now(UTC)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", created_at)
    assert before <= datetime.fromisoformat(created_at) <= after


@pytest.mark.parametrize(
    ("created", "text"),
    [
        (1763498700.123456, "2025-11-18T20:45:00.123456+00:00"),
        (1763498700, "2025-11-18T20:45:00.000000+00:00"),
        (1763498700.5, "2025-11-18T20:45:00.500000+00:00"),
        (1763498700.9999999, "2025-11-18T20:45:01.000000+00:00"),
        (0.0, "1970-01-01T00:00:00.000000+00:00"),
        (-0.25, "1969-12-31T23:59:59.750000+00:00"),
    ],
)
def test_created_at_always_has_microseconds(created: float, text: str) -> None:
    assert row_at(created, "a", {}, "s")["created_at"] == text


@given(st.floats(min_value=0, max_value=2**33))
def test_created_at_is_what_datetime_says(created: float) -> None:
    expected = datetime.fromtimestamp(created, UTC).isoformat(timespec="microseconds")
    assert row_at(created, "a", {}, "s")["created_at"] == expected


@pytest.mark.parametrize(
    "payload",
    [
        {"a": 1},
        MappingProxyType({"a": 1}),
        UserDict({"a": 1}),
        ChainMap({"a": 1}, {"a": 2}),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_every_mapping_is_a_payload_and_becomes_a_dict(payload: Mapping[str, Any]) -> None:
    envelope = build(payload=payload)
    assert type(envelope["payload"]) is dict
    assert envelope["payload"] == {"a": 1}


def test_the_envelope_holds_a_copy_of_the_outermost_dict() -> None:
    payload = {"a": 1}
    envelope = build(payload=payload)
    payload["a"] = 2
    assert envelope["payload"] == {"a": 1}


@pytest.mark.parametrize("kind", [Kind.RECEIVED, OldKind.RECEIVED])
def test_an_enum_of_strings_counts_as_its_value(kind: str) -> None:
    envelope = build(event_type=kind, source=kind, correlation_id=kind)
    for key in ("event_type", "source", "correlation_id"):
        assert type(envelope[key]) is str
        assert envelope[key] == "email.received"


def test_an_optional_field_that_is_no_string_becomes_its_text() -> None:
    trace = uuid.uuid4()
    envelope = build(schema_ref=1.5, correlation_id=trace, subject_id=17)
    assert envelope["schema_ref"] == "1.5"
    assert envelope["correlation_id"] == str(trace)
    assert envelope["subject_id"] == "17"


def test_a_field_whose_text_cannot_be_made_does_not_cost_the_event() -> None:
    class Gone:
        def __str__(self) -> str:
            raise LookupError("patient-17 does not exist")

    subject_id = build(subject_id=Gone())["subject_id"]
    assert subject_id is not None
    assert "Gone object at" in subject_id


def test_lone_surrogates_are_replaced_everywhere() -> None:
    envelope = build(event_type="a\ud800", source="b\udfff", subject_id="é\ud800")
    assert envelope["event_type"] == "a\ufffd"
    assert envelope["source"] == "b\ufffd"
    assert envelope["subject_id"] == "é\ufffd"


def test_other_alphabets_stay_as_they_are() -> None:
    assert build(source="приём/邮件/📧")["source"] == "приём/邮件/📧"


@pytest.mark.parametrize("field", ["event_type", "source"])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", "must be a non-empty string, not an empty string"),
        (None, "is missing: it must be a non-empty string"),
        (5, "must be a non-empty string, not int"),
        (b"email", "must be a non-empty string, not bytes"),
        (["email"], "must be a non-empty string, not list"),
    ],
)
def test_event_type_and_source_must_be_non_empty_strings(
    field: str, value: object, found: str
) -> None:
    with pytest.raises(ValueError, match=f"^{field} {found}$"):
        build(**{field: value})


@pytest.mark.parametrize("payload", ["text", None, 5, ["a"], [("a", 1)], b"{}"])
def test_a_payload_must_be_a_mapping(payload: object) -> None:
    kind = type(payload).__name__
    with pytest.raises(ValueError, match=rf"^payload must be a mapping \(a dict\), not {kind}$"):
        build(payload=payload)


def test_a_payload_that_cannot_be_json_is_refused() -> None:
    cycle: dict[str, Any] = {}
    cycle["itself"] = cycle
    with pytest.raises(ValueError, match="cycle"):
        build(payload=cycle)


def test_a_payload_that_cannot_be_read_is_refused_without_a_word_of_it() -> None:
    with pytest.raises(
        ValueError, match=r"^payload is a Unreadable that cannot be read$"
    ) as refused:
        build(payload=Unreadable("PrivateWord"))
    assert "PrivateWord" not in str(refused.value)
    assert refused.value.__suppress_context__


# The row


def test_a_row_is_the_envelope_with_the_payload_as_json_text() -> None:
    envelope = build(subject_id="patient-17")
    row = to_row(envelope)
    assert list(row) == KEYS
    assert row == {**envelope, "payload": '{"subject":"Hello"}'}


def test_an_envelope_that_is_not_whole_is_refused_with_what_it_lacks() -> None:
    envelope: Any = build()
    del envelope["source"], envelope["payload"]
    with pytest.raises(ValueError, match=r"^the envelope lacks source, payload$"):
        to_row(envelope)


def test_a_row_becomes_the_envelope_again_for_a_dead_letter() -> None:
    envelope = build(payload={"a": [1, {"b": None}]}, subject_id="patient-17")
    assert to_envelope(to_row(envelope)) == envelope


# One event at once


def test_emit_writes_one_row_with_the_event_id_as_its_insert_id(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    emit(
        "email.received",
        {"labels": ["inbox"]},
        source="gmail_ingester",
        bq_client=client,
        schema_ref="email.v1",
        correlation_id="trace-1",
        subject_id="patient-17",
    )
    [request] = scripted.requests
    [row] = scripted.rows
    assert request.table == "test-project:dataset.events"
    assert request.insert_ids == (row.pop("event_id"),)
    assert datetime.fromisoformat(row.pop("created_at")).timestamp() == pytest.approx(
        time.time(), abs=60
    )
    assert row == {
        "event_type": "email.received",
        "source": "gmail_ingester",
        "schema_ref": "email.v1",
        "correlation_id": "trace-1",
        "subject_id": "patient-17",
        "payload": '{"labels":["inbox"]}',
    }


@pytest.mark.usefixtures("events_table")
def test_what_emit_writes_is_a_json_object_to_sql(
    query: Query, emulator_client: bigquery.Client
) -> None:
    payload = {"subject": "My results", "labels": ["inbox", "unread"]}
    emit("email.received", payload, source="gmail_ingester", bq_client=emulator_client)
    assert query(
        "SELECT payload.subject AS subject, JSON_VALUE(payload, '$.labels[0]') AS label,"
        " JSON_TYPE(payload) AS kind FROM events"
    ) == [{"subject": "My results", "label": "inbox", "kind": "object"}]


def test_emit_reads_the_environment_at_the_call(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dataset in ("first", "other-project.second"):
        monkeypatch.setenv("EVENTS_BQ_DATASET", dataset)
        emit("a.b", {}, source="s", bq_client=client)
    assert [request.table for request in scripted.requests] == [
        "test-project:first.events",
        "other-project:second.events",
    ]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["EVENTS_BQ_DATASET"], "^EVENTS_BQ_DATASET not set: "),
        (["EVENTS_BQ_TABLE"], "^EVENTS_BQ_TABLE not set: "),
        (["EVENTS_BQ_DATASET", "EVENTS_BQ_TABLE"], "^EVENTS_BQ_DATASET and EVENTS_BQ_TABLE not"),
    ],
)
def test_emit_names_the_variables_that_are_missing(
    scripted: ScriptedBigQuery,
    client: bigquery.Client,
    monkeypatch: pytest.MonkeyPatch,
    missing: list[str],
    message: str,
) -> None:
    for name in missing:
        monkeypatch.delenv(name)
    with pytest.raises(RuntimeError, match=message):
        emit("a.b", {}, source="s", bq_client=client)
    assert scripted.requests == []


def test_emit_sends_nothing_of_a_bad_event(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    with pytest.raises(ValueError, match="payload must be a mapping"):
        emit("a.b", "text", source="s", bq_client=client)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="event_type must be"):
        emit("", {}, source="s", bq_client=client)
    assert scripted.requests == []


def test_emit_raises_bigquerys_reasons_when_the_row_is_refused(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.refuse_row(lambda _: True, "invalid", "Field too odd.")
    with pytest.raises(
        RuntimeError,
        match=r"^BigQuery did not take event [0-9a-f-]{36} \(a\.b\): invalid at payload: Field too",
    ):
        emit("a.b", {}, source="s", bq_client=client)


def test_emit_tries_again_what_fails_for_the_moment(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, _high: low)  # no pause
    scripted.script(status(503), status(429), status(500))
    emit("a.b", {}, source="s", bq_client=client)
    assert len(scripted.requests) == 4
    assert len({request.insert_ids for request in scripted.requests}) == 1
    assert len(scripted.rows) == 1


def test_emit_gives_up_in_the_end_and_says_why(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lorc_eventlog.bigquery.insert_all, "REQUEST_TIMEOUT", 0.5)
    scripted.always(status(503))
    with pytest.raises(RuntimeError, match=r"\(a\.b\): 503 backendError: Error encountered"):
        emit("a.b", {}, source="s", bq_client=client)


def test_emit_says_what_to_do_when_the_table_is_missing(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.script(status(404))
    with pytest.raises(RuntimeError, match=r"404 notFound: .*create_events_table"):
        emit("a.b", {}, source="s", bq_client=client)
    assert len(scripted.requests) == 1


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 502])
def test_no_error_of_emit_nor_what_it_came_from_quotes_the_event(
    scripted: ScriptedBigQuery,
    client: bigquery.Client,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    monkeypatch.setattr(lorc_eventlog.bigquery.insert_all, "REQUEST_TIMEOUT", 0.5)
    scripted.always(status(code, "" if code in (413, 502) else "invalid", "Bad value PrivateWord"))
    with pytest.raises(RuntimeError) as refused:
        emit("a.b", {"x": "PrivateWord"}, source="s", bq_client=client, subject_id="PrivateWord")
    assert "PrivateWord" not in error_texts(refused.value)
    assert refused.value.__context__ is None


def test_emit_raises_runtime_error_when_bigquery_is_not_reached(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lorc_eventlog.bigquery.insert_all, "REQUEST_TIMEOUT", 0.5)
    scripted.stop()
    with pytest.raises(RuntimeError, match=r"\(a\.b\): ConnectionError: "):
        emit("a.b", {}, source="s", bq_client=client)


@pytest.mark.parametrize("created", [None, "2025", float("nan"), float("inf"), 1e20, -1e20])
def test_a_record_whose_time_is_none_happened_when_it_is_sent(created: Any) -> None:
    before = datetime.now(UTC)
    row = finish(draft_at(created, "a.b", {}, "s", None, None, None))
    assert before <= datetime.fromisoformat(row["created_at"]) <= datetime.now(UTC)


def test_rows_finished_together_have_ids_of_their_own_and_keep_those_that_they_have() -> None:
    rows = [draft_at(number, "a.b", {}, "s", None, None, None) for number in range(300)]
    first = finish(rows[0])["event_id"]
    finish_all(rows)
    ids = [uuid.UUID(row["event_id"]) for row in rows]
    assert rows[0]["event_id"] == first
    assert len(set(ids)) == 300
    assert {(each.version, each.variant) for each in ids} == {(4, uuid.RFC_4122)}
    assert [str(each) for each in ids] == [row["event_id"] for row in rows]
    assert all(
        len({str(each)[place] for each in ids}) > 3 for place in {*range(36)} - {8, 13, 14, 18, 23}
    )
    assert rows[299]["created_at"] == "1970-01-01T00:04:59.000000+00:00"
    finish_all(rows)
    assert [uuid.UUID(row["event_id"]) for row in rows] == ids


def test_an_envelope_without_a_key_is_none() -> None:
    envelope: Any = build_envelope(event_type="a.b", payload={}, source="s")
    del envelope["source"], envelope["event_id"]
    with pytest.raises(ValueError, match="the envelope lacks event_id, source"):
        to_row(envelope)


@pytest.mark.parametrize(
    "longer", ["payload", "event_type", "source", "schema_ref", "correlation_id", "subject_id"]
)
def test_a_draft_that_may_be_no_small_row_says_so(longer: str) -> None:
    def draft() -> Row:
        payload = {"": texts["payload"]}
        return draft_at(0.0, **{**texts, "payload": payload})  # type: ignore[arg-type]

    texts = dict.fromkeys(Row.__annotations__.keys() - {"event_id", "created_at"}, "x" * _SHORT)
    texts["payload"] = "x" * (_SHORT_PAYLOAD - len('{"":""}'))
    assert draft()["event_id"] == ""
    assert row_bytes(draft()) <= SMALL_ROW
    texts[longer] += "x"
    assert not draft()["event_id"]
    assert draft()["event_id"] != ""
    assert row_bytes(finish(draft())) == row_bytes(draft())


@pytest.mark.parametrize("key", ["event_id", "event_type", "source", "created_at"])
@pytest.mark.parametrize("value", ["", None, 5])
def test_an_envelope_with_an_empty_field_is_none(key: str, value: object) -> None:
    envelope: Any = build_envelope(event_type="a.b", payload={}, source="s")
    envelope[key] = value
    with pytest.raises(ValueError, match=key):
        to_row(envelope)


def test_the_optional_fields_of_an_envelope_become_text() -> None:
    envelope: Any = build_envelope(event_type="a.b", payload={}, source="s")
    envelope |= {"schema_ref": 1, "correlation_id": 2, "subject_id": 3}
    row = to_row(envelope)
    assert (row["schema_ref"], row["correlation_id"], row["subject_id"]) == ("1", "2", "3")
