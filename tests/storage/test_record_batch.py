"""Record batches: what goes in comes out, other implementations agree, and damage is never served."""

from __future__ import annotations

import struct

import crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.base.errors import CorruptData
from millpond.storage.record_batch import (
    HEADER_BYTES,
    RESERVED_HEADER,
    BatchBuilder,
    BatchHeader,
    RecordReader,
    check_batch,
)

Record = tuple[int, int, bytes | None, bytes | None, list[tuple[bytes, bytes | None]]]

# What `append_with_headers` takes.
timestamps = st.integers(-1, (1 << 62) - 1)
header_lists = st.lists(st.tuples(st.binary(max_size=10), st.none() | st.binary(max_size=20)), max_size=4)
offset_deltas = st.lists(st.integers(0, (1 << 31) - 1), unique=True, min_size=1, max_size=8).map(sorted)
fields = st.none() | st.binary(max_size=200)


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    return [(delta, draw(timestamps), draw(fields), draw(fields), draw(header_lists)) for delta in draw(offset_deltas)]


def build(batch: list[Record], base_offset: int = 0, last_offset_delta: int | None = None) -> bytes:
    builder = BatchBuilder()
    for delta, timestamp_ms, key, value, headers in batch:
        builder.append_with_headers(delta, timestamp_ms, key, value, headers)
    return builder.finish(base_offset, batch[-1][0] if last_offset_delta is None else last_offset_delta)


def read_all(data: bytes) -> list[Record]:
    reader = RecordReader(data)
    found: list[Record] = []
    while reader.next():
        found.append((reader.offset, reader.timestamp_ms, reader.key, reader.value, reader.headers()))
    return found


def small_batch() -> bytes:
    builder = BatchBuilder()
    builder.append(0, 1000, b"key", b"value", b"reserved")
    builder.append(2, 999, b"", b"", b"")
    return builder.finish(70, 4)


def with_right_checksum(data: bytes) -> bytes:
    """As a writer with a bug would have written it."""
    return data[:17] + struct.pack(">I", crc32c.crc32c(data[21:])) + data[21:]


@given(records(), st.integers(0, 1 << 61))
def test_records_come_out_as_they_went_in(batch: list[Record], base_offset: int) -> None:
    data = build(batch, base_offset)
    check_batch(data)
    assert read_all(data) == [(base_offset + record[0], *record[1:]) for record in batch]
    header = BatchHeader(data)
    assert header.max_timestamp_ms == max(record[1] for record in batch)
    assert header.base_timestamp_ms == batch[0][1]


def test_both_ways_to_append_give_the_same_bytes() -> None:
    fast, general = BatchBuilder(), BatchBuilder()
    for delta in range(300):
        key, value, reserved = b"k" * (delta % 70), b"v" * delta, b"h" * (delta % 130)
        fast.append(delta, 1_700_000_000_000 - delta, key, value, reserved)
        general.append_with_headers(delta, 1_700_000_000_000 - delta, key, value, [(RESERVED_HEADER, reserved)])
        assert fast.count == general.count == delta + 1
    assert fast.size == general.size
    size = fast.size
    data = fast.finish(9, 299)
    assert data == general.finish(9, 299)
    assert len(data) == size


def test_the_reserved_header_is_found_among_others() -> None:
    headers: list[tuple[bytes, bytes | None]] = [(b"a", b"1"), (RESERVED_HEADER, b"mine"), (b"b", None)]
    reader = RecordReader(build([(0, 0, None, b"", headers), (1, 0, b"", None, [])]))
    assert reader.next()
    assert (reader.key, reader.value, reader.header_value) == (None, b"", b"mine")
    assert reader.headers() == headers
    assert reader.next()
    assert (reader.key, reader.value, reader.header_value) == (b"", None, None)
    assert not reader.next()
    assert not reader.next()


def test_a_batch_may_cover_offsets_without_records() -> None:
    data = build([(3, 10, b"", b"", [])], base_offset=100, last_offset_delta=9)
    header = BatchHeader(data)
    assert (header.base_offset, header.last_offset, header.record_count) == (100, 109, 1)
    assert [record[0] for record in read_all(data)] == [103]


def test_a_batch_may_have_no_records_at_all() -> None:
    data = BatchBuilder().finish(7, 99)
    check_batch(data)
    header = BatchHeader(data)
    assert (header.last_offset, header.record_count, header.max_timestamp_ms, header.size) == (106, 0, -1, 61)
    assert read_all(data) == []


def test_a_builder_begins_anew_after_each_batch() -> None:
    builder = BatchBuilder()
    builder.append(5, 500, b"a", b"b", b"c")
    builder.finish(0, 5)
    assert (builder.count, builder.size) == (0, HEADER_BYTES)
    builder.append(0, 9, b"d", b"e", b"f")
    assert read_all(builder.finish(6, 0)) == [(6, 9, b"d", b"e", [(RESERVED_HEADER, b"f")])]


@pytest.mark.parametrize(("delta", "timestamp_ms"), [(0, 0), (-1, 0), (1 << 31, 0), (1, -2), (1, 1 << 62)])
def test_a_record_that_cannot_be_in_the_batch_is_refused(delta: int, timestamp_ms: int) -> None:
    builder = BatchBuilder()
    builder.append(0, 0, b"", b"", b"")
    with pytest.raises(ValueError, match=r"must grow|a timestamp is"):
        builder.append(delta, timestamp_ms, b"", b"", b"")


def test_a_batch_that_does_not_cover_its_records_is_refused() -> None:
    builder = BatchBuilder()
    builder.append(3, 0, b"", b"", b"")
    with pytest.raises(ValueError, match="cover the offsets"):
        builder.finish(0, 2)


def test_every_truncated_prefix_is_corrupt() -> None:
    data = small_batch()
    for size in range(len(data)):
        with pytest.raises(CorruptData):
            check_batch(data[:size])
        with pytest.raises(CorruptData):
            RecordReader(data[:size])
    with pytest.raises(CorruptData):
        check_batch(data + b"\x00")


def test_every_flipped_bit_but_those_of_the_base_offset_is_corrupt() -> None:
    data = small_batch()
    check_batch(data)
    for bit in range(64, 8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(CorruptData):
            check_batch(bytes(damaged))


def test_records_cut_anywhere_are_corrupt_although_the_checksum_is_right() -> None:
    data = small_batch()
    for size in range(HEADER_BYTES, len(data)):
        cut = with_right_checksum(data[:8] + struct.pack(">i", size - 12) + data[12:size])
        check_batch(cut)
        with pytest.raises(CorruptData):
            read_all(cut)


@settings(max_examples=500)
@given(st.binary(max_size=60), st.integers(0, 60), st.integers(0, 5))
def test_records_of_any_bytes_are_read_or_corrupt(garbage: bytes, position: int, count: int) -> None:
    data = small_batch()
    position = min(len(data), HEADER_BYTES + position)
    data = data[:position] + garbage
    data = data[:8] + struct.pack(">i", len(data) - 12) + data[12:57] + struct.pack(">i", count) + data[61:]
    try:
        found = read_all(with_right_checksum(data))
    except CorruptData:
        return
    assert len(found) == count


@pytest.mark.parametrize(
    "number",
    [b"\x80" * 10 + b"\x01", b"\xff" * 9 + b"\x02", b"\x80" * 9, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x01"],
    ids=["eleven bytes", "65 bits", "unfinished", "lowest", "minus one"],
)
def test_an_impossible_length_is_corrupt(number: bytes) -> None:
    data = small_batch()[:HEADER_BYTES] + number
    data = data[:8] + struct.pack(">i", len(data) - 12) + data[12:]
    with pytest.raises(CorruptData):
        read_all(with_right_checksum(data))


def test_compressed_records_are_not_taken_for_plain_ones() -> None:
    data = bytearray(small_batch())
    data[22] |= 1
    with pytest.raises(CorruptData, match="compressed"):
        RecordReader(bytes(data))


def test_log_append_time_is_that_of_the_whole_batch() -> None:
    data = bytearray(small_batch())
    data[22] |= 8
    assert [record[1] for record in read_all(bytes(data))] == [1000, 1000]
