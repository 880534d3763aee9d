"""What BigQuery answers to an ``insertAll``: which rows it took, if it says so at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lorc_eventlog.bigquery.failures import meaning_of_code, one_line, reason_of
from lorc_eventlog.bigquery.table import COLUMNS
from lorc_eventlog.bigquery.transport import Answer, Failure, Reason, Refusal, RefusedRow

_PASSING_REASONS = {
    "stopped",
    "timeout",
    "backendError",
    "internalError",
    "rateLimitExceeded",
    "quotaExceeded",
}
"""Reasons for which BigQuery did not store a row that is itself in order."""

_ABOUT_THE_TABLE = re.compile(
    r"no such field|is not a record|missing required|required field|cannot convert|"
    r"cannot return|could not convert|non-repeated|repeated record|not an? array|bad value|length"
)
"""BigQuery's words about a column that is missing, or is of another type, mode or length."""

_ABOUT_THE_ROW = re.compile(r"row size|row is too large|nest|json")
"""BigQuery's words about a row for which no table would do, though it names no column."""

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|“[^”]*”|\S*\d\S*")


def read_answer(answer: object, count: int) -> Answer | Failure:
    """Tell what became of ``count`` rows.

    Only an answer of BigQuery's form acknowledges any. A page for a login, an error with the status
    200 and a list are failures, and so are errors of rows that were not sent.
    """
    if not isinstance(answer, Mapping):
        return _not_acknowledged(f"the answer is a {type(answer).__name__}, not an object")
    if answer.get("error"):
        return _error_in_answer(answer["error"])
    # Emulators leave out what is empty.
    if "kind" not in answer and answer.keys() - {"insertErrors"}:
        return _not_acknowledged("the answer is not BigQuery's")
    return read_errors(answer.get("insertErrors"), count)


def read_errors(errors: object, count: int) -> Answer | Failure:
    """Tell what became of ``count`` rows by BigQuery's list of errors."""
    if errors is not None and not isinstance(errors, (list, tuple)):
        return _not_acknowledged("its insertErrors are no list")
    details: dict[int, list[object]] = {}
    for entry in errors or ():
        if not isinstance(entry, Mapping):
            return _not_acknowledged("an error of a row is no object")
        # An encoder that leaves out zeros sends no index for the first row.
        index = entry.get("index", 0)
        if type(index) is not int or not 0 <= index < count:
            return _not_acknowledged("it names a row that was not sent")
        found = entry.get("errors")
        details.setdefault(index, []).extend(found if isinstance(found, list) else [found])
    again, refused = [], []
    for index, found in details.items():
        if found and _PASSING_REASONS.issuperset(map(reason_of, found)):
            again.append(index)
        else:
            refused.append(_refused(index, found))
    return Answer(tuple(refused), tuple(again))


def _refused(index: int, details: list[object]) -> RefusedRow:
    said = [_Detail(detail) for detail in details] or [_Detail(None)]
    words = "; ".join(detail.message for detail in said if detail.message)
    return RefusedRow(
        index,
        Reason("; ".join(dict.fromkeys(detail.where for detail in said)), words),
        kind="; ".join(sorted({detail.kind for detail in said})),
        is_about_payload=all(detail.is_about_payload for detail in said),
    )


class _Detail:
    """One reason for which a row is refused."""

    def __init__(self, detail: Any) -> None:
        is_object = isinstance(detail, Mapping)
        self.message = one_line(detail.get("message") if is_object else detail)
        location = one_line(detail.get("location")) if is_object else ""
        known = location if location in COLUMNS else ""
        self.where = f"{reason_of(detail) or 'unknown'} at {known or 'the row'}"
        words = self.message.casefold()
        # Without what it quotes, which differs from row to row.
        said = " ".join(_QUOTED.sub("", words.partition(":")[0]).split())
        self.kind = f"{reason_of(detail)}|{location}|{said}"
        if known == "payload":
            self.is_about_payload = not _ABOUT_THE_TABLE.search(words)
        else:
            self.is_about_payload = not known and bool(_ABOUT_THE_ROW.search(words))


def _error_in_answer(error: object) -> Failure:
    code, message, details = 0, error, None
    if isinstance(error, Mapping):
        message, details = error.get("message"), error.get("errors")
        if type(error.get("code")) is int:
            code = error["code"]
    meaning = meaning_of_code(code, message, details)
    text = f"200 with an error in it: {meaning.reason.text}"
    reason = Reason(text if code else "200 with an error in it", meaning.reason.quoted)
    if isinstance(meaning, Refusal):
        return Failure(reason, may_be_the_rows=True)
    return Failure(reason, meaning.what_to_do, meaning.may_be_the_rows)


def _not_acknowledged(how: str) -> Failure:
    reason = Reason(f"no acknowledgement: {how}")
    return Failure(reason, may_be_the_rows=True)
