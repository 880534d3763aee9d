"""Imports Google's client when it is first needed, in such a way that no event is lost by it.

The import takes a second, so it happens with the first request and not with ``import
lorc_eventlog``. By then the interpreter may be shutting down, file descriptors may be short, a
warning may be an error, and a fork may come in between.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

from lorc_eventlog.lifecycle.fork import ForkLock
from lorc_eventlog.lifecycle.signals import without_signals

_T = TypeVar("_T")

import_guard = ForkLock(fork_waits=60.0)
"""Held during the import: a fork in the middle of it would leave the child with a module that is
locked for ever."""

SPARE_DESCRIPTORS = 16
"""More than an import opens at the same time."""

_MODULES = (
    # grpc's extension imports these while it initializes itself. If one of them fails there, the
    # next import of grpc aborts the process.
    "asyncio",
    "inspect",
    "pkgutil",
    "ssl",
    # The first request would import these, outside of our guard.
    "encodings.idna",
    "netrc",
    "google.auth._default",
    "google.auth.compute_engine",
    "google.oauth2.credentials",
    "google.oauth2.service_account",
    "google.cloud.bigquery",
)

_MODULES_OF_SOME_VERSIONS = (
    "google.auth.api_key",
    "google.auth.aws",
    "google.auth.external_account_authorized_user",
    "google.auth.identity_pool",
    "google.auth.impersonated_credentials",
    "google.auth.pluggable",
    "google.oauth2.gdch_credentials",
)
"""What google-auth imports for other kinds of credentials, when it finds them."""

_is_imported = False


class ClientImportError(Exception):
    """Google's client cannot be imported, or not now."""


def prepare() -> None:
    """Import what cannot be imported at exit any more. A writer calls this when it is made.

    Google's client imports pandas where it is installed, and pandas this module. It registers with
    ``threading``, which fails once the interpreter shuts down.
    """
    with _late_registrations():  # an exit function may make a writer
        import concurrent.futures.thread  # noqa: F401

    # uWSGI ends a worker by exit() in C. What was loaded after the handler was made is torn down
    # before it flushes, OpenSSL and pyarrow included.
    if "uwsgi" in sys.modules:
        with contextlib.suppress(ClientImportError):
            import_client()


def import_client() -> None:
    """Import Google's client, and all that it would import later in the middle of its work.

    Raises:
        ClientImportError: It failed. Nothing of it is left behind, so that the next try may
            succeed.
    """
    if _is_imported:
        return
    try:
        import_guard.run(without_signals, _import)
    except Exception as error:
        msg = f"Google's client cannot be imported: {type(error).__name__}: {error}"
        raise ClientImportError(msg) from error


def despite_warnings(action: Callable[[], _T]) -> _T:
    """Call ``action`` again without each warning that an exception was made of.

    ``-W error`` makes one of every warning, and so does ``catch_warnings`` in another thread.
    """
    ignored: set[str] = set()
    while True:
        try:
            return action()
        except Warning as warning:
            text = str(warning)
            if text in ignored:
                raise
            ignored.add(text)
            warnings.filterwarnings("ignore", re.escape(text), type(warning))


def _import() -> None:
    global _is_imported  # noqa: PLW0603  one assignment, at the end
    despite_warnings(_import_all_or_nothing)
    _is_imported = True


def _import_all_or_nothing() -> None:
    before = set(sys.modules)
    try:
        _check_descriptors()
        with _late_registrations():
            for name in _MODULES:
                importlib.import_module(name)
            for name in _MODULES_OF_SOME_VERSIONS:
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(name)
    except BaseException:
        _forget_orphans(before)
        raise


def _check_descriptors() -> None:
    """Raise OSError before anything is half imported."""
    descriptors: list[int] = []
    try:
        for _ in range(SPARE_DESCRIPTORS):
            descriptors.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401  all are closed
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _forget_orphans(before: set[str]) -> None:
    """Forget modules whose package failed: a package that is imported again does not find them."""
    for name in sys.modules.keys() - before:
        parts = name.split(".")
        packages = (".".join(parts[:count]) for count in range(1, len(parts)))
        if any(package not in sys.modules for package in packages):
            sys.modules.pop(name, None)


@contextlib.contextmanager
def _late_registrations() -> Iterator[None]:
    """Let modules be imported that register with ``threading``, though the main thread has ended.

    What they register would not be called any more.
    """
    register = getattr(threading, "_register_atexit", None)
    if register is None or threading.main_thread().is_alive():
        yield
        return

    def register_if_possible(*arguments: object, **options: object) -> None:
        with contextlib.suppress(RuntimeError):
            register(*arguments, **options)

    threading._register_atexit = register_if_possible  # type: ignore[attr-defined]  # noqa: SLF001
    try:
        yield
    finally:
        threading._register_atexit = register  # type: ignore[attr-defined]  # noqa: SLF001
