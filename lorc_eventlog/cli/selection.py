"""Which events ``tail`` shows: the query for them, what it costs, and what arrives since."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from lorc_eventlog.bigquery.failures import passes
from lorc_eventlog.cli.query import (
    as_text,
    client_errors,
    in_partitions,
    run_query,
    start_query,
    what_failed,
)

if TYPE_CHECKING:
    from google.cloud.bigquery import Client, Table

    from lorc_eventlog.cli.query import Parameter

FOLLOW_ROWS = 1000
"""The most new events that one query of ``tail -f`` brings; the next query brings the others."""

MOST_SEEN = 20_000
"""The most event_ids that a query leaves out by name: 1 MB of the 10 MB of a request."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events ``tail`` shows."""

    event_type: str | None
    source: str | None
    correlation_id: str | None
    since: timedelta
    columns: tuple[str, ...]


def creation_times(events: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Tell by its event_id when each of ``events`` was created."""
    return {event["event_id"]: event["created_at"] for event in events}


def there_already(client: Client, table: Table, selection: Selection) -> dict[str, str]:
    """Tell which events of ``selection`` exist, the latest ``MOST_SEEN`` and one more."""
    ids = replace(selection, columns=("event_id", "created_at"))
    return creation_times(run_query(client, *tail_query(table, ids, latest=MOST_SEEN + 1)))


def arriving(
    client: Client,
    table: Table,
    selection: Selection,
    seen: dict[str, str],
    *,
    interval: float,
    tell: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Query every ``interval`` seconds for events that were not ``seen``, for ever.

    An event is not missed for arriving late, as after an outage, if it was created within the
    time that is selected. If more than ``MOST_SEEN`` events were, it must not be older than those
    that are the latest, which ``tell`` is told once. A failure that time mends is told once, too,
    and waited out.
    """
    cut_off = min(seen.values()) if len(seen) > MOST_SEEN else ""
    told = failing = full = False
    while True:
        if cut_off and not told:
            tell(
                f"more than {MOST_SEEN:,} events since then: one that arrives late is shown only "
                f"if it is not older than the latest {MOST_SEEN:,}"
            )
            told = True
        if not full:
            time.sleep(interval)
        after = max(cut_off, as_text(datetime.now(UTC) - selection.since))
        seen = {event_id: created for event_id, created in seen.items() if created > after}
        try:
            events = run_query(client, *tail_query(table, selection, seen=seen, after=after))
        except client_errors() as error:
            if not passes(error):
                raise
            if not failing:
                tell(f"{what_failed(error)[0]}; trying again")
            failing, full = True, False
            continue
        failing, full = False, len(events) == FOLLOW_ROWS
        yield from events
        seen |= creation_times(events)
        if len(seen) > MOST_SEEN:
            # Events of one moment stay together: the next query may bring more of them.
            kept = sorted(seen.values())[-MOST_SEEN]
            cut_off = max((past for past in seen.values() if past < kept), default=cut_off)


def tail_query(
    table: Table,
    selection: Selection,
    *,
    seen: Iterable[str] = (),
    after: str = "",
    latest: int | None = None,
) -> tuple[str, list[Parameter]]:
    """Make the query for the events of ``selection``, created ``after``, that are not ``seen``.

    With ``latest`` it brings so many at most, the latest first; without, the oldest first. An
    event that was stored twice comes once.
    """
    from google.cloud.bigquery import ArrayQueryParameter, ScalarQueryParameter

    oldest = datetime.now(UTC) - selection.since
    where, parameters = in_partitions(table, oldest)
    where += "created_at > @since AND event_id NOT IN UNNEST(@seen)"
    values = {"since": max(as_text(oldest), after)}
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
                values["event_type_pattern"] = f"(?s)^{pattern}$"
    parameters += [ScalarQueryParameter(name, "STRING", value) for name, value in values.items()]
    parameters.append(ArrayQueryParameter("seen", "STRING", list(seen)))
    order = "created_at" if latest is None else "created_at DESC"
    # S608: columns and the table's name are known, the values are parameters.
    sql = (
        f"SELECT {', '.join(selection.columns)} FROM `{table.reference}`\n"  # noqa: S608
        f"WHERE {where}\n"
        "QUALIFY ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY created_at) = 1\n"
        f"ORDER BY {order} LIMIT {latest or FOLLOW_ROWS}"
    )
    return sql, parameters


def bytes_read(client: Client, table: Table, selection: Selection) -> int:
    """Ask BigQuery how much one query reads, by a dry run, which is free."""
    from google.cloud.bigquery import QueryJobConfig

    sql, parameters = tail_query(table, selection, latest=1)
    config = QueryJobConfig(dry_run=True, use_query_cache=False, query_parameters=parameters)
    return int(start_query(client, sql, config).total_bytes_processed)
