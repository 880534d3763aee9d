"""How rows are sent: through what of Google's client, and one at once in the caller's thread."""

from __future__ import annotations

import functools
import json
import logging
import sys
import types
from typing import Any

import pytest
import requests
from google.auth.exceptions import RefreshError
from google.cloud import bigquery
from wrapt import FunctionWrapper

from clients import make_client
from harness import Records
from lorc_eventlog.bigquery import imports, insert_all
from lorc_eventlog.bigquery.insert_all import InsertAllTransport, insert_now, insert_patiently
from lorc_eventlog.bigquery.transport import Answer, Failure
from rows import make_row
from scripted_bigquery import (
    Fault,
    ScriptedBigQuery,
    answer,
    drip,
    hang,
    malformed_json,
    redirect,
    reset,
    status,
)

TABLE = "dataset.events"


# Through what


def test_the_request_is_the_one_that_googles_client_would_send(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    api_request = client._connection.api_request

    def record(**arguments: Any) -> Any:
        data = arguments["data"]
        sent.append((arguments["path"], data if isinstance(data, dict) else json.loads(data)))
        return api_request(**arguments)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(client._connection, "api_request", record)
    rows = [make_row(subject_id="p", subject='a "quoted" one'), make_row()]
    assert InsertAllTransport(client, TABLE).send(rows, timeout=10) == Answer()
    client.insert_rows_json(
        TABLE, rows, row_ids=[row["event_id"] for row in rows], skip_invalid_rows=True
    )
    ours, googles = sent
    assert ours == googles
    assert len(scripted.rows) == 2


def test_text_beyond_ascii_arrives_as_it_is(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    InsertAllTransport(client, TABLE).send([make_row(subject="Ärger \N{PILE OF POO}")], timeout=10)
    assert scripted.events()[0]["payload"] == {"subject": "Ärger \N{PILE OF POO}"}


def test_a_client_whose_method_somebody_wrapped_is_called_by_it(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = bigquery.Client.insert_rows_json
    seen = []

    @functools.wraps(original)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        seen.append(arguments[1])
        return original(*arguments, **options)

    transport = InsertAllTransport(client, TABLE)
    assert transport.send([make_row()], timeout=10) == Answer()
    monkeypatch.setattr(bigquery.Client, "insert_rows_json", wrapped)
    with Records() as said:
        assert transport.send([make_row()], timeout=10) == Answer()
        assert InsertAllTransport(client, TABLE).send([make_row()], timeout=10) == Answer()
    assert seen == [TABLE, TABLE]
    assert len(scripted.rows) == 3
    assert said.records == []


def test_a_client_whose_method_somebody_wrapped_by_wrapt_is_called_by_it(
    client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def wrapper(wrapped: Any, _: object, arguments: Any, options: Any) -> Any:
        seen.append(arguments[0])
        return wrapped(*arguments, **options)

    method = bigquery.Client.insert_rows_json
    monkeypatch.setattr(bigquery.Client, "insert_rows_json", FunctionWrapper(method, wrapper))
    assert InsertAllTransport(client, TABLE).send([make_row()], timeout=10) == Answer()
    assert seen == [TABLE]


def without_connection(client: Any) -> None:
    """As a release would be that renames the private connection."""
    renamed = client.__dict__.pop("_connection")

    def call(retry: Any, span_name: str, span_attributes: Any, **options: Any) -> Any:  # noqa: ARG001
        return retry(functools.partial(renamed.api_request, **options))()

    client._call_api = call


def with_other_arguments(client: Any) -> None:
    api_request = client._connection.api_request

    def request(verb: str, path: str, body: Any, wait: float) -> Any:
        return api_request(method=verb, path=path, data=body, timeout=wait)

    def call(retry: Any, span_name: str, span_attributes: Any, **options: Any) -> Any:  # noqa: ARG001
        return retry(functools.partial(request, *options.values()))()

    client._connection.api_request = request
    client._call_api = call


def with_call_api(client: bigquery.Client) -> None:
    """As a subclass that measures calls would."""
    original = client._call_api
    client._call_api = functools.partial(original)  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [without_connection, with_other_arguments, with_call_api])
def test_a_client_whose_private_parts_are_others_is_called_by_its_method_and_that_is_said_once(
    scripted: ScriptedBigQuery, client: bigquery.Client, change: Any
) -> None:
    change(client)
    scripted.script(status(503), answer(b'{"error": "no"}'))
    transport = InsertAllTransport(client, TABLE)
    with Records() as said:
        assert isinstance(transport.send([make_row()], timeout=10), Failure)
        assert isinstance(transport.send([make_row()], timeout=10), Failure)
        assert transport.send([make_row()], timeout=10) == Answer()
    [message] = said.texts(logging.INFO)
    assert message.startswith("events are sent by insert_rows_json")
    assert len(scripted.rows) == 1


def test_an_error_while_sending_says_nothing_about_how_to_send(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = InsertAllTransport(client, TABLE)
    api_request = client._connection.api_request

    def broken(**_: object) -> None:
        raise AttributeError("_connection")

    with monkeypatch.context() as patch:
        patch.setattr(client._connection, "api_request", broken)
        failure = transport.send([make_row()], timeout=10)
    assert isinstance(failure, Failure)
    assert failure.told([]) == "AttributeError: _connection"
    sent = []

    def record(**arguments: Any) -> Any:
        sent.append(type(arguments["data"]))
        return api_request(**arguments)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(client._connection, "api_request", record)
    assert transport.send([make_row()], timeout=10) == Answer()
    assert sent == [str]
    assert len(scripted.rows) == 1


def test_a_subclass_is_googles_client_too(scripted: ScriptedBigQuery) -> None:
    class Audited(bigquery.Client):
        pass

    with make_client(scripted.url) as client:
        client.__class__ = Audited
        assert InsertAllTransport(client, TABLE).send([make_row()], timeout=10) == Answer()


class Answers:
    """A client that gives one answer."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.calls: list[dict[str, Any]] = []

    def insert_rows_json(self, *_: object, **options: Any) -> object:
        self.calls.append(options)
        return self.answer


def test_a_double_gets_what_googles_client_would() -> None:
    client: Any = Answers([])
    row = make_row()
    assert InsertAllTransport(client, TABLE).send([row], timeout=10) == Answer()
    [options] = client.calls
    assert options == {
        "row_ids": [row["event_id"]],
        "skip_invalid_rows": True,
        "retry": None,
        "timeout": 10,
    }


@pytest.mark.parametrize("rows", [[], None, ()])
def test_a_double_that_answers_nothing_has_stored_the_row(rows: object) -> None:
    client: Any = Answers(rows)
    insert_now(client, TABLE, make_row())
    assert InsertAllTransport(client, TABLE).send([make_row()], timeout=10) == Answer()


@pytest.mark.parametrize("answer", [["bad"], [{"index": 1, "errors": []}], {"a": 1}, 5, object()])
def test_an_answer_of_a_double_that_makes_no_sense_is_no_success(answer: object) -> None:
    client: Any = Answers(answer)
    with pytest.raises(RuntimeError, match="no acknowledgement"):
        insert_now(client, TABLE, make_row())
    assert isinstance(InsertAllTransport(client, TABLE).send([make_row()], timeout=10), Failure)


# One row at once


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insert_all, "REQUEST_TIMEOUT", 2.0)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(400), "400 invalid: Request contains"),
        (status(401), "InvalidOperation: Anonymous credentials cannot be refreshed"),
        (status(403), "403 accessDenied: "),
        (status(413), "413: <!DOCTYPE html>"),
        (status(502), "502: <!DOCTYPE html>"),
        (malformed_json(), "JSONDecodeError: "),
        (reset(), "ConnectionError: "),
        (hang(), "ReadTimeout: "),
        (drip(0.05), "ConnectionError: "),
        (drip(0.05, head=True), "ReadTimeout: "),
        (redirect(302), "302: a redirect would lose the rows: something else answers"),
        (answer(b"<html>"), "JSONDecodeError: "),
        (answer(b"[]"), "no acknowledgement: the answer is a list"),
        (answer(b'{"error": {"code": 403, "message": "no"}}'), "200 with an error in it: 403: no"),
        (answer(b'{"insertErrors": [{}]}'), "unknown at the row"),
        (answer(b'{"insertErrors": [{"errors": [{"reason": "stopped"}]}]}'), "BigQuery puts the"),
    ],
    ids=lambda value: f"{value.name} {value.status}" if isinstance(value, Fault) else "",
)
def test_a_row_that_is_not_taken_at_once_is_one_runtime_error_without_a_past(
    scripted: ScriptedBigQuery, client: bigquery.Client, fault: Fault, message: str
) -> None:
    scripted.always(fault)
    row = make_row()
    with pytest.raises(RuntimeError) as failure:
        insert_now(client, TABLE, row)
    assert str(failure.value).startswith(
        f"BigQuery did not take event {row['event_id']} (a.b): {message}"
    )
    assert failure.value.__context__ is None


@pytest.mark.parametrize(
    "fault",
    [
        status(503),
        status(429),
        reset(),
        malformed_json(),
        answer(b"[]"),
        answer(b'{"error": {"code": 503}}'),
        answer(b'{"insertErrors": [{"errors": [{"reason": "backendError"}]}]}'),
    ],
    ids=lambda fault: f"{fault.name} {fault.status}",
)
def test_what_fails_for_the_moment_is_tried_again_at_once(
    scripted: ScriptedBigQuery, client: bigquery.Client, fault: Fault
) -> None:
    scripted.script(fault, fault)
    insert_now(client, TABLE, make_row())
    assert len(scripted.rows) == 1


def test_what_an_operator_must_mend_is_said_at_once(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(status(404))
    with pytest.raises(RuntimeError, match="create the table"):
        insert_now(client, TABLE, make_row())
    assert len(scripted.requests) == 1


def test_a_token_that_cannot_be_had_for_the_moment_is_asked_for_again(
    scripted: ScriptedBigQuery, client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [RefreshError("internal_failure", retryable=True)]
    api_request = client._connection.api_request

    def refreshing(**arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return api_request(**arguments)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(client._connection, "api_request", refreshing)
    insert_now(client, TABLE, make_row())
    assert len(scripted.rows) == 1


def test_a_client_that_is_none_is_a_runtime_error_that_says_so() -> None:
    not_a_client: Any = "ext://app.client"
    with pytest.raises(RuntimeError, match="AttributeError: 'str' object has no attribute"):
        insert_now(not_a_client, TABLE, make_row())


def test_a_double_that_raises_is_called_once() -> None:
    class Raises:
        calls = 0

        def insert_rows_json(self, *_: object, **__: object) -> None:
            self.calls += 1
            raise requests.exceptions.ConnectionError("away")

    client: Any = Raises()
    with pytest.raises(RuntimeError, match="ConnectionError: away"):
        insert_now(client, TABLE, make_row())
    assert client.calls == 1


def test_an_error_of_the_client_that_is_not_of_the_network_is_raised_at_once(
    scripted: ScriptedBigQuery,  # noqa: ARG001
    client: bigquery.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def broken(**_: object) -> None:
        calls.append(1)
        raise LookupError("PrivateWord")

    monkeypatch.setattr(client._connection, "api_request", broken)
    row = make_row(x="PrivateWord")
    with pytest.raises(RuntimeError, match=r"LookupError: …$"):
        insert_now(client, TABLE, row)
    assert calls == [1]


def test_without_googles_client_the_reason_is_said(
    client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_import() -> None:
        raise imports.ClientImportError("Google's client cannot be imported: OSError: none free")

    monkeypatch.setattr(insert_all, "import_client", no_import)
    failure = insert_patiently(client, TABLE, make_row())
    assert isinstance(failure, Failure)
    assert failure.told([]) == "Google's client cannot be imported: OSError: none free"
    failure = InsertAllTransport(client, TABLE).send([make_row()], timeout=1)
    assert isinstance(failure, Failure)
    assert failure.told([]) == "Google's client cannot be imported: OSError: none free"


def test_a_row_that_a_double_puts_off_is_not_taken() -> None:
    client: Any = Answers([{"index": 0, "errors": [{"reason": "stopped"}]}])
    with pytest.raises(RuntimeError, match="it puts the row off"):
        insert_now(client, TABLE, make_row())


def test_under_uwsgi_the_client_is_imported_when_a_writer_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is loaded later is torn down before the last flush of a worker."""
    imported = []

    def import_client() -> None:
        imported.append(1)
        raise imports.ClientImportError("no")

    monkeypatch.setattr(imports, "import_client", import_client)
    imports.prepare()
    monkeypatch.setitem(sys.modules, "uwsgi", types.ModuleType("uwsgi"))
    imports.prepare()
    assert imported == [1]


def test_control_characters_of_a_type_are_escaped() -> None:
    client: Any = Answers([{"index": 0, "errors": [{"reason": "invalid", "message": "a\nb"}]}])
    row = {**make_row(), "event_type": "t\nCRITICAL root spoofed"}
    with pytest.raises(RuntimeError) as failure:
        insert_now(client, TABLE, row)  # type: ignore[arg-type]
    assert "\n" not in str(failure.value)
    assert "(t\\nCRITICAL root spoofed): invalid at the row: a b" in str(failure.value)
