"""Who ships: one process for each directory and table, as everybody can see."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from lorc_eventlog.spool.shipped import lock_name, shipper_of

if TYPE_CHECKING:
    from lorc_eventlog.spool.directory import Directory, File

TRIES = 20
PAUSE = 0.05
"""An application that looks whether somebody ships holds the lock for an instant."""


class AnotherShipperError(Exception):
    """Another process ships from this directory into this table."""


def take_lock(directory: Directory, table: str) -> File:
    """Become the one that ships from ``directory`` into ``table``, until the file is closed.

    Raises:
        AnotherShipperError: Another process is; the message names it.
        OSError: The lock cannot be made, or the file system knows no locks.
    """
    file = directory.open_file(lock_name(table), os.O_RDWR | os.O_CREAT)
    with contextlib.ExitStack() as undo:
        undo.callback(file.close)
        for _ in range(TRIES):
            if file.try_lock():
                undo.pop_all()
                # A full disk has no room for the number. Shipping, which makes room, matters more.
                with contextlib.suppress(OSError):
                    file.write(f"{os.getpid()}".ljust(20).encode() + b"\n", 0)
                return file
            time.sleep(PAUSE)
    who = shipper_of(directory, table) or "another process"
    msg = f"{who} ships from {directory.path} into {table} already"
    raise AnotherShipperError(msg)
