"""Blanks in BigQuery's words what they quote of the rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from unicodedata import normalize

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row

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
