"""A queue over a topic, without copies: consumers compete for the topic's records, each of which is settled once.

    x-queue-type: share     x-source-topic: t     x-stream-offset: where to begin, as consumers of streams say it
    x-retention-ms: n       instead of a source: the topic is the queue's own, has its name, and keeps what was settled
                            for so long; nobody else appends to it

The queue called q is the share group q of Kafka's: its deliveries and those to Kafka's share consumers of that group
come from one `DeliveryState` per partition. Here a delivery's lock lasts until the consumer's timeout, and what is dead
goes to the dead-letter exchange, whoever has refused it. What is published to the queue is appended to its topic.

What is delivered holds no message: a record that dies is read again. All calls are synchronous and on the event loop's
thread. Deliveries happen in `run_turn`, at the end of the turn.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64

from millpond.base.clock import Timer
from millpond.base.errors import LimitExceeded, PreconditionFailed
from millpond.base.limits import DEAD_LETTER_RETRY_MS, DELIVERIES_PER_TURN_MAX, SHARE_QUEUE_LOCKS_MAX
from millpond.broker.arguments import keeps_history
from millpond.broker.message import Address, Message, Properties
from millpond.broker.queues.backlog import Backlog
from millpond.broker.queues.consumer import Consumer
from millpond.broker.queues.entry import Entry
from millpond.broker.queues.message_queue import MessageQueue, QueueContext, QueueOwner
from millpond.broker.queues.queue import REASON_DELIVERY_LIMIT, REASON_REJECTED
from millpond.broker.queues.settings import QueueSettings
from millpond.broker.shares.delivery_state import DEAD_REJECTED, DELIVERIES_MAX, NEVER_MS, DeliveryState, ShareReader
from millpond.broker.streams.record_messages import RecordMessages
from millpond.broker.streams.subscription import START_FIRST, Subscription

if TYPE_CHECKING:
    from millpond.broker.shares.coordinator import ShareGroup, Shares
    from millpond.broker.shares.share_partition import SharePartition
    from millpond.broker.streams.stream_names import StreamNames
    from millpond.broker.streams.topic import Topic

logger = logging.getLogger(__name__)

# Who holds what is delivered to AMQP's consumers. Kafka's members have names.
OWNER: Final = ""

# What an entry holds when its message has been delivered.
_DELIVERED: Final = Message(Address("", ""), Properties(0, b"", False, 0, -1), b"", 0)

# What came of looking for a record.
_FOUND: Final = 0
_NOTHING: Final = 1
_LOADING: Final = 2


@final
class _Cursor:
    """Reads records of one partition at any offset, best one after the other."""

    def __init__(self, partition: SharePartition, source: str) -> None:
        self._partition: Final = partition
        self._messages: Final = RecordMessages(source)
        # The open batch ends here; -1 where none is open.
        self._end: i64 = -1
        # The record that was read last.
        self.offset: i64 = -1

    @property
    def message(self) -> Message:
        return self._messages.message

    def seek(self, offset: i64, end: i64) -> i64:
        """Read the first record from `offset` on that is there, before `end`: _FOUND, _NOTHING, or _LOADING. Nothing
        is found where there was no record at `offset` itself up to the end of its batch: see `offset` then, which is
        where to go on."""
        partition = self._partition
        log = partition.partition
        if not (self.offset <= offset < self._end):
            batch = log.batch_at(offset)
            if batch is None:
                log.load(offset)
                return _LOADING
            self._end = min(batch.end_offset, end)
            self.offset = -1
            if not partition.is_deliverable(batch, int(offset)) or not self._messages.open(batch.data):
                return self._passed()
            log.load_ahead(batch.end_offset)
        while self.offset < offset:
            if not self._messages.next():
                return self._passed()
            self.offset = self._messages.offset
        if self.offset >= end:
            return self._passed()
        return _FOUND

    def _passed(self) -> i64:
        """The batch has nothing more."""
        self.offset = self._end
        self._end = -1
        self._messages.close()
        return _NOTHING


@final
class Lane(ShareReader):
    """One partition, as the queue reads it."""

    def __init__(self, queue: ShareQueue, partition: SharePartition) -> None:
        self._queue: Final = queue
        self.partition: Final = partition
        source = f"partition {partition.number} of topic {partition.topic.name!r}"
        self._next: Final = _Cursor(partition, source)
        self._dead: Final = _Cursor(partition, source)
        # The dead record that the dead-letter queues have not all taken yet, and those that have.
        self._stuck: i64 = -1
        self._taken: set[str] = set()
        self.is_listening = False

    def wake(self) -> None:
        self._queue.touch()

    def listen(self, wanted: bool) -> None:
        """Be woken when there may be something, or no longer."""
        if wanted != self.is_listening:
            self.is_listening = wanted
            if wanted:
                self.partition.add_reader(self)
            else:
                self.partition.remove_reader(self)

    def take(self) -> Entry | None:
        """The next message, in a consumer's hands from now on. None where there is none now."""
        partition = self.partition
        state: DeliveryState | None = partition.opened()
        if state is None or state.acquired_count >= SHARE_QUEUE_LOCKS_MAX:
            return None
        end: i64 = partition.end
        position = state.next_available(state.start)
        while position < end:
            found = self._next.seek(position, end)
            if found == _LOADING:
                return None
            if found == _NOTHING or self._next.offset > position:
                state.skip(position, self._next.offset)
                position = state.next_available(self._next.offset)
                continue
            acquired = state.acquire(position, position + 1, OWNER, NEVER_MS, 1)
            if not acquired:
                return None
            message = self._next.message
            entry = Entry(message, position, len(message.body))
            entry.returns = acquired[0].count - 1
            entry.redelivered = entry.returns > 0
            return entry
        return None

    def load_now(self) -> bool:
        """Have the next message in memory, where it is on the disk; False where that is not why there is none."""
        partition = self.partition
        state: DeliveryState | None = partition.opened()
        if state is None:
            return False
        position = state.next_available(state.start)
        if position >= partition.end or partition.partition.batch_at(position) is not None:
            return False
        partition.partition.store.load_now(partition.partition, int(position))
        return partition.partition.batch_at(position) is not None

    def bury(self, share: i64) -> i64:
        """Dead-letter up to `share` records: how many more there may be. -1 where they must wait."""
        partition = self.partition
        state: DeliveryState | None = partition.opened()
        while state is not None and state.dead_count > 0:
            dead = state.next_dead()
            if dead is None:
                break
            if share == 0:
                return 0
            share -= 1
            first: i64 = dead[0]
            end: i64 = dead[1]
            found = self._dead.seek(first, end)
            if found == _LOADING:
                return -1
            if found == _NOTHING or self._dead.offset > first:
                state.buried(first, min(end, self._dead.offset))
                continue
            reason = REASON_REJECTED if dead[2] == DEAD_REJECTED else REASON_DELIVERY_LIMIT
            if not self._dead_letter(first, reason):
                return -1
            state.buried(first, first + 1)
        return share

    def _dead_letter(self, offset: i64, reason: str) -> bool:
        queue = self._queue
        message = self._dead.message
        if not queue.settings.dead_letters_surely:
            queue.owner.dead_letter(queue, message, reason)
            return True
        if offset != self._stuck:
            self._stuck = offset
            self._taken = set()
        if queue.owner.dead_letter_surely(queue, message, reason, self._taken):
            self._stuck = -1
            return True
        queue.retry_later()
        return False


@final
class _Held:
    """Where a delivered record is; `epoch` tells whether the group has begun anew since."""

    def __init__(self, lane: Lane, epoch: i64) -> None:
        self.lane: Final = lane
        self.epoch: Final[i64] = epoch


@final
class ShareQueue(MessageQueue):
    """One queue over a topic."""

    def __init__(
        self,
        owner: QueueOwner,
        context: QueueContext,
        name: str,
        log_id: i64,
        recoverable: bool,
        settings: QueueSettings,
    ) -> None:
        super().__init__(owner, context, name, log_id, recoverable, settings)
        # What is published to it, its topic tells the journal of.
        self.journals_itself = True
        self._names: StreamNames | None = None
        self._group: ShareGroup | None = None
        self.topic: Topic | None = None
        self._lanes: list[Lane] = []
        self._next_lane: i64 = 0
        self._held: dict[Entry, _Held] = {}
        self._rotation: list[Consumer] = []
        self._next_consumer: i64 = 0
        # With a single active consumer: who that is.
        self.active_consumer: Consumer | None = None
        self._retry: Timer | None = None

    # --- Where its messages are -------------------------------------------------------------------------------------

    def attach(self, shares: Shares, topic: Topic, names: StreamNames) -> None:
        """This is the topic; the group of the queue's name is the queue's."""
        self.topic = topic
        self._names = names
        group = shares.opened(self.name)
        self._group = group
        group.queue = self
        group.set_up_all()

    def begin(self) -> None:
        """Read from all partitions, beginning where the queue was declared to where its group has not begun yet."""
        group, topic = self._group, self.topic
        if group is None or topic is None or self.deleted:
            return
        resource = self.owner.queue_resource(self.name)
        start = Subscription(self.arguments, resource, int(self.clock.wall_ms()))
        for lane in self._lanes:
            lane.listen(False)
        self._lanes = []
        for number in range(len(topic.partitions)):
            try:
                partition = group.shares.place(group, topic, number)
            except LimitExceeded as error:
                # There is no way back from here, nor at the start of the broker.
                logger.error("%s does not read partition %d of its topic: %s", resource, number, error)
                break
            if keeps_history(self.arguments):
                # Not where the topic is another queue's history: that one's guard is the one that counts.
                partition.keep_unsettled()
                partition.begin((START_FIRST, 0))
            else:
                partition.begin((start.start, start.position))
            self._lanes.append(Lane(self, partition))
        self._listen()
        self.touch()

    def set_up(self, state: DeliveryState) -> None:
        """Let a delivery state of the group do as the queue's settings say."""
        limit = self.settings.delivery_limit
        state.deliveries_max = min(limit + 1, DELIVERIES_MAX) if limit >= 0 else i64(DELIVERIES_MAX)
        state.dead_letters = self.settings.dead_letter_exchange is not None

    def _listen(self) -> None:
        """Be woken while somebody consumes, or something is to be dead-lettered."""
        for lane in self._lanes:
            lane.listen(len(self.consumers) > 0 or lane.partition.dead_count > 0)

    def touch(self) -> None:
        """There may be something to be delivered, or dead-lettered."""
        if not self.turn_pending and not self.deleted:
            self.turn.touch_queue(self)

    def rewind(self, offset: i64, number: i64 = -1) -> None:
        """Let all from `offset` on be available again, in one partition or in each, but for what is in somebody's
        hands."""
        for lane in self._lanes:
            if number < 0 or lane.partition.number == number:
                lane.partition.rewind(int(offset))
        self.turn.touch()

    def partitions(self) -> list[SharePartition]:
        """What it reads from."""
        return [lane.partition for lane in self._lanes]

    # --- What it holds ----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> i64:
        count: i64 = 0
        for lane in self._lanes:
            count += lane.partition.ready
        return count

    @property
    def ready_bytes(self) -> i64:
        return 0

    @property
    def resident_bytes(self) -> i64:
        return 0

    def details(self) -> dict[str, object]:
        topic = self.topic
        shown: dict[str, object] = {
            "source_topic": topic.name if topic is not None else "",
            # Also of Kafka's consumers.
            "messages_acquired": sum([int(lane.partition.held) for lane in self._lanes]),
            "messages_dlx": sum([int(lane.partition.dead_count) for lane in self._lanes]),
            "start_offsets": [int(lane.partition.start) for lane in self._lanes],
        }
        if self.settings.single_active:
            active = self.active_consumer
            shown["single_active_consumer_tag"] = active.tag if active is not None else None
        return shown

    def is_active(self, consumer: Consumer) -> bool:
        return self.active_consumer is None or consumer is self.active_consumer

    def backlogs(self) -> list[Backlog]:
        return []

    def has_lane(self, number: int) -> bool:
        return False

    def lane(self, number: int) -> Backlog:
        raise NotImplementedError("a queue over a topic has no lanes of its own")

    def lowest_backlog(self) -> Backlog:
        raise NotImplementedError("a queue over a topic has no messages of its own")

    def backlog_for(self, message: Message) -> Backlog:
        raise NotImplementedError("a queue over a topic has no messages of its own")

    # --- Publishing: to the topic -----------------------------------------------------------------------------------

    def publish(self, message: Message) -> None:
        names, topic = self._names, self.topic
        source = names.stream(topic.name) if names is not None and topic is not None else None
        if source is not None:
            self.published_total += 1
            source.publish(message)

    def refuses(self, size: i64) -> bool:
        return False

    def dead_letters_refused(self) -> bool:
        return False

    # --- Delivering -------------------------------------------------------------------------------------------------

    def run_turn(self) -> None:
        """Dead-letter what is dead, then deliver what consumers will take."""
        if self.deleted:
            return
        self._bury()
        if self._rotation and not self._deliver(DELIVERIES_PER_TURN_MAX):
            self.turn.touch_queue_later(self)

    def _bury(self) -> None:
        for lane in self._lanes:
            if lane.partition.dead_count > 0:
                left = lane.bury(DELIVERIES_PER_TURN_MAX)
                if left == 0:
                    self.turn.touch_queue_later(self)
                lane.listen(len(self.consumers) > 0 or lane.partition.dead_count > 0)

    def retry_later(self) -> None:
        """A dead-letter queue has refused a message: try again in a while."""
        if self._retry is None:
            self._retry = self.clock.call_later(DEAD_LETTER_RETRY_MS, self._retry_due)

    def _retry_due(self) -> None:
        self._retry = None
        self.turn.now_ms = self.clock.wall_ms()
        self.touch()

    def _deliver(self, limit: i64) -> bool:
        """Deliver up to `limit` messages round robin. False when more could be delivered at once."""
        rotation = self._rotation
        now_ms = self.turn.now_ms
        while True:
            count: i64 = len(rotation)
            if count == 0:
                return True
            if self._next_consumer >= count or rotation[self._next_consumer].priority < rotation[0].priority:
                self._next_consumer = 0
            consumer = rotation[self._next_consumer]
            if not consumer.can_take():
                consumer.in_rotation = False
                del rotation[self._next_consumer]
                continue
            if limit == 0:
                return False
            entry = self._take()
            if entry is None:
                return True
            self._next_consumer += 1
            limit -= 1
            self._hand_out(entry, now_ms)
            consumer.delivered += 1
            if consumer.acknowledges:
                entry.consumer = consumer
                consumer.unsettled += 1
                consumer.deliver(entry)
                entry.message = _DELIVERED
            else:
                consumer.deliver(entry)
                self.settle(entry)

    def _hand_out(self, entry: Entry, now_ms: i64) -> None:
        entry.queue = self
        entry.delivered_ms = now_ms
        self.unsettled += 1
        self.delivered_total += 1

    def _take(self) -> Entry | None:
        """The next message: the partitions take turns. None where there is none now."""
        lanes = self._lanes
        count: i64 = len(lanes)
        for _ in range(count):
            if self._next_lane >= count:
                self._next_lane = 0
            lane = lanes[self._next_lane]
            self._next_lane += 1
            entry = lane.take()
            if entry is not None:
                self._held[entry] = _Held(lane, lane.partition.epoch)
                return entry
        return None

    def get(self) -> Entry | None:
        while True:
            entry = self._take()
            if entry is not None:
                self._hand_out(entry, self.turn.now_ms)
                return entry
            # The answer must come before the next method's, so these reads are not left to a thread.
            if not any([lane.load_now() for lane in self._lanes]):
                return None

    # --- Settling ---------------------------------------------------------------------------------------------------

    def settle(self, entry: Entry) -> None:
        state = self._out_of_hands(entry)
        if state is not None:
            self.settled_total += 1
            state.accept(OWNER, entry.offset, entry.offset + 1)

    def reject(self, entry: Entry) -> None:
        state = self._out_of_hands(entry)
        if state is not None:
            self.settled_total += 1
            state.reject(OWNER, entry.offset, entry.offset + 1)

    def give_back(self, entries: list[Entry], failed: bool) -> None:
        for entry in entries:
            state = self._out_of_hands(entry)
            if state is not None:
                state.release(OWNER, entry.offset, entry.offset + 1)

    def _out_of_hands(self, entry: Entry) -> DeliveryState | None:
        """Whoever had the delivery may have another one. The state that has to know; None where it does not matter any
        more."""
        entry.queue = None
        consumer = entry.consumer
        if consumer is not None:
            entry.consumer = None
            consumer.unsettled -= 1
            if not self.deleted and not consumer.in_rotation:
                self.wake(consumer)
        held = self._held.pop(entry, None)
        if held is None:
            return None
        self.unsettled -= 1
        partition = held.lane.partition
        if self.deleted or partition.is_gone or partition.epoch != held.epoch:
            return None
        state: DeliveryState | None = partition.state
        # There may be room for more deliveries, also to others.
        partition.wake_readers()
        return state

    # --- Consumers --------------------------------------------------------------------------------------------------

    def add_consumer(self, consumer: Consumer) -> None:
        self.consumers[consumer] = None
        if self.settings.single_active and self.active_consumer is None:
            self.active_consumer = consumer
        self._listen()
        self.wake(consumer)

    def remove_consumer(self, consumer: Consumer) -> None:
        if consumer in self.consumers:
            consumer.cancelled = True
            self.consumers.pop(consumer, None)
            if consumer.in_rotation:
                consumer.in_rotation = False
                self._rotation.remove(consumer)
            if consumer is self.active_consumer:
                self._activate_next()
            if not self.consumers and not self.deleted:
                self._listen()
                self.owner.consumers_gone(self)

    def _activate_next(self) -> None:
        """The consumer of the highest priority becomes the active one, the oldest of them first."""
        self.active_consumer = None
        for consumer in self.consumers:
            if self.active_consumer is None or consumer.priority > self.active_consumer.priority:
                self.active_consumer = consumer
        if self.active_consumer is not None:
            self.wake(self.active_consumer)

    def wake(self, consumer: Consumer) -> None:
        if consumer.in_rotation or consumer.cancelled:
            return
        if self.active_consumer is not None and consumer is not self.active_consumer:
            return
        consumer.in_rotation = True
        rotation = self._rotation
        rotation.append(consumer)
        if len(rotation) > 1 and rotation[len(rotation) - 2].priority < consumer.priority:
            rotation.sort(key=_highest_priority_first)
        self.touch()

    # --- Managing ---------------------------------------------------------------------------------------------------

    def apply_settings(self, settings: QueueSettings) -> None:
        self.settings = settings
        group = self._group
        if group is not None:
            group.set_up_all()
        self.touch()

    def purge(self) -> int:
        count = int(self.ready)
        for lane in self._lanes:
            state: DeliveryState | None = lane.partition.opened()
            if state is not None:
                state.skip(state.start, lane.partition.end)
        self.turn.touch()
        return count

    def delete(self) -> None:
        self.deleted = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for lane in self._lanes:
            lane.listen(False)
        self._lanes = []
        for consumer in self.consumers:
            consumer.cancelled = True
            consumer.in_rotation = False
            consumer.queue_deleted()
        self.consumers = {}
        self._rotation = []
        self.active_consumer = None
        self._held = {}
        group = self._group
        if group is not None:
            group.queue = None
            group.release_queue(OWNER)


def check_source(arguments: dict[str, object], has_topic: bool, resource: str) -> None:
    """PreconditionFailed where there can be no queue over a topic as declared."""
    if keeps_history(arguments):
        if "x-source-topic" in arguments:
            raise PreconditionFailed(f"invalid arg 'x-source-topic' for {resource}: its history is a topic of its own")
        return
    name = arguments.get("x-source-topic")
    if not isinstance(name, str) or not name:
        raise PreconditionFailed(f"invalid arg 'x-source-topic' for {resource}: expected the name of a topic")
    if not has_topic:
        raise PreconditionFailed(f"invalid arg 'x-source-topic' for {resource}: there is no topic '{name}'")
    Subscription(arguments, resource, 0)


def _highest_priority_first(consumer: Consumer) -> int:
    return -int(consumer.priority)
