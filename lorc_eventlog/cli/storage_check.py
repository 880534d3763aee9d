"""``check --transport grpc``: the way to the table over the Storage Write API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorc_eventlog.bigquery.insert_all import REQUEST_TIMEOUT
from lorc_eventlog.bigquery.table import events_table
from lorc_eventlog.cli.diagnosis import Finding, check_sink, check_variables, where_it_is_from
from lorc_eventlog.cli.output import BAD, GOOD, UNKNOWN
from lorc_eventlog.cli.query import WAIT

if TYPE_CHECKING:
    from lorc_eventlog.bigquery.storage_connection import Endpoint

STEPS: tuple[str, ...] = ("variables", "credentials", "project", "endpoint", "permission", "table")
"""What it looks at, in its order."""

ONCE = "partition"
"""The step that comes with ``--exactly-once``, after the variables."""

PROXY = (
    "let port 443 of that host through, with HTTP/2, or name a proxy that does in https_proxy; "
    "BIGQUERY_STORAGE_EMULATOR_HOST names another endpoint"
)


NOT_REACHED = re.compile(r"failed to connect|[Nn]ame resolution|DNS|[Hh]andshake|[Ss]ocket closed")
"""gRPC's words when nothing that speaks gRPC is there."""


def diagnose(*, exactly_once: bool) -> Iterator[Finding]:
    """Look at one step after the other, for as long as it makes sense."""
    yield from check_sink()
    variables = check_variables()
    yield variables
    if variables.mark == BAD:
        return
    table = events_table()
    if exactly_once:
        yield check_whole(table)
    # Only now, because it loads gRPC.
    from lorc_eventlog.bigquery.failures import why_no_client
    from lorc_eventlog.bigquery.storage_connection import Endpoint

    try:
        endpoint = Endpoint()
        endpoint.metadata()
    except Exception as error:  # noqa: BLE001  google-auth raises anything for a file that is no key
        failure = why_no_client(error)
        is_project = "Project was not passed" in failure.reason.text
        step = "project" if is_project else "credentials"
        yield Finding(step, BAD, failure.reason.told(()), failure.what_to_do)
        return
    emulator = f"none needed for the emulator at {endpoint.address}"
    found = emulator if endpoint.is_emulator else "Google takes them"
    yield Finding("credentials", GOOD, found)
    source = where_it_is_from(endpoint.project, is_emulator=endpoint.is_emulator)
    yield Finding("project", GOOD, f"{endpoint.project}, {source}")
    yield from check_stream(endpoint, table)


def check_whole(table: str) -> Finding:
    """Whether a committed stream can be made for the table."""
    from lorc_eventlog.shipping.requirements import UnfitError, check_table

    try:
        check_table(table)
    except UnfitError as error:
        return Finding(ONCE, BAD, str(error), error.to_do)
    return Finding(ONCE, GOOD, f"{table} is a whole table")


def check_spool(path: Path) -> Finding:
    """Whether the directory is on a disk of this machine."""
    from lorc_eventlog.shipping.requirements import UnfitError, check_disk
    from lorc_eventlog.spool.directory import Directory

    try:
        directory = Directory(path.absolute(), access=None, create=False)
    except OSError as error:
        return Finding("disk", UNKNOWN, f"not checked: {path}: {error.strerror}")
    try:
        check_disk(directory)
    except UnfitError as error:
        return Finding("disk", BAD, str(error), error.to_do)
    finally:
        directory.close()
    return Finding("disk", GOOD, f"{path} is on a disk of this machine")


def check_stream(endpoint: Endpoint, table: str) -> Iterator[Finding]:
    """Whether the account may write to the table: asks for the stream that every table has."""
    import grpc

    from lorc_eventlog.bigquery.storage_connection import call
    from lorc_eventlog.bigquery.storage_failures import failure_of_call
    from lorc_eventlog.bigquery.storage_messages import GetWriteStreamRequest, WriteStream
    from lorc_eventlog.bigquery.storage_write import default_stream

    stream = default_stream(endpoint.project, table.partition("$")[0])
    request = GetWriteStreamRequest(name=stream)
    answers = Finding("endpoint", GOOD, f"{endpoint.address} answers")
    try:
        call(endpoint, "GetWriteStream", request, WriteStream, REQUEST_TIMEOUT, name=stream)
    except grpc.RpcError as error:
        failure = failure_of_call(error, timeout=REQUEST_TIMEOUT)
        found, to_do, code = failure.reason.told(()), failure.what_to_do, error.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            found = f"{endpoint.address} does not answer within {REQUEST_TIMEOUT:.0f} s"
            yield Finding("endpoint", BAD, found, PROXY)
            return
        if code is grpc.StatusCode.UNAVAILABLE and NOT_REACHED.search(found):
            yield Finding("endpoint", BAD, found, PROXY)
            return
        yield answers
        if code is grpc.StatusCode.NOT_FOUND:
            yield Finding("table", BAD, found, to_do)
        elif code is grpc.StatusCode.UNIMPLEMENTED:
            yield Finding("permission", UNKNOWN, "not checked: the endpoint does not say")
        else:
            yield Finding("permission", BAD, found, to_do or WAIT)
        return
    yield answers
    yield Finding("permission", GOOD, "the account may append rows (bigquery.tables.updateData)")
    name = stream.partition("/streams/")[0]
    yield Finding("table", GOOD, f"{name}; `lorc-eventlog check` looks at its columns")
