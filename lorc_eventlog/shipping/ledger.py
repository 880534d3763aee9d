"""What is about to be stored, and what became of it: a file that survives kills and power loss.

Constraints:

* A row may be sent only if the disk holds the *intent* to send it: at which offset of which stream,
  and where it stands in the spool.
* A row may be erased from the spool only if the disk holds the *result*.
* A record may be overwritten only if what its result erased is erased on the disk.
* A full disk must not stop the delivery that would free it. So the file is allocated beforehand.

Format: ``SLOTS`` slots of ``SLOT_BYTES``. A record is a line of the spool's format, a checksum and
JSON, and goes into the slot after that of the record before it. A record that was cut off by a loss
of power does not decode, and the one before it counts. A record holds the result of one request and
the intent of the next, so that a request costs one write to the disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from lorc_eventlog.spool.format import decode_line, encode_line

if TYPE_CHECKING:
    from lorc_eventlog.spool.directory import Directory

SLOTS = 8
SLOT_BYTES = 64 * 2**10

MAX_RUNS = 256
"""The most runs of one request..."""

MAX_RUN_BYTES = 28 * 2**10
"""... and the most bytes that they take. A record holds those of two requests, and 8 KiB besides:
somebody may have given segments long names."""


MAX_LENGTH = 2**28
"""A longer run is none: one is at most what a request takes, as the spool writes it."""


class Run(NamedTuple):
    """Neighbouring lines of one segment."""

    segment: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Intent:
    """Rows that are sent next: always all of them, in this order, at this offset."""

    stream: str
    offset: int
    count: int
    runs: tuple[Run, ...]
    checksum: str
    """Of the rows: lines that were not forced to the disk may be gone after a loss of power."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record: where the stream ends, what was stored last, and what is sent next."""

    number: int
    stream: str | None
    """The stream in use; None if there is none, or it takes no more rows."""
    end: int
    """How many rows it holds, those of ``stored`` included."""
    stored: tuple[Run, ...]
    """Lines whose rows are stored, to be erased."""
    intent: Intent | None


class Ledger:
    """The file. Not thread-safe: the one thread that sends owns it.

    Args:
        directory: The spool directory.
        name: The name of the file; made and allocated if it is not there.

    Raises:
        OSError: The file cannot be opened, locked or allocated.
    """

    def __init__(self, directory: Directory, name: str) -> None:
        self.file = directory.open_file(name, os.O_RDWR | os.O_CREAT)
        """The open file."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.file.close)
            self.file.allocate(SLOTS * SLOT_BYTES)
            self.records = self._read()
            """The records that were found, the oldest first; all but the last are history."""
            self.file.force()
            directory.force()
            undo.pop_all()
        self._number = self.records[-1].number if self.records else 0

    def _read(self) -> list[Record]:
        records = []
        for start in range(0, SLOTS * SLOT_BYTES, SLOT_BYTES):
            slot = self.file.read(SLOT_BYTES, start)
            record = _decode(slot)
            if record is not None:
                # Hazard: the shipper before may have been killed, or met an error, before this was
                # on the disk; after an error the kernel takes it for written, and force does
                # nothing. So it is written anew before anybody relies on it.
                self.file.write(slot, start)
                records.append(record)
        return sorted(records, key=lambda record: record.number)

    @property
    def next_slot(self) -> int:
        """The slot that the next record overwrites."""
        return (self._number + 1) % SLOTS

    def write(
        self, *, stream: str | None, end: int, stored: Iterable[Run], intent: Intent | None
    ) -> Record:
        """Write a record and force it to the disk.

        Raises:
            OSError: The disk refuses it. Nothing may be sent or erased; the record before counts,
                or this one does.
        """
        record = Record(self._number + 1, stream, end, tuple(stored), intent)
        line = _encode(record)
        self.file.write(line.ljust(SLOT_BYTES), self.next_slot * SLOT_BYTES)
        self.file.force()
        self._number = record.number
        return record

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def run_bytes(segment: str) -> int:
    """Return the most bytes that a run in ``segment`` takes in a record."""
    return len(orjson.dumps(segment)) + len("[,,],") + 2 * len(str(2**63))


def _encode(record: Record) -> bytes:
    intent = record.intent
    return encode_line(
        {
            "number": record.number,
            "stream": record.stream,
            "end": record.end,
            "stored": [tuple(run) for run in record.stored],
            "intent": None
            if intent is None
            else {
                "stream": intent.stream,
                "offset": intent.offset,
                "count": intent.count,
                "runs": [tuple(run) for run in intent.runs],
                "checksum": intent.checksum,
            },
        }
    )


def _decode(slot: bytes) -> Record | None:
    value = decode_line(slot.partition(b"\n")[0])
    if value is None:
        return None
    try:
        return _record(value)
    except (KeyError, TypeError, ValueError):
        return None


def _record(value: dict[str, Any]) -> Record:
    intent = value["intent"]
    return Record(
        number=int(value["number"]),
        stream=value["stream"],
        end=int(value["end"]),
        stored=_runs(value["stored"]),
        intent=None
        if intent is None
        else Intent(
            stream=str(intent["stream"]),
            offset=int(intent["offset"]),
            count=int(intent["count"]),
            runs=_runs(intent["runs"]),
            checksum=str(intent["checksum"]),
        ),
    )


def _runs(value: Any) -> tuple[Run, ...]:
    return tuple(_run(str(segment), int(start), int(end)) for segment, start, end in value)


def _run(segment: str, start: int, end: int) -> Run:
    # Who shares the directory may have written the ledger, and a run is overwritten with blanks.
    if "/" in segment or "\0" in segment or not 0 <= start < end <= start + MAX_LENGTH:
        raise ValueError
    return Run(segment, start, end)
