"""One ``insertAll``: rows in, refused rows out; tells "try again" from "never".

``docs/reliability.md`` has the whole list.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import orjson

from lorc_eventlog.bigquery import transport
from lorc_eventlog.bigquery.client import open_client, renew_connections
from lorc_eventlog.bigquery.failures import (
    PASSING_REASONS,
    RequestRefusedError,
    TryAgainError,
    as_failure,
    reasons_of,
)

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.events.row import Row

REQUEST_TIMEOUT = 30.0
"""Seconds to wait for a connection, and then for an answer (Google's client waits for ever)."""

_ROW_FRAME_BYTES = 400
"""More than the keys and quotes, the id (twice) and the time of a row take in a request."""


def wire_bytes(row: Row) -> int:
    """Return how many bytes ``row`` takes in a request at most, whether it is finished or not."""
    size = _ROW_FRAME_BYTES + _text_bytes(row["event_type"]) + _text_bytes(row["payload"])
    size += _text_bytes(row["source"])
    for text in (row["event_id"], row["schema_ref"], row["correlation_id"], row["subject_id"]):
        if text:
            size += 2 * _text_bytes(text)
    return size


def _text_bytes(text: str) -> int:
    if text.isascii() and text.isprintable():
        return len(text) + text.count('"') + text.count("\\")
    return len(json.dumps(text))


LIMITS = transport.Limits(rows=50_000, request_bytes=9_000_000, wire_bytes=wire_bytes)


class InsertAllTransport:
    """Sends rows to one table by ``tabledata.insertAll``.

    Args:
        client: The BigQuery client; None makes one with the first request.
        table: ``dataset.table`` or ``project.dataset.table``.
    """

    limits = LIMITS

    def __init__(self, client: Client | None, table: str) -> None:
        self._given_client = client
        self._client = client
        self._table = table

    @property
    def is_connected(self) -> bool:
        """Whether a client is there."""
        return self._client is not None

    def send(
        self, rows: Sequence[Row], *, timeout: float
    ) -> transport.Answer | transport.Failure | transport.Refusal:
        """Send ``rows`` in one request, as :class:`lorc_eventlog.bigquery.transport.Transport`."""
        try:
            if self._client is None:
                self._client = open_client()
            answer = insert_rows(self._client, self._table, rows, timeout=timeout)
        except RequestRefusedError as refusal:
            text = str(refusal)
            return transport.Refusal(transport.Reason(text), is_about_size=text.startswith("413"))
        except Exception as error:  # noqa: BLE001  whatever it is, the rows wait for it
            failure = error if isinstance(error, TryAgainError) else as_failure(error, ())
            if not isinstance(failure, TryAgainError):
                return transport.Refusal(transport.Reason(str(failure)), is_about_size=False)
            return transport.Failure(
                transport.Reason(failure.reason),
                what_to_do=failure.what_to_do,
                may_be_the_rows=failure.may_be_the_rows,
                stored="unknown",
            )
        refused = (
            transport.RefusedRow(index, transport.Reason(text), text, is_about_payload=True)
            for index, text in answer.refused.items()
        )
        return transport.Answer(tuple(refused), tuple(answer.again))

    def reconnect(self) -> None:
        """Send what is sent from now on over new connections."""
        if self._client is not None:
            renew_connections(self._client)

    def restart_in_child(self) -> None:
        """Leave connections and locks to the parent: called in the child after a fork."""
        self._client = self._given_client
        self.reconnect()


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of the rows of one request; all the others are stored."""

    refused: dict[int, str]
    """Index of each row that BigQuery will never take, and why."""

    again: list[int]
    """Indices of rows that are in order and were not stored: send them again."""


def insert_rows(
    client: Client, table: str, rows: Sequence[Row], *, timeout: float = REQUEST_TIMEOUT
) -> Answer:
    """Send ``rows`` in one request that stores the good ones, whatever the others are.

    Args:
        client: The BigQuery client.
        table: ``dataset.table`` or ``project.dataset.table``.
        rows: At most BigQuery's 50,000, and at most 10 MB.
        timeout: Seconds to wait for the connection, and again for the answer.

    Raises:
        TryAgainError: The request failed and may pass later.
        RequestRefusedError: BigQuery will never take these rows together.
    """
    try:
        return _as_answer(_insert_all(client, table, rows, timeout), rows)
    except Exception as error:  # noqa: BLE001  whatever the client raises must not cost the rows
        failure = as_failure(error, rows)
    # Not in the except clause: the client's error may quote the payload, and would go with it.
    raise failure


def _insert_all(
    client: Client, table: str, rows: Sequence[Row], timeout: float
) -> Sequence[dict[str, Any]]:
    body = encode_request(rows) if _is_googles_own(client.insert_rows_json) else ""
    if not body.isascii() or not body:  # which requests sends in different ways
        return client.insert_rows_json(
            table,
            rows,
            row_ids=[row["event_id"] for row in rows],
            skip_invalid_rows=True,
            # One try: the writer knows when to go on and when to say so.
            retry=None,  # type: ignore[arg-type]
            timeout=timeout,
        )
    from google.cloud.bigquery import TableReference

    path = TableReference.from_string(table, default_project=client.project).path
    answer = client._connection.api_request(  # noqa: SLF001
        method="POST",
        path=f"{path}/insertAll",
        data=body,
        content_type="application/json",
        timeout=timeout,
    )
    errors: list[dict[str, Any]] = answer.get("insertErrors", [])
    return errors


def encode_request(rows: Sequence[Row]) -> str:
    """Encode the request that ``insert_rows_json`` would send.

    Its ``json.dumps`` takes more than twice as long (``python -m benchmarks.tricks``), and lets no
    other thread run meanwhile, which log calls feel.
    """
    request = {
        "rows": [{"json": row, "insertId": row["event_id"]} for row in rows],
        "skipInvalidRows": True,
    }
    # Not bytes: google-auth logs a body of bytes at DEBUG, and this one holds payloads.
    return orjson.dumps(request).decode()


def _is_googles_own(insert_rows_json: object) -> bool:
    """Whether it is the method of Google's client, which nobody replaced or wrapped."""
    # Not imported here: a fork might come in between.
    module = sys.modules.get("google.cloud.bigquery.client")
    if type(insert_rows_json) is not MethodType or module is None:
        return False
    function = insert_rows_json.__func__
    return type(function) is FunctionType and function.__code__.co_filename == module.__file__


def _as_answer(errors: Sequence[dict[str, Any]], rows: Sequence[Row]) -> Answer:
    refused: dict[int, str] = {}
    again: list[int] = []
    for entry in errors or ():
        index = entry["index"]
        row = rows[index]
        if entry["errors"] and all(
            error.get("reason") in PASSING_REASONS for error in entry["errors"]
        ):
            again.append(index)
        else:
            refused[index] = reasons_of(entry["errors"], [row])
    return Answer(refused, again)


def insert_now(client: Client, table: str, row: Row) -> None:
    """Send one row, trying again for up to 30 seconds what fails for the moment.

    Raises:
        RuntimeError: BigQuery did not take the row, or was not reached; the message says why.
    """
    from google.cloud.bigquery import DEFAULT_RETRY

    reason = ""
    try:
        errors = client.insert_rows_json(
            table,
            [row],
            row_ids=[row["event_id"]],
            retry=DEFAULT_RETRY.with_timeout(REQUEST_TIMEOUT),
            timeout=REQUEST_TIMEOUT,
        )
        if errors:
            details = [error for entry in errors for error in entry["errors"]]
            reason = reasons_of(details, [row]) or "it gives no reason"
    except Exception as error:  # noqa: BLE001  one contract, whatever the client raises
        reason = str(as_failure(getattr(error, "cause", None) or error, [row]))
    # Not in the except clause: the client's error may quote the payload, and would go with it.
    if reason:
        msg = f"BigQuery did not take event {row['event_id']} ({row['event_type']}): {reason}"
        raise RuntimeError(msg)
