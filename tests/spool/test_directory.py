"""A spool directory that several processes share: what it trusts."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorc_eventlog.spool.directory import Access, Directory, UntrustedError, make_directory


@pytest.fixture
def odd_umask() -> Iterator[None]:
    """A umask that would make everything readable and writable by everybody."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    opened = Directory(tmp_path / "spool", access=Access.OWNER, create=True)
    yield opened
    opened.close()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("odd_umask")
def test_directories_and_files_are_the_owners_alone_whatever_the_umask_is(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "a" / "b", access=Access.OWNER, create=True)
    os.close(directory.open("file", os.O_WRONLY | os.O_CREAT))
    assert mode_of(tmp_path / "a") == 0o700
    assert mode_of(tmp_path / "a" / "b") == 0o700
    assert mode_of(tmp_path / "a" / "b" / "file") == 0o600
    directory.close()


def test_a_group_shares_directory_and_files_through_the_setgid_bit(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        directory = Directory(tmp_path / "a" / "b", access=Access.GROUP, create=True)
        os.close(directory.open("file", os.O_WRONLY | os.O_CREAT))
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a") == 0o755
    assert mode_of(tmp_path / "a" / "b") == 0o2770
    assert mode_of(tmp_path / "a" / "b" / "file") == 0o660
    found = Directory(tmp_path / "a" / "b", access=None, create=False)
    assert found.access is Access.GROUP
    assert found.names() == ["file"]
    found.close()
    directory.close()


def test_a_member_of_the_group_opens_what_another_member_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the owner of a file may change its mode, also to what it is."""
    directory = Directory(tmp_path / "spool", access=Access.GROUP, create=True)
    os.close(directory.open("file", os.O_WRONLY | os.O_CREAT))

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refuse)
    os.close(directory.open("file", os.O_WRONLY | os.O_CREAT))
    directory.close()


def test_making_a_directory_that_is_there_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    path.mkdir(mode=0o711)
    make_directory(path, Access.OWNER)
    assert mode_of(path) == 0o711


@pytest.mark.parametrize(
    ("mode", "access", "to_do"),
    [
        (0o777, None, "chmod o-w"),
        (0o1777, Access.OWNER, "name a directory inside it"),
        (0o770, None, "chmod 700"),
        (0o2770, Access.OWNER, "spool_mode"),
        (0o700, Access.GROUP, "chmod 2770"),
    ],
)
def test_a_directory_that_others_may_write_to_is_refused_with_what_to_do(
    tmp_path: Path, mode: int, access: Access | None, to_do: str
) -> None:
    path = tmp_path / "spool"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(UntrustedError, match=to_do):
        Directory(path, access=access, create=True)


def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UntrustedError, match="run as that user"):
        Directory(tmp_path, access=Access.OWNER, create=False)


def test_a_link_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="Not a directory"):
        Directory(tmp_path / "link", access=None, create=True)


def test_what_is_no_plain_file_of_ours_is_refused(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory.path
    (tmp_path / "secret").write_text("secret")
    (path / "symbolic").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        directory.open("symbolic")
    (path / "hard").hardlink_to(tmp_path / "secret")
    os.mkfifo(path / "pipe")
    (path / "folder").mkdir()
    (path / "shared").touch(mode=0o600)
    (path / "shared").chmod(0o620)
    for name, why in (
        ("hard", "hard link"),
        ("pipe", "regular file"),
        ("folder", "regular file"),
        ("shared", "other users"),
    ):
        with pytest.raises(UntrustedError, match=why):
            directory.open(name)
    (path / "theirs").touch(mode=0o600)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UntrustedError, match="belongs to the user"):
        directory.open("theirs")


def test_a_file_of_another_group_is_refused_where_a_group_shares(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "spool", access=Access.GROUP, create=True)
    os.close(directory.open("file", os.O_WRONLY | os.O_CREAT))
    directory._group += 1
    with pytest.raises(UntrustedError, match="belongs to the group"):
        directory.open("file")
    directory.close()


def test_it_notices_when_it_is_deleted_or_replaced(directory: Directory) -> None:
    assert not directory.is_deleted
    directory.path.rmdir()
    assert directory.is_deleted
    directory.path.mkdir()
    assert directory.is_deleted


def test_files_are_renamed_measured_and_deleted_by_their_names_in_it(directory: Directory) -> None:
    file = directory.open_file("a", os.O_RDWR | os.O_CREAT)
    file.write(b"four", 0)
    assert (directory.size("a"), file.read(10, 1)) == (4, b"our")
    directory.rename("a", "b")
    assert (directory.size("a"), directory.names()) == (0, ["b"])
    file.force()
    directory.force()
    directory.unlink("b")
    assert directory.names() == []
    file.close()


def test_one_process_at_a_time_has_a_file_locked(directory: Directory) -> None:
    first = directory.open_file("lock", os.O_RDWR | os.O_CREAT)
    second = directory.open_file("lock")
    assert first.try_lock()
    assert not second.try_lock()
    first.close()
    assert second.try_lock()
    second.close()


def test_a_disk_that_takes_only_a_part_is_full(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = directory.open_file("a", os.O_RDWR | os.O_CREAT)
    monkeypatch.setattr(os, "pwrite", lambda *_: 2)
    with pytest.raises(OSError, match="No space left"):
        file.write(b"four", 0)
    file.close()


def test_a_file_whose_mode_cannot_be_set_is_not_used(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    before = os.umask(0o277)
    try:
        with pytest.raises(PermissionError):
            directory.open("a", os.O_RDWR | os.O_CREAT)
    finally:
        os.umask(before)
