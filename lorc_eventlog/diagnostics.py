"""What the package says about itself: on the ``lorc_eventlog`` logger, and never too often.

No message holds a payload or a ``subject_id``.
"""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("lorc_eventlog")


class Throttle:
    """Lets one message through in each ``interval`` seconds. The caller's lock guards it."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._open_at = float("-inf")

    def lets_through(self, now: float) -> bool:
        """Whether a message may be said at ``now``; if so, the interval begins again."""
        if now < self._open_at:
            return False
        self._open_at = now + self._interval
        return True


def say_on_stderr(message: str) -> None:
    """Say what must be seen at exit, when logging may be shut down already."""
    if sys.stderr is not None:
        sys.stderr.write(f"lorc_eventlog: {message}\n")
