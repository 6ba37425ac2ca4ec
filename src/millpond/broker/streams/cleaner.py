"""When which stream is compacted. What that means is in `storage/compaction.py`.

    every few seconds, those that may have something to do
        -> on the cleaning thread: look at their logs, take the one with the largest dirty part, clean it
            -> on the writing thread: put each cleaned segment in its place
        -> on the loop: remember how far it got, and look again at once if there is more

One log is cleaned at a time. Compaction keeps below what the last checkpoint knows of a log; where it would have more
to do, it asks for a checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from millpond.base.clock import Clock
from millpond.base.errors import StorageError
from millpond.base.limits import COMPACTION_PAUSE_MS, COMPACTION_RETRY_MS
from millpond.storage.aborted_transactions import AbortedTransactions
from millpond.storage.compaction import CompactionPlan, CompactionSettings, CompactionStopped

if TYPE_CHECKING:
    from millpond.broker.queues.page_store import PageStore
    from millpond.broker.streams.partition import Partition
    from millpond.broker.streams.stream_store import StreamLog, StreamStore

logger = logging.getLogger(__name__)

# One more than any offset.
_NO_END = 1 << 63


class _Candidate(NamedTuple):
    """A stream that may have something to do, as the loop's thread knows it."""

    partition: Partition
    log: StreamLog
    first_dirty: int
    checkpointed_end: int
    segment_bytes: int
    settings: CompactionSettings
    # Of the last batches of idempotent producers.
    kept_batches: frozenset[int]
    # Nothing beyond belongs to a transaction that has surely ended, and before it these were aborted.
    stable_end: int
    aborted: AbortedTransactions


class _Outcome(NamedTuple):
    """What the cleaning thread has done."""

    candidate: _Candidate | None
    cleaned_end: int
    # There is another one that something can be done for now, or after a checkpoint.
    has_more: bool
    waits_for_checkpoint: bool
    # It has left nothing that was aborted.
    has_dropped_aborted: bool = False


class StreamCleaner:
    """Compacts the streams of a node."""

    def __init__(self, streams: StreamStore, store: PageStore, clock: Clock) -> None:
        self._streams = streams
        self._store = store
        self._clock = clock
        self._checked_ms = clock.monotonic_ms()
        # Those that are left alone until then, because something failed.
        self._resting: dict[int, int] = {}
        self.is_running = False
        self.passes_total = 0

    def keep_house(self) -> None:
        """To be called every second."""
        now_ms = self._clock.monotonic_ms()
        if not self.is_running and now_ms - self._checked_ms >= self._streams.check_interval_ms:
            self._checked_ms = now_ms
            self.look()

    def look(self) -> None:
        """Have the cleaning thread look at what may have something to do, and do it."""
        if self.is_running or not self._streams.available:
            return
        candidates = [self._candidate(partition) for partition in self._streams.partitions() if self._may_be(partition)]
        if candidates:
            self.is_running = True
            self._store.run_on_cleaner(partial(self._clean_filthiest, candidates, self._clock.wall_ms()), self._ended)

    def _may_be(self, partition: Partition) -> bool:
        if not partition.compacts or partition.deleted:
            return False
        if self._resting.get(int(partition.log_id), 0) > self._clock.monotonic_ms():
            return False
        return partition.written_end > max(partition.cleaned_end, partition.start_offset)

    def _candidate(self, partition: Partition) -> _Candidate:
        first_dirty = max(int(partition.cleaned_end), int(partition.start_offset))
        settings = CompactionSettings(
            int(partition.delete_retention_ms),
            int(partition.min_compaction_lag_ms),
            int(partition.max_compaction_lag_ms),
            partition.min_cleanable_dirty_ratio,
        )
        producers = partition.producers.known.values()
        kept = frozenset(int(producer.batches[-1].base_offset) for producer in producers if producer.batches)
        return _Candidate(
            partition,
            self._streams.log(partition),
            first_dirty,
            int(partition.checkpointed_end),
            self._streams.segment_bytes(partition),
            settings,
            kept,
            int(partition.stable_end),
            partition.transactions.aborted.copy(),
        )

    def _ended(self, job: Future[_Outcome]) -> None:
        self.is_running = False
        try:
            outcome = job.result()
        except CancelledError:
            return
        candidate = outcome.candidate
        if outcome.waits_for_checkpoint:
            self._streams.checkpoint_wanted = True
            self._streams.turn.touch()
        if candidate is None:
            return
        partition = candidate.partition
        self.passes_total += 1
        if outcome.cleaned_end > partition.cleaned_end:
            partition.cleaned(outcome.cleaned_end, outcome.has_dropped_aborted)
        else:
            self._resting[int(partition.log_id)] = self._clock.monotonic_ms() + COMPACTION_RETRY_MS
        self._resting = {log_id: until for log_id, until in self._resting.items() if until > self._clock.monotonic_ms()}
        if outcome.has_more and not self._store.stopping.is_set():
            self.look()

    # --- On the cleaning thread -------------------------------------------------------------------------------------

    def _clean_filthiest(self, candidates: list[_Candidate], now_ms: int) -> _Outcome:
        due: list[tuple[_Candidate, CompactionPlan]] = []
        waits = False
        for candidate in candidates:
            try:
                plan = _plan(candidate, candidate.first_dirty, candidate.checkpointed_end, now_ms)
                if plan.is_due(candidate.settings):
                    due.append((candidate, plan))
                elif not waits:
                    waits = _plan(candidate, candidate.first_dirty, _NO_END, now_ms).is_due(candidate.settings)
            except (StorageError, OSError) as error:
                if not candidate.log.is_gone:
                    logger.error("stream %r cannot be compacted now: %s", candidate.log.name, error)
        if not due:
            return _Outcome(None, 0, False, waits)
        candidate, plan = max(due, key=lambda pair: pair[1].dirty_ratio)
        cleaned_end = candidate.first_dirty
        is_whole = True
        try:
            while True:
                cleaned_end, was_whole = self._pass(candidate, plan, now_ms)
                is_whole = is_whole and was_whole
                if cleaned_end >= plan.end_offset:
                    break
                plan = _plan(candidate, cleaned_end, plan.end_offset, now_ms)
        except CompactionStopped:
            pass
        except (StorageError, OSError) as error:
            if not candidate.log.is_gone:
                logger.error("stream %r was not compacted to its end: %s", candidate.log.name, error)
            is_whole = False
        return _Outcome(candidate, cleaned_end, len(due) > 1, waits, is_whole)

    def _pass(self, candidate: _Candidate, plan: CompactionPlan, now_ms: int) -> tuple[int, bool]:
        """Where it ended, and whether it has left out nothing before that."""
        log = candidate.log
        damaged = set(log.damaged)
        size_before = sum(segment.size for segment in plan.segments)
        compaction = log.compaction(plan, candidate.kept_batches, candidate.aborted, partial(self._pause, log))
        compaction.index(now_ms, candidate.settings.delete_retention_ms)
        saved = 0
        for group in compaction.groups(candidate.segment_bytes):
            cleaned = compaction.clean(group)
            if cleaned is not None:
                before = sum(segment.size for segment in group)
                replace: Callable[[], bool] = partial(log.replace, group, cleaned)
                if self._store.call_on_writer(replace):
                    saved += before - cleaned.walk.size
                else:
                    compaction.has_left_out = True
        for base_offset in sorted(log.damaged - damaged):
            logger.critical(
                "the segment of offset %d of stream %r is damaged, and is not compacted", base_offset, log.name
            )
        if compaction.senseless > 0:
            logger.warning(
                "%d batches of stream %r make no sense and were left as they are", compaction.senseless, log.name
            )
        logger.debug("stream %r: compaction has freed %d of %d bytes", log.name, saved, size_before)
        return compaction.end_offset, not compaction.has_left_out

    def _pause(self, log: StreamLog) -> None:
        if log.is_gone or self._store.stopping.wait(COMPACTION_PAUSE_MS / 1000):
            raise CompactionStopped(f"compaction of stream {log.name!r} was called off")


def _plan(candidate: _Candidate, first_dirty: int, end_offset: int, now_ms: int) -> CompactionPlan:
    end_offset = min(end_offset, candidate.stable_end)
    return candidate.log.plan_compaction(first_dirty, end_offset, now_ms, candidate.settings)
