"""The primitive types, against those of kio."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.serial import readers, writers
from librt.strings import BytesWriter

from millpond.base.errors import SyntaxFault
from millpond.protocols.kafka.wire import (
    WireReader,
    write_count,
    write_no_tags,
    write_text,
    write_varint,
)


def written_by_kio(write: Callable[[Any, Any], None], value: object) -> bytes:
    buffer = io.BytesIO()
    write(buffer, value)
    return buffer.getvalue()


def reader_of(data: bytes, flexible: bool = False) -> WireReader:
    """A reader that must keep to its part of the data."""
    return WireReader(b"\xff" * 3 + data + b"\x01" * 9, 3, 3 + len(data), flexible)


def signed(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@given(data=st.data())
def test_whole_numbers(bits: int, data: st.DataObject) -> None:
    number = data.draw(signed(bits))
    encoded = written_by_kio(getattr(writers, f"write_int{bits}"), number)
    reader = reader_of(encoded)
    assert getattr(reader, f"int{bits}")() == number
    for size in range(len(encoded)):
        with pytest.raises(SyntaxFault):
            getattr(reader_of(encoded[:size]), f"int{bits}")()


@given(st.integers(0, (1 << 32) - 1))
def test_unsigned_varints(number: int) -> None:
    writer = BytesWriter()
    write_varint(writer, number)
    encoded = writer.getvalue()
    if number < 1 << 31:
        assert encoded == written_by_kio(writers.write_unsigned_varint, number)
    assert reader_of(encoded).varint() == number
    for size in range(len(encoded)):
        with pytest.raises(SyntaxFault):
            reader_of(encoded[:size]).varint()


@pytest.mark.parametrize("encoded", [b"\xff" * 5, b"\xff\xff\xff\xff\x10", b"\x80" * 5 + b"\x01", b"\x80" * 100])
def test_an_unsigned_varint_has_32_bits(encoded: bytes) -> None:
    with pytest.raises(SyntaxFault):
        reader_of(encoded).varint()


@pytest.mark.parametrize("flexible", [False, True])
@given(text=st.none() | st.text(max_size=200))
def test_strings(flexible: bool, text: str | None) -> None:
    writer = BytesWriter()
    write_text(writer, text, flexible)
    encoded = writer.getvalue()
    write = writers.write_nullable_compact_string if flexible else writers.write_nullable_legacy_string
    assert encoded == written_by_kio(write, text)
    reader = reader_of(encoded, flexible)
    assert reader.text() == text
    assert reader.position == 3 + len(encoded)
    for size in range(len(encoded)):
        with pytest.raises(SyntaxFault):
            reader_of(encoded[:size], flexible).text()
    if text is None:
        with pytest.raises(SyntaxFault):
            reader_of(encoded, flexible).name()


@pytest.mark.parametrize(
    ("encoded", "flexible"),
    [(b"\xff\xfe", False), (b"\x80\x00", False), (b"\x00\x01\xff", False), (b"\x02\xc3", True), (b"\x06abcd", True)],
)
def test_strings_that_there_are_not(encoded: bytes, flexible: bool) -> None:
    with pytest.raises(SyntaxFault):
        reader_of(encoded, flexible).text()


@pytest.mark.parametrize("flexible", [False, True])
@given(count=st.integers(-1, 1 << 20))
def test_counts(flexible: bool, count: int) -> None:
    writer = BytesWriter()
    write_count(writer, count, flexible)
    encoded = writer.getvalue()
    if flexible:
        assert encoded == written_by_kio(writers.write_unsigned_varint, count + 1)
    else:
        assert encoded == written_by_kio(writers.write_int32, count)
    reader = reader_of(encoded + bytes(max(0, count)), flexible)
    assert reader.count() == count
    assert reader_of(encoded + bytes(max(0, count)), flexible).size_of_bytes() == count
    if count > 0:
        for read in (WireReader.count, WireReader.size_of_bytes):
            with pytest.raises(SyntaxFault):
                read(reader_of(encoded + bytes(count - 1), flexible))


@pytest.mark.parametrize("encoded", [b"\xff\xff\xff\xfe", b"\x80\x00\x00\x00"])
def test_counts_that_there_are_not(encoded: bytes) -> None:
    for read in (WireReader.count, WireReader.size_of_bytes):
        with pytest.raises(SyntaxFault):
            read(reader_of(encoded))


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.binary(max_size=200)), max_size=5))
def test_tagged_fields_are_passed_over(fields: list[tuple[int, bytes]]) -> None:
    writer = BytesWriter()
    write_varint(writer, len(fields))
    for tag, content in fields:
        write_varint(writer, tag)
        write_varint(writer, len(content))
        writer.write(content)
    encoded = writer.getvalue()
    reader = reader_of(encoded, True)
    reader.skip_tags()
    assert reader.position == 3 + len(encoded)
    for size in range(len(encoded)):
        with pytest.raises(SyntaxFault):
            reader_of(encoded[:size], True).skip_tags()


def test_only_flexible_versions_have_tagged_fields() -> None:
    for flexible, encoded in ((False, b""), (True, b"\0")):
        writer = BytesWriter()
        write_no_tags(writer, flexible)
        assert writer.getvalue() == encoded
        reader = reader_of(encoded, flexible)
        reader.skip_tags()
        assert reader.position == 3 + len(encoded)


def test_a_great_many_tagged_fields_that_are_not_there_are_refused_at_once() -> None:
    with pytest.raises(SyntaxFault):
        reader_of(b"\xff\xff\xff\xff\x0f" + b"\0\0", True).skip_tags()


def test_kio_reads_what_is_written() -> None:
    writer = BytesWriter()
    write_text(writer, "é", True)
    write_text(writer, None, True)
    encoded = writer.getvalue()
    text, size = readers.read_compact_string(encoded, 0)
    assert (text, size) == ("é", 3)
    assert readers.read_compact_string_nullable(encoded, size) == (None, 1)
