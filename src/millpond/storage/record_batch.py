"""Kafka's record batch, version 2: the only form in which messages are on a disk.

    position  size
           0     8   base offset                  outside the checksum: assigned when the batch is appended
           8     4   batch length                 bytes after this field
          12     4   partition leader epoch       outside the checksum; 0 here
          16     1   magic                        2
          17     4   CRC32C                       of everything from `attributes` to the end
          21     2   attributes                   bits 0-2 compression, bit 3 log append time, bit 4 transactional,
                                                  bit 5 control, bit 6 delete horizon
          23     4   last offset delta
          27     8   base timestamp, ms           the first record's; with bit 6 the delete horizon
          35     8   max timestamp, ms
          43     8   producer id                  -1
          51     2   producer epoch               -1
          53     4   base sequence                -1
          57     4   record count
          61         records, each:
                     length, attributes (1 byte, 0), timestamp delta, offset delta,
                     key length, key, value length, value, header count, headers of
                     (key length, key, value length, value)

Whole numbers are big-endian; those inside records are zigzag varints, where a length of -1 means None.

A batch covers the offsets from its base offset to base offset + last offset delta, whether or not a record is left at
each of them: **batches tile the offset range**. In a segment each batch's base offset is the previous batch's last
offset + 1. The checksum does not cover the first 17 bytes, so this chain is what detects damage to a base
offset; the leader epoch and magic are compared with what they must be, and a wrong length makes the checksum wrong.

The delete horizon is when compaction may delete the batch's records without a value.

Source: Apache Kafka, "Message Format", KIP-98 for the record batch, KIP-534 for the delete horizon.
"""

from __future__ import annotations

from typing import Final, final

from crc32c import crc32c
from librt.strings import BytesWriter, read_i16_be, read_i32_be, read_i64_be, write_i16_be, write_i32_be, write_i64_be
from mypy_extensions import i32, i64, mypyc_attr, u8

from millpond.base.errors import CorruptData

HEADER_BYTES: Final[i64] = 61
# What precedes the checksummed part.
_PREFIX_BYTES: Final[i64] = 21
# Base offset and batch length, which the batch length does not count.
_LENGTH_OVERHEAD: Final[i64] = 12
_MAGIC: Final[i64] = 2
# Attributes.
COMPRESSION_MASK: Final[i64] = 0x07
LOG_APPEND_TIME: Final[i64] = 0x08
TRANSACTIONAL: Final[i64] = 0x10
CONTROL: Final[i64] = 0x20
DELETE_HORIZON: Final[i64] = 0x40

# The one header that each of our own records has. What its value means is its writer's business.
RESERVED_HEADER: Final = b"millpond"
_RESERVED_BYTES: Final[i64] = 8
# Header count 1, key length 8 and the key, as they stand in a record.
_RESERVED_ENCODED: Final = b"\x02\x10millpond"
_RESERVED_ENCODED_BYTES: Final[i64] = 10

# So far timestamps may lie apart that their difference still fits into 64 bits; it is 146 million years.
TIMESTAMP_MS_MAX: Final[i64] = (1 << 62) - 1
_OFFSET_DELTA_MAX: Final[i64] = (1 << 31) - 1
# Fields before the checksummed part that `BatchBuilder` fills in when the batch is complete.
_BLANK_HEADER: Final = bytes(40)


def _varint_size(number: i64) -> i64:
    zigzag: i64 = (number << 1) ^ (number >> 63)
    if zigzag & -128 == 0:
        return 1
    size: i64 = 1
    while zigzag & -128 != 0:
        zigzag = (zigzag >> 7) & 0x01FF_FFFF_FFFF_FFFF
        size += 1
    return size


def write_varint(writer: BytesWriter, number: i64) -> None:
    zigzag: i64 = (number << 1) ^ (number >> 63)
    while zigzag & -128 != 0:
        writer.append(u8((zigzag & 0x7F) | 0x80))
        # The mask makes the shift one of an unsigned number.
        zigzag = (zigzag >> 7) & 0x01FF_FFFF_FFFF_FFFF
    writer.append(u8(zigzag))


@final
class BatchBuilder:
    """Writes records into a batch; `finish` completes it and begins the next.

    `count` is the number of records so far, `size` the bytes that the batch has by now.
    """

    def __init__(self) -> None:
        self.count: i64 = 0
        self._body = BytesWriter()
        self._base_timestamp_ms: i64 = -1
        self._max_timestamp_ms: i64 = -1
        self._last_delta: i64 = -1
        self._reset()

    @property
    def size(self) -> i64:
        return _PREFIX_BYTES + len(self._body)

    def append(self, offset_delta: i64, timestamp_ms: i64, key: bytes, value: bytes, header_value: bytes) -> None:
        """Add a record with the reserved header only. Offset deltas must grow; raises ValueError otherwise, and for
        a timestamp below -1."""
        timestamp_delta = self._begin(offset_delta, timestamp_ms)
        key_size: i64 = len(key)
        value_size: i64 = len(value)
        header_size: i64 = len(header_value)
        body = self._body
        length: i64 = 1 + _varint_size(timestamp_delta) + _varint_size(offset_delta) + _RESERVED_ENCODED_BYTES
        length += _varint_size(key_size) + key_size
        length += _varint_size(value_size) + value_size
        length += _varint_size(header_size) + header_size
        write_varint(body, length)
        body.append(0)
        write_varint(body, timestamp_delta)
        write_varint(body, offset_delta)
        write_varint(body, key_size)
        body.write(key)
        write_varint(body, value_size)
        body.write(value)
        body.write(_RESERVED_ENCODED)
        write_varint(body, header_size)
        body.write(header_value)

    def append_encoded(
        self, offset_delta: i64, timestamp_ms: i64, key: bytes | None, value: bytes | None, headers: bytes
    ) -> None:
        """Add any record, whose headers are as `encode_headers` has them. As `append` otherwise."""
        timestamp_delta = self._begin(offset_delta, timestamp_ms)
        key_size: i64 = -1 if key is None else len(key)
        value_size: i64 = -1 if value is None else len(value)
        body = self._body
        length: i64 = 1 + _varint_size(timestamp_delta) + _varint_size(offset_delta) + len(headers)
        length += _varint_size(key_size) + _varint_size(value_size)
        if key_size > 0:
            length += key_size
        if value_size > 0:
            length += value_size
        write_varint(body, length)
        body.append(0)
        write_varint(body, timestamp_delta)
        write_varint(body, offset_delta)
        write_varint(body, key_size)
        if key is not None:
            body.write(key)
        write_varint(body, value_size)
        if value is not None:
            body.write(value)
        body.write(headers)

    def append_with_headers(
        self,
        offset_delta: i64,
        timestamp_ms: i64,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[bytes, bytes | None]],
    ) -> None:
        """Add any record. As `append` otherwise."""
        self.append_encoded(offset_delta, timestamp_ms, key, value, encode_headers(headers))

    def finish(self, base_offset: i64, last_offset_delta: i64) -> bytes:
        """The complete batch. `last_offset_delta` may be beyond the last record's, also when there is no record at
        all: the batch then says that those offsets are gone. Begins a new batch."""
        if last_offset_delta < self._last_delta or last_offset_delta < 0 or base_offset < 0:
            raise ValueError("a batch must cover the offsets of its records")
        header = BytesWriter()
        # Attributes: not compressed, the producer's timestamps.
        write_i16_be(header, 0)
        write_i32_be(header, i32(last_offset_delta))
        write_i64_be(header, self._base_timestamp_ms)
        write_i64_be(header, self._max_timestamp_ms)
        # No idempotent producer: its id, epoch and sequence are all -1.
        write_i64_be(header, -1)
        write_i16_be(header, -1)
        write_i32_be(header, -1)
        write_i32_be(header, i32(self.count))
        fields = header.getvalue()
        body = self._body
        # The body began with room for these fields, so that one pass computes the checksum.
        index: i64 = 0
        while index < 40:
            body[index] = fields[index]
            index += 1
        checked = body.getvalue()
        prefix = BytesWriter()
        write_i64_be(prefix, base_offset)
        write_i32_be(prefix, i32(len(checked) + _PREFIX_BYTES - _LENGTH_OVERHEAD))
        write_i32_be(prefix, 0)
        prefix.append(2)
        _write_u32(prefix, crc32c(checked))
        self._reset()
        return prefix.getvalue() + checked

    def _begin(self, offset_delta: i64, timestamp_ms: i64) -> i64:
        """Account for a record; returns its timestamp delta."""
        if offset_delta <= self._last_delta or offset_delta > _OFFSET_DELTA_MAX:
            raise ValueError("offset deltas of a batch must grow")
        if timestamp_ms < -1 or timestamp_ms > TIMESTAMP_MS_MAX:
            raise ValueError("a timestamp is -1 or milliseconds since 1970")
        self._last_delta = offset_delta
        if self.count == 0:
            self._base_timestamp_ms = timestamp_ms
            self._max_timestamp_ms = timestamp_ms
        elif timestamp_ms > self._max_timestamp_ms:
            self._max_timestamp_ms = timestamp_ms
        self.count += 1
        return timestamp_ms - self._base_timestamp_ms

    def _reset(self) -> None:
        # A new writer also gives back the memory of a large batch.
        self._body = BytesWriter()
        self._body.write(_BLANK_HEADER)
        self.count = 0
        self._last_delta = -1
        self._base_timestamp_ms = -1
        self._max_timestamp_ms = -1


def _write_u32(writer: BytesWriter, number: i64) -> None:
    writer.append(u8((number >> 24) & 0xFF))
    writer.append(u8((number >> 16) & 0xFF))
    writer.append(u8((number >> 8) & 0xFF))
    writer.append(u8(number & 0xFF))


def _write_optional(writer: BytesWriter, data: bytes | None) -> None:
    if data is None:
        write_varint(writer, -1)
    else:
        write_varint(writer, len(data))
        writer.write(data)


def encode_headers(headers: list[tuple[bytes, bytes | None]]) -> bytes:
    """A record's headers as they stand in it: their count, then each of them."""
    writer = BytesWriter()
    write_varint(writer, len(headers))
    write_headers(writer, headers)
    return writer.getvalue()


def write_headers(writer: BytesWriter, headers: list[tuple[bytes, bytes | None]]) -> None:
    """Append a record's headers, without their count."""
    for key, value in headers:
        _write_optional(writer, key)
        _write_optional(writer, value)


def decode_headers(raw: bytes, count_max: i64 = _OFFSET_DELTA_MAX) -> list[tuple[bytes, bytes | None]]:
    """The headers that `encode_headers` gives, in their order, the first `count_max` of them. Raises CorruptData."""
    end: i64 = len(raw)
    count, position = _varint_at(raw, 0, end)
    # The shortest header takes two bytes.
    if count < 0 or count * 2 > end - position:
        raise CorruptData(f"a record of {count} headers")
    headers: list[tuple[bytes, bytes | None]] = []
    left: i64 = min(count, count_max)
    while left > 0:
        size, position = _varint_at(raw, position, end)
        if size < 0 or size > end - position:
            raise CorruptData(f"a header's key of {size} bytes does not fit into its record")
        key = raw[position : position + size]
        size, position = _varint_at(raw, position + size, end)
        if size == -1:
            headers.append((key, None))
        elif size < 0 or size > end - position:
            raise CorruptData(f"a header of {size} bytes does not fit into its record")
        else:
            headers.append((key, raw[position : position + size]))
            position += size
        left -= 1
    if count <= count_max and position != end:
        raise CorruptData("bytes follow the last header of a record")
    return headers


def _varint_at(data: bytes, position: i64, end: i64) -> tuple[i64, i64]:
    """The number at `position`, and where it ends."""
    shift: i64 = 0
    zigzag: i64 = 0
    while True:
        if position >= end:
            raise CorruptData("a number is cut off at the end of its record")
        byte: i64 = data[position]
        position += 1
        zigzag |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise CorruptData("a number of more than 64 bits")
    if shift == 63 and byte > 1:
        raise CorruptData("a number of more than 64 bits")
    # The mask makes the shift one of an unsigned number.
    return ((zigzag >> 1) & 0x7FFF_FFFF_FFFF_FFFF) ^ -(zigzag & 1), position


@final
@mypyc_attr(acyclic=True)
class BatchHeader:
    """The 61 bytes before the records. Raises CorruptData for what cannot be a header; the checksum is not looked at,
    because reading only the headers of a segment is how it is searched. `size` is the whole batch's."""

    def __init__(self, data: bytes, position: i64 = 0) -> None:
        if position < 0 or position + HEADER_BYTES > len(data):
            raise CorruptData("a record batch ends within its header")
        magic: i64 = data[position + 16]
        if magic != _MAGIC:
            raise CorruptData(f"record batch of format {magic}, which is not 2")
        self.base_offset: Final[i64] = read_i64_be(data, position)
        self.size: Final[i64] = _i32(data, position + 8) + _LENGTH_OVERHEAD
        self.leader_epoch: Final[i64] = _i32(data, position + 12)
        self.crc: Final[i64] = _i32(data, position + 17) & 0xFFFF_FFFF
        self.attributes: Final[i64] = i64(read_i16_be(data, position + 21))
        self.last_offset_delta: Final[i64] = _i32(data, position + 23)
        self.base_timestamp_ms: Final[i64] = read_i64_be(data, position + 27)
        self.max_timestamp_ms: Final[i64] = read_i64_be(data, position + 35)
        self.producer_id: Final[i64] = read_i64_be(data, position + 43)
        self.producer_epoch: Final[i64] = i64(read_i16_be(data, position + 51))
        self.base_sequence: Final[i64] = _i32(data, position + 53)
        self.record_count: Final[i64] = _i32(data, position + 57)
        if self.size < HEADER_BYTES:
            raise CorruptData("a record batch is shorter than its header")
        if self.base_offset < 0 or self.base_offset > TIMESTAMP_MS_MAX:
            raise CorruptData(f"a record batch at the impossible offset {self.base_offset}")
        if self.last_offset_delta < 0:
            raise CorruptData("a record batch with a negative last offset delta")
        # Each record covers an offset of its own.
        if self.record_count < 0 or self.record_count > self.last_offset_delta + 1:
            raise CorruptData(f"a record batch of {self.record_count} records")

    @property
    def last_offset(self) -> i64:
        return self.base_offset + self.last_offset_delta

    @property
    def is_transactional(self) -> bool:
        return self.attributes & TRANSACTIONAL != 0

    @property
    def is_control(self) -> bool:
        """Whether its record is the mark that ends a transaction: no application's."""
        return self.attributes & CONTROL != 0


def _i32(data: bytes, position: i64) -> i64:
    return i64(read_i32_be(data, position))


def check_batch(data: bytes, leader_epoch: i64 = 0) -> None:
    """Raise CorruptData unless `data` is exactly one undamaged batch. What this cannot see is a wrong base offset: the
    caller compares it with the one it asked for, or with the end of the previous batch."""
    header = BatchHeader(data)
    if header.size != len(data):
        raise CorruptData(f"a record batch of {len(data)} bytes says that it has {header.size}")
    if header.leader_epoch != leader_epoch:
        raise CorruptData(f"a record batch of leader epoch {header.leader_epoch}, not {leader_epoch}")
    actual: i64 = crc32c(memoryview(data)[21:])
    if actual != header.crc:
        raise CorruptData(f"checksum of the record batch at offset {header.base_offset} does not match")


@final
class RecordReader:
    """Reads the records of one batch in turn:

        reader = RecordReader(batch)
        while reader.next():
            ... reader.offset, reader.timestamp_ms, reader.key, reader.value, reader.header_value

    `header_value` is the reserved header's, None where there is none, and the last one's where there are several;
    `start` and `end` are where the record is in the batch. Every length is checked against what is left, although the
    checksum was right: it says that the bytes are as written, not that the writer was right. Raises CorruptData; also
    for compressed records, which must be decompressed first.
    """

    def __init__(self, data: bytes) -> None:
        header = BatchHeader(data)
        if header.size != len(data):
            raise CorruptData(f"a record batch of {len(data)} bytes says that it has {header.size}")
        if header.attributes & COMPRESSION_MASK != 0:
            raise CorruptData("the records of this batch are compressed")
        if header.base_timestamp_ms < -1 or header.base_timestamp_ms > TIMESTAMP_MS_MAX:
            raise CorruptData(f"a record batch with the impossible timestamp {header.base_timestamp_ms}")
        self.header: Final = header
        self.offset: i64 = -1
        self.timestamp_ms: i64 = -1
        self.key: bytes | None = None
        self.value: bytes | None = None
        self.header_count: i64 = 0
        self.start: i64 = HEADER_BYTES
        self.end: i64 = HEADER_BYTES
        self._data: Final = data
        self._position: i64 = HEADER_BYTES
        # The end of what may be read now: of the batch, or of the present record.
        self._end: i64 = len(data)
        self._left: i64 = header.record_count
        self._last_delta: i64 = -1
        # Where the headers are: their count, the first one, the reserved one and its value.
        self._count_at: i64 = 0
        self._headers_at: i64 = 0
        self._reserved_at: i64 = 0
        self._reserved_value_at: i64 = 0
        self._reserved_end: i64 = 0

    def next(self) -> bool:
        """Go to the next record; False where there is none."""
        batch_end: i64 = len(self._data)
        self._end = batch_end
        if self._left == 0:
            if self._position != batch_end:
                raise CorruptData("bytes follow the last record of a batch")
            return False
        self.start = self._position
        length = self._varint()
        if length < 1 or length > batch_end - self._position:
            raise CorruptData(f"a record of {length} bytes does not fit into its batch")
        end: i64 = self._position + length
        self.end = end
        self._end = end
        # The record's attributes have no meaning yet.
        self._position += 1
        timestamp_delta = self._varint()
        offset_delta = self._varint()
        if offset_delta <= self._last_delta or offset_delta > self.header.last_offset_delta:
            raise CorruptData(f"a record at offset delta {offset_delta} after {self._last_delta}")
        if timestamp_delta > TIMESTAMP_MS_MAX or timestamp_delta < -TIMESTAMP_MS_MAX:
            raise CorruptData(f"a record with the impossible timestamp delta {timestamp_delta}")
        self._last_delta = offset_delta
        self.offset = self.header.base_offset + offset_delta
        if self.header.attributes & LOG_APPEND_TIME != 0:
            self.timestamp_ms = self.header.max_timestamp_ms
        else:
            self.timestamp_ms = self.header.base_timestamp_ms + timestamp_delta
        self.key = self._bytes()
        self.value = self._bytes()
        self._read_headers()
        if self._position != end:
            raise CorruptData("a record is longer than its fields")
        self._left -= 1
        return True

    @property
    def header_value(self) -> bytes | None:
        return self._data[self._reserved_value_at : self._reserved_end] if self._reserved_value_at > 0 else None

    @property
    def headers_raw(self) -> bytes:
        """All headers of the present record as they stand in it: their count, then each of them."""
        return self._data[self._count_at : self.end]

    @property
    def headers_before(self) -> bytes | None:
        """The headers before the reserved one, without their count. None where it is not the last one."""
        return self._data[self._headers_at : self._reserved_at] if self._reserved_end == self.end else None

    def headers(self) -> list[tuple[bytes, bytes | None]]:
        """All headers of the present record, in their order."""
        return decode_headers(self.headers_raw)

    def _read_headers(self) -> None:
        """Check all headers, and find the reserved one."""
        self._reserved_value_at = 0
        self._reserved_end = 0
        self._count_at = self._position
        count = self._varint()
        # The shortest header takes two bytes.
        if count < 0 or count * 2 > self._end - self._position:
            raise CorruptData(f"a record of {count} headers")
        self._headers_at = self._position
        self.header_count = count
        data = self._data
        while count > 0:
            begin: i64 = self._position
            size = self._varint()
            if size < 0 or size > self._end - self._position:
                raise CorruptData(f"a header's key of {size} bytes does not fit into its record")
            after: i64 = self._position + size
            is_reserved = size == _RESERVED_BYTES and data[after - size : after] == RESERVED_HEADER
            self._position = after
            size = self._varint()
            if size < -1 or size > self._end - self._position:
                raise CorruptData(f"a header of {size} bytes does not fit into its record")
            if is_reserved and size >= 0:
                self._reserved_at = begin
                self._reserved_value_at = self._position
                self._reserved_end = self._position + size
            if size > 0:
                self._position += size
            count -= 1

    def _bytes(self) -> bytes | None:
        size = self._varint()
        if size == -1:
            return None
        start: i64 = self._position
        if size < 0 or size > self._end - start:
            raise CorruptData(f"a field of {size} bytes does not fit into its record")
        self._position = start + size
        return self._data[start : start + size]

    def _varint(self) -> i64:
        data = self._data
        position: i64 = self._position
        end: i64 = self._end
        shift: i64 = 0
        zigzag: i64 = 0
        while True:
            if position >= end:
                raise CorruptData("a number is cut off at the end of its record")
            byte: i64 = data[position]
            position += 1
            zigzag |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise CorruptData("a number of more than 64 bits")
        if shift == 63 and byte > 1:
            raise CorruptData("a number of more than 64 bits")
        self._position = position
        # The mask makes the shift one of an unsigned number.
        return ((zigzag >> 1) & 0x7FFF_FFFF_FFFF_FFFF) ^ -(zigzag & 1)
