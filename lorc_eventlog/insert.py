"""One ``insertAll``: rows in, refused rows out; tells "try again" from "never".

The only module that knows how BigQuery says no. ``docs/reliability.md`` has the whole list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.event_client import Row

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
_SERVER_ERROR = 500
_UNAVAILABLE = 503
_CREDENTIALS = (
    "check the credentials: GOOGLE_APPLICATION_CREDENTIALS, the service account that the process "
    "runs as, or `gcloud auth application-default login`"
)
_WHAT_TO_DO = {
    401: _CREDENTIALS,
    403: (
        "grant the process's account roles/bigquery.dataEditor on the dataset, or, if a quota is "
        "exceeded, have it raised"
    ),
    404: (
        "create the table with lorc_eventlog.create_events_table(client), or correct "
        "EVENTS_BQ_DATASET and EVENTS_BQ_TABLE; a new table may be unknown for some minutes"
    ),
}


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
        errors = client.insert_rows_json(
            table,
            rows,
            row_ids=[row["event_id"] for row in rows],
            skip_invalid_rows=True,
            # One try: the writer knows when to go on and when to say so.
            retry=None,  # type: ignore[arg-type]
            timeout=timeout,
        )
        return _as_answer(errors, rows)
    except Exception as error:  # noqa: BLE001  whatever the client raises must not cost the rows
        failure = as_failure(error, rows)
    # Not in the except clause: the client's error may quote the payload, and would go with it.
    raise failure


def _as_answer(errors: Sequence[dict[str, Any]], rows: Sequence[Row]) -> Answer:
    refused: dict[int, str] = {}
    again: list[int] = []
    for entry in errors:
        index = entry["index"]
        if all(error.get("reason") in _PASSING_REASONS for error in entry["errors"]):
            again.append(index)
        else:
            refused[index] = _reasons(entry["errors"], rows[index : index + 1])
    return Answer(refused, again)


def insert_now(client: Client, table: str, row: Row) -> None:
    """Send one row, trying again for up to 30 seconds what fails for the moment.

    Raises:
        RuntimeError: BigQuery did not take the row, or was not reached; the message says why.
    """
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.bigquery import DEFAULT_RETRY
    from requests.exceptions import RequestException

    try:
        errors = client.insert_rows_json(
            table,
            [row],
            row_ids=[row["event_id"]],
            retry=DEFAULT_RETRY.with_timeout(REQUEST_TIMEOUT),
            timeout=REQUEST_TIMEOUT,
        )
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        reason = str(as_failure(getattr(error, "cause", None) or error, [row]))
    else:
        reason = _reasons((error for entry in errors for error in entry["errors"]), [row])
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
        what_to_do=_WHAT_TO_DO.get(code),
        may_be_the_rows=code >= _SERVER_ERROR and code != _UNAVAILABLE,
    )


def _as_unanswered(error: Exception, rows: Sequence[Row]) -> TryAgainError:
    kind = type(error)
    what_to_do = None
    if kind.__module__.startswith("google.auth"):
        what_to_do = _CREDENTIALS
    elif kind is OSError:  # google.cloud.client, when it finds no project
        what_to_do = "set GOOGLE_CLOUD_PROJECT, or EVENTS_BQ_DATASET to project.dataset"
    return TryAgainError(
        f"{kind.__name__}: {_safe(str(error), rows)}",
        what_to_do=what_to_do,
        may_be_the_rows=what_to_do is None and not _was_not_reached(error),
    )


def _was_not_reached(error: Exception) -> bool:
    """Whether there was no connection, so that no row was sent."""
    from requests.exceptions import ConnectTimeout
    from urllib3.exceptions import NewConnectionError

    cause = error.args[0] if error.args else None
    return isinstance(error, ConnectTimeout) or isinstance(
        getattr(cause, "reason", None), NewConnectionError
    )


def _reasons(errors: Iterable[dict[str, Any]], rows: Sequence[Row]) -> str:
    return "; ".join(
        f"{error.get('reason', 'unknown')} at {error.get('location') or 'the row'}: "
        f"{_safe(error.get('message') or '', rows)}"
        for error in errors
    )


def _safe(message: str, rows: Sequence[Row]) -> str:
    return redact(message[:MAX_MESSAGE], rows)


_REQUEST_LINE = re.compile(r"^[A-Z]+ http\S+: ")
_WORD = re.compile(r"\w+")


def redact(message: str, rows: Sequence[Row]) -> str:
    """Blank each word of BigQuery's ``message`` that stands in the private part of ``rows``.

    BigQuery's messages may quote the value that they complain about, and payloads and subject_ids
    are health data. Words of one or two letters stay, because they tell nothing; numbers go.
    """

    def blank(match: re.Match[str]) -> str:
        word = match[0]
        if len(word) <= 2 and word.isalpha():
            return word
        private = any(word in row["payload"] or word in (row["subject_id"] or "") for row in rows)
        return "…" if private else word

    return _WORD.sub(blank, message)
