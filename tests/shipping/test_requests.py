"""One request into a committed stream, answer by answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from exactly_once import TABLE, Application, FakeStreams, Shipper
from fake_disk import FakeDisk
from lorc_eventlog.bigquery.storage_messages import EncodedRows, encode_rows
from lorc_eventlog.bigquery.storage_stream import AlreadyExists, Gone, StreamClient, Unusable
from lorc_eventlog.bigquery.transport import Answer, Failure, Reason, Refusal
from lorc_eventlog.lifecycle import clock
from lorc_eventlog.shipping import pending, stream_maker
from lorc_eventlog.shipping.ledger import MAX_RUN_BYTES, MAX_RUNS, run_bytes
from lorc_eventlog.shipping.pending import checksum_of, most_in_runs
from lorc_eventlog.shipping.requests import FENCE_AFTER, ledger_failure
from lorc_eventlog.shipping.segment import Place, Segment
from lorc_eventlog.shipping.stream_maker import StreamMaker
from rows import make_row

UNKNOWN = Failure(Reason("no answer"), None, may_be_the_rows=True, stored="unknown")
NOT_FOUND = Failure(Reason("no such stream"), None, may_be_the_rows=False, stored="no")


class Answers(FakeStreams):
    """Answers what it is told to, and else as BigQuery does."""

    def __init__(self) -> None:
        super().__init__()
        self.appends: list[Any] = []
        self.finalizes: list[Any] = []
        self.creates: list[Any] = []

    def append(self, *arguments: Any) -> Any:
        return self.appends.pop(0) if self.appends else super().append(*arguments)

    def finalize(self, *arguments: Any) -> Any:
        return self.finalizes.pop(0) if self.finalizes else super().finalize(*arguments)

    def create(self, *arguments: Any) -> Any:
        return self.creates.pop(0) if self.creates else super().create(*arguments)


@pytest.fixture
def streams() -> Answers:
    return Answers()


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk()


@pytest.fixture
def application(disk: FakeDisk) -> Application:
    return Application(disk, durable=True)


def log(application: Application, *numbers: str) -> None:
    for number in numbers:
        application.append(number)
    application.close_segment()


def finish(shipper: Shipper, steps: int = 20) -> None:
    for _ in range(steps):
        if shipper.step(10):
            return
    pytest.fail("the shipper does not get to an end")


@pytest.mark.parametrize(
    "answer",
    [AlreadyExists(9), AlreadyExists(1), Unusable(Reason("beyond")), AlreadyExists(None)],
)
def test_an_offset_that_somebody_else_took_puts_up_the_fence(
    streams: Answers, disk: FakeDisk, application: Application, answer: Any
) -> None:
    log(application, "a")
    streams.appends.append(answer)
    finish(Shipper(disk, streams, []))
    assert streams.stored() == {"a": 1}
    first, second = streams.streams.values()
    assert (first.is_finalized, second.rows) == (True, ["a"])


def test_a_copy_whose_call_was_interrupted_may_still_be_stored(
    streams: Answers, disk: FakeDisk, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    log(application, "a")
    shipper = Shipper(disk, streams, [])
    with monkeypatch.context() as patch:
        patch.setattr(streams, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shipper.step(10)
    streams.appends.append(Refusal(Reason("bad"), is_about_size=False))
    finish(shipper)
    first, second = streams.streams.values()
    assert (first.is_finalized, second.rows) == (True, ["a"])


def test_a_count_that_nobody_expected_is_reported(
    streams: Answers, disk: FakeDisk, application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    log(application, "a")
    streams.appends.append(Unusable(Reason("beyond")))
    streams.finalizes.append(7)
    shipper = Shipper(disk, streams, [])
    finish(shipper)
    shipper.notes.say()
    [name] = streams.streams
    said = (
        f"stream {name} holds 7 rows where 0 or 1 were expected: something else wrote to it, and "
        "rows may be missing or twice"
    )
    assert caplog.messages == [said]


@pytest.mark.parametrize("fault", ["lost", "cut"])
def test_a_count_that_was_expected_is_not_reported(
    streams: Answers,
    disk: FakeDisk,
    application: Application,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    log(application, "a")
    streams.faults.append(fault)
    shipper = Shipper(disk, streams, [])
    shipper.step(10)
    streams.appends.append(Unusable(Reason("beyond")))
    finish(shipper)
    shipper.notes.say()
    assert caplog.messages == []


def test_a_fence_that_cannot_be_put_up_is_tried_again(
    streams: Answers, disk: FakeDisk, application: Application
) -> None:
    log(application, "a")
    streams.appends.append(Unusable(Reason("beyond")))
    streams.finalizes += [UNKNOWN, UNKNOWN]
    finish(Shipper(disk, streams, []))
    assert streams.stored() == {"a": 1}


@pytest.mark.parametrize("is_stored", [True, False])
def test_what_is_given_up_is_fenced_and_may_be_stored_after_all(
    streams: Answers, disk: FakeDisk, application: Application, *, is_stored: bool
) -> None:
    log(application, "a", "b")
    streams.faults.append("lost" if is_stored else "cut")
    shipper = Shipper(disk, streams, [])
    shipper.step(1)
    a, b = shipper._waiting[0], *shipper._follower.read(1)
    assert shipper._transport.fence([b], 1.0) == []
    assert not shipper._transport.is_settled
    streams.finalizes.append(UNKNOWN)
    assert shipper._transport.fence([a, b], 1.0) is None
    assert shipper._transport.fence([a, b], 1.0) == [a] * is_stored
    assert streams.stored()["a"] == is_stored


def test_a_row_that_is_stored_after_all_is_not_sent_again_because_another_was_given_up(
    streams: Answers, disk: FakeDisk, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(application, "a", "b")
    streams.faults.append("lost")
    shipper = Shipper(disk, streams, [])
    shipper.step(2)
    a, b = shipper._waiting
    timeouts: list[float] = []

    def finalize(stream: str, timeout: float) -> Any:
        timeouts.append(timeout)
        return FakeStreams.finalize(streams, stream, timeout)

    monkeypatch.setattr(streams, "finalize", finalize)
    assert shipper._transport.fence([a], 100.0) == [a]
    assert 50.0 < timeouts[0] <= 100.0
    assert shipper._transport.send([b], timeout=1.0) == Answer()
    assert streams.stored() == {"a": 1, "b": 1}


def test_a_request_that_may_fail_because_of_a_row_makes_way_for_other_rows(
    streams: Answers, disk: FakeDisk, application: Application
) -> None:
    log(application, "a", "b")
    streams.appends.append(UNKNOWN)
    shipper = Shipper(disk, streams, [])
    shipper.step(1)
    (b,) = shipper._follower.read(1)
    assert shipper._transport.send([b], timeout=1.0) == Answer()
    first, second = streams.streams.values()
    assert (first.is_finalized, first.rows, second.rows) == (True, [], ["b"])


@pytest.mark.parametrize("is_unanswered", [True, False])
def test_a_stream_that_is_gone_is_replaced_and_what_may_be_twice_is_said(
    streams: Answers,
    disk: FakeDisk,
    application: Application,
    caplog: pytest.LogCaptureFixture,
    *,
    is_unanswered: bool,
) -> None:
    log(application, "a")
    streams.appends += [*[UNKNOWN] * is_unanswered, Gone(NOT_FOUND)]
    shipper = Shipper(disk, streams, [])
    finish(shipper)
    shipper.notes.say()
    assert streams.stored() == {"a": 1}
    assert len(streams.streams) == 2
    assert ("may be twice" in caplog.text) == is_unanswered


def test_a_stream_that_is_gone_when_it_is_finalized_is_replaced(
    streams: Answers, disk: FakeDisk, application: Application
) -> None:
    log(application, "a")
    streams.appends.append(Unusable(Reason("finalized")))
    streams.finalizes.append(Gone(NOT_FOUND))
    finish(Shipper(disk, streams, []))
    assert streams.stored() == {"a": 1}


def test_rows_that_may_break_bigquery_are_fenced_so_that_they_can_be_sent_apart(
    streams: Answers, disk: FakeDisk, application: Application
) -> None:
    log(application, "a", "b")
    streams.appends += [UNKNOWN] * FENCE_AFTER
    finish(Shipper(disk, streams, []))
    assert streams.stored() == {"a": 1, "b": 1}
    assert len(streams.streams) == 2


def test_a_refusal_after_a_copy_without_an_answer_is_settled_by_the_fence(
    streams: Answers, disk: FakeDisk, application: Application
) -> None:
    log(application, "a")
    streams.faults.append("lost")
    shipper = Shipper(disk, streams, [])
    shipper.step(10)
    streams.appends.append(Refusal(Reason("schema"), is_about_size=False))
    finish(shipper)
    assert streams.stored() == {"a": 1}


def test_without_disk_for_the_ledger_nothing_is_sent(
    streams: Answers, disk: FakeDisk, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(application, "a", "b")
    shipper = Shipper(disk, streams, [])
    books = shipper._transport._books

    def refuse(_: object) -> None:
        raise OSError(5, "Input/output error")

    write = books.write
    monkeypatch.setattr(books, "write", refuse)
    shipper.step(10)
    assert streams.stored() == {}
    monkeypatch.setattr(books, "write", write)
    shipper.step(1)
    assert sum(streams.stored().values()) == 1
    monkeypatch.setattr(books, "write", refuse)
    shipper.step(10)
    assert sum(streams.stored().values()) == 1
    assert isinstance(shipper._transport.settle(1.0), Failure)
    monkeypatch.setattr(books, "write", write)
    finish(shipper)
    assert streams.stored() == {"a": 1, "b": 1}


@contextmanager
def refusing_results(shipper: Shipper) -> Iterator[None]:
    """The disk takes intents, and no record that says only what became of one."""
    books = shipper._transport._books
    write = books.write

    def refuse_results(intent: object) -> None:
        if intent is None:
            raise OSError(28, "No space left on device")
        write(cast("Any", intent))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(books, "write", refuse_results)
        yield


def test_a_refusal_that_cannot_be_recorded_is_settled_by_the_fence(
    streams: Answers, disk: FakeDisk, application: Application
) -> None:
    log(application, "a")
    shipper = Shipper(disk, streams, [])
    streams.appends.append(Failure(Reason("INTERNAL"), None, may_be_the_rows=True, stored="no"))
    with refusing_results(shipper):
        shipper.step(10)
    finish(shipper)
    assert streams.stored() == {"a": 1}
    assert len(streams.streams) == 2


def test_a_fence_that_cannot_be_recorded_is_put_up_again(
    streams: Answers, disk: FakeDisk, application: Application
) -> None:
    log(application, "a")
    shipper = Shipper(disk, streams, [])
    streams.appends.append(Unusable(Reason("beyond")))
    with refusing_results(shipper):
        shipper.step(10)
    finish(shipper)
    assert streams.stored() == {"a": 1}


def test_what_is_pending_and_cannot_be_settled_keeps_everything_waiting(
    streams: Answers, disk: FakeDisk, application: Application
) -> None:
    log(application, "a")
    streams.appends += [UNKNOWN, UNKNOWN, UNKNOWN]
    shipper = Shipper(disk, streams, [])
    shipper.step(10)
    assert shipper._transport.settle(1.0) == UNKNOWN
    assert not shipper.step(10)
    shipper._transport.reconnect()
    shipper._transport.restart_in_child()
    assert not shipper._transport.is_connected
    finish(shipper)
    assert streams.stored() == {"a": 1}


def test_a_stream_that_cannot_be_made_is_a_failure(
    streams: Answers, disk: FakeDisk, application: Application
) -> None:
    log(application, "a")
    streams.creates.append(NOT_FOUND)
    shipper = Shipper(disk, streams, [])
    assert not shipper.step(10)
    assert streams.stored() == {}
    finish(shipper)
    assert streams.stored() == {"a": 1}


def test_no_more_streams_are_made_in_an_hour_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    monkeypatch.setattr(stream_maker, "MOST_STREAMS_AN_HOUR", 2)
    streams = Answers()
    maker = StreamMaker(TABLE, cast("StreamClient", streams))
    assert isinstance(maker.make(now), str)
    now += 10
    assert isinstance(maker.make(now), str)
    result = maker.make(now)
    assert isinstance(result, Failure)
    assert "within an hour" in result.reason.text
    now += 3595
    assert isinstance(maker.make(now), str)


def test_rows_in_more_runs_than_a_record_holds_are_sent_in_several_requests(
    streams: Answers, disk: FakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "MAX_RUNS", 2)
    for index in range(5):
        log(Application(disk, durable=True), f"event {index}")
    shipper = Shipper(disk, streams, [])
    requests: list[int] = []
    append: Callable[..., Any] = streams.append

    def count(stream: str, offset: int, rows: EncodedRows, timeout: float) -> Any:
        requests.append(rows.count)
        return append(stream, offset, rows, timeout)

    monkeypatch.setattr(streams, "append", count)
    finish(shipper)
    assert requests == [2, 2, 1]
    assert sum(streams.stored().values()) == 5


def test_rows_that_several_requests_were_refused_for_are_all_dead_letters(
    streams: Answers, disk: FakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "MAX_RUNS", 1)
    for number in ("a", "b"):
        application = Application(disk, durable=True)
        application.append(number, poison=True)
        application.close_segment()
    dead_letters: list[str] = []
    finish(Shipper(disk, streams, dead_letters))
    assert dead_letters == ["a", "b"]


A, B, LONG = (cast("Segment", SimpleNamespace(name=name)) for name in ("a", "b", "x" * 83))


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ([(A, 0, 10), (A, 10, 20), (A, 20, 30)], 3),
        ([(A, 0, 10), (A, 11, 20)], 1),
        ([(A, 0, 10), (B, 10, 20)], 1),
        ([], 0),
    ],
)
def test_lines_of_one_segment_that_follow_each_other_are_one_run(
    monkeypatch: pytest.MonkeyPatch, lines: list[Place], count: int
) -> None:
    monkeypatch.setattr(pending, "MAX_RUNS", 1)
    assert most_in_runs(lines) == count


def test_runs_in_segments_with_long_names_are_fewer() -> None:
    """Else their record would reach into the next slot of the ledger, and be lost."""
    assert run_bytes(LONG.name) == 128
    assert MAX_RUN_BYTES % 128 == 0
    lines = [(LONG, 2 * number, 2 * number + 1) for number in range(MAX_RUNS)]
    assert most_in_runs(lines) == MAX_RUN_BYTES // 128


def test_a_checksum_tells_apart_other_rows_and_another_order() -> None:
    a, b, ab = (make_row(x=text) for text in ("a", "b", "ab"))
    rows = [[a], [b], [ab], [a, b], [b, a], [a, a]]
    assert len({checksum_of(encode_rows(some)) for some in rows}) == len(rows)


def test_a_checksum_is_the_one_that_ledgers_hold() -> None:
    assert checksum_of(encode_rows([])) == "cae66941d9efbd404e4d88758ea67670"


def test_what_is_said_of_a_stream_that_is_gone(
    streams: Answers, disk: FakeDisk, application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    log(application, "a", "b")
    streams.appends += [UNKNOWN, Gone(NOT_FOUND)]
    shipper = Shipper(disk, streams, [])
    finish(shipper)
    shipper.notes.say()
    [name, _] = streams.streams
    said = (
        f"stream {name} is gone (it lives four days without traffic, and as long as its table): "
        "2 events whose outcome is not known are sent again and may be twice"
    )
    assert caplog.messages == [said]


def test_a_stream_that_is_gone_is_fenced_if_the_ledger_cannot_say_so(
    streams: Answers, disk: FakeDisk, application: Application
) -> None:
    log(application, "a")
    shipper = Shipper(disk, streams, [])
    streams.appends.append(Gone(NOT_FOUND))
    with refusing_results(shipper):
        shipper.step(10)
    assert shipper._transport._requests.pending is not None
    assert shipper._transport._requests.pending.needs_fence
    finish(shipper)
    assert streams.stored() == {"a": 1}


def test_a_ledger_that_cannot_be_written_stores_nothing_and_is_no_rows_fault() -> None:
    assert ledger_failure(OSError(28, "No space left on device")) == Failure(
        Reason("the ledger cannot be written: No space left on device"),
        "nothing is sent until the disk of the spool directory takes it",
        may_be_the_rows=False,
        stored="no",
    )
    assert ledger_failure(OSError()).reason.text == "the ledger cannot be written: OSError"
