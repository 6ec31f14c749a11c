"""The one validator: what fits is built, what does not is refused with its path and what would be right."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import PeerID
from protocols.schema import (
    SIZE_DEFAULT,
    Fraction,
    Positive,
    Range,
    SchemaError,
    Size,
    decode,
    encode,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    count: Positive = 1
    ratio: Fraction = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    hex: Annotated[str, Size(64, 64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: Annotated[str, Size(1, 8)]
    mode: Literal["a", "b", 3] = "a"
    raw: Annotated[bytes, Size(0, 4)] = b""
    on: bool = False
    level: Annotated[float, Range(-1.0, 1.0)] | None = None
    either: int | str = 0
    items: Annotated[tuple[int, ...], Size(0, 3)] = ()
    table: dict[str, int] = field(default_factory=dict)
    inner: Inner = Inner()
    inners: tuple[Inner, ...] = ()
    peer: PeerID | None = None

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise SchemaError("name", "must not be bad")
        if self.name == "worse":
            raise ValueError("must not be worse")


FULL = Outer(
    name="x",
    mode=3,
    raw=b"1234",
    on=True,
    level=0.25,
    either="text",
    items=(1, 2),
    table={"k": 1},
    inner=Inner(count=2),
    inners=(Inner(), Inner(ratio=1.0)),
    peer=PeerID(b"12"),
)


def test_what_is_encoded_decodes_to_the_same() -> None:
    assert decode(Outer, encode(FULL)) == FULL


@dataclass(frozen=True, slots=True)
class Question:
    """One that says all by its name."""


def test_a_message_without_fields_is_an_empty_map() -> None:
    assert encode(Question()) == {}
    assert decode(Question, {}) == Question()


def test_a_subclass_of_bytes_is_built_and_checked() -> None:
    peer = decode(Outer, {"name": "x", "peer": b"12"}).peer
    assert isinstance(peer, PeerID)


def test_a_whole_number_will_do_for_a_float_and_nothing_else_is_converted() -> None:
    assert type(decode(Outer, {"name": "x", "level": 1}).level) is float
    for value in ("1", True, b"1", [1]):
        with pytest.raises(SchemaError):
            decode(Outer, {"name": "x", "level": value})


@pytest.mark.parametrize(
    ("change", "path", "problem"),
    [
        ({"name": 7}, "name", "must be text, not a whole number"),
        ({"name": ""}, "name", "1 to 8 characters, not 0"),
        ({"name": "x" * 9}, "name", "not 9"),
        ({"raw": b"12345"}, "raw", "0 to 4 bytes, not 5"),
        ({"raw": "text"}, "raw", "must be bytes, not text"),
        ({"mode": "c"}, "mode", "'a' or 'b' or 3"),
        ({"mode": True}, "mode", "not true/false"),
        ({"on": 1}, "on", "true or false"),
        ({"level": 2.0}, "level", "-1.0 to 1.0, not 2.0"),
        ({"level": float("nan")}, "level", "not nan"),
        ({"either": 1.5}, "either", "a whole number"),
        ({"items": [1, "2"]}, "items[1]", "a whole number"),
        ({"items": [1, 2, 3, 4]}, "items", "0 to 3 items, not 4"),
        ({"items": {"a": 1}}, "items", "must be a list, not a table"),
        ({"table": {"k": "v"}}, "table.k", "a whole number"),
        ({"table": {1: 1}}, "table (a key)", "must be text"),
        ({"table": []}, "table", "must be a table"),
        ({"inner": {"count": 0}}, "inner.count", "at least 1"),
        ({"inner": {"cuont": 1}}, "inner.cuont", "unknown key"),
        ({"inner": None}, "inner", "must be a table, not nothing"),
        ({"inners": [{}, {"ratio": 1.5}]}, "inners[1].ratio", "0.0 to 1.0"),
        ({"peer": b"1"}, "peer", "2 to 64 bytes"),
        ({"name": "bad"}, "name", "must not be bad"),
        ({"name": "worse"}, "", "must not be worse"),
        ({"either": None}, "either", "nothing"),
    ],
)
def test_each_mistake_names_its_path_and_what_would_be_right(
    change: dict[str, Any], path: str, problem: str
) -> None:
    with pytest.raises(SchemaError) as caught:
        decode(Outer, {"name": "x", **change})
    assert caught.value.path == path
    assert problem in caught.value.problem


def test_a_missing_key_is_named() -> None:
    with pytest.raises(SchemaError, match="name: is required but missing"):
        decode(Outer, {})


def test_a_path_given_by_the_caller_comes_first() -> None:
    with pytest.raises(SchemaError, match=r"reply\.inner\.count"):
        decode(Outer, {"name": "x", "inner": {"count": 0}}, "reply")


def test_every_list_has_a_bound_even_when_none_was_stated() -> None:
    with pytest.raises(SchemaError, match="items, not"):
        decode(Outer, {"name": "x", "inners": [{}] * (SIZE_DEFAULT + 1)})


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*encode(FULL), "extra"]), PLAIN) | PLAIN)
def test_any_plain_data_decodes_or_raises_schema_error(data: Any) -> None:
    try:
        built = decode(Outer, data)
    except SchemaError:
        return
    assert decode(Outer, encode(built)) == built


def test_the_key_of_an_unknown_entry_is_shown_short_and_printable() -> None:
    with pytest.raises(SchemaError) as caught:
        decode(Outer, {"name": "x", "\x1b[31m" + "y" * 1000: 1})
    assert len(caught.value.path) <= 42
    assert caught.value.path.isprintable()


def test_a_length_without_choice_is_named_once() -> None:
    with pytest.raises(SchemaError) as caught:
        decode(Digest, {"hex": "…"})
    assert caught.value.problem == "must have 64 characters, not 1"
