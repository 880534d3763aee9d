"""The simulated fleet: processes that failed together do not return together, and lose nothing."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent))  # tox tests what is installed

from benchmarks.fleet import Fleet, Result, Simulation


def check_books(result: Result) -> None:
    assert result.submitted == result.stored + result.held + result.dropped


def test_after_an_outage_there_is_no_herd_and_nothing_is_dropped() -> None:
    result = Simulation(Fleet(60, outage=120)).run()

    check_books(result)
    assert result.dropped == 0
    assert result.ratio <= 3
    assert 0 < result.during_outage < 60 * 20  # seconds of pauses, doubled again and again
    assert result.most_drained_after <= result.drained_after < 90


def test_what_is_beyond_the_quota_waits() -> None:
    result = Simulation(Fleet(60, outage=120, bytes_a_second=300_000)).run()

    check_books(result)
    assert result.over_quota > 0
    assert result.dropped == 0


def test_the_same_seed_gives_the_same_result() -> None:
    fleet = Fleet(10, outage=30, seed=3)
    assert Simulation(fleet).run() == Simulation(fleet).run()
