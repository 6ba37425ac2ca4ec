"""A segment that compaction writes: the batches of one segment or of several neighbours, without what is to go.

Offsets never change and batches tile them, so a batch without records stands for each range of offsets that has lost
all of its batches. Where everything is as it was in the only segment that it is made of, nothing is written at all.
"""

from __future__ import annotations

import contextlib
from typing import Final, final

from millpond.base.errors import CorruptData
from millpond.base.filesystem import File
from millpond.base.limits import COMPACTION_STEP_BYTES, LOG_UNSYNCED_BYTES_MAX
from millpond.storage.file_pool import FilePool
from millpond.storage.record_batch import BatchBuilder, BatchHeader
from millpond.storage.segment import Segment, Walk

CLEANED_SUFFIX: Final = ".cleaned"
SWAP_SUFFIX: Final = ".swap"
# The last offset delta has 31 bits.
_SPAN_MAX: Final = 1 << 31


@final
class CleanedSegment:
    """The new segment. `walk` is what a walk over it would find, once it is finished."""

    def __init__(self, files: FilePool, folder: str, source: Segment) -> None:
        """`source` is the first segment that it is made of."""
        self.path: Final = f"{folder}/{source.base_offset:020d}{CLEANED_SUFFIX}"
        self.walk: Final = Walk(source.base_offset)
        # Everything so far is as it is in the source, and so nothing has been written.
        self.is_unchanged = True
        self._files: Final = files
        self._source: Final = source
        self._file: File | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._written_bytes = 0
        self._unsynced_bytes = 0
        # Offsets [gap start, gap end) have no batch; they were one batch of the source, at a position, or none.
        self._gap_start = source.base_offset
        self._gap_end = source.base_offset
        self._gap_position = -1
        self._gap_batch = b""

    def add(self, batch: bytes, header: BatchHeader, source_position: int) -> None:
        """Add a batch. `source_position` is where it is, unchanged, in the source; -1 where it is not. What lies
        between the batch before and this one has none."""
        self.pass_over(int(header.base_offset))
        self._close_gap()
        self._add(batch, header, source_position)
        self._gap_start = self._gap_end = self.walk.end_offset

    def add_filler(self, batch: bytes, header: BatchHeader, source_position: int) -> None:
        """A batch without records may stay, where it has no neighbours like it."""
        is_alone = self._gap_start == self._gap_end == header.base_offset
        self.pass_over(int(header.last_offset) + 1)
        self._gap_position = source_position if is_alone else -1
        self._gap_batch = batch

    def pass_over(self, end_offset: int) -> None:
        """There is nothing before this offset."""
        if end_offset > self._gap_end:
            self._gap_end = end_offset
            self._gap_position = -1

    def finish(self, end_offset: int) -> None:
        """The segment ends here. Durable, but for its name."""
        self.pass_over(end_offset)
        self._close_gap()
        if self.walk.size != self._source.size:
            self._begin_writing()
        self._flush()
        file = self._file
        if file is not None:
            file.sync()
            file.close()

    def discard(self) -> None:
        """Remove what was written."""
        file, self._file = self._file, None
        self._pending = []
        if file is not None:
            file.close()
            # What stays is removed when the log is opened again.
            with contextlib.suppress(OSError):
                self._files.filesystem.remove(self.path)

    def _close_gap(self) -> None:
        start, end = self._gap_start, self._gap_end
        if self._gap_position >= 0:
            self._add(self._gap_batch, BatchHeader(self._gap_batch), self._gap_position)
        else:
            while start < end:
                span = min(end - start, _SPAN_MAX)
                filler = BatchBuilder().finish(start, span - 1)
                self._add(filler, BatchHeader(filler), -1)
                start += span
        self._gap_start = self._gap_end = end
        self._gap_position = -1

    def _add(self, batch: bytes, header: BatchHeader, source_position: int) -> None:
        walk = self.walk
        if source_position != walk.size:
            self._begin_writing()
        walk.index.batch_begins(int(header.base_offset), walk.size, walk.max_timestamp_ms)
        if walk.size == 0:
            walk.first_timestamp_ms = int(header.max_timestamp_ms)
        walk.size += len(batch)
        walk.end_offset = int(header.last_offset) + 1
        if header.record_count > 0:
            walk.max_timestamp_ms = max(walk.max_timestamp_ms, int(header.max_timestamp_ms))
        if not self.is_unchanged:
            self._pending.append(batch)
            self._pending_bytes += len(batch)
            if self._pending_bytes >= COMPACTION_STEP_BYTES:
                self._flush()

    def _begin_writing(self) -> None:
        """From here on it differs: copy what is before."""
        if not self.is_unchanged:
            return
        self.is_unchanged = False
        self._file = self._files.filesystem.open(self.path, True)
        self._file.truncate(0)
        copied = 0
        while copied < self.walk.size:
            piece = self._files.read(self._source.path, copied, min(COMPACTION_STEP_BYTES, self.walk.size - copied))
            if not piece:
                raise CorruptData(f"{self._source.path} is shorter than it was")
            self._write(piece)
            copied += len(piece)

    def _flush(self) -> None:
        if self._pending:
            self._write(b"".join(self._pending))
            self._pending = []
            self._pending_bytes = 0

    def _write(self, data: bytes) -> None:
        file = self._file
        assert file is not None
        file.pwrite(self._written_bytes, data)
        self._written_bytes += len(data)
        self._unsynced_bytes += len(data)
        if self._unsynced_bytes >= LOG_UNSYNCED_BYTES_MAX:
            # All of it at the end would hold up the journal, whose sync waits for the same disk.
            self._unsynced_bytes = 0
            file.sync()
