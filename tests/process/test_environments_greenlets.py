"""gevent and eventlet: threads are greenlets, from the start or from some moment on."""

from __future__ import annotations

import importlib.util
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import PROGRAMS, numbers_in, run_program
from scripted_bigquery import ScriptedBigQuery
from servers import GUNICORN, running, start_server


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
@pytest.mark.parametrize("overflow", ["drop", "block"])
@pytest.mark.parametrize("patched", ["before", "after"])
def test_whenever_the_library_patches_each_event_arrives_once(
    scripted: ScriptedBigQuery, library: str, patched: str, overflow: str
) -> None:
    # Not imported here: eventlet would then warn of every fork of other tests.
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    assert run_program("greenlets.py", library, patched, overflow, timeout=100) == ""

    assert numbers_in(scripted) == list(range(2000))


@pytest.mark.parametrize(("library", "overflow"), [("gevent", "block"), ("eventlet", "drop")])
def test_a_library_that_patches_after_the_first_event_costs_none(
    scripted: ScriptedBigQuery, library: str, overflow: str
) -> None:
    """Threads that are there by then stay threads. eventlet itself complains of them."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    began = time.monotonic()
    said = run_program("greenlets.py", library, "after an event", overflow, timeout=100)

    assert numbers_in(scripted) == list(range(2002))
    if library == "gevent":
        assert said == ""
        assert time.monotonic() - began < 50  # the program gives its end a minute


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_gunicorn_with_gevent_workers(scripted: ScriptedBigQuery, preload: tuple[str, ...]) -> None:
    """Each process that imports the application logs event 0, each request one of its own."""
    pytest.importorskip("gevent")
    server = (*GUNICORN, "--worker-class", "gevent", *preload, "wsgi_app:app")
    with running(*server, folder=PROGRAMS) as program:
        address = start_server(program)
        with ThreadPoolExecutor(8) as clients:
            asked = clients.map(lambda number: ask(address, number), range(1, 101))
            assert set(asked) == {b"ok"}
        program.terminate()

    assert program.process.returncode == 0
    # What is logged before gunicorn patches may have Google's client imported: gevent warns.
    said = [line for line in program.said if "MonkeyPatchWarning" not in line]
    assert [line for line in said if "lorc_eventlog" in line or "Error" in line] == []
    imports = 1 if preload else 2
    assert numbers_in(scripted) == [*[0] * imports, *range(1, 101)], program.said


def ask(address: str, number: int) -> bytes:
    with urllib.request.urlopen(f"{address}/{number}", timeout=30) as answer:
        return bytes(answer.read())
