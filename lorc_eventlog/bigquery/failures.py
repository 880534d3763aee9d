"""What an exception of Google's client, or BigQuery's word about a row, means for the rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lorc_eventlog.bigquery.redaction import redact
from lorc_eventlog.bigquery.table import COLUMNS

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row

MAX_MESSAGE = 500
"""Characters of BigQuery's message that are kept: a proxy in between may answer a whole page."""

PASSING_REASONS = {
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
WHAT_TO_DO = {
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
    return WHAT_TO_DO.get(code)


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


def reasons_of(errors: Iterable[dict[str, Any]], rows: Sequence[Row]) -> str:
    """Say why BigQuery refuses a row."""
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
