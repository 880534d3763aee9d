"""Files that a fork leaves to the parent."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from harness import fork_and_wait
from lorc_eventlog.lifecycle import descriptors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_the_child_of_a_fork_has_no_copy(tmp_path: Path) -> None:
    descriptor = descriptors.open_here(tmp_path / "a", os.O_CREAT | os.O_RDWR)
    assert fork_and_wait(lambda: not is_open(descriptor)) == 0
    assert is_open(descriptor)
    descriptors.close(descriptor)


def test_the_child_leaves_alone_what_was_closed_before(tmp_path: Path) -> None:
    descriptors.close(descriptors.open_here(tmp_path / "a", os.O_CREAT | os.O_RDWR))
    with (tmp_path / "b").open("w") as file:  # has the same descriptor now
        assert fork_and_wait(lambda: is_open(file.fileno())) == 0


def test_a_file_is_opened_although_a_fork_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "PATIENCE", 0.01)
    taken, leave = threading.Event(), threading.Event()

    def hold() -> None:
        descriptors.before_fork()
        taken.set()
        leave.wait(10)
        descriptors.after_fork_in_parent()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(10)
    descriptor = descriptors.open_here(tmp_path / "a", os.O_CREAT | os.O_RDWR)
    descriptors.close(descriptor)
    leave.set()
    thread.join()
    assert not is_open(descriptor)
