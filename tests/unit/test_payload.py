"""What each Python value becomes in BigQuery: docs/payload.md, line by line, and for any value."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import struct
import subprocess
import sys
import threading
import uuid
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from logging import Logger
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import Mock

import numpy as np
import orjson
import pytest
import uuid_utils
from google.cloud import bigquery
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lorc_eventlog import BigQueryEventHandler
from lorc_eventlog.events.payload import MAX_PAYLOAD_BYTES, encode_payload, well_formed, wire_size
from scripted_bigquery import ScriptedBigQuery

PAGE = Path(__file__).parent.parent.parent / "docs" / "payload.md"
SECRET = "Ada Lovelace, born 1815"


def read_page() -> tuple[dict[str, Any], list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """Run the page's Python; give its names, and the lines of its two tables."""
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "app"}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, PAGE.name, "exec", dont_inherit=True), names)
    becomes, refused = text.split("## What is refused")
    line = re.compile(r"^\| (.+?) \| `(.+)` \| `(.+)` \|$", re.MULTILINE)
    return names, line.findall(becomes), line.findall(refused)


NAMES, BECOMES, REFUSED = read_page()


def expected(json_text: str) -> re.Pattern[str]:
    """The page's JSON as a pattern, in which an ellipsis stands for any text."""
    return re.compile(re.escape(json_text).replace("…", ".*"))


def nested(levels: int, innermost: object = 0) -> dict[str, Any]:
    """A payload with so many lists and dicts in one another, itself counted."""
    value: Any = innermost
    for level in range(levels - 1):
        value = [value] if level % 2 else {"v": value}
    return {"v": value}


def slowly(value: object) -> str:
    """The JSON of ``value`` by the path for what orjson refuses: here a key with a surrogate."""
    text = encode_payload({"v": value, "\ud800": 0})
    assert text.startswith('{"v":')
    assert text.endswith(',"\ufffd":0}')
    return text[len('{"v":') : -len(',"\ufffd":0}')]


def fast(value: object) -> str:
    """The JSON of ``value`` as it is by itself."""
    text = encode_payload({"v": value})
    return text[len('{"v":') : -1]


def loads_strictly(text: str) -> Any:
    """Parse JSON as its standard has it, with neither NaN nor a key twice."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=no_key_twice)


class TestThePage:
    def test_every_line_of_its_tables_is_read(self) -> None:
        lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
        headings_and_rules = 4
        assert len(BECOMES) + len(REFUSED) == len(lines) - headings_and_rules
        assert len(BECOMES) > 30
        assert len(REFUSED) >= 5

    @pytest.mark.parametrize("path", [fast, slowly])
    @pytest.mark.parametrize(("what", "expression", "json_text"), BECOMES)
    def test_a_value_becomes_what_it_says(
        self, what: str, expression: str, json_text: str, path: Callable[[object], str]
    ) -> None:
        becomes = path(eval(expression, NAMES))
        assert expected(json_text).fullmatch(becomes), what
        loads_strictly(becomes)

    @pytest.mark.parametrize(("what", "expression", "message"), REFUSED)
    def test_what_it_calls_refused_is_refused(
        self, what: str, expression: str, message: str
    ) -> None:
        with pytest.raises(ValueError, match=re.escape(message)) as refusal:
            encode_payload(eval(expression, NAMES))
        assert str(refusal.value) == message, what


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

    def test_a_subclass_of_datetime_is_a_datetime(self) -> None:
        class Moment(datetime):
            pass

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

    def test_no_value_makes_numpy_be_imported(self) -> None:
        script = (
            "import sys; from lorc_eventlog.events.payload import encode_payload;"
            "encode_payload({'v': [object(), {1}, b'a'], 1: 2}); print('numpy' in sys.modules)"
        )
        answer = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert answer.stdout.strip() == "False"

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
        if isinstance(payload, Mapping):
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


def log_the_page(logger: Logger) -> dict[str, re.Pattern[str]]:
    """Log one event for each line of the page; give the JSON to expect by event_type."""
    for number, (_, expression, _) in enumerate(BECOMES):
        extra = {"event_type": f"line.{number}", "payload": {"v": eval(expression, NAMES)}}
        logger.info("odd", extra=extra)
    return {
        f"line.{number}": expected(f'{{"v":{json_text}}}')
        for number, (_, _, json_text) in enumerate(BECOMES)
    }


@pytest.fixture
def handler() -> Iterator[Callable[[bigquery.Client], tuple[Logger, BigQueryEventHandler]]]:
    """Make a logger with a handler, which is closed afterwards."""
    made: list[BigQueryEventHandler] = []

    def make(client: bigquery.Client) -> tuple[Logger, BigQueryEventHandler]:
        made.append(BigQueryEventHandler(client, source="tests"))
        logger = Logger(f"test.{uuid.uuid4().hex}")  # noqa: LOG001  forgotten after the test
        logger.addHandler(made[-1])
        return logger, made[-1]

    yield make
    for each in made:
        each.close()


class TestThroughTheHandler:
    def test_every_value_of_the_page_goes_over_the_wire_as_it_says(
        self, scripted: ScriptedBigQuery, client: bigquery.Client, handler: Any
    ) -> None:
        logger, made = handler(client)
        lines = log_the_page(logger)
        assert made.flush(20)
        assert {row["event_type"] for row in scripted.rows} == set(lines)
        for row in scripted.rows:
            assert lines[row["event_type"]].fullmatch(row["payload"])

    def test_every_value_of_the_page_is_in_bigquery_as_it_says(
        self, query: Any, emulator_client: bigquery.Client, handler: Any
    ) -> None:
        logger, made = handler(emulator_client)
        lines = log_the_page(logger)
        assert made.flush(60)
        rows = query("SELECT event_type, payload, JSON_TYPE(payload) AS kind FROM events")
        assert {row["event_type"] for row in rows} == set(lines)
        for row in rows:
            assert row["kind"] == "object"
            stored = orjson.dumps(row["payload"]).decode()
            assert lines[row["event_type"]].fullmatch(stored)

    @pytest.mark.parametrize(("what", "expression", "message"), REFUSED)
    def test_a_refused_payload_is_reported_and_its_neighbours_arrive(
        self,
        what: str,
        expression: str,
        message: str,
        scripted: ScriptedBigQuery,
        client: bigquery.Client,
        handler: Any,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        logger, made = handler(client)
        for event_type, payload in (
            ("before", {}),
            ("bad", eval(expression, NAMES)),
            ("after", {}),
        ):
            logger.info("odd", extra={"event_type": event_type, "payload": payload})
        assert made.flush(20), what
        assert [row["event_type"] for row in scripted.rows] == ["before", "after"]
        assert capsys.readouterr().err.count(message) == 1
