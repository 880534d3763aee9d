"""A directory in memory that knows what a kill and a loss of power would leave of it.

A kill loses nothing: what was written is in the system's cache. A loss of power keeps what was
forced, and of everything else any part. When forcing fails, the system forgets that there was
something to force, as Linux does: the next attempt succeeds and forces nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class Killed(BaseException):
    """The process ends here."""


@dataclass(eq=False)
class Inode:
    """What is in a file: as everybody sees it, and as the disk has it."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unforced: list[tuple[int, bytes]] = field(default_factory=list)
    owner: object | None = None
    """Who has it locked."""


def _write(data: bytearray, offset: int, new: bytes) -> None:
    data.extend(b"\0" * (offset - len(data)))
    data[offset : offset + len(new)] = new


class FakeDisk:
    """The disk.

    ``kill_at`` is the number of the change after which the process is killed, and ``fail_at`` that
    of the change that the disk refuses.
    """

    def __init__(self) -> None:
        self.names: dict[str, Inode] = {}
        self.durable_names: dict[str, Inode] = {}
        self.changes = 0
        self.kill_at: int | None = None
        self.fail_at: int | None = None
        self.is_full = False

    def change(self) -> None:
        self.changes += 1
        if self.kill_at is not None and self.changes >= self.kill_at:
            raise Killed
        if self.fail_at is not None and self.changes >= self.fail_at:
            self.fail_at = None
            raise OSError(5, "Input/output error")

    def _inodes(self) -> Iterable[Inode]:
        # Not a set, whose order differs each time: what is kept is drawn in this order.
        return dict.fromkeys([*self.names.values(), *self.durable_names.values()])

    def kill(self, owner: object) -> None:
        """End a process: its locks are free."""
        for inode in self._inodes():
            if inode.owner is owner:
                inode.owner = None

    def lose_power(self, keep: Callable[[], bool]) -> None:
        """Keep what was forced, and what ``keep`` says of everything else."""
        for inode in self._inodes():
            for offset, data in inode.unforced:
                if keep():
                    _write(inode.durable, offset, data)
            inode.unforced.clear()
            inode.data = bytearray(inode.durable)
            inode.owner = None
        for name in dict.fromkeys([*self.names, *self.durable_names]):
            now, before = self.names.get(name), self.durable_names.get(name)
            if now is not before and keep():
                if now is None:
                    del self.durable_names[name]
                else:
                    self.durable_names[name] = now
        self.names = dict(self.durable_names)


class FakeDirectory:
    """Stands for ``lorc_eventlog.spool.directory.Directory``, for one process."""

    path = Path("/spool")
    is_deleted = False

    def __init__(self, disk: FakeDisk, owner: object) -> None:
        self._disk = disk
        self._owner = owner

    def names(self) -> list[str]:
        return sorted(self._disk.names)

    def size(self, name: str) -> int:
        inode = self._disk.names.get(name)
        return 0 if inode is None else len(inode.data)

    def open_file(self, name: str, flags: int = os.O_RDWR) -> FakeFile:
        if name not in self._disk.names:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(name)
            self._disk.change()
            self._disk.names[name] = Inode()
        return FakeFile(self._disk, self._disk.names[name], self._owner)

    def rename(self, old: str, new: str) -> None:
        self._disk.change()
        self._disk.names[new] = self._disk.names.pop(old)

    def unlink(self, name: str) -> None:
        self._disk.change()
        del self._disk.names[name]

    def force(self) -> None:
        self._disk.change()
        self._disk.durable_names = dict(self._disk.names)

    def close(self) -> None:
        pass


class FakeFile:
    """Stands for ``lorc_eventlog.spool.directory.File``."""

    def __init__(self, disk: FakeDisk, inode: Inode, owner: object) -> None:
        self._disk = disk
        self._inode = inode
        self._owner = owner

    def status(self) -> Any:
        return SimpleNamespace(st_size=len(self._inode.data))

    def read(self, length: int, offset: int) -> bytes:
        return bytes(self._inode.data[offset : offset + length])

    def write(self, data: bytes, offset: int) -> None:
        self._disk.change()
        if self._disk.is_full and offset + len(data) > len(self._inode.data):
            raise OSError(28, "No space left on device")
        _write(self._inode.data, offset, data)
        self._inode.unforced.append((offset, data))

    def append(self, data: bytes) -> None:
        self.write(data, len(self._inode.data))

    def allocate(self, length: int) -> None:
        if len(self._inode.data) < length:
            self.write(b"\0" * (length - len(self._inode.data)), len(self._inode.data))

    def force(self) -> None:
        unforced = self._inode.unforced
        try:
            self._disk.change()
        except OSError:
            unforced.clear()
            raise
        for offset, data in unforced:
            _write(self._inode.durable, offset, data)
        unforced.clear()

    def try_lock(self) -> bool:
        if self._inode.owner not in (None, self._owner):
            return False
        self._inode.owner = self._owner
        return True

    def close(self) -> None:
        pass
