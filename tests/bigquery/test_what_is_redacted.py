"""What a message may hold that BigQuery, or whoever answers for it, wrote about rows."""

from __future__ import annotations

import re
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorc_eventlog.bigquery.redaction import MOST_COMPARED, redact
from lorc_eventlog.bigquery.transport import Failure, Reason, Refusal
from lorc_eventlog.events.row import Row
from rows import make_row


@given(st.text("abcdefgh 0123456789äöü-_.", min_size=3), st.text(max_size=20))
def test_no_word_of_a_payload_survives(text: str, around: str) -> None:
    redacted = redact(f"{around} {text} {around}", [make_row(x=text)])
    for word in re.findall(r"\w+", text):
        if len(word) > 2 and word.isalnum():
            assert word not in re.findall(r"\w+", redacted)


def test_words_of_two_letters_go_if_they_stand_there_as_words() -> None:
    row = make_row("AB", dx="MS", note="this text holds is and of")
    assert redact("MS is of no use to AB", [row]) == "… … … no use to …"
    assert redact("a payload of 42", [make_row(x="overall 42")]) == "a payload of …"


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ("李明", "李明"),
        ("राम", "राम"),
        ("ALICE", "alice"),
        ("M\\u00fcller", "Müller"),
        (r"M\303\274ller", "Müller"),
        (r"M\xc3\xBCller", "Müller"),
        ("M%C3%BCller", "Müller"),
        ("Jose\u0301", "José"),
        ("19800102", "1980-01-02"),
        ("patient17", "patient-17"),
    ],
)
def test_a_value_is_blanked_however_it_is_written(message: str, value: str) -> None:
    assert redact(f"Bad value: {message}", [make_row(x=value)]) == "Bad value: …"
    assert redact(f"Bad value: {message}", [make_row(value)]) == "Bad value: …"


def test_bytes_that_are_no_text_are_shown_as_what_cannot_be_read() -> None:
    assert redact(r"Bad \377\376 value", [make_row(x="Ada")]) == "Bad … value"


LARGE = make_row(x="diabetes and some words " * (MOST_COMPARED // 20))


def test_of_many_rows_only_words_are_shown_that_everybody_uses() -> None:
    said = "An internal error occurred and the request could not be completed."
    assert redact(said, [LARGE]) == said
    assert redact("Bad value 'diabetes' of Ada, 1987.", [LARGE]) == "Bad value '…' of …, …."
    assert redact("502 Bad Gateway", [LARGE]) == "… Bad Gateway"


def test_9_megabytes_of_rows_hold_up_no_other_thread() -> None:
    rows: list[Row] = [LARGE] * (9_000_000 // len(LARGE["payload"]))
    longest = 0.0
    done = threading.Event()

    def say() -> None:
        for _ in range(20):
            redact("An internal error about somebody's diabetes occurred. " * 9, rows)
        done.set()

    saying = threading.Thread(target=say)
    saying.start()
    while not done.is_set():
        began = time.perf_counter()
        done.wait(0.0005)
        longest = max(longest, time.perf_counter() - began)
    saying.join()
    # Folding all of it takes half a second; this bound is for machines that do much else.
    assert longest < 0.2


# What is told


def test_only_what_may_quote_rows_is_redacted() -> None:
    row = make_row(x="Ada connection 503")
    assert Reason("503: no connection").told([row]) == "503: no connection"
    assert Reason("invalid", "no connection for Ada").told([row]) == "invalid: no … for …"


def test_control_characters_are_escaped_in_all_that_is_told() -> None:
    said = Reason("503\nCRITICAL", "spoofed\x1b[31m\nline")
    assert said.told([]) == "503\\nCRITICAL: spoofed\\x1b[31m\\nline"
    assert Reason("a\rb").told([]) == "a\\rb"


def test_what_to_do_is_told_with_the_reason() -> None:
    failure = Failure(Reason("404"), "create the table", may_be_the_rows=False, stored="no")
    assert failure.told([]) == "404: create the table"
    failure = Failure(Reason("503", "Ada"), None, may_be_the_rows=False, stored="unknown")
    assert failure.told([make_row(x="Ada")]) == "503: …"
    assert Refusal(Reason("400", "Ada"), is_about_size=False).told([make_row("Ada")]) == "400: …"


def test_a_word_of_three_letters_is_blanked_within_others_too() -> None:
    row = make_row(x="ladders")
    assert redact("add adder ad", [row]) == "… … ad"


def test_a_word_that_no_row_holds_is_shown() -> None:
    assert redact("XXXX xx", [make_row(x="a")]) == "XXXX xx"


def test_the_rows_of_a_request_are_told_apart() -> None:
    assert redact("AB", [make_row(x="a"), make_row("AB", x="b")]) == "…"


def test_subject_ids_count_among_what_a_message_is_compared_with() -> None:
    row = {**make_row(), "payload": "", "subject_id": "s" * MOST_COMPARED}
    assert redact("zebra", [row]) == "zebra"  # type: ignore[list-item]  # it was compared
    row["payload"] = "p"
    assert redact("zebra", [row]) == "…"  # type: ignore[list-item]  # it would take too long
