"""Applications, a shipper and BigQuery's streams, in memory: what a crash does to exactly once."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from fake_disk import FakeDirectory, FakeDisk, FakeFile
from lorc_eventlog.bigquery.storage_messages import EncodedRows, ProtoRows
from lorc_eventlog.bigquery.storage_stream import (
    AlreadyExists,
    Gone,
    Outcome,
    Refused,
    Stored,
    StreamClient,
    Unusable,
)
from lorc_eventlog.bigquery.transport import Answer, Failure, Reason, Refusal, RefusedRow
from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.events.row import row_at
from lorc_eventlog.shipping.books import Books
from lorc_eventlog.shipping.exactly_once import ExactlyOnceTransport
from lorc_eventlog.shipping.follower import Follower
from lorc_eventlog.shipping.ledger import Ledger
from lorc_eventlog.shipping.lines import Lines
from lorc_eventlog.spool.directory import Directory
from lorc_eventlog.spool.format import encode_line
from lorc_eventlog.spool.shipped import SUFFIX, header_of

TABLE = "dataset.events"
FAULTS = ("lost", "cut", "late", "unavailable", "broken", "refusal")
"""The answer is lost after storing; the request is; it comes late; three kinds of refusals."""


@dataclass
class Stream:
    rows: list[str] = field(default_factory=list)
    is_finalized: bool = False


class FakeStreams:
    """Stands for ``StreamClient`` and BigQuery behind it; ``faults`` are of the next appends."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self.faults: deque[str] = deque()
        self._late: list[tuple[str, int, list[dict[str, str]]]] = []

    def stored(self) -> Counter[str]:
        """How often each event is stored."""
        return Counter(number for stream in self.streams.values() for number in stream.rows)

    def create(self, parent: Callable[[str], str], timeout: float) -> str | Failure:  # noqa: ARG002
        name = f"{parent('project')}/streams/{len(self.streams)}"
        self.streams[name] = Stream()
        return name

    def finalize(self, stream: str, timeout: float) -> int | Gone | Failure:  # noqa: ARG002
        if self.faults and self.faults[0] == "cut":
            self.faults.popleft()
            return _failure("unknown")
        if stream not in self.streams:
            return Gone(_failure("no"))
        self.streams[stream].is_finalized = True
        return len(self.streams[stream].rows)

    def append(  # noqa: PLR0911  one for each fault
        self,
        stream: str,
        offset: int,
        encoded: EncodedRows,
        timeout: float,  # noqa: ARG002
    ) -> Outcome:
        rows = [
            {field.name: value for field, value in row.ListFields()}
            for row in ProtoRows.FromString(encoded.data).serialized_rows
        ]
        fault = self.faults.popleft() if self.faults else None
        if fault == "lost":
            self._append(stream, offset, rows)
            return _failure("unknown")
        if fault == "cut":
            return _failure("unknown")
        if fault == "late":
            self._late.append((stream, offset, rows))
            return _failure("unknown")
        if fault == "unavailable":
            return _failure("no")
        if fault == "broken":
            return Failure(Reason("INTERNAL"), None, may_be_the_rows=True, stored="no")
        if fault == "refusal":
            return Refusal(Reason("INVALID_ARGUMENT"), is_about_size=False)
        return self._append(stream, offset, rows)

    def deliver_late(self) -> None:
        """What was late arrives."""
        late, self._late = self._late, []
        for stream, offset, rows in late:
            self._append(stream, offset, rows)

    def _append(self, name: str, offset: int, rows: list[dict[str, str]]) -> Outcome:
        stream = self.streams[name]
        if stream.is_finalized:
            return Unusable(Reason("finalized"))
        if offset < len(stream.rows):
            return AlreadyExists(len(stream.rows))
        if offset > len(stream.rows):
            return Unusable(Reason("beyond"))
        bad = [index for index, row in enumerate(rows) if "poison" in row["payload"]]
        if bad:
            reason = Reason("bad")
            return Refused(tuple(RefusedRow(i, reason, "bad", is_about_payload=True) for i in bad))
        stream.rows += [json.loads(row["payload"])["number"] for row in rows]
        return Stored()

    def disconnect(self) -> None:
        pass


def _failure(stored: Any) -> Failure:
    return Failure(Reason("no answer"), None, may_be_the_rows=False, stored=stored)


class Application:
    """A process that appends events to segments, and forces each to the disk if it is told to."""

    _count = 0

    def __init__(self, disk: FakeDisk, *, durable: bool) -> None:
        Application._count += 1
        self._process = Application._count
        self._directory = FakeDirectory(disk, self)
        self._durable = durable
        self._segments = 0
        self._file: FakeFile | None = None

    def append(self, number: str, **payload: Any) -> None:
        if self._file is None:
            self._segments += 1
            name = f"{self._process:020d}-1-{self._segments:06d}-0{SUFFIX}"
            file = self._directory.open_file(f".{name}", os.O_CREAT)
            file.try_lock()
            try:
                file.append(encode_line(header_of(TABLE)))
            except OSError:
                self._directory.unlink(f".{name}")
                raise
            if self._durable:
                file.force()
            self._directory.rename(f".{name}", name)
            if self._durable:
                self._directory.force()
            self._file = file
        row = row_at(0.0, "test", {"number": number, **payload}, "tests")
        self._file.append(encode_line(row))
        if self._durable:
            self._file.force()

    def close_segment(self) -> None:
        if self._file is not None:
            self._file._inode.owner = None
            self._file = None


class Shipper:
    """A shipper's parts, moved by hand. Dead letters are safe once they are in the list."""

    def __init__(self, disk: FakeDisk, streams: FakeStreams, dead_letters: list[str]) -> None:
        directory = cast("Directory", FakeDirectory(disk, self))
        self.notes = Notes()
        self._dead_letters = dead_letters
        lines = Lines(directory)
        self._follower = Follower(directory, lines, TABLE, self.notes)
        self._transport = ExactlyOnceTransport(
            TABLE,
            client=cast("StreamClient", streams),
            follower=self._follower,
            books=Books(Ledger(directory, "ledger"), lines),
            notes=self.notes,
        )
        self._waiting: list[Any] = []

    def step(self, limit: int) -> bool:
        """Look, read and send once; whether nothing is left."""
        self._follower.look()
        self._waiting += self._follower.read(max(0, limit - len(self._waiting)))
        batch = self._waiting[:limit]
        if not batch:
            self._transport.settle(timeout=1.0)
            self._follower.look()
            return self._transport.is_settled and not self._follower.has_unread
        result = self._transport.send(batch, timeout=1.0)
        if isinstance(result, Answer):
            refused = {row.index for row in result.refused}
            dead = [row for index, row in enumerate(batch) if index in refused]
            stored = [row for index, row in enumerate(batch) if index not in refused]
            self._dead_letters += [json.loads(row["payload"])["number"] for row in dead]
            self._follower.acknowledge(dead)
            self._follower.release(stored)
            del self._waiting[: len(batch)]
        return False
