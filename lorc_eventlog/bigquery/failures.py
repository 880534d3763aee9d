"""What an exception of Google's client, or an answer of BigQuery, means for the rows.

Nothing here raises, whatever an error holds: it may come from a gateway of anybody's make, or from
a client of the application's own.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from lorc_eventlog.bigquery.connections import RedirectedError
from lorc_eventlog.bigquery.imports import ClientImportError
from lorc_eventlog.bigquery.transport import Failure, Reason, Refusal
from lorc_eventlog.bigquery.words import in_plain_words
from lorc_eventlog.diagnostics import is_raised_here
from lorc_eventlog.events.text import well_formed

MAX_MESSAGE = 500
"""Characters of a message that are kept: a proxy in between may answer a whole page."""

MAX_DETAILS = 20
"""Reasons that are read of one error."""

_BAD_REQUEST = 400
_TOO_LARGE = 413
_FORBIDDEN = 403
_SERVER_ERROR = 500
_UNAVAILABLE = 503

_NEVER_SAW_A_ROW = {401, 403, 404, 429, 503}
_REASONS_OF_THE_REQUEST = {
    "accessDenied",
    "accessNotConfigured",
    "authError",
    "backendError",
    "billingNotEnabled",
    "blocked",
    "dailyLimitExceeded",
    "forbidden",
    "insufficientPermissions",
    "notFound",
    "quotaExceeded",
    "rateLimitExceeded",
    "required",
    "serviceUnavailable",
    "userRateLimitExceeded",
}
"""With these codes and reasons BigQuery says nothing about rows. A gateway that answers with one of
the codes might, but does not know the reasons."""

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
    "quotaExceeded": "ask for a higher quota, or wait until there is some again",
    "rateLimitExceeded": None,
    "accessNotConfigured": (
        "enable the project's BigQuery API: `gcloud services enable bigquery.googleapis.com`"
    ),
    "billingNotEnabled": _BILLING,
    "free tier": _BILLING,
    "VPC Service Controls": "add the account to the perimeter of VPC Service Controls",
}
"""What a 403 means besides a permission that is missing, by its reasons and words."""

_PROXY = (
    "something else answers in BigQuery's place: check the proxy (HTTPS_PROXY) and "
    "BIGQUERY_EMULATOR_HOST"
)
_CERTIFICATE = (
    "trust the certificate (REQUESTS_CA_BUNDLE names a file of authorities), or set the "
    "machine's clock"
)
_NO_PROJECT = "set GOOGLE_CLOUD_PROJECT, or EVENTS_BQ_DATASET to project.dataset"
_NO_LIBRARY = "reinstall google-cloud-bigquery"

_NOT_REACHED = {
    "ConnectTimeout",
    "ConnectTimeoutError",
    "EmptyPoolError",
    "NewConnectionError",
    "ProxyError",
    "SSLCertVerificationError",
    "TransportError",
    "gaierror",
}
"""Exceptions of urllib3, requests, google-auth and the standard library: no row was sent."""

_QUOTES_NOTHING = _NOT_REACHED | {"JSONDecodeError", "ReadTimeout", "ReadTimeoutError", "SSLError"}
"""Exceptions whose message holds nothing of a request or an answer."""

_NOISE = re.compile(r"^[A-Z]+ http\S+: |<[\w.]+ object at 0x[0-9a-f]+>: | with url: \S+")
_REASON = re.compile(r"[A-Za-z]{1,40}")
_ABOUT_SIZE = re.compile(r"(?i)too large|payload size")
_SERVER_ERROR_IN_TEXT = re.compile(r"\b5\d\d\b")


class NotAcknowledgedError(Exception):
    """An answer with the status 200 does not say that rows are stored.

    Attributes:
        failure: What it means for the rows.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason.text)
        self.failure = failure


def as_failure(error: BaseException) -> Failure | Refusal:
    """Tell what ``error``, raised by the client while it sent rows, means for them."""
    try:
        cause = _attribute(error, "cause")  # of Google's RetryError
        return _meaning(cause if isinstance(cause, Exception) else error)
    except Exception:  # noqa: BLE001  an attribute, or even its class, raises when it is looked at
        return Failure(Reason(type(error).__name__), may_be_the_rows=True)


def passes(error: BaseException) -> bool:
    """Whether time mends ``error``: an outage, the network, a rate limit."""
    failure = as_failure(error)
    return isinstance(failure, Failure) and failure.what_to_do is None


def _meaning(error: BaseException) -> Failure | Refusal:
    if isinstance(error, NotAcknowledgedError):
        return error.failure
    code = _attribute(error, "code")
    if isinstance(code, int) and 300 <= code <= 599:
        return meaning_of_code(int(code), _attribute(error, "message"), _attribute(error, "errors"))
    return _unanswered(error)


def meaning_of_code(code: int, message: object, details: object) -> Failure | Refusal:
    """Tell what an error means that BigQuery, or a gateway, answered."""
    details = details[:MAX_DETAILS] if isinstance(details, (list, tuple)) else ()
    reasons = sorted({reason_of(detail) for detail in details} - {""})
    text = " ".join([str(code), *reasons])
    said = one_line(message)
    if said and code in _NEVER_SAW_A_ROW and _REASONS_OF_THE_REQUEST.issuperset(reasons or [""]):
        reason = Reason(f"{text}: {said}")
    else:
        reason = Reason(text, said)
    if code in (_BAD_REQUEST, _TOO_LARGE):
        is_about_size = code == _TOO_LARGE or bool(_ABOUT_SIZE.search(said))
        return Refusal(reason, is_about_size)
    return Failure(
        reason,
        what_to_do=_what_to_do(code, f"{reasons} {said}"),
        may_be_the_rows=code >= _SERVER_ERROR and code != _UNAVAILABLE,
        stored="no" if _BAD_REQUEST <= code < _SERVER_ERROR else "unknown",
    )


def _what_to_do(code: int, words: str) -> str | None:
    if code == _FORBIDDEN:
        for word, what_to_do in _WHAT_TO_DO_BY_WORDS.items():
            if word in words:
                return what_to_do
    return WHAT_TO_DO.get(code)


def _unanswered(error: BaseException) -> Failure:
    chain = list(_chain(error))
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    name = type(error).__name__
    if isinstance(error, RedirectedError):
        return Failure(Reason(str(error)), what_to_do=_PROXY)
    if _is_of(error, "google.auth"):
        # What follows in the error may quote a key file.
        said = one_line(error.args[0] if error.args else "")
        what_to_do = None if _passes_by_itself(error, chain) else CREDENTIALS
        return Failure(Reason(_joined(name, said)), what_to_do=what_to_do, stored="no")
    said = one_line(error)
    if kinds & _NOT_REACHED:
        what_to_do = _CERTIFICATE if "SSLCertVerificationError" in kinds else None
        return Failure(Reason(_joined(name, said)), what_to_do=what_to_do, stored="no")
    is_whole = bool(kinds & _QUOTES_NOTHING) or any(map(_is_of_the_system, chain))
    return Failure(
        Reason(_joined(name, said)) if is_whole else Reason(name, said),
        may_be_the_rows=not (isinstance(error, MemoryError) or is_raised_here(error)),
    )


def why_no_client(error: BaseException) -> Failure:
    """Tell why there is no client, and what to do."""
    with contextlib.suppress(Exception):
        name, said = type(error).__name__, one_line(error)
        if isinstance(error, ClientImportError):
            what_to_do = _NO_LIBRARY if isinstance(error.__cause__, ImportError) else None
            return Failure(Reason(said), what_to_do=what_to_do, stored="no")
        if type(error) is OSError and error.errno is None:  # of google.cloud.client
            return Failure(Reason(_joined(name, said)), what_to_do=_NO_PROJECT, stored="no")
        if _is_of_the_system(error):
            what_to_do = CREDENTIALS if error.filename is not None else None
            return Failure(Reason(_joined(name, said)), what_to_do=what_to_do, stored="no")
        if isinstance(error, OSError) or _is_of(error, "google.auth"):
            return _unanswered(error)
    # Not what it says: google-auth raises anything for a file that is no key, and may quote it.
    text = f"no credentials ({type(error).__name__})"
    return Failure(Reason(text), what_to_do=CREDENTIALS, stored="no")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it wraps, in the ways of requests and urllib3."""
    link: object = error
    for _ in range(MAX_DETAILS):
        if not isinstance(link, BaseException):
            return
        yield link
        first = link.args[0] if link.args else None
        wrapped = (_attribute(link, "reason"), first, link.__cause__, *link.args[1:2])
        link = next((value for value in wrapped if isinstance(value, BaseException)), None)


def _passes_by_itself(error: BaseException, chain: list[BaseException]) -> bool:
    """Whether google-auth failed for the moment: the network, or an endpoint that is in trouble."""
    if any(_attribute(link, "retryable") is True for link in chain):
        return True
    if any(kind.__name__ in _NOT_REACHED for link in chain for kind in type(link).__mro__):
        return True
    if not any(kind.__name__ == "RefreshError" for kind in type(error).__mro__):
        return False
    # Credentials that stand for others pass on what their endpoint answered.
    return any(bool(_SERVER_ERROR_IN_TEXT.search(_text(part)[:4096])) for part in error.args)


def _is_of_the_system(error: BaseException) -> TypeGuard[OSError]:
    """Whether it says only what the operating system says, such as "Connection reset by peer"."""
    return (
        isinstance(error, OSError)
        and type(error).__module__ in ("builtins", "socket", "ssl")
        and (isinstance(error.errno, int) or isinstance(error, TimeoutError))
    )


def _is_of(error: BaseException, package: str) -> bool:
    return type(error).__module__.startswith(package)


def reason_of(detail: object) -> str:
    """Return BigQuery's reason in ``detail``, if there is one that can be said."""
    reason = detail.get("reason") if isinstance(detail, Mapping) else None
    return str(reason) if isinstance(reason, str) and _REASON.fullmatch(reason) else ""


def one_line(value: object) -> str:
    """Return what ``value`` says, in one line that is not too long."""
    text = " ".join(_text(value)[: 4 * MAX_MESSAGE].split())
    return well_formed(in_plain_words(_NOISE.sub("", text))[:MAX_MESSAGE])


def _text(value: object) -> str:
    if value is None:
        return ""
    try:
        return str.__str__(value if isinstance(value, str) else str(value))
    except Exception:  # noqa: BLE001  it cannot be said
        return ""


def _joined(name: str, said: str) -> str:
    return f"{name}: {said}" if said else name


def _attribute(error: object, name: str) -> Any:
    try:
        return getattr(error, name, None)
    except Exception:  # noqa: BLE001  a property of somebody's error
        return None
