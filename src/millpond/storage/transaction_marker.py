"""The mark that ends a producer's transaction in a partition: a control batch with one record.

    key    version i16, 0 | type i16: 0 aborted, 1 committed
    value  version i16, 0 | coordinator epoch i32

The batch has the producer's id and epoch, no sequence number, and the attributes "transactional" and "control". Kafka's
consumers read it themselves and show it to nobody.

Source: Apache Kafka, KIP-98, "Control Messages".
"""

from __future__ import annotations

from typing import Final, final

from crc32c import crc32c
from librt.strings import BytesWriter, read_i16_be, read_i32_be, write_i16_be, write_i32_be, write_i64_be
from mypy_extensions import i16, i32, i64

from millpond.base.errors import CorruptData
from millpond.storage.record_batch import CONTROL, TRANSACTIONAL, RecordReader, write_varint

ABORTED: Final = 0
COMMITTED: Final = 1

_MAGIC: Final = 2
_KEY_BYTES: Final = 4
_VALUE_BYTES: Final = 6
# From the leader epoch, which the batch length counts first, to where the checksummed part begins.
_UNCHECKED_BYTES: Final[i64] = 9


@final
class TransactionMarker:
    """What a control batch says. `kind` is ABORTED, COMMITTED, or something that ends no transaction."""

    def __init__(self, kind: i64, coordinator_epoch: i64) -> None:
        self.kind: Final[i64] = kind
        self.coordinator_epoch: Final[i64] = coordinator_epoch


def end_marker(
    producer_id: i64, producer_epoch: i64, is_commit: bool, timestamp_ms: i64, coordinator_epoch: i64
) -> bytes:
    """The batch, at offset 0."""
    record = BytesWriter()
    # No attributes, timestamp delta and offset delta 0.
    record.append(0)
    record.append(0)
    record.append(0)
    write_varint(record, _KEY_BYTES)
    write_i16_be(record, 0)
    write_i16_be(record, i16(COMMITTED if is_commit else ABORTED))
    write_varint(record, _VALUE_BYTES)
    write_i16_be(record, 0)
    write_i32_be(record, i32(coordinator_epoch))
    # No headers.
    record.append(0)
    writer = BytesWriter()
    write_i16_be(writer, i16(TRANSACTIONAL | CONTROL))
    # The last offset delta.
    write_i32_be(writer, 0)
    write_i64_be(writer, timestamp_ms)
    write_i64_be(writer, timestamp_ms)
    write_i64_be(writer, producer_id)
    write_i16_be(writer, i16(producer_epoch))
    write_i32_be(writer, -1)
    write_i32_be(writer, 1)
    write_varint(writer, len(record))
    writer.write(record.getvalue())
    checked = writer.getvalue()
    prefix = BytesWriter()
    write_i64_be(prefix, 0)
    write_i32_be(prefix, i32(len(checked) + _UNCHECKED_BYTES))
    write_i32_be(prefix, 0)
    prefix.append(_MAGIC)
    checksum: i64 = crc32c(checked)
    write_i32_be(prefix, i32(checksum - (checksum >> 31 << 32)))
    return prefix.getvalue() + checked


def marker_of(batch: bytes) -> TransactionMarker | None:
    """What a control batch says; None where compaction has left nothing of it. CorruptData where it makes no sense."""
    reader = RecordReader(batch)
    if not reader.next():
        return None
    key, value = reader.key, reader.value
    if key is None or len(key) < _KEY_BYTES:
        raise CorruptData("a control record without a type")
    kind = i64(read_i16_be(key, 2))
    if kind != ABORTED and kind != COMMITTED:
        return TransactionMarker(kind, -1)
    if value is None or len(value) < _VALUE_BYTES:
        raise CorruptData("the end of a transaction without its coordinator's epoch")
    return TransactionMarker(kind, i64(read_i32_be(value, 2)))
