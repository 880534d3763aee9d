"""How fast to send: one probe at a time in an outage, and step by step after it."""

from __future__ import annotations

import math

MAX_PAUSE = 60.0
"""Seconds at most between two tries in an outage."""

FIRST_PAUSE = 0.25
LAST_PAUSE = 1.0
"""Seconds at most between two tries when the process ends, and has no time for longer ones."""

MAX_IN_FLIGHT = 64
"""More requests at a time than any writer sends."""


class Pace:
    """Exponential backoff with full jitter, and a slow start after it.

    Processes that failed together do not return together, and each starts with one request at a
    time and doubles that with every round that succeeds.
    """

    def __init__(self) -> None:
        self.failures = 0
        """How many requests in a row failed."""
        self.resume_at = 0.0
        """When the next one may go."""
        self.in_flight = MAX_IN_FLIGHT
        """How many may be on their way at a time."""
        self._longest_pause = math.inf
        self._failed_at = 0.0

    def failed(self, started: float, now: float) -> None:
        """Pause after a request that ``started`` then; several that failed together count once."""
        self.in_flight = 1
        if started >= self._failed_at:
            self.failures += 1
            self._failed_at = now
            self.resume_at = now + self.pause(self.failures)

    def succeeded(self) -> None:
        """Go on without a pause, with one request more at a time."""
        self.failures = 0
        self.in_flight = min(self.in_flight + 1, MAX_IN_FLIGHT)

    def retry_now(self, now: float) -> None:
        """Try at once, and go on with short pauses: the process ends."""
        self._longest_pause = LAST_PAUSE
        self.resume_at = now

    def longest(self, tries: int) -> float:
        """Return the longest pause after so many failed tries."""
        return min(MAX_PAUSE, self._longest_pause, FIRST_PAUSE * 2.0 ** min(tries, 16))

    def pause(self, tries: int, longest: float = math.inf) -> float:
        """Draw a pause: from none to the longest one, all equally likely."""
        import random  # not with `import lorc_eventlog`, which it would slow down

        return random.uniform(0, min(longest, self.longest(tries)))  # noqa: S311
