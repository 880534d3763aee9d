"""``lorc-eventlog tail``: which events, by which query, at which cost, and what arrives since."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from lorc_eventlog.query import (
    as_text,
    client_errors,
    in_partitions,
    run_query,
    start_query,
    what_failed,
)

if TYPE_CHECKING:
    from google.cloud.bigquery import Client, Table

    from lorc_eventlog.query import Parameter

LEAST_BYTES_BILLED = 10 * 2**20
"""BigQuery bills at least so much for a query of one table."""

FOLLOW_ROWS = 1000
"""The most new events that one look of ``tail -f`` brings; the next look brings the others."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events ``tail`` shows."""

    event_type: str | None
    source: str | None
    correlation_id: str | None
    since: timedelta
    columns: tuple[str, ...]


def arriving(
    client: Client,
    table: Table,
    selection: Selection,
    shown: list[dict[str, Any]],
    *,
    cut_off: str,
    interval: float,
    on_failure: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Look every ``interval`` seconds for events that were not ``shown``, for ever.

    An event is not missed for arriving late, as after an outage, if it was created within the
    time that is selected and not before ``cut_off``. A failure that time mends is reported once,
    by ``on_failure``, and waited out.
    """
    seen = {event["event_id"]: event["created_at"] for event in shown}
    failing = False
    while True:
        time.sleep(interval)
        oldest = as_text(datetime.now(UTC) - selection.since)
        seen = {event_id: created for event_id, created in seen.items() if created >= oldest}
        try:
            events = run_query(client, *tail_query(table, selection, seen=seen, cut_off=cut_off))
        except client_errors() as error:
            reason, to_do = what_failed(error)
            if to_do is not None:
                raise
            if not failing:
                on_failure(reason)
            failing = True
            continue
        failing = False
        for event in events:
            seen[event["event_id"]] = event["created_at"]
            yield event


def tail_query(
    table: Table,
    selection: Selection,
    *,
    seen: Iterable[str] = (),
    cut_off: str = "",
    latest: int | None = None,
) -> tuple[str, list[Parameter]]:
    """Make the query for the events of ``selection`` that are not ``seen``.

    With ``latest`` it brings so many at most, the latest first; without, the oldest first.
    """
    from google.cloud.bigquery import ArrayQueryParameter, ScalarQueryParameter

    oldest = datetime.now(UTC) - selection.since
    where, parameters = in_partitions(table, oldest)
    where += "created_at >= @since AND event_id NOT IN UNNEST(@seen)"
    values = {"since": max(as_text(oldest), cut_off)}
    for column in ("source", "correlation_id"):
        value = getattr(selection, column)
        if value is not None:
            where += f" AND {column} = @{column}"
            values[column] = value
    if selection.event_type is not None:
        start, *others = selection.event_type.split("*")
        if not others:
            where += " AND event_type = @event_type"
            values["event_type"] = start
        else:
            where += " AND STARTS_WITH(event_type, @event_type)"
            values["event_type"] = start
            if others != [""]:
                where += " AND REGEXP_CONTAINS(event_type, @event_type_pattern)"
                pattern = ".*".join(map(re.escape, (start, *others)))
                values["event_type_pattern"] = f"^{pattern}$"
    parameters += [ScalarQueryParameter(name, "STRING", value) for name, value in values.items()]
    parameters.append(ArrayQueryParameter("seen", "STRING", list(seen)))
    order = "created_at" if latest is None else "created_at DESC"
    # S608: columns and the table's name are known, the values are parameters.
    sql = (
        f"SELECT {', '.join(selection.columns)} FROM `{table.reference}`\n"  # noqa: S608
        f"WHERE {where}\nORDER BY {order} LIMIT {latest or FOLLOW_ROWS}"
    )
    return sql, parameters


def bytes_read(client: Client, table: Table, selection: Selection) -> int:
    """Ask BigQuery how much one look reads, by a dry run, which is free."""
    from google.cloud.bigquery import QueryJobConfig

    sql, parameters = tail_query(table, selection, latest=1)
    config = QueryJobConfig(dry_run=True, use_query_cache=False, query_parameters=parameters)
    return int(start_query(client, sql, config).total_bytes_processed)
