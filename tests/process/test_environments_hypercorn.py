"""hypercorn: as soon as one worker has ended, it sends SIGTERM to the others, twice."""

from __future__ import annotations

import urllib.request

import pytest

from harness import PROGRAMS, numbers_in
from scripted_bigquery import ScriptedBigQuery, status
from servers import running

pytestmark = pytest.mark.process


def test_hypercorns_workers_deliver_though_one_ends_before_the_other(
    scripted: ScriptedBigQuery,
) -> None:
    """One worker has to try again at its end, when the other one may have ended."""
    pytest.importorskip("hypercorn")
    server = ("hypercorn", "--workers", "2", "--bind", "127.0.0.1:0", "hypercorn_app:app")
    with running(*server, folder=PROGRAMS) as program:
        address = program.wait_for(r"http://127\.0\.0\.1:\d+", count=2)
        for number in range(10):
            with urllib.request.urlopen(f"{address}/{number}", timeout=60) as answer:
                assert answer.read() == b"ok"
        scripted.script(*[status(503)] * 3)
        program.terminate()

    assert numbers_in(scripted) == list(range(10)), program.said
