"""What the next shipper does with a request whose outcome the last one did not learn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from exactly_once import Application, FakeStreams, Shipper
from fake_disk import FakeDisk
from lorc_eventlog.bigquery.storage_stream import AlreadyExists
from lorc_eventlog.bigquery.transport import Failure, Reason
from lorc_eventlog.lifecycle import clock
from lorc_eventlog.shipping import books
from lorc_eventlog.shipping.ledger import SLOTS, Run
from lorc_eventlog.shipping.requests import FENCE_AFTER


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


def test_no_copy_is_sent_after_a_fence_that_could_not_be_put_up(
    disk: FakeDisk, streams: Recorded
) -> None:
    streams.answers.append(AlreadyExists(9))
    streams.faults.append("cut")
    finish(ship_once(disk, streams, "a"))
    assert [call for call, _ in streams.timeouts] == ["append", "finalize", "finalize", "append"]


def test_a_copy_that_the_last_shipper_sent_counts_as_one(disk: FakeDisk, streams: Recorded) -> None:
    streams.faults.append("cut")
    shipper = ship_once(disk, streams, "a")
    broken = Failure(Reason("INTERNAL"), None, may_be_the_rows=True, stored="unknown")
    streams.answers += [broken] * FENCE_AFTER
    streams.timeouts.clear()
    restart(disk, streams, shipper)
    calls = [call for call, _ in streams.timeouts]
    assert calls.index("finalize") == FENCE_AFTER - 1


def test_each_call_may_take_what_is_left_of_the_time(
    disk: FakeDisk, streams: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "monotonic", lambda: 1000.0)
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


def test_the_next_shipper_goes_on_with_the_stream_of_the_last(
    disk: FakeDisk, streams: Recorded
) -> None:
    shipper = ship_once(disk, streams, "a")
    finish(shipper)
    disk.kill(shipper)
    finish(ship_once(disk, streams, "b"))
    [stream] = streams.streams.values()
    assert stream.rows == ["a", "b"]


def ship_one_by_one(application: Application, shipper: Shipper, *numbers: str) -> None:
    """Log events, and send each with a request of its own."""
    for number in numbers:
        application.append(number)
        shipper.step(1)


def test_what_the_last_shipper_erased_does_not_come_back_with_a_loss_of_power(
    disk: FakeDisk, streams: Recorded
) -> None:
    """The record that says so is overwritten only when the disk has it erased."""
    first = Shipper(disk, streams, [])
    ship_one_by_one(Application(disk, durable=True), first, "a")
    finish(first)
    disk.kill(first)
    others = [f"event {number}" for number in range(SLOTS + 1)]
    ship_one_by_one(Application(disk, durable=True), Shipper(disk, streams, []), *others)
    disk.lose_power(lambda: False)
    finish(Shipper(disk, streams, []))
    assert streams.stored() == dict.fromkeys(["a", *others], 1)


@pytest.mark.parametrize("who", ["shipper", "application"])
def test_what_was_erased_is_erased_anew_before_it_is_forced(
    disk: FakeDisk, streams: Recorded, who: str
) -> None:
    """An error is told once, perhaps to another, and the system forgets all that was erased."""
    events = [f"event {number}" for number in range(3 * SLOTS)]
    application = Application(disk, durable=True)
    for number in events:
        application.append(number)
    shipper = Shipper(disk, streams, [])
    for _ in range(SLOTS + 1):
        shipper.step(1)
    if who == "shipper":
        disk.fail_at = disk.changes + 2  # the force before the first record is overwritten
        shipper.step(1)
    else:
        disk.fail_at = disk.changes + 2  # the force of what it appends
        with pytest.raises(OSError, match="Input/output error"):
            application.append("later")
        events.append("later")
    assert disk.fail_at is None
    for _ in range(SLOTS):
        shipper.step(1)
    application.append("last")
    events.append("last")
    disk.lose_power(lambda: False)
    finish(Shipper(disk, streams, []))
    stored = streams.stored()
    assert set(events) - {"later"} <= set(stored) <= set(events)
    assert set(stored.values()) == {1}


def test_what_was_erased_is_forced_once_and_only_when_its_record_is_overwritten(
    disk: FakeDisk, streams: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipper = Shipper(disk, streams, [])
    lines = shipper._transport._books._lines
    force = lines.force
    forced: list[bool] = []

    def note(runs: Iterable[Run]) -> None:
        forced.append(bool(runs))
        force(runs)

    monkeypatch.setattr(lines, "force", note)
    application = Application(disk, durable=True)
    ship_one_by_one(application, shipper, *(f"event {number}" for number in range(SLOTS + 2)))
    # The first record says of nothing that it is stored.
    assert forced == [False] * (SLOTS + 1) + [True]
    streams.faults += ["unavailable"] * SLOTS
    ship_one_by_one(application, shipper, *(f"other {number}" for number in range(SLOTS)))
    # Each of these makes two records, which name nothing but, in the first, what is from before.
    assert forced[SLOTS + 2 :] == [True] * (SLOTS + 1) + [False] * (SLOTS - 1)
