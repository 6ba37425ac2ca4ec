"""Arguments as text: every AMQP field value comes back as it was, and nothing else is believed."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.base import limits
from millpond.base.errors import CorruptData, LimitExceeded
from millpond.catalog.field_values import decode, decode_table, encode

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.text(st.characters()),
    st.binary(),
    st.binary().map(bytearray),
    st.floats(allow_nan=False),
    st.decimals(allow_nan=False),
    st.datetimes(timezones=st.none() | st.just(UTC)),
)
KEYS = st.sampled_from(["$bytes", "$table", "$", "$new", "x"]) | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)


def typed(value: Any) -> Any:
    """The value with its types, since Python takes 1, 1.0 and True for equal."""
    if isinstance(value, list):
        return [typed(item) for item in value]
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    return type(value), str(value) if isinstance(value, (float, Decimal)) else value


@given(VALUES)
def test_every_field_value_comes_back_with_its_type(value: Any) -> None:
    assert typed(decode(encode(value))) == typed(value)


@pytest.mark.parametrize(
    "value",
    [
        1,
        1.0,
        True,
        -0.0,
        math.inf,
        -math.inf,
        2**63,
        "",
        "Ünï\0code \udcff",
        b"",
        b"\0\xff",
        bytearray(b"x"),
        Decimal("1.10"),
        Decimal("1E+3"),
        datetime(2024, 2, 29, 23, 59, 59, 999999, UTC),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        None,
        [],
        {},
        [[], {}, [None]],
        {"$bytes": "not bytes"},
        {"$table": {"$table": 1}},
        {"$bytes": 1, "other": 2},
    ],
    ids=repr,
)
def test_a_value_comes_back_exactly(value: Any) -> None:
    assert typed(decode(encode(value))) == typed(value)


def test_nan_comes_back() -> None:
    assert math.isnan(decode(encode(math.nan)))


def test_equal_tables_have_equal_texts_whatever_the_order_of_their_keys() -> None:
    assert encode({"a": {"x": 1, "y": 2}, "b": 3}) == encode({"b": 3, "a": {"y": 2, "x": 1}})


def test_values_that_differ_in_type_only_have_different_texts() -> None:
    assert len({encode(value) for value in (1, 1.0, True, "1", b"1", bytearray(b"1"), Decimal(1))}) == 7


def test_text_is_ascii() -> None:
    assert encode({"ключ": "\udcff☃"}).isascii()


def test_nesting_beyond_the_limit_is_refused() -> None:
    value: Any = 1
    for _ in range(limits.FIELD_VALUE_DEPTH_MAX):
        value = [value]
    assert decode(encode(value)) == value
    with pytest.raises(LimitExceeded):
        encode([value])


def test_nesting_of_any_depth_cannot_exhaust_the_stack() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(LimitExceeded):
        encode({"x": value})
    while isinstance(value, list):
        # Taken apart level by level: some versions of Python recurse when they free it at once.
        value = value[0]


def test_a_value_of_no_amqp_type_is_a_bug() -> None:
    with pytest.raises(TypeError, match="object"):
        encode({"x": object()})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"$bytes":"*"}',
        '{"$bytes":1}',
        '{"$unknown":"x"}',
        '{"$table":[]}',
        '{"$decimal":"x"}',
        '{"$float":"x"}',
        '{"$time":"x"}',
        "[" * 100_000,
        None,
        7,
        b"\xff",
    ],
    ids=lambda text: repr(text)[:20],
)
def test_text_that_was_never_written_is_corrupt(text: object) -> None:
    with pytest.raises(CorruptData):
        decode(text)


def test_arguments_that_are_no_table_are_corrupt() -> None:
    with pytest.raises(CorruptData):
        decode_table("[1]")
