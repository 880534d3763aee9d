"""What each command says when something is broken: ``broken_states.txt`` has every message.

The file is a table, made to be read: for each state and each command the exit code and what is
said. Of ``check``, whose other findings are in ``test_check.py``, it has the lines that complain.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broken_states import STATES, Broken
from command_line import program, run
from lorc_eventlog import EventWriter
from lorc_eventlog.delivery.pace import Pace
from lorc_eventlog.diagnostics import logger

COMMANDS = {
    "check": ["check"],
    "tail": ["tail"],
    "emit": ["emit", "a.b", "--source", "s", "--payload", "{}"],
    "create-table": ["create-table"],
    "ship": ["ship", "DIR", "--interval", "0.01", "--term-timeout", "60"],
}

FILE = Path(__file__).with_name("broken_states.txt")


def read_table() -> dict[tuple[str, str], tuple[int, str]]:
    """By state and command: the exit code, and what is said."""
    table = {}
    state = ""
    for block in FILE.read_text(encoding="utf-8").split("\n\n"):
        head, *lines = block.strip().splitlines()
        if head.startswith("# "):
            state = head[2:]
            continue
        command, _, code = head.rpartition(": exit ")
        table[state, command] = int(code), "\n".join(lines)
    return table


TABLE = read_table()


NO_CREDENTIALS = (
    "Your default credentials were not found. To set up Application Default Credentials, see "
    "https://cloud.google.com/docs/authentication/external/set-up-adc for more information."
)


def without_chance(said: str, directory: Path) -> str:
    """Ports, directories and numbers of jobs differ each time."""
    said = said.replace(str(directory), "DIR")
    said = re.sub(r"127\.0\.0\.1:\d+", "HOST:PORT", said)
    said = re.sub(r"port \d+", "port PORT", said)
    said = re.sub(r" Location: None Job ID: \S+", "", said)
    said = re.sub(r"within [\d.]+ s", "within TIMEOUT s", said)
    said = re.sub(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", said)
    said = re.sub(r"(?m)^INFO .*$", "", said)  # how far `ship` is
    # google-auth and click, as old as is allowed, say it in other words.
    said = re.sub(r"Could not automatically determine credentials\..*", NO_CREDENTIALS, said)
    said = said.replace(" -h' for help", " --help' for help")
    said = re.sub(r"\n\n+", "\n", said)
    return re.sub(r"process \d+", "process PID", said).strip()


def complaints(said: str) -> str:
    """The lines of `check` that say what is wrong, and what to do."""
    kept: list[str] = []
    for line in said.splitlines():
        if line.startswith("✗") or (kept and line.lstrip().startswith("→")):
            kept.append(line)
    return "\n".join(kept)


@pytest.mark.parametrize(("state", "command"), TABLE)
def test_what_is_said(
    state: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, text = said_by(command, state, monkeypatch, tmp_path)
    assert (code, text) == TABLE[state, command]
    assert "Traceback" not in text


def said_by(
    command: str, state: str, patch: pytest.MonkeyPatch, directory: Path
) -> tuple[int, str]:
    """Run the command in the state."""
    arguments = [str(directory / "spool") if each == "DIR" else each for each in COMMANDS[command]]
    broken = Broken(patch, directory, threading.Event())
    with STATES[state](broken):
        if command == "ship":
            with shipping_until_it_complains(directory / "spool", broken.mended):
                result = run(*arguments)
        else:
            # Of `emit`, one try: the last of several may have too little time.
            patch.setattr(Pace, "pause", lambda *_: 60.0)
            result = run(*arguments)
    said = without_chance(result.output, directory)
    return result.exit_code, complaints(said) if command == "check" else said


@contextlib.contextmanager
def shipping_until_it_complains(path: Path, mended: threading.Event) -> Iterator[None]:
    """`ship` waits for what may mend, which it does with the first complaint."""

    class Stops(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            mended.set()
            os.kill(os.getpid(), signal.SIGTERM)

    if not path.exists():
        # Without a table nothing is written, and nothing is to be shipped.
        with (
            contextlib.suppress(RuntimeError),
            EventWriter(spool_dir=path, spool_only=True) as writer,
        ):
            writer.emit("a.b", {}, source="s")
    stops = Stops(logging.WARNING)
    before = logger.level, logger.propagate, logger.handlers[:]
    logger.addHandler(stops)
    try:
        yield
    finally:
        logger.level, logger.propagate, logger.handlers[:] = before


@pytest.mark.process
@pytest.mark.parametrize(
    ("state", "level"), [("nobody listens", "WARNING"), ("no credentials", "ERROR")]
)
def test_ship_waits_for_what_it_cannot_reach(
    state: str, level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = Broken(monkeypatch, tmp_path, threading.Event())
    with (
        STATES[state](broken),
        EventWriter(spool_dir=tmp_path / "spool", spool_only=True) as writer,
    ):
        writer.emit("a.b", {}, source="s")
        with program("ship", str(tmp_path / "spool")) as running:
            assert running.stderr is not None
            said = next(line for line in running.stderr if " INFO " not in line)
    message = "BigQuery is not accepting events; retrying, 1 event is waiting: "
    assert f" {level} {message}" in said
    assert "Traceback" not in said
