"""Any value that Python has becomes JSON, or is refused; and JSON comes back as it was."""

from __future__ import annotations

import json
import math
import struct
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lorc_eventlog.events.payload import encode_payload
from payload_page import NAMES, SECRET, fast, loads_strictly, slowly


def failing_class(*methods: str) -> type:
    """A class whose objects raise the secret from all of ``methods``."""

    def fail(*_: object, **__: object) -> Any:
        raise LookupError(SECRET)

    return type("Failing", (), dict.fromkeys(methods, fail))


TEXTS = st.text(st.characters(exclude_categories=()))  # with lone surrogates
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.decimals(),
    st.complex_numbers(),
    TEXTS,
    st.binary(),
    st.binary().map(bytearray),
    st.binary().map(lambda data: memoryview(data)),  # noqa: PLW0108  for mypy
    st.datetimes(timezones=st.none() | st.timezones()),
    st.dates(),
    st.times(timezones=st.none() | st.timezones()),
    st.timedeltas(),
    st.uuids(),
    st.sampled_from([*NAMES["Channel"], *NAMES["Priority"], *NAMES["Access"]]),
    TEXTS.map(NAMES["Name"]),
    st.floats().map(NAMES["Metres"]),
    TEXTS.map(PurePosixPath),
    st.floats(width=32).map(np.float32),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.integers(-(2**40), 2**40).map(lambda number: np.datetime64(number, "s")),
    st.sampled_from([object(), int, ValueError(SECRET), range(3), math]),
    st.builds(NAMES["Broken"]),
    st.lists(
        st.sampled_from(["__repr__", "__str__", "__iter__", "__len__", "__getattr__", "__eq__"]),
        unique=True,
    ).map(lambda methods: failing_class(*methods, "__hash__")()),
)
HASHABLE = SCALARS.filter(
    # numpy makes an array of a comparison with a memoryview, and no dict holds both.
    lambda value: not fails(hash, value) and not isinstance(value, memoryview)
)


def fails(function: Callable[[Any], object], value: object) -> bool:
    """Whether ``function`` of ``value`` raises."""
    try:
        function(value)
    except Exception:  # noqa: BLE001  of any kind
        return True
    return False


def containers_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Containers of all kinds."""
    lists = st.lists(values, max_size=4)
    return st.one_of(
        lists,
        lists.map(tuple),
        lists.map(deque),
        lists.map(lambda items: NAMES["Point"](items, None)),
        values.map(NAMES["Order"]),
        st.dictionaries(HASHABLE, values, max_size=4),
        st.dictionaries(HASHABLE, values, max_size=4).map(UserDict),
        st.dictionaries(TEXTS, values, max_size=4).map(OrderedDict),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
        st.lists(st.floats(width=16), max_size=4).map(lambda items: np.array(items, "f2")),
    )


VALUES = st.recursive(SCALARS, containers_of, max_leaves=12)
SLOW_TO_MAKE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class TestAnyValue:
    @SLOW_TO_MAKE
    @given(st.dictionaries(HASHABLE, VALUES, max_size=4) | VALUES)
    def test_it_becomes_json_or_is_refused_without_being_quoted(self, payload: Any) -> None:
        if isinstance(payload, (Mapping, NAMES["Order"])):
            text = encode_payload(payload)
            assert isinstance(loads_strictly(text), dict)
            text.encode()
        else:
            with pytest.raises(ValueError, match=r"^payload must be a mapping .*, not \w+$"):
                encode_payload(payload)

    @SLOW_TO_MAKE
    @given(VALUES)
    @example(datetime(1890, 1, 1, tzinfo=timezone(timedelta(seconds=561))))
    @example({"": []})
    def test_the_slow_path_gives_the_same_json(self, value: Any) -> None:
        assert slowly(value) == fast(value)

    @SLOW_TO_MAKE
    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**64 - 1)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda values: st.lists(values) | st.dictionaries(st.text(), values),
        )
    )
    def test_plain_json_comes_back_exactly(self, value: Any) -> None:
        for path in (fast, slowly):
            back = loads_strictly(path(value))
            assert repr(back) == repr(value)

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_a_float_keeps_its_every_bit(self, number: float) -> None:
        assert struct.pack("d", json.loads(fast(number))) == struct.pack("d", number)
