"""Compaction: what is left of a log when only the last record of each key stays.

    clean, been over before      |  dirty                |  not yet
    -----------------------------+-----------------------+--------------------------
    log start               first dirty              end offset                active

A pass reads the dirty part and remembers the last offset of each key; then it goes over all segments up to there, from
the oldest on, and writes those that lose something anew, several small neighbours as one. A key may be deleted by a
record without a value; when that record goes, nothing older of its key is left before it, because older segments come
first.

Only segments that nothing more is appended to are cleaned, and only what a checkpoint knows, which `end_offset` says:
the log is never cut within what was cleaned.

A segment that does not verify is left as it is. So are batches whose checksum is right but whose records make no sense.

The functions here read while others append, trim and delete: a segment that is gone meanwhile is passed over.

Source: Apache Kafka's log cleaner, KIP-58 (min.compaction.lag.ms), KIP-354 (max.compaction.lag.ms).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, NamedTuple, final

from millpond.base.errors import CorruptData, StorageError
from millpond.base.limits import COMPACTION_KEY_SLOTS_MAX, COMPACTION_STEP_BYTES
from millpond.storage.aborted_transactions import AbortedTransactions
from millpond.storage.batch_rewrite import emptied
from millpond.storage.cleaned_segment import CleanedSegment
from millpond.storage.file_pool import FilePool
from millpond.storage.record_batch import HEADER_BYTES, BatchHeader, check_batch
from millpond.storage.record_filter import KeyIndex, RecordFilter
from millpond.storage.segment import Segment

# What the offsets of a segment may lie apart, as in Kafka.
_SPAN_MAX: Final = (1 << 31) - 1


class CompactionStopped(StorageError):
    """The broker stops, or the log is gone."""


class CompactionSettings(NamedTuple):
    """A topic's: delete.retention.ms, min.compaction.lag.ms, max.compaction.lag.ms, min.cleanable.dirty.ratio."""

    delete_retention_ms: int
    min_lag_ms: int
    max_lag_ms: int
    min_dirty_ratio: float


class CompactionPlan(NamedTuple):
    """The segments that a pass goes over, where the dirty part begins and ends, and how much of them is dirty."""

    segments: list[Segment]
    first_dirty: int
    end_offset: int
    dirty_bytes: int
    total_bytes: int
    # Something has been dirty for longer than the topic allows.
    is_overdue: bool

    @property
    def dirty_ratio(self) -> float:
        return self.dirty_bytes / self.total_bytes if self.total_bytes > 0 else 0.0

    def is_due(self, settings: CompactionSettings) -> bool:
        if self.dirty_bytes == 0:
            return False
        return self.is_overdue or self.dirty_ratio > settings.min_dirty_ratio


def plan_compaction(
    sealed: list[Segment], first_dirty: int, end_offset: int, now_ms: int, settings: CompactionSettings
) -> CompactionPlan:
    """What there is to be done below `end_offset`. `sealed` are a log's segments that nothing is appended to."""
    segments: list[Segment] = []
    dirty_bytes, total_bytes = 0, 0
    is_overdue = False
    plan_end = first_dirty
    for number, segment in enumerate(sealed):
        try:
            segment_end, newest_ms = segment.end_offset, segment.max_timestamp_ms
            oldest_ms = segment.first_timestamp_ms
        except CorruptData:
            # It is left as it is, wherever it ends.
            segment_end = sealed[number + 1].base_offset if number + 1 < len(sealed) else segment.base_offset + 1
            newest_ms = oldest_ms = -1
        if segment_end > end_offset:
            break
        if segment_end > first_dirty:
            if settings.min_lag_ms > 0 and newest_ms > now_ms - settings.min_lag_ms:
                break
            dirty_bytes += segment.size
            is_overdue = is_overdue or 0 < oldest_ms < now_ms - settings.max_lag_ms
            plan_end = segment_end
        total_bytes += segment.size
        segments.append(segment)
    return CompactionPlan(segments, first_dirty, plan_end, dirty_bytes, total_bytes, is_overdue)


@final
class BatchScan:
    """Reads the batches of a segment one after the other. CorruptData at the first that does not verify."""

    def __init__(self, files: FilePool, segment: Segment, offset: int, pause: Callable[[], None]) -> None:
        """Begins with the batch that covers `offset`, or somewhat before it. `pause` is called between reads."""
        start = segment.seek_offset(offset)
        self.batch = b""
        self.position = start.position
        # Of the batch that follows.
        self.end_offset = start.offset
        self._next_position = start.position
        self._files: Final = files
        self._path: Final = segment.path
        self._size: Final = segment.size
        self._pause: Final = pause
        self._data = b""
        self._data_at = 0

    def next(self) -> BatchHeader | None:
        """The next batch's header; None at the segment's end."""
        position = self._next_position
        if position >= self._size:
            return None
        if position + HEADER_BYTES > self._data_at + len(self._data):
            self._read(position, COMPACTION_STEP_BYTES)
        header = BatchHeader(self._data, position - self._data_at)
        size = int(header.size)
        if header.base_offset != self.end_offset or size > self._size - position:
            raise CorruptData(f"{self._path} at position {position}: no batch of offset {self.end_offset}")
        if position + size > self._data_at + len(self._data):
            self._read(position, max(size, COMPACTION_STEP_BYTES))
        start = position - self._data_at
        self.batch = self._data[start : start + size]
        check_batch(self.batch)
        self.position = position
        self._next_position = position + size
        self.end_offset = int(header.last_offset) + 1
        return header

    def _read(self, position: int, size: int) -> None:
        self._pause()
        self._data = self._files.read(self._path, position, size)
        self._data_at = position


@final
class Compaction:
    """One pass over a log: `index`, then `clean` for each of `groups`, in their order. Not finished before `end_offset`
    is the plan's: where there are more keys than can be remembered, further passes follow."""

    def __init__(
        self,
        files: FilePool,
        folder: str,
        plan: CompactionPlan,
        kept_batches: frozenset[int],
        damaged: set[int],
        pause: Callable[[], None],
        slots_max: int = COMPACTION_KEY_SLOTS_MAX,
        aborted: AbortedTransactions | None = None,
    ) -> None:
        """`kept_batches` has the base offsets of the last batches of idempotent producers, which stay, empty, when
        their records go: the producers' numbers must not be lost. `damaged` has the base offsets of segments that are
        known not to verify, and gets those that are found. `aborted` has the log's aborted transactions. `pause` is
        called every now and then; what it raises ends the pass."""
        self.plan: Final = plan
        self.end_offset = plan.first_dirty
        # Batches whose records make no sense, and segments that were left as they are.
        self.senseless = 0
        # A segment, or part of one, was left with whatever it has.
        self.has_left_out = False
        self.bytes_read = 0
        self.bytes_written = 0
        self._files: Final = files
        self._folder: Final = folder
        self._kept_batches: Final = kept_batches
        self._damaged: Final = damaged
        self._pause: Final = pause
        self._keys: Final = KeyIndex(plan.first_dirty, slots_max, aborted)
        self._filter: RecordFilter | None = None

    def index(self, now_ms: int, delete_retention_ms: int) -> None:
        """Remember the last offset of each key of the dirty part, or of as much of it as there is room for."""
        keys = self._keys
        for segment in self.plan.segments:
            if not keys.is_full and segment.base_offset not in self._damaged:
                self._index_segment(segment)
        self.end_offset = int(keys.end_offset) if keys.is_full else self.plan.end_offset
        keys.end_offset = self.end_offset
        self._filter = RecordFilter(keys, now_ms, delete_retention_ms)

    def _index_segment(self, segment: Segment) -> None:
        keys = self._keys
        first_dirty = self.plan.first_dirty
        try:
            if segment.end_offset <= first_dirty:
                return
            scan = BatchScan(self._files, segment, max(first_dirty, segment.base_offset), self._pause)
            while not keys.is_full:
                header = scan.next()
                if header is None:
                    return
                if header.last_offset >= first_dirty and not keys.add(scan.batch):
                    self.senseless += 1
        except CorruptData:
            self._damaged.add(segment.base_offset)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def groups(self, segment_bytes: int) -> list[list[Segment]]:
        """Neighbours that become one segment each. An empty group stands for a segment that is left as it is."""
        groups: list[list[Segment]] = []
        group: list[Segment] = []
        size = 0
        for segment in self.plan.segments:
            if segment.base_offset >= self.end_offset:
                break
            if segment.base_offset in self._damaged:
                groups.append([])
                group = []
                continue
            last_offset = self._end_of(segment) - 1
            if not group or size + segment.size > segment_bytes or last_offset - group[0].base_offset > _SPAN_MAX:
                group = []
                groups.append(group)
                size = 0
            group.append(segment)
            size += segment.size
        return groups

    def _end_of(self, segment: Segment) -> int:
        try:
            return segment.end_offset
        except (CorruptData, OSError):
            return self.plan.end_offset

    def clean(self, group: list[Segment]) -> CleanedSegment | None:
        """What is left of a group, durable but for its name; None where nothing changes, or it is left as it is."""
        rules = self._filter
        assert rules is not None
        if not group:
            rules.keeps_deletions = self.has_left_out = True
            return None
        cleaned = CleanedSegment(self._files, self._folder, group[0])
        segment = group[0]
        try:
            end_offset = segment.base_offset
            for segment in group:
                end_offset = self._clean_segment(segment, cleaned, rules, segment is group[0])
            cleaned.finish(end_offset)
        except CorruptData:
            self._damaged.add(segment.base_offset)
            rules.keeps_deletions = self.has_left_out = True
            cleaned.discard()
            return None
        except FileNotFoundError:
            cleaned.discard()
            return None
        except (OSError, StorageError):
            cleaned.discard()
            raise
        if cleaned.is_unchanged:
            return None
        self.bytes_written += cleaned.walk.size
        return cleaned

    def _clean_segment(self, segment: Segment, cleaned: CleanedSegment, rules: RecordFilter, is_first: bool) -> int:
        scan = BatchScan(self._files, segment, segment.base_offset, self._pause)
        kept_batches = self._kept_batches
        self.bytes_read += segment.size
        while True:
            header = scan.next()
            if header is None:
                return scan.end_offset
            batch = scan.batch
            position = scan.position if is_first else -1
            is_kept = header.producer_id >= 0 and int(header.base_offset) in kept_batches
            if header.record_count == 0:
                if is_kept:
                    cleaned.add(batch, header, position)
                else:
                    cleaned.add_filler(batch, header, position)
                continue
            try:
                left = rules.apply(batch)
            except CorruptData:
                self.senseless += 1
                rules.keeps_deletions = self.has_left_out = True
                left = batch
            if left is batch:
                cleaned.add(batch, header, position)
            elif left:
                cleaned.add(left, BatchHeader(left), -1)
            elif is_kept:
                # Its producer goes on with the number that follows.
                left = emptied(batch)
                cleaned.add(left, BatchHeader(left), -1)
            else:
                cleaned.pass_over(int(header.last_offset) + 1)
