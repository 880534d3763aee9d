"""The buffer on disk."""

from lorc_eventlog.spool.store import SegmentReport, survey

__all__ = ["SegmentReport", "survey"]
