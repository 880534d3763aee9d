"""What the package says about itself: on the ``lorc_eventlog`` logger, and never too often.

No message holds a payload or a ``subject_id``.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import deque

logger = logging.getLogger("lorc_eventlog")

_DELIVERY = (
    "chardet.",  # requests guesses by one of the two in what encoding an error page is
    "charset_normalizer",
    "google.",
    "lorc_eventlog.",  # loguru names the module
    "requests.",
    "urllib3.",
)


def is_about_delivery(record: logging.LogRecord) -> bool:
    """Whether ``record`` tells how events are delivered, and so never is an event.

    A filter or a context variable may put an ``event_type`` on every record there is. Each event
    delivered would then make another one, without end.
    """
    name = record.name or ""  # makeLogRecord allows None
    return name == logger.name or name.startswith(_DELIVERY)


class Throttle:
    """Lets one message of a kind through in each ``interval`` seconds; not thread-safe."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._open_at: dict[str | None, float] = {}

    def lets_through(self, now: float, kind: str | None = None) -> bool:
        """Whether a message of ``kind`` may be said at ``now``; if so, its interval begins."""
        if now < self._open_at.get(kind, now):
            return False
        self._open_at[kind] = now + self._interval
        return True


class Notes:
    """Messages that are noted under a lock and said when it is free.

    Handlers are other people's code: one that waits for our lock while its own is taken by a
    thread that waits for ours would stop both.
    """

    def __init__(self) -> None:
        self._notes: deque[tuple[int, str, tuple[object, ...]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._notes)

    def note(self, level: int, message: str, *arguments: object) -> None:
        """Keep a message, as ``Logger.log`` takes it."""
        self._notes.append((level, message, arguments))

    def say(self) -> None:
        """Log what was noted. A handler or filter that raises is reported, and nothing else."""
        while self._notes:
            try:
                level, message, arguments = self._notes.popleft()
            except IndexError:  # another thread says it
                return
            say(level, message, *arguments)


def say(level: int, message: str, *arguments: object) -> None:
    """Log a message, as ``Logger.log`` takes it. A handler or filter that raises is reported."""
    try:
        shown = [each if type(each) is int else escaped(str(each)) for each in arguments]
        # Hazard: dictConfig disables the loggers that exist, unless it is told not to, and this one
        # exists as soon as it has found the class of a handler. Lost events would go unmentioned.
        logger.disabled = False
        logger.log(level, message, *shown)
    except Exception as error:  # noqa: BLE001  a user's filter must end no sender and no log call
        say_on_stderr(f"logging raised {type(error).__name__} for: {message % (*arguments,)}")


def say_on_stderr(message: str) -> None:
    """Say what must be seen at exit, when logging may be shut down already."""
    if sys.stderr is not None:
        # A stderr that is closed, or somebody's own, must not break the log call behind it.
        with contextlib.suppress(Exception):
            sys.stderr.write(f"lorc_eventlog: {escaped(message)}\n")


def escaped(text: str) -> str:
    """Escape control characters, which could forge a line of a log or move a terminal's cursor."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def loss(event_type: object, error: BaseException | None, place: str = "") -> str:
    """Tell that an event is not recorded, and why; raises nothing, whatever the event is."""
    # Not isinstance, nor repr: an object may make something of its own of either.
    what = f"event {str.__repr__(event_type)}" if issubclass(type(event_type), str) else "an event"
    return f"{what}{place} is not recorded: {describe(error)}"


def describe(error: BaseException | None) -> str:
    """Name the type of ``error`` and, if it is this package's own, its message.

    Any other message may quote what it was raised for: a payload, a ``subject_id``.
    """
    kind = type(error).__name__
    # Exactly these types, because the interpreter raises others of its own in our modules.
    is_our_own = type(error) in (ValueError, RuntimeError) and is_raised_here(error)
    return f"{kind}: {error}" if is_our_own else kind


def is_raised_here(error: BaseException | None) -> bool:
    """Whether the innermost call of its traceback is one of this package."""
    trace = None if error is None else error.__traceback__
    module = None
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__")
        trace = trace.tb_next
    return isinstance(module, str) and module.startswith(f"{logger.name}.")
