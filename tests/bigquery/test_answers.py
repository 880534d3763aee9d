"""What BigQuery answers about rows, and what is no acknowledgement of any."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
from google.cloud import bigquery
from hypothesis import given
from hypothesis import strategies as st

from lorc_eventlog.bigquery.answers import read_answer, read_errors
from lorc_eventlog.bigquery.insert_all import InsertAllTransport
from lorc_eventlog.bigquery.transport import Answer, Failure, RefusedRow
from rows import make_row
from scripted_bigquery import ScriptedBigQuery, answer, malformed_json, redirect

TABLE = "dataset.events"
INVALID = {"reason": "invalid", "location": "payload", "message": "bad"}


def refused(errors: object, count: int = 1) -> list[RefusedRow]:
    found = read_errors(errors, count)
    assert isinstance(found, Answer)
    assert found.again == ()
    return list(found.refused)


def told(errors: object) -> str:
    [row] = refused(errors)
    return row.reason.told([])


# What acknowledges rows


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "bigquery#tableDataInsertAllResponse"},
        {"kind": "bigquery#tableDataInsertAllResponse", "of another year": True},
        {},  # an emulator that leaves out what is empty
        {"insertErrors": []},
        {"insertErrors": None},
        {"kind": "k", "error": None},
        UserDict(kind="k"),
    ],
)
def test_an_object_of_bigquerys_form_acknowledges_all_rows(body: object) -> None:
    assert read_answer(body, 3) == Answer()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "no acknowledgement: the answer is a list, not an object"),
        ("hello", "no acknowledgement: the answer is a str, not an object"),
        (None, "no acknowledgement: the answer is a NoneType, not an object"),
        ({"status": "UP"}, "no acknowledgement: the answer is not BigQuery's"),
        ({"kind": "k", "insertErrors": 5}, "no acknowledgement: its insertErrors are no list"),
        ({"insertErrors": {"0": {}}}, "no acknowledgement: its insertErrors are no list"),
        ({"insertErrors": "bad"}, "no acknowledgement: its insertErrors are no list"),
        ({"insertErrors": ["bad"]}, "no acknowledgement: an error of a row is no object"),
        ({"kind": "k", "error": "no"}, "200 with an error in it: no"),
        ({"error": {"code": "x"}}, "200 with an error in it"),
        ({"error": {"code": 400, "message": "no"}}, "200 with an error in it: 400: no"),
        (
            {"error": {"code": 503, "message": "no", "errors": [{"reason": "backendError"}]}},
            "200 with an error in it: 503 backendError: no",
        ),
    ],
)
def test_anything_else_acknowledges_none(body: object, reason: str) -> None:
    failure = read_answer(body, 3)
    assert isinstance(failure, Failure)
    assert failure.reason.told([]) == reason
    assert failure.what_to_do is None
    assert failure.stored == "unknown"


def test_an_error_in_an_answer_says_what_to_do() -> None:
    failure = read_answer({"error": {"code": 404, "message": "Not found"}}, 1)
    assert isinstance(failure, Failure)
    assert "create the table" in (failure.what_to_do or "")
    assert not failure.may_be_the_rows


@pytest.mark.parametrize("index", [-1, 3, True, "0", 0.0, None, [0], {}])
def test_an_index_of_no_row_makes_the_answer_malformed(index: object) -> None:
    failure = read_errors([{"index": 1, "errors": [INVALID]}, {"index": index, "errors": []}], 3)
    assert isinstance(failure, Failure)
    assert failure.reason.text == "no acknowledgement: it names a row that was not sent"


def test_an_index_that_is_missing_is_zero() -> None:
    assert [row.index for row in refused([{"errors": [INVALID]}], count=3)] == [0]


def test_a_row_that_is_named_twice_has_both_errors() -> None:
    stopped = {"reason": "stopped"}
    errors = [{"index": 1, "errors": [stopped]}, {"index": 1, "errors": [INVALID]}]
    [row] = refused(errors, count=2)
    assert (row.index, row.reason.text) == (1, "stopped at the row; invalid at payload")
    twice = [{"index": 0, "errors": [stopped]}] * 2
    assert read_errors(twice, 1) == Answer(again=(0,))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["index", "errors", "reason", "location", "message", "insertErrors", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(ANYTHING, st.integers(1, 3))
def test_no_answer_raises_and_none_names_a_row_that_was_not_sent(body: Any, count: int) -> None:
    for found in (read_answer(body, count), read_errors(body, count)):
        if isinstance(found, Answer):
            named = [*found.again, *(row.index for row in found.refused)]
            assert len(set(named)) == len(named) <= count
            assert set(named) <= set(range(count))
            for row in found.refused:
                row.reason.told([make_row()] * count)


# What is said of a row


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ([INVALID], "invalid at payload: bad"),
        (
            [{"reason": "invalid", "location": "colour", "message": "bad"}],
            "invalid at the row: bad",
        ),
        ([{"reason": "invalid", "location": "payload"}], "invalid at payload"),
        (
            [{"reason": "stopped", "message": None}, {**INVALID, "message": "Odd."}],
            "stopped at the row; invalid at payload: Odd.",
        ),
        ([{}], "unknown at the row"),
        ([], "unknown at the row"),
        (None, "unknown at the row"),
        ("bad", "unknown at the row: bad"),
        (["bad", "worse"], "unknown at the row: bad; worse"),
        (5, "unknown at the row: 5"),
        ([[{"reason": "invalid"}]], "unknown at the row: [{'reason': 'invalid'}]"),
        ({"reason": "invalid", "message": "bad"}, "invalid at the row: bad"),
        ([{"reason": "patient 17", "location": 4, "message": 5}], "unknown at the row: 5"),
    ],
)
def test_a_row_is_refused_with_whatever_reason_there_is(details: object, reason: str) -> None:
    assert told([{"index": 0, "errors": details}]) == reason


def test_a_row_is_refused_without_any_reason() -> None:
    assert told([{}]) == "unknown at the row"


@pytest.mark.parametrize(
    "reason",
    ["stopped", "timeout", "backendError", "internalError", "rateLimitExceeded", "quotaExceeded"],
)
def test_a_row_that_is_itself_in_order_is_to_be_sent_again(
    scripted: ScriptedBigQuery, client: bigquery.Client, reason: str
) -> None:
    scripted.refuse_row(lambda row: "unlucky" in row["payload"], reason)
    rows = [make_row(), make_row(x="unlucky")]
    assert InsertAllTransport(client, TABLE).send(rows, timeout=10) == Answer(again=(1,))


def test_a_long_message_is_cut() -> None:
    assert len(told([{"errors": [{"reason": "invalid", "message": "y" * 10_000_000}]}])) < 600


# Which reasons are the same, and which are the payload's


def kinds(*details: dict[str, Any]) -> set[str]:
    errors = [{"index": index, "errors": [detail]} for index, detail in enumerate(details)]
    return {row.kind for row in refused(errors, count=len(details))}


def test_a_reason_is_the_same_whatever_value_it_quotes() -> None:
    said = (
        "Could not parse '2026-01-01' as a number.",
        "Could not parse 'Ada'  as a number.",
        "could not parse 17.5 as a number.",
        "Could not parse 17.5 as a number.: Ada",
    )
    place = {"reason": "invalid", "location": "created_at"}
    assert len(kinds(*({**place, "message": message} for message in said))) == 1
    assert len(kinds(INVALID, {**INVALID, "location": "source"})) == 2
    assert len(kinds(INVALID, {**INVALID, "reason": "other"})) == 2
    assert len(kinds(INVALID, {**INVALID, "message": "worse"})) == 2


@pytest.mark.parametrize(
    ("location", "message", "verdict"),
    [
        ("payload", "bad", True),
        ("payload", "Invalid JSON in field payload: unexpected end", True),
        ("payload", "JSON nesting exceeds 500 levels", True),
        ("", "Maximum allowed row size exceeded. Allowed: 10485760 Row size: 11000000", True),
        ("payload", "no such field: payload.", False),
        ("payload", "This field: payload is not a record.", False),
        ("payload", "Cannot convert value to integer (bad value): {}", False),
        ("subject_id", "no such field: subject_id.", False),
        ("event_type", "Maximum length exceeded", False),
        ("source", "the row is too large", False),
        ("", "Missing required field: Msg_0_CLOUD_QUERY_TABLE.tenant.", False),
        ("", "", False),
    ],
)
def test_a_reason_is_the_payloads_if_no_other_table_would_help(
    location: str, message: str, verdict: bool
) -> None:
    error = {"reason": "invalid", "location": location, "message": message}
    [row] = refused([{"index": 0, "errors": [error]}])
    assert row.is_about_payload == verdict


# Over HTTP


@pytest.mark.parametrize("code", [301, 302, 303])
def test_a_redirect_that_loses_the_rows_is_not_followed(
    scripted: ScriptedBigQuery, client: bigquery.Client, code: int
) -> None:
    """The GET that would follow is answered with 200, and stores nothing."""
    scripted.script(redirect(code))
    transport = InsertAllTransport(client, TABLE)
    failure = transport.send([make_row()], timeout=10)
    assert isinstance(failure, Failure)
    assert failure.reason.text == f"{code}: a redirect would lose the rows"
    assert "HTTPS_PROXY" in (failure.what_to_do or "")
    assert not failure.may_be_the_rows
    assert transport.send([make_row()], timeout=10) == Answer()
    assert len(scripted.rows) == 1


@pytest.mark.parametrize("code", [307, 308])
def test_a_redirect_that_keeps_the_rows_is_followed(
    scripted: ScriptedBigQuery, client: bigquery.Client, code: int
) -> None:
    scripted.script(redirect(code))
    failure = InsertAllTransport(client, TABLE).send([make_row()], timeout=10)
    assert isinstance(failure, Failure)
    assert failure.reason.text == "404 notFound: Not found: POST /elsewhere"


NO_ACKNOWLEDGEMENTS = [
    b"",
    b"[]",
    b'"hello"',
    b"<html>Log in!</html>",
    b'{"status": "UP"}',
    b'{"error": {"code": 503, "message": "upstream down"}}',
    b'{"kind": "k", "insertErrors": [{"index": 7, "errors": []}]}',
    b'{"kind": "k", "insertErrors": [{"index": -1, "errors": []}]}',
]


@pytest.mark.parametrize("text", ["plain", "beyond ASCII: é"])
@pytest.mark.parametrize("body", NO_ACKNOWLEDGEMENTS)
def test_a_200_without_an_acknowledgement_delivers_nothing(
    scripted: ScriptedBigQuery, client: bigquery.Client, body: bytes, text: str
) -> None:
    """Rows beyond ASCII go by another method of Google's client, which takes any answer."""
    scripted.script(answer(body))
    row = make_row(x=text)
    transport = InsertAllTransport(client, TABLE)
    failure = transport.send([row], timeout=10)
    assert isinstance(failure, Failure)
    assert failure.stored == "unknown"
    assert transport.send([row], timeout=10) == Answer()
    assert scripted.rows == [row]


@pytest.mark.parametrize("text", ["plain", "beyond ASCII: é"])
def test_an_error_without_an_index_is_the_first_rows(
    scripted: ScriptedBigQuery, client: bigquery.Client, text: str
) -> None:
    scripted.script(answer(b'{"insertErrors": [{"errors": [{"reason": "invalid"}]}]}'))
    rows = [make_row(x=text), make_row()]
    found = InsertAllTransport(client, TABLE).send(rows, timeout=10)
    assert isinstance(found, Answer)
    assert [row.index for row in found.refused] == [0]


def test_an_answer_that_is_cut_off_is_to_be_tried_again(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.script(malformed_json())
    failure = InsertAllTransport(client, TABLE).send([make_row()], timeout=10)
    assert isinstance(failure, Failure)
    assert failure.reason.text.startswith("JSONDecodeError: ")
