"""What the tricks in the code are worth, each next to the plain way to do the same.

python -m benchmarks.tricks
"""

from __future__ import annotations

import json
import time
import timeit
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import orjson

from benchmarks.events import make_payload
from lorc_eventlog.bigquery.insert_all import encode_request
from lorc_eventlog.events import row as event_row

ROWS = 500


def microseconds(call: Callable[[], object]) -> float:
    """Time ``call``: the best of five tries."""
    count, _ = timeit.Timer(call).autorange()
    return min(timeit.repeat(call, number=count, repeat=5)) / count * 1e6


def main() -> None:
    """Print each pair and its ratio."""
    now = time.time()
    payload = make_payload(0.2)

    def draft() -> event_row.Row:
        return event_row.draft_at(now, "email.received", payload, "gmail", None, "trace", None)

    rows = [event_row.finish(draft()) for _ in range(ROWS)]
    request = {"rows": [{"json": row, "insertId": row["event_id"]} for row in rows]}
    drafted = microseconds(draft)
    finished = microseconds(lambda: event_row.finish(draft()))
    together = microseconds(lambda: event_row.finish_all([draft() for _ in range(ROWS)])) / ROWS
    pairs = {
        "finish a row with others ÷ alone": (together - drafted, finished - drafted),
        "finish a row, in the sender ÷ draft it, in the call": (finished - drafted, drafted),
        "text of the time ÷ by datetime": (
            microseconds(lambda: event_row.text_of(now)),
            microseconds(lambda: datetime.fromtimestamp(now, UTC).isoformat()),
        ),
        "an id ÷ by uuid": (
            microseconds(event_row.new_id),
            microseconds(lambda: str(uuid.uuid4())),
        ),
        f"{ROWS} rows by json.dumps ÷ by orjson": (
            microseconds(lambda: json.dumps(request)),
            microseconds(lambda: encode_request(rows)),
        ),
        "encode a payload and decode the bytes ÷ encode it": (
            microseconds(lambda: orjson.dumps(payload).decode()),
            microseconds(lambda: orjson.dumps(payload)),
        ),
    }
    for what, (one, other) in pairs.items():
        print(f"{what}: {one:,.2f} µs / {other:,.2f} µs = {one / other:.2f}")


if __name__ == "__main__":
    main()
