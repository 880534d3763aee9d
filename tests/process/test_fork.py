"""Parent and children log, before and after the fork: each event arrives once.

LORC_EVENTLOG_SOAK=seconds repeats the fork under load until so many seconds are over.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.cloud import bigquery

from harness import (
    PRIVATE,
    PROGRAMS,
    environment,
    eventually,
    fork_and_wait,
    make_event,
    numbers_in,
    running_writer,
    start_program,
    submit_events,
)
from inside import client_of, dispatcher_of
from lorc_eventlog import EventWriter, ForegroundWriter
from lorc_eventlog.bigquery import imports
from lorc_eventlog.delivery import dispatcher as dispatcher_module
from lorc_eventlog.lifecycle import fork
from scripted_bigquery import ScriptedBigQuery, delay, status

CHILDREN = 4


def run_forks(scripted: ScriptedBigQuery, way: str, children: int, events: int) -> None:
    """Run the program; each process's events arrived once, over connections of its own."""
    program = start_program("forks.py", way, children, events)
    try:
        printed, said = program.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGABRT)  # faulthandler shows where each of them hangs
        _, said = program.communicate(timeout=30)
        pytest.fail(f"it hangs: {said}")
    assert program.returncode == 0, said
    assert PRIVATE not in said
    waits = "BigQuery is not accepting events"
    assert [line for line in said.splitlines() if not line.startswith(waits)] == []
    counts = {"parent": int(printed)} | {f"child-{n}": events for n in range(children)}
    arrived: defaultdict[str, Counter[int]] = defaultdict(Counter)
    pids: dict[str, int] = {}
    for event in scripted.events():
        payload = event["payload"]
        arrived[payload["name"]][payload["number"]] += 1
        pids[event["event_id"]] = payload["pid"]
    assert {name: len(numbers) for name, numbers in arrived.items()} == counts
    assert {count for numbers in arrived.values() for count in numbers.values()} == {1}
    users: defaultdict[int, set[int]] = defaultdict(set)
    for request in scripted.requests:
        for insert_id in request.insert_ids:
            assert insert_id is not None
            users[request.client_port].add(pids[insert_id])
    assert max(map(len, users.values())) == 1


@pytest.mark.parametrize(
    ("server_is", "buffer_is", "client_is"),  # each with each, in as few programs as that takes
    [
        ("quick", "empty", "own client"),
        ("quick", "full", "given client"),
        ("slow", "empty", "given client"),
        ("slow", "full", "own client"),
        ("failing", "empty", "given client"),
        ("failing", "full", "own client"),
    ],
)
def test_four_children_under_load(
    scripted: ScriptedBigQuery, server_is: str, buffer_is: str, client_is: str
) -> None:
    if server_is == "slow":
        scripted.latency = 0.05
    elif server_is == "failing":
        scripted.script(*[status(503)] * 8)
    run_forks(scripted, f"os.fork, {buffer_is}, {client_is}", CHILDREN, 200)


def test_four_children_at_a_time_under_load_again_and_again(scripted: ScriptedBigQuery) -> None:
    until = time.monotonic() + float(os.environ.get("LORC_EVENTLOG_SOAK", "0"))
    while not scripted.requests or time.monotonic() < until:
        scripted.clear()
        run_forks(scripted, "os.fork, given client", 4 * CHILDREN, 60)


@pytest.mark.parametrize(
    "way",
    [
        "Process",
        "Process, given client",
        "Pool",
        "Pool, given client",
        "before the first event",
        "before the first event, given client",
        "during the import",
        "grandchildren",
    ],
)
def test_other_ways_to_fork(scripted: ScriptedBigQuery, way: str) -> None:
    children = {"during the import": 12, "grandchildren": 2}.get(way, CHILDREN)
    run_forks(scripted, way, children, 100)


# gunicorn


@contextmanager
def gunicorn(workers: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """gunicorn with --preload, and its address."""
    pytest.importorskip("gunicorn")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--preload", "-b", f"127.0.0.1:{port}"]
    command += ["-w", str(workers), "-k", "gthread", "--threads", "4"]
    command += ["--log-level", "warning", "wsgi_app:app"]
    server = subprocess.Popen(
        command, cwd=PROGRAMS, env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.communicate()


def worker_that_answers(address: str, number: int) -> str:
    """Ask for ``number``; gives the worker's process, or nothing if none answers."""
    try:
        with urllib.request.urlopen(f"{address}/{number}") as answer:
            assert answer.read() == b"ok"
            return str(answer.headers["Worker"])
    except urllib.error.URLError:
        return ""


def test_gunicorn_with_preload_under_load(scripted: ScriptedBigQuery) -> None:
    workers: list[str] = []

    def all_are_up() -> bool:
        """Whether both workers have answered: on a busy machine one begins long after the other."""
        if worker := worker_that_answers(address, 601 + len(workers)):
            workers.append(worker)
        return len(set(workers)) == 2

    with gunicorn(2) as (server, address):
        eventually(all_are_up, 60)
        scripted.latency = 0.02

        def ask(first: int) -> None:
            for number in range(first, first + 100):
                assert worker_that_answers(address, number)

        asking = [threading.Thread(target=ask, args=(1 + 100 * n,)) for n in range(6)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        server.terminate()
        _, said = server.communicate(timeout=30)

    assert "Traceback" not in said
    assert "lost" not in said
    assert numbers_in(scripted) == [*range(601 + len(workers))]
    assert len({event["payload"]["pid"] for event in scripted.events()}) == 3


# In this process


def test_a_child_counts_its_own_events_only(client: bigquery.Client) -> None:
    with running_writer(client, flush_interval=60) as writer:
        submit_events(writer, range(3))
        assert fork_and_wait(lambda: writer.stats().submitted == 0) == 0


def test_a_child_does_not_send_what_the_parent_holds(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    with running_writer(client, flush_interval=60) as writer:
        submit_events(writer, range(3))
        assert fork_and_wait(lambda: writer.flush(10)) == 0
        assert scripted.rows == []

    assert numbers_in(scripted) == [0, 1, 2]


def test_a_batch_in_flight_at_the_fork_arrives_once(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.script(delay(0.5))
    with running_writer(client) as writer:
        submit_events(writer, range(3))
        scripted.wait_for_rows(3)

        def in_child() -> bool:
            submit_events(writer, range(3, 6))
            return writer.flush(10)

        assert fork_and_wait(in_child) == 0

    assert numbers_in(scripted) == list(range(6))


def test_a_full_buffer_of_the_parent_is_not_the_childs(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    scripted.always(status(503))
    with running_writer(client, capacity=3) as writer:
        submit_events(writer, range(3))
        scripted.wait_for_requests(1)
        scripted.healthy()

        def in_child() -> bool:
            submit_events(writer, range(3, 6))
            return writer.stats().dropped == 0 and writer.flush(20)

        assert fork_and_wait(in_child) == 0
        assert writer.flush(20)

    assert numbers_in(scripted) == list(range(6))


def test_a_lock_that_the_parents_client_holds_at_the_fork_does_not_stop_the_child(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    with running_writer(client) as writer:
        submit_events(writer, range(3))
        writer.flush(10)
        taken, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with client._http.cookies._cookies_lock:
                taken.set()
                leave.wait(30)

        holder = threading.Thread(target=hold)
        holder.start()
        taken.wait(10)

        def in_child() -> bool:
            submit_events(writer, range(3, 6))
            return writer.flush(5)

        try:
            assert fork_and_wait(in_child) == 0
        finally:
            leave.set()
            holder.join()

    assert numbers_in(scripted) == list(range(6))


IMPORTS = """
import os, sys, threading
from lorc_eventlog import EventWriter
from lorc_eventlog.delivery import pace
from clients import make_client
from lorc_eventlog.bigquery.imports import import_guard
from scripted_bigquery import ScriptedBigQuery, malformed_json, reset, status

class Recorder:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread().name.startswith("lorc") and not import_guard.is_owned:
            unguarded.append(name)

pace.MAX_PAUSE = 0.01
unguarded = []
with ScriptedBigQuery() as server:
    os.environ["BIGQUERY_EMULATOR_HOST"] = server.url
    for client in (make_client(server.url) if sys.argv[1] == "given" else None,):
        server.script(status(503), status(502), status(404), status(401), reset(), malformed_json())
        server.refuse_row(lambda row: True)
        sys.modules.pop("encodings.idna", None)
        sys.meta_path.insert(0, Recorder())
        writer = EventWriter(client, flush_interval=0)
        writer.emit("test", {}, source="tests")
        assert writer.flush(20)
    print(*unguarded)
"""


@pytest.mark.parametrize("client_is", ["given", "own"])
@pytest.mark.usefixtures("scripted")
def test_a_sender_imports_nothing_while_a_fork_may_happen(client_is: str) -> None:
    """A fork in the middle of an import leaves the child with a module that is locked for ever."""
    ran = subprocess.run(
        [sys.executable, "-c", IMPORTS, client_is],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert ran.stdout.split() == []


OTHER_HOOKS = """
import os, sys, threading, time
from scripted_bigquery import ScriptedBigQuery

lock, held, forking = threading.RLock(), threading.Event(), threading.Event()
release = lock.release
os.register_at_fork(before=lock.acquire, after_in_parent=release, after_in_child=release)
os.register_at_fork(before=forking.set)  # runs before that one, and after ours

from lorc_eventlog import EventWriter

def log():
    with lock:
        held.set()
        forking.wait(10)
        writer.emit("test", {}, source="tests")

with ScriptedBigQuery() as server:
    os.environ["BIGQUERY_EMULATOR_HOST"] = server.url
    writer = EventWriter(flush_interval=0.01, spool_dir=sys.argv[1] or None)
    thread = threading.Thread(target=log)
    thread.start()
    held.wait(10)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    thread.join()
    server.wait_for_rows(1)
"""


@pytest.mark.parametrize("spool", [False, True], ids=["in memory", "with a spool"])
@pytest.mark.usefixtures("scripted")
def test_a_fork_does_not_hold_up_a_thread_that_has_a_lock_of_another_hook(
    spool: bool, tmp_path: Path
) -> None:
    """Such as logging's, which dictConfig holds while it flushes our handlers."""
    subprocess.run(
        [sys.executable, "-c", OTHER_HOOKS, str(tmp_path) if spool else ""],
        env=environment(),
        timeout=30,
        check=True,
    )


def test_a_fork_waits_for_the_import_of_googles_client() -> None:
    forked = threading.Event()

    def fork() -> None:
        assert fork_and_wait(lambda: True) == 0
        forked.set()

    forking = threading.Thread(target=fork)

    def import_it() -> None:
        forking.start()
        assert not forked.wait(0.2)

    imports.import_guard.run(import_it)
    forking.join()
    assert forked.is_set()


def test_a_child_forgets_all_that_the_parent_keeps_until_it_is_delivered(
    client: bigquery.Client,
) -> None:
    """Also for a writer that nobody refers to, and which therefore does not start anew there."""
    writer = EventWriter(client, flush_interval=60)
    writer.submit(make_event(1))
    dispatcher = dispatcher_of(writer)
    del writer
    gc.collect()
    assert dispatcher in dispatcher_module._kept.dispatchers
    assert fork_and_wait(lambda: not dispatcher_module._kept.dispatchers) == 0
    dispatcher_module._kept.restart_in_child()  # as a signal handler that logs calls it once more
    assert dispatcher in dispatcher_module._kept.dispatchers
    dispatcher.close()
    assert dispatcher not in dispatcher_module._kept.dispatchers


def test_a_child_does_not_wait_for_a_lock_of_the_client_that_a_thread_of_the_parent_held(
    scripted: ScriptedBigQuery, client: bigquery.Client
) -> None:
    """Senders take the lock of the session's cookies with each answer."""
    cookies = client._http.cookies
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        with cookies._cookies_lock:
            held.set()
            end.wait(30)

    holder = threading.Thread(target=hold)
    with running_writer(client, flush_interval=0.01) as writer:
        holder.start()
        assert held.wait(10)

        def in_child() -> bool:
            threading.stack_size(1 << 20)  # so that no sender gets the number of the holder
            writer.submit(make_event(1))
            return writer.flush(10)

        status_of_child = fork_and_wait(in_child)
        end.set()
        holder.join()
    assert status_of_child == 0
    assert numbers_in(scripted) == [1]


def test_a_writer_without_a_client_opens_another_in_the_child(scripted: ScriptedBigQuery) -> None:
    writer = EventWriter(flush_interval=0.01)
    writer.submit(make_event(0))
    writer.flush(10)

    def in_child() -> bool:
        assert client_of(writer) is None
        writer.submit(make_event(1))
        return writer.flush(10)

    assert fork_and_wait(in_child) == 0
    writer.close()
    assert numbers_in(scripted) == [0, 1]


@pytest.mark.parametrize("spool_only", [False, True])
def test_a_relative_directory_is_the_same_in_a_child_whose_working_directory_is_gone(
    scripted: ScriptedBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spool_only: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    with running_writer(spool_dir="spool", spool_only=spool_only) as writer:
        writer.submit(make_event(0))
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()

        def log() -> bool:
            writer.submit(make_event(1))
            files = [path.read_text() for path in (tmp_path / "spool").iterdir()]
            is_on_disk = any(f"{PRIVATE}-1" in text for text in files)
            return is_on_disk and writer.flush(10) and writer.stats().submitted == 1

        scripted.always(status(503) if not spool_only else delay(0))
        threading.Timer(0.2, scripted.healthy).start()
        assert fork_and_wait(log) == 0
        assert writer.flush(20)
    assert numbers_in(scripted) == ([] if spool_only else [0, 1])


def test_a_child_with_the_number_of_its_parent_is_another_process(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a PID namespace of its own it is 1, as the first process of a container is."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    foreground = ForegroundWriter()
    with running_writer(flush_interval=60) as writer:
        writer.submit(make_event(0))
        foreground.submit(make_event(1))

        def log() -> bool:
            writer.submit(make_event(2))
            foreground.submit(make_event(3))
            counted = writer.stats().submitted, foreground.stats().submitted
            return writer.flush(10) and counted == (1, 1)

        assert fork_and_wait(log) == 0
    assert numbers_in(scripted) == [0, 1, 2, 3]


def test_a_system_that_wipes_no_page_in_spite_of_its_word_does_no_harm(
    scripted: ScriptedBigQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU before version 7.2 takes each advice and follows none."""
    monkeypatch.setattr(fork, "page", bytearray(b"\1"))
    with running_writer(flush_interval=60) as writer:
        writer.submit(make_event(0))

        def log() -> bool:
            writer.submit(make_event(1))
            return writer.stats().submitted == 1 and writer.flush(10)

        assert fork_and_wait(log) == 0
    assert numbers_in(scripted) == [0, 1]
