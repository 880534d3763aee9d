"""Damage costs nothing but itself."""

from __future__ import annotations

import errno
import logging
import logging.config
import os
import random
import zlib
from pathlib import Path

import pytest

from harness import (
    PRIVATE,
    Records,
    assert_adds_up,
    eventually,
    make_event,
    numbers_in,
    running_writer,
    submit_events,
)
from lorc_eventlog.spool.format import HEADER, HEADER_BYTES, decode_line, encode_line, find_rows
from scripted_bigquery import ScriptedBigQuery
from spools import (
    content,
    deliver_all,
    line,
    names,
    row,
    segment_of_the_dead,
)


def test_a_line_is_a_checksum_and_json() -> None:
    one = row(1)
    assert decode_line(encode_line(one)[:-1]) == one
    assert decode_line(b"00000000 {}") is None
    assert decode_line(b"") is None
    assert decode_line(b"%08x no JSON" % zlib.crc32(b"no JSON")) is None


def test_only_what_has_the_shape_of_a_row_is_an_event() -> None:
    for odd in ({"event_id": "1"}, {}, [1], "text"):
        text = encode_line(odd)[:-1]  # type: ignore[arg-type]
        assert find_rows(text) == ([], len(text))


@pytest.mark.parametrize("where", range(0, 20_000, 512))
def test_of_a_truncated_file_the_whole_lines_are_delivered_and_the_rest_is_set_aside(
    tmp_path: Path, where: int
) -> None:
    lines = [HEADER, *map(line, range(60))]
    whole = b"".join(lines)
    cut = whole[:where]
    segment_of_the_dead(tmp_path, cut)
    readable = [
        number for number in range(60)
        # Without its line break, too: the rest of the line is complete.
        if len(b"".join(lines[: number + 2])) - 1 <= len(cut)
    ]  # fmt: skip
    with Records() as records:
        assert deliver_all(tmp_path) == readable
    rest = cut[len(b"".join(lines[: len(readable) + 1])) :]
    if rest and readable:
        assert names(tmp_path) == ["1-1-a.events.damaged"]
        assert content(tmp_path).endswith(rest)
        assert PRIVATE.encode() not in content(tmp_path)[: -len(rest)]
        (text,) = records.texts(logging.WARNING)
        assert "is cut off" in text
    assert records.texts(logging.ERROR) == []


def test_a_flipped_bit_costs_the_one_event_that_it_is_in(tmp_path: Path) -> None:
    lines = [HEADER, *map(line, range(8))]
    whole = bytearray(b"".join(lines))
    random_source = random.Random(5)
    for flip in random_source.sample(range(len(whole) * 8), 1500):
        position, bit = divmod(flip, 8)
        flipped = bytearray(whole)
        flipped[position] ^= 1 << bit
        segment_of_the_dead(tmp_path, bytes(flipped))
        hit = bytes(whole[:position]).count(b"\n") - 1
        is_line_break = whole[position] == ord("\n")
        expected = [number for number in range(8) if number != hit or is_line_break]
        assert deliver_all(tmp_path) == expected, (position, bit)
        left = names(tmp_path)
        assert left in ([], ["1-1-a.events.damaged"])
        assert bool(left) == (expected != list(range(8)) or position < len(HEADER) - 1), position
        for name in left:
            (tmp_path / name).unlink()


def test_flipped_bits_among_struck_off_events_cost_nothing_else(tmp_path: Path) -> None:
    blanks = b" " * 299 + b"\n"
    whole = HEADER + line(0) + blanks + line(1) + blanks * 2 + line(2)
    random_source = random.Random(6)
    for position in random_source.sample(range(len(whole)), 400):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << random_source.randrange(8)
        segment_of_the_dead(tmp_path, bytes(flipped))
        with Records():
            delivered = deliver_all(tmp_path)
        assert len(delivered) >= 2 + (whole[position] in b" \n"), position
        for name in names(tmp_path):
            (tmp_path / name).unlink()


def test_a_kill_in_the_middle_of_striking_off_is_no_damage(tmp_path: Path) -> None:
    lines = b"".join(map(line, range(3)))
    for struck in range(2, len(lines), 7):
        segment_of_the_dead(tmp_path, HEADER + b" " * struck + lines[struck:] + line(3))
        with Records() as records:
            numbers = deliver_all(tmp_path)
        assert numbers[-1] == 3
        assert names(tmp_path) == []
        assert records.texts(logging.ERROR) == records.texts(logging.WARNING) == []


@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 5000, b"\n" * 100 + b"x", os.urandom(100_000)],
    ids=["zeros", "line breaks", "anything"],
)
def test_a_garbage_file_is_set_aside_and_in_nobodys_way(
    scripted: ScriptedBigQuery, tmp_path: Path, garbage: bytes
) -> None:
    segment_of_the_dead(tmp_path, garbage)
    segment_of_the_dead(tmp_path, HEADER + line(1) + garbage + b"\n" + line(2), name="2-1-a")
    with Records() as records, running_writer(spool_dir=tmp_path) as writer:
        writer.submit(make_event(3))
        assert writer.drain_spool(10)
    assert numbers_in(scripted) == [1, 2, 3]
    assert names(tmp_path) == ["1-1-a.events.damaged", "2-1-a.events.damaged"]
    assert (tmp_path / "1-1-a.events.damaged").read_bytes() == garbage
    assert garbage in (tmp_path / "2-1-a.events.damaged").read_bytes()
    texts = records.texts(logging.ERROR) + records.texts(logging.WARNING)
    assert len(texts) == 2  # one a file, however many lines of it are damaged


def test_a_file_of_a_later_version_is_left_to_it(
    scripted: ScriptedBigQuery, tmp_path: Path
) -> None:
    later = encode_line({"lorc_eventlog_spool": 2}) + line(1)
    segment_of_the_dead(tmp_path, later)
    with Records() as records, running_writer(spool_dir=tmp_path) as writer:
        assert writer.drain_spool(10)
        (text,) = records.texts(logging.ERROR)
    assert "of a later version" in text
    assert names(tmp_path) == ["1-1-a.events"]
    assert content(tmp_path) == later
    assert scripted.rows == []


@pytest.mark.parametrize("length", [0, 10, len(HEADER)])
def test_a_file_without_events_is_deleted(tmp_path: Path, length: int) -> None:
    segment_of_the_dead(tmp_path, HEADER[:length])
    with Records() as records:
        assert deliver_all(tmp_path) == []
    assert names(tmp_path) == []
    assert records.texts(logging.ERROR) == []


def test_own_events_that_are_damaged_on_disk_count_as_dropped(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    with running_writer(spool_dir=tmp_path, capacity=10, batch_rows=10) as writer:
        submit_events(writer, range(30))
        (path,) = tmp_path.iterdir()
        lines = path.read_bytes().splitlines(keepends=True)
        lines[17] = lines[17].replace(b"number", b"nonsen")
        path.write_bytes(b"".join(lines))
        down.healthy()
        assert writer.flush(10)
        stats = writer.stats()
        assert (stats.delivered, stats.dropped) == (29, 1)
        assert_adds_up(stats)
        eventually(lambda: names(tmp_path) == [path.name + ".damaged"])
        writer.submit(make_event(30))
    assert numbers_in(down) == [number for number in range(31) if number != 15]


def test_a_flush_returns_though_the_last_event_is_damaged_on_disk(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    with running_writer(spool_dir=tmp_path, capacity=1, batch_rows=1) as writer:
        submit_events(writer, range(2))
        (path,) = tmp_path.iterdir()
        path.write_bytes(path.read_bytes().replace(b'number\\":1', b'number\\":7'))
        down.healthy()
        assert writer.flush(10)
        assert writer.stats().dropped == 1


def test_own_events_that_are_truncated_on_disk_count_as_dropped(
    down: ScriptedBigQuery, tmp_path: Path
) -> None:
    with running_writer(spool_dir=tmp_path, capacity=1, batch_rows=1) as writer:
        submit_events(writer, range(5))
        (path,) = tmp_path.iterdir()
        os.truncate(path, len(HEADER))
        down.healthy()
        assert writer.flush(10)
        assert writer.stats().dropped == 4
        assert_adds_up(writer.stats())


def test_a_file_that_cannot_be_read_is_set_aside_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read = os.pread

    def read(descriptor: int, size: int, offset: int) -> bytes:
        if size > HEADER_BYTES:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_read(descriptor, size, offset)

    segment_of_the_dead(tmp_path, HEADER + b"".join(map(line, range(30))))
    monkeypatch.setattr(os, "pread", read)
    with Records() as records:
        assert deliver_all(tmp_path) == []
    assert names(tmp_path) == ["1-1-a.events.damaged"]
    assert content(tmp_path).startswith(HEADER)
    assert "cannot be read" in records.texts(logging.ERROR)[0]
