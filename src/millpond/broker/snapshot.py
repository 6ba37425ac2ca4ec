"""A checkpoint's snapshot: the delivery state of every recoverable queue, at the moment its journal file begins.

    magic "MPCHKPT\\0" | version u32 | crc32c u32 of the version and of all that follows
    first journal file i64 | clean u8 | queue count i32
    queue   log id i64 | next offset i64 | log end i64 | first never delivered i64 | expiring u8 | page count i32
            | attempt count i32 | (offset i64, returns i64) each
    page    start i64 | end i64 | live i64 | live bytes i64 | due i64
            | segment i64 | position i64 | length i64 | settled range count i32 | (start i64, end i64) each
    stream count i32
    stream  log id i64 | start offset i64 | end offset i64 | log end i64 | cleaned end i64 | producer count i32
            | producers | aborted transaction count i32
            | (producer id i64, first offset i64, last offset i64, stable end i64) each
    producer  producer id i64 | epoch i32 | last seen i64 | transaction start i64 | coordinator epoch i32
              | batch count i32 | (first sequence i32, last sequence i32, base offset i64, timestamp i64) each
    record count i32 | (change u8, length i32, record) each: those of keepers, see keepers.py

Version 1 has no attempts, no due and no streams; version 2 has no cleaned end, no producers and no records; version 3
has records of consumer groups only, no change before them, and nothing about transactions.

Only pages that are in the queue's log are listed: the journal from `first journal file` on has the others. `clean`
says that the broker was stopped in order, so that what was never delivered is known.
"""

from __future__ import annotations

from typing import Final, final

import crc32c
from librt.strings import BytesWriter, read_i32_be, read_i64_be, write_i32_be, write_i64_be
from mypy_extensions import i32, i64, u8

from millpond.base.errors import CorruptData, UnsupportedFormat
from millpond.broker.queues.backlog import Backlog, queue_id
from millpond.broker.queues.lanes import Lanes
from millpond.broker.queues.page import Page
from millpond.broker.records import CHANGE_GROUP
from millpond.broker.streams.partition import Partition
from millpond.broker.streams.producers import ProducedBatch, Producer
from millpond.storage.aborted_transactions import AbortedTransaction
from millpond.storage.log import BatchPlace

MAGIC: Final = b"MPCHKPT\x00"
VERSION: Final = 4
_HEADER_BYTES: Final = 16


@final
class PageState:
    """A page as it was at the moment of the checkpoint; where it is in the log may become known later."""

    def __init__(self, page: Page) -> None:
        self.page: Final = page
        self.start: Final[i64] = page.start
        self.end: Final[i64] = page.end
        self.live: Final[i64] = page.live
        self.live_bytes: Final[i64] = page.live_bytes
        self.due_ms: Final[i64] = page.due_ms
        self.settled: Final = _settled_ranges(page)


@final
class QueueState:
    """A queue as it was at the moment of the checkpoint."""

    def __init__(self, queue: Backlog) -> None:
        self.queue: Final = queue
        self.log_id: Final[i64] = queue.log_id
        self.next_offset: Final[i64] = queue.next_offset
        self.log_end: Final[i64] = queue.log_end
        head = queue.pages[queue.head]
        # Whatever is left before it was delivered, and has been given back or is still unsettled.
        self.first_fresh: Final[i64] = max(head.start + head.taken, queue.redelivered_before)
        self.expiring: Final = queue.queue.expiring
        self.attempts: Final = dict(queue.attempts)
        self.pages: Final[list[PageState]] = [
            PageState(page) for page in queue.pages if page.live > 0 and (page.place is not None or page.writing)
        ]
        # The lowest offset that this snapshot needs from the log.
        self.first_needed: Final[i64] = self.pages[0].start if self.pages else queue.log_end


@final
class StreamState:
    """A stream as it was at the moment of the checkpoint."""

    def __init__(self, partition: Partition) -> None:
        self.partition: Final = partition
        self.log_id: Final[i64] = partition.log_id
        self.start_offset: Final[i64] = partition.start_offset
        self.end_offset: Final[i64] = partition.end_offset
        self.log_end: Final[i64] = partition.log_end
        self.cleaned_end: Final[i64] = partition.cleaned_end
        self.producers: Final = partition.producers.encoded()
        self.aborted: Final = partition.transactions.aborted.encoded()


def _settled_ranges(page: Page) -> list[tuple[int, int]]:
    if not page.resident:
        return list(page.settled_ranges)
    if page.live == len(page.entries):
        return []
    ranges: list[tuple[int, int]] = []
    offset = page.start
    start: i64 = -1
    for slot in page.entries:
        if slot is None:
            if start < 0:
                start = offset
        elif start >= 0:
            ranges.append((int(start), int(offset)))
            start = -1
        offset += 1
    if start >= 0:
        ranges.append((int(start), int(offset)))
    return ranges


def encode_snapshot(
    first_file: i64,
    clean: bool,
    queues: list[QueueState],
    streams: list[StreamState] | None = None,
    records: list[tuple[int, bytes]] | None = None,
) -> bytes:
    """The file's content. Every page must have its place by now."""
    body = BytesWriter()
    write_i64_be(body, first_file)
    body.append(1 if clean else 0)
    write_i32_be(body, i32(len(queues)))
    for queue in queues:
        write_i64_be(body, queue.log_id)
        write_i64_be(body, queue.next_offset)
        write_i64_be(body, queue.log_end)
        write_i64_be(body, queue.first_fresh)
        body.append(1 if queue.expiring else 0)
        write_i32_be(body, i32(len(queue.pages)))
        write_i32_be(body, i32(len(queue.attempts)))
        for offset, returns in queue.attempts.items():
            write_i64_be(body, offset)
            write_i64_be(body, returns)
        for state in queue.pages:
            place = state.page.place
            if place is None:
                raise RuntimeError("a page without a place in a snapshot")
            write_i64_be(body, state.start)
            write_i64_be(body, state.end)
            write_i64_be(body, state.live)
            write_i64_be(body, state.live_bytes)
            write_i64_be(body, state.due_ms)
            write_i64_be(body, place.segment_base)
            write_i64_be(body, place.position)
            write_i64_be(body, place.length)
            write_i32_be(body, i32(len(state.settled)))
            for start, end in state.settled:
                write_i64_be(body, start)
                write_i64_be(body, end)
    write_i32_be(body, i32(0 if streams is None else len(streams)))
    for stream in streams or []:
        write_i64_be(body, stream.log_id)
        write_i64_be(body, stream.start_offset)
        write_i64_be(body, stream.end_offset)
        write_i64_be(body, stream.log_end)
        write_i64_be(body, stream.cleaned_end)
        body.write(stream.producers)
        body.write(stream.aborted)
    write_i32_be(body, i32(0 if records is None else len(records)))
    for change, record in records or []:
        body.append(u8(change))
        write_i32_be(body, i32(len(record)))
        body.write(record)
    content = body.getvalue()
    header = BytesWriter()
    header.write(MAGIC)
    write_i32_be(header, VERSION)
    checksum = crc32c.crc32c(content, crc32c.crc32c(header.getvalue()[len(MAGIC) :]))
    write_i32_be(header, i32(checksum - (checksum >> 31 << 32)))
    return header.getvalue() + content


@final
class SnapshotReader:
    """Reads a snapshot's content, never beyond its end."""

    def __init__(self, data: bytes) -> None:
        """CorruptData, or UnsupportedFormat for one that a newer version wrote."""
        if len(data) < _HEADER_BYTES or data[:8] != MAGIC:
            raise CorruptData("not a checkpoint")
        version = read_i32_be(data, 8)
        self._data: Final = data
        self._position: i64 = _HEADER_BYTES
        checksum = int(read_i32_be(data, 12)) & 0xFFFFFFFF
        # At the same place in every version, so that damage is never mistaken for the future.
        if crc32c.crc32c(data[_HEADER_BYTES:], crc32c.crc32c(data[len(MAGIC) : 12])) != checksum:
            raise CorruptData("the checksum does not match")
        if not 1 <= version <= VERSION:
            raise UnsupportedFormat(f"a checkpoint of version {version}, but only versions up to {VERSION} are known")
        self._version: Final = int(version)
        # The highest id of any queue in it, as far as it was read.
        self.log_id_max = 0
        self.first_file: Final = int(self._i64())
        self.clean: Final = self._u8() == 1
        self._queues_left = self._i32()
        # Known when all queues have been read, and all streams.
        self._streams_left: i64 = -1
        self._records_left: i64 = -1
        # A keeper's record, and the number of its keeper.
        self.record_change = 0
        self.record = b""

    def restore_next(self, lanes: Lanes) -> bool:
        """Give the next queue of the snapshot its state; False after the last. One that is gone is passed over."""
        if self._queues_left == 0:
            return False
        self._queues_left -= 1
        log_id = int(self._i64())
        self.log_id_max = max(self.log_id_max, queue_id(log_id))
        queue = lanes.get(log_id)
        next_offset = self._i64()
        log_end = self._i64()
        first_fresh = self._i64()
        expiring = self._u8() == 1
        if queue is not None:
            queue.restore(next_offset, log_end, first_fresh, expiring)
        pages = self._i32()
        for _ in range(self._i32() if self._version > 1 else 0):
            offset = int(self._i64())
            returns = int(self._i64())
            if queue is not None:
                queue.attempts[offset] = returns
        for _ in range(pages):
            start = self._i64()
            end = self._i64()
            live = self._i64()
            size = self._i64()
            due_ms = self._i64() if self._version > 1 else i64(-1)
            place = BatchPlace(int(self._i64()), int(self._i64()), int(self._i64()))
            settled: list[tuple[int, int]] = []
            for _ in range(self._i32()):
                first = int(self._i64())
                settled.append((first, int(self._i64())))
            if queue is not None:
                queue.restore_page(start, end, live, size, settled, place, due_ms)
        return True

    def restore_next_stream(self, lanes: Lanes) -> bool:
        """Give the next stream its state; False after the last. To be called when all queues have theirs."""
        if self._streams_left < 0:
            self._streams_left = self._i32() if self._version > 1 else i64(0)
        if self._streams_left == 0:
            return False
        self._streams_left -= 1
        log_id = int(self._i64())
        self.log_id_max = max(self.log_id_max, queue_id(log_id))
        start_offset = self._i64()
        end_offset = self._i64()
        log_end = self._i64()
        partition = lanes.partition(log_id)
        if partition is not None:
            partition.restore(start_offset, end_offset, log_end)
        if self._version > 2:
            cleaned_end = self._i64()
            if partition is not None:
                partition.cleaned_end = cleaned_end
            producers: list[Producer] = []
            for _ in range(self._i32()):
                producers.append(self._producer())
            aborted: list[AbortedTransaction] = []
            for _ in range(self._i32() if self._version > 3 else 0):
                producer_id, first_offset, last_offset = self._i64(), self._i64(), self._i64()
                aborted.append(AbortedTransaction(producer_id, first_offset, last_offset, self._i64()))
            if partition is not None:
                partition.restore_producers(producers, aborted)
        return True

    def next_record(self) -> bool:
        """Move to the next record of a keeper; False after the last. To be called when all streams have their state."""
        if self._records_left < 0:
            self._records_left = self._i32() if self._version > 2 else i64(0)
        if self._records_left == 0:
            return False
        self._records_left -= 1
        self.record_change = int(self._u8()) if self._version > 3 else CHANGE_GROUP
        length = self._i32()
        start = self._position
        if length < 0 or start + length > len(self._data):
            raise CorruptData("the checkpoint is cut short")
        self._position = start + length
        self.record = self._data[start : start + length]
        return True

    def _producer(self) -> Producer:
        producer = Producer(self._i64(), self._i32())
        producer.seen_ms = self._i64()
        if self._version > 3:
            producer.transaction_start = self._i64()
            producer.coordinator_epoch = self._i32()
        for _ in range(self._i32()):
            first, last = self._i32(), self._i32()
            base_offset = self._i64()
            producer.batches.append(ProducedBatch(first, last, base_offset, self._i64()))
        return producer

    def _i64(self) -> i64:
        position = self._position
        if position + 8 > len(self._data):
            raise CorruptData("the checkpoint is cut short")
        self._position = position + 8
        return read_i64_be(self._data, position)

    def _i32(self) -> i64:
        position = self._position
        if position + 4 > len(self._data):
            raise CorruptData("the checkpoint is cut short")
        self._position = position + 4
        return i64(read_i32_be(self._data, position))

    def _u8(self) -> i64:
        position = self._position
        if position >= len(self._data):
            raise CorruptData("the checkpoint is cut short")
        self._position = position + 1
        return i64(self._data[position])
