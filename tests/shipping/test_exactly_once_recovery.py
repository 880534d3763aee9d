"""What the next shipper does with a request whose outcome the last one did not learn."""

from __future__ import annotations

import time
from typing import Any

import pytest

from exactly_once import Application, FakeStreams, Shipper
from fake_disk import FakeDisk
from lorc_eventlog.bigquery.storage_stream import AlreadyExists
from lorc_eventlog.bigquery.transport import Failure
from lorc_eventlog.shipping import books


class Recorded(FakeStreams):
    """Notes how long each call may take, and answers some appends as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[tuple[str, float]] = []
        self.answers: list[Any] = []

    def append(self, *arguments: Any) -> Any:
        self.timeouts.append(("append", arguments[3]))
        return self.answers.pop(0) if self.answers else super().append(*arguments)

    def finalize(self, *arguments: Any) -> Any:
        self.timeouts.append(("finalize", arguments[1]))
        return super().finalize(*arguments)


@pytest.fixture
def streams() -> Recorded:
    return Recorded()


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk()


def ship_once(disk: FakeDisk, streams: Recorded, *numbers: str) -> Shipper:
    """Log events, and send them once."""
    application = Application(disk, durable=True)
    for number in numbers:
        application.append(number)
    application.close_segment()
    shipper = Shipper(disk, streams, [])
    shipper.step(10)
    return shipper


def restart(disk: FakeDisk, streams: Recorded, shipper: Shipper) -> None:
    disk.kill(shipper)
    finish(Shipper(disk, streams, []))


def finish(shipper: Shipper) -> None:
    for _ in range(20):
        if shipper.step(10):
            return
    pytest.fail("the shipper does not get to an end")


@pytest.mark.parametrize("fault", ["lost", "cut"])
def test_the_same_rows_are_sent_again_at_the_same_offset_and_no_stream_is_given_up(
    disk: FakeDisk, streams: Recorded, fault: str
) -> None:
    streams.faults.append(fault)
    restart(disk, streams, ship_once(disk, streams, "a", "b"))
    assert streams.stored() == {"a": 1, "b": 1}
    [stream] = streams.streams.values()
    assert not stream.is_finalized


def test_rows_that_are_not_those_of_the_intent_are_not_sent_at_its_offset(
    disk: FakeDisk, streams: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power may have taken some of them from the spool."""
    streams.faults.append("cut")
    shipper = ship_once(disk, streams, "a", "b")
    monkeypatch.setattr(books, "checksum_of", lambda _: "another")
    restart(disk, streams, shipper)
    first, second = streams.streams.values()
    assert (first.is_finalized, first.rows) == (True, [])
    assert sorted(second.rows) == ["a", "b"]


def test_a_second_copy_is_stored_only_if_the_stream_ends_where_it_would(
    disk: FakeDisk, streams: Recorded
) -> None:
    streams.faults.append("cut")
    shipper = ship_once(disk, streams, "a", "b")
    streams.answers.append(AlreadyExists(1))
    finish(shipper)
    assert streams.stored() == {"a": 1, "b": 1}
    assert [stream.is_finalized for stream in streams.streams.values()] == [True, False]


def test_each_call_may_take_what_is_left_of_the_time(
    disk: FakeDisk, streams: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    streams.faults.extend(["cut", "cut"])
    shipper = ship_once(disk, streams, "a")
    shipper._transport.settle(0.5)
    streams.faults.append("cut")
    shipper._transport.settle(-1.0)
    streams.answers.append(AlreadyExists(9))
    streams.timeouts.append(("now", 0.0))
    found = shipper._transport.settle(0.25)
    assert streams.timeouts == [
        ("append", 1.0),
        ("append", 0.5),
        ("append", 0.0),
        ("now", 0.0),
        ("append", 0.25),
        ("finalize", 0.25),
    ]
    assert isinstance(found, Failure)
    assert (found.reason.text, found.may_be_the_rows, found.stored) == (
        "the rows were not stored; they are sent again in a new stream",
        False,
        "no",
    )
