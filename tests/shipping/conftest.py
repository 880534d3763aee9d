"""A spool directory, and who writes to it and reads it, for the tests of the shipper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorc_eventlog.diagnostics import Notes
from lorc_eventlog.shipping.follower import Follower
from lorc_eventlog.shipping.lines import Lines
from lorc_eventlog.spool.directory import Access, Directory
from lorc_eventlog.spool.shipped import SegmentAppender
from shippers import TABLE, make_appender


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def directory(path: Path) -> Iterator[Directory]:
    opened = Directory(path, access=Access.OWNER, create=True)
    yield opened
    opened.close()


@pytest.fixture
def follower(directory: Directory, notes: Notes) -> Follower:
    return Follower(directory, Lines(directory), TABLE, notes)


@pytest.fixture
def appender(path: Path, notes: Notes) -> Iterator[SegmentAppender]:
    made = make_appender(path, notes)
    yield made
    made.abandon()
