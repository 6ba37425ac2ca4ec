"""One append-only log of record batches, whatever protocol they come by: the core of a stream.

    offsets   start_offset          written_end        log_end        durable_end     end_offset
                   |    in the log       |  being written |                |              |
                   |          ... | hot: batches in memory                                |

A batch is opaque: it gets its offsets, is told to the ledger, and is *hot* until it is in the log's segments, where it
is written with its neighbours, long after the journal has made it durable. Some of what is in the log stays hot for
readers who are close to the end; others read from the log by way of a cache that all of them share. Readers are shown
what is durable only, up to `durable_end`.

All calls are synchronous and on the event loop's thread. The threads are `StreamStore`'s business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from librt.strings import BytesWriter, write_i64_be
from mypy_extensions import i64, mypyc_attr

from millpond.base.errors import CorruptData
from millpond.broker.ledger import Ledger
from millpond.broker.memory import MemoryBudget
from millpond.broker.streams.producers import Producer, Producers
from millpond.broker.streams.transactions import PartitionTransactions
from millpond.storage.aborted_transactions import ABORTED_BYTES, AbortedTransaction
from millpond.storage.record_batch import BatchHeader
from millpond.storage.transaction_marker import ABORTED, COMMITTED, marker_of

if TYPE_CHECKING:
    from millpond.broker.streams.stream_store import StreamStore

# What a batch takes in memory besides its bytes; measured.
BATCH_OVERHEAD_BYTES: Final = 200


@final
@mypyc_attr(acyclic=True)
class Batch:
    """A record batch with its offsets, [base_offset, end_offset). Without `data` they are lost, or were never used."""

    def __init__(self, data: bytes, base_offset: i64, end_offset: i64, newest_ms: i64, sequence: i64) -> None:
        self.data: Final = data
        self.base_offset: Final[i64] = base_offset
        self.end_offset: Final[i64] = end_offset
        self.newest_ms: Final[i64] = newest_ms
        # The commit that makes it durable.
        self.sequence: Final[i64] = sequence

    @property
    def memory_bytes(self) -> i64:
        return len(self.data) + BATCH_OVERHEAD_BYTES


@mypyc_attr(allow_interpreted_subclasses=True)
class PartitionListener:
    """Who wants to know what becomes of a partition: those who read from it."""

    def advanced(self) -> None:
        """There is more to be read, the partition begins later than before, or it is gone."""
        raise NotImplementedError

    def loaded(self) -> None:
        """What was asked for is in memory."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class RetentionGuard:
    """Who needs part of a log whatever its age: a queue whose messages it has."""

    def needed_from(self) -> i64:
        """Retention leaves alone what lies from this offset on; -1 for nothing."""
        raise NotImplementedError


@final
class Partition:
    """One log. `log_id` names it, on the disk and in the journal; it is never used again."""

    def __init__(
        self,
        store: StreamStore,
        name: str,
        log_id: i64,
        recoverable: bool,
    ) -> None:
        self.store: Final = store
        self.ledger: Final[Ledger] = store.ledger
        self.memory: Final[MemoryBudget] = store.memory
        self._listeners: dict[PartitionListener, None] = {}
        # Of those that listen, how many wait for something to be durable: it is then made so at once.
        self.readers_waiting: i64 = 0
        self.name: Final = name
        self.log_id: Final[i64] = log_id
        self.recoverable: Final = recoverable
        self.deleted = False
        # Retention; -1 where there is none. Whole segments are deleted, of `segment_bytes` or the default.
        self.age_max_ms: i64 = -1
        self.bytes_max: i64 = -1
        self.segment_bytes: i64 = -1
        # Who needs what retention would else let go of.
        self.guard: RetentionGuard | None = None
        # As Kafka's segment.ms. Where it is not -1, retention is Kafka's too: the segment that is written to goes when
        # it is too old.
        self.segment_ms: i64 = -1
        # Kafka's cleanup.policy, and what it says of compaction; its defaults.
        self.deletes = True
        self.compacts = False
        self.delete_retention_ms: i64 = 86_400_000
        self.min_compaction_lag_ms: i64 = 0
        self.max_compaction_lag_ms: i64 = (1 << 63) - 1
        self.min_cleanable_dirty_ratio: float = 0.5

        self.start_offset: i64 = 0
        self.end_offset: i64 = 0
        self.durable_end: i64 = 0
        # One past what the log has been given, and one past what it has.
        self.log_end: i64 = 0
        self.written_end: i64 = 0
        self.writes_under_way: i64 = 0
        # `log_end` as the last complete checkpoint has it: the log will never be cut before it.
        self.checkpointed_end: i64 = 0
        # What is still to be written, without what is on its way.
        self.unwritten_bytes: i64 = 0
        # In the order of their offsets.
        self.hot: list[Batch] = []
        self.hot_bytes: i64 = 0
        self._tail_bytes_max: Final[i64] = store.tail_bytes_max
        # Index of the first hot batch that is not known to be durable.
        self._pending_at: i64 = 0
        # What was read from the log, by the offset that it begins with or that was asked for.
        self.cache: Final[dict[int, Batch]] = {}
        self.loading: Final[dict[int, None]] = {}
        self._restored_end: i64 = 0
        # Of producers that number what they send.
        self.producers: Final = Producers()
        self.transactions: Final = PartitionTransactions()
        # Up to here compaction has been over the log, and up to here it has left nothing that was aborted.
        self.cleaned_end: i64 = 0
        self._aborted_gone_before: i64 = 0
        # What has been appended, and what readers were given, since the start; for operators.
        self.appended_bytes: i64 = 0
        self.read_bytes: i64 = 0

    def add_listener(self, listener: PartitionListener) -> None:
        self._listeners[listener] = None

    @property
    def is_listened_to(self) -> bool:
        return len(self._listeners) > 0

    def remove_listener(self, listener: PartitionListener) -> None:
        self._listeners.pop(listener, None)

    def _tell_advanced(self) -> None:
        for listener in list(self._listeners):
            listener.advanced()

    def tell_loaded(self) -> None:
        """What was asked for is in memory, or will never be."""
        for listener in list(self._listeners):
            listener.loaded()

    # --- Appending --------------------------------------------------------------------------------------------------

    def append(self, batch: bytes) -> i64:
        """Add a batch, whose checksum has been checked; the offset that its first record gets. `ledger.sequence()` is
        then the commit that makes it durable. What the batch says of its own place is overwritten."""
        return self.append_from(batch, 0, BatchHeader(batch))

    def append_from(self, data: bytes, start: i64, header: BatchHeader) -> i64:
        """As `append`, for a batch in the midst of other bytes, which begins at `start` with `header`."""
        base_offset = self.end_offset
        if start == 0 and header.size == len(data) and header.base_offset == base_offset and header.leader_epoch == 0:
            batch = data
        else:
            batch = placed(data, base_offset, start, header.size)
        ledger = self.ledger
        sequence = ledger.sequence()
        self.appended_bytes += len(batch)
        self.end_offset = base_offset + header.last_offset_delta + 1
        if header.producer_id >= 0:
            self._produced(batch, header, base_offset)
        self._add_hot(Batch(batch, base_offset, self.end_offset, header.max_timestamp_ms, sequence))
        if self.recoverable:
            if self.readers_waiting > 0:
                ledger.sync_wanted = True
            ledger.appended(self.log_id, base_offset, batch)
            self.store.appended(self)
        else:
            self._all_durable()
            self.store.retain(self)
        return base_offset

    def _add_hot(self, batch: Batch) -> None:
        self.hot.append(batch)
        self.hot_bytes += len(batch.data)
        self.unwritten_bytes += len(batch.data)
        self.memory.used += batch.memory_bytes

    def _produced(self, batch: bytes, header: BatchHeader, base_offset: i64) -> None:
        """A producer has appended a batch, or its coordinator a marker for it."""
        now_ms = self.store.turn.now_ms
        if not header.is_control:
            if self.producers.appended(header, base_offset, now_ms):
                self.transactions.began(base_offset)
            return
        marker = marker_of(batch)
        if marker is not None and (marker.kind == COMMITTED or marker.kind == ABORTED):
            first_offset = self.producers.ended(header, marker.coordinator_epoch, now_ms)
            if first_offset >= 0:
                is_commit = marker.kind == COMMITTED
                self.transactions.ended(header.producer_id, first_offset, base_offset, is_commit)
                if not is_commit:
                    self.memory.used += ABORTED_BYTES

    @property
    def stable_end(self) -> i64:
        """Up to here all is durable and belongs to no open transaction: what readers of committed records are shown."""
        first_unstable = self.transactions.first_unstable
        if first_unstable < 0 or first_unstable >= self.durable_end:
            return self.durable_end
        return max(first_unstable, self.start_offset)

    def is_aborted(self, header: BatchHeader) -> bool:
        """Whether the batch, which lies before `stable_end`, belongs to a transaction that was aborted."""
        if not header.is_transactional or header.is_control:
            return False
        return self.transactions.aborted.covers(header.producer_id, header.base_offset)

    @property
    def needed_from(self) -> i64:
        """Retention leaves alone what lies from this offset on; -1 where it need not."""
        guard = self.guard
        return -1 if guard is None else guard.needed_from()

    @property
    def has_pending(self) -> bool:
        """Whether there is something that is not known to be durable."""
        return self.durable_end < self.end_offset

    @property
    def undurable_bytes(self) -> i64:
        """What is not known to be durable."""
        size: i64 = 0
        for index in range(self._pending_at, len(self.hot)):
            size += len(self.hot[index].data)
        return size

    @property
    def bytes_outside_log(self) -> i64:
        """What the log does not have yet."""
        size: i64 = 0
        for batch in self.hot:
            if batch.base_offset >= self.written_end:
                size += len(batch.data)
        return size

    def sequence_of(self, offset: i64) -> i64:
        """The commit that makes what is at `offset` durable; 0 where it is."""
        if offset < self.durable_end or not self.hot:
            return 0
        return self.hot[self._hot_index(offset)].sequence

    def committed(self, durable_sequence: i64) -> None:
        """All up to this commit is durable."""
        hot = self.hot
        at = self._pending_at
        count: i64 = len(hot)
        while at < count and hot[at].sequence <= durable_sequence:
            at += 1
        if at > self._pending_at:
            self._pending_at = at
            self.durable_end = hot[at - 1].end_offset
            self.transactions.durable_to(self.durable_end)
            self._bound_tail()
            self._tell_advanced()

    def _all_durable(self) -> None:
        self._pending_at = len(self.hot)
        if self.durable_end != self.end_offset:
            self.durable_end = self.end_offset
            self.transactions.durable_to(self.durable_end)
            self._tell_advanced()

    # --- Reading ----------------------------------------------------------------------------------------------------

    def batch_at(self, offset: i64) -> Batch | None:
        """The batch that covers `offset`, which must lie before `end_offset`, or the next one after it. None where it
        must be loaded first."""
        hot = self.hot
        if hot and offset >= hot[0].base_offset:
            batch = hot[self._hot_index(offset)]
            if offset < batch.end_offset:
                return batch
            # There is a gap behind it, and the next one is the one that comes after.
            return Batch(b"", offset, self._hot_after(batch), -1, 0)
        return self.cache.get(int(offset))

    def _hot_index(self, offset: i64) -> i64:
        """Index of the last hot batch that begins at or before `offset`."""
        hot = self.hot
        low: i64 = 0
        high: i64 = len(hot) - 1
        while low < high:
            middle = (low + high + 1) >> 1
            if hot[middle].base_offset <= offset:
                low = middle
            else:
                high = middle - 1
        return low

    def _hot_after(self, batch: Batch) -> i64:
        index = self._hot_index(batch.base_offset) + 1
        return self.hot[index].base_offset if index < len(self.hot) else self.end_offset

    def load(self, offset: i64) -> None:
        """Have what begins with `offset` read from the log. The listeners are told when it is there."""
        at = int(offset)
        if at not in self.loading and at not in self.cache and not self.deleted:
            self.loading[at] = None
            self.store.load(self, at)

    def load_ahead(self, offset: i64) -> None:
        """As `load`, for what will be wanted next: only where it is not in memory."""
        hot = self.hot
        if offset < self.written_end and (not hot or offset < hot[0].base_offset):
            self.load(offset)

    def read(self, offset: i64, end_offset: i64, bytes_max: i64) -> list[Batch] | None:
        """Batches one after the other from the one that covers `offset` on, up to `bytes_max` but at least one, none of
        them beyond `end_offset`. None where the first must be loaded, which has begun."""
        batches: list[Batch] = []
        size: i64 = 0
        while offset < end_offset:
            batch = self.batch_at(offset)
            if batch is None:
                if not batches:
                    # It may lie behind what compaction has left nothing of.
                    self.load(offset)
                    return None
                break
            if batch.data:
                if batches and size + len(batch.data) > bytes_max:
                    break
                batches.append(batch)
                size += len(batch.data)
            offset = batch.end_offset
        return batches

    def hot_at_time(self, timestamp_ms: i64) -> i64:
        """The offset of the first hot batch that has something as new as this; the end where none has."""
        for batch in self.hot:
            if batch.newest_ms >= timestamp_ms:
                return batch.base_offset
        return self.end_offset

    def durable_from(self, offset: i64) -> list[Batch]:
        """The durable batches that are hot, from the one that covers `offset` on."""
        return [batch for batch in self.hot[: self._pending_at] if batch.end_offset > offset]

    @property
    def oldest_unwritten_ms(self) -> i64:
        """The time of the first batch that the log has not been given; -1 where there is none."""
        if self.unwritten_bytes > 0:
            for batch in self.hot:
                if batch.base_offset >= self.log_end:
                    return batch.newest_ms
        return -1

    @property
    def last_hot(self) -> i64:
        """The offset of the last durable batch that is hot; -1 where there is none."""
        at = self._pending_at - 1
        return self.hot[at].base_offset if 0 <= at < len(self.hot) else i64(-1)

    # --- Writing to the log -----------------------------------------------------------------------------------------

    def take_unwritten(self, bytes_max: i64) -> list[Batch]:
        """Some of the batches that the log has not been given yet; from now on they count as given."""
        hot = self.hot
        batches: list[Batch] = []
        size: i64 = 0
        index: i64 = 0
        if hot and self.log_end > hot[0].base_offset:
            index = self._hot_index(self.log_end)
            if hot[index].base_offset < self.log_end:
                index += 1
        while index < len(hot):
            batch = hot[index]
            if batches and size + len(batch.data) > bytes_max:
                break
            batches.append(batch)
            size += len(batch.data)
            index += 1
        if batches:
            self.log_end = batches[len(batches) - 1].end_offset
            self.unwritten_bytes -= size
        return batches

    def wrote(self, end_offset: i64) -> None:
        """The log has all before this."""
        self.written_end = end_offset
        self._bound_tail()

    def _bound_tail(self) -> None:
        """Keep of what the log has no more than is useful."""
        bound: i64 = self._tail_bytes_max if self.memory.used < self.memory.page_out_bytes else 0
        if self.hot_bytes > bound:
            self.drop_written(bound)

    def write_failed(self, log_end: i64) -> None:
        """The log ends here, and nothing is on its way to it."""
        self.log_end = log_end
        self.written_end = log_end
        unwritten: i64 = 0
        for batch in self.hot:
            if batch.base_offset >= log_end:
                unwritten += len(batch.data)
        self.unwritten_bytes = unwritten

    def drop_written(self, bytes_kept: i64) -> None:
        """Give up the oldest batches that the log has, until no more than this is hot."""
        hot = self.hot
        count: i64 = 0
        freed: i64 = 0
        while (
            count < self._pending_at
            and self.hot_bytes - freed > bytes_kept
            and hot[count].end_offset <= self.written_end
        ):
            freed += len(hot[count].data)
            count += 1
        if count > 0:
            self._drop_first(count, freed)

    def _drop_first(self, count: i64, size: i64) -> None:
        del self.hot[:count]
        self.hot_bytes -= size
        self.memory.used -= size + count * BATCH_OVERHEAD_BYTES
        self._pending_at -= count

    def carry_forward(self) -> None:
        """Write again to the journal what the log has not been given."""
        ledger = self.ledger
        for batch in self.hot:
            if batch.base_offset >= self.log_end:
                ledger.carried_batch(self.log_id, batch.base_offset, batch.data)
                ledger.flush_large()

    # --- Deleting ---------------------------------------------------------------------------------------------------

    def trim_before(self, offset: i64) -> None:
        """Let what lies before `offset` be gone. Segments go when all in them is."""
        if self._start_at(min(offset, self.end_offset)):
            self.store.trim(self)

    def log_starts_at(self, offset: i64) -> None:
        """Retention has deleted what the log had before `offset`."""
        self._start_at(min(offset, self.end_offset))

    def _start_at(self, offset: i64) -> bool:
        if self.deleted or offset <= self.start_offset:
            return False
        self.start_offset = offset
        self._forget_aborted_before(self.start_offset)
        if self.recoverable:
            self.ledger.trimmed(self.log_id, offset)
            self.store.turn.touch()
            self._drop_before(min(offset, self.written_end))
        else:
            # Nothing is ever written, and the first of its batches are all there is.
            self.unwritten_bytes -= self._drop_before(offset)
        self._tell_advanced()
        return True

    def _forget_aborted_before(self, offset: i64) -> None:
        """Forget the aborted transactions of which nothing is left."""
        self.memory.used -= self.transactions.aborted.forget_before(offset) * ABORTED_BYTES

    def _drop_before(self, end_offset: i64) -> i64:
        """Give up the durable batches that end here or before; how many bytes they have."""
        hot = self.hot
        count: i64 = 0
        freed: i64 = 0
        while count < self._pending_at and hot[count].end_offset <= end_offset:
            freed += len(hot[count].data)
            count += 1
        if count > 0:
            self._drop_first(count, freed)
        return freed

    def cleaned(self, end_offset: i64, has_dropped_aborted: bool) -> None:
        """Compaction has been over the log up to here: readers shall see what it has left. `has_dropped_aborted` says
        that nothing is left of what was aborted."""
        self.cleaned_end = end_offset
        self._drop_before(min(end_offset, self.written_end))
        self.store.forget(self)
        # What was being read meanwhile may still come from before: so that of the pass before this one is forgotten.
        self._forget_aborted_before(self._aborted_gone_before)
        if has_dropped_aborted:
            self._aborted_gone_before = end_offset

    def checkpointed(self, log_end: i64) -> None:
        """A checkpoint is complete that knows the log up to here."""
        self.checkpointed_end = max(self.checkpointed_end, log_end)

    def retain_hot(self, now_ms: i64) -> None:
        """Retention where nothing is ever written: whole batches."""
        kept = self.hot_bytes
        start = self.start_offset
        needed_from = self.needed_from
        for index in range(len(self.hot) - 1):
            batch = self.hot[index]
            is_too_old = self.age_max_ms >= 0 and batch.newest_ms < now_ms - self.age_max_ms
            if not is_too_old and not (self.bytes_max >= 0 and kept > self.bytes_max):
                break
            if 0 <= needed_from < batch.end_offset:
                break
            kept -= len(batch.data)
            start = batch.end_offset
        self.log_starts_at(start)

    def delete(self) -> None:
        """Forget everything, and the log."""
        self.deleted = True
        self._drop_first(len(self.hot), self.hot_bytes)
        self._pending_at = 0
        self.unwritten_bytes = 0
        self._forget_aborted_before(self.end_offset)
        self.store.delete(self)
        self._tell_advanced()

    # --- Recovery ---------------------------------------------------------------------------------------------------

    def restore(self, start_offset: i64, end_offset: i64, log_end: i64) -> None:
        """Take over what a checkpoint knew; what the journal knows follows."""
        self.start_offset = start_offset
        # The journal has what is between the log's end and this, unless it was lost: its offsets are not used again.
        self.end_offset = log_end
        self.log_end = log_end
        self.written_end = log_end
        self.checkpointed_end = log_end
        self._restored_end = end_offset

    def restore_producers(self, producers: list[Producer], aborted: list[AbortedTransaction]) -> None:
        """The same, for producers and their transactions."""
        open_offsets: list[int] = []
        for producer in producers:
            self.producers.restore(producer)
            if producer.transaction_start >= 0:
                open_offsets.append(int(producer.transaction_start))
        self.transactions.restore(open_offsets, aborted)
        self.memory.used += len(aborted) * ABORTED_BYTES

    def restore_from_log(self) -> None:
        """There is no checkpoint: the log is all that is known."""
        start, end = self.store.surviving_range(self, self._found_in_log)
        self.restore(start, end, end)

    def _found_in_log(self, batch: bytes) -> None:
        header = BatchHeader(batch)
        self._produced(batch, header, header.base_offset)

    def restore_batch(self, batch: bytes, base_offset: i64) -> None:
        """A batch that the journal holds: a new one, or one that was carried forward."""
        header = BatchHeader(batch)
        if header.base_offset != base_offset:
            raise CorruptData(f"a stream's batch of offset {header.base_offset} is not that of {base_offset}")
        if base_offset < self.end_offset:
            # It is in the log, or was written again by a checkpoint that was not finished.
            return
        self.end_offset = base_offset + header.last_offset_delta + 1
        if header.producer_id >= 0 and base_offset >= self._restored_end:
            # What lies before is part of what the checkpoint knew.
            self._produced(batch, header, base_offset)
        self._add_hot(Batch(batch, base_offset, self.end_offset, header.max_timestamp_ms, 0))

    def restore_start(self, start_offset: i64) -> None:
        self.start_offset = max(self.start_offset, start_offset)

    def restored(self) -> None:
        """Recovery is over: continue after what is there."""
        self.end_offset = max(self.end_offset, self._restored_end)
        self.start_offset = min(self.start_offset, self.end_offset)
        self._pending_at = len(self.hot)
        self.durable_end = self.end_offset
        self.transactions.durable_to(self.durable_end)
        self._forget_aborted_before(self.start_offset)
        self.store.restored(self)


def placed(data: bytes, base_offset: i64, start: i64 = 0, size: i64 = -1) -> bytes:
    """The batch that begins at `start` at another base offset, and with our leader epoch: both are outside its
    checksum."""
    end = start + size if size >= 0 else i64(len(data))
    prefix = BytesWriter()
    write_i64_be(prefix, base_offset)
    prefix.write(data[start + 8 : start + 12])
    prefix.write(b"\x00\x00\x00\x00")
    # It may be large, and is copied once.
    return b"".join((prefix.getvalue(), memoryview(data)[start + 16 : end]))
