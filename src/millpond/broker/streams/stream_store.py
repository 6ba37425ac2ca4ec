"""What all streams of a node share: their logs, the threads that write and read them, and the cache of what was read.

    append ──> hot ──> writing thread ──> segments ──> reading thread ──> cache ──> readers that are behind
                └───────────────────────────────────────────────────────────────> readers at the end

The threads are those of the page store, so a stream's log is written, synced at a checkpoint, trimmed and deleted by
one thread, in the order in which that was asked for. The tables here belong to the loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from mypy_extensions import i64

from millpond.base.clock import Clock
from millpond.base.errors import CorruptData, StorageError
from millpond.base.limits import (
    SEGMENT_BYTES,
    STREAM_CACHE_BYTES,
    STREAM_CHECK_INTERVAL_MS,
    STREAM_READ_BYTES,
    STREAM_READS_MAX,
    STREAM_RETENTION_CHECKS_MAX,
    STREAM_SEGMENT_BYTES,
    STREAM_SEGMENT_BYTES_MIN,
    STREAM_TAIL_BYTES,
    STREAM_UNWRITTEN_BYTES,
    STREAM_WRITE_BYTES_MAX,
)
from millpond.broker.commits import Commits, CommitWaiter
from millpond.broker.ledger import Ledger
from millpond.broker.memory import MemoryBudget
from millpond.broker.queues.page_store import LazyLog, PageStore
from millpond.broker.streams.cleaner import StreamCleaner
from millpond.broker.streams.partition import Batch, Partition
from millpond.broker.streams.time_search import TimeSearch, find_newest
from millpond.broker.turn import Turn
from millpond.storage.aborted_transactions import AbortedTransactions
from millpond.storage.cleaned_segment import CleanedSegment
from millpond.storage.compaction import BatchScan, Compaction, CompactionPlan, CompactionSettings, plan_compaction
from millpond.storage.log import Log
from millpond.storage.record_batch import BatchHeader
from millpond.storage.segment import SEGMENT_BYTES_MAX, BatchRun, NewBatch, Segment

if TYPE_CHECKING:
    from millpond.base.filesystem import Filesystem

logger = logging.getLogger(__name__)


class StreamLog(LazyLog):
    """A stream's log. Both threads look for batches in it, so they take turns."""

    def __init__(
        self, filesystem: Filesystem, folder: str, end_offset: int, name: str, recoverable: bool, segment_bytes: int
    ) -> None:
        super().__init__(filesystem, folder, end_offset, name, recoverable, segment_bytes)
        self._using = filesystem.threads.guard()
        # Read by the loop's thread.
        self.start_offset = 0
        self.segment_count = 0
        # As many segments as there were when retention looked at them last.
        self.retained_count = 0
        self.size_bytes = 0
        # Base offsets of segments that compaction has found damaged.
        self.damaged: set[int] = set()
        self.is_gone = False

    def write(self, batches: list[Batch], previous_end: int, segment_bytes: int, segment_ms: int) -> None:
        """Append batches. `previous_end` is where those end that were to be written before: where that has failed, so
        does this."""
        if previous_end != self.end_offset:
            raise StorageError("it follows what could not be written")
        new = [
            NewBatch(batch.data, int(batch.base_offset), int(batch.end_offset) - 1, int(batch.newest_ms))
            for batch in batches
        ]
        log = self.opened()
        with self._using:
            log.segment_bytes = segment_bytes
            log.segment_ms = segment_ms
            try:
                log.append_all(new)
            finally:
                self.end_offset = max(self.end_offset, log.end_offset)
            self._note(log)
        self.grew(sum(len(batch.data) for batch in new))

    def retain(
        self,
        now_ms: int,
        age_max_ms: int,
        bytes_max: int,
        start_offset: int,
        segment_ms: int,
        durable_end: int,
        needed_from: int,
    ) -> None:
        """Let segments go that are too old or too much, or before the stream's start. `durable_end` is given where the
        one that is written to may be among them, and `needed_from` where somebody needs what is there."""
        log = self.opened()
        with self._using:
            log.segment_ms = segment_ms
            log.roll_if_old(now_ms)
            log.trim_before(min(start_offset, log.end_offset))
            log.retain(now_ms, age_max_ms, bytes_max, durable_end, needed_from)
            self._note(log)

    def trim_before(self, offset: int) -> None:
        log = self.opened()
        with self._using:
            log.trim_before(offset)
            self._note(log)

    def read_run(self, offset: int, bytes_max: int) -> BatchRun:
        log = self.opened()
        with self._using:
            self._note(log)
            return log.read_run(offset, bytes_max)

    def find_timestamp(self, timestamp_ms: int) -> int | None:
        log = self.opened()
        with self._using:
            try:
                return log.find_timestamp(timestamp_ms)
            except CorruptData as error:
                logger.critical("a time was looked for in stream %r, and may lie later: %s", self.name, error)
                return log.start_offset

    def last_batch_offset(self) -> int:
        log = self.opened()
        with self._using:
            return log.last_batch_offset()

    def find_record(self, timestamp_ms: int, offset: int, bytes_max: int) -> tuple[int, int, int]:
        log = self.opened()
        with self._using:
            return log.find_record(timestamp_ms, offset, bytes_max)

    def find_newest(self, offset: int) -> tuple[int, int]:
        log = self.opened()
        with self._using:
            return log.find_newest(offset)

    def plan_compaction(
        self, first_dirty: int, end_offset: int, now_ms: int, settings: CompactionSettings
    ) -> CompactionPlan:
        log = self.opened()
        with self._using:
            return plan_compaction(log.sealed_segments(), first_dirty, end_offset, now_ms, settings)

    def compaction(
        self,
        plan: CompactionPlan,
        kept_batches: frozenset[int],
        aborted: AbortedTransactions,
        pause: Callable[[], None],
    ) -> Compaction:
        log = self.opened()
        return Compaction(log.files, log.folder, plan, kept_batches, self.damaged, pause, aborted=aborted)

    def replace(self, old: list[Segment], cleaned: CleanedSegment) -> bool:
        """Put what compaction has made in the place of what it was made of."""
        if self.is_gone:
            cleaned.discard()
            return False
        log = self.opened()
        with self._using:
            was_replaced = log.replace(old, cleaned)
            self._note(log)
            # That there are fewer of them is no reason to look at them.
            self.retained_count = min(self.retained_count, log.segment_count)
            return was_replaced

    def delete(self) -> None:
        self.is_gone = True
        with self._using:
            super().delete()

    def _note(self, log: Log) -> None:
        self.start_offset = log.start_offset
        self.segment_count = log.segment_count
        self.size_bytes = log.size_bytes


class StreamStore(CommitWaiter):
    """The streams of a node."""

    def __init__(
        self, store: PageStore, ledger: Ledger, memory: MemoryBudget, turn: Turn, clock: Clock, commits: Commits
    ) -> None:
        self._store = store
        self.ledger = ledger
        self.memory = memory
        self.turn = turn
        self._clock = clock
        self._commits = commits
        # What a partition keeps in memory although its log has it.
        self.tail_bytes_max = STREAM_TAIL_BYTES
        self._partitions: dict[int, Partition] = {}
        # Those of which nothing is ever written.
        self._transient: dict[Partition, None] = {}
        self._logs: dict[int, StreamLog] = {}
        # Those that have something that is not known to be durable, and whether the commits know of us.
        self._pending: dict[Partition, None] = {}
        self._is_waiting = False
        # Those that have something in memory.
        self._hot: dict[Partition, None] = {}
        # What is in the caches, the oldest first: a partition, the keys, and how much it is.
        self._cached: list[tuple[Partition, list[int], int]] = []
        self._cached_bytes = 0
        self._cache_bytes_max = min(STREAM_CACHE_BYTES, max(STREAM_READ_BYTES, int(memory.budget_bytes) // 16))
        self._reads_under_way = 0
        self._reads_waiting: dict[tuple[Partition, int], None] = {}
        # Reads that failed for the moment.
        self._unread: list[tuple[Partition, int]] = []
        # Those in which something may be too old or too much, and that are still to be looked at.
        self._ahead: list[Partition] = []
        # A write has failed: no further one is begun before `keep_house`.
        self._resting = False
        # How often retention and compaction are looked after.
        self.check_interval_ms = STREAM_CHECK_INTERVAL_MS
        self._retained_ms = clock.monotonic_ms()
        self.cleaner = StreamCleaner(self, store, clock)
        # Compaction has something to do as soon as there is a checkpoint.
        self.checkpoint_wanted = False
        # Called after every write that has ended.
        self.on_written: Callable[[Partition], None] | None = None
        self.reads_total = 0
        self.writes_total = 0

    @property
    def available(self) -> bool:
        """Whether anything is kept on a disk."""
        return self._store.available

    def partitions(self) -> Iterable[Partition]:
        """All of them that survive a restart."""
        return self._partitions.values()

    def add(self, partition: Partition) -> None:
        if partition.recoverable:
            self._partitions[partition.log_id] = partition
        else:
            self._transient[partition] = None

    def segment_count(self, partition: Partition) -> int:
        """How many files its log has; 0 while that is not known."""
        log = self._logs.get(partition.log_id)
        return 0 if log is None else log.segment_count

    def measure(self, partitions: list[Partition], done: Callable[[list[int]], None]) -> None:
        """How many bytes each of them has, in its log and on the way there. `done` may be called at once."""
        folders = [
            self._folder(partition)
            for partition in partitions
            if partition.recoverable and partition.written_end > 0 and self.segment_count(partition) == 0
        ]
        filesystem = self._store.filesystem
        if filesystem is None or not folders:
            done([self.known_bytes(partition) for partition in partitions])
            return

        def measured(job: Future[dict[str, int]]) -> None:
            error = job.exception()
            if error is not None:
                logger.error("the logs of streams cannot be measured: %s", error)
            sizes = {} if error is not None else job.result()
            done([self.known_bytes(partition, sizes) for partition in partitions])

        self._store.run_on_reader(partial(_folder_sizes, filesystem, folders), measured)

    def known_bytes(self, partition: Partition, unopened: Mapping[str, int] | None = None) -> int:
        """The same, as far as it is known at once. `unopened` has the sizes of logs that nobody has opened yet."""
        log = self._logs.get(partition.log_id)
        in_log = log.size_bytes if log is not None else 0
        if in_log == 0 and unopened is not None:
            in_log = unopened.get(self._folder(partition), 0)
        return in_log + int(partition.bytes_outside_log)

    def _folder(self, partition: Partition) -> str:
        return self._store.log_folder(int(partition.log_id), True)

    def segment_bytes(self, partition: Partition) -> int:
        """How large the segments of its log get."""
        return segment_bytes(partition)

    def log(self, partition: Partition) -> StreamLog:
        """A recoverable partition's log."""
        log = self._logs.get(partition.log_id)
        if log is None:
            end = int(partition.written_end)
            log = self._store.new_log(partition.log_id, end, partition.name, segment_bytes(partition), StreamLog)
            self._logs[partition.log_id] = log
        return log

    # --- Appending and durability -----------------------------------------------------------------------------------

    def appended(self, partition: Partition) -> None:
        """The partition has taken another batch."""
        self._hot[partition] = None
        self._pending[partition] = None
        if not self._is_waiting:
            self._is_waiting = True
            self._commits.wait(self)
        if _is_due(partition):
            self.write(partition)

    def committed(self, durable_sequence: i64) -> bool:
        for partition in list(self._pending):
            partition.committed(durable_sequence)
            if not partition.has_pending or partition.deleted:
                del self._pending[partition]
        self._is_waiting = bool(self._pending)
        return self._is_waiting

    def commit_failed(self) -> None:
        # Readers see nothing more of what will never be durable.
        self._is_waiting = False
        self._pending = {}

    # --- Writing ----------------------------------------------------------------------------------------------------

    def write(self, partition: Partition, everything: bool = False) -> None:
        """Give what is only in memory to the log: all of it, or one write's worth where none is under way."""
        if not self.available or self._resting or partition.deleted:
            return
        while everything or partition.writes_under_way == 0:
            previous_end = int(partition.log_end)
            log = self.log(partition)
            batches = partition.take_unwritten(STREAM_WRITE_BYTES_MAX)
            if not batches:
                return
            partition.writes_under_way += 1
            task = partial(log.write, batches, previous_end, segment_bytes(partition), segment_ms(partition))
            end = int(batches[-1].end_offset)
            self._store.run_on_writer(task, partial(self._written, partition, log, end))

    def _written(self, partition: Partition, log: StreamLog, end: int, error: BaseException | None) -> None:
        partition.writes_under_way -= 1
        if partition.deleted:
            pass
        elif error is None:
            self.writes_total += 1
            partition.wrote(end)
            self._segments_may_go(partition, log)
            if _is_due(partition):
                self.write(partition)
        else:
            self._resting = True
            logger.error("messages of stream %r could not be written and stay in memory: %s", partition.name, error)
            if partition.writes_under_way == 0:
                # What came after the failed write has failed too.
                partition.write_failed(log.end_offset)
        if not partition.hot:
            self._hot.pop(partition, None)
        if self.on_written is not None:
            self.on_written(partition)
        # Where publishers wait for memory there is no other reason for a turn.
        self.turn.touch()

    def _segments_may_go(self, partition: Partition, log: StreamLog) -> None:
        """Where a new segment has begun, retention may take the oldest."""
        if log.segment_count > log.retained_count:
            log.retained_count = log.segment_count
            self.retain(partition)

    def relieve(self) -> None:
        """Memory is short: give up what the logs have, and write what they have not."""
        if self.memory.used > self.memory.budget_bytes:
            # Not before: what is read for one consumer would be gone when the next one comes.
            self._forget_cached(1)
        for partition in list(self._hot):
            partition.drop_written(0)
            if not partition.hot:
                del self._hot[partition]
            elif partition.unwritten_bytes > 0:
                self.write(partition)

    def keep_house(self) -> None:
        """To be called every second: what failed may be tried again, and what is too old goes."""
        self._resting = False
        unread, self._unread = self._unread, []
        for partition, offset in unread:
            self.load(partition, offset)
        for partition in list(self._hot):
            if _is_due(partition):
                self.write(partition)
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._retained_ms >= self.check_interval_ms and not self._ahead:
            self._retained_ms = now_ms
            self._ahead = [*self._partitions.values(), *self._transient]
        for _ in range(min(len(self._ahead), STREAM_RETENTION_CHECKS_MAX)):
            partition = self._ahead.pop()
            partition.producers.forget_idle(self._clock.wall_ms())
            if self._is_hot_too_old(partition):
                self.write(partition, everything=True)
            is_open = partition.log_id in self._logs
            has_any = partition.written_end > partition.start_offset or not partition.recoverable
            if has_any and self.retain(partition) and not is_open:
                # Opening a log reads its last segment, and pages of queues wait behind it: one at a time.
                break
        self.cleaner.keep_house()

    def _is_hot_too_old(self, partition: Partition) -> bool:
        """Whether something is only in memory that is old enough for its segment to be complete, or to be deleted."""
        roll_ms, oldest_ms = segment_ms(partition), partition.oldest_unwritten_ms
        if roll_ms < 0 or oldest_ms < 0:
            return False
        if partition.deletes and partition.age_max_ms >= 0:
            roll_ms = min(roll_ms, int(partition.age_max_ms))
        return self._clock.wall_ms() - oldest_ms > roll_ms

    def retain(self, partition: Partition) -> bool:
        """Delete what is too old, or too much. Whether there is anything to be looked at."""
        age_max_ms, bytes_max = int(partition.age_max_ms), int(partition.bytes_max)
        if not partition.deletes:
            age_max_ms = bytes_max = -1
        roll_ms = segment_ms(partition)
        if (age_max_ms < 0 and bytes_max < 0 and roll_ms < 0) or partition.deleted:
            return False
        if not partition.recoverable:
            if partition.deletes:
                partition.retain_hot(self._clock.wall_ms())
            return False
        if partition.written_end == 0:
            return False
        log = self.log(partition)
        if bytes_max >= 0:
            # What is not durable must not push out what is.
            bytes_max += int(partition.undurable_bytes)
        durable_end = int(partition.durable_end) if roll_ms >= 0 else -1
        start, now_ms = int(partition.start_offset), self._clock.wall_ms()
        needed_from = int(partition.needed_from)
        task = partial(log.retain, now_ms, age_max_ms, bytes_max, start, roll_ms, durable_end, needed_from)
        self._store.run_on_writer(task, partial(self._shortened, partition, log))
        return True

    def trim(self, partition: Partition) -> None:
        """Delete the segments that have nothing from the partition's start on."""
        if partition.recoverable and partition.written_end > 0:
            log = self.log(partition)
            start = min(int(partition.start_offset), int(partition.written_end))
            self._store.run_on_writer(partial(log.trim_before, start), partial(self._shortened, partition, log))

    def _shortened(self, partition: Partition, log: StreamLog, error: BaseException | None) -> None:
        if error is not None:
            logger.error("the log of stream %r could not be trimmed: %s", partition.name, error)
        else:
            log.retained_count = log.segment_count
            partition.log_starts_at(log.start_offset)

    def delete(self, partition: Partition) -> None:
        """The partition is gone: so is its log, when the catalog is sure to remember that."""
        self._partitions.pop(partition.log_id, None)
        self._transient.pop(partition, None)
        self._pending.pop(partition, None)
        self._hot.pop(partition, None)
        if partition.recoverable and partition.written_end > 0:
            self.log(partition)
        self._logs.pop(partition.log_id, None)
        self._store.discard_log(partition.log_id)
        self.forget(partition)

    def forget(self, partition: Partition) -> None:
        """Give up what was read from the partition's log."""
        kept: list[tuple[Partition, list[int], int]] = []
        for cached in self._cached:
            if cached[0] is partition:
                self._uncount(cached[2])
            else:
                kept.append(cached)
        self._cached = kept
        partition.cache.clear()

    # --- Reading ----------------------------------------------------------------------------------------------------

    def load(self, partition: Partition, offset: int) -> None:
        """Read from the log what begins with `offset`."""
        if partition.deleted:
            return
        if self._reads_under_way >= STREAM_READS_MAX:
            self._reads_waiting[partition, offset] = None
            return
        self._reads_under_way += 1
        log = self.log(partition)
        self._store.run_on_reader(
            partial(log.read_run, offset, STREAM_READ_BYTES), partial(self._loaded, partition, log, offset)
        )

    def load_now(self, partition: Partition, offset: int) -> None:
        """As `load`, while everything waits: for who cannot be answered later."""
        if not partition.deleted:
            self._cache_run(partition, offset, self.log(partition).read_run(offset, STREAM_READ_BYTES))

    def _loaded(self, partition: Partition, log: StreamLog, offset: int, job: Future[BatchRun]) -> None:
        self._reads_under_way -= 1
        while self._reads_waiting and self._reads_under_way < STREAM_READS_MAX:
            # Some may be of streams that have gone meanwhile.
            following = next(iter(self._reads_waiting))
            del self._reads_waiting[following]
            self.load(*following)
        partition.loading.pop(offset, None)
        if partition.deleted:
            return
        error = job.exception()
        if error is not None:
            # No descriptors, no memory: what is damaged is no error.
            logger.error("stream %r cannot be read now: %s", partition.name, error)
            partition.loading[offset] = None
            self._unread.append((partition, offset))
            return
        self.reads_total += 1
        if log.start_offset > partition.start_offset:
            # Retention had deleted more than was remembered, or somebody else has.
            logger.warning("stream %r begins at offset %d", partition.name, log.start_offset)
            partition.log_starts_at(log.start_offset)
        if offset >= partition.start_offset:
            self._cache_run(partition, offset, job.result())
        partition.tell_loaded()

    def _cache_run(self, partition: Partition, offset: int, run: BatchRun) -> None:
        found: list[Batch] = []
        for data in reversed(run.batches):
            header = BatchHeader(data)
            # Where compaction has left nothing behind it, it reaches up to the next one.
            end_offset = found[-1].base_offset if found else i64(run.next_offset)
            found.append(Batch(data, header.base_offset, end_offset, header.max_timestamp_ms, 0))
        found.reverse()
        start = int(found[0].base_offset) if found else self._readable_from(partition, offset)
        if run.damage:
            logger.critical("stream %r is damaged: %s", partition.name, run.damage)
        if start > offset:
            # What is covered by batches without records is what compaction has left nothing of.
            lost_end = start if run.damage or run.covered_from < 0 else run.covered_from
            if lost_end > offset:
                logger.critical("offsets %d to %d of stream %r are lost", offset, lost_end - 1, partition.name)
            found.insert(0, Batch(b"", offset, start, -1, 0))
        keys: list[int] = []
        size = 0
        for index, batch in enumerate(found):
            # The first one may have been asked for by an offset within it.
            for key in {int(batch.base_offset), offset} if index == 0 else {int(batch.base_offset)}:
                if key not in partition.cache:
                    partition.cache[key] = batch
                    keys.append(key)
            size += int(batch.memory_bytes)
        self._cached.append((partition, keys, size))
        self._cached_bytes += size
        self.memory.used += size
        # Those who asked for them have had no turn yet to look at the latest.
        while self._cached_bytes > self._cache_bytes_max and len(self._cached) > 2 * STREAM_READS_MAX:
            self._forget_cached(len(self._cached) - 1)

    def _readable_from(self, partition: Partition, offset: int) -> int:
        """Where a reader goes on that found nothing in the log."""
        hot = partition.hot
        return int(hot[0].base_offset) if hot and hot[0].base_offset > offset else int(partition.end_offset)

    def _forget_cached(self, count: int) -> None:
        """Keep the latest so many reads."""
        forgotten = self._cached[: len(self._cached) - count]
        self._cached = self._cached[len(self._cached) - count :]
        for partition, keys, size in forgotten:
            for key in keys:
                partition.cache.pop(key, None)
            self._uncount(size)

    def _uncount(self, size: int) -> None:
        self._cached_bytes -= size
        self.memory.used -= size

    def find_time(self, partition: Partition, timestamp_ms: int, done: Callable[[int], None]) -> None:
        """Find the first record that is as new as this; the end where none is. `done` may be called at once."""
        if partition.written_end <= partition.start_offset or not partition.recoverable:
            done(max(int(partition.hot_at_time(timestamp_ms)), int(partition.start_offset)))
            return

        def found(job: Future[int | None]) -> None:
            error = job.exception()
            offset = int(partition.start_offset) if error is not None else job.result()
            if error is not None:
                logger.error("a time could not be looked for in stream %r: %s", partition.name, error)
            if offset is None:
                offset = int(partition.hot_at_time(timestamp_ms))
            done(max(offset, int(partition.start_offset)))

        self._store.run_on_reader(partial(self.log(partition).find_timestamp, timestamp_ms), found)

    def find_record_at(self, partition: Partition, timestamp_ms: int, done: Callable[[int, int], None]) -> None:
        """Find the first durable record that is not older than this: `done` gets its offset and timestamp, or -1 and
        -1 where there is none, and may be called at once."""
        TimeSearch(self, self._store, partition, timestamp_ms, done).go_on()

    def find_newest(self, partition: Partition, done: Callable[[int, int], None]) -> None:
        """Find the durable record with the largest timestamp, the first of several. As above."""
        find_newest(self, self._store, partition, done)

    def find_last(self, partition: Partition, done: Callable[[int], None]) -> None:
        """Find the last batch that is durable. `done` may be called at once."""
        last = int(partition.last_hot)
        if last >= 0 or partition.written_end <= partition.start_offset:
            done(max(last, int(partition.start_offset)))
            return

        def found(job: Future[int]) -> None:
            error = job.exception()
            if error is not None:
                logger.error("the last message of stream %r could not be looked for: %s", partition.name, error)
            offset = int(partition.durable_end) if error is not None else job.result()
            done(max(offset, int(partition.start_offset)))

        self._store.run_on_reader(self.log(partition).last_batch_offset, found)

    # --- Recovery ---------------------------------------------------------------------------------------------------

    def restored(self, partition: Partition) -> None:
        """The partition is what it was."""
        if partition.hot:
            self._hot[partition] = None

    def surviving_range(self, partition: Partition, found: Callable[[bytes], None]) -> tuple[int, int]:
        """What a partition's log has, whatever is known of it. `found` gets the batches of producers."""
        filesystem = self._store.filesystem
        if filesystem is None:
            return 0, 0
        log = Log(filesystem, self._store.log_folder(partition.log_id, True), SEGMENT_BYTES)
        report = log.open(None, 0)
        for reason in report.reasons:
            logger.critical("the log of stream %r was cut: %s", partition.name, reason)
        for segment in log.segments():
            scan = BatchScan(log.files, segment, segment.base_offset, _no_pause)
            try:
                while (header := scan.next()) is not None:
                    if header.producer_id >= 0:
                        found(scan.batch)
            except CorruptData as error:
                logger.critical("what producers had in stream %r is not known as a whole: %s", partition.name, error)
        log.close()
        return report.start_offset, report.end_offset


def _no_pause() -> None:
    """Nobody else is there yet."""


def _folder_sizes(filesystem: Filesystem, folders: list[str]) -> dict[str, int]:
    """How many bytes the segments in each folder have."""
    sizes: dict[str, int] = {}
    for folder in folders:
        names = filesystem.list(folder) if filesystem.exists(folder) else []
        sizes[folder] = 0
        for name in names:
            # One may be deleted meanwhile.
            if name.endswith(".log") and filesystem.exists(f"{folder}/{name}"):
                file = filesystem.open(f"{folder}/{name}", False)
                try:
                    sizes[folder] += file.size()
                finally:
                    file.close()
    return sizes


def _is_due(partition: Partition) -> bool:
    """Whether there is enough to be worth a write."""
    return partition.unwritten_bytes >= STREAM_UNWRITTEN_BYTES


def segment_ms(partition: Partition) -> int:
    """How old a segment gets before it is complete; -1 where that does not matter."""
    limit = int(partition.segment_ms)
    if limit >= 0 and partition.compacts:
        # What must be compacted by then must be in a complete segment.
        limit = min(limit, max(0, int(partition.max_compaction_lag_ms)))
    return limit


def segment_bytes(partition: Partition) -> int:
    wanted = int(partition.segment_bytes)
    if wanted < 0:
        return STREAM_SEGMENT_BYTES
    return min(max(wanted, STREAM_SEGMENT_BYTES_MIN), SEGMENT_BYTES_MAX)
