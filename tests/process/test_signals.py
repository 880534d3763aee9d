"""Signals are the application's: no thread of ours takes one that it blocks."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from google.cloud import bigquery

from harness import make_event, numbers_in, refuse_odd, run_program, running_writer
from lorc_eventlog import Envelope
from lorc_eventlog.lifecycle.signals import background_thread, with_signals
from scripted_bigquery import ScriptedBigQuery


@pytest.mark.parametrize("way", ["in the background", "in the foreground"])
def test_a_signal_that_the_main_thread_blocks_waits_for_it(
    scripted: ScriptedBigQuery, way: str
) -> None:
    """Also where Google's client imports libraries that start threads of their own.

    One that comes while it is imported is handled afterwards.
    """
    assert importlib.util.find_spec("pyarrow"), "imported with Google's client, starts a thread"
    assert run_program("signals.py", way, IMPORT_EVERYTHING="1") == ""

    assert numbers_in(scripted) == [0, 1]


def test_a_thread_that_is_a_greenlet_of_its_starter_blocks_nothing() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    background_thread(lambda: None).run()  # as gevent does, on the thread that starts it
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def blocked_here() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def run_in_background(action: Callable[[], object]) -> None:
    thread = background_thread(action)
    thread.start()
    thread.join(60)


def test_what_the_application_runs_on_a_thread_of_ours_has_its_signals() -> None:
    seen = []

    def see() -> None:
        seen.append(blocked_here())
        seen.append(with_signals(blocked_here))
        seen.append(blocked_here())

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        # A thread of ours starts another one: it inherits what the application blocks.
        run_in_background(lambda: run_in_background(see))
        assert with_signals(blocked_here) == before | {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    assert seen[0] == seen[2] > {signal.SIGTERM, signal.SIGUSR2}
    assert seen[1] == before | {signal.SIGUSR2}


def test_a_program_that_on_dead_letter_starts_can_be_ended(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    refuse_odd(scripted)
    statuses, callers = [], []

    def start_and_end(_event: Envelope, _reason: str) -> None:
        callers.append(threading.current_thread())
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as program:
            program.terminate()
            statuses.append(program.wait(60))

    with running_writer(client, on_dead_letter=start_and_end) as writer:
        writer.submit(make_event(1))
        assert writer.flush(60)

    assert statuses == [-signal.SIGTERM]
    assert callers != [threading.main_thread()]
