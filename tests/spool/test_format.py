"""What a segment holds: nothing of it is trusted, and decoding it never fails."""

from __future__ import annotations

import json
import os
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lorc_eventlog.spool.format import (
    HEADER,
    HEADER_BYTES,
    MAX_LINE_BYTES,
    Header,
    decode_header,
    decode_line,
    decode_row,
    decode_rows,
    encode_header,
    encode_line,
    find_rows,
)
from lorc_eventlog.spool.segment import Segment
from lorc_eventlog.spool.survey import survey
from spools import TABLE, line, row, segment_of_the_dead


def with_checksum(value: object) -> bytes:
    """A line, without its line break, whose checksum is right."""
    text = json.dumps(value).encode()
    return b"%08x %b" % (zlib.crc32(text), text)


# A line


def test_a_line_is_a_checksum_and_json() -> None:
    one = row(1)
    assert decode_line(encode_line(one)[:-1]) == one
    assert decode_line(b"00000000 {}") is None
    assert decode_line(b"") is None
    assert decode_line(b"%08x no JSON" % zlib.crc32(b"no JSON")) is None


def test_only_what_has_the_shape_of_a_row_is_an_event() -> None:
    for odd in ({"event_id": "1"}, {}, [1], "text"):
        text = with_checksum(odd)
        assert find_rows(text) == ([], len(text))


PAYLOADS: tuple[Any, ...] = (None, 1, {}, [], "", "null", "[1]", '"text"', "{", "{}{}")
FORGED: list[dict[str, Any]] = [
    *({"payload": value} for value in PAYLOADS),
    *({key: None} for key in ("event_id", "event_type", "source", "created_at")),
    *({key: ""} for key in ("event_id", "event_type", "source", "created_at")),
    *({key: ["text"]} for key in row(0)),
    *({key: 1} for key in row(0)),
    {"another_key": None},
    {"payload": "[" * 2000},
]


@pytest.mark.parametrize("change", FORGED, ids=lambda change: json.dumps(change)[:40])
def test_a_row_with_a_right_checksum_and_values_of_another_type_is_damage(
    change: dict[str, Any],
) -> None:
    text = with_checksum({**row(1), **change})
    assert find_rows(text) == ([], len(text))


@pytest.mark.parametrize(
    "change", [*FORGED, {"schema_ref": None}], ids=lambda c: json.dumps(c)[:40]
)
def test_lines_are_events_together_if_each_is_one(change: dict[str, Any]) -> None:
    rows = [row(number) for number in range(3)]
    lines = [encode_line(one)[:-1] for one in rows]
    assert decode_rows(lines) == rows
    lines[1] = with_checksum({**rows[1], **change})
    changed = decode_row(lines[1])
    assert decode_rows(lines) == (None if changed is None else [rows[0], changed, rows[2]])
    # The digits of two lines are no checksums if they are swapped, although they are all there.
    first, second = lines[0], lines[2]
    assert decode_rows([second[:9] + first[9:], first[:9] + second[9:]]) is None
    assert decode_rows([first[1:], b"0" + second]) is None
    assert decode_rows([]) == []


@pytest.mark.parametrize("key", [*row(0)])
def test_a_row_without_one_of_its_keys_is_damage(key: str) -> None:
    forged: dict[str, Any] = {**row(1)}
    del forged[key]
    text = with_checksum(forged)
    assert find_rows(text) == ([], len(text))


def test_a_row_may_lack_what_is_optional_and_may_have_its_keys_in_any_order() -> None:
    optional = {"schema_ref": None, "correlation_id": None, "subject_id": None}
    for good in ({**row(1), **optional}, dict(reversed(row(1).items()))):
        text = with_checksum(good)
        assert find_rows(text) == ([(0, len(text) + 1, good)], 0)


def test_events_are_found_although_the_line_break_between_them_is_lost() -> None:
    lines = [line(number)[:-1] for number in range(3)]
    found, damaged_bytes = find_rows(b"x".join(lines))
    assert [found_row["event_id"] for _, _, found_row in found] == [
        orjson.loads(text[9:])["event_id"] for text in lines
    ]
    assert damaged_bytes == 0


# The header


def test_a_header_names_the_table() -> None:
    assert decode_header(encode_header(TABLE) + line(1)) == Header(
        is_of_a_later_version=False, table=TABLE
    )


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"garbage",
        HEADER,
        HEADER + line(1),
        HEADER + b" " * 200 + b"\n" + line(2),
        encode_header(TABLE)[:-1],
        encode_header(TABLE).replace(b"table", b"tafel"),
        encode_header(TABLE).replace(b"  ", b"", 1),
        HEADER + b"  " + encode_line({"table": 1}),
        HEADER + b"  " + encode_line({"tables": TABLE}),
        HEADER + b"\n" * 5000,
    ],
)
def test_a_header_without_a_table_that_can_be_read_names_none(beginning: bytes) -> None:
    assert decode_header(beginning) == Header(is_of_a_later_version=False, table=None)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_a_header_of_another_version_says_so(version: object) -> None:
    later = encode_line({"lorc_eventlog_spool": version}) + line(1)
    assert decode_header(later).is_of_a_later_version


def test_version_0_1_0_finds_all_events_and_no_damage_in_a_segment_of_this_version() -> None:
    """As that version does it: the first line must be the header; blanks are struck off."""
    lines = (encode_header(TABLE) + line(1)).split(b"\n")[:-1]
    assert lines[0] + b"\n" == HEADER == b'1ab66537 {"lorc_eventlog_spool":1}\n'
    damaged = [text for text in lines[1:] if decode_line(text) is None]
    assert len(damaged) == 1
    assert damaged[0].startswith(b"  ")


# Anything at all


PIECES = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from([
            HEADER, encode_header(TABLE), line(1), line(2), line(3)[:50], line(4)[50:],
            b" " * 40 + b"\n", b"\n", b'0123abcd {"event_id":"', b'"}', bytes(70), b"\xff\xfe",
            with_checksum({**row(5), "payload": None}) + b"\n",
        ]),
    ),
    max_size=12,
).map(b"".join)  # fmt: skip


@given(PIECES)
@example(b"")
def test_whatever_a_line_is_decoding_it_finds_rows_within_it_and_counts_the_rest(
    text: bytes,
) -> None:
    found, damaged_bytes = find_rows(text)
    end = 0
    for start, stop, found_row in found:
        assert end <= start < stop <= len(text) + 1
        assert decode_line(text[start : stop - 1]) == found_row
        end = stop
    covered = sum(stop - start for start, stop, _ in found)
    assert 0 <= damaged_bytes <= len(text)
    assert damaged_bytes + covered <= len(text) + len(found)


@given(PIECES)
def test_whatever_a_file_begins_with_its_header_can_be_asked_for(beginning: bytes) -> None:
    header = decode_header(beginning[:HEADER_BYTES])
    assert header.table in (None, TABLE)


@settings(deadline=None)
@given(content=PIECES, limit=st.integers(1, 4), claimed=st.integers(0, 100))
def test_whatever_a_file_holds_reading_it_comes_to_its_end(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, limit: int, claimed: int
) -> None:
    path = segment_of_the_dead(tmp_path_factory.mktemp("spool"), content)
    with path.open("rb") as file:
        segment = Segment(path, file.fileno())
        segment.size = max(0, len(content) + claimed - 50)  # it was truncated, or goes on
        position, rows = 0, []
        while position < segment.size:
            reading = segment.read(position, limit)
            assert reading.read_to > position
            position = reading.read_to
            rows += reading.rows
    path.unlink()
    assert all(found["event_type"] == "test.happened" for _, _, found in rows)
    if segment.size >= len(content):
        assert len(rows) >= content.count(b"\n" + line(1)) + content.count(b"\n" + line(2))


# Lines that are too long


@pytest.mark.parametrize("filling", [b"\0", b"x", b" ", b'0123abcd {"event_id":"'])
def test_a_line_of_any_length_is_read_in_bounded_steps_and_costs_nothing_behind_it(
    tmp_path: Path, filling: bytes
) -> None:
    filled = filling * (3 * MAX_LINE_BYTES // len(filling))
    path = segment_of_the_dead(tmp_path, HEADER + line(1) + filled + b"\n" + line(2))
    del filled
    with path.open("rb") as file:
        segment = Segment(path, file.fileno())
        tracemalloc.start()
        position, numbers = 0, 0
        while position < segment.size:
            reading = segment.read(position, 100)
            position = reading.read_to
            numbers += len(reading.rows)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert numbers == 2
    assert peak < 8 * MAX_LINE_BYTES


def test_a_line_of_10_megabytes_is_read(tmp_path: Path) -> None:
    large = row(1, text="")
    text = "x" * (MAX_LINE_BYTES - len(encode_line(large)))
    large["payload"] = large["payload"].replace('""', f'"{text}"')
    longest = encode_line(large)
    assert len(longest) == MAX_LINE_BYTES
    segment_of_the_dead(tmp_path, HEADER + longest + line(2))
    (report,) = survey(tmp_path)
    assert (report.events, report.damaged_bytes) == (2, 0)


def test_a_sparse_file_of_a_tebibyte_is_passed_over(tmp_path: Path) -> None:
    path = segment_of_the_dead(tmp_path, HEADER + line(1) + b"x")
    os.truncate(path, 2**40)
    (report,) = survey(tmp_path)
    assert (report.events, report.size) == (1, 2**40)
    assert report.damaged_bytes == 2**40 - len(HEADER + line(1))
