"""Blanks in BigQuery's words what they may quote of the rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from unicodedata import normalize

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row

MOST_COMPARED = 200_000
"""Characters of rows that a message is compared with. To fold them takes about 10 ms, in which no
other thread runs; for more, only words are shown that BigQuery, proxies and Python use anyway."""

_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_BYTES = re.compile(r"(?:\\[0-3][0-7]{2}|\\x[0-9a-fA-F]{2}|%[0-9a-fA-F]{2})+")
"""Bytes as C++, Python and addresses write those that are not ASCII."""
_BYTE = re.compile(r"\\([0-3][0-7]{2})|(?:\\x|%)([0-9a-fA-F]{2})")
_WORD = re.compile(r"[^\s!-/:-@\[-`{-~…]+")
_NO_LETTER_OR_DIGIT = re.compile(r"[\W_]+")

_COMMON_WORDS = frozenset(
    """
    a aborted accepted access again all allowed an and any api application are argument
    arguments array ascii at attempt backend bad batch be been before between bigquery body
    broken but by byte bytes cancelled cannot char character characters chunk client closed code
    codec column columns complete completed connection contains content convert converted could
    created data dataset datetime deadline decode decoding delimiter denied dictionary did
    disconnected doctype document dropped duplicate during either empty encode encoded encoding
    encountered end endpoint entity error errors event events exceeded exceeds exception execute
    executed execution expected expecting expired failure few field fields first follow
    following for forbidden format found from gateway given google handle has have header
    headers help hint host html http https identifier if in incomplete incorrect index input
    insert instead integer internal invalid is it its job json kind known large later least
    length limit line load location long main malformed many match maximum may memory message
    method minimum mismatch missing module moment more must name names nested nesting network
    new nginx no nor not null object occurred of ok on one only operation option or order org
    other our out overloaded page parameter parse parsed parsing part path payload peer
    permission permissions please point policy port position present problem process processed
    processing project property protocol provided proxy query quota quotes range rate reached
    read reason received record reference refused region rejected remote repeated reported
    request required reset resource resources response result results retry retrying returned
    root row rows schema script second seconds send sent server service set size software solve
    specified start started state status still stopped storage store stored streaming string
    such support syntax system table tables temporarily temporary that the then there these they
    this time timed timeout times timestamp title to token too transaction try type unable
    unavailable under unexpected unicode unknown unsupported until up update upgrade upstream
    url use used user using utf valid value values version wait was we web when which while
    whole will with without write wrong you your
    """.split()  # noqa: SIM905
)


def redact(message: str, rows: Sequence[Row]) -> str:
    """Blank each word of BigQuery's ``message`` that stands in the private part of ``rows``.

    BigQuery's messages may quote the value that they complain about, and payloads and subject_ids
    are health data. They may write it in another case, escaped, or without what separates its
    parts (1980-01-02 as 19800102), so that all of this makes no difference here. Words of one or
    two letters of the alphabet must stand there as words, because they stand in any text.
    """
    size = sum(len(row["payload"]) + len(row["subject_id"] or "") for row in rows)
    is_private = _is_uncommon if size > MOST_COMPARED else _comparison(rows)

    def blank(match: re.Match[str]) -> str:
        return "…" if is_private(match[0]) else match[0]

    unescaped = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), message)
    return _WORD.sub(blank, _BYTES.sub(_decoded, unescaped))


def _decoded(match: re.Match[str]) -> str:
    escapes = _BYTE.findall(match[0])
    return bytes(
        int(octal, 8) if octal else int(hexadecimal, 16) for octal, hexadecimal in escapes
    ).decode(errors="replace")


def _is_uncommon(word: str) -> bool:
    return word.casefold() not in _COMMON_WORDS


def _comparison(rows: Sequence[Row]) -> Callable[[str], bool]:
    private = _folded(" ".join(f"{row['subject_id'] or ''} {row['payload']}" for row in rows))
    words = set(_WORD.findall(private))
    text = _NO_LETTER_OR_DIGIT.sub("", private)

    def is_private(word: str) -> bool:
        word = _folded(word)
        short = len(word) <= 2 and word.isascii() and word.isalpha()
        return word in words if short else _NO_LETTER_OR_DIGIT.sub("", word) in text

    return is_private


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else normalize("NFKC", text).casefold()
