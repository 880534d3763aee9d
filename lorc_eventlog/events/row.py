"""A row: an event as it travels, from the log call to BigQuery."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from os import urandom
from typing import TYPE_CHECKING, TypedDict

from lorc_eventlog.events.payload import encode_payload
from lorc_eventlog.events.text import as_name, as_text

if TYPE_CHECKING:
    from lorc_eventlog.events.models import Payload

_LAST_MICROSECOND = 0.999999
_last_second = (0, "1970-01-01T00:00:00")

_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))
"""The digit of a UUID that tells its variant has two random bits."""

_VARIANTS = bytes.maketrans(b"0123456789abcdef", b"89ab" * 4)
_UUIDS = b"........-....-4...-v...-............\n"
_DIGITS = [
    (place, place - _UUIDS[:place].count(b"-")) for place in range(36) if _UUIDS[place] == ord(".")
]
"""The places of random digits in the text of a UUID, and their numbers among all digits."""

ROW_BYTES = 300
"""About how large a row is without its texts: names, id, time, and what Python needs for it."""

SMALL_ROW = 32_768
"""Bytes that an event rarely exceeds; see :attr:`Books.inbox_room`."""

_SHORT_PAYLOAD = 24_000
_SHORT = (SMALL_ROW - ROW_BYTES - _SHORT_PAYLOAD) // 5
"""Characters of a payload, and of each other text, that make no row larger than that."""


class Row(TypedDict):
    """An envelope as it goes over the wire: ``payload`` is JSON text, encoded once."""

    event_id: str
    event_type: str
    source: str
    schema_ref: str | None
    created_at: str
    correlation_id: str | None
    subject_id: str | None
    payload: str


def row_at(
    created: float,
    event_type: object,
    payload: Payload,
    source: object,
    schema_ref: object = None,
    correlation_id: object = None,
    subject_id: object = None,
) -> Row:
    """Make the envelope of an event that happened at ``created`` (seconds since the epoch).

    As a row: so a log call makes one dict, not two. An optional field that is neither a string
    nor None (a UUID, a number) becomes its ``str``.

    Raises:
        ValueError: As for :func:`build_envelope`.
    """
    return finish(
        draft_at(created, event_type, payload, source, schema_ref, correlation_id, subject_id)
    )


def draft_at(
    created: float,
    event_type: object,
    payload: Payload,
    source: object,
    schema_ref: object,
    correlation_id: object,
    subject_id: object,
) -> Row:
    """Make a row that :func:`finish` completes: the one place where envelopes begin.

    It does what must be done in the log call. The id and the text of the time can wait for the
    sender: they take longer than all the rest of it (``python -m benchmarks.tricks``).

    Its id is ``""`` until then, or None if it may be larger than ``SMALL_ROW``. To look at each of
    its texts here costs the log call half of what :func:`row_bytes` would.
    """
    is_small = True
    if type(event_type) is not str or not 0 < len(event_type) <= _SHORT or not event_type.isascii():
        is_small = False
        event_type = as_name("event_type", event_type)
    if type(source) is not str or not 0 < len(source) <= _SHORT or not source.isascii():
        is_small = False
        source = as_name("source", source)
    if schema_ref is not None and (
        type(schema_ref) is not str or len(schema_ref) > _SHORT or not schema_ref.isascii()
    ):
        is_small = False
        schema_ref = as_text(schema_ref)
    if correlation_id is not None and (
        type(correlation_id) is not str
        or len(correlation_id) > _SHORT
        or not correlation_id.isascii()
    ):
        is_small = False
        correlation_id = as_text(correlation_id)
    if subject_id is not None and (
        type(subject_id) is not str or len(subject_id) > _SHORT or not subject_id.isascii()
    ):
        is_small = False
        subject_id = as_text(subject_id)
    text = encode_payload(payload)
    return {
        "event_id": "" if is_small and len(text) <= _SHORT_PAYLOAD else None,  # type: ignore[typeddict-item]
        "event_type": event_type,
        "source": source,
        "schema_ref": schema_ref,
        "created_at": created,  # type: ignore[typeddict-item]  # until it is finished
        "correlation_id": correlation_id,
        "subject_id": subject_id,
        "payload": text,
    }


def finish(row: Row) -> Row:
    """Give ``row`` its id and the text of its time, unless it has them; return it."""
    if not row["event_id"]:
        _complete(row, new_id())
    return row


def finish_all(rows: Iterable[Row]) -> None:
    """Finish each of ``rows``, in half of the time (``python -m benchmarks.tricks``).

    Fork safety: the random bytes are for these rows, and are not kept. Whoever copies them by a
    fork copies the rows, too: the same events, which must have the same ids.
    """
    drafts = [row for row in rows if not row["event_id"]]
    for row, event_id in zip(drafts, _new_ids(len(drafts)), strict=True):
        _complete(row, event_id)


def _complete(row: Row, event_id: str) -> None:
    try:
        row["created_at"] = text_of(row["created_at"])  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001  whatever a filter made of the time of a record
        row["created_at"] = text_of(time.time())
    row["event_id"] = event_id


def new_id() -> str:
    """Make a UUID4, different from those of every other process.

    Fork safety: the kernel is asked for each. The children of a fork would share a generator, or a
    buffer of random bytes, and BigQuery would drop one of two events that have the same id. The
    text is made by hand in half of the time that ``uuid.uuid4`` takes
    (``python -m benchmarks.tricks``).
    """
    digits = urandom(16).hex()
    return (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}"
        f"-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"
    )


def _new_ids(count: int) -> list[str]:
    """Make so many UUID4s together: all first digits at once, then all second ones, and so on."""
    digits = urandom(16 * count).hex().encode()
    lines = bytearray(_UUIDS * count)
    width = len(_UUIDS)
    for place, digit in _DIGITS:
        lines[place::width] = digits[digit::32]
    lines[19::width] = digits[16::32].translate(_VARIANTS)
    return lines.decode().split()


def text_of(created: float) -> str:
    """``created`` in UTC, as ISO 8601 with microseconds, rounded as ``datetime`` rounds.

    Only the microseconds are formatted anew for events of the same second, in half of the time
    that ``datetime`` takes (``python -m benchmarks.tricks``).
    """
    global _last_second  # noqa: PLW0603  one assignment, whole for every thread
    second, text = _last_second
    fraction = created - second
    if 0 <= fraction < _LAST_MICROSECOND:
        return f"{text}.{str(round(fraction * 1_000_000) + 1_000_000)[1:]}+00:00"
    second = math.floor(created)
    _last_second = (second, datetime.fromtimestamp(second, UTC).isoformat()[:19])
    return datetime.fromtimestamp(created, UTC).isoformat(timespec="microseconds")


def row_bytes(row: Row) -> int:
    """About how large ``row`` is, as JSON: the characters of all its texts, and some.

    The same before and after :func:`finish`, because what is added must be taken away again.
    """
    return (
        len(row["event_type"])
        + len(row["source"])
        + len(row["schema_ref"] or "")
        + len(row["correlation_id"] or "")
        + len(row["subject_id"] or "")
        # Last, because Python keeps the small numbers ready and makes the others.
        + len(row["payload"])
        + ROW_BYTES
    )
