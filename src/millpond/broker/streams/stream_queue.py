"""A stream as a queue: messages stay, and each consumer reads them from where it likes, at its own pace.

What a turn brings becomes one record batch, appended at its end. A consumer has a cursor; what it is told of has been
made durable. Acknowledgements only make room for further deliveries, and a message that is given back is not delivered
again: whoever wants it again consumes from its offset.

All calls are synchronous and on the event loop's thread. Deliveries happen in `run_turn`, at the end of the turn.
"""

from __future__ import annotations

from functools import partial
from typing import Final, final

from mypy_extensions import i64

from millpond.base.errors import NotImplementedHere
from millpond.base.limits import (
    DELIVERIES_PER_TURN_MAX,
    STREAM_BATCH_BYTES,
    STREAM_BATCH_MESSAGES_MAX,
    STREAM_BATCHES_PER_TURN_MAX,
    STREAM_DELIVERIES_PER_TURN_MAX,
    STREAM_RECORDS_PER_TURN_MAX,
    STREAM_SKIPPED_BYTES_PER_TURN_MAX,
)
from millpond.broker.ledger import OpenBatch
from millpond.broker.message import Address, Message, Properties
from millpond.broker.queues.backlog import Backlog
from millpond.broker.queues.consumer import Consumer
from millpond.broker.queues.entry import Entry
from millpond.broker.queues.message_queue import MessageQueue, QueueContext, QueueOwner
from millpond.broker.queues.settings import QueueSettings
from millpond.broker.streams.message_records import MessageRecord
from millpond.broker.streams.partition import PartitionListener
from millpond.broker.streams.record_messages import RecordMessages
from millpond.broker.streams.subscription import (
    FILTER_HEADER,
    START_FIRST,
    START_LAST,
    START_NEXT,
    START_OFFSET,
    Subscription,
    check_subscription,
)
from millpond.broker.streams.topic import Topic
from millpond.storage.record_batch import COMPRESSION_MASK, BatchBuilder, BatchHeader

# What became of an attempt to deliver.
_FULL: Final = 0
_AT_END: Final = 1
_LOADING: Final = 2
_MORE: Final = 3

# What an entry holds when its message has been delivered.
_DELIVERED: Final = Message(Address("", ""), Properties(0, b"", False, 0, -1), b"", 0)


@final
class Cursor:
    """Where one consumer is."""

    def __init__(self, consumer: Consumer, subscription: Subscription, stream: str) -> None:
        self.consumer: Final = consumer
        self.subscription: Final = subscription
        self.is_filtering: Final = subscription.filter is not None
        # The next offset to be delivered; -1 while it is being looked for.
        self.next_offset: i64 = -1
        # The batch that is being read, whether there is one, and one past its last offset.
        self.records: Final = RecordMessages(f"stream '{stream}'")
        self.is_reading = False
        self.batch_end: i64 = 0
        # What has been passed over or decompressed since the last turn.
        self.skipped_bytes: i64 = 0
        # Properties that came last, and whether messages that have them are wanted.
        self._properties: Properties | None = None
        self._is_wanted = False

    def wants(self, message: Message) -> bool:
        """Whether the filter lets a message pass."""
        properties = message.properties
        if properties is not self._properties:
            value = properties.headers().get(FILTER_HEADER)
            wanted = self.subscription.filter
            if isinstance(value, str):
                self._is_wanted = wanted is None or value in wanted
            else:
                self._is_wanted = self.subscription.takes_unfiltered
            self._properties = properties
        return self._is_wanted


@final
class StreamQueue(MessageQueue, OpenBatch):
    """One partition of a topic, as AMQP sees it under this name: the messages, and their retention, are the topic's.
    `settings` are what is to be known of it besides."""

    def __init__(
        self,
        owner: QueueOwner,
        context: QueueContext,
        name: str,
        topic: Topic,
        number: int,
        settings: QueueSettings,
    ) -> None:
        log = topic.partitions[number]
        super().__init__(owner, context, name, log.log_id, log.recoverable, settings)
        self.journals_itself = True
        self.durable = True
        self.topic: Final = topic
        self._log: Final = log
        self.partition = log
        self._readers: Final = _Readers(self)

        self._builder: Final = BatchBuilder()
        self._is_open = False
        self._record: Final = MessageRecord()

        self._cursors: dict[Consumer, Cursor] = {}
        # Those that may get something now; those that have had all there is; those that wait for the disk.
        self._awake: list[Cursor] = []
        self._at_end: list[Cursor] = []
        self._loading: list[Cursor] = []

    # --- What it holds ----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> i64:
        return self._log.end_offset - self._log.start_offset

    @property
    def ready_bytes(self) -> i64:
        return 0

    @property
    def resident_bytes(self) -> i64:
        return self._log.hot_bytes

    def details(self) -> dict[str, object]:
        log = self._log
        context = self.context
        return {
            "first_offset": int(log.start_offset),
            "committed_offset": int(log.durable_end) - 1,
            "segments": context.streams.segment_count(log),
        }

    def backlogs(self) -> list[Backlog]:
        return []

    def has_lane(self, number: int) -> bool:
        return False

    def lane(self, number: int) -> Backlog:
        raise NotImplementedError("a stream has no lanes")

    def lowest_backlog(self) -> Backlog:
        raise NotImplementedError("a stream journals itself")

    def backlog_for(self, message: Message) -> Backlog:
        raise NotImplementedError("a stream journals itself")

    # --- Publishing -------------------------------------------------------------------------------------------------

    def publish(self, message: Message) -> None:
        self.published_total += 1
        builder = self._builder
        if builder.count > 0 and (
            builder.size + len(message.body) > STREAM_BATCH_BYTES or builder.count >= STREAM_BATCH_MESSAGES_MAX
        ):
            self._append()
        if not self._is_open:
            self._is_open = True
            self.ledger.open_batch(self)
            self.turn.touch()
        record = self._record
        record.of(message)
        stamps = self.topic.settings.stamps_append_time
        timestamp_ms = message.timestamp_ms if stamps else record.timestamp_ms
        builder.append_encoded(builder.count, timestamp_ms, record.key, record.value, record.headers)

    def close_batch(self) -> None:
        self._is_open = False
        if not self.deleted:
            self._append()

    def _append(self) -> None:
        builder = self._builder
        if builder.count > 0:
            if self.consumers:
                # They are shown what is durable only, and are waiting for it.
                self.ledger.sync_wanted = True
            self._log.append(builder.finish(self._log.end_offset, builder.count - 1))

    def refuses(self, size: i64) -> bool:
        return False

    def dead_letters_refused(self) -> bool:
        return False

    # --- Delivering -------------------------------------------------------------------------------------------------

    def run_turn(self) -> None:
        """Deliver what consumers will take."""
        if self.deleted:
            return
        awake = self._awake
        self._awake = []
        delivered = self.delivered_total
        served = 0
        try:
            while served < len(awake) and self.delivered_total - delivered < DELIVERIES_PER_TURN_MAX:
                cursor = awake[served]
                served += 1
                if not cursor.consumer.cancelled:
                    self._put_aside(cursor, self._serve(cursor))
        finally:
            # Those that are left come first in the next turn.
            self._awake = awake[served:] + self._awake
            if self._awake:
                self.turn.touch_queue_later(self)

    def _put_aside(self, cursor: Cursor, outcome: i64) -> None:
        """A consumer has had its share: it waits for what it needs to have more."""
        if outcome == _FULL:
            cursor.consumer.in_rotation = False
        elif outcome == _AT_END:
            self._at_end.append(cursor)
        elif outcome == _LOADING:
            self._loading.append(cursor)
        else:
            self._awake.append(cursor)

    def _serve(self, cursor: Cursor) -> i64:
        """Deliver to one consumer what it will take, up to a limit."""
        consumer = cursor.consumer
        now_ms = self.turn.now_ms
        records_left: i64 = STREAM_RECORDS_PER_TURN_MAX
        batches_left: i64 = STREAM_BATCHES_PER_TURN_MAX
        outcome: i64 = _FULL
        delivered: i64 = 0
        cursor.skipped_bytes = 0
        records = cursor.records
        while consumer.can_take():
            if delivered == STREAM_DELIVERIES_PER_TURN_MAX or records_left == 0 or batches_left == 0:
                outcome = _MORE
                break
            if not cursor.is_reading:
                outcome = self._open_batch(cursor)
                if outcome != _MORE:
                    break
                outcome = _FULL
                batches_left -= 1
                if cursor.skipped_bytes > STREAM_SKIPPED_BYTES_PER_TURN_MAX:
                    batches_left = 0
                continue
            records_left -= 1
            if not records.next():
                cursor.is_reading = False
                cursor.next_offset = cursor.batch_end
                continue
            offset = records.offset
            if offset < cursor.next_offset:
                continue
            cursor.next_offset = offset + 1
            message = records.message
            if cursor.is_filtering and not cursor.wants(message):
                continue
            entry = Entry(message, offset, len(message.body))
            entry.queue = self
            entry.consumer = consumer
            entry.delivered_ms = now_ms
            consumer.unsettled += 1
            delivered += 1
            consumer.deliver(entry)
            # Only the fact that it was delivered is kept until it is acknowledged.
            entry.message = _DELIVERED
        consumer.delivered += delivered
        self.delivered_total += delivered
        return outcome

    def _open_batch(self, cursor: Cursor) -> i64:
        """Begin to read the batch that has the cursor's next offset."""
        log = self._log
        if cursor.next_offset < 0:
            return _LOADING
        if cursor.next_offset < log.start_offset:
            cursor.next_offset = log.start_offset
        if cursor.next_offset >= log.stable_end:
            return _AT_END
        batch = log.batch_at(cursor.next_offset)
        if batch is None:
            log.load(cursor.next_offset)
            return _LOADING
        log.load_ahead(batch.end_offset)
        if self._skips(cursor, batch.data):
            cursor.next_offset = batch.end_offset
            cursor.skipped_bytes += len(batch.data)
        elif cursor.records.open(batch.data):
            cursor.is_reading = True
            cursor.batch_end = batch.end_offset
            cursor.skipped_bytes += cursor.records.decompressed_bytes
        else:
            cursor.next_offset = batch.end_offset
        return _MORE

    def _skips(self, cursor: Cursor, data: bytes) -> bool:
        """Whether a batch has nothing for a consumer."""
        if not data:
            return True
        header = BatchHeader(data)
        if header.is_transactional and self._log.is_aborted(header):
            return True
        # What is compressed does not show its values.
        return header.attributes & COMPRESSION_MASK == 0 and cursor.subscription.skips(data)

    def advanced(self) -> None:
        """There is more to be read."""
        if self._at_end:
            self._awake.extend(self._at_end)
            self._at_end = []
            self.turn.touch_queue(self)

    def loaded(self) -> None:
        """What was wanted from the disk is there."""
        if self._loading:
            self._awake.extend(self._loading)
            self._loading = []
            self.turn.touch_queue(self)

    def get(self) -> Entry | None:
        raise NotImplementedHere(f"basic.get not supported by stream queues {self.owner.queue_resource(self.name)}")

    # --- Settling: it only makes room -------------------------------------------------------------------------------

    def settle(self, entry: Entry) -> None:
        entry.queue = None
        consumer = entry.consumer
        if consumer is not None:
            entry.consumer = None
            consumer.unsettled -= 1
            self.settled_total += 1
            if not consumer.in_rotation:
                self.wake(consumer)

    def reject(self, entry: Entry) -> None:
        self.settle(entry)

    def give_back(self, entries: list[Entry], failed: bool) -> None:
        for entry in entries:
            self.settle(entry)

    # --- Consumers --------------------------------------------------------------------------------------------------

    def check_consumer(self, consumer: Consumer, has_channel_limit: bool) -> None:
        resource = self.owner.queue_resource(self.name)
        check_subscription(consumer, has_channel_limit, resource, self.turn.now_ms)

    def add_consumer(self, consumer: Consumer) -> None:
        subscription = Subscription(consumer.arguments, self.owner.queue_resource(self.name), int(self.turn.now_ms))
        cursor = Cursor(consumer, subscription, self.name)
        self._cursors[consumer] = cursor
        self.consumers[consumer] = None
        log = self._log
        if len(self.consumers) == 1:
            # What anybody appends is made durable at once as long as there are consumers: they are shown it then.
            log.add_listener(self._readers)
            log.readers_waiting += 1
        start = subscription.start
        if start == START_FIRST:
            cursor.next_offset = log.start_offset
        elif start == START_NEXT:
            cursor.next_offset = log.end_offset + self._builder.count
        elif start == START_OFFSET:
            cursor.next_offset = subscription.position
        elif start == START_LAST:
            context = self.context
            context.streams.find_last(log, partial(self._start_found, cursor))
        else:
            context = self.context
            context.streams.find_time(log, subscription.position, partial(self._start_found, cursor))
        self.wake(consumer)

    def _start_found(self, cursor: Cursor, offset: int) -> None:
        cursor.next_offset = offset
        self.loaded()

    def remove_consumer(self, consumer: Consumer) -> None:
        cursor = self._cursors.pop(consumer, None)
        if cursor is not None:
            consumer.cancelled = True
            consumer.in_rotation = False
            cursor.is_reading = False
            cursor.records.close()
            self.consumers.pop(consumer, None)
            if not self.consumers:
                self._stop_listening()
            for cursors in (self._awake, self._at_end, self._loading):
                if cursor in cursors:
                    cursors.remove(cursor)
            if not self.consumers and not self.deleted:
                self.owner.consumers_gone(self)

    def wake(self, consumer: Consumer) -> None:
        if not consumer.in_rotation and not consumer.cancelled:
            cursor = self._cursors.get(consumer)
            if cursor is not None:
                consumer.in_rotation = True
                self._awake.append(cursor)
                self.turn.touch_queue(self)

    # --- Managing ---------------------------------------------------------------------------------------------------

    def apply_settings(self, settings: QueueSettings) -> None:
        self.settings = settings

    def purge(self) -> int:
        raise NotImplementedHere(f"queue.purge not supported by stream queues {self.owner.queue_resource(self.name)}")

    def delete(self) -> None:
        self.deleted = True
        self.cancel_consumers()

    def cancel_consumers(self) -> None:
        """The name does not mean this partition any more: whoever reads by it is told so."""
        if self.consumers:
            self._stop_listening()
        for consumer in self.consumers:
            consumer.cancelled = True
            consumer.in_rotation = False
            consumer.queue_deleted()
        self.consumers = {}
        self._cursors = {}
        self._awake = []
        self._at_end = []
        self._loading = []

    def _stop_listening(self) -> None:
        self._log.remove_listener(self._readers)
        self._log.readers_waiting -= 1


@final
class _Readers(PartitionListener):
    """A stream's consumers, as its log knows them."""

    def __init__(self, queue: StreamQueue) -> None:
        self._queue: Final = queue

    def advanced(self) -> None:
        self._queue.advanced()

    def loaded(self) -> None:
        self._queue.loaded()
