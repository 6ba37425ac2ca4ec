"""One partition as one share group works it off: the partition's log, and the group's delivery state over it.

Those who want records are its readers. They are woken when there may be something for them: more has been appended and
is durable, something has come back, or what was wanted from the disk is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from millpond.base.clock import Timer
from millpond.base.errors import CorruptData
from millpond.base.limits import SHARE_LOCK_CHECK_MS
from millpond.broker.shares.delivery_state import NEVER_MS, Acquired, DeliveryListener, DeliveryState, ShareReader
from millpond.broker.shares.records import Place, Rewound, Started
from millpond.broker.shares.settings import RESET_EARLIEST, RESET_LATEST, reset_age_ms
from millpond.broker.streams.partition import Batch, Partition, PartitionListener, RetentionGuard
from millpond.broker.streams.subscription import START_FIRST, START_LAST, START_NEXT, START_OFFSET, START_TIME
from millpond.storage.record_batch import BatchHeader

if TYPE_CHECKING:
    from millpond.broker.shares.coordinator import ShareGroup
    from millpond.broker.streams.topic import Topic

# Where to begin: one of `subscription.py`, and an offset or a time.
Start = tuple[int, int]


def start_of(reset: str, now_ms: int) -> Start:
    """Where a group begins whose share.auto.offset.reset is this."""
    if reset == RESET_LATEST:
        return START_NEXT, 0
    if reset == RESET_EARLIEST:
        return START_FIRST, 0
    return START_TIME, max(0, now_ms - reset_age_ms(reset))


class Fetched:
    """What a reader has got: whole batches, and which of their records."""

    def __init__(self) -> None:
        self.batches: Final[list[Batch]] = []
        self.acquired: Final[list[Acquired]] = []
        self.size = 0
        self.records = 0
        # It might be more, if what is being read from the disk were there.
        self.is_loading = False


class _Unsettled(RetentionGuard):
    """A queue's messages are not forgotten before they are settled, however old they are."""

    def __init__(self, partition: SharePartition) -> None:
        self._partition: Final = partition

    def needed_from(self) -> i64:
        state = self._partition.state
        return i64(0) if state is None else state.start


class SharePartition(DeliveryListener):
    """One partition of one share group."""

    def __init__(self, group: ShareGroup, topic: Topic, number: int) -> None:
        self.group: Final = group
        self.topic: Final = topic
        self.number: Final = number
        self.place: Final[Place] = (topic.id, number)
        self.partition: Final[Partition] = topic.partitions[number]
        # None as long as it is not known where the group begins.
        self.state: DeliveryState | None = None
        self.is_gone = False
        # Grows whenever the group begins anew: what was delivered before is nobody's then.
        self.epoch = 0
        self._is_beginning = False
        self._readers: Final[dict[ShareReader, None]] = {}
        self._log: Final = _Log(self)
        self._timer: Timer | None = None
        self._timer_ms = 0

    # --- Looking ----------------------------------------------------------------------------------------------------

    @property
    def end(self) -> int:
        """Up to here there may be something for this group."""
        partition = self.partition
        return int(partition.stable_end if self.group.is_committed_only else partition.durable_end)

    @property
    def start(self) -> int:
        """The share-partition's start offset; -1 while it is not known."""
        state = self.state
        return -1 if state is None else max(int(state.start), int(self.partition.start_offset))

    @property
    def ready(self) -> int:
        """Records that wait to be delivered, counted by their offsets."""
        state = self.state
        if state is None:
            return 0
        self._trim(state)
        return max(0, self.end - int(state.end)) + int(state.available_count)

    @property
    def held(self) -> int:
        """Records in somebody's hands."""
        return 0 if self.state is None else int(self.state.acquired_count)

    @property
    def dead_count(self) -> int:
        """Records that wait to be dead-lettered."""
        return 0 if self.state is None else int(self.state.dead_count)

    @property
    def lag(self) -> int:
        """Records that are not settled, as Kafka counts them: by their offsets, without those settled in between."""
        state = self.state
        if state is None:
            return -1
        return self.ready + int(state.acquired_count) + int(state.dead_count)

    def opened(self) -> DeliveryState | None:
        """The delivery state, without what retention has taken. None as long as it is not known where to begin."""
        state = self.state
        if state is not None:
            self._trim(state)
        return state

    def _trim(self, state: DeliveryState) -> None:
        if state.start < self.partition.start_offset:
            state.trim_before(self.partition.start_offset)

    def keep_unsettled(self) -> None:
        """From now on retention lets go only of what is settled."""
        self.partition.guard = _Unsettled(self)

    # --- Readers ----------------------------------------------------------------------------------------------------

    def add_reader(self, reader: ShareReader) -> None:
        """Let `reader` be woken. What it waits for becomes durable at once."""
        if not self._readers:
            self.partition.add_listener(self._log)
        self._readers[reader] = None
        self.partition.readers_waiting += 1
        if self.partition.has_pending:
            # Nobody else may have asked for it to become durable.
            shares = self.group.shares
            shares.ledger.sync_wanted = True
            shares.turn.touch()

    def remove_reader(self, reader: ShareReader) -> None:
        if reader in self._readers:
            del self._readers[reader]
            self.partition.readers_waiting -= 1
            if not self._readers:
                self.partition.remove_listener(self._log)

    def wake_readers(self) -> None:
        for reader in list(self._readers):
            reader.wake()

    # --- Beginning --------------------------------------------------------------------------------------------------

    def begin(self, start: Start) -> None:
        """Begin here, if the group has not begun yet. It may take a moment to find out where."""
        if self.state is not None or self._is_beginning:
            return
        kind, position = start
        partition = self.partition
        if kind == START_FIRST:
            self.begin_at(int(partition.start_offset))
        elif kind == START_NEXT:
            self.begin_at(int(partition.end_offset))
        elif kind == START_OFFSET:
            self.begin_at(max(position, int(partition.start_offset)))
        elif kind == START_LAST:
            self._is_beginning = True
            partition.store.find_last(partition, self._found)
        else:
            self._is_beginning = True
            partition.store.find_record_at(partition, position, self._found_record)

    def _found_record(self, offset: int, _timestamp_ms: int) -> None:
        # What comes after all that was looked at is younger.
        self._found(offset if offset >= 0 else int(self.partition.durable_end))

    def _found(self, offset: int) -> None:
        if self._is_beginning:
            self._is_beginning = False
            if self.state is None and not self.is_gone:
                self.begin_at(offset)

    def begin_at(self, offset: int) -> None:
        """Begin, or begin anew, with `offset`: whoever holds something holds it no longer."""
        self._is_beginning = False
        self.group.shares.record(Started(self.group.id, self.place, offset))
        self.wake_readers()

    def restore_start(self, offset: int) -> None:
        """Apply that the group begins here."""
        state = self.state
        if state is None:
            self.state = DeliveryState(self, offset)
            self.group.set_up(self.state)
        else:
            state.reset(offset)
        self.epoch += 1

    def rewind(self, offset: int) -> None:
        """Let all from `offset` on be available again but what is in somebody's hands."""
        state = self.state
        if state is None:
            return
        self._trim(state)
        offset = max(offset, int(self.partition.start_offset))
        if offset >= state.end:
            return
        shares = self.group.shares
        shares.write_changes(self)
        if offset < state.start:
            # The journal must know of the new start before it is told what becomes of the records.
            shares.record(Rewound(self.group.id, self.place, offset))
        state.rewind(offset)

    # --- Reading ----------------------------------------------------------------------------------------------------

    def fetch(self, owner: str, records_max: int, bytes_max: int, is_first: bool) -> Fetched:
        """Let `owner` have some of what is available. With `is_first` a batch is given however large it is."""
        fetched = Fetched()
        state = self.state
        if state is None:
            fetched.is_loading = self._is_beginning
            return fetched
        settings, partition = self.group.settings, self.partition
        self._trim(state)
        deadline_ms = self.group.shares.clock.monotonic_ms() + settings.lock_ms
        end = self.end
        position = int(state.next_available(state.start))
        while position < end:
            wanted = min(records_max - fetched.records, settings.locks_max - int(state.acquired_count))
            if wanted <= 0:
                break
            batch = partition.batch_at(position)
            if batch is None:
                partition.load(position)
                fetched.is_loading = True
                break
            until = min(int(batch.end_offset), end)
            if not self.is_deliverable(batch, position):
                state.skip(position, until)
            else:
                size = len(batch.data)
                if fetched.size + size > bytes_max and not (is_first and not fetched.batches):
                    break
                if batch.base_offset > position:
                    # Compaction has left nothing before it.
                    state.skip(position, batch.base_offset)
                acquired = state.acquire(max(position, int(batch.base_offset)), until, owner, deadline_ms, wanted)
                if not acquired and state.next_available(position) < until:
                    # There are too many ranges for more.
                    break
                if acquired:
                    fetched.batches.append(batch)
                    fetched.size += size
                    for run in acquired:
                        fetched.acquired.append(run)
                        fetched.records += int(run.end - run.first)
                    partition.load_ahead(batch.end_offset)
            position = int(state.next_available(until))
        if fetched.acquired:
            self.group.holds(owner, self)
            partition.read_bytes += fetched.size
            self.watch(deadline_ms)
        return fetched

    def is_deliverable(self, batch: Batch, offset: int) -> bool:
        """Whether a batch has anything for this group."""
        if not batch.data:
            return False
        try:
            header = BatchHeader(batch.data)
        except CorruptData:
            return False
        if header.is_control:
            return False
        return not (self.group.is_committed_only and self.partition.is_aborted(header))

    # --- Locks ------------------------------------------------------------------------------------------------------

    def watch(self, deadline_ms: int) -> None:
        """A lock ends at this time."""
        if deadline_ms == NEVER_MS or (self._timer is not None and self._timer_ms <= deadline_ms):
            return
        if self._timer is not None:
            self._timer.cancel()
        clock = self.group.shares.clock
        self._timer_ms = deadline_ms
        self._timer = clock.call_later(max(deadline_ms - clock.monotonic_ms(), SHARE_LOCK_CHECK_MS), self._look)

    def _look(self) -> None:
        """Give back what was held for too long."""
        self._timer = None
        state = self.state
        if state is None or self.is_gone:
            return
        shares = self.group.shares
        shares.begin_turn()
        state.expire(shares.clock.monotonic_ms())
        self.watch(int(state.next_deadline_ms()))

    # --- What the state tells ---------------------------------------------------------------------------------------

    def changed(self, state: DeliveryState) -> None:
        self.group.shares.changed(self)

    def became_available(self, state: DeliveryState) -> None:
        self.wake_readers()

    def became_dead(self, state: DeliveryState) -> None:
        if self.group.queue is not None:
            self.group.queue.touch()

    def close(self) -> None:
        """The group, the topic or the broker is gone."""
        self.is_gone = True
        self._is_beginning = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.wake_readers()


class _Log(PartitionListener):
    """A share group, as the log knows it."""

    def __init__(self, partition: SharePartition) -> None:
        self._partition: Final = partition

    def advanced(self) -> None:
        self._partition.wake_readers()

    def loaded(self) -> None:
        self._partition.wake_readers()
