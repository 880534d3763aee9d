"""Payloads of any kind, by themselves: nesting, cycles, size and odd values."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import threading
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import uuid_utils

from lorc_eventlog.events.payload import MAX_PAYLOAD_BYTES, encode_payload, wire_size
from lorc_eventlog.events.text import well_formed
from payload_page import NAMES, SECRET, expected, fast, loads_strictly, slowly


def nested(levels: int, innermost: object = 0) -> dict[str, Any]:
    """A payload with so many lists and dicts in one another, itself counted."""
    value: Any = innermost
    for level in range(levels - 1):
        value = [value] if level % 2 else {"v": value}
    return {"v": value}


class TestTheWholePayload:
    def test_it_is_compact_json_in_the_order_of_the_dict(self) -> None:
        assert encode_payload({"b": 1, "a": [True, None, "é"]}) == '{"b":1,"a":[true,null,"é"]}'

    @pytest.mark.parametrize(
        "payload",
        [OrderedDict(a=1), UserDict(a=1), type("Lying", (dict,), {"keys": None})(a=1)],
        ids=["OrderedDict", "UserDict", "a subclass of dict that hides its keys"],
    )
    def test_it_may_be_any_mapping(self, payload: Any) -> None:
        assert encode_payload(payload) == '{"a":1}'

    def test_an_empty_one_is_an_empty_object(self) -> None:
        assert encode_payload({}) == "{}"

    @pytest.mark.parametrize(
        "payload",
        [None, [], "text", 1, Mock(), dataclasses.field],
        ids=["None", "list", "str", "int", "Mock", "function"],
    )
    def test_anything_else_is_refused_without_being_quoted(self, payload: Any) -> None:
        with pytest.raises(ValueError, match=r"^payload must be a mapping") as refusal:
            encode_payload(payload)
        assert type(payload).__name__ in str(refusal.value)

    def test_one_that_only_pretends_to_be_a_dict_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^payload is a Mock that cannot be read$"):
            encode_payload(Mock(spec=dict))


class TestNesting:
    @pytest.mark.parametrize("levels", [1, 253, 254, 255, 256, 300, 500])
    def test_500_levels_are_taken(self, levels: int) -> None:
        text = encode_payload(nested(levels))
        assert text.count("[") + text.count("{") == levels
        assert text.count("]") + text.count("}") == levels

    @pytest.mark.parametrize("levels", [501, 502, 5_000, 200_000])
    def test_501_are_refused(self, levels: int) -> None:
        payload = nested(levels, SECRET)
        try:
            with pytest.raises(ValueError, match="nested too deeply") as refusal:
                encode_payload(payload)
            assert SECRET not in str(refusal.value)
        finally:
            take_apart(payload)

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda inner: NAMES["Point"](inner, None),
            lambda inner: UserDict(v=inner),
            lambda inner: deque([inner]),
            lambda inner: frozenset([inner]),
            lambda inner: NAMES["Order"](inner, None),
        ],
        ids=["named tuple", "mapping", "deque", "frozenset", "dataclass"],
    )
    def test_every_kind_of_container_counts(self, wrap: Callable[[Any], Any]) -> None:
        value: Any = 0
        for _ in range(499):
            value = wrap(value)
        assert len(encode_payload({"v": value})) > 499
        with pytest.raises(ValueError, match="nested too deeply"):
            encode_payload({"v": [value]})

    def test_a_mapping_without_end_is_refused(self) -> None:
        class Endless(UserDict[str, Any]):
            def __getitem__(self, key: str) -> Any:
                return Endless(v=0)

        with pytest.raises(ValueError, match="nested too deeply"):
            encode_payload({"v": Endless(v=0)})

    def test_it_needs_no_room_on_a_stack_that_is_deep_already(self) -> None:
        def call_deep_down(levels: int) -> str:
            return call_deep_down(levels - 1) if levels else encode_payload(nested(500, "\ud800"))

        depth = 0
        frame = sys._getframe()
        while frame.f_back:
            frame, depth = frame.f_back, depth + 1
        text = call_deep_down(sys.getrecursionlimit() - depth - 40)
        assert text.count("[") + text.count("{") == 500


def take_apart(value: Any) -> None:
    """Let go of a deep value level by level: Python's own way would need as deep a stack."""
    while isinstance(value, (dict, list)) and value:
        value = value.pop("v") if isinstance(value, dict) else value.pop()


def cycles() -> Iterator[Any]:
    """Give containers of every kind that contain themselves."""
    a_list: list[Any] = [SECRET]
    a_list.append(a_list)
    yield a_list
    a_dict: dict[Any, Any] = {SECRET: 1}
    a_dict["self"] = {"inner": [a_dict]}
    yield a_dict
    a_deque: deque[Any] = deque([SECRET])
    a_deque.append((a_deque,))
    yield a_deque
    order = NAMES["Order"](SECRET)
    order.due = {"order": order}
    yield order
    an_array = np.array([None], dtype=object)
    an_array[0] = an_array
    yield an_array
    in_a_mapping: UserDict[Any, Any] = UserDict(secret=SECRET)
    in_a_mapping["self"] = in_a_mapping
    yield in_a_mapping


class TestCycles:
    @pytest.mark.parametrize("cycle", list(cycles()), ids=lambda cycle: type(cycle).__name__)
    def test_every_kind_is_refused_by_its_name(self, cycle: Any) -> None:
        with pytest.raises(ValueError, match=r"^payload holds a cycle: [a-z ]+$"):
            encode_payload({"v": cycle})

    def test_a_container_that_only_occurs_twice_is_none(self) -> None:
        twice = [1]
        assert slowly([twice, twice, {"v": twice}]) == '[[1],[1],{"v":[1]}]'


class TestSize:
    @pytest.mark.parametrize(
        ("character", "size"), [("a", 1), ('"', 4), ("\x7f", 6), ("é", 6), ("€", 6), ("🙂", 12)]
    )
    def test_the_limit_is_in_bytes_of_the_request(self, character: str, size: int) -> None:
        around_the_text = len(json.dumps('{"t":""}'))
        fits = (MAX_PAYLOAD_BYTES - around_the_text) // size
        text = encode_payload({"t": character * fits})
        assert len(json.dumps({"payload": text})) <= 10_000_000
        assert wire_size(text) == fits * size + around_the_text
        with pytest.raises(ValueError, match=r"^payload takes [0-9,]+ bytes in a request") as error:
            encode_payload({"t": character * (fits + 1)})
        assert len(str(error.value)) < 100


class TestOddValues:
    def test_a_broken_object_costs_no_more_than_itself(self) -> None:
        def fail(*_: object) -> Any:
            raise RuntimeError(SECRET)

        class Subclass(Decimal):
            __str__ = __repr__ = fail

        class Zone(tzinfo):
            utcoffset = tzname = dst = fail

        class Odd(UserDict[str, int]):
            __iter__ = __repr__ = fail

        class Liar:
            __class__ = property(fail)
            __repr__ = __getattr__ = fail

        @dataclasses.dataclass
        class Half:
            a: int
            b = property(fail)

        Half.__dataclass_fields__["b"] = Half.__dataclass_fields__["a"]
        released = memoryview(b"a")
        released.release()
        odd = [Subclass(1), datetime(2025, 1, 2, tzinfo=Zone()), Odd(a=1), Liar(), released]
        texts = loads_strictly(fast([*odd, Half(1), 7]))
        assert texts.pop() == 7
        assert all(isinstance(text, str) or text == {"a": 1} for text in texts)
        assert SECRET not in str(texts)

    def test_mocks_and_other_pretenders_become_their_repr(self) -> None:
        for spec in (dict, list, str, int, float, tuple, set, datetime, Decimal, bytes, Enum):
            assert "Mock" in loads_strictly(fast(Mock(spec=spec)))

    def test_a_generator_is_not_consumed(self) -> None:
        generator = (number for number in range(3))
        assert "<generator object" in fast(generator)
        assert list(generator) == [0, 1, 2]

    def test_a_dataclass_shows_its_fields_and_nothing_that_was_cached_or_added(self) -> None:
        @dataclasses.dataclass
        class Thing:
            a: int
            b: int = dataclasses.field(init=False, default=2)
            never_set: int = dataclasses.field(init=False)

            @functools.cached_property
            def doubled(self) -> int:
                return self.a * 2

        thing = Thing(1)
        assert thing.doubled == 2
        thing.added = 3  # type: ignore[attr-defined]
        assert fast(thing) == slowly(thing) == '{"a":1,"b":2}'

    def test_a_path_with_bytes_that_are_no_utf8_is_kept_as_far_as_it_is_text(self) -> None:
        assert fast(PurePosixPath("/in/\udcff.csv")) == '"/in/\ufffd.csv"'

    def test_a_memoryview_with_gaps_is_taken_as_what_it_shows(self) -> None:
        assert fast(memoryview(b"abcd")[::2]) == fast(b"ac")

    def test_a_subclass_of_a_time_is_one(self) -> None:
        class Span(timedelta):
            pass

        class Moment(datetime):
            pass

        assert fast(Span(seconds=90)) == "90.0"

        moment = Moment(2025, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=-3)))
        assert fast(moment) == '"2025-01-02T03:04:05.000006-03:00"'

    def test_the_ids_of_uuid_utils_are_ids(self) -> None:
        made = uuid_utils.uuid7()
        assert fast(made) == slowly(made) == f'"{made}"'

    def test_an_enum_of_odd_values_shows_them(self) -> None:
        class Inner(Enum):
            A = Decimal("1.5")

        class Outer(Enum):
            A = Inner.A
            B = frozenset({2, 1})

        assert fast(Outer.A) == slowly(Outer.A) == '"1.5"'
        assert fast(Outer.B) == slowly(Outer.B) == "[1,2]"

    def test_keys_of_odd_types_have_the_text_of_their_values(self) -> None:
        keys = {
            NAMES["Name"]("Ada"): 1,
            2**64: 2,
            1.5: 3,
            True: 4,
            float("nan"): 5,
            b"\x00": 6,
            np.int64(7): 7,
            NAMES["Access"].READ: 8,
            "a\udfff": 9,
            frozenset({1}): 10,
            NAMES["Broken"](): 11,
        }
        assert expected(
            '{"Ada":1,"18446744073709551616":2,"1.5":3,"true":4,"null":5,"AA==":6,"7":7,"1":8,'
            '"a\ufffd":9,"frozenset({1})":10,"<app.Broken object at 0x…>":11}'
        ).fullmatch(encode_payload(keys))

    def test_numpy_arrays_of_all_kinds_are_arrays(self) -> None:
        arrays = {
            "big-endian": np.array([1], dtype=">i4"),
            "half": np.array([0.5, np.nan], dtype="f2"),
            "text": np.array(["é"]),
            "objects": np.array([Decimal(1), None]),
            "masked": np.ma.masked_array([1, 2], mask=[False, True]),
            "dates": np.array([["2025-11-18"], ["NaT"]], dtype="datetime64[ns]"),
            "records": np.array([(1, 2.5)], dtype="i4,f8").view(np.recarray),
            "long": np.array([1.5], dtype=np.longdouble),
            "complex": np.array([1j]),
            "empty": np.zeros((2, 0)),
            "no dimension": np.array("2025-11-18", dtype="datetime64[D]"),
            "bytes": np.void(b"\x00"),
        }
        assert loads_strictly(fast(arrays)) == {
            "big-endian": [1],
            "half": [0.5, None],
            "text": ["é"],
            "objects": ["1", None],
            "masked": [1, None],
            "dates": [["2025-11-18T00:00:00.000000000"], [None]],
            "records": [[1, 2.5]],
            "long": ["1.5"],
            "complex": ["1j"],
            "empty": [[], []],
            "no dimension": "2025-11-18",
            "bytes": "AA==",
        }

    def test_the_nulls_of_pandas_are_null(self) -> None:
        class NaTType(datetime):
            """As in pandas, which is too large to be installed for every test."""

        NaTType.__module__ = "pandas.api.typing"
        assert fast(NaTType(2025, 1, 2)) == slowly(NaTType(2025, 1, 2)) == "null"

    @pytest.mark.parametrize(
        ("text", "becomes"),
        [
            ("\ud800a", "\ufffda"),
            ("a\udfff\ud800", "a\ufffd\ufffd"),
            ("\ud83d\ude00", "\U0001f600"),
            ("\ufeffé", "\ufeffé"),
            ("plain", "plain"),
        ],
        ids=ascii,
    )
    def test_surrogates_are_joined_or_replaced(self, text: str, becomes: str) -> None:
        assert well_formed(text) == becomes

    @pytest.mark.parametrize(
        ("offset", "becomes"),
        [
            (timedelta(minutes=9, seconds=21), '"1890-01-01T00:00:00+00:09:21"'),
            (None, '"1890-01-01T00:00:00"'),
        ],
        ids=["offset with seconds", "no offset"],
    )
    def test_an_odd_time_zone_is_taken_at_its_word(
        self, offset: timedelta | None, becomes: str
    ) -> None:
        class Zone(tzinfo):
            def utcoffset(self, _: datetime | None, /) -> timedelta | None:
                return offset

            tzname = dst = None  # type: ignore[assignment]

        assert fast(datetime(1890, 1, 1, tzinfo=Zone())) == becomes

    def test_a_payload_that_changes_itself_in_a_repr_is_encoded(self) -> None:
        class Emptying:
            def __repr__(self) -> str:
                payload["list"].clear()
                payload.clear()
                return "emptied"

        payload: dict[str, Any] = {"list": [Emptying(), *map(str, range(1000))], "more": 1}
        everything = loads_strictly(encode_payload(payload))
        assert everything == {"list": ["emptied", *map(str, range(1000))], "more": 1}

    def test_a_keyboard_interrupt_is_not_taken_for_a_bad_value(self) -> None:
        class Interrupted:
            def __repr__(self) -> str:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            encode_payload({"v": Interrupted()})

    def test_a_payload_that_another_thread_changes_meanwhile_is_encoded(self) -> None:
        shared: dict[Any, Any] = {0: [object()]}
        done = threading.Event()

        def change() -> None:
            number = 0
            while not done.is_set():
                number += 1
                shared[number % 50] = [number]
                shared.pop((number + 25) % 50, None)

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(300):
                loads_strictly(encode_payload(shared))
        finally:
            done.set()
            thread.join()
