"""Reads and erases lines of the spool by where they stand: the ledger names them so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lorc_eventlog.spool.format import BLANK, find_rows

if TYPE_CHECKING:
    from lorc_eventlog.events.row import Row
    from lorc_eventlog.shipping.ledger import Run
    from lorc_eventlog.shipping.report import FollowerReport
    from lorc_eventlog.spool.directory import Directory, File

ERASED_BYTES = 2**17
"""The most that is blanked at once. A log call of the process that still appends to the segment
waits meanwhile, because the system writes one thing at a time to a file."""


class Lines:
    """The lines of all segments of a directory. Not thread-safe: the thread that sends owns it.

    A segment that is gone was deleted because nothing in it waited.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def read(self, runs: Iterable[Run]) -> list[tuple[tuple[str, int], Row]]:
        """Read the rows in ``runs`` that are still there, each with its segment and offset."""
        rows: list[tuple[tuple[str, int], Row]] = []
        for run in runs:
            with contextlib.suppress(FileNotFoundError):
                file = self._directory.open_file(run.segment)
                try:
                    data = file.read(run.end - run.start, run.start)
                finally:
                    file.close()
                start = run.start
                for line in data.split(b"\n"):
                    found, _ = find_rows(line)
                    rows += [((run.segment, start + begin), row) for begin, _, row in found]
                    start += len(line) + 1
        return rows

    def erase(self, runs: Iterable[Run]) -> None:
        """Overwrite ``runs`` with blanks."""
        for run in runs:
            with contextlib.suppress(FileNotFoundError):
                file = self._directory.open_file(run.segment)
                try:
                    _blank(file, run)
                finally:
                    file.close()

    def force(self, runs: Iterable[Run]) -> None:
        """Force to the disk that ``runs`` are erased, or that their segments are deleted.

        Hazard: after an error the kernel takes what it did not write for written, in the whole
        file. It tells the error to whoever had the file open, which may be the process that appends
        to it, and to nobody who opens it later. So the runs are erased anew, and forced by the same
        descriptor.
        """
        by_segment: dict[str, list[Run]] = {}
        for run in runs:
            by_segment.setdefault(run.segment, []).append(run)
        is_any_gone = False
        for name, some in by_segment.items():
            try:
                file = self._directory.open_file(name)
            except FileNotFoundError:
                is_any_gone = True
                continue
            try:
                for run in some:
                    _blank(file, run)
                file.force()
            finally:
                file.close()
        if is_any_gone:
            self._directory.force()


def _blank(file: File, run: Run) -> None:
    # Somebody may have truncated it, and what its process appends then is something else. The last
    # line may lack only its line break.
    stop = min(run.end, file.status().st_size + 1)
    for start in range(run.start, stop, ERASED_BYTES):
        end = min(start + ERASED_BYTES, stop)
        file.write(BLANK * (end - start - 1) + b"\n", start)


class Eraser:
    """Erases what is delivered, and once more what the disk refused to erase.

    Args:
        lines: The lines of the directory.
        report: Says what the disk refuses.
    """

    def __init__(self, lines: Lines, report: FollowerReport) -> None:
        self.left: list[Run] = []
        """What is delivered and could not be erased. Read nothing meanwhile: that a shipper which
        starts anew would send again does not become more."""
        self._lines = lines
        self._report = report

    def erase(self, runs: Iterable[Run]) -> None:
        """Erase ``runs``, or keep them for :meth:`erase_what_is_left`."""
        for run in runs:
            try:
                self._lines.erase([run])
            except OSError as error:
                self.left.append(run)
                what = "holds delivered events that cannot be erased and could be sent again"
                self._report.trouble(what, error, run.segment)

    def erase_what_is_left(self) -> None:
        """Try again."""
        runs, self.left = self.left, []
        self.erase(runs)
