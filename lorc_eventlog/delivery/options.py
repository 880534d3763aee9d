"""The options that a user gives. An invalid value is a ValueError that says what is valid."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from lorc_eventlog.events.envelope import Envelope

DeadLetterCallback = Callable[["Envelope", str], object]

MAX_BATCH_ROWS = 50_000
"""BigQuery takes no more rows in a request, and recommends about 500."""

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


def check_flag(option: str, value: object) -> None:
    """Whether ``value`` is true or false."""
    check(isinstance(value, bool), option, value, "true or false")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterOptions:
    """What an ``EventWriter`` is told; see there."""

    batch_rows: int
    flush_interval: float
    capacity: int
    capacity_bytes: int
    overflow: Literal["drop", "block"]
    close_timeout: float
    on_dead_letter: DeadLetterCallback | None
    spool_dir: str | os.PathLike[str] | None
    spool_max_bytes: int
    spool_sync: Literal["normal", "full"]
    spool_only: bool
    spool_mode: Literal["private", "group"]
    deliver_on_sigterm: bool

    def __post_init__(self) -> None:
        check_whole("batch_rows", self.batch_rows, MAX_BATCH_ROWS)
        check_seconds("flush_interval", self.flush_interval)
        check_whole("capacity", self.capacity)
        check_whole("capacity_bytes", self.capacity_bytes)
        check(self.overflow in ("drop", "block"), "overflow", self.overflow, '"drop" or "block"')
        check_seconds("close_timeout", self.close_timeout)
        check(
            self.on_dead_letter is None or callable(self.on_dead_letter),
            "on_dead_letter",
            self.on_dead_letter,
            "a callable (in a dictConfig: ext://package.function)",
        )
        check_path("spool_dir", self.spool_dir)
        if self.spool_dir is not None:
            # Hazard: the child of a fork opens the directory anew. The process may have gone to
            # another directory before the fork, as a daemon does, or lost the one that it was in.
            object.__setattr__(self, "spool_dir", os.path.abspath(self.spool_dir))  # noqa: PTH100
        check_whole("spool_max_bytes", self.spool_max_bytes)
        check(
            self.spool_sync in ("normal", "full"),
            "spool_sync",
            self.spool_sync,
            '"normal" or "full"',
        )
        check_flag("spool_only", self.spool_only)
        check(
            self.spool_mode in ("private", "group"),
            "spool_mode",
            self.spool_mode,
            '"private" or "group"',
        )
        check_flag("deliver_on_sigterm", self.deliver_on_sigterm)
        if self.spool_only and self.spool_dir is None:
            msg = "spool_only needs spool_dir, the directory that `lorc-eventlog ship` reads"
            raise ValueError(msg)
        if self.spool_mode == "group" and not self.spool_only:
            msg = 'spool_mode="group" needs spool_only=True: only a shipper shares a directory'
            raise ValueError(msg)
