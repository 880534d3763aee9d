"""What each Python value becomes in BigQuery: docs/reference/payload.md, line by line."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator
from logging import Logger
from typing import Any

import orjson
import pytest
from google.cloud import bigquery

from lorc_eventlog import BigQueryEventHandler
from lorc_eventlog.events.payload import encode_payload
from payload_page import (
    BECOMES,
    MISSING,
    PAGE,
    REFUSED,
    expected,
    fast,
    loads_strictly,
    slowly,
    value_of,
)
from scripted_bigquery import ScriptedBigQuery


class TestThePage:
    def test_every_line_of_its_tables_is_read(self) -> None:
        lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
        headings_and_rules = 6
        assert len(BECOMES) + len(REFUSED) == len(lines) - headings_and_rules
        assert len(BECOMES) > 50
        assert len(REFUSED) >= 6

    @pytest.mark.skipif("TOX_ENV_NAME" not in os.environ, reason="only tox installs them")
    def test_its_libraries_are_there_but_for_pandas_which_is_large(self) -> None:
        assert {"pandas"} >= MISSING

    @pytest.mark.parametrize("path", [fast, slowly])
    @pytest.mark.parametrize(("what", "expression", "json_text"), BECOMES)
    def test_a_value_becomes_what_it_says(
        self, what: str, expression: str, json_text: str, path: Callable[[object], str]
    ) -> None:
        becomes = path(value_of(expression))
        assert expected(json_text).fullmatch(becomes), what
        loads_strictly(becomes)

    @pytest.mark.parametrize(("what", "expression", "message"), REFUSED)
    def test_what_it_calls_refused_is_refused(
        self, what: str, expression: str, message: str
    ) -> None:
        with pytest.raises(ValueError, match=re.escape(message)) as refusal:
            encode_payload(value_of(expression))
        assert str(refusal.value) == message, what


def log_the_page(logger: Logger) -> dict[str, re.Pattern[str]]:
    """Log one event for each line of the page; give the JSON to expect by event_type."""
    lines = {}
    for number, (_, expression, json_text) in enumerate(BECOMES):
        try:
            payload = {"v": value_of(expression)}
        except pytest.skip.Exception:
            continue
        logger.info("odd", extra={"event_type": f"line.{number}", "payload": payload})
        lines[f"line.{number}"] = expected(f'{{"v":{json_text}}}')
    return lines


@pytest.fixture
def handler() -> Iterator[Callable[[bigquery.Client], tuple[Logger, BigQueryEventHandler]]]:
    """Make a logger with a handler, which is closed afterwards."""
    made: list[BigQueryEventHandler] = []

    def make(client: bigquery.Client) -> tuple[Logger, BigQueryEventHandler]:
        made.append(BigQueryEventHandler(client, source="tests"))
        logger = Logger(f"test.{uuid.uuid4().hex}")  # noqa: LOG001  forgotten after the test
        logger.addHandler(made[-1])
        return logger, made[-1]

    yield make
    for each in made:
        each.close()


class TestThroughTheHandler:
    def test_every_value_of_the_page_goes_over_the_wire_as_it_says(
        self, scripted: ScriptedBigQuery, client: bigquery.Client, handler: Any
    ) -> None:
        logger, made = handler(client)
        lines = log_the_page(logger)
        assert made.flush(20)
        assert {row["event_type"] for row in scripted.rows} == set(lines)
        for row in scripted.rows:
            assert lines[row["event_type"]].fullmatch(row["payload"])

    def test_every_value_of_the_page_is_in_bigquery_as_it_says(
        self, query: Any, emulator_client: bigquery.Client, handler: Any
    ) -> None:
        logger, made = handler(emulator_client)
        lines = log_the_page(logger)
        assert made.flush(60)
        rows = query("SELECT event_type, payload, JSON_TYPE(payload) AS kind FROM events")
        assert {row["event_type"] for row in rows} == set(lines)
        for row in rows:
            assert row["kind"] == "object"
            stored = orjson.dumps(row["payload"]).decode()
            assert lines[row["event_type"]].fullmatch(stored)

    @pytest.mark.parametrize(("what", "expression", "message"), REFUSED)
    def test_a_refused_payload_is_reported_and_its_neighbours_arrive(
        self,
        what: str,
        expression: str,
        message: str,
        scripted: ScriptedBigQuery,
        client: bigquery.Client,
        handler: Any,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        logger, made = handler(client)
        for event_type, payload in (
            ("before", {}),
            ("bad", value_of(expression)),
            ("after", {}),
        ):
            logger.info("odd", extra={"event_type": event_type, "payload": payload})
        assert made.flush(20), what
        assert [row["event_type"] for row in scripted.rows] == ["before", "after"]
        assert capsys.readouterr().err.count(message) == 1
