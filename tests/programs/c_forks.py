"""A fork in C, of which Python's fork hooks know nothing, in the way that its argument names.

    c_forks.py WAY [SPOOL_DIR]

The parent logs events from 0 on, the child from 100 on, a grandchild from 200 on. Each prints what
its writer counts, but for those that log nothing.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from inside import lock_of
from lorc_eventlog import BigQueryEventHandler, EventWriter
from lorc_eventlog.events.row import new_id
from shipped import spool_only_options

way = sys.argv[1]
fork: Callable[[], int] = ctypes.PyDLL(None).fork
"""In C, with the interpreter's lock held, as uWSGI does it."""


def make_handler(flush_interval: float = 5) -> BigQueryEventHandler:
    client = None
    if "given client" in way:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import bigquery

        client = bigquery.Client(
            project="test",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": os.environ["BIGQUERY_EMULATOR_HOST"]},
        )
    return BigQueryEventHandler(
        client,
        source="tests",
        flush_interval=flush_interval,
        close_timeout=20.0,
        **(spool_only_options() or {"spool_dir": sys.argv[2] if len(sys.argv) > 2 else None}),
    )


logger = logging.getLogger("app")
logger.setLevel(logging.INFO)


def log(first: int, count: int = 5) -> None:
    for number in range(first, first + count):
        payload = {"number": number, "pid": os.getpid(), "text": "PrivateWord"}
        logger.info("x", extra={"event_type": "test", "payload": payload})


def wait_until_others_wait() -> None:
    """Wait until no other thread runs Python, which a fork in C would leave half done.

    (Such a fork hangs children without this package, too.)
    """
    before = None
    while True:
        frames = [
            (thread, frame, frame.f_lasti)
            for thread, frame in sys._current_frames().items()
            if thread != threading.get_ident()
        ]
        if frames == before:
            return
        before = frames
        time.sleep(0.02)


def wait_for(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    assert status == 0, status


def say(handler: BigQueryEventHandler) -> None:
    stats = handler.writer.stats()
    print(stats.submitted, stats.delivered, flush=True)  # noqa: T201


def sender_idle() -> None:
    handler = make_handler()
    logger.addHandler(handler)
    log(0)
    assert handler.flush(20)
    wait_until_others_wait()
    pid = fork()
    if pid == 0:
        log(100)
        if "exits by itself" not in way:
            assert handler.flush(20)
            say(handler)
            os._exit(0)
        sys.exit(0)
    wait_for(pid)
    log(5)


def child_logs_nothing() -> None:
    """It flushes, or ends, with the parent's events in its memory."""
    handler = make_handler(flush_interval=60)
    logger.addHandler(handler)
    log(0)
    wait_until_others_wait()
    pid = fork()
    if pid == 0:
        if "flushes" in way:
            assert handler.flush(20)
            say(handler)
            os._exit(0)
        sys.exit(0)
    wait_for(pid)


def locks_held() -> None:
    """A thread of the parent has every lock of ours at the fork."""
    handler = make_handler(flush_interval=60)
    assert isinstance(handler.writer, EventWriter)
    lock = lock_of(handler.writer)
    logger.addHandler(handler)
    log(0)
    from lorc_eventlog.bigquery.imports import import_guard
    from lorc_eventlog.lifecycle import descriptors

    held, end = threading.Event(), threading.Event()

    def hold_writer() -> None:
        held.set()
        end.wait(60)

    def hold() -> None:
        import_guard.run(descriptors._no_fork_between.run, lock.run, hold_writer)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    wait_until_others_wait()
    pid = fork()
    if pid == 0:
        log(100)
        assert handler.flush(20)
        say(handler)
        os._exit(0)
    wait_for(pid)
    end.set()
    holder.join()


def threads_first() -> None:
    """Several threads of the child log its first events at the same time."""
    handler = make_handler()
    logger.addHandler(handler)
    log(0)
    assert handler.flush(20)
    wait_until_others_wait()
    pid = fork()
    if pid == 0:
        barrier = threading.Barrier(8)

        def log_two(index: int) -> None:
            barrier.wait()
            log(100 + 2 * index, 2)

        threads = [threading.Thread(target=log_two, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert handler.flush(20)
        say(handler)
        os._exit(0)
    wait_for(pid)


def hook_after_only() -> None:
    """As uWSGI's py-call-osafterfork: Python's hooks before the fork did not run."""
    handler = make_handler()
    logger.addHandler(handler)
    log(0)
    assert handler.flush(20)
    wait_until_others_wait()
    pid = fork()
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        log(100)
        assert handler.flush(20)
        say(handler)
        os._exit(0)
    wait_for(pid)


def grandchild() -> None:
    """A fork of each kind in the child of a fork in C."""
    handler = make_handler()
    logger.addHandler(handler)
    log(0)
    assert handler.flush(20)
    wait_until_others_wait()
    pid = fork()
    if pid == 0:
        log(100)
        assert handler.flush(20)
        for first, fork_again in ((200, fork), (300, os.fork)):
            wait_until_others_wait()
            pid = fork_again()
            if pid == 0:
                log(first)
                assert handler.flush(20)
                say(handler)
                os._exit(0)
            wait_for(pid)
        say(handler)
        os._exit(0)
    wait_for(pid)


def before_the_first_event() -> None:
    handler = make_handler()
    logger.addHandler(handler)
    wait_until_others_wait()
    pid = fork()
    if pid == 0:
        log(100)
        assert handler.flush(20)
        say(handler)
        os._exit(0)
    wait_for(pid)
    log(0)


def made_in_the_child() -> None:
    """The package is imported, and the first handler is made after the fork."""
    wait_until_others_wait()
    pid = fork()
    if pid == 0:
        handler = make_handler()
        logger.addHandler(handler)
        log(100)
        assert handler.flush(20)
        say(handler)
        os._exit(0)
    wait_for(pid)


def wait_or_kill(pid: int) -> None:
    end_by = time.monotonic() + 5
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > end_by:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def under_load() -> None:
    """Fork again and again while other threads log, which no writer with threads allows.

    Prints the number of each event whose log call returned. A child may hang: Python itself waits
    for a thread that is not there if one wanted the interpreter's lock at the moment of the fork.
    """
    logger.addHandler(make_handler())
    log(0, 1)  # its imports are done
    reading, writing = os.pipe()
    end = threading.Event()

    def log_and_note(number: int) -> None:
        log(number, 1)
        os.write(writing, b"%d\n" % number)

    def go_on(first: int) -> None:
        number = first
        while not end.is_set():
            log_and_note(number)
            number += 1
            time.sleep(0.001)

    busy = [threading.Thread(target=go_on, args=(first,)) for first in (100_000, 200_000)]
    for thread in busy:
        thread.start()
    for index in range(20):
        pid = fork()
        if pid == 0:
            for number in range(5):
                log_and_note(1000 + 5 * index + number)
            os._exit(0)
        wait_or_kill(pid)
    end.set()
    for thread in busy:
        thread.join()
    os.close(writing)
    with os.fdopen(reading) as noted:
        print(0, *map(int, noted), sep="\n", flush=True)  # noqa: T201


def ids() -> NoReturn:
    """Print ids of the parent and of children of both kinds, made at the same time."""
    made = [new_id() for _ in range(3)]
    reading, writing = os.pipe()
    for fork_somehow in (os.fork, fork, os.fork, fork):
        pid = fork_somehow()
        if pid == 0:
            os.write(writing, "".join(f"{new_id()}\n" for _ in range(20)).encode())
            os._exit(0)
        made.append(new_id())
        wait_for(pid)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        made += pipe.read().split()
    print(*made, sep="\n", flush=True)  # noqa: T201
    os._exit(0)


{
    "sender idle": sender_idle,
    "child logs nothing": child_logs_nothing,
    "locks held": locks_held,
    "threads first": threads_first,
    "hook after only": hook_after_only,
    "grandchild": grandchild,
    "before the first event": before_the_first_event,
    "made in the child": made_in_the_child,
    "under load": under_load,
    "ids": ids,
}[way.split(", ")[0]]()
