"""The event that every arm logs, in three sizes."""

from __future__ import annotations

import json
from typing import Any

MESSAGE = "email received"
KILOBYTES = (0.2, 2, 20)

_SENTENCE = 'The patient asks whether the appointment on Tuesday could be moved to "Friday".\n'


def make_payload(kilobytes: float, number: int = 0) -> dict[str, Any]:
    """Make a payload of about so many kilobytes as JSON: half of it text, half of it answers.

    It carries the marker by which the server counts.
    """
    payload: dict[str, Any] = {
        "message_id": f"marker-{number:08}",
        "subject": "Re: your appointment on Tuesday",
        "from": "someone@example.com",
        "to": ["clinic@example.com"],
        "attachments": 2,
        "read": False,
        "size": 18231.5,
    }
    missing = round(kilobytes * 1000) - len(json.dumps(payload))
    if missing > 100:
        payload["body"] = (_SENTENCE * (missing // 2 // len(_SENTENCE) + 1))[: missing // 2]
        payload["answers"] = []
        for index in range(missing // 2 // 52):
            answer = {"question": f"q{index:03}", "answer": index % 5, "seconds": index / 8}
            payload["answers"].append(answer)
    return payload


def make_fields(payload: dict[str, Any]) -> dict[str, Any]:
    """Make what a caller gives as ``extra=`` or to structlog."""
    return {
        "event_type": "email.received",
        "source": "gmail_ingester",
        "correlation_id": "8f14e45f-ceea-467f-a0f1-0d5b1a5e2c3d",
        "subject_id": "patient-4711",
        "payload": payload,
    }
