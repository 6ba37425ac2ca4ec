"""Record batches: as producers send them, and as they are read back; the codecs; what compaction makes of them."""

from __future__ import annotations

import random

from crc32c import crc32c

from faults.fuzz.targets.target import target
from millpond.base.errors import CorruptData
from millpond.base.limits import RECORDS_DECOMPRESSED_AT_ONCE_MAX
from millpond.broker.message import Address
from millpond.broker.queues.page_codec import decode_page
from millpond.broker.streams.record_messages import RecordMessages
from millpond.protocols.amqp.properties import basic_properties
from millpond.storage.batch_rewrite import emptied, first_record_at, newest_record, plain_batch, recompressed
from millpond.storage.compression import CODECS, compress, decompress
from millpond.storage.record_batch import (
    COMPRESSION_MASK,
    HEADER_BYTES,
    BatchBuilder,
    BatchHeader,
    RecordReader,
    check_batch,
    decode_headers,
    encode_headers,
)
from millpond.storage.record_filter import KeyIndex, RecordFilter
from millpond.storage.transaction_marker import end_marker, marker_of
from tests.protocols.kafka import fuzzing

_DECOMPRESSED_BYTES_MAX = 1 << 18
# Of those that decompress as much as the broker does at once: it, the room for it, and what is made of it.
_MEMORY_BYTES_MAX = 4 * RECORDS_DECOMPRESSED_AT_ONCE_MAX
_SECONDS_MAX = 10.0
_SLOTS = 64
_CHECKSUM_AT, _CHECKED_FROM = 17, 21
_LENGTH_AT = 8


def _batches() -> list[bytes]:
    chance = random.Random(7)
    builder = BatchBuilder()
    builder.append(0, 1_700_000_000_000, b"key", b"value", b"\x01\x01e\0\0")
    ours = builder.finish(0, 0)
    found = [fuzzing.random_batch(chance) for _ in range(16)]
    seeds = [ours, end_marker(5, 1, True, 1_700_000_000_000, 3), end_marker(5, 1, False, 1_700_000_000_000, 3)]
    plain = next(batch for batch in found if batch and len(batch) > HEADER_BYTES)
    seeds += [recompressed(ours, codec) for codec in CODECS.values()]
    return [*seeds, plain, *[batch for batch in found if batch]]


def made_whole(data: bytes) -> bytes:
    """The batch with the length that it has, and its checksum: else hardly any would be looked into."""
    if len(data) < HEADER_BYTES:
        return data
    length = (len(data) - 12).to_bytes(4, "big")
    checksum = crc32c(data[_CHECKED_FROM:]).to_bytes(4, "big")
    return data[:_LENGTH_AT] + length + data[_LENGTH_AT + 4 : _CHECKSUM_AT] + checksum + data[_CHECKED_FROM:]


def _records_of(batch: bytes) -> list[tuple[object, ...]]:
    reader = RecordReader(batch)
    records: list[tuple[object, ...]] = []
    while reader.next():
        headers = reader.headers()
        assert decode_headers(encode_headers(headers)) == headers
        records.append((int(reader.offset), int(reader.timestamp_ms), reader.key, reader.value, headers))
    return records


@target("record-batch", _batches, CorruptData, memory_bytes=8 << 20)
def read_batch(data: bytes) -> object:
    """One batch, whose length and checksum are right."""
    batch = made_whole(data)
    header = BatchHeader(batch)
    plain = plain_batch(batch, _DECOMPRESSED_BYTES_MAX)
    records = _records_of(plain)
    assert len(records) == header.record_count
    builder = BatchBuilder()
    for offset, timestamp_ms, key, value, headers in records:
        delta = offset - int(header.base_offset)  # type: ignore[operator]
        try:
            builder.append_with_headers(delta, max(-1, timestamp_ms), key, value, headers)  # type: ignore[type-var, arg-type]
        except ValueError:
            # Producers may state times that the broker makes no records with.
            return records
    again = _records_of(builder.finish(header.base_offset, header.last_offset_delta))
    assert [record[2:] for record in again] == [record[2:] for record in records]
    if header.leader_epoch == 0:
        check_batch(plain)
    if header.is_control:
        marker = marker_of(plain)
        records.append((marker is None or int(marker.kind),))
    return records, first_record_at(batch, 0, 0), newest_record(batch, 0), emptied(batch)


@target("record-messages", _batches, memory_bytes=_MEMORY_BYTES_MAX, seconds=_SECONDS_MAX)
def read_messages(data: bytes) -> object:
    """The batch as messages, of which nothing is refused: what makes no sense is passed over."""
    reader = RecordMessages("a target")
    if not reader.open(made_whole(data)):
        return None
    shown: list[object] = []
    while reader.next():
        message = reader.message
        properties = basic_properties(message.properties)
        assert isinstance(message.address, Address)
        shown.append((message.address.routing_key, len(message.body), properties.raw, message.properties.described()))
        message.properties.replaced({"x": 1}, False).headers()
    return shown


@target("record-compaction", _batches, CorruptData, memory_bytes=_MEMORY_BYTES_MAX, seconds=_SECONDS_MAX)
def compact(data: bytes) -> object:
    """What compaction leaves of the batch, which must be a batch at the same place."""
    batch = made_whole(data)
    header = BatchHeader(batch)
    index = KeyIndex(header.base_offset, _SLOTS)
    index.add(batch)
    left = RecordFilter(index, 1_700_000_000_000, 1_000).apply(batch)
    if not left:
        return None
    after = BatchHeader(left)
    assert (after.base_offset, after.last_offset) == (header.base_offset, header.last_offset)
    before = {record[0]: record[1:] for record in _records_of(plain_batch(batch))}
    try:
        kept = _records_of(plain_batch(left))
    except CorruptData as error:
        raise AssertionError("what compaction has left cannot be read") from error
    assert kept == [(record[0], *before[record[0]]) for record in kept], "compaction has changed a record"
    return left


@target("record-page", _batches, CorruptData, memory_bytes=4 << 20)
def read_page(data: bytes) -> object:
    """The batch as a page of a queue."""
    batch = made_whole(data)
    header = BatchHeader(batch)
    offsets, messages = decode_page(batch, header.last_offset + 1)
    return [int(offset) for offset in offsets], [(message.address.exchange, message.body) for message in messages]


def _compressed() -> list[bytes]:
    texts = [b"", b"a", b"hello " * 50, bytes(1 << 16), random.Random(8).randbytes(200)]
    return [bytes([codec]) + compress(codec, text)[:3000] for codec in CODECS.values() for text in texts]


@target("compression", _compressed, CorruptData, memory_bytes=8 << 20)
def read_compressed(data: bytes) -> object:
    """codec u8 | what it has compressed. However much that would be, no more is taken than is allowed."""
    if not data:
        return None
    codec = data[0] & COMPRESSION_MASK
    plain = decompress(codec, data[1:], _DECOMPRESSED_BYTES_MAX)
    assert len(plain) <= _DECOMPRESSED_BYTES_MAX
    assert decompress(codec, compress(codec, plain), _DECOMPRESSED_BYTES_MAX) == plain
    return plain
