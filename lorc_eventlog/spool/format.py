"""What a segment holds: a header, and a line for each event.

::

    1ab66537 {"lorc_eventlog_spool":1}
      5b0e7c11 {"table":"project.dataset.events"}
    8c5f2a10 {"event_id":"...", ..., "payload":"{...}"}

The first word of a line is the CRC-32 of the rest. The second line names the table that its process
was configured for. It begins with two blanks because version 0.1.0, which knows no such line, then
takes it for one that is acknowledged and passes over it.

A line is acknowledged by writing blanks over it, which erases its data as well. What is in a file
is never trusted: a line becomes a row only if it has the right checksum, exactly the keys of a row
and values of their types. Everything else is damage, and costs nothing but itself.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from operator import itemgetter
from types import NoneType
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row

SUFFIX = ".events"
DAMAGED_SUFFIX = ".damaged"

MAX_LINE_BYTES = 10_000_000
"""A longer line is damage: BigQuery takes no row over 10 MB, and none is written."""

HEADER_BYTES = 4096
"""So much of a file is read to find its header."""

BLANK = b" "

_VERSION_KEY = "lorc_eventlog_spool"
_VERSION = 1
_TABLE_KEY = "table"
_REQUIRED = ("event_id", "event_type", "source", "created_at", "payload")
_OPTIONAL = ("schema_ref", "correlation_id", "subject_id")
_values = itemgetter(*_REQUIRED, *_OPTIONAL)

_CRC_BYTES = 9
_LINE_START = re.compile(rb'[0-9a-f]{8} \{"event_id":"')
_LINE_END = b'"}'
_CUT_OFF = b'........ {"event_id":"'
"""How an event begins; the first eight are digits of the checksum."""


def encode_line(value: Mapping[str, Any]) -> bytes:
    """Encode a row, or a line of the header, as a line."""
    encoded = orjson.dumps(value)
    return b"%08x %b\n" % (zlib.crc32(encoded), encoded)


HEADER = encode_line({_VERSION_KEY: _VERSION})
"""How every file begins."""


def encode_header(table: str) -> bytes:
    """Encode the header of a segment whose events belong to ``table``."""
    return HEADER + BLANK * 2 + encode_line({_TABLE_KEY: table})


@dataclass(frozen=True, slots=True)
class Header:
    """What the beginning of a file says."""

    is_of_a_later_version: bool
    table: str | None
    """The table of its events; None if it names none, as version 0.1.0 does, or is damaged."""


def decode_header(beginning: bytes) -> Header:
    """Decode the first :data:`HEADER_BYTES` of a file, whatever they are."""
    lines = beginning.split(b"\n", 2)
    version = (decode_line(lines[0]) or {}).get(_VERSION_KEY, _VERSION)
    second = lines[1] if len(lines) > 2 and lines[1].startswith(BLANK * 2) else b""
    table = (decode_line(second.removeprefix(BLANK * 2)) or {}).get(_TABLE_KEY)
    return Header(version != _VERSION, table if isinstance(table, str) else None)


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Decode a line without its line break; None if it is damaged."""
    crc, _, encoded = line.partition(b" ")
    if b"%08x" % zlib.crc32(encoded) != crc:
        return None
    try:
        value = orjson.loads(encoded)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def find_rows(text: bytes) -> tuple[list[tuple[int, int, Row]], int]:
    """Find the events in ``text``, which should be a line without its line break.

    Returns:
        Where each begins and ends, line break included, and its row; and how many bytes there
        are besides that may have been an event.
    """
    row = decode_row(text)
    if row is not None:
        return [(0, len(text) + 1, row)], 0
    if text == HEADER[:-1]:
        return [], 0
    found = []
    starts = [match.start() for match in _LINE_START.finditer(text)]
    for start, next_start in pairwise([*starts, len(text)]):
        end = text.rfind(_LINE_END, start, next_start) + len(_LINE_END)
        row = decode_row(text[start:end])
        if row is not None:
            found.append((start, end + 1, row))  # with what was a line break
    begins = [0, *(end for _, end, _ in found)]
    ends = [*(start for start, _, _ in found), len(text)]
    gaps = [text[begin:end] for begin, end in zip(begins, ends, strict=True)]
    return found, sum(len(gap) for gap in gaps if not _is_acknowledged(gap))


def is_cut_off(text: bytes) -> bool:
    """Whether the end of a file may be the beginning of an event: a kill, or a full disk, left it.

    The log call did not return, or said that the disk refused the event.
    """
    start = text[: len(_CUT_OFF)]
    return all(
        byte in b"0123456789abcdef" if index < 8 else byte == _CUT_OFF[index]
        for index, byte in enumerate(start)
    )


def _is_acknowledged(text: bytes) -> bool:
    # A kill in the middle of the blanks leaves some of them, and then the end of a delivered event.
    # A single blank may be a flipped bit.
    return text.startswith(BLANK * 2) or not text.strip(BLANK)


def decode_row(line: bytes) -> Row | None:
    """Decode the line of an event, without its line break; None if it is anything else."""
    rows = decode_rows([line])
    return rows[0] if rows else None


def decode_rows(lines: Sequence[bytes]) -> list[Row] | None:
    """Decode the lines of events, without their line breaks; None if one of them is anything else.

    A shipper spends most of its time here. So each step is taken for all lines before the next one,
    without a loop or a call of ours for each line, which takes two thirds of the time.
    """
    if not lines:
        return []
    encoded = [line[_CRC_BYTES:] for line in lines]
    checksums = b"%08x " * len(lines) % tuple(map(zlib.crc32, encoded))
    if b"".join([line[:_CRC_BYTES] for line in lines]) != checksums:
        return None
    try:
        rows: list[Row] = list(map(orjson.loads, encoded))
        columns = list(zip(*map(_values, rows), strict=True))
        required, optional = columns[: len(_REQUIRED)], columns[len(_REQUIRED) :]
        payloads = map(orjson.loads, required[-1])
        are_rows = (
            {str}.issuperset(map(type, chain(*required)))
            and {str, NoneType}.issuperset(map(type, chain(*optional)))
            and not any("" in column for column in required)
            and set(map(len, rows)) == {len(columns)}
            and {dict}.issuperset(map(type, payloads))
        )
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None  # a line, or a payload, is no JSON, or a line is JSON of another shape
    return rows if are_rows else None
