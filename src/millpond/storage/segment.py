"""A segment: one file of a log, and its sparse index.

    <base offset, 20 digits>.log      record batches, one right after the other, nothing else
    <base offset, 20 digits>.index    one entry per 4 KiB of the segment, and a closing entry
    <base offset, 20 digits>.cleaned  what compaction is writing; worth nothing before it has its next name
    <base offset, 20 digits>.swap     what compaction has made of the segments from this offset on, complete

    index entry, 24 bytes             0  8  offset - base offset
                                      8  4  position in the segment
                                     12  8  largest timestamp, ms, of all batches before that position; -1 for none
                                     20  4  CRC32C of the base offset (8 bytes) and the above

A segment's first batch is at its base offset, and each further one begins where the one before ends (`record_batch.py`
says why that matters). The closing entry has the position, offset and timestamp of the segment's end.

The index only says where to begin to look. It is written when the segment is complete, without a sync, and made again
from the segment when it is missing or an entry's checksum is wrong. The active segment's index is in memory.

Whole numbers are big-endian.
"""

from __future__ import annotations

import posixpath
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, final

from crc32c import crc32c

from millpond.base import limits
from millpond.base.errors import CorruptData
from millpond.storage.file_pool import FilePool
from millpond.storage.pieces import joined
from millpond.storage.record_batch import HEADER_BYTES, BatchHeader, check_batch

_ENTRY = struct.Struct(">qIq")
_CRC = struct.Struct(">I")
_BASE = struct.Struct(">q")
ENTRY_BYTES: Final = 24
# Positions in an index have 32 bits.
SEGMENT_BYTES_MAX: Final = (1 << 32) - 1
# Enough for the headers of many small batches, and little for that of a large one.
_HEADERS_READ_BYTES: Final = 4096
_WALK_READ_BYTES: Final = 1 << 20


@final
@dataclass(frozen=True)
class IndexEntry:
    """A batch begins at `position` with `offset`; all before it are at most `max_timestamp_ms` old."""

    offset: int
    position: int
    max_timestamp_ms: int


class SegmentIndex:
    """The entries of one segment, in memory for the active one."""

    def __init__(self, base_offset: int) -> None:
        self._base_offset: Final = base_offset
        self._seed: Final[int] = crc32c(_BASE.pack(base_offset))
        self._entries = bytearray()
        self._next_position = 0

    def __len__(self) -> int:
        return len(self._entries) // ENTRY_BYTES

    def entry(self, number: int) -> IndexEntry:
        """One entry. Raises CorruptData where its checksum is wrong."""
        return self.decode(bytes(self._entries[number * ENTRY_BYTES : (number + 1) * ENTRY_BYTES]))

    def decode(self, data: bytes) -> IndexEntry:
        if len(data) != ENTRY_BYTES or crc32c(data[:20], self._seed) != _CRC.unpack_from(data, 20)[0]:
            raise CorruptData("an index entry does not verify")
        offset, position, max_timestamp_ms = _ENTRY.unpack_from(data)
        return IndexEntry(self._base_offset + offset, position, max_timestamp_ms)

    def batch_begins(self, offset: int, position: int, max_timestamp_ms: int) -> None:
        """Add an entry where one is due. `max_timestamp_ms` is that of all batches before."""
        if position >= self._next_position:
            self._add(offset, position, max_timestamp_ms)
            self._next_position = position + limits.INDEX_INTERVAL_BYTES

    def content(self, end_offset: int, size: int, max_timestamp_ms: int) -> bytes:
        """The index file of a segment that ends like this."""
        return bytes(self._entries) + self._encode(end_offset, size, max_timestamp_ms)

    def _add(self, offset: int, position: int, max_timestamp_ms: int) -> None:
        self._entries += self._encode(offset, position, max_timestamp_ms)

    def _encode(self, offset: int, position: int, max_timestamp_ms: int) -> bytes:
        fields = _ENTRY.pack(offset - self._base_offset, position, max_timestamp_ms)
        return fields + _CRC.pack(crc32c(fields, self._seed))


@final
class IndexFile(SegmentIndex):
    """The entries of a complete segment, read from its file one by one."""

    def __init__(self, base_offset: int, files: FilePool, path: str) -> None:
        super().__init__(base_offset)
        self._files: Final = files
        self._path: Final = path
        self._count: Final = files.size(path) // ENTRY_BYTES

    def __len__(self) -> int:
        return self._count

    def entry(self, number: int) -> IndexEntry:
        return self.decode(self._files.read(self._path, number * ENTRY_BYTES, ENTRY_BYTES))


@final
class Walk:
    """What a walk over a segment's batches found: the good part, and why it ends."""

    def __init__(self, base_offset: int) -> None:
        self.base_offset: Final = base_offset
        self.index: Final = SegmentIndex(base_offset)
        self.end_offset = base_offset
        self.size = 0
        self.max_timestamp_ms = -1
        # Of the first batch.
        self.first_timestamp_ms = -1
        # Why it ended before the file did; empty where it did not.
        self.reason = ""


class NewBatch(NamedTuple):
    """A batch that is to be appended."""

    data: bytes
    base_offset: int
    last_offset: int
    max_timestamp_ms: int


@final
class BatchRun:
    """Batches that were read one after the other."""

    def __init__(self, offset: int) -> None:
        self.batches: Final[list[bytes]] = []
        # Where to go on. What lies before it and is not among the batches is not there, or lost.
        self.next_offset = offset
        # Where the first batch begins that reaches beyond the offset that was asked for, whether or not it has records;
        # -1 where there is none.
        self.covered_from = -1
        # Why something was passed over; empty where nothing was.
        self.damage = ""
        self.ends_segment = False


@final
class Segment:
    """One segment's files. `size` is that of its batches; the file may be longer after a failed append. `path` changes
    once where compaction has made it."""

    def __init__(self, files: FilePool, folder: str, base_offset: int) -> None:
        self.base_offset: Final = base_offset
        self.path = posixpath.join(folder, f"{base_offset:020d}.log")
        self.index_path: Final = posixpath.join(folder, f"{base_offset:020d}.index")
        self.size = 0
        self._files: Final = files
        # Of the active segment, or of one whose end was asked for.
        self._index: SegmentIndex | None = None
        self._end_offset = -1
        self._max_timestamp_ms = -1
        # Not looked for yet; -1 where the first batch has none.
        self._first_timestamp_ms: int | None = None
        # A failed append may have left bytes after the last batch.
        self._has_leftover = False

    @property
    def end_offset(self) -> int:
        """The offset after the last batch. Raises CorruptData where the segment must be read to know, and does not
        verify."""
        self._load_end()
        return self._end_offset

    @property
    def max_timestamp_ms(self) -> int:
        """Of all batches; -1 where there is none. Raises CorruptData as `end_offset`."""
        self._load_end()
        return self._max_timestamp_ms

    @property
    def first_timestamp_ms(self) -> int:
        """The largest one of the first batch, by which a segment's age is told, as in Kafka; -1 where it has none.
        Raises CorruptData where there is no batch to tell."""
        if self._first_timestamp_ms is None:
            header = BatchHeader(self._files.read(self.path, 0, HEADER_BYTES))
            self._check_place(header, 0, self.base_offset, self.size)
            self._first_timestamp_ms = int(header.max_timestamp_ms)
        return self._first_timestamp_ms

    def begin(self) -> None:
        """Make this a new, empty segment that is appended to."""
        self.adopt(Walk(self.base_offset))

    def adopt(self, walk: Walk) -> None:
        """Take over what a walk found, so that the segment can be appended to."""
        self._index = walk.index
        self.size = walk.size
        self._end_offset = walk.end_offset
        self._max_timestamp_ms = walk.max_timestamp_ms
        self._first_timestamp_ms = walk.first_timestamp_ms if walk.size > 0 else None

    def append(self, data: bytes, base_offset: int, last_offset: int, max_timestamp_ms: int, position: int) -> None:
        """Write `data` at the end: one batch, that begins at `position` and ends the data. What precedes it there is
        a batch without records. After an error nothing has changed that could be read."""
        self.tidy()
        self._has_leftover = True
        self._files.write(self.path, self.size, data)
        self._has_leftover = False
        index = self._index
        assert index is not None
        if position == 0:
            self._first_timestamp_ms = max_timestamp_ms
        index.batch_begins(base_offset, position, self._max_timestamp_ms)
        self.size += len(data)
        self._end_offset = last_offset + 1
        self._max_timestamp_ms = max(self._max_timestamp_ms, max_timestamp_ms)

    def append_all(self, batches: Sequence[NewBatch]) -> None:
        """Write batches, each of which follows the one before, with few writes. After an error nothing has changed that
        could be read."""
        self.tidy()
        self._has_leftover = True
        position = self.size
        for piece in joined([batch.data for batch in batches]):
            self._files.write(self.path, position, piece)
            position += len(piece)
        self._has_leftover = False
        index = self._index
        assert index is not None
        for batch in batches:
            if self.size == 0:
                self._first_timestamp_ms = batch.max_timestamp_ms
            index.batch_begins(batch.base_offset, self.size, self._max_timestamp_ms)
            self.size += len(batch.data)
            self._end_offset = batch.last_offset + 1
            self._max_timestamp_ms = max(self._max_timestamp_ms, batch.max_timestamp_ms)

    def tidy(self) -> None:
        """Cut what a failed append left, durably: it must not end up before a further segment."""
        if self._has_leftover and self.size > 0:
            self._files.truncate(self.path, self.size)
            self._files.sync(self.path)
        self._has_leftover = False

    def complete(self) -> None:
        """Write the index: nothing more is appended. There is none yet: one of what was here before would outlive an
        attempt that fails."""
        index = self._index
        assert index is not None
        self._write_index(index)
        self._index = None

    def headers(self, start: IndexEntry) -> Iterator[tuple[int, BatchHeader]]:
        """Position and header of each batch from `start` on. Raises CorruptData where the chain of offsets breaks."""
        position, expected = start.position, start.offset
        data, data_at = b"", 0
        size = self.size
        while position < size:
            if position + HEADER_BYTES > data_at + len(data):
                data, data_at = self._files.read(self.path, position, _HEADERS_READ_BYTES), position
            header = BatchHeader(data, position - data_at)
            self._check_place(header, position, expected, size)
            yield position, header
            position += header.size
            expected = header.base_offset + header.last_offset_delta + 1

    def read_run(self, offset: int, max_bytes: int) -> BatchRun:
        """Whole batches from the one that covers `offset`: as many as `max_bytes` have room for, and at least one.

        What is damaged is passed over: a batch whose checksum is wrong alone, and where the chain of batches breaks,
        all up to the next one that the index knows."""
        try:
            start = self.seek_offset(offset)
        except CorruptData:
            start = IndexEntry(self.base_offset, 0, -1)
        run = BatchRun(offset)
        size, position, expected = self.size, start.position, start.offset
        data, data_at, taken = b"", 0, 0
        while position < size:
            try:
                if position + HEADER_BYTES > data_at + len(data):
                    data, data_at = (
                        self._files.read(self.path, position, max(max_bytes - taken, HEADER_BYTES)),
                        position,
                    )
                header = BatchHeader(data, position - data_at)
                self._check_place(header, position, expected, size)
            except CorruptData as error:
                if run.batches:
                    break
                following = self._indexed_after(position)
                run.damage = run.damage or f"{self.path} at position {position}: {error}"
                if following is None:
                    run.ends_segment = True
                    return run
                position, expected = following.position, following.offset
                run.next_offset = max(run.next_offset, expected)
                continue
            next_offset = header.base_offset + header.last_offset_delta + 1
            if next_offset > offset:
                if run.covered_from < 0:
                    run.covered_from = int(header.base_offset)
                if run.batches and taken + header.size > max_bytes:
                    break
                if position + header.size > data_at + len(data):
                    data, data_at = self._files.read(self.path, position, max(header.size, max_bytes - taken)), position
                batch = data[position - data_at : position - data_at + header.size]
                try:
                    check_batch(batch)
                    if header.record_count > 0:
                        run.batches.append(batch)
                        taken += header.size
                except CorruptData as error:
                    if run.batches:
                        break
                    run.damage = run.damage or f"{self.path} at position {position}: {error}"
                run.next_offset = next_offset
            position += header.size
            expected = next_offset
        run.ends_segment = position >= size
        return run

    def _indexed_after(self, position: int) -> IndexEntry | None:
        """The first indexed batch behind `position`."""
        try:
            index = self._open_index()
            for number in range(len(index)):
                entry = index.entry(number)
                if entry.position > position:
                    return entry if entry.position < self.size else None
        except (CorruptData, OSError):
            pass
        return None

    def seek_offset(self, offset: int) -> IndexEntry:
        """The last indexed batch that begins at or before `offset`."""
        return self._seek(offset, False)

    def seek_timestamp(self, timestamp_ms: int) -> IndexEntry:
        """The last indexed batch with only earlier messages before it."""
        return self._seek(timestamp_ms, True)

    def walk(self, end_offset: int | None, next_base_offset: int | None) -> Walk:
        """Read and check all batches up to the first that does not verify, or reaches beyond `end_offset` or into the
        next segment."""
        walk = Walk(self.base_offset)
        file_bytes = self._files.size(self.path)
        data, data_at = b"", 0
        while walk.size < file_bytes:
            position = walk.size
            if position + HEADER_BYTES > data_at + len(data):
                data, data_at = self._files.read(self.path, position, _WALK_READ_BYTES), position
            try:
                header = BatchHeader(data, position - data_at)
                self._check_place(header, position, walk.end_offset, file_bytes)
                if position + header.size > data_at + len(data):
                    size = max(header.size, _WALK_READ_BYTES)
                    data, data_at = self._files.read(self.path, position, size), position
                check_batch(data[position - data_at : position - data_at + header.size])
            except CorruptData as error:
                walk.reason = f"at position {position}: {error}"
                return walk
            next_offset = header.base_offset + header.last_offset_delta + 1
            if end_offset is not None and next_offset > end_offset:
                walk.reason = f"at position {position}: a batch beyond the log's end"
                return walk
            if next_base_offset is not None and next_offset > next_base_offset:
                walk.reason = f"at position {position}: a batch reaches into the next segment"
                return walk
            walk.index.batch_begins(header.base_offset, position, walk.max_timestamp_ms)
            if position == 0:
                walk.first_timestamp_ms = int(header.max_timestamp_ms)
            walk.size = position + header.size
            walk.end_offset = next_offset
            if header.record_count > 0:
                # What compaction has emptied keeps its timestamp, which is no record's any more.
                walk.max_timestamp_ms = max(walk.max_timestamp_ms, header.max_timestamp_ms)
        return walk

    def remove(self) -> None:
        """Delete the segment, then its index."""
        for path in (self.path, self.index_path):
            self._files.remove(path)

    def _check_place(self, header: BatchHeader, position: int, expected: int, size: int) -> None:
        if header.base_offset != expected:
            raise CorruptData(f"a record batch at offset {header.base_offset} where {expected} follows")
        if header.leader_epoch != 0:
            raise CorruptData(f"a record batch of leader epoch {header.leader_epoch}")
        if header.size > size - position:
            raise CorruptData("a record batch is longer than its segment")

    def _seek(self, target: int, by_timestamp: bool) -> IndexEntry:
        first = IndexEntry(self.base_offset, 0, -1)
        try:
            return self._search(self._open_index(), target, by_timestamp, first)
        except (CorruptData, OSError):
            return self._search(self._rebuild_index(), target, by_timestamp, first)

    def _search(self, index: SegmentIndex, target: int, by_timestamp: bool, first: IndexEntry) -> IndexEntry:
        best = first
        low, high = 0, len(index)
        while low < high:
            middle = (low + high) // 2
            entry = index.entry(middle)
            if entry.max_timestamp_ms < target if by_timestamp else entry.offset <= target:
                best, low = entry, middle + 1
            else:
                high = middle
        if best.position > self.size:
            raise CorruptData("the index is of other batches")
        return best

    def _open_index(self) -> SegmentIndex:
        if self._index is not None:
            return self._index
        return IndexFile(self.base_offset, self._files, self.index_path)

    def _rebuild_index(self) -> SegmentIndex:
        walk = self.walk(None, None)
        if walk.reason:
            raise CorruptData(f"{self.path} {walk.reason}")
        self._end_offset = walk.end_offset
        self._max_timestamp_ms = walk.max_timestamp_ms
        self._write_index(walk.index)
        return walk.index

    def _write_index(self, index: SegmentIndex) -> None:
        # A full disk must not stop a segment from being complete, nor from being read: the index is only made again.
        filesystem = self._files.filesystem
        self._files.forget(self.index_path)
        try:
            file = filesystem.open(self.index_path, True)
        except OSError:
            return
        try:
            content = index.content(self._end_offset, self.size, self._max_timestamp_ms)
            file.pwrite(0, content)
            file.truncate(len(content))
        except OSError:
            # What is there now has wrong checksums or no closing entry.
            pass
        finally:
            file.close()

    def _load_end(self) -> None:
        if self._end_offset >= 0:
            return
        try:
            index = self._open_index()
            count = len(index)
            entry = index.entry(count - 1) if count > 0 else None
            if entry is None or entry.position != self.size:
                raise CorruptData("the index is incomplete")
            self._end_offset = entry.offset
            self._max_timestamp_ms = entry.max_timestamp_ms
        except (CorruptData, OSError):
            self._rebuild_index()
