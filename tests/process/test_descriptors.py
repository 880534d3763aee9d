"""Files that a fork leaves to the parent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness import fork_and_wait
from lorc_eventlog.lifecycle import descriptors
from lorc_eventlog.spool.directory import Access, Directory

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


def test_the_child_leaves_alone_what_has_taken_the_place_of_its_copy(tmp_path: Path) -> None:
    """The child of a fork in C may have closed all files before it comes to ours."""
    descriptor = descriptors.open_here(tmp_path / "a", os.O_CREAT | os.O_RDWR)
    other = os.open(tmp_path / "b", os.O_CREAT | os.O_RDWR)
    os.dup2(other, descriptor)
    assert fork_and_wait(lambda: is_open(descriptor)) == 0
    descriptors.close(descriptor)
    os.close(other)


def test_a_file_never_takes_the_place_of_standard_error_that_is_closed(tmp_path: Path) -> None:
    """A library in C would write its messages into it."""

    def is_kept_free() -> bool:
        os.close(2)
        ours = descriptors.open_here(tmp_path / "a", os.O_CREAT | os.O_RDWR)
        shared = Directory(tmp_path / "b", access=Access.OWNER, create=True)
        shipped = shared.open("c", os.O_CREAT | os.O_RDWR)
        os.close(shared.descriptor)
        return ours > 2 and shipped > 2 and not is_open(2) and not os.get_inheritable(ours)

    assert fork_and_wait(is_kept_free) == 0


def test_a_copy_takes_the_place_of_a_descriptor_that_is_too_low(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open(tmp_path / "a", os.O_CREAT | os.O_RDWR)
    monkeypatch.setattr(descriptors, "_STANDARD_ERROR", descriptor)
    copy = descriptors.above_standard(descriptor)
    assert copy > descriptor
    assert (is_open(copy), is_open(descriptor)) == (True, False)
    os.close(copy)
