"""AMQP 0-9-1 field tables: named, typed values, nested.

    table   length (32 bits), then entries    name length (8), name, type letter (8), value
    array   length (32 bits), then items      type letter (8), value

    letter      value on the wire                      in Python
    t           8 bits                                 bool
    b B         8 bits, signed, unsigned               int
    s u         16 bits, signed, unsigned              int
    I i         32 bits, signed, unsigned              int
    l L         64 bits, both signed                   int
    f d         32, 64 bits, IEEE 754                  float
    D           scale (8), signed number (32)          Decimal
    S           length (32), text                      str; bytes that are not UTF-8 as surrogates (PEP 383)
    x           length (32), bytes                     bytes
    T           seconds since 1970 (64), unsigned      datetime in UTC; int where the year would be beyond 9999
    A, F        array, table                           list, dict
    V           nothing                                None

These are the letters that RabbitMQ reads and writes, not those of the specification: see
https://www.rabbitmq.com/amqp-0-9-1-errata.html, "Field types". Encoding takes l for every int that fits 64 bits, as
RabbitMQ does: programs in Java cast the count of an `x-death` to Long. Larger ones can only come from a T, and are T.

Each length is checked against what is left before anything is read, and nesting is limited, so what a hostile table can
take is in proportion to its bytes. pamqp's decoder is not used: 4.0.1 returns a string that is cut off as if it were
whole, reads a missing value as None, leaves with RecursionError for two thousand nested tables and ValueError for a
large timestamp, and copies all that is left at every item, which takes quadratic time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from librt.strings import (
    BytesWriter,
    read_f32_be,
    read_f64_be,
    read_i16_be,
    read_i32_be,
    read_i64_be,
    write_f64_be,
    write_i32_be,
    write_i64_be,
)
from mypy_extensions import i64, u8

from millpond.base.errors import LimitExceeded, SyntaxFault
from millpond.base.limits import FIELD_VALUE_DEPTH_MAX, NAME_BYTES_MAX

_STRING: Final = ord("S")
_BYTES: Final = ord("x")
_TABLE: Final = ord("F")
_ARRAY: Final = ord("A")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# The last second that a datetime can hold.
_SECONDS_MAX: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)

_I32_MIN: Final = -(1 << 31)
_I32_MAX: Final = (1 << 31) - 1
_I64_MIN: Final = -(1 << 63)
_I64_MAX: Final = (1 << 63) - 1
_U64_MAX: Final = (1 << 64) - 1


def _timestamp(raw: bytes, at: int) -> object:
    seconds = int(read_i64_be(raw, at)) & _U64_MAX
    return datetime.fromtimestamp(seconds, UTC) if seconds <= _SECONDS_MAX else seconds


def _decimal(raw: bytes, at: int) -> object:
    number = int(read_i32_be(raw, at + 1))
    digits = tuple([int(digit) for digit in str(abs(number))])
    return Decimal((1 if number < 0 else 0, digits, -raw[at]))


# Type letter -> bytes of the value, how to read it.
_FIXED: Final[dict[int, tuple[int, Callable[[bytes, int], object]]]] = {
    ord("t"): (1, lambda raw, at: raw[at] != 0),
    ord("b"): (1, lambda raw, at: (raw[at] ^ 0x80) - 0x80),
    ord("B"): (1, lambda raw, at: raw[at]),
    ord("s"): (2, lambda raw, at: int(read_i16_be(raw, at))),
    ord("u"): (2, lambda raw, at: int(read_i16_be(raw, at)) & 0xFFFF),
    ord("I"): (4, lambda raw, at: int(read_i32_be(raw, at))),
    ord("i"): (4, lambda raw, at: int(read_i32_be(raw, at)) & 0xFFFFFFFF),
    ord("l"): (8, lambda raw, at: int(read_i64_be(raw, at))),
    ord("L"): (8, lambda raw, at: int(read_i64_be(raw, at))),
    ord("f"): (4, read_f32_be),
    ord("d"): (8, read_f64_be),
    ord("D"): (5, _decimal),
    ord("T"): (8, _timestamp),
    ord("V"): (0, lambda raw, at: None),
}


_PREFIXED: Final = 0xFE
_UNKNOWN: Final = 0xFF


def _layout() -> bytes:
    """Indexed by type letter: the bytes of a fixed value, _PREFIXED for those that begin with their length."""
    sizes = bytearray([_UNKNOWN]) * 256
    for letter, (size, _) in _FIXED.items():
        sizes[letter] = size
    for letter in (_STRING, _BYTES, _TABLE, _ARRAY):
        sizes[letter] = _PREFIXED
    return bytes(sizes)


_SIZES: Final = _layout()


# --- Walking and checking ------------------------------------------------------------------------------------------


def content_end(raw: bytes, position: i64, end: i64) -> i64:
    """Where the content ends whose 32-bit length is at `position`. It is checked to lie before `end`.

    Raises SyntaxFault.
    """
    if position + 4 > end:
        raise SyntaxFault("a length is cut short")
    length: i64 = i64(read_i32_be(raw, position)) & 0xFFFFFFFF
    if length > end - position - 4:
        raise SyntaxFault(f"a length of {length} bytes where {end - position - 4} are left")
    return position + 4 + length


def name_end(raw: bytes, position: i64, end: i64) -> i64:
    """Where the name ends whose 8-bit length is at `position`. It is checked to lie before `end`.

    Raises SyntaxFault.
    """
    if position >= end:
        raise SyntaxFault("a name is missing")
    after: i64 = position + 1 + raw[position]
    if after > end:
        raise SyntaxFault(f"a name of {raw[position]} bytes where {end - position - 1} are left")
    return after


def value_end(raw: bytes, position: i64, end: i64, depth: i64) -> i64:
    """Where the value ends whose type letter is at `position`, with all in it checked. Builds nothing.

    `depth` counts the tables and arrays around it. Raises SyntaxFault, LimitExceeded.
    """
    if position >= end:
        raise SyntaxFault("a value is missing")
    letter: i64 = raw[position]
    size: i64 = _SIZES[letter]
    if size < _PREFIXED:
        after: i64 = position + 1 + size
        if after > end:
            raise SyntaxFault(f"a value of {size} bytes where {end - position - 1} are left")
        return after
    if size == _UNKNOWN:
        raise SyntaxFault(f"no field value has the type {bytes([raw[position]])!r}")
    after = content_end(raw, position + 1, end)
    if letter == _TABLE:
        check_entries(raw, position + 5, after, depth)
    elif letter == _ARRAY:
        _check_depth(depth)
        item: i64 = position + 5
        while item < after:
            item = value_end(raw, item, after, depth + 1)
    return after


def check_entries(raw: bytes, position: i64, end: i64, depth: i64) -> None:
    """Check the entries of a table, those between `position` and `end`. Builds nothing.

    `depth` counts the tables and arrays around it. Raises SyntaxFault, LimitExceeded.
    """
    _check_depth(depth)
    while position < end:
        position = value_end(raw, name_end(raw, position, end), end, depth + 1)


def _check_depth(depth: i64) -> None:
    if depth >= FIELD_VALUE_DEPTH_MAX:
        raise LimitExceeded(f"tables and arrays nested deeper than {FIELD_VALUE_DEPTH_MAX}")


# --- Decoding ------------------------------------------------------------------------------------------------------


def decode_text(raw: bytes, start: i64, end: i64) -> str:
    """UTF-8, with bytes that are not as surrogates, so that encoding gives back exactly what came."""
    return raw[start:end].decode("utf-8", "surrogateescape")


def decode_table(raw: bytes) -> dict[str, object]:
    """A table with its length, which must be all of `raw`. Raises SyntaxFault, LimitExceeded."""
    end = content_end(raw, 0, len(raw))
    if end != len(raw):
        raise SyntaxFault(f"{len(raw) - end} bytes after a table")
    return decode_entries(raw, 4, end, 0)


def decode_entries(raw: bytes, position: i64, end: i64, depth: i64) -> dict[str, object]:
    """The entries of a table between `position` and `end`. Of two with the same name the later wins.

    `depth` counts the tables and arrays around it. Raises SyntaxFault, LimitExceeded.
    """
    _check_depth(depth)
    table: dict[str, object] = {}
    while position < end:
        value_at = name_end(raw, position, end)
        name = decode_text(raw, position + 1, value_at)
        table[name], position = _decode_value(raw, value_at, end, depth + 1)
    return table


def _decode_array(raw: bytes, position: i64, end: i64, depth: i64) -> list[object]:
    _check_depth(depth)
    items: list[object] = []
    while position < end:
        item, position = _decode_value(raw, position, end, depth + 1)
        items.append(item)
    return items


def _decode_value(raw: bytes, position: i64, end: i64, depth: i64) -> tuple[object, i64]:
    """The value whose type letter is at `position`, and where it ends."""
    if position >= end:
        raise SyntaxFault("a value is missing")
    letter = raw[position]
    fixed = _FIXED.get(letter)
    if fixed is not None:
        # What checks the bounds has read nothing yet, so it can also be asked first.
        after = value_end(raw, position, end, depth)
        return fixed[1](raw, int(position + 1)), after
    if _SIZES[letter] == _UNKNOWN:
        raise SyntaxFault(f"no field value has the type {bytes([letter])!r}")
    after = content_end(raw, position + 1, end)
    if letter == _STRING:
        return decode_text(raw, position + 5, after), after
    if letter == _TABLE:
        return decode_entries(raw, position + 5, after, depth), after
    if letter == _ARRAY:
        return _decode_array(raw, position + 5, after, depth), after
    return raw[position + 5 : after], after


def decode_value(raw: bytes, position: i64, end: i64) -> object:
    """The value of a table's entry whose type letter is at `position`. Raises SyntaxFault, LimitExceeded."""
    value, _ = _decode_value(raw, position, end, 1)
    return value


# --- Encoding ------------------------------------------------------------------------------------------------------


def encode_table(table: dict[str, object]) -> bytes:
    """A table with its length. Raises TypeError or ValueError for what has no encoding."""
    writer = BytesWriter()
    write_table(writer, table, 0)
    return writer.getvalue()


def encode_entry(name: str, value: object) -> bytes:
    """One entry of a table. Raises TypeError or ValueError for what has no encoding."""
    writer = BytesWriter()
    _write_entry(writer, name, value, 1)
    return writer.getvalue()


def write_table(writer: BytesWriter, table: dict[str, object], depth: i64) -> None:
    """Append a table with its length. `depth` counts the tables and arrays around it."""
    if depth >= FIELD_VALUE_DEPTH_MAX:
        raise ValueError(f"tables and arrays nested deeper than {FIELD_VALUE_DEPTH_MAX}")
    start: i64 = len(writer)
    write_i32_be(writer, 0)
    for name, value in table.items():
        _write_entry(writer, name, value, depth + 1)
    _set_length(writer, start)


def _write_entry(writer: BytesWriter, name: str, value: object, depth: i64) -> None:
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > NAME_BYTES_MAX:
        raise ValueError(f"a name of {len(encoded)} bytes in a table")
    writer.append(len(encoded))
    writer.write(encoded)
    _write_value(writer, value, depth)


def _write_array(writer: BytesWriter, items: list[object], depth: i64) -> None:
    if depth >= FIELD_VALUE_DEPTH_MAX:
        raise ValueError(f"tables and arrays nested deeper than {FIELD_VALUE_DEPTH_MAX}")
    start: i64 = len(writer)
    write_i32_be(writer, 0)
    for item in items:
        _write_value(writer, item, depth + 1)
    _set_length(writer, start)


def _set_length(writer: BytesWriter, start: i64) -> None:
    """Put the bytes written since into the 32-bit length at `start`."""
    length: i64 = len(writer) - start - 4
    for index in range(4):
        writer[start + index] = u8((length >> (24 - 8 * index)) & 0xFF)


def _write_value(writer: BytesWriter, value: object, depth: i64) -> None:
    if isinstance(value, str):
        _write_prefixed(writer, _STRING, value.encode("utf-8", "surrogateescape"))
    elif isinstance(value, bool):
        # Before int, which it is a kind of.
        writer.append(ord("t"))
        writer.append(1 if value else 0)
    elif isinstance(value, int):
        _write_int(writer, value)
    elif isinstance(value, dict):
        writer.append(_TABLE)
        write_table(writer, value, depth)
    elif isinstance(value, list | tuple):
        writer.append(_ARRAY)
        _write_array(writer, list(value), depth)
    elif isinstance(value, datetime):
        # A time without a zone is UTC: this machine's zone is nothing that a peer knows.
        _write_timestamp(writer, value if value.tzinfo is not None else value.replace(tzinfo=UTC))
    elif value is None:
        writer.append(ord("V"))
    elif isinstance(value, float):
        writer.append(ord("d"))
        write_f64_be(writer, value)
    elif isinstance(value, bytes | bytearray):
        _write_prefixed(writer, _BYTES, bytes(value))
    elif isinstance(value, Decimal):
        _write_decimal(writer, value)
    else:
        raise TypeError(f"{type(value).__name__} is no AMQP field value")


def _write_prefixed(writer: BytesWriter, letter: int, content: bytes) -> None:
    writer.append(letter)
    write_i32_be(writer, len(content))
    writer.write(content)


def _write_int(writer: BytesWriter, value: int) -> None:
    if _I64_MIN <= value <= _I64_MAX:
        writer.append(ord("l"))
        write_i64_be(writer, value)
    elif 0 <= value <= _U64_MAX:
        writer.append(ord("T"))
        write_i64_be(writer, value - (1 << 64))
    else:
        raise ValueError(f"{value} does not fit a field value of 64 bits")


def _write_timestamp(writer: BytesWriter, value: datetime) -> None:
    seconds = (value - _EPOCH) // timedelta(seconds=1)
    if seconds < 0:
        raise ValueError(f"{value} is before 1970")
    writer.append(ord("T"))
    write_i64_be(writer, seconds)


def _write_decimal(writer: BytesWriter, value: Decimal) -> None:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"{value} has no encoding as a decimal")  # noqa: TRY004  (it is one, but not a finite one)
    # Before a power of ten is taken: its size is bounded like the result's.
    if not -255 <= exponent <= 10 or len(digits) > 300:
        raise ValueError(f"{value} does not fit a decimal of 32 bits")
    number = int("".join([str(digit) for digit in digits])) * 10 ** max(exponent, 0)
    if sign:
        number = -number
    if not _I32_MIN <= number <= _I32_MAX:
        raise ValueError(f"{value} does not fit a decimal of 32 bits")
    writer.append(ord("D"))
    writer.append(max(-exponent, 0))
    write_i32_be(writer, number)
