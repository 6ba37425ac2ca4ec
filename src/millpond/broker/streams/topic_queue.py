"""A topic with several partitions, as AMQP sees it under its own name.

It can be bound to exchanges and published to, and each message goes to one partition: the one that Kafka's producers
choose for its record's key, or, where there is no key that says anything, the next one with every batch. It is consumed
from by its partitions only, as RabbitMQ's super streams are.

    t      the topic        t-0, t-1, ...      its partitions, each a `StreamQueue`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64

from millpond.base.errors import NotImplementedHere, PreconditionFailed
from millpond.base.limits import STREAM_BATCH_BYTES, STREAM_BATCH_MESSAGES_MAX
from millpond.broker.ledger import OpenBatch
from millpond.broker.message import Address, Message, Properties
from millpond.broker.queues.backlog import Backlog
from millpond.broker.queues.consumer import Consumer
from millpond.broker.queues.entry import Entry
from millpond.broker.queues.message_queue import MessageQueue, QueueContext, QueueOwner
from millpond.broker.queues.settings import QueueSettings
from millpond.broker.record_properties import KEY_HEADER, RecordProperties
from millpond.broker.streams.message_records import stated_key
from millpond.broker.streams.partitioner import partition_of
from millpond.broker.streams.topic import Topic

if TYPE_CHECKING:
    from millpond.broker.streams.stream_names import StreamNames


def record_key(message: Message) -> bytes | None:
    """The key by which a message belongs to a partition; None where any will do."""
    properties = message.properties
    if isinstance(properties, RecordProperties) and properties.key is not None:
        return properties.key
    headers = properties.headers()
    if not message.address.exchange and KEY_HEADER not in headers:
        # The default exchange's routing key is the topic's name, which says nothing of the message.
        return None
    return stated_key(headers, message.address.routing_key)


@final
class TopicQueue(MessageQueue, OpenBatch):
    """One topic with several partitions. `names` knows these by their names."""

    def __init__(
        self, owner: QueueOwner, context: QueueContext, topic: Topic, names: StreamNames, settings: QueueSettings
    ) -> None:
        first = topic.partitions[0]
        super().__init__(owner, context, topic.name, first.log_id, first.recoverable, settings)
        self.journals_itself = True
        self.durable = True
        self.topic: Final = topic
        self._names: Final = names
        # Where messages without a key go now, and what has gone there since the last time it changed.
        self._number: i64 = 0
        self._messages: i64 = 0
        self._bytes: i64 = 0
        self._is_open = False
        # Of the latest message, and where it belongs among so many partitions; -1 where that is of no account.
        self._address: Address | None = None
        self._properties: Properties | None = None
        self._count: i64 = 0
        self._keyed: i64 = -1

    # --- What it holds ----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> i64:
        count: i64 = 0
        for partition in self.topic.partitions:
            count += partition.end_offset - partition.start_offset
        return count

    @property
    def ready_bytes(self) -> i64:
        return 0

    @property
    def resident_bytes(self) -> i64:
        size: i64 = 0
        for partition in self.topic.partitions:
            size += partition.hot_bytes
        return size

    @property
    def consumer_count(self) -> i64:
        return self._names.consumer_count(self.topic)

    def details(self) -> dict[str, object]:
        return {"partitions": len(self.topic.partitions)}

    def backlogs(self) -> list[Backlog]:
        return []

    def has_lane(self, number: int) -> bool:
        return False

    def lane(self, number: int) -> Backlog:
        raise NotImplementedError("a topic has no lanes")

    def lowest_backlog(self) -> Backlog:
        raise NotImplementedError("a topic journals itself")

    def backlog_for(self, message: Message) -> Backlog:
        raise NotImplementedError("a topic journals itself")

    # --- Publishing -------------------------------------------------------------------------------------------------

    def publish(self, message: Message) -> None:
        self.published_total += 1
        count: i64 = len(self.topic.partitions)
        properties = message.properties
        if message.address is not self._address or properties is not self._properties or count != self._count:
            self._address = message.address
            self._properties = properties
            self._count = count
            key = record_key(message)
            self._keyed = partition_of(key, count) if key is not None else -1
        if self._keyed >= 0:
            self._names.partition(self.topic, self._keyed).publish(message)
            return
        if not self._is_open:
            self._is_open = True
            self.ledger.open_batch(self)
            self.turn.touch()
        elif self._messages >= STREAM_BATCH_MESSAGES_MAX or self._bytes + len(message.body) > STREAM_BATCH_BYTES:
            self._move_on()
        self._messages += 1
        self._bytes += len(message.body)
        self._names.partition(self.topic, self._number).publish(message)

    def close_batch(self) -> None:
        """The partitions append what they have collected themselves."""
        self._is_open = False
        self._move_on()

    def _move_on(self) -> None:
        self._number = (self._number + 1) % len(self.topic.partitions)
        self._messages = 0
        self._bytes = 0

    def refuses(self, size: i64) -> bool:
        return False

    def dead_letters_refused(self) -> bool:
        return False

    # --- Consuming: by the partitions -------------------------------------------------------------------------------

    def check_consumer(self, consumer: Consumer, has_channel_limit: bool) -> None:
        name, last = self.name, len(self.topic.partitions) - 1
        raise PreconditionFailed(
            f"{self.owner.queue_resource(name)} is a topic with {last + 1} partitions: consume from each of them, by "
            f"the names '{name}-0' to '{name}-{last}'"
        )

    def run_turn(self) -> None:
        """It delivers nothing itself."""

    def add_consumer(self, consumer: Consumer) -> None:
        raise NotImplementedError("a topic has no consumers")

    def remove_consumer(self, consumer: Consumer) -> None:
        raise NotImplementedError("a topic has no consumers")

    def wake(self, consumer: Consumer) -> None:
        raise NotImplementedError("a topic has no consumers")

    def get(self) -> Entry | None:
        raise NotImplementedHere(f"basic.get not supported by stream queues {self.owner.queue_resource(self.name)}")

    def settle(self, entry: Entry) -> None:
        raise NotImplementedError("a topic delivers nothing")

    def reject(self, entry: Entry) -> None:
        raise NotImplementedError("a topic delivers nothing")

    def give_back(self, entries: list[Entry], failed: bool) -> None:
        raise NotImplementedError("a topic delivers nothing")

    # --- Managing ---------------------------------------------------------------------------------------------------

    def apply_settings(self, settings: QueueSettings) -> None:
        self.settings = settings

    def purge(self) -> int:
        raise NotImplementedHere(f"queue.purge not supported by stream queues {self.owner.queue_resource(self.name)}")

    def delete(self) -> None:
        self.deleted = True
