"""Field tables: what goes in comes out, pamqp agrees, and nothing hostile gets far."""

from __future__ import annotations

import struct
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pamqp.decode
import pamqp.encode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.base.errors import LimitExceeded, PeerError, SyntaxFault
from millpond.base.limits import FIELD_VALUE_DEPTH_MAX
from millpond.protocols.amqp.field_table import check_entries, decode_table, encode_entry, encode_table

Table = dict[str, object]

names = st.text(max_size=60)
texts = st.text() | st.binary().map(lambda value: value.decode("utf-8", "surrogateescape"))
times = st.datetimes(
    min_value=datetime(1970, 1, 1),  # noqa: DTZ001  (Hypothesis adds the zone)
    timezones=st.just(UTC),
).map(lambda time: time.replace(microsecond=0))
decimals = st.builds(
    lambda number, scale: Decimal(number).scaleb(-scale), st.integers(-(2**31), 2**31 - 1), st.integers(0, 255)
)
scalars: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts | times | decimals
)
values: st.SearchStrategy[object] = st.recursive(
    scalars | st.binary(), lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=20
)
tables: st.SearchStrategy[Table] = st.dictionaries(names, values, max_size=8)


def table_of(entries: bytes) -> bytes:
    return struct.pack(">I", len(entries)) + entries


def field(letter: bytes, content: bytes) -> bytes:
    """A table with one value, named "a"."""
    return table_of(b"\x01a" + letter + content)


@given(tables)
def test_a_table_comes_back_as_it_was(table: Table) -> None:
    encoded = encode_table(table)
    decoded = decode_table(encoded)
    assert decoded == table
    # Equality alone would take 1, 1.0 and True for the same.
    assert encode_table(decoded) == encoded


@given(st.dictionaries(names, scalars, max_size=8))
def test_pamqp_reads_what_we_write(table: Table) -> None:
    # What is not UTF-8 is bytes for pamqp. It reads decimals as unsigned, though it writes them signed, as all do.
    expected = {
        name: value.encode("utf-8", "surrogateescape")
        if isinstance(value, str) and any("\udc80" <= character <= "\udcff" for character in value)
        else value
        for name, value in table.items()
        if not (isinstance(value, Decimal) and (value < 0 or len(value.as_tuple().digits) > 9))
    }
    encoded = encode_table({name: table[name] for name in expected})
    # pamqp divides what it takes for milliseconds.
    if not any(isinstance(value, datetime) and value.timestamp() > 0xFFFFFFFF for value in expected.values()):
        assert pamqp.decode.field_table(encoded) == (len(encoded), expected)


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**63 - 1)
            | st.text()
            | st.floats(allow_nan=False, width=32)
            | times.filter(lambda time: time.timestamp() <= 0xFFFFFFFF),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=20), inner),
            max_leaves=10,
        ),
        max_size=6,
    )
)
def test_we_read_what_pamqp_writes(table: Table) -> None:
    assert decode_table(pamqp.encode.field_table(table)) == table  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("letter", "content", "value"),
    [
        (b"t", b"\x00", False),
        (b"t", b"\x02", True),
        (b"b", b"\xff", -1),
        (b"B", b"\xff", 255),
        (b"s", b"\xff\xfe", -2),
        (b"u", b"\xff\xfe", 65534),
        (b"I", b"\xff\xff\xff\xff", -1),
        (b"i", b"\xff\xff\xff\xff", 2**32 - 1),
        (b"l", b"\xff" * 8, -1),
        (b"L", b"\xff" * 8, -1),
        (b"f", struct.pack(">f", 1.5), 1.5),
        (b"d", struct.pack(">d", -2.25), -2.25),
        (b"D", b"\x02\x00\x00\x00\x7b", Decimal("1.23")),
        (b"D", b"\x00\xff\xff\xff\xff", Decimal(-1)),
        (b"S", b"\x00\x00\x00\x02\xc3\xa9", "é"),
        (b"S", b"\x00\x00\x00\x02\xc3\xff", "\udcc3\udcff"),
        (b"x", b"\x00\x00\x00\x02\x00\xff", b"\x00\xff"),
        (b"T", b"\x00" * 7 + b"\x01", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),
        (b"T", struct.pack(">Q", 253_402_300_799), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (b"T", struct.pack(">Q", 1_700_000_000_000), 1_700_000_000_000),
        (b"T", b"\xff" * 8, 2**64 - 1),
        (b"A", b"\x00\x00\x00\x03VtV", [None, True]),
        (b"A", b"\x00\x00\x00\x00", []),
        (b"F", b"\x00\x00\x00\x02\x00V", {"": None}),
        (b"V", b"", None),
    ],
)
def test_every_type_of_rabbitmq_is_read(letter: bytes, content: bytes, value: object) -> None:
    if letter == b"A" and value:
        content = b"\x00\x00\x00\x03Vt\x01"
    raw = field(letter, content)
    decoded = decode_table(raw)
    assert decoded == {"a": value}
    assert type(decoded["a"]) is type(value)
    check_entries(raw, 4, len(raw), 0)
    for length in range(len(raw)):
        with pytest.raises(SyntaxFault):
            decode_table(raw[:length])
        # The same with an outer length that pretends to be right.
        if length > 4:
            with pytest.raises(SyntaxFault):
                decode_table(table_of(raw[4:length]))
            with pytest.raises(SyntaxFault):
                check_entries(raw, 4, length, 0)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (1, b"l\x00\x00\x00\x00\x00\x00\x00\x01"),
        (2**31, b"l\x00\x00\x00\x00\x80\x00\x00\x00"),
        (-(2**63), b"l\x80" + b"\x00" * 7),
        (2**64 - 1, b"T" + b"\xff" * 8),
        (True, b"t\x01"),
        (datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), b"T" + b"\x00" * 8),
        (datetime(1970, 1, 1, 0, 0, 1), b"T" + b"\x00" * 7 + b"\x01"),  # noqa: DTZ001  (without a zone it is UTC)
        (bytearray(b"ab"), b"x\x00\x00\x00\x02ab"),
        ((1,), b"A\x00\x00\x00\x09l\x00\x00\x00\x00\x00\x00\x00\x01"),
        (Decimal("1.50"), b"D\x02\x00\x00\x00\x96"),
        (Decimal("2E+3"), b"D\x00\x00\x00\x07\xd0"),
        (Decimal("-0.1"), b"D\x01\xff\xff\xff\xff"),
    ],
)
def test_values_are_written_as_clients_expect(value: object, encoded: bytes) -> None:
    assert encode_entry("a", value) == b"\x01a" + encoded


@pytest.mark.parametrize(
    "value",
    [
        2**64,
        -(2**63) - 1,
        Decimal("NaN"),
        Decimal("Infinity"),
        Decimal("1E+1000000"),
        Decimal("1E-256"),
        Decimal(2**31),
        datetime(1969, 12, 31, tzinfo=UTC),
        "\ud800",
    ],
)
def test_values_that_do_not_fit_are_refused(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (each has a text of its own)
        encode_table({"a": value})


def test_what_is_no_field_value_is_refused() -> None:
    with pytest.raises(TypeError, match="object is no AMQP field value"):
        encode_table({"a": object()})
    with pytest.raises(ValueError, match="a name of 256 bytes"):
        encode_table({"a" * 256: 1})


def test_of_two_entries_with_one_name_the_later_wins() -> None:
    assert decode_table(table_of(b"\x01aV" + b"\x01at\x01")) == {"a": True}


@pytest.mark.parametrize("letter", [bytes([letter]) for letter in range(256) if letter not in b"tbBsuIilLfdDSxTFAV"])
def test_types_that_do_not_exist_are_refused(letter: bytes) -> None:
    raw = field(letter, b"\x00" * 16)
    with pytest.raises(SyntaxFault, match="no field value has the type"):
        decode_table(raw)
    with pytest.raises(SyntaxFault, match="no field value has the type"):
        check_entries(raw, 4, len(raw), 0)


def test_bytes_after_a_table_are_refused() -> None:
    with pytest.raises(SyntaxFault, match="1 bytes after a table"):
        decode_table(encode_table({"a": 1}) + b"\x00")


def nested(letter: bytes, depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = letter + table_of((b"\x01a" if letter == b"F" else b"") + value)
    return value


@pytest.mark.parametrize("letter", [b"F", b"A"])
def test_nesting_has_a_limit(letter: bytes) -> None:
    deepest = table_of(b"\x01a" + nested(letter, FIELD_VALUE_DEPTH_MAX - 1))
    decoded = decode_table(deepest)
    check_entries(deepest, 4, len(deepest), 0)
    assert encode_table(decoded) == deepest
    for depth in (FIELD_VALUE_DEPTH_MAX, 5_000):
        too_deep = table_of(b"\x01a" + nested(letter, depth))
        with pytest.raises(LimitExceeded):
            decode_table(too_deep)
        with pytest.raises(LimitExceeded):
            check_entries(too_deep, 4, len(too_deep), 0)
    with pytest.raises(ValueError, match="nested deeper"):
        encode_table({"a": decoded if letter == b"F" else [decoded["a"]]})


@pytest.mark.parametrize("letter", [b"S", b"x", b"F", b"A"])
def test_lengths_beyond_what_is_there_take_no_memory(letter: bytes) -> None:
    tracemalloc.start()
    try:
        for length in (1, 2**31 - 1, 2**31, 2**32 - 1):
            with pytest.raises(SyntaxFault):
                decode_table(field(letter, struct.pack(">I", length)))
            with pytest.raises(SyntaxFault):
                decode_table(struct.pack(">I", length))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "entries",
    [
        b"\x01aA" + table_of(b"V" * 120_000),
        b"\x01aA" + table_of(b"A\x00\x00\x00\x00" * 24_000),
        b"\x01aA" + table_of(b"F\x00\x00\x00\x00" * 24_000),
        b"\x01aA" + table_of(b"D\x01\x00\x00\x00\x01" * 20_000),
        b"".join([b"\x02" + number.to_bytes(2, "big") + b"V" for number in range(30_000)]),
    ],
    ids=["voids", "arrays", "tables", "decimals", "names"],
)
def test_a_frame_full_of_small_values_takes_memory_in_proportion(entries: bytes) -> None:
    raw = table_of(entries)
    tracemalloc.start()
    try:
        decode_table(raw)
        _, decoded_peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        check_entries(raw, 4, len(raw), 0)
        _, checked_peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoded_peak < 64 * len(raw)
    assert checked_peak < 64 * 1024


@given(st.binary(max_size=300))
def test_random_bytes_are_read_or_refused(entries: bytes) -> None:
    raw = table_of(entries)
    try:
        decode_table(raw)
    except PeerError as error:
        with pytest.raises(type(error)):
            check_entries(raw, 4, len(raw), 0)
    else:
        check_entries(raw, 4, len(raw), 0)


@given(tables, st.data())
def test_damaged_tables_are_read_or_refused(table: Table, data: st.DataObject) -> None:
    raw = bytearray(encode_table(table))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(raw)
    try:
        decoded = decode_table(damaged)
    except PeerError:
        return
    # Whatever was read can be written: dead-lettering does so.
    encode_table(decoded)
