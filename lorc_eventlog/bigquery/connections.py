"""The connections of a client: ended by the clock, made anew, and left to the parent after a fork.

``requests`` has a timeout for each read, so that an answer of one byte a second never ends. Here a
thread gives its request a :class:`time_limit`, and each wait of a connection that carries the
request is cut to what is left of it: connecting (to all addresses of a host together), the TLS
handshake, sending, and reading headers and body. Only the resolver's own wait is out of reach.

For that, the classes that urllib3 makes connections of are derived from (``pool_classes_by_scheme``
and ``ConnectionCls``, both documented). Sessions and adapters stay the caller's own objects, and
requests without a limit are as they were. Where a session is of another make, there is the timeout.
"""

from __future__ import annotations

import io
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from lorc_eventlog.lifecycle import clock

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

_T = TypeVar("_T")

SEND_BYTES = 2**16
"""How much is sent between two looks at the clock."""

_LOST_THE_BODY = {301, 302, 303}
"""Redirects that make a GET of a POST."""

_pools: weakref.WeakSet[_PoolLimits] = weakref.WeakSet()
_abandoned: list[Any] = []
_NEW_LOCKS: dict[type, Callable[[], object]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
}
_SESSION_MODULES = ("google.auth", "google.oauth2", "requests.", "http.cookiejar")


class RedirectedError(Exception):
    """A redirect turned the request into one without rows; it was not followed."""


class _Clock(threading.local):
    deadline: float | None = None


_clock = _Clock()


def run_within(seconds: float, action: Callable[[], _T]) -> _T:
    """Call ``action``, all of whose requests on this thread end within ``seconds``."""
    before = _clock.deadline
    try:
        _clock.deadline = clock.monotonic() + seconds
        return action()
    finally:
        _clock.deadline = before


def _seconds_left() -> float | None:
    deadline = _clock.deadline
    if deadline is None:
        return None
    left = deadline - clock.monotonic()
    if left <= 0:
        msg = "timed out: the time for the whole request is over"
        raise TimeoutError(msg)
    return left


class _TimeLeft:
    """A timeout that is read anew for each address of a host."""

    def __init__(self, most: float | None) -> None:
        self._most = most

    def __float__(self) -> float:
        left = _seconds_left()
        return min(value for value in (left, self._most, 1e9) if value is not None)

    def __index__(self) -> int:
        return math.ceil(float(self))

    def __repr__(self) -> str:
        return repr(self._most)


class _LimitedReader(io.RawIOBase):
    def __init__(self, limited: _LimitedSocket, raw: Any) -> None:
        self._limited = limited
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        self._limited.limit()
        return self._raw.readinto(buffer)

    def fileno(self) -> int:
        descriptor: int = self._raw.fileno()
        return descriptor

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _LimitedSocket:
    """A socket, or a TLS socket, that waits no longer than the thread that uses it may."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._timeout: float | None = socket.gettimeout()
        try:
            self.limit()
        except TimeoutError:
            socket.close()
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def limit(self) -> None:
        left = _seconds_left()
        if left is not None and (self._timeout is None or left < self._timeout):
            self._socket.settimeout(left)
        elif self._socket.gettimeout() != self._timeout:
            self._socket.settimeout(self._timeout)

    def settimeout(self, seconds: Any) -> None:
        self._timeout = None if seconds is None else float(seconds)
        self.limit()

    def makefile(self, mode: str, *_: object, **__: object) -> io.BufferedReader:
        return io.BufferedReader(_LimitedReader(self, self._socket.makefile(mode, buffering=0)))

    def sendall(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), SEND_BYTES):
            self.limit()
            self._socket.sendall(view[start : start + SEND_BYTES])


class _ConnectionLimits:
    """Derived from together with one of urllib3's connections."""

    @property
    def sock(self) -> Any:
        return self.__dict__.get("sock")

    @sock.setter
    def sock(self, socket: Any) -> None:
        is_plain = socket is not None and not isinstance(socket, _LimitedSocket)
        self.__dict__["sock"] = _LimitedSocket(socket) if is_plain else socket

    @property
    def timeout(self) -> Any:
        seconds = self.__dict__.get("timeout")
        if _clock.deadline is None:
            return seconds
        return _TimeLeft(seconds if isinstance(seconds, (int, float)) else None)

    @timeout.setter
    def timeout(self, seconds: Any) -> None:
        self.__dict__["timeout"] = seconds


class _PoolLimits:
    """Derived from together with one of urllib3's pools."""

    pool: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _pools.add(self)

    @property
    def ConnectionCls(self) -> Any:  # noqa: N802  urllib3's name
        return _limited(_ConnectionLimits, super().ConnectionCls)  # type: ignore[misc]

    def urlopen(self, method: str, url: str, *arguments: Any, **options: Any) -> Any:
        response = super().urlopen(method, url, *arguments, **options)  # type: ignore[misc]
        if _clock.deadline is not None and method == "POST" and response.status in _LOST_THE_BODY:
            response.close()
            msg = f"{response.status}: a redirect would lose the rows"
            raise RedirectedError(msg)
        return response


@lru_cache
def _limited(limits: type, kind: type) -> type:
    return type(kind.__name__, (limits, kind), {})  # the same name, because messages quote it


class _LimitedPools(dict[str, Any]):
    """``pool_classes_by_scheme`` of a manager that makes limited connections."""


class _LimitedManagers(dict[str, Any]):
    """``proxy_manager`` of an adapter: limits each manager that is made for a proxy."""

    def __setitem__(self, proxy: str, manager: Any) -> None:
        _limit(manager)
        super().__setitem__(proxy, manager)


def limit_connections(client: Client) -> None:
    """Let :func:`run_within` limit the requests of ``client``, if it is Google's own."""
    for adapter in _adapters(client):
        for manager in _managers(adapter):
            _limit(manager)
        managers = getattr(adapter, "proxy_manager", None)
        if type(managers) is dict:
            adapter.proxy_manager = _LimitedManagers(managers)


def _limit(manager: Any) -> None:
    kinds = getattr(manager, "pool_classes_by_scheme", None)
    if isinstance(kinds, dict) and not isinstance(kinds, _LimitedPools):
        manager.pool_classes_by_scheme = _LimitedPools(
            {scheme: _limited(_PoolLimits, kind) for scheme, kind in kinds.items()}
        )
        _forget_connections(manager)


def _forget_connections(manager: Any) -> Any:
    """Let ``manager`` make new connections; those in use stay with their requests.

    Not by ``clear``, which closes pools that another thread is about to use. Idle connections are
    closed when nobody refers to their pool any more.
    """
    pools = getattr(manager, "pools", None)
    if pools is not None:
        manager.pools = type(pools)()
    return pools


def reconnect(client: Client) -> None:
    """Send the next requests over new connections."""
    for adapter in _adapters(client):
        for manager in _managers(adapter):
            _forget_connections(manager)


def renew_connections(client: Client) -> None:
    """Leave the parent's sockets and locks to the parent: called in the child after a fork."""
    abandon_connections()
    for adapter in _adapters(client):
        _abandoned.extend(map(_forget_connections, _managers(adapter)))
    for session in _sessions(client):
        _renew_locks(session, set())


def abandon_connections() -> None:
    """Take all idle connections from their pools, and keep them, in the child after a fork.

    Hazard: a pool that goes, at the end of the process at the latest, closes what is in its queue,
    whose lock a thread of the parent may have held. So each queue is made anew.
    """
    for pool in list(_pools):
        queue: Any = getattr(pool, "pool", None)  # None in a pool that is closed
        if hasattr(queue, "queue"):
            _abandoned.append(queue.queue)
            type(queue).__init__(queue, queue.maxsize)


def _renew_locks(owner: object, seen: set[int]) -> None:
    """Renew those of the session, its cookies and credentials, and of what they consist of.

    Each answer takes the lock of the cookies. One that a thread of the parent held at the fork
    would stop all senders of the child, except one that happens to get that thread's number.
    """
    seen.add(id(owner))
    attributes = getattr(owner, "__dict__", {})
    for name, value in list(attributes.items()):
        new_lock = _NEW_LOCKS.get(type(value))
        if new_lock is not None:
            attributes[name] = new_lock()
        elif id(value) not in seen and _is_of_the_session(value):
            _renew_locks(value, seen)


def _is_of_the_session(value: object) -> bool:
    return any(kind.__module__.startswith(_SESSION_MODULES) for kind in type(value).__mro__)


def _managers(adapter: Any) -> list[Any]:
    managers = getattr(adapter, "proxy_manager", None)
    proxies = list(managers.values()) if isinstance(managers, dict) else []
    return [getattr(adapter, "poolmanager", None), *proxies]


def _sessions(client: Client) -> Iterator[Any]:
    """Yield the client's session and the one that refreshes its tokens."""
    session_class = getattr(sys.modules.get("requests"), "Session", None)
    if session_class is None:  # not there, or not yet: then the client is not Google's
        return
    session = getattr(client, "_http", None)
    token_session = getattr(getattr(session, "_auth_request", None), "session", None)
    for owner in (session, token_session):
        if isinstance(owner, session_class):
            yield owner


def _adapters(client: Client) -> Iterator[Any]:
    for session in _sessions(client):
        yield from list(session.adapters.values())
