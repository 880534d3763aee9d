"""``lorc-eventlog tail -f``: each event once, also late ones, through outages."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import Result
from google.cloud import bigquery

from clients import Query
from command_line import Gate, interrupt, log_events, program, run, shown
from harness import environment
from lorc_eventlog.cli import selection, tail
from lorc_eventlog.cli.query import run_query


@pytest.mark.usefixtures("events_table")
def test_ctrl_c_is_how_tail_f_ends_and_is_no_end_of_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "run_query", interrupt)
    result = run("tail", "-f")
    assert (result.stdout, result.exit_code) == ("", 0)
    assert "Aborted" not in result.stderr
    assert run("tail").exit_code == 1


@pytest.mark.process
@pytest.mark.usefixtures("events_table")
def test_tail_f_shows_what_another_process_logs_within_three_seconds(query: Query) -> None:
    code = """if True:
        import logging, lorc_eventlog
        logging.getLogger().addHandler(lorc_eventlog.BigQueryEventHandler(source="s"))
        while True:
            logging.error("…", extra={"event_type": "a.b", "payload": {}})
            input()  # an exit would deliver at once; this is the pace of a process that goes on
    """
    lines: queue.Queue[str] = queue.Queue()
    ages = []
    with program("tail", "-f", "--json", env=environment(PYTHONUNBUFFERED="1")) as tailing:
        assert tailing.stdout is not None
        assert tailing.stderr is not None
        reader = threading.Thread(target=lambda: [*map(lines.put, tailing.stdout or ())])
        reader.start()
        assert "Ctrl-C ends it" in tailing.stderr.readline()
        with subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment(),
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as logging_one:
            assert logging_one.stdin is not None
            for _ in range(3):
                event = json.loads(lines.get(timeout=120))
                created = datetime.fromisoformat(event["created_at"])
                ages.append((datetime.now(UTC) - created).total_seconds())
                logging_one.stdin.write(b"\n")
                logging_one.stdin.flush()
            logging_one.kill()
        tailing.send_signal(signal.SIGINT)
        assert tailing.wait(timeout=60) == 0
        assert tailing.stderr.read() == ""
        reader.join()
    assert event["event_type"] == "a.b"
    started = time.monotonic()
    query("SELECT 1")
    busy = time.monotonic() - started  # a machine that does nothing else takes 0.02 s
    assert min(ages) < 3 + 50 * busy


class Looks:
    """What happens between the looks of `tail -f`; after the last, Ctrl-C."""

    def __init__(self, *between: Callable[[], object]) -> None:
        self._between = [*between]
        self.intervals: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.intervals.append(seconds)
        if not self._between:
            raise KeyboardInterrupt
        self._between.pop(0)()


def follow(monkeypatch: pytest.MonkeyPatch, looks: Looks, *arguments: str) -> Result:
    monkeypatch.setattr(time, "sleep", looks)
    return run("tail", "-f", *arguments)


Store = Callable[..., None]


@pytest.fixture
def store(query: Query) -> Store:
    """Store an event of each type, created so many minutes before the test began."""
    now = datetime.now(UTC)

    def store(*event_types: str, age: float) -> None:
        created_at = (now - timedelta(minutes=age)).isoformat(timespec="microseconds")
        rows = ", ".join(
            f"(GENERATE_UUID(), '{event_type}', 's', '{created_at}', JSON '{{}}')"
            for event_type in event_types
        )
        query(
            f"INSERT INTO events (event_id, event_type, source, created_at, payload) VALUES {rows}"
        )

    return store


def store_again(query: Query) -> None:
    """Store each event once more, as when an answer was lost."""
    query("INSERT INTO events SELECT * FROM events")


def left_out(gate: Gate) -> list[list[str]]:
    """The event_ids that each query left out by name."""
    values = [
        parameter["parameterValue"]["arrayValues"]
        for body in gate.bodies
        for parameter in body.get("configuration", {}).get("query", {}).get("queryParameters", ())
        if parameter["name"] == "seen"
    ]
    return [[value["value"] for value in ids] for ids in values]


def test_tail_f_shows_each_event_once_also_if_it_arrives_late(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store("first", age=3)
    looks = Looks(lambda: store("second", age=1), lambda: store("late", age=5), lambda: None)
    result = follow(monkeypatch, looks, "--interval", "0.5")
    assert shown(result) == ["first", "second", "late"]
    assert looks.intervals == [0.5] * 4
    assert result.exit_code == 0


def test_tail_f_shows_once_what_arrives_while_it_begins(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store("a", age=1)
    monkeypatch.setattr(tail, "there_already", lambda *_: {})  # it was not, yet
    assert shown(follow(monkeypatch, Looks(lambda: None))) == ["a"]


def test_tail_shows_once_what_is_stored_twice(
    store: Store, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store_third_twice() -> None:
        store("third", age=1)
        store_again(query)

    store("first", age=3)
    store("second", age=2)
    store_again(query)
    assert shown(run("tail", "-n", "2")) == ["first", "second"]
    looks = Looks(store_third_twice, lambda: store_again(query))
    assert shown(follow(monkeypatch, looks)) == ["first", "second", "third"]


def test_tail_f_shows_a_late_event_although_it_is_older_than_what_the_limit_left_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store("a", "b", "c", age=2)
    result = follow(monkeypatch, Looks(lambda: store("late", age=5), lambda: None), "-n", "2")
    *first, late = shown(result)
    assert len({*first} & {"a", "b", "c"}) == len(first) == 2
    assert late == "late"


@pytest.mark.usefixtures("gated_table")
def test_tail_f_names_a_bounded_number_of_events_and_says_once_what_it_may_miss(
    store: Store, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def burst() -> None:
        store("a", age=50)
        store("b", age=40)
        store("c", age=30)

    def hold_up() -> None:
        store("too late", age=55)
        store("late", age=45)

    monkeypatch.setattr(selection, "MOST_SEEN", 2)
    result = follow(monkeypatch, Looks(burst, hold_up, lambda: None))
    assert shown(result) == ["a", "b", "c", "late"]
    assert result.stderr.count("more than 2 events since then: one that arrives late is ") == 1
    assert max(map(len, left_out(gate))) == 2


def test_tail_f_takes_nothing_that_was_there_for_news_however_much_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold_up() -> None:
        store("too late", age=35)
        store("late", age=25)

    store("a", "b", age=40)
    store("c", "d", age=30)
    store("e", age=20)
    store("f", age=10)
    monkeypatch.setattr(selection, "MOST_SEEN", 2)
    result = follow(monkeypatch, Looks(lambda: None, hold_up, lambda: None), "-n", "1")
    assert shown(result) == ["f", "late"]
    assert result.stderr.count("more than 2 events since then") == 1


@pytest.mark.usefixtures("gated_table")
def test_tail_f_leaves_no_event_out_by_name_that_is_too_old_anyway(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    ages = {"old": 61, "new": 59}
    seen = {name: (now - timedelta(minutes=age)).isoformat() for name, age in ages.items()}
    monkeypatch.setattr(tail, "there_already", lambda *_: seen)
    follow(monkeypatch, Looks(lambda: None))
    assert left_out(gate)[-1] == ["new"]


@pytest.mark.usefixtures("events_table")
def test_tail_f_shows_nothing_that_the_limit_left_out(
    emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_events(emulator_client)
    result = follow(monkeypatch, Looks(lambda: None, lambda: None), "-n", "2")
    assert shown(result) == ["email.archived", "report.sent"]


@pytest.mark.usefixtures("events_table")
def test_tail_f_brings_more_events_than_one_look_takes_in_their_order(
    emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "FOLLOW_ROWS", 2)
    looks = Looks(lambda: log_events(emulator_client))
    result = follow(monkeypatch, looks)
    assert shown(result) == ["email.received", "email.archived", "report.sent"]
    assert len(looks.intervals) == 2  # and does not sleep while there are more


@pytest.mark.usefixtures("events_table")
def test_tail_f_sleeps_when_an_outage_interrupts_a_burst(
    emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([False, False, True, True, False])

    def ask(*question: Any) -> list[dict[str, Any]]:
        if next(failures):
            raise TimeoutError
        return run_query(*question)

    monkeypatch.setattr(selection, "FOLLOW_ROWS", 2)
    monkeypatch.setattr(selection, "run_query", ask)
    looks = Looks(lambda: log_events(emulator_client), lambda: None, lambda: None)
    assert len(shown(follow(monkeypatch, looks))) == 3
    assert len(looks.intervals) == 4  # before the first look, after each failure, and at the end


def test_tail_f_loses_no_event_of_a_burst_of_one_moment(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "FOLLOW_ROWS", 2)
    monkeypatch.setattr(selection, "MOST_SEEN", 3)
    result = follow(monkeypatch, Looks(lambda: store(*"abcdefg", age=1)))
    assert sorted(shown(result)) == [*"abcdefg"]


@pytest.mark.usefixtures("gated_table")
def test_tail_f_waits_for_the_end_of_an_outage(
    gate: Gate, emulator_client: bigquery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorc_eventlog.cli.query.QUERY_PATIENCE", 0.0)

    def begin() -> None:
        log_events(emulator_client)
        gate.refuse("POST .*/jobs$", 503, "backendError", "Error encountered")

    result = follow(monkeypatch, Looks(begin, lambda: None, gate.answers.clear))
    assert shown(result) == ["email.received", "email.archived", "report.sent"]
    assert result.stderr.count("503 backendError: Error encountered; trying again") == 1
    assert result.exit_code == 0


@pytest.mark.usefixtures("gated_table")
@pytest.mark.parametrize(
    ("code", "reason", "to_do"),
    [
        (404, "notFound", "\n  → `lorc-eventlog check` tells what is missing\n"),
        (403, "accessDenied", "\n  → grant the process's account roles/bigquery.dataEditor on "),
        (400, "invalidQuery", ""),
        (413, "uploadTooLarge", ""),
    ],
    ids=[404, 403, 400, 413],
)
def test_tail_f_ends_with_what_time_does_not_mend(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, code: int, reason: str, to_do: str
) -> None:
    looks = Looks(lambda: gate.refuse("POST .*/jobs$", code, reason, "No table t"))
    result = follow(monkeypatch, looks)
    assert f"✗ {code} {reason}: No table t" in result.stderr
    assert to_do in result.stderr
    assert result.exit_code == 1
