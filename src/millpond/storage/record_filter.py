"""What compaction leaves of one record batch.

A record stays when it is the last one of its key, as far as the table of keys reaches; records beyond that stay anyway.
One without a value says that its key is deleted: it stays too, until the delete horizon of its batch, which is set when
compaction first comes by. A record without a key has no place in a compacted log.

Records of aborted transactions go, whatever their keys. The marker that ends a transaction stays as long as there is a
batch of it, and then until a delete horizon too: a reader that has seen such a batch must find the marker.

A batch that loses records keeps its offsets, its producer's numbers and its codec. With a delete horizon, base
timestamp and timestamp deltas change so that the records' timestamps do not.

Source: Apache Kafka, KIP-534, and the rules of its log cleaner.
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import BytesWriter
from mypy_extensions import i64

from millpond.base.errors import CorruptData
from millpond.storage.aborted_transactions import AbortedTransactions
from millpond.storage.batch_rewrite import plain_batch, rebuilt
from millpond.storage.compression import compress
from millpond.storage.key_offsets import KeyOffsets
from millpond.storage.record_batch import (
    COMPRESSION_MASK,
    DELETE_HORIZON,
    HEADER_BYTES,
    LOG_APPEND_TIME,
    TIMESTAMP_MS_MAX,
    BatchHeader,
    RecordReader,
    write_varint,
)


@final
class KeyIndex:
    """The last offset of each key of the part of a log that compaction has not been over."""

    def __init__(self, first_offset: i64, slots_max: i64, aborted: AbortedTransactions | None = None) -> None:
        self._aborted: Final = aborted or AbortedTransactions()
        self.offsets: Final = KeyOffsets(slots_max)
        # All records before it are in the table, or were before `first_offset`.
        self.end_offset: i64 = first_offset
        self.is_full = False
        self._first_offset: Final[i64] = first_offset

    def add(self, batch: bytes) -> bool:
        """Take in a batch's records; False where its records make no sense. Sets `is_full` where there was no room
        for all of them."""
        header = BatchHeader(batch)
        makes_sense = True
        is_aborted = header.is_transactional and self._aborted.covers(header.producer_id, header.base_offset)
        if header.record_count > 0 and not header.is_control and not is_aborted:
            try:
                self._add_records(RecordReader(plain_batch(batch)))
            except CorruptData:
                makes_sense = False
        if not self.is_full:
            self.end_offset = header.last_offset + 1
        return makes_sense

    def _add_records(self, reader: RecordReader) -> None:
        while reader.next():
            key = reader.key
            if key is not None and reader.offset >= self._first_offset:
                if not self.offsets.put(key, reader.offset):
                    self.is_full = True
                    self.end_offset = reader.offset
                    return


@final
class RecordFilter:
    """Applies the rules to one batch after the other."""

    def __init__(self, keys: KeyIndex, now_ms: i64, delete_retention_ms: i64) -> None:
        self._offsets: Final = keys.offsets
        self._end_offset: Final[i64] = keys.end_offset
        self._now_ms: Final[i64] = now_ms
        self._horizon_ms: Final[i64] = now_ms + delete_retention_ms
        self._aborted: Final = keys._aborted
        # Producers of which transactional batches have come since their last marker.
        self._in_transaction: Final[set[int]] = set()
        # Set where older records could not be looked at: what says that they are deleted must then stay.
        self.keeps_deletions = False
        self.records_read: i64 = 0
        self.records_kept: i64 = 0

    def apply(self, batch: bytes) -> bytes:
        """What is left of the batch: itself where nothing changes, nothing where no record is left. CorruptData where
        its records make no sense."""
        header = BatchHeader(batch)
        if header.is_control:
            return self._marker(batch, header)
        if header.is_transactional:
            self._in_transaction.add(int(header.producer_id))
            if self._aborted.covers(header.producer_id, header.base_offset):
                self.records_read += header.record_count
                return b""
        plain = plain_batch(batch)
        reader = RecordReader(plain)
        has_horizon = header.attributes & DELETE_HORIZON != 0
        deletions_stay = self.keeps_deletions or not has_horizon or self._now_ms < header.base_timestamp_ms
        kept: list[bytes] = []
        count: i64 = 0
        # Records that stay one after the other are copied at once.
        run_start: i64 = -1
        run_end: i64 = -1
        newest_ms: i64 = -1
        has_deletions = False
        needs_horizon = False
        while reader.next():
            is_deletion = reader.value is None
            if not self._stays(reader, is_deletion and not deletions_stay):
                continue
            has_deletions = has_deletions or is_deletion
            count += 1
            newest_ms = max(newest_ms, reader.timestamp_ms)
            if reader.start == run_end:
                run_end = reader.end
                continue
            if run_start >= 0:
                kept.append(plain[run_start:run_end])
            run_start = reader.start
            run_end = reader.end
        self.records_read += header.record_count
        self.records_kept += count
        if count == 0:
            return b""
        needs_horizon = has_deletions and not has_horizon
        if count == header.record_count and not needs_horizon:
            return batch
        kept.append(plain[run_start:run_end])
        records = b"".join(kept)
        attributes = header.attributes
        base_ms = header.base_timestamp_ms
        if needs_horizon:
            records = _with_base(records, count, base_ms - self._horizon_ms)
            base_ms = self._horizon_ms
            attributes |= DELETE_HORIZON
        codec = attributes & COMPRESSION_MASK
        if codec != 0:
            records = compress(int(codec), records)
        if attributes & LOG_APPEND_TIME != 0:
            newest_ms = header.max_timestamp_ms
        return rebuilt(batch, attributes, base_ms, newest_ms, count, records)

    def _marker(self, batch: bytes, header: BatchHeader) -> bytes:
        """What is left of a control batch."""
        has_batches = int(header.producer_id) in self._in_transaction
        self._in_transaction.discard(int(header.producer_id))
        if has_batches or self.keeps_deletions:
            return batch
        if header.attributes & DELETE_HORIZON == 0:
            reader = RecordReader(batch)
            while reader.next():
                # They are checked here: what follows trusts them.
                pass
            records = _with_base(batch[HEADER_BYTES:], header.record_count, header.base_timestamp_ms - self._horizon_ms)
            attributes = header.attributes | DELETE_HORIZON
            newest_ms = header.max_timestamp_ms
            return rebuilt(batch, attributes, self._horizon_ms, newest_ms, header.record_count, records)
        return batch if self._now_ms < header.base_timestamp_ms else b""

    def _stays(self, reader: RecordReader, is_deletable: bool) -> bool:
        if reader.offset >= self._end_offset:
            return True
        key = reader.key
        return key is not None and not is_deletable and reader.offset >= self._offsets.get(key)


def _with_base(records: bytes, count: i64, later_by_ms: i64) -> bytes:
    """Records whose timestamp deltas are larger by so much. CorruptData where no delta can say that."""
    writer = BytesWriter()
    position: i64 = 0
    while count > 0:
        length, position = _varint(records, position)
        end = position + length
        # The record's attributes.
        fields = BytesWriter()
        fields.append(records[position])
        delta_ms, position = _varint(records, position + 1)
        delta_ms += later_by_ms
        # What is written here must be read again: a producer may state any time, and this one lies too far away.
        if delta_ms > TIMESTAMP_MS_MAX or delta_ms < -TIMESTAMP_MS_MAX:
            raise CorruptData(f"a record whose timestamp delta would be {delta_ms}")
        write_varint(fields, delta_ms)
        write_varint(writer, len(fields) + end - position)
        writer.write(fields.getvalue())
        writer.write(records[position:end])
        position = end
        count -= 1
    return writer.getvalue()


def _varint(data: bytes, position: i64) -> tuple[i64, i64]:
    """A number that has been read before, and the position behind it."""
    shift: i64 = 0
    zigzag: i64 = 0
    while True:
        byte: i64 = data[position]
        position += 1
        zigzag |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    # The mask makes the shift one of an unsigned number.
    return ((zigzag >> 1) & 0x7FFF_FFFF_FFFF_FFFF) ^ -(zigzag & 1), position
