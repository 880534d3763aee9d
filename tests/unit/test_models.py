"""Payloads that are objects of other libraries: docs/reference/payload.md has what each becomes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import attrs
import httpx
import msgspec
import pydantic
import pytest
import starlette.datastructures
import werkzeug.datastructures as werkzeug
from multidict import CIMultiDict, MultiDict, MultiDictProxy
from urllib3._collections import HTTPHeaderDict

from lorc_eventlog import (
    BigQueryEventHandler,
    BigQueryEventProcessor,
    EventWriter,
    build_envelope,
    emit,
)
from lorc_eventlog.events.payload import encode_payload
from lorc_eventlog.testing import capture_events

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of Python 3.14
    import pydantic.v1 as pydantic_1

SECRET = "Ada Lovelace, born 1815"


class Model(pydantic.BaseModel):
    a: int
    tags: Any = None


class OldModel(pydantic_1.BaseModel):
    a: int
    tags: Any = None


@attrs.define
class Attrs:
    a: int
    tags: Any = None


class Struct(msgspec.Struct):
    a: int
    tags: Any = None


@dataclass
class Data:
    a: int
    tags: Any = None


@pydantic.dataclasses.dataclass
class PydanticData:
    a: int
    tags: Any = None


KINDS = [Model, OldModel, Attrs, Struct, Data, PydanticData]
each_kind = pytest.mark.parametrize("kind", KINDS)


def decoded(payload: Any) -> Any:
    return json.loads(encode_payload(payload))


class TestAPayloadItself:
    @each_kind
    def test_an_envelope_holds_its_fields_as_a_dict(self, kind: Callable[..., Any]) -> None:
        payload = kind(a=1, tags=["x"])
        envelope = build_envelope(event_type="a.b", source="s", payload=payload)
        assert type(envelope["payload"]) is dict
        assert envelope["payload"] == {"a": 1, "tags": ["x"]}

    @each_kind
    def test_every_way_to_hand_over_an_event_takes_it(self, kind: Callable[..., Any]) -> None:
        payload = kind(a=1, tags=kind(a=2))
        fields = {"event_type": "a.b", "source": "s", "payload": payload}
        logger = logging.Logger("application")  # noqa: LOG001  nobody else's
        with capture_events() as events:
            logger.addHandler(BigQueryEventHandler())
            logger.info("happened", extra=fields)
            BigQueryEventProcessor()(None, "info", dict(fields))
            writer = EventWriter()
            writer.emit("a.b", payload, source="s")
            envelope = build_envelope(event_type="a.b", source="s", payload={})
            writer.submit({**envelope, "payload": payload})
            emit("a.b", payload, source="s", bq_client=None)  # type: ignore[arg-type]
        expected = {"a": 1, "tags": {"a": 2, "tags": None}}
        assert [event["payload"] for event in events] == [expected] * 5

    def test_a_class_instead_of_an_object_is_refused(self) -> None:
        for kind in (Model, OldModel, Attrs, Data):
            with pytest.raises(ValueError, match=r"^payload must be a mapping \(a dict\), not "):
                encode_payload(kind)

    def test_a_root_model_of_a_dict_is_one(self) -> None:
        class Scores(pydantic.RootModel[dict[str, int]]): ...

        assert decoded(Scores({"a": 1})) == {"a": 1}

    def test_the_object_may_change_afterwards(self) -> None:
        payload = Model(a=1, tags=[1])
        with capture_events() as events:
            EventWriter().emit("a.b", payload, source="s")
            payload.tags.append(2)
        assert events[0]["payload"] == {"a": 1, "tags": [1]}


class TestInsideAPayload:
    @each_kind
    def test_it_may_be_anywhere(self, kind: Callable[..., Any]) -> None:
        inner = kind(a=1)
        becomes = {"a": 1, "tags": None}
        assert decoded({"list": [inner], "dict": {"key": inner}, "tuple": (inner,)}) == {
            "list": [becomes],
            "dict": {"key": becomes},
            "tuple": [becomes],
        }

    @pytest.mark.parametrize("outer", KINDS)
    @each_kind
    def test_kinds_may_hold_one_another(
        self, outer: Callable[..., Any], kind: Callable[..., Any]
    ) -> None:
        inner = {"a": 2, "tags": None}
        assert decoded(outer(a=1, tags=[kind(a=2)])) == {"a": 1, "tags": [inner]}

    @each_kind
    def test_a_field_that_is_not_json_costs_no_more_than_itself(
        self, kind: Callable[..., Any]
    ) -> None:
        odd = kind(a=1, tags=[object(), b"\xff", "\ud800", 2**70, float("nan")])
        [text, *others] = decoded({"v": odd})["v"]["tags"]
        assert "object object at" in text
        assert others == ["/w==", "\ufffd", str(2**70), None]
        assert decoded(odd)["a"] == 1

    @each_kind
    def test_a_cycle_is_refused_without_being_quoted(self, kind: Callable[..., Any]) -> None:
        cycle = kind(a=1, tags=[SECRET])
        cycle.tags.append(cycle)
        for payload in (cycle, {"v": cycle}):
            with pytest.raises(ValueError, match=r"^payload holds a cycle: [a-z ]+$"):
                encode_payload(payload)

    @pytest.mark.parametrize("kind", [Model, Attrs, Struct, Data, PydanticData])
    def test_its_levels_count(self, kind: Callable[..., Any]) -> None:
        value: Any = 0
        for _ in range(500):
            value = kind(a=1, tags=value)
        assert encode_payload(value).count("{") == 500
        with pytest.raises(ValueError, match=r"^payload is nested too deeply"):
            encode_payload({"v": value})

    def test_a_class_is_told_by_its_repr(self) -> None:
        for kind in (Model, OldModel, Attrs, Struct, Data):
            assert decoded({"v": kind}) == {"v": repr(kind)}


class TestSerialisersOfOthers:
    """What a model's own code does must not cost the event, nor tell what the model hides."""

    def test_one_that_raises_leaves_the_fields_that_are_not_excluded(self) -> None:
        class Failing(pydantic.BaseModel):
            a: int
            hidden: str = pydantic.Field(default=SECRET, exclude=True)
            token: pydantic.SecretStr = pydantic.SecretStr(SECRET)

            @pydantic.field_serializer("a")
            def fail(self, value: int) -> int:
                raise RuntimeError(value)

        becomes = {"a": 1, "token": "SecretStr('**********')"}
        assert decoded(Failing(a=1)) == becomes
        assert decoded({"v": [Failing(a=1)]}) == {"v": [becomes]}

    def test_one_of_version_1_that_raises_does_so_too(self) -> None:
        class Failing(pydantic_1.BaseModel):
            a: int
            hidden: str = pydantic_1.Field(default=SECRET, exclude=True)

            def dict(self, **_: Any) -> Any:
                raise RuntimeError

            json = dict  # noqa: A003

        assert decoded(Failing(a=1)) == {"a": 1}
        assert decoded({"v": Failing(a=1)}) == {"v": {"a": 1}}

    def test_one_of_version_1_may_say_what_is_json(self) -> None:
        class Custom(pydantic_1.BaseModel):
            a: complex

            class Config:
                arbitrary_types_allowed = True
                json_encoders = {complex: abs}  # noqa: RUF012  as pydantic has it

        assert decoded(Custom(a=3 + 4j)) == {"a": 5.0}

    def test_a_model_may_dump_itself_in_a_way_of_its_own(self) -> None:
        class Brief(Model):
            def model_dump(self, **options: Any) -> dict[str, Any]:
                return super().model_dump(exclude_none=True, **options)

        assert decoded(Brief(a=1)) == {"a": 1}

    def test_pydantic_does_not_warn_of_values(self) -> None:
        wrong = Model.model_construct(a=SECRET)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert decoded(wrong) == {"a": SECRET, "tags": None}
            assert decoded({"v": PydanticData(a=1)}) == {"v": {"a": 1, "tags": None}}
        assert said == []

    def test_a_dataclass_made_from_a_pydantic_one_shows_its_own_fields(self) -> None:
        @dataclass
        class More(PydanticData):
            b: int = 2
            _c: int = 3

        assert decoded(More(a=1)) == {"a": 1, "tags": None, "b": 2}

    def test_a_struct_that_is_not_json_keeps_its_names_and_leaves_out_what_is_unset(self) -> None:
        class Renamed(msgspec.Struct, rename="camel"):
            my_field: Any
            not_set: int | msgspec.UnsetType = msgspec.UNSET

        assert decoded(Renamed(range(3))) == {"myField": "range(0, 3)"}

    def test_fields_that_are_not_set_are_left_out(self) -> None:
        @attrs.define
        class Half:
            a: int
            b: int = attrs.field(init=False)
            _c: int = 3

        @dataclass
        class Halved:
            a: int
            b: int = field(init=False)

        assert decoded({"attrs": Half(1), "data": Halved(1)}) == {
            "attrs": {"a": 1},
            "data": {"a": 1},
        }

    def test_one_that_cannot_be_read_at_all_is_reported_without_being_quoted(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Unreadable(Model):
            def model_dump(self, **_: Any) -> Any:
                raise RuntimeError(SECRET)

            def __getattribute__(self, name: str) -> Any:
                raise RuntimeError(SECRET)

        broken = Unreadable.model_construct()
        assert "Unreadable object at 0x" in decoded({"v": broken})["v"]
        logger = logging.Logger("application")  # noqa: LOG001  nobody else's
        with capture_events() as events:
            logger.addHandler(BigQueryEventHandler(source="s"))
            logger.info("happened", extra={"event_type": "a.b", "payload": broken})
        assert events == []
        said = capsys.readouterr().err
        assert "payload is a Unreadable that cannot be read" in said
        assert SECRET not in said


PAIRS: Any = [("a", "1"), ("b", "2"), ("a", "3")]


class TestMultiDicts:
    @pytest.mark.parametrize(
        "value",
        [
            werkzeug.MultiDict(PAIRS),
            werkzeug.ImmutableMultiDict(PAIRS),
            werkzeug.CombinedMultiDict([werkzeug.MultiDict(PAIRS)]),
            werkzeug.Headers(PAIRS),
            MultiDict(PAIRS),
            MultiDictProxy(MultiDict(PAIRS)),
            CIMultiDict(PAIRS),
            starlette.datastructures.QueryParams(PAIRS),
            starlette.datastructures.FormData(PAIRS),
            starlette.datastructures.Headers(
                raw=[(key.encode(), value.encode()) for key, value in PAIRS]
            ),
            httpx.QueryParams(PAIRS),
            httpx.Headers(PAIRS),
            HTTPHeaderDict(PAIRS),
        ],
        ids=lambda value: f"{type(value).__module__}.{type(value).__name__}",
    )
    def test_a_key_with_several_values_has_a_list(self, value: Any) -> None:
        becomes = {"a": ["1", "3"], "b": "2"}
        assert decoded(value) == becomes
        assert decoded({"v": value}) == {"v": becomes}
        envelope = build_envelope(event_type="a.b", source="s", payload=value)
        assert envelope["payload"] == becomes

    @pytest.mark.parametrize("base", [dict, httpx.QueryParams])
    def test_a_method_of_that_name_for_something_else_does_no_harm(self, base: Any) -> None:
        class Settings(base):  # type: ignore[misc]
            def getlist(self, section: str, option: str) -> list[str]:
                raise NotImplementedError

        assert decoded(Settings(a="1")) == {"a": "1"}
        assert decoded({"v": Settings(a="1")}) == {"v": {"a": "1"}}

    def test_those_of_django_and_its_lazy_strings_are_taken(self) -> None:
        program = """
from django.conf import settings; settings.configure(USE_I18N=False)
from django.http import QueryDict
from django.utils.translation import gettext_lazy
from lorc_eventlog.events.payload import encode_payload
query = QueryDict("a=1&b=2&a=3")
print(encode_payload(query), encode_payload({"v": [query, gettext_lazy("Sent")]}))
"""
        answer = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        query = '{"a":["1","3"],"b":"2"}'
        assert answer.stdout == f'{query} {{"v":[{query},"Sent"]}}\n'


def test_no_value_makes_a_library_be_imported() -> None:
    program = """
import sys
from dataclasses import dataclass
from fractions import Fraction
from lorc_eventlog.events.payload import encode_payload
@dataclass
class Data:
    url: object = Fraction(1, 2)
encode_payload(Data())
encode_payload({"v": [object(), {1}, b"a", Data(), Data]})
print(*sys.modules)
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    libraries = {"attr", "attrs", "django", "httpx", "ipaddress", "msgspec", "multidict", "pandas"}
    libraries |= {"numpy", "pydantic", "werkzeug", "yarl"}
    assert libraries & set(answer.stdout.split()) <= {"ipaddress"}
