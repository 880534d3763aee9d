"""What exactly once needs: a whole table, and a disk of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.table import TABLE_VARIABLE

if TYPE_CHECKING:
    from lorc_eventlog.spool.directory import Directory

PROC = Path("/proc/self")

_NETWORK_FILE_SYSTEMS = {
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs", "gfs2", "glusterfs", "gpfs", "lustre",
    "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs",
}  # fmt: skip
_NETWORK_PROGRAMS = {
    "beeond", "blobfuse", "blobfuse2", "ceph", "ceph-fuse", "curlftpfs", "davfs", "davfs2",
    "gcsfuse", "glusterfs", "goofys", "juicefs", "lizardfs", "mfs", "mount-s3", "mountpoint-s3",
    "moosefs", "rclone", "s3fs", "seaweedfs", "sshfs",
}  # fmt: skip
"""What a FUSE file system is made by: ``fuse.sshfs`` in the list of mounts. Others are local."""


class UnfitError(Exception):
    """Exactly once cannot be had here; the message says why.

    Attributes:
        to_do: What to do.
    """

    def __init__(self, why: str, to_do: str) -> None:
        super().__init__(why)
        self.to_do = to_do


def check_table(table: str) -> None:
    """Refuse a partition: only the default stream takes rows for one, and it stores rows twice.

    Raises:
        UnfitError: ``table`` names a partition.
    """
    whole, _, partition = table.partition("$")
    if partition:
        name = whole.rpartition(".")[2]
        why = f"exactly once needs a whole table; {TABLE_VARIABLE} names the partition ${partition}"
        raise UnfitError(why, f"set {TABLE_VARIABLE}={name}, or leave out --exactly-once")


def check_disk(directory: Directory) -> None:
    """Refuse a network file system: its locks, and what it has forced, cannot be relied on.

    Raises:
        UnfitError: The directory is on one.
    """
    kind = file_system(directory.descriptor)
    program = kind.removeprefix("fuse.").removeprefix("fuse3.")
    if kind in _NETWORK_FILE_SYSTEMS or (program != kind and program in _NETWORK_PROGRAMS):
        why = (
            f"{directory.path} is on a network file system ({kind}), whose locks and order of "
            "writes exactly once cannot rely on"
        )
        raise UnfitError(why, "name a directory on a disk of this machine")


def file_system(descriptor: int) -> str:
    """Return the kind of file system of an open file, such as ``ext4``; empty if nobody knows.

    By the number of its mount: a path, or a device, may stand for several mounts.
    """
    try:
        about = (PROC / "fdinfo" / str(descriptor)).read_text()
        mounts = (PROC / "mountinfo").read_text()
    except OSError:  # not Linux, or no /proc
        return ""
    wanted = dict(line.split(":", 1) for line in about.splitlines() if ":" in line).get("mnt_id")
    for line in mounts.splitlines():
        number, _, rest = line.partition(" ")
        if wanted is not None and number == wanted.strip():
            return rest.partition(" - ")[2].partition(" ")[0]
    return ""
