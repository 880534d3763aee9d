"""What urllib3 and requests say, in plain words."""

from __future__ import annotations

import pytest

from lorc_eventlog.bigquery.words import in_plain_words

POOL = "HTTPSConnectionPool(host='bigquery.example', port=443): "
REFUSED = (
    "Max retries exceeded (Caused by NewConnectionError(\"HTTPSConnection(host='bigquery.example', "
    'port=443): Failed to establish a new connection: [Errno 111] Connection refused"))'
)


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        (POOL + REFUSED, "no connection to bigquery.example:443: Connection refused"),
        (
            POOL + "Read timed out. (read timeout=9.99999)",
            "no answer from bigquery.example:443 within 10 s",
        ),
        (POOL + "Read timed out.", "no answer from bigquery.example:443 in time"),
        (POOL + "something else", POOL + "something else"),
        (
            (
                "('Connection aborted.', "
                "RemoteDisconnected('Remote end closed connection without response'))"
            ),
            "the connection was closed without an answer",
        ),
        ("Expecting value: line 1 column 1 (char 0)", "the answer is not JSON"),
        ("Not found: Table p:d.t", "Not found: Table p:d.t"),
        ("", ""),
    ],
)
def test_what_everybody_meets_is_said_in_plain_words(said: str, plain: str) -> None:
    assert in_plain_words(said) == plain
