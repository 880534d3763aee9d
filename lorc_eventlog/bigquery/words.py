"""Says in plain words what urllib3 and requests say in the words of their classes."""

from __future__ import annotations

import re

_POOL = re.compile(r"HTTPS?ConnectionPool\(host='(?P<host>[^']*)', port=(?P<port>\d+)\): ")
_NO_CONNECTION = re.compile(r"Max retries exceeded.*?\[Errno -?\d+\] (?P<why>[^\"')\]]+)")
_NO_ANSWER = re.compile(r"Read timed out\.(?: \(read timeout=(?P<seconds>[\d.]+)\))?")

_CLOSED = "RemoteDisconnected('Remote end closed connection without response')"
_NOT_JSON = "Expecting value: line 1 column 1 (char 0)"


def in_plain_words(said: str) -> str:
    """Return ``said``, plainer if it is one of the failures that every user meets."""
    if said == _NOT_JSON:
        return "the answer is not JSON"
    if _CLOSED in said:
        return "the connection was closed without an answer"
    pool = _POOL.match(said)
    if pool is None:
        return said
    where = f"{pool['host']}:{pool['port']}"
    if no_connection := _NO_CONNECTION.match(said, pool.end()):
        return f"no connection to {where}: {no_connection['why']}"
    if no_answer := _NO_ANSWER.match(said, pool.end()):
        seconds = no_answer["seconds"]
        return f"no answer from {where} " + (
            f"within {float(seconds):.3g} s" if seconds else "in time"
        )
    return said
