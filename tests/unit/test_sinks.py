"""EVENTS_BQ_SINK: events that go to a console, or nowhere, instead of BigQuery."""

from __future__ import annotations

import json
import logging
import logging.config
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorc_eventlog import (
    BigQueryEventHandler,
    BigQueryEventProcessor,
    EventWriter,
    build_envelope,
    emit,
)
from lorc_eventlog.delivery import sinks
from lorc_eventlog.testing import capture_events

SUBJECT = "patient-17"


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Choose a sink; no other variable is set."""
    monkeypatch.setattr(sinks, "_unsaid", iter(["events are discarded"]))
    return lambda name: monkeypatch.setenv("EVENTS_BQ_SINK", name)


def by_handler(**options: Any) -> Callable[[str], None]:
    logger = logging.Logger("application")  # noqa: LOG001  nobody else's
    logger.addHandler(BigQueryEventHandler(source="shop", **options))

    def log(event_type: str) -> None:
        extra = {"event_type": event_type, "correlation_id": "trace-1", "subject_id": SUBJECT}
        logger.info("happened", extra={**extra, "payload": {"number": 7}})

    return log


def by_processor(**options: Any) -> Callable[[str], None]:
    processor = BigQueryEventProcessor(source="shop", **options)

    def log(event_type: str) -> None:
        line = {"event_type": event_type, "correlation_id": "trace-1", "subject_id": SUBJECT}
        processor(None, "info", {**line, "payload": {"number": 7}})

    return log


def by_writer() -> Callable[[str], None]:
    writer = EventWriter()
    return lambda event_type: writer.emit(
        event_type, {"number": 7}, source="shop", correlation_id="trace-1", subject_id=SUBJECT
    )


def by_envelope() -> Callable[[str], None]:
    writer = EventWriter()
    return lambda event_type: writer.submit(
        build_envelope(
            event_type=event_type,
            payload={"number": 7},
            source="shop",
            correlation_id="trace-1",
            subject_id=SUBJECT,
        )
    )


def by_emit() -> Callable[[str], None]:
    return lambda event_type: emit(
        event_type,
        {"number": 7},
        source="shop",
        bq_client=None,  # type: ignore[arg-type]
        correlation_id="trace-1",
        subject_id=SUBJECT,
    )


WAYS: dict[str, Callable[[], Callable[[str], None]]] = {
    "handler": by_handler,
    "handler in the foreground": lambda: by_handler(background=False),
    "processor": by_processor,
    "processor in the foreground": lambda: by_processor(background=False),
    "writer": by_writer,
    "envelope": by_envelope,
    "emit": by_emit,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


class TestTheVariable:
    @pytest.mark.parametrize("name", ["stdout", "OFF", " off", "bigquery "])
    @every_way
    def test_what_names_no_sink_is_refused_with_all_that_there_are(
        self, sink: Callable[[str], None], way: Callable[[], Callable[[str], None]], name: str
    ) -> None:
        sink(name)
        with pytest.raises(
            RuntimeError,
            match=re.escape(f"EVENTS_BQ_SINK must be bigquery, console or off, not {name!r}"),
        ):
            way()("a.b")

    @pytest.mark.parametrize("name", ["", "bigquery"])
    @every_way
    def test_bigquery_is_the_default_and_needs_its_variables(
        self, sink: Callable[[str], None], way: Callable[[], Callable[[str], None]], name: str
    ) -> None:
        sink(name)
        with pytest.raises(RuntimeError, match=r"^EVENTS_BQ_DATASET and EVENTS_BQ_TABLE not set"):
            way()("a.b")

    def test_emit_reads_it_at_each_call(
        self, sink: Callable[[str], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        sink("off")
        log = by_emit()
        log("a.first")
        sink("console")
        log("a.second")
        assert re.findall(r"a\.\w+", capsys.readouterr().err) == ["a.second"]

    def test_a_writer_reads_it_when_it_is_made(
        self, sink: Callable[[str], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        sink("console")
        log = by_writer()
        sink("off")
        log("a.b")
        assert " a.b " in capsys.readouterr().err


class TestOff:
    @every_way
    def test_valid_events_are_discarded_and_counted_nowhere(
        self,
        sink: Callable[[str], None],
        way: Callable[[], Callable[[str], None]],
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        sink("off")
        before = threading.active_count()
        log = way()
        for _ in range(3):
            log("a.b")
        assert threading.active_count() == before
        assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
            ("INFO", "EVENTS_BQ_SINK is off: events are discarded, and nothing reaches BigQuery")
        ]
        assert capsys.readouterr() == ("", "")

    def test_a_writer_counts_nothing_and_has_nothing_to_wait_for(
        self, sink: Callable[[str], None]
    ) -> None:
        sink("off")
        writer = EventWriter()
        writer.emit("a.b", {}, source="shop")
        assert writer.flush()
        writer.close()
        writer.emit("a.b", {}, source="shop")
        stats = writer.stats()
        assert (stats.submitted, stats.buffered, stats.last_error) == (0, 0, None)

    @every_way
    def test_a_bad_event_is_reported_or_raised_as_ever(
        self,
        sink: Callable[[str], None],
        way: Callable[[], Callable[[str], None]],
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        sink("off")
        log = way()
        raised = ""
        try:
            log("")
        except ValueError as error:
            raised = str(error)
        told = raised + capsys.readouterr().err + caplog.text
        assert "event_type must be a non-empty string, not an empty string" in told

    def test_options_are_checked_as_ever(self, sink: Callable[[str], None]) -> None:
        sink("off")
        with pytest.raises(ValueError, match=r"^capacity must be "):
            EventWriter(capacity=0)
        with pytest.raises(TypeError, match=r"^no such option"):
            BigQueryEventHandler(colour="red")  # type: ignore[call-arg]

    @pytest.mark.parametrize("name", ["off", "console"])
    def test_no_spool_is_made_and_none_is_drained(
        self, sink: Callable[[str], None], tmp_path: Path, name: str
    ) -> None:
        sink(name)
        writer = EventWriter(spool_dir=tmp_path / "spool")
        writer.emit("a.b", {}, source="shop")
        assert writer.flush()
        writer.close()
        assert list(tmp_path.iterdir()) == []
        shipped = EventWriter(spool_dir=tmp_path / "spool", spool_only=True)
        shipped.emit("a.b", {}, source="shop")
        assert shipped.flush()
        assert shipped.stats().submitted == 0
        shipped.close()
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(RuntimeError, match=r"^EVENTS_BQ_SINK was not bigquery when "):
            writer.drain_spool()

    @pytest.mark.process
    def test_a_program_needs_neither_variables_nor_credentials_nor_googles_client(self) -> None:
        program = """
import logging.config, sys
logging.config.dictConfig({
    "version": 1,
    "handlers": {"events": {"class": "lorc_eventlog.BigQueryEventHandler", "source": "shop"}},
    "root": {"level": "INFO", "handlers": ["events"]},
})
logging.getLogger("shop").info("placed", extra={"event_type": "order.placed"})
print("google.cloud.bigquery" in sys.modules)
"""
        ended = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"EVENTS_BQ_SINK": "off", "PYTHONPATH": ":".join(sys.path)},
        )
        assert (ended.stdout, ended.stderr) == ("False\n", "")


class TestConsole:
    @every_way
    def test_each_event_is_a_line_on_stderr_without_its_subject(
        self,
        sink: Callable[[str], None],
        way: Callable[[], Callable[[str], None]],
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        sink("console")
        log = way()
        log("a.b")
        log("a.c")
        said = capsys.readouterr()
        assert said.out == ""
        first, second = said.err.splitlines()
        line = r'\d\d:\d\d:\d\d\.\d{3}Z a\.b shop trace-1 \{"number":7\}'
        assert re.fullmatch(line, first)
        assert " a.c " in second
        assert caplog.records == []

    def test_a_line_stays_one_line(
        self, sink: Callable[[str], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        sink("console")
        text = "\x1b[31m\u2028\n" + "long " * 200
        emit("a.b\n", {"text": text}, source="\x1b]0;", bq_client=None)  # type: ignore[arg-type]
        [line] = capsys.readouterr().err.splitlines()
        assert "\x1b" not in line
        assert " a.b\\n \\x1b]0; - " in line
        assert line.endswith('long "}')

    def test_a_stderr_that_is_closed_or_missing_breaks_no_call(
        self, sink: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        sink("console")
        log = by_emit()
        with (tmp_path / "stderr").open("w") as stderr:
            monkeypatch.setattr(sys, "stderr", stderr)
        log("a.b")
        monkeypatch.setattr(sys, "stderr", None)
        log("a.b")

    @pytest.mark.parametrize("has_rich", [True, False])
    def test_a_terminal_gets_colours_where_rich_is_there(
        self, sink: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, *, has_rich: bool
    ) -> None:
        class Terminal:
            encoding = "utf-8"

            def __init__(self) -> None:
                self.said: list[str] = []

            def isatty(self) -> bool:
                return True

            def write(self, text: str) -> int:
                self.said.append(text)
                return len(text)

            def flush(self) -> None: ...

        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        if not has_rich:
            monkeypatch.setitem(sys.modules, "rich.console", None)
        sink("console")
        payload = {"text": "[bold]" + "long " * 100}
        emit("a.b", payload, source="shop", bq_client=None)  # type: ignore[arg-type]
        said = "".join(terminal.said)
        assert ("\x1b[" in said) is has_rich
        assert said.count("\n") == 1
        plain = re.sub(r"\x1b\[[\d;]*m", "", said)
        assert plain.endswith(f" a.b shop - {json.dumps(payload, separators=(',', ':'))}\n")


class TestBesideCapture:
    @pytest.mark.parametrize("name", ["off", "console", "stdout"])
    @every_way
    def test_capture_wins(
        self,
        sink: Callable[[str], None],
        way: Callable[[], Callable[[str], None]],
        capsys: pytest.CaptureFixture[str],
        name: str,
    ) -> None:
        sink(name)
        with capture_events() as events:
            way()("a.b")
        assert [event["event_type"] for event in events] == ["a.b"]
        assert capsys.readouterr() == ("", "")

    @every_way
    def test_what_was_made_while_events_were_captured_uses_the_sink_afterwards(
        self,
        sink: Callable[[str], None],
        way: Callable[[], Callable[[str], None]],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        sink("console")
        with capture_events() as events:
            log = way()
        log("a.b")
        assert events == []
        assert " a.b shop " in capsys.readouterr().err

    @every_way
    def test_what_uses_a_sink_is_captured_later(
        self, sink: Callable[[str], None], way: Callable[[], Callable[[str], None]]
    ) -> None:
        sink("off")
        log = way()
        log("a.b")
        with capture_events() as events:
            log("a.c")
        assert [event["event_type"] for event in events] == ["a.c"]
