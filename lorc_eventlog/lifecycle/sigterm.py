"""Makes SIGTERM an orderly exit, for writers that ask for it: ``deliver_on_sigterm=True``.

Python dies of SIGTERM at once, without its exit functions. The signal belongs to the application,
so a handler is set only where nobody has set one, once in a process.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from types import FrameType

from lorc_eventlog.diagnostics import say
from lorc_eventlog.lifecycle import fork


def end_in_order(number: int, _: FrameType | None) -> None:
    """Leave as ``sys.exit`` does, so that exit functions run; a second signal kills.

    Raises:
        SystemExit: With what a shell makes of a process that the signal killed, 143.
    """
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


class Request:
    """What the writers of one process asked for."""

    def __init__(self) -> None:
        self._is_warned = False
        self._is_due_in_child = False
        self._is_made = False

    def make(self) -> None:
        """Set the handler, or warn once that it cannot be."""
        self._is_made = True
        why_not = _set_handler()
        if why_not and not self._is_warned:
            self._is_warned = True
            say(
                logging.WARNING,
                "deliver_on_sigterm has no effect, %s: on SIGTERM, events in memory are delivered "
                "only if Python's exit functions run, so let the signal handler end in "
                "sys.exit(143)",
                why_not,
            )

    def make_again(self) -> None:
        """Ask anew in the child of a fork, whose parent asked. Its pool or server may say no."""
        if self._is_due_in_child:
            self._is_due_in_child = False
            _set_handler()

    def restart_in_child(self) -> None:
        """Let a child that logs nothing die of the signal, as one without this package does."""
        self._is_due_in_child = self._is_made
        if signal.getsignal(signal.SIGTERM) is end_in_order:
            with contextlib.suppress(ValueError):  # a fork in C, noticed on another thread
                signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _set_handler() -> str | None:
    """Return why it cannot be; None if it is set."""
    found = signal.getsignal(signal.SIGTERM)
    if found is end_in_order:
        return None
    if found != signal.SIG_DFL:
        return "because SIGTERM has a handler already, or is ignored"
    if threading.current_thread() is threading.main_thread():
        with contextlib.suppress(ValueError):  # the main thread of a subinterpreter
            signal.signal(signal.SIGTERM, end_in_order)
            return None
    return "because the writer was not made in the main thread"


request = Request()
fork.register_first(request)
