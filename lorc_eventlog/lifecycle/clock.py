"""The clock of everything that waits: seconds that only go on, whatever tests do to the time.

freezegun replaces ``time.monotonic`` for the whole process, senders included. What is due "in a
second" would then be due in some years, or never, and a deadline would not come.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

monotonic: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    if hasattr(time, "clock_gettime")  # not on Windows
    else time.monotonic
)
"""Seconds since some moment. Compare them with others from here alone."""
