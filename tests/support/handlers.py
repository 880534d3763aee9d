"""What the tests of the handler share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lorc_eventlog import BigQueryEventHandler

Attach = Callable[..., BigQueryEventHandler]
"""Makes a handler of some options and adds it to a logger."""


def reports(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()
