"""Signals are the application's: no thread of ours takes one that it blocks."""

from __future__ import annotations

import importlib.util
import signal

import pytest

from harness import numbers_in, run_program
from lorc_eventlog.lifecycle.signals import BackgroundThread
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
    BackgroundThread(lambda: None).run()  # as gevent does, on the thread that starts it
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
