"""The send functions of before the seam, for what does not stand on it yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.failures import why_no_client
from lorc_eventlog.bigquery.insert_all import REQUEST_TIMEOUT, InsertAllTransport
from lorc_eventlog.bigquery.transport import Answer, Failure

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from lorc_eventlog.events.row import Row


@dataclass(frozen=True, slots=True)
class OldAnswer:
    """What became of the rows of one request; all the others are stored."""

    refused: dict[int, str]
    again: list[int]


class TryAgainError(Exception):
    """Nothing is known to be stored, and the same rows may well pass later."""

    def __init__(self, failure: Failure, rows: Sequence[Row]) -> None:
        super().__init__(failure.told(rows))
        self.reason = failure.reason.told(rows)
        self.what_to_do = failure.what_to_do
        self.may_be_the_rows = failure.may_be_the_rows


class RequestRefusedError(Exception):
    """BigQuery refused the request as a whole because of something in its rows."""


def insert_rows(
    client: Client, table: str, rows: Sequence[Row], *, timeout: float = REQUEST_TIMEOUT
) -> OldAnswer:
    """Send ``rows`` in one request that stores the good ones, whatever the others are."""
    result = InsertAllTransport(client, table).send(rows, timeout=timeout)
    if isinstance(result, Failure):
        raise TryAgainError(result, rows)
    if not isinstance(result, Answer):
        raise RequestRefusedError(result.told(rows))
    refused = {row.index: row.reason.told([rows[row.index]]) for row in result.refused}
    return OldAnswer(refused, list(result.again))


def no_client(error: Exception) -> TryAgainError:
    """Tell why there is no client."""
    return TryAgainError(why_no_client(error), ())
