"""Record batches made of others: decompressed, compressed otherwise, stamped with a time; and what is looked for in
them.

A batch that is made of another keeps its place: base offset, last offset delta, leader epoch, and what its producer has
numbered it with. All functions raise CorruptData for records that make no sense, and for those that decompress to more
than `bytes_max`: on the event loop it should be less than the default.
"""

from __future__ import annotations

from typing import Final

from crc32c import crc32c
from librt.strings import BytesWriter, write_i16_be, write_i32_be, write_i64_be
from mypy_extensions import i16, i32, i64

from millpond.base.limits import RECORDS_DECOMPRESSED_BYTES_MAX
from millpond.storage.compression import compress, decompress
from millpond.storage.record_batch import (
    COMPRESSION_MASK,
    DELETE_HORIZON,
    HEADER_BYTES,
    LOG_APPEND_TIME,
    BatchHeader,
    RecordReader,
)

_MAGIC: Final = 2
# From the leader epoch, which the batch length counts first, to where the checksummed part begins.
_UNCHECKED_BYTES: Final[i64] = 9


def plain_batch(batch: bytes, bytes_max: i64 = RECORDS_DECOMPRESSED_BYTES_MAX) -> bytes:
    """The batch with its records as they are when not compressed."""
    header = BatchHeader(batch)
    codec = header.attributes & COMPRESSION_MASK
    if codec == 0:
        return batch
    records = decompress(int(codec), batch[HEADER_BYTES:], int(bytes_max))
    attributes = header.attributes & ~COMPRESSION_MASK
    return rebuilt(batch, attributes, header.base_timestamp_ms, header.max_timestamp_ms, header.record_count, records)


def recompressed(
    batch: bytes, codec: i64, level: int | None = None, bytes_max: i64 = RECORDS_DECOMPRESSED_BYTES_MAX
) -> bytes:
    """The batch with its records compressed by another codec; itself where it is that one."""
    header = BatchHeader(batch)
    if header.attributes & COMPRESSION_MASK == codec:
        return batch
    records = compress(int(codec), plain_batch(batch, bytes_max)[HEADER_BYTES:], level)
    attributes = (header.attributes & ~COMPRESSION_MASK) | codec
    return rebuilt(batch, attributes, header.base_timestamp_ms, header.max_timestamp_ms, header.record_count, records)


def with_append_time(batch: bytes, now_ms: i64) -> bytes:
    """The batch with the time at which it is appended as that of all of its records."""
    header = BatchHeader(batch)
    attributes = header.attributes | LOG_APPEND_TIME
    return rebuilt(batch, attributes, header.base_timestamp_ms, now_ms, header.record_count, batch[HEADER_BYTES:])


def emptied(batch: bytes) -> bytes:
    """The batch without its records: what is left says what its producer has numbered it with."""
    header = BatchHeader(batch)
    attributes = header.attributes & ~(COMPRESSION_MASK | DELETE_HORIZON)
    return rebuilt(batch, attributes, -1, header.max_timestamp_ms, 0, b"")


def rebuilt(
    batch: bytes,
    attributes: i64,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
    record_count: i64,
    records: bytes,
) -> bytes:
    """A batch at the place of `batch` and of its producer, with these records."""
    writer = BytesWriter()
    write_i16_be(writer, i16(attributes))
    # The last offset delta.
    writer.write(batch[23:27])
    write_i64_be(writer, base_timestamp_ms)
    write_i64_be(writer, max_timestamp_ms)
    # Producer id, producer epoch, base sequence.
    writer.write(batch[43:57])
    write_i32_be(writer, i32(record_count))
    writer.write(records)
    checked = writer.getvalue()
    prefix = BytesWriter()
    # Base offset, and after the length the leader epoch.
    prefix.write(batch[0:8])
    write_i32_be(prefix, i32(len(checked) + _UNCHECKED_BYTES))
    prefix.write(batch[12:16])
    prefix.append(_MAGIC)
    checksum: i64 = crc32c(checked)
    write_i32_be(prefix, i32(checksum - (checksum >> 31 << 32)))
    return prefix.getvalue() + checked


def first_record_at(batch: bytes, timestamp_ms: i64, offset: i64) -> tuple[int, int]:
    """(offset, timestamp) of the first record from `offset` on that is not older than `timestamp_ms`; -1, -1 where all
    are."""
    reader = RecordReader(plain_batch(batch))
    while reader.next():
        if reader.timestamp_ms >= timestamp_ms and reader.offset >= offset:
            return int(reader.offset), int(reader.timestamp_ms)
    return -1, -1


def newest_record(batch: bytes, offset: i64) -> tuple[int, int]:
    """(offset, timestamp) of the record with the largest timestamp, the first of several, among those from `offset` on;
    -1, -1 where there is none."""
    found: i64 = -1
    found_ms: i64 = -1
    reader = RecordReader(plain_batch(batch))
    while reader.next():
        if reader.offset >= offset and (found < 0 or reader.timestamp_ms > found_ms):
            found = reader.offset
            found_ms = reader.timestamp_ms
    return int(found), int(found_ms)
