"""The table of keys: what was put in is found, however full it is, and what has no room is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.storage.key_offsets import KeyOffsets


@given(st.lists(st.binary(max_size=3), max_size=300))
def test_a_key_has_the_offset_that_was_put_last(keys: list[bytes]) -> None:
    table = KeyOffsets(1 << 10)
    expected: dict[bytes, int] = {}
    for offset, key in enumerate(keys):
        assert table.put(key, offset)
        expected[key] = offset
    assert table.count == len(expected)
    assert all(table.get(key) == offset for key, offset in expected.items())
    assert table.get(b"none of them") == -1


def test_what_has_no_room_is_refused_and_what_is_there_stays() -> None:
    table = KeyOffsets(64)
    taken = [number for number in range(100) if table.put(b"%d" % number, number)]
    assert taken == list(range(48))
    assert all(table.put(b"%d" % number, 1000 + number) for number in taken)
    assert [table.get(b"%d" % number) for number in taken] == [1000 + number for number in taken]
    assert table.get(b"99") == -1


def test_many_keys_are_spread_over_several_tables() -> None:
    table = KeyOffsets(1 << 17)
    taken = [number for number in range(100_000) if table.put(b"%d" % number, number)]
    assert len(taken) > 90_000
    assert table.count == len(taken)
    assert all(table.get(b"%d" % number) == number for number in taken)


@pytest.mark.parametrize("slots", [0, 1, 3, 1000])
def test_a_table_has_a_power_of_two_of_slots(slots: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        KeyOffsets(slots)
