"""One ``insertAll``: rows in, and what became of them out.

``docs/operate/reliability.md`` has the whole list of what may happen.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import sys
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from lorc_eventlog.bigquery.answers import read_answer, read_errors
from lorc_eventlog.bigquery.client import open_client, said_once
from lorc_eventlog.bigquery.connections import (
    abandon_connections,
    limit_connections,
    reconnect,
    renew_connections,
    run_within,
)
from lorc_eventlog.bigquery.failures import (
    NotAcknowledgedError,
    as_failure,
    passes,
    why_no_client,
)
from lorc_eventlog.bigquery.imports import import_client
from lorc_eventlog.bigquery.spans import without_spans
from lorc_eventlog.bigquery.transport import Answer, Failure, Limits, Reason, Refusal
from lorc_eventlog.diagnostics import escaped, say

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.events.row import Row

_T = TypeVar("_T")

REQUEST_TIMEOUT = 30.0
"""Seconds that a request may take (Google's client waits for ever)."""

_TRIES = 0.8
"""The part of its time in which a patient request begins tries, so that the last has some."""

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


LIMITS = Limits(rows=50_000, request_bytes=9_000_000, wire_bytes=wire_bytes)


class InsertAllTransport:
    """Sends rows to one table by ``tabledata.insertAll``.

    Args:
        client: The BigQuery client; None makes one with the first request.
        table: ``dataset.table`` or ``project.dataset.table``.
    """

    limits = LIMITS

    def __init__(self, client: Client | None, table: str) -> None:
        self._given_client = client
        self._table = table
        self._channel: _Channel | None = None if client is None else _Channel(client)

    @property
    def is_connected(self) -> bool:
        """Whether a client is there."""
        return self._channel is not None

    def send(self, rows: Sequence[Row], *, timeout: float) -> Answer | Failure | Refusal:
        """Send ``rows`` in one request, as :class:`lorc_eventlog.bigquery.transport.Transport`."""
        try:
            channel = self._ready_channel()
        except Exception as error:  # noqa: BLE001  whatever it is, the rows wait for it
            return why_no_client(error)
        return channel.insert(self._table, rows, timeout)

    def connect(self) -> None:
        """Make the client, and import what a request needs. Ignore an error: `send` reports it."""
        with contextlib.suppress(Exception):
            self._ready_channel()

    def _ready_channel(self) -> _Channel:
        if self._channel is None:
            self._channel = _Channel(open_client())
        channel = self._channel
        channel.prepare()
        return channel

    def reconnect(self) -> None:
        """Send what is sent from now on over new connections."""
        if self._channel is not None:
            reconnect(self._channel.client)

    def restart_in_child(self) -> None:
        """Leave connections and locks to the parent: called in the child after a fork."""
        client = self._given_client
        if client is None:
            abandon_connections()
            self._channel = None
        else:
            renew_connections(client)
            self._channel = _Channel(client)


class _Channel:
    """A client, and how rows are sent by it.

    Google's own method encodes a request by ``json.dumps``, which takes more than twice as long as
    ours (``python -m benchmarks.tricks``) and lets no other thread run meanwhile. So the encoded
    text is handed to the client's private connection, if that is what we know it to be. What is not
    Google's own, or was changed by somebody, is called by ``insert_rows_json`` alone.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._is_googles = _is_of_googles_class(client)
        self._takes_text: bool | None = None

    def prepare(self) -> None:
        """Import what a request needs, and see how it can be sent."""
        if self._is_googles:
            import_client()
            limit_connections(self.client)
        if self._takes_text is None:
            said_once.install()
            self._takes_text = self._is_googles and _takes_text(self.client)

    def insert(self, table: str, rows: Sequence[Row], timeout: float) -> Answer | Failure | Refusal:
        """Send ``rows`` in one request that stores the good ones, whatever the others are."""
        try:
            request = functools.partial(self._request, table, rows, timeout)
            return _run(timeout, request)
        except Exception as error:  # noqa: BLE001  it must not cost the rows
            return as_failure(error)

    def _request(self, table: str, rows: Sequence[Row], timeout: float) -> Answer | Failure:
        if self._takes_text and _is_googles_own(self.client.insert_rows_json):
            body = encode_request(rows)
            if body.isascii():  # else requests sends it in different ways
                return read_answer(self._post(table, body, timeout), len(rows))
        # One try: delivery knows when to go on and when to say so.
        retry: Any = _acknowledging(len(rows), None) if self._is_googles else None
        errors = self.client.insert_rows_json(
            table,
            rows,
            row_ids=[row["event_id"] for row in rows],
            skip_invalid_rows=True,
            retry=retry,
            timeout=timeout,
        )
        return read_errors(errors, len(rows))

    def _post(self, table: str, body: str, timeout: float) -> object:
        from google.cloud.bigquery import TableReference

        path = TableReference.from_string(table, default_project=self.client.project).path
        return self.client._connection.api_request(  # noqa: SLF001
            method="POST",
            path=f"{path}/insertAll",
            data=body,
            content_type="application/json",
            timeout=timeout,
        )


def insert_patiently(client: Client, table: str, row: Row) -> Answer | Failure | Refusal:
    """Send ``row`` by ``client.insert_rows_json``, and again what fails for the moment.

    It ends after :data:`REQUEST_TIMEOUT`, all tries together, if the client is Google's own. A
    client of another make is called once, and as long as it takes.
    """
    is_googles = _is_of_googles_class(client)
    try:
        import_client()
        said_once.install()
        if is_googles:
            limit_connections(client)
        insert = functools.partial(
            client.insert_rows_json,
            table,
            [row],
            row_ids=[row["event_id"]],
            retry=_acknowledging(1, REQUEST_TIMEOUT * _TRIES),
            timeout=REQUEST_TIMEOUT,
        )
    except Exception as error:  # noqa: BLE001  one contract, whatever the client raises
        return why_no_client(error) if is_googles else as_failure(error)
    try:
        return read_errors(_run(REQUEST_TIMEOUT, insert), 1)
    except Exception as error:  # noqa: BLE001
        return as_failure(error)


def insert_now(client: Client, table: str, row: Row) -> None:
    """Send one row, as :func:`insert_patiently`.

    Raises:
        RuntimeError: BigQuery did not take the row, or was not reached; the message says why.
    """
    outcome = insert_patiently(client, table, row)
    if isinstance(outcome, Answer):
        reasons = [refused.reason.told([row]) for refused in outcome.refused]
        if outcome.again:
            reasons.append("it puts the row off")
    else:
        reasons = [outcome.told([row])]
    if reasons:
        event_type = escaped(row["event_type"])
        msg = f"BigQuery did not take event {row['event_id']} ({event_type}): {reasons[0]}"
        raise RuntimeError(msg)


def _run(timeout: float, request: Callable[[], _T]) -> _T:
    """Call ``request`` within its time, without spans, and without the same warning each time."""
    within = functools.partial(run_within, timeout, functools.partial(without_spans, request))
    return said_once.run(within)


def _acknowledging(count: int, seconds: float | None) -> Any:
    """Make a ``retry`` that looks at the answer before Google's client does, which takes any.

    Google's types want a ``Retry``; all that becomes of it is that the request is put into it.

    Args:
        count: How many rows are sent.
        seconds: Try again for so long what fails for the moment; None tries once.
    """

    def retry(request: Callable[[], Any]) -> Any:
        is_patient = seconds is not None
        once = functools.partial(_acknowledged, request, count, is_patient=is_patient)
        if not is_patient:
            return once
        from google.api_core.retry import Retry

        return Retry(predicate=_passes, timeout=seconds)(once)

    return retry


def _acknowledged(request: Callable[[], Any], count: int, *, is_patient: bool) -> object:
    """Return the answer in a form that Google's client takes, or raise NotAcknowledgedError."""
    answer = request()
    read = read_answer(answer, count)
    if isinstance(read, Failure):
        raise NotAcknowledgedError(read)
    if is_patient and read.again:
        reason = Reason("BigQuery puts the row off")
        raise NotAcknowledgedError(Failure(reason, stored="no"))
    errors = answer.get("insertErrors") or ()
    return {
        "insertErrors": [
            {"index": entry.get("index", 0), "errors": entry.get("errors")} for entry in errors
        ]
    }


def _passes(error: Exception) -> bool:
    """Whether time mends what Google's client raised."""
    if not isinstance(error, (OSError, NotAcknowledgedError)):
        package = type(error).__module__.partition(".")[0]
        if package not in ("google", "requests", "urllib3"):
            return False
    return passes(error)


def encode_request(rows: Sequence[Row]) -> str:
    """Encode the request that ``insert_rows_json`` would send."""
    request = {
        "rows": [{"json": row, "insertId": row["event_id"]} for row in rows],
        "skipInvalidRows": True,
    }
    # Not bytes: google-auth logs a body of bytes at DEBUG, and this one holds payloads.
    return orjson.dumps(request).decode()


def _is_of_googles_class(client: object) -> bool:
    return any(kind.__module__.startswith("google.cloud.bigquery") for kind in type(client).__mro__)


def _takes_text(client: Client) -> bool:
    """Whether what we touch of the client besides its methods is as we know it.

    Seen before the first request. An exception that is raised while rows are sent tells nothing of
    it.
    """
    try:
        inspect.signature(client._connection.api_request).bind(  # noqa: SLF001
            method="POST", path="", data="", content_type="", timeout=0.0
        )
    except (AttributeError, TypeError, ValueError):
        how = "its connection is not as expected"
    else:
        if not _is_googles_own(client.insert_rows_json):
            return False
        if _is_googles_own(client._call_api):  # noqa: SLF001
            return True
        how = "its _call_api is overridden"
    say(
        logging.INFO,
        "events are sent by insert_rows_json, which takes more CPU: %s of the BigQuery client",
        how,
    )
    return False


def _is_googles_own(method: object) -> bool:
    """Whether it is a method of Google's client, which nobody replaced, wrapped or overrode."""
    # Not imported here: a fork might come in between.
    module = sys.modules.get("google.cloud.bigquery.client")
    if type(method) is not MethodType or module is None:
        return False
    function = method.__func__
    return type(function) is FunctionType and function.__code__.co_filename == module.__file__
