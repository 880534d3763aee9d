"""However a process ends, what it logged is delivered, or it says what is not."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import (
    PRIVATE,
    make_event,
    numbers_in,
    run_program,
    running_writer,
    start_program,
    submit_events,
)
from inside import dispatcher_of
from lorc_eventlog import EventWriter
from lorc_eventlog.delivery import senders
from lorc_eventlog.lifecycle import exit as process_exit
from scripted_bigquery import ScriptedBigQuery, hang, status


def cannot_be_started(*_: object) -> threading.Thread:
    raise RuntimeError("daemon threads are disabled in this interpreter")


WAYS = {
    "end of the script": (0, range(30)),
    "sys.exit": (3, range(30)),
    "an exception": (1, range(30)),
    "closed": (0, range(30)),
    "logged after close": (0, [*range(30), 100]),
    "logging.shutdown": (0, [*range(30), 100]),
    "several handlers": (0, range(30)),
    "dictConfig": (0, range(30)),
    "a writer that nobody refers to": (0, range(30)),
    "only in atexit": (0, range(30)),
    "atexit registered after the import": (0, [*range(30), 100]),
    "atexit registered before the import": (0, [*range(30), 100]),
    "a handler that an exit function makes": (0, [100]),
    "dictConfig in an exit function": (0, [*range(30), 100]),
    "a thread that goes on": (0, [*range(30), *range(100, 200)]),
    "os._exit after a flush": (0, range(30)),
    "multiprocessing was imported": (0, range(30)),
}


@pytest.mark.parametrize("way", WAYS)
def test_all_is_delivered(scripted: ScriptedBigQuery, way: str) -> None:
    code, numbers = WAYS[way]
    said = run_program("exits.py", way, status=code)

    assert numbers_in(scripted) == list(numbers)
    assert "ValueError: unhandled" in said if way == "an exception" else said == ""


def test_an_exit_function_may_take_longer_than_close_timeout(scripted: ScriptedBigQuery) -> None:
    """Only waiting counts: what it logs then still has its time."""
    assert run_program("exits.py", "an exit function that takes long", 5.0) == ""
    assert numbers_in(scripted) == [*range(30), 100, 101]


def test_what_a_destructor_logs_when_python_has_ended_hangs_nothing_and_is_said(
    scripted: ScriptedBigQuery,
) -> None:
    said = run_program("exits.py", "a destructor when Python has ended")
    assert said == (
        "lorc_eventlog: lost 1 event: Python had ended when it was logged"
        " (set spool_dir to keep it)\n"
    )
    assert numbers_in(scripted) == list(range(30))


def test_a_writer_that_is_made_when_others_are_finished_delivers_in_the_call(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_exit, "_is_ending", True)
    with running_writer(flush_interval=60) as writer:
        submit_events(writer, range(2))
        assert numbers_in(scripted) == [0, 1]


@pytest.mark.parametrize("with_spool", [False, True])
def test_what_is_logged_when_python_has_ended_goes_to_disk_or_is_counted_as_lost(
    scripted: ScriptedBigQuery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    with_spool: bool,
) -> None:
    scripted.always(status(503))
    with running_writer(spool_dir=tmp_path if with_spool else None, close_timeout=0) as writer:
        with monkeypatch.context() as ended:
            ended.setattr(sys, "is_finalizing", lambda: True)
            writer.submit(make_event(1))
        stats = writer.stats()
        assert (stats.buffered, stats.dropped) == ((1, 0) if with_spool else (0, 1))
    assert ("lost 1 event" in capsys.readouterr().err) == (not with_spool)
    assert any(PRIVATE in path.read_text() for path in tmp_path.iterdir()) == with_spool


def test_no_thread_is_started_when_python_has_ended(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.12, its start would wait for ever."""
    with running_writer(flush_interval=60, capacity=10) as writer:
        monkeypatch.setattr(senders, "background_thread", cannot_be_started)
        submit_events(writer, range(3))
        monkeypatch.setattr(sys, "is_finalizing", lambda: True)
        assert writer.flush(10)
    assert numbers_in(scripted) == [0, 1, 2]


def test_a_short_outage_at_the_exit_loses_nothing(scripted: ScriptedBigQuery) -> None:
    """The pauses between the tries are then a second at most."""
    scripted.script(*[status(503)] * 6)
    assert "BigQuery is not accepting events" in run_program("exits.py", "end of the script")
    assert numbers_in(scripted) == list(range(30))


def test_sigterm_with_two_lines_is_an_orderly_exit(scripted: ScriptedBigQuery) -> None:
    with start_program("exits.py", "SIGTERM") as program:
        assert program.stdout is not None
        assert program.stderr is not None
        while program.stdout.readline() != "60\n":
            assert program.poll() is None
        program.send_signal(signal.SIGTERM)
        # Not communicate(), which knows nothing of what readline() has read ahead.
        printed, said = program.stdout.read(), program.stderr.read()

    assert (program.returncode, said) == (0, "")
    numbers = numbers_in(scripted)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) - 1 - int(["60", *printed.split()][-1]) in (0, 1)


def test_a_daemon_thread_that_goes_on_logging_does_not_hold_up_the_exit(
    scripted: ScriptedBigQuery,
) -> None:
    began = time.monotonic()
    run_program("exits.py", "a daemon thread that goes on", 5)

    assert time.monotonic() - began < 30
    assert set(range(30)) <= set(numbers_in(scripted))


def test_a_dead_letter_callback_may_log_and_flush_at_exit(scripted: ScriptedBigQuery) -> None:
    scripted.refuse_row(lambda row: '"number":7,' in row["payload"])
    began = time.monotonic()
    run_program("exits.py", "a dead letter callback", 60)

    assert time.monotonic() - began < 30
    assert numbers_in(scripted) == [*(n for n in range(30) if n != 7), 100]


@pytest.fixture(params=["refused", "hanging"])
def outage(request: pytest.FixtureRequest, scripted: ScriptedBigQuery) -> None:
    """No answer from BigQuery, in one way or the other."""
    if request.param == "refused":
        scripted.stop()
    else:
        scripted.always(hang())


@pytest.mark.parametrize(
    ("way", "left"),
    [
        ("end of the script", 30),
        ("multiprocessing was imported", 30),
        ("several handlers", 10),
        ("only in atexit", 30),
    ],
)
@pytest.mark.usefixtures("outage")
def test_in_an_outage_the_exit_takes_close_timeout_and_says_how_many_are_left(
    way: str, left: int
) -> None:
    program = start_program("exits.py", way, 1.0)
    assert program.stdout is not None
    while program.stdout.readline() != "ends\n":
        assert program.poll() is None
    began = time.monotonic()
    _, said = program.communicate(timeout=40)
    took = time.monotonic() - began

    assert f"lost {left} events: BigQuery did not accept them within" in said
    assert PRIVATE not in said
    assert took < 20  # a request to a server that hangs would take 30


def test_the_second_of_two_exits_waits_no_more(scripted: ScriptedBigQuery) -> None:
    """multiprocessing's exit functions come before atexit's, and both deliver."""
    with running_writer() as writer:
        writer.emit("a.b", {}, source="s")
        dispatcher_of(writer).closing.finish(time.monotonic() + 10)
        assert len(scripted.rows) == 1
        scripted.always(hang())
        dispatcher_of(writer).closing.finish(time.monotonic() + 10)
        assert scripted.requests[-1].fault is None
        scripted.healthy()


def test_a_writer_that_is_made_while_the_process_ends_does_not_stop_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Changing:
        def __init__(self) -> None:
            self.looks = 0

        def __iter__(self) -> Iterator[EventWriter]:
            self.looks += 1
            if self.looks == 1:
                raise RuntimeError("Set changed size during iteration")
            return iter(())

    changing = Changing()
    monkeypatch.setattr(process_exit, "_participants", changing)
    monkeypatch.setattr(process_exit, "_is_ending", False)
    process_exit.finish_all()
    assert changing.looks == 2
