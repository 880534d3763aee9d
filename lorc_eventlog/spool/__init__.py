"""The buffer on disk: an event is there when the log call returns, until BigQuery has it.

A spool directory holds *segments*. Each belongs to one process, under an ``flock`` that the kernel
releases when the process dies, however it dies; whoever then gets the lock adopts the segment and
delivers it. A segment whose events are all acknowledged is truncated or deleted; one that holds
something else, nobody can read, is renamed to ``....damaged`` when its events are delivered.

* ``format``: what a segment holds; nothing that it holds is trusted
* ``segment``: one file
* ``store``: the segments of this process
* ``orphans``: the segments of dead processes
* ``survey``: what is in a directory, found without touching it
* ``report``: every message
"""

from lorc_eventlog.spool.survey import SegmentReport, survey

__all__ = ["SegmentReport", "survey"]
