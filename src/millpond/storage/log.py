"""A log: a folder of segments that hold record batches in the order of their offsets.

    log/00000000000000000000.log    .index
    log/00000000000000081920.log    .index
    log/00000000000000163840.log                 the active segment: appended to, its index is in memory

Batches tile the range of offsets within a segment. Where an appended batch leaves a gap, because the messages in it
were done with before they had to be written, a batch without records fills it; a gap too large for that, or at the
end of a segment, begins a new segment instead.

Compaction (`compaction.py`) writes complete segments anew, from other threads' point of view in one step:

    .cleaned is written and synced -> it is called .swap, durably -> the segments that it is made of are removed
        -> it is called .log

What a crash leaves is finished when the log is opened: what is still called .cleaned goes, a .swap takes its place.

One thread at a time may use a log, and `read` may be called from any thread meanwhile: a place, once returned by
`append`, does not change until it is trimmed. `sync` may be called from another thread than `append`; it covers the
appends that returned before it was called.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, final

from millpond.base.errors import CorruptData, StorageError, StorageFailed
from millpond.base.filesystem import Filesystem
from millpond.base.limits import SEGMENT_QUIET_MS
from millpond.storage.aside import copy_aside, is_disk_full, move_aside
from millpond.storage.batch_rewrite import first_record_at, newest_record
from millpond.storage.cleaned_segment import CLEANED_SUFFIX, SWAP_SUFFIX, CleanedSegment
from millpond.storage.file_pool import FilePool, shared_pool
from millpond.storage.record_batch import BatchBuilder, BatchHeader, RecordReader, check_batch
from millpond.storage.segment import (
    SEGMENT_BYTES_MAX,
    BatchRun,
    NewBatch,
    Segment,
    Walk,
)

_SEGMENT_NAME = re.compile(r"(\d{20})\.log")
_SWAP_NAME = re.compile(r"(\d{20})\.swap")
# Errors of a read that say that the data is gone. Others (no descriptors, no memory) may pass.
_UNREADABLE: Final = frozenset({errno.EIO, errno.ENOENT})
# The last offset delta has 31 bits.
_GAP_MAX: Final = (1 << 31) - 1
# What one step of a search for a time reads: an index entry is seldom further from what it leads to.
_SEARCH_BYTES: Final = 32 * 1024
# What looking through a batch in vain counts as.
_MISSED_BYTES: Final = 1 << 20


class BatchPlace(NamedTuple):
    """Where a batch is: the base offset of its segment, its position there, and its length in bytes."""

    segment_base: int
    position: int
    length: int


# Base offset, last offset, number of records, place.
BatchEntry = tuple[int, int, int, BatchPlace]


@dataclass
class LogReport:
    """What opening a log found, and what it cut."""

    start_offset: int = 0
    end_offset: int = 0
    segments: int = 0
    bytes_cut: int = 0
    # Why something was cut, a sentence each.
    reasons: list[str] = field(default_factory=list)
    # Ranges of offsets, the end exclusive, that should be there and are not.
    lost: list[tuple[int, int]] = field(default_factory=list)
    # Where what was cut can be looked at.
    kept_aside: list[str] = field(default_factory=list)


@final
class Log:
    """One log. `start_offset` is the first offset that it may still have, `end_offset` the one after its last."""

    def __init__(self, filesystem: Filesystem, folder: str, segment_bytes: int, files: FilePool | None = None) -> None:
        """Logs that are not given a pool of open files share one for each file system."""
        if not 0 < segment_bytes <= SEGMENT_BYTES_MAX:
            raise ValueError(f"segments of {segment_bytes} bytes")
        self.folder: Final = folder
        self.end_offset = 0
        self.size_bytes = 0
        self._filesystem: Final = filesystem
        # May be changed at any time; it acts on what is appended after.
        self.segment_bytes = segment_bytes
        # So much younger than its first batch may what is appended to a segment be; -1 is no limit. As above.
        self.segment_ms = -1
        self._files: Final = files if files is not None else shared_pool(filesystem)
        self._segments: list[Segment] = []
        # The same, for `read` from other threads.
        self._by_base: Final[dict[int, Segment]] = {}
        self._active: Segment | None = None
        # The base offset and the size that it had when its age was looked at, and since when it has had them.
        self._looked_at = (-1, -1)
        self._looked_at_ms = 0
        # Segments that compaction has made and that are still called .swap, each with the files that it replaces.
        self._unfinished: list[tuple[Segment, list[str]]] = []
        # What `sync` has to do.
        self._guard: Final = filesystem.threads.guard()
        self._dirty: set[str] = set()
        self._is_folder_dirty = False
        self._failure: StorageFailed | None = None

    @property
    def files(self) -> FilePool:
        return self._files

    @property
    def start_offset(self) -> int:
        return self._segments[0].base_offset if self._segments else self.end_offset

    def open(self, end_offset: int | None, checked_from: int | None = None) -> LogReport:
        """Find the segments, and cut what does not verify.

        `end_offset` is where the log ended at the last checkpoint: what is beyond is cut, as the journal has it. None
        keeps all that verifies. The last segment is always read through, and all from the one with `checked_from` on
        where that is given; the others are checked when they are read. Damage costs what follows it in its segment,
        not the segments after it.

        A trimmed segment may be back after a power cut, so ranges of `lost` below the trimmed offset mean nothing."""
        report = LogReport()
        self._filesystem.mkdirs(self.folder)
        self._finish_compaction(report)
        bases = self._find_bases()
        self._remove_beyond(bases, end_offset, report)
        walk_from = len(bases) - 1
        if checked_from is not None:
            walk_from = min(walk_from, max(0, bisect.bisect_right(bases, checked_from) - 1))
        self.end_offset = 0 if end_offset is None else end_offset
        for number, base in enumerate(bases):
            segment = Segment(self._files, self.folder, base)
            if number < walk_from:
                segment.size = self._files.size(segment.path)
                self._add(segment)
            else:
                self._open_checked(segment, end_offset, bases[number + 1 :], report)
        self.sync()
        report.start_offset, report.end_offset = self.start_offset, self.end_offset
        report.segments = len(self._segments)
        return report

    def append(self, batch: bytes, base_offset: int, last_offset: int, max_timestamp_ms: int) -> BatchPlace:
        """Add a batch; returns where it is. Not durable before `sync`. An OSError leaves the log as it was; raises
        StorageFailed after a failure that is for good."""
        if self._failure is not None:
            raise self._failure
        if base_offset < self.end_offset or last_offset < base_offset:
            raise ValueError(f"a batch from {base_offset} to {last_offset} cannot follow offset {self.end_offset - 1}")
        active = self._active
        gap = 0 if active is None else base_offset - active.end_offset
        if (
            active is None
            or active.size + len(batch) > self.segment_bytes
            or gap > _GAP_MAX
            or self._is_rolled_by(active, max_timestamp_ms)
        ):
            return self._append_to_new_segment(batch, base_offset, last_offset, max_timestamp_ms)
        filler = b""
        if gap > 0:
            filler = BatchBuilder().finish(active.end_offset, gap - 1)
        position = active.size + len(filler)
        active.append(filler + batch if filler else batch, base_offset, last_offset, max_timestamp_ms, position)
        self._appended(active, len(filler) + len(batch), last_offset)
        return BatchPlace(active.base_offset, position, len(batch))

    def append_all(self, batches: Sequence[NewBatch]) -> None:
        """Add batches in the order of their offsets, with as few writes as segments. As `append` otherwise; after an
        error those before `end_offset` are there."""
        start = 0
        while start < len(batches):
            end = start + self._fitting(batches, start)
            active = self._active
            if end == start or active is None:
                batch = batches[start]
                self.append(batch.data, batch.base_offset, batch.last_offset, batch.max_timestamp_ms)
                start += 1
                continue
            size = active.size
            active.append_all(batches[start:end])
            self._appended(active, active.size - size, batches[end - 1].last_offset)
            start = end

    def _fitting(self, batches: Sequence[NewBatch], start: int) -> int:
        """How many from `start` on follow each other, and all that is there, in the active segment."""
        active = self._active
        if active is None or self._failure is not None:
            return 0
        count, expected, size = 0, active.end_offset, active.size
        for batch in batches[start:]:
            size += len(batch.data)
            if batch.base_offset != expected or size > self.segment_bytes:
                break
            if self._is_rolled_by(active, batch.max_timestamp_ms):
                break
            expected = batch.last_offset + 1
            count += 1
        return count

    def _is_rolled_by(self, active: Segment, timestamp_ms: int) -> bool:
        """Whether a record of that time is too young for the active segment."""
        if self.segment_ms < 0 or active.size == 0:
            return False
        first_ms = active.first_timestamp_ms
        return first_ms >= 0 and timestamp_ms - first_ms > self.segment_ms

    def roll(self) -> None:
        """Nothing more is appended to the active segment."""
        active = self._active
        if active is not None:
            active.tidy()
            active.complete()
            self._files.release(active.index_path)
            self._active = None

    def roll_if_old(self, now_ms: int) -> None:
        """The same, where its first batch is older than `segment_ms` and nothing has been appended for a while: records
        may be old when they come, and would each begin a segment."""
        active = self._active
        if active is None:
            return
        if (active.base_offset, active.size) != self._looked_at:
            self._looked_at, self._looked_at_ms = (active.base_offset, active.size), now_ms
        quiet_ms = min(self.segment_ms, SEGMENT_QUIET_MS)
        if now_ms - self._looked_at_ms >= quiet_ms and self._is_rolled_by(active, now_ms):
            self.roll()

    def read_run(self, offset: int, max_bytes: int) -> BatchRun:
        """Whole batches from the one that covers `offset`, or the next one after it: as many as `max_bytes` have room
        for, at least one, all of one segment. None at the end of the log. Damage is passed over and told."""
        number = max(0, bisect.bisect_right(self._segments, offset, key=_base_offset) - 1)
        damage = ""
        covered_from = -1
        run = BatchRun(offset)
        for segment in self._segments[number:]:
            try:
                run = segment.read_run(max(offset, segment.base_offset), max_bytes)
            except OSError as error:
                if error.errno not in _UNREADABLE:
                    raise
                damage = damage or str(error)
                continue
            damage = damage or run.damage
            covered_from = covered_from if covered_from >= 0 else run.covered_from
            if run.batches:
                run.damage, run.covered_from = damage, covered_from
                return run
        run = BatchRun(max(offset, self.end_offset))
        run.damage, run.covered_from = damage, covered_from
        return run

    def last_batch_offset(self) -> int:
        """The base offset of the last batch; the end where there is none."""
        last = self.end_offset
        try:
            for base_offset, _, count, _ in self.places_from(max(self.start_offset, self.end_offset - 1)):
                if count > 0:
                    last = base_offset
        except CorruptData:
            pass
        return last

    @property
    def segment_count(self) -> int:
        return len(self._segments)

    def read(self, place: BatchPlace, base_offset: int = -1) -> bytes:
        """The batch at a place. Raises CorruptData where it does not verify, StorageError where it has been trimmed.
        The checksum does not cover the base offset, so give the expected one where it is known."""
        segment = self._by_base.get(place.segment_base)
        if segment is None:
            raise StorageError(f"segment {place.segment_base} of {self.folder} has been trimmed")
        if place.position < 0 or place.length < 0 or place.length > segment.size - place.position:
            raise CorruptData(f"no batch can be at {place.position} of segment {place.segment_base} of {self.folder}")
        try:
            batch = self._files.read(segment.path, place.position, place.length)
        except FileNotFoundError:
            raise StorageError(f"segment {place.segment_base} of {self.folder} has been trimmed") from None
        try:
            check_batch(batch)
            if base_offset >= 0 and BatchHeader(batch).base_offset != base_offset:
                raise CorruptData(f"the record batch is not that of offset {base_offset}")
        except CorruptData as error:
            where = f"segment {place.segment_base} of {self.folder} at position {place.position}"
            raise CorruptData(f"{where}: {error}") from None
        return batch

    def places_from(self, offset: int) -> Iterator[BatchEntry]:
        """(base offset, last offset, record count, place) of each batch from the one with `offset` on, also of those
        without records. Reads headers only; raises CorruptData where their chain breaks."""
        first = max(0, bisect.bisect_right(self._segments, offset, key=_base_offset) - 1)
        for segment in self._segments[first:]:
            if segment is not self._active and segment.end_offset <= offset:
                continue
            end = segment.base_offset
            for position, header in segment.headers(segment.seek_offset(offset)):
                last_offset = header.base_offset + header.last_offset_delta
                end = last_offset + 1
                if last_offset >= offset:
                    place = BatchPlace(segment.base_offset, position, header.size)
                    yield header.base_offset, last_offset, header.record_count, place
            if end != segment.end_offset:
                raise CorruptData(f"{segment.path} ends at offset {end}, not {segment.end_offset}")

    def find(self, offset: int) -> BatchEntry | None:
        """The batch that covers `offset`; None where there is none."""
        for entry in self.places_from(offset):
            return entry if entry[0] <= offset else None
        return None

    def find_timestamp(self, timestamp_ms: int) -> int | None:
        """The offset of the first record that is not older than `timestamp_ms`; None where all are. In a compressed
        batch the batch's first offset stands for all of its records."""
        for segment in self._segments:
            if segment.max_timestamp_ms < timestamp_ms:
                continue
            for position, header in segment.headers(segment.seek_timestamp(timestamp_ms)):
                # Read whole, so that a damaged timestamp in a header does not lead past the record.
                batch = self.read(BatchPlace(segment.base_offset, position, header.size), header.base_offset)
                if header.max_timestamp_ms >= timestamp_ms:
                    return self._find_record(batch, timestamp_ms)
        return None

    def find_record(self, timestamp_ms: int, offset: int, bytes_max: int) -> tuple[int, int, int]:
        """(offset, timestamp, where to go on) of the first record from `offset` on that is not older than
        `timestamp_ms`. The first two are -1 where it has not been found: then there is none before the third, which is
        the log's end, or where the search stopped because it has read `bytes_max`. Damage is passed over."""
        number = max(0, bisect.bisect_right(self._segments, offset, key=_base_offset) - 1)
        for index in range(number, len(self._segments)):
            segment = self._segments[index]
            following = self._segments[index + 1].base_offset if index + 1 < len(self._segments) else self.end_offset
            position = max(offset, segment.base_offset)
            try:
                if segment.max_timestamp_ms < timestamp_ms:
                    continue
                position = max(position, segment.seek_timestamp(timestamp_ms).offset)
            except CorruptData:
                # All of what can be read is looked at.
                pass
            while position < following:
                if bytes_max <= 0:
                    return -1, -1, position
                run = segment.read_run(position, _SEARCH_BYTES)
                bytes_max -= _SEARCH_BYTES
                for batch in run.batches:
                    if BatchHeader(batch).max_timestamp_ms >= timestamp_ms:
                        found, found_ms = _sensible(first_record_at, batch, timestamp_ms, offset)
                        if found >= 0:
                            return found, found_ms, found
                        # It says that it has such a record, and has none: it may have been large when decompressed.
                        bytes_max -= len(batch) + _MISSED_BYTES
                if run.ends_segment or run.next_offset <= position:
                    break
                position = run.next_offset
        return -1, -1, self.end_offset

    def find_newest(self, offset: int) -> tuple[int, int]:
        """(offset, timestamp) of the record with the largest timestamp, the first of several, among those from `offset`
        on; -1, -1 where there is none. Damage is passed over."""
        best: Segment | None = None
        best_ms, start = -1, 0
        for segment in self._segments[max(0, bisect.bisect_right(self._segments, offset, key=_base_offset) - 1) :]:
            try:
                if segment.base_offset < offset:
                    newest_ms = self._newest_ms_from(segment, offset)
                else:
                    newest_ms = segment.max_timestamp_ms
            except CorruptData:
                continue
            if newest_ms > best_ms:
                best, best_ms, start = segment, newest_ms, max(offset, segment.base_offset)
        if best is None:
            return -1, -1
        with contextlib.suppress(CorruptData):
            start = max(start, best.seek_timestamp(best_ms).offset)
        while True:
            run = best.read_run(start, _SEARCH_BYTES)
            for batch in run.batches:
                if BatchHeader(batch).max_timestamp_ms >= best_ms:
                    found = _sensible(newest_record, batch, offset)
                    if found[0] >= 0:
                        return found
            if run.ends_segment or run.next_offset <= start:
                return -1, -1
            start = run.next_offset

    def _newest_ms_from(self, segment: Segment, offset: int) -> int:
        newest_ms = -1
        for _, header in segment.headers(segment.seek_offset(offset)):
            if header.last_offset >= offset and header.record_count > 0:
                newest_ms = max(newest_ms, int(header.max_timestamp_ms))
        return newest_ms

    def sync(self) -> None:
        """Make all that was appended durable. Raises StorageFailed where that failed, now or ever before."""
        with self._guard:
            if self._failure is not None:
                raise self._failure
            dirty, self._dirty = self._dirty, set()
            is_folder_dirty, self._is_folder_dirty = self._is_folder_dirty, False
        try:
            for path in sorted(dirty):
                self._files.sync(path)
            if is_folder_dirty:
                self._filesystem.sync_folder(self.folder)
        except (OSError, StorageFailed) as error:
            failure = error if isinstance(error, StorageFailed) else StorageFailed(f"{self.folder}: {error}")
            self._failure = failure
            raise failure from error

    def trim_before(self, offset: int) -> int:
        """Delete the segments that have nothing at or above `offset`; returns how many bytes that freed."""
        freed = 0
        while self._segments:
            following = self._segments[1].base_offset if len(self._segments) > 1 else self.end_offset
            if following > offset:
                break
            freed += self._remove_first()
        return freed

    def retain(
        self, now_ms: int, retention_ms: int, retention_bytes: int, durable_end: int = -1, needed_from: int = -1
    ) -> int:
        """Delete the oldest complete segments whose messages are all older than `retention_ms`, or without which
        `retention_bytes` are still left; -1 is no limit. Where `durable_end` is given, the one that is appended to may
        go as well, but none that has something from there on. Where `needed_from` is given, none goes that has
        something from there on. Returns how many bytes that freed."""
        freed = 0
        while self._segments:
            oldest = self._segments[0]
            following = self._segments[1].base_offset if len(self._segments) > 1 else self.end_offset
            if following > durable_end if durable_end >= 0 else len(self._segments) == 1:
                break
            if 0 <= needed_from < following:
                break
            is_too_old = retention_ms >= 0 and self._is_oldest_before(now_ms - retention_ms)
            is_too_much = retention_bytes >= 0 and self.size_bytes - oldest.size >= retention_bytes
            if not is_too_old and not is_too_much:
                break
            freed += self._remove_first()
        return freed

    # --- Compaction -------------------------------------------------------------------------------------------------

    def segments(self) -> list[Segment]:
        """All of them, in their order."""
        return list(self._segments)

    def sealed_segments(self) -> list[Segment]:
        """Those that nothing more is appended to."""
        return [segment for segment in self._segments if segment is not self._active]

    def replace(self, old: Sequence[Segment], cleaned: CleanedSegment) -> bool:
        """Put what compaction has made of some segments, which is durable, in their place. False where they are not all
        there any more. What was made is gone after that, and after an OSError."""
        segments = self._segments
        at = next((number for number, segment in enumerate(segments) if segment is old[0]), len(segments))
        is_there = len(segments) - at >= len(old) and all(
            segments[at + number] is segment and segment is not self._active for number, segment in enumerate(old)
        )
        if self._failure is not None or not is_there:
            cleaned.discard()
            return False
        swap = f"{self.folder}/{cleaned.walk.base_offset:020d}{SWAP_SUFFIX}"
        try:
            # One that is still called .swap cannot be replaced by another.
            self._finish_replacements()
            self._filesystem.rename(cleaned.path, swap)
            self._filesystem.sync_folder(self.folder)
        except OSError:
            cleaned.discard()
            self._undo_swap(swap)
            raise
        segment = Segment(self._files, self.folder, cleaned.walk.base_offset)
        segment.adopt(cleaned.walk)
        paths = [path for replaced in old for path in (replaced.path, replaced.index_path) if path != segment.path]
        segment.path = swap
        segments[at : at + len(old)] = [segment]
        for replaced in old:
            del self._by_base[replaced.base_offset]
            self.size_bytes -= replaced.size
            with self._guard:
                self._dirty.discard(replaced.path)
        self._by_base[segment.base_offset] = segment
        self.size_bytes += segment.size
        self._unfinished.append((segment, paths))
        # It is complete, and is read from where it is: the rest can be done later.
        with contextlib.suppress(OSError):
            self._finish_replacements()
        return True

    def _undo_swap(self, swap: str) -> None:
        """Nothing may be left that would replace segments the next time that the log is opened."""
        try:
            if self._filesystem.exists(swap):
                self._files.forget(swap)
                self._filesystem.remove(swap)
                self._filesystem.sync_folder(self.folder)
        except OSError as error:
            self._failure = StorageFailed(f"{swap} can neither be used nor removed: {error}")

    def _finish_replacements(self) -> None:
        while self._unfinished:
            segment, paths = self._unfinished[0]
            swap = segment.path
            if swap.endswith(SWAP_SUFFIX):
                for path in reversed(paths):
                    self._files.forget(path)
                    self._filesystem.remove(path)
                # An index of what was there before must not come back beside what is there now.
                self._filesystem.sync_folder(self.folder)
                segment.path = self._finish_swap(segment.base_offset)
                self._files.forget(swap)
            self._filesystem.sync_folder(self.folder)
            del self._unfinished[0]
            segment.complete()
            self._files.release(segment.index_path)

    def _finish_swap(self, base_offset: int) -> str:
        """Have a .swap called .log; its path then."""
        path = f"{self.folder}/{base_offset:020d}.log"
        self._files.forget(path)
        self._filesystem.rename(f"{self.folder}/{base_offset:020d}{SWAP_SUFFIX}", path)
        return path

    def _finish_compaction(self, report: LogReport) -> None:
        """What a crash left: what was not complete goes, and what was takes its place."""
        names = self._filesystem.list(self.folder)
        for name in names:
            if name.endswith(CLEANED_SUFFIX):
                self._filesystem.remove(f"{self.folder}/{name}")
                self._is_folder_dirty = True
        for match in [_SWAP_NAME.fullmatch(name) for name in names]:
            if match is None:
                continue
            base_offset = int(match[1])
            swapped = Segment(self._files, self.folder, base_offset)
            swapped.path = f"{self.folder}/{match[0]}"
            walk = swapped.walk(None, None)
            self._files.forget(swapped.path)
            if walk.reason:
                # The first of the segments that it was to replace is still there.
                report.reasons.append(f"{swapped.path} {walk.reason}")
                report.kept_aside.append(move_aside(self._filesystem, swapped.path))
            else:
                for base in reversed([base for base in self._find_bases() if base_offset <= base < walk.end_offset]):
                    replaced = Segment(self._files, self.folder, base)
                    self._files.forget(replaced.index_path)
                    self._filesystem.remove(replaced.index_path)
                    if base != base_offset:
                        replaced.remove()
                self._filesystem.sync_folder(self.folder)
                self._finish_swap(base_offset)
            self._filesystem.sync_folder(self.folder)

    def close(self) -> None:
        """Sync, and give the open files back."""
        self.sync()
        with contextlib.suppress(OSError):
            # Otherwise it is done when the log is opened again.
            self._finish_replacements()
        for segment in self._segments:
            self._files.release(segment.path)
            self._files.release(segment.index_path)

    def delete(self) -> None:
        """Delete the log and its folder."""
        self._unfinished.clear()
        while self._segments:
            self._remove_first()
        for attempts_left in (2, 1, 0):
            for name in self._filesystem.list(self.folder):
                # A log made later under the same path must not find the removed file still open.
                self._files.forget(f"{self.folder}/{name}")
                self._filesystem.remove(f"{self.folder}/{name}")
            try:
                self._filesystem.remove(self.folder)
                return
            except OSError:
                # Compaction may just have begun another file.
                if attempts_left == 0:
                    raise

    def _find_bases(self) -> list[int]:
        names = [_SEGMENT_NAME.fullmatch(name) for name in self._filesystem.list(self.folder)]
        return sorted(int(name[1]) for name in names if name is not None)

    def _remove_beyond(self, bases: list[int], end_offset: int | None, report: LogReport) -> None:
        """Remove the segments that begin at or after the log's end: the last first, so that no gap appears."""
        while bases and end_offset is not None and bases[-1] >= end_offset:
            segment = Segment(self._files, self.folder, bases.pop())
            report.bytes_cut += self._files.size(segment.path)
            report.reasons.append(f"{segment.path} is beyond the log's end")
            segment.remove()
            self._is_folder_dirty = True

    def _open_checked(
        self, segment: Segment, end_offset: int | None, later_bases: list[int], report: LogReport
    ) -> None:
        """Read a segment through, and keep the part that verifies."""
        next_base = later_bases[0] if later_bases else None
        walk = segment.walk(end_offset, next_base)
        if walk.reason:
            self._cut(segment, walk, end_offset, next_base, report)
        if self._filesystem.exists(segment.index_path):
            # It may tell of batches that were here before a power cut. It goes for good before others take their place.
            self._files.forget(segment.index_path)
            self._filesystem.remove(segment.index_path)
            self._is_folder_dirty = True
        if walk.size == 0:
            segment.remove()
            self._is_folder_dirty = True
        else:
            segment.adopt(walk)
            self._add(segment)
            if end_offset is None:
                # After a kill what was read here may be in the system's memory only.
                self._files.mark_dirty(segment.path)
                self._dirty.add(segment.path)
            if later_bases:
                segment.complete()
            else:
                self._active = segment
        self.end_offset = walk.end_offset

    def _cut(
        self, segment: Segment, walk: Walk, end_offset: int | None, next_base: int | None, report: LogReport
    ) -> None:
        file = self._filesystem.open(segment.path, False)
        try:
            file_bytes = file.size()
            report.bytes_cut += file_bytes - walk.size
            report.reasons.append(f"{segment.path} {walk.reason}")
            expected_end = end_offset if next_base is None else next_base
            is_lost = expected_end is not None and walk.end_offset < expected_end
            if is_lost and expected_end is not None:
                report.lost.append((walk.end_offset, expected_end))
            if is_lost or end_offset is None:
                try:
                    report.kept_aside.append(copy_aside(self._filesystem, segment.path, file, walk.size, file_bytes))
                except OSError as error:
                    # What may be only a torn append is, on a full disk, not worth a copy.
                    if is_lost or not is_disk_full(error):
                        raise
            file.truncate(walk.size)
            file.sync()
        finally:
            file.close()

    def _append_to_new_segment(
        self, batch: bytes, base_offset: int, last_offset: int, max_timestamp_ms: int
    ) -> BatchPlace:
        if self._active is not None:
            self._active.tidy()
        segment = Segment(self._files, self.folder, base_offset)
        segment.begin()
        try:
            segment.append(batch, base_offset, last_offset, max_timestamp_ms, 0)
        except OSError:
            self._undo_segment(segment)
            raise
        if self._active is not None:
            self._active.complete()
            self._files.release(self._active.index_path)
        self._active = segment
        self._add(segment)
        self.size_bytes -= segment.size
        self._appended(segment, len(batch), last_offset)
        with self._guard:
            self._is_folder_dirty = True
        return BatchPlace(base_offset, 0, len(batch))

    def _undo_segment(self, segment: Segment) -> None:
        """Remove what was written of a first batch, durably: after a power cut it must not come back among segments
        that were made instead."""
        try:
            segment.remove()
            self._filesystem.sync_folder(self.folder)
        except OSError as error:
            self._failure = StorageFailed(f"{segment.path} can neither be written nor removed: {error}")

    def _appended(self, segment: Segment, size: int, last_offset: int) -> None:
        self.size_bytes += size
        self.end_offset = last_offset + 1
        with self._guard:
            self._dirty.add(segment.path)

    def _add(self, segment: Segment) -> None:
        self._segments.append(segment)
        self._by_base[segment.base_offset] = segment
        self.size_bytes += segment.size

    def _remove_first(self) -> int:
        segment = self._segments.pop(0)
        del self._by_base[segment.base_offset]
        with self._guard:
            self._dirty.discard(segment.path)
        if segment is self._active:
            self._active = None
        for number, (unfinished, paths) in enumerate(self._unfinished):
            if unfinished is segment:
                # Nor is anything left of what it was made of.
                for path in [*paths, f"{self.folder}/{segment.base_offset:020d}.log"]:
                    self._files.forget(path)
                    self._filesystem.remove(path)
                del self._unfinished[number]
                break
        segment.remove()
        self.size_bytes -= segment.size
        return segment.size

    def _is_oldest_before(self, timestamp_ms: int) -> bool:
        """Whether the first segment is all older. One that cannot tell, because it is damaged, or because no record in
        it has a time, is as old as the one after it, so that it does not stay for ever."""
        for segment in self._segments:
            with contextlib.suppress(CorruptData):
                if segment.max_timestamp_ms >= 0:
                    return segment.max_timestamp_ms < timestamp_ms
        return False

    def _find_record(self, batch: bytes, timestamp_ms: int) -> int:
        header = BatchHeader(batch)
        if header.attributes & 7 == 0:
            reader = RecordReader(batch)
            while reader.next():
                if reader.timestamp_ms >= timestamp_ms:
                    return reader.offset
        return header.base_offset


def _sensible(search: Callable[..., tuple[int, int]], batch: bytes, *arguments: int) -> tuple[int, int]:
    """What a search in a batch has found: nothing where its records make no sense."""
    try:
        return search(batch, *arguments)
    except CorruptData:
        return -1, -1


def _base_offset(segment: Segment) -> int:
    return segment.base_offset
