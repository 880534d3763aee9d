"""The ledger: what survives in which order, on a real disk."""

from __future__ import annotations

import errno
import json
import os
import zlib
from pathlib import Path

import orjson
import pytest

from lorc_eventlog.shipping.books import Books
from lorc_eventlog.shipping.ledger import (
    MAX_LENGTH,
    MAX_RUN_BYTES,
    MAX_RUNS,
    SLOT_BYTES,
    SLOTS,
    Intent,
    Ledger,
    Run,
    run_bytes,
)
from lorc_eventlog.shipping.lines import Lines
from lorc_eventlog.spool.directory import Directory

NAME = "shipper.ledger"
RUN = Run("segment.ship", 10, 20)
INTENT = Intent("stream", 3, 1, (RUN,), "0f")


def test_a_new_ledger_is_empty_allocated_and_readable_by_its_owner_alone(
    directory: Directory,
) -> None:
    ledger = Ledger(directory, NAME)
    status = (directory.path / NAME).stat()
    assert (status.st_size, status.st_mode & 0o777) == (SLOTS * SLOT_BYTES, 0o600)
    assert status.st_blocks * 512 >= SLOTS * SLOT_BYTES
    assert ledger.records == []
    ledger.close()


def test_records_are_found_again_in_their_order(directory: Directory) -> None:
    ledger = Ledger(directory, NAME)
    written = [
        ledger.write(stream="stream", end=number, stored=[RUN], intent=INTENT)
        for number in range(SLOTS + 3)
    ]
    ledger.close()
    again = Ledger(directory, NAME)
    assert again.records == written[-SLOTS:]
    assert again.write(stream=None, end=0, stored=[], intent=None).number == SLOTS + 4
    again.close()


def test_a_record_that_was_cut_off_does_not_count(directory: Directory) -> None:
    ledger = Ledger(directory, NAME)
    first = ledger.write(stream="stream", end=1, stored=[], intent=INTENT)
    slot = ledger.next_slot
    ledger.write(stream="stream", end=2, stored=[], intent=None)
    with (directory.path / NAME).open("r+b") as file:
        file.seek(slot * SLOT_BYTES + 30)
        file.write(b"#")
    ledger.close()
    again = Ledger(directory, NAME)
    assert again.records == [first]
    again.close()


def test_a_record_counts_whatever_is_left_of_the_one_that_it_overwrites(
    directory: Directory,
) -> None:
    ledger = Ledger(directory, NAME)
    slot = ledger.next_slot
    record = ledger.write(stream="stream", end=1, stored=[], intent=None)
    with (directory.path / NAME).open("r+b") as file:
        file.seek((slot + 1) * SLOT_BYTES - 10)
        file.write(b"old\n")
    ledger.close()
    again = Ledger(directory, NAME)
    assert again.records == [record]
    again.close()


@pytest.mark.parametrize("line", [b"{}", b'{"number":1}', b'{"number":"x","intent":null}'])
def test_a_record_of_another_shape_does_not_count(directory: Directory, line: bytes) -> None:
    (directory.path / NAME).write_bytes(b"%08x %b\n" % (zlib.crc32(line), line))
    (directory.path / NAME).chmod(0o600)
    ledger = Ledger(directory, NAME)
    assert ledger.records == []
    ledger.close()


@pytest.mark.parametrize(
    "run",
    [
        Run("../victim.ship", 0, 5),
        Run("\0.ship", 0, 5),
        Run("a.ship", -1, 5),
        Run("a.ship", 5, 5),
        Run("a.ship", 0, MAX_LENGTH + 1),
        Run("a.ship", 0, 2**60),
    ],
)
def test_a_record_that_names_what_no_segment_holds_does_not_count(
    directory: Directory, run: Run
) -> None:
    """Whoever shares the directory can write it: nothing outside may be overwritten."""
    victim = directory.path.parent / "victim.ship"
    victim.write_bytes(b"secret")
    victim.chmod(0o600)
    ledger = Ledger(directory, NAME)
    ledger.write(stream="s", end=1, stored=[run], intent=None)
    ledger.close()
    ledger = Ledger(directory, NAME)
    assert ledger.records == []
    assert Books(ledger, Lines(directory)).recover() is None
    ledger.close()
    assert victim.read_bytes() == b"secret"


@pytest.mark.parametrize("run", [Run("a.ship", 0, 1), Run("a.ship", 7, 7 + MAX_LENGTH)])
def test_a_record_of_the_shortest_or_the_longest_run_counts(directory: Directory, run: Run) -> None:
    ledger = Ledger(directory, NAME)
    record = ledger.write(stream="s", end=1, stored=[run], intent=None)
    ledger.close()
    ledger = Ledger(directory, NAME)
    assert ledger.records == [record]
    ledger.close()


def test_the_size_of_a_run_is_that_of_its_json_with_the_largest_numbers() -> None:
    name = "a\x01ä.ship"
    assert run_bytes(name) == len(orjson.dumps([name, 2**63, 2**63])) + len(",")


def test_the_most_runs_fit_into_a_slot_twice(directory: Directory) -> None:
    ledger = Ledger(directory, NAME)
    run = Run("0" * 20 + "-4194304-000001-abcdef01.ship", 10**10, 10**10 + 10**7)
    intent = Intent("projects/" + "p" * 200, 10**12, 50_000, (run,) * MAX_RUNS, "0" * 32)
    record = ledger.write(stream=intent.stream, end=1, stored=[run] * MAX_RUNS, intent=intent)
    ledger.close()
    assert Ledger(directory, NAME).records == [record]


def test_the_most_bytes_of_runs_fit_into_a_slot_twice(directory: Directory) -> None:
    ledger = Ledger(directory, NAME)
    name = "\x01" * 250 + ".ship"
    runs = [Run(name, 2**62, 2**62 + 10**7)] * (MAX_RUN_BYTES // run_bytes(name))
    stream = f"projects/{'p' * 30}/datasets/{'d' * 1024}/tables/{'t' * 1024}/streams/{'s' * 100}"
    intent = Intent(stream, 2**62, 50_000, tuple(runs), "0" * 32)
    record = ledger.write(stream=stream, end=2**62, stored=runs, intent=intent)
    ledger.close()
    assert (directory.path / NAME).stat().st_size == SLOTS * SLOT_BYTES
    again = Ledger(directory, NAME)
    assert again.records == [record]
    again.close()


def test_a_ledger_that_finds_no_room_takes_no_descriptor(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(10):
        with pytest.raises(OSError, match="No space left"):
            Ledger(directory, NAME)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_records_go_round_so_that_the_last_few_are_there_to_be_found(directory: Directory) -> None:
    ledger = Ledger(directory, NAME)
    assert ledger.next_slot == 1
    slots = []
    for number in range(1, 2 * SLOTS):
        slots.append(ledger.next_slot)
        assert ledger.write(stream="s", end=0, stored=[], intent=None).number == number
    assert slots == [number % SLOTS for number in range(1, 2 * SLOTS)]
    ledger.close()


def test_a_record_is_a_line_of_json_with_its_checksum_and_blanks_after_it(
    directory: Directory,
) -> None:
    ledger = Ledger(directory, NAME)
    ledger.write(stream="stream", end=7, stored=[RUN], intent=INTENT)
    ledger.write(stream=None, end=0, stored=[], intent=None)
    ledger.close()
    content = (directory.path / NAME).read_bytes()
    first, second = (content[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES] for slot in (1, 2))
    assert [json.loads(slot[9:]) for slot in (first, second)] == [
        {
            "number": 1,
            "stream": "stream",
            "end": 7,
            "stored": [["segment.ship", 10, 20]],
            "intent": {
                "stream": "stream",
                "offset": 3,
                "count": 1,
                "runs": [["segment.ship", 10, 20]],
                "checksum": "0f",
            },
        },
        {"number": 2, "stream": None, "end": 0, "stored": [], "intent": None},
    ]
    assert first.rstrip(b" ").count(b"\n") == 1


def test_a_record_without_an_intent_is_found_again(directory: Directory) -> None:
    ledger = Ledger(directory, NAME)
    record = ledger.write(stream=None, end=3, stored=[RUN], intent=None)
    ledger.close()
    again = Ledger(directory, NAME)
    assert again.records == [record]
    again.close()
