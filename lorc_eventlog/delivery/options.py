"""Are the options that a user gives what they can be? A ValueError says what they must be."""

from __future__ import annotations

import os
from typing import cast

MAX_SECONDS = 1_000_000
"""No time-out is longer; Python's locks take no infinity."""


def check(good: bool, option: str, value: object, meaning: str) -> None:  # noqa: FBT001
    """Raise ValueError unless ``value`` is ``good``: ``option`` must be what ``meaning`` says."""
    if not good:
        msg = f"{option} must be {meaning}, not {value!r}"
        raise ValueError(msg)


def check_whole(option: str, value: object, most: int | None = None) -> None:
    """Whether ``value`` is a whole number from 1 to ``most``."""
    good = type(value) is int and 1 <= value <= (most or value)
    check(good, option, value, f"a whole number from 1 {f'to {most:,}' if most else 'on'}")


def check_seconds(option: str, value: object) -> None:
    """Whether ``value`` is a time in seconds."""
    good = type(value) in (int, float) and 0 <= cast("float", value) <= MAX_SECONDS
    check(good, option, value, f"a number of seconds from 0 to {MAX_SECONDS:,}")


def check_path(option: str, value: object) -> None:
    """Whether ``value`` names a directory, or is None."""
    good = value is None or (isinstance(value, (str, os.PathLike)) and value != "")
    check(good, option, value, "the path of a directory")


def check_client(value: object) -> None:
    """Whether ``value`` is a BigQuery client, somebody's double of one, or None."""
    check(
        value is None or has_method(value, "insert_rows_json"),
        "bq_client",
        value,
        "a google.cloud.bigquery.Client (in a dictConfig: ext://package.client)",
    )


def has_method(thing: object, method: str) -> bool:
    """Whether ``thing`` can do ``method``."""
    return callable(getattr(thing, method, None))
