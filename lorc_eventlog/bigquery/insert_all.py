"""One ``insertAll``: rows in, refused rows out; tells "try again" from "never".

The only module that knows how BigQuery says no. ``docs/reliability.md`` has the whole list.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import orjson

from lorc_eventlog.bigquery.table import COLUMNS

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.events.row import Row

REQUEST_TIMEOUT = 30.0
"""Seconds to wait for a connection, and then for an answer (Google's client waits for ever)."""

MAX_MESSAGE = 500
"""Characters of BigQuery's message that are kept: a proxy in between may answer a whole page."""

_PASSING_REASONS = {
    "stopped",
    "timeout",
    "backendError",
    "internalError",
    "rateLimitExceeded",
    "quotaExceeded",
}
"""Reasons for which BigQuery did not store a row that is itself in order."""

_REFUSED_REQUEST = {400, 413}
_FORBIDDEN = 403
_SERVER_ERROR = 500
_UNAVAILABLE = 503
CREDENTIALS = (
    "check the credentials: GOOGLE_APPLICATION_CREDENTIALS, the service account that the process "
    "runs as, or `gcloud auth application-default login`"
)
GRANT = "grant the process's account roles/bigquery.dataEditor on the dataset"
_WHAT_TO_DO = {
    401: CREDENTIALS,
    403: GRANT,
    404: (
        "create the table with `lorc-eventlog create-table` or "
        "lorc_eventlog.create_events_table(client), or correct EVENTS_BQ_DATASET and "
        "EVENTS_BQ_TABLE; a new table may be unknown for some minutes"
    ),
}
_BILLING = "set up billing for the project: BigQuery's free tier has no streaming"
_WHAT_TO_DO_BY_WORDS = {
    "quotaExceeded": "have the quota raised, or wait until it is there again",
    "rateLimitExceeded": None,
    "accessNotConfigured": (
        "enable the project's BigQuery API: `gcloud services enable bigquery.googleapis.com`"
    ),
    "billingNotEnabled": _BILLING,
    "free tier": _BILLING,
    "VPC Service Controls": "have the account let into the perimeter of VPC Service Controls",
}
"""What a 403 means besides a permission that is missing, by its reasons and words."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of the rows of one request; all the others are stored."""

    refused: dict[int, str]
    """Index of each row that BigQuery will never take, and why."""

    again: list[int]
    """Indices of rows that are in order and were not stored: send them again."""


class TryAgainError(Exception):
    """Nothing is known to be stored, and the same rows may well pass later.

    Attributes:
        reason: What went wrong, for a diagnostic.
        what_to_do: What an operator must mend, or None if time mends it.
        may_be_the_rows: BigQuery (or the connection) broke on this request, so that, if others
            pass, the rows themselves are the suspects. Not so for a quota or a permission.
    """

    def __init__(self, reason: str, *, what_to_do: str | None, may_be_the_rows: bool) -> None:
        super().__init__(f"{reason}: {what_to_do}" if what_to_do else reason)
        self.reason = reason
        self.what_to_do = what_to_do
        self.may_be_the_rows = may_be_the_rows


class RequestRefusedError(Exception):
    """BigQuery refused the request as a whole because of something in its rows."""


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
            error.get("reason") in _PASSING_REASONS for error in entry["errors"]
        ):
            again.append(index)
        else:
            refused[index] = _reasons(entry["errors"], [row])
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
            reason = _reasons(details, [row]) or "it gives no reason"
    except Exception as error:  # noqa: BLE001  one contract, whatever the client raises
        reason = str(as_failure(getattr(error, "cause", None) or error, [row]))
    # Not in the except clause: the client's error may quote the payload, and would go with it.
    if reason:
        msg = f"BigQuery did not take event {row['event_id']} ({row['event_type']}): {reason}"
        raise RuntimeError(msg)


def as_failure(error: Exception, rows: Sequence[Row]) -> TryAgainError | RequestRefusedError:
    """Tell what ``error``, raised by the client while it sent ``rows``, means for them."""
    code = getattr(error, "code", None)
    if not isinstance(code, int):
        return _as_unanswered(error, rows)
    reasons = {detail.get("reason", "") for detail in getattr(error, "errors", None) or ()}
    message = _REQUEST_LINE.sub("", " ".join(getattr(error, "message", "").split()))
    reason = f"{' '.join([str(int(code)), *sorted(reasons)])}: {_safe(message, rows)}"
    if code in _REFUSED_REQUEST:
        return RequestRefusedError(reason)
    return TryAgainError(
        reason,
        what_to_do=_what_to_do(code, f"{reasons} {message}"),
        may_be_the_rows=code >= _SERVER_ERROR and code != _UNAVAILABLE,
    )


def _what_to_do(code: int, words: str) -> str | None:
    if code == _FORBIDDEN:
        for word, what_to_do in _WHAT_TO_DO_BY_WORDS.items():
            if word in words:
                return what_to_do
    return _WHAT_TO_DO.get(code)


def _as_unanswered(error: Exception, rows: Sequence[Row]) -> TryAgainError:
    kind = type(error)
    message = str(error)
    what_to_do = None
    if kind.__module__.startswith("google.auth"):
        if kind.__name__ != "TransportError":  # of the network
            what_to_do = CREDENTIALS
        message = str(error.args[0]) if error.args else ""  # what follows may quote a key file
    elif isinstance(error, OSError) and error.filename is not None:  # a key file
        what_to_do = CREDENTIALS
    elif kind is OSError:  # google.cloud.client, when it finds no project
        what_to_do = "set GOOGLE_CLOUD_PROJECT, or EVENTS_BQ_DATASET to project.dataset"
    return TryAgainError(
        f"{kind.__name__}: {_safe(message, rows)}",
        what_to_do=what_to_do,
        may_be_the_rows=what_to_do is None and not _was_not_reached(error),
    )


def _was_not_reached(error: Exception) -> bool:
    """Whether there was no connection, so that no row was sent."""
    from google.auth.exceptions import TransportError
    from requests.exceptions import ConnectTimeout
    from urllib3.exceptions import NewConnectionError

    cause = error.args[0] if error.args else None
    return isinstance(error, (ConnectTimeout, TransportError)) or isinstance(
        getattr(cause, "reason", None), NewConnectionError
    )


def _reasons(errors: Iterable[dict[str, Any]], rows: Sequence[Row]) -> str:
    return "; ".join(
        f"{error.get('reason', 'unknown')} at {_location(error)}: "
        f"{_safe(error.get('message') or '', rows)}"
        for error in errors
    )


def _location(error: dict[str, Any]) -> str:
    location = error.get("location") or ""
    return location if location in COLUMNS else "the row"


def _safe(message: str, rows: Sequence[Row]) -> str:
    return redact(message[:MAX_MESSAGE], rows)


_REQUEST_LINE = re.compile(r"^[A-Z]+ http\S+: ")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_WORD = re.compile(r"[^\s!-/:-@\[-`{-~…]+")
_NO_LETTER_OR_DIGIT = re.compile(r"[\W_]+")


def redact(message: str, rows: Sequence[Row]) -> str:
    """Blank each word of BigQuery's ``message`` that stands in the private part of ``rows``.

    BigQuery's messages may quote the value that they complain about, and payloads and subject_ids
    are health data. They may write it in another case, escaped, or without what separates its
    parts (1980-01-02 as 19800102), so that all of this makes no difference here. Words of one or
    two letters of the alphabet must stand there as words, because they stand in any text.
    """
    private = _folded(" ".join(f"{row['subject_id'] or ''} {row['payload']}" for row in rows))
    words = set(_WORD.findall(private))
    text = _NO_LETTER_OR_DIGIT.sub("", private)

    def blank(match: re.Match[str]) -> str:
        word = _folded(match[0])
        short = len(word) <= 2 and word.isascii() and word.isalpha()
        is_private = word in words if short else _NO_LETTER_OR_DIGIT.sub("", word) in text
        return "…" if is_private else match[0]

    return _WORD.sub(blank, _ESCAPE.sub(lambda match: chr(int(match[1], 16)), message))


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else normalize("NFKC", text).casefold()
