"""A spool directory that many processes share: opened once, and trusted in nothing.

Whoever may write to the directory may rename what is in it, or put a link in its place. So the
directory is opened once and its files are opened through that descriptor, never by a path. A file
counts only if it is a regular file with one link, of the right owner, that nobody else may write
to. The rules of :class:`Access` say who that is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from enum import Enum
from pathlib import Path

from lorc_eventlog.lifecycle.descriptors import above_standard

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK, because opening a pipe that somebody put there would wait for its other end.
_OPEN_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


force_to_disk = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process, if no other has it locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Access(Enum):
    """Who may write to a spool directory and its files: the value is the mode of both."""

    OWNER = (0o700, 0o600)
    """One user: applications and shipper run as the same."""
    GROUP = (0o2770, 0o660)
    """All users of one group, who can read, forge and erase one another's events. The directory
    carries the setgid bit, so that each file gets the directory's group."""


class UntrustedError(OSError):
    """A directory or file is refused because somebody else could have tampered with it."""

    def __init__(self, name: str, why: str, what_to_do: str) -> None:
        super().__init__(errno.EPERM, f"{why}: {what_to_do}", name)


class File:
    """An open file of the directory, and all that a shipper does with one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, length: int, offset: int) -> bytes:
        """Read at most ``length`` bytes."""
        return os.pread(self._descriptor, length, offset)

    def write(self, data: bytes, offset: int) -> None:
        """Write all of ``data``, or raise ``OSError``."""
        if os.pwrite(self._descriptor, data, offset) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def allocate(self, length: int) -> None:
        """Take disk space, so that writing does not fail for want of it."""
        os.posix_fallocate(self._descriptor, 0, length)

    def force(self) -> None:
        """Force what was written to the disk."""
        force_to_disk(self._descriptor)

    def status(self) -> os.stat_result:
        """Return what the system knows of it."""
        return os.fstat(self._descriptor)

    def try_lock(self) -> bool:
        """Lock the file for this process, if no other has it locked."""
        return try_lock(self._descriptor)

    def close(self) -> None:
        """Close the file, and give up the lock."""
        os.close(self._descriptor)


class Directory:
    """A spool directory, opened. Its methods raise ``OSError``.

    Args:
        path: Where it is.
        access: Who may write to it. None takes what its mode says.
        create: Whether to make it, and its parents, if it is not there.
    """

    def __init__(self, path: Path, *, access: Access | None, create: bool) -> None:
        self.path = path
        if create:
            make_directory(path, access or Access.OWNER)
        self.descriptor = os.open(path, _OPEN_DIRECTORY)
        try:
            self.access = self._check(access)
        except OSError:
            os.close(self.descriptor)
            raise

    def _check(self, access: Access | None) -> Access:
        status = os.fstat(self.descriptor)
        mode = stat.S_IMODE(status.st_mode)
        shown = os.fspath(self.path)
        if mode & stat.S_IWOTH:
            why = "every user may write to it"
            raise UntrustedError(shown, why, f"chmod o-w {shown}, or name a directory inside it")
        is_shared = bool(mode & stat.S_IWGRP)
        if access is None:
            access = Access.GROUP if is_shared and mode & stat.S_ISGID else Access.OWNER
        if access is Access.GROUP:
            if not (is_shared and mode & stat.S_ISGID):
                why = "its mode does not let the group share it"
                raise UntrustedError(shown, why, f"chmod 2770 {shown}")
            self._group = status.st_gid
            return access
        if is_shared:
            why = "its group may write to it"
            raise UntrustedError(shown, why, f'chmod 700 {shown}, or set spool_mode to "group"')
        if status.st_uid != os.geteuid():
            why = f"it belongs to the user {status.st_uid}"
            raise UntrustedError(shown, why, f"run as that user, or chown {shown}")
        self._group = -1
        return access

    @property
    def is_deleted(self) -> bool:
        """Whether the directory is no longer where it was, so that it must be opened again."""
        try:
            here = self.path.lstat()
        except FileNotFoundError:
            return True
        return not os.path.samestat(here, os.fstat(self.descriptor))

    @property
    def is_known_deleted(self) -> bool:
        """The same, but False if that cannot be known.

        A process that has given up its rights may not look any more, and still write.
        """
        try:
            return self.is_deleted
        except OSError:
            return False

    def holds(self, name: str, file: File) -> bool:
        """Whether ``name`` is still that of ``file``, which is open."""
        try:
            status = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(status, file.status())

    def names(self) -> list[str]:
        """Return the names of all that is in it, in their order."""
        return sorted(os.listdir(self.descriptor))  # noqa: PTH208  by the descriptor

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open a file and return its descriptor; with ``O_CREAT`` its mode follows the access.

        Raises:
            UntrustedError: The file is not one that only the right users could have written.
            OSError: The file cannot be opened; ``ELOOP`` is a symbolic link.
        """
        opened = os.open(name, flags | _OPEN_FILE, 0o600, dir_fd=self.descriptor)
        descriptor = above_standard(opened)
        try:
            mode = self.access.value[1]
            # Whatever the umask. What another member of the group made has its mode already, and
            # only its owner may change it.
            if flags & os.O_CREAT and stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
                os.fchmod(descriptor, mode)
            self._check_file(name, os.fstat(descriptor))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def open_file(self, name: str, flags: int = os.O_RDWR) -> File:
        """Open a file as :meth:`open` does, for reading and writing at offsets."""
        return File(self.open(name, flags))

    def _check_file(self, name: str, status: os.stat_result) -> None:
        forbidden = stat.S_IWOTH if self.access is Access.GROUP else stat.S_IWOTH | stat.S_IWGRP
        if not stat.S_ISREG(status.st_mode):
            why = "it is not a regular file"
        elif status.st_nlink > 1:
            why = "it has another name (a hard link)"
        elif status.st_mode & forbidden:
            why = "other users may write to it"
        elif self.access is Access.OWNER and status.st_uid != os.geteuid():
            why = f"it belongs to the user {status.st_uid}"
        elif self.access is Access.GROUP and status.st_gid != self._group:
            why = f"it belongs to the group {status.st_gid}"
        else:
            return
        raise UntrustedError(name, why, "remove it from the spool directory")

    def size(self, name: str) -> int:
        """Return the size of a file in bytes; 0 if it is gone."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0

    def rename(self, old: str, new: str) -> None:
        """Rename a file."""
        os.rename(old, new, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def unlink(self, name: str) -> None:
        """Delete a file."""
        os.unlink(name, dir_fd=self.descriptor)

    def force(self) -> None:
        """Force the names of its files to the disk."""
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Close the directory; its files stay open."""
        os.close(self.descriptor)


def make_directory(path: Path, access: Access) -> None:
    """Make a directory and its parents, unless they are there, whatever the umask is."""
    missing = [directory for directory in (path, *path.parents) if not os.path.lexists(directory)]
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.mkdir(directory, 0o700)  # noqa: PTH102  for its owner alone until the next line
            mode = access.value[0]
            if directory != path:
                mode = 0o755 if access is Access.GROUP else 0o700
            os.chmod(directory, mode)  # noqa: PTH101
