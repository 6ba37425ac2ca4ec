"""The topics of a virtual host: made, configured, deleted, and remembered by the catalog.

Topics and queues share one name space. Errors are `PeerError`s; permissions are the caller's to check.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64, trait

from millpond.base.errors import AlreadyExists, InvalidCount, InvalidName, LimitExceeded, NotFound, ReadOnlyTopic
from millpond.base.limits import PARTITIONS_PER_TOPIC_MAX
from millpond.broker.queues.message_queue import QueueContext
from millpond.broker.streams.partition import Partition
from millpond.broker.streams.topic import Topic, is_topic_name
from millpond.broker.streams.topic_settings import checked_config
from millpond.catalog.rows import PartitionRow, TopicRow

if TYPE_CHECKING:
    from millpond.broker.queues.message_queue import MessageQueue
    from millpond.catalog.catalog import Catalog


def check_topic_name(name: str) -> None:
    """InvalidName where no topic may be called so."""
    if not name:
        raise InvalidName("the topic name is empty")
    if not is_topic_name(name):
        raise InvalidName(
            f"the topic name {name!r} is not valid: a name has up to 249 letters, digits, '.', '_' and '-', and is "
            "neither '.' nor '..'"
        )


@trait
class TopicOwner:
    """What topics ask of their virtual host."""

    def check_room(self, resource: str, count: i64) -> None:
        """LimitExceeded where there cannot be so many more queues and partitions."""
        raise NotImplementedError

    def topic_made(self, topic: Topic) -> None:
        """A topic is about to have its name, still without partitions."""
        raise NotImplementedError

    def topic_grows(self, topic: Topic) -> None:
        """A topic is about to have more partitions than it has had so far."""
        raise NotImplementedError

    def topics_changed(self) -> None:
        """There are other topics or partitions than before."""
        raise NotImplementedError

    def topic_deleted(self, topic: Topic) -> None:
        """A topic is gone, with its partitions."""
        raise NotImplementedError


@final
class Topics:
    """The topics of one virtual host. `queues` are its queues that are no streams, by their names."""

    def __init__(
        self,
        vhost: str,
        queues: dict[str, MessageQueue],
        context: QueueContext,
        catalog: Catalog,
        owner: TopicOwner,
    ) -> None:
        self._vhost: Final = vhost
        self._queues: Final = queues
        self._context: Final = context
        self._catalog: Final = catalog
        self._owner: Final = owner
        # Told of a topic that has more partitions than before.
        self.on_partitions_added: Callable[[Topic], None] | None = None
        self.by_name: Final[dict[str, Topic]] = {}
        self.by_id: Final[dict[bytes, Topic]] = {}
        # Grows with every change of what topics and partitions there are.
        self.version: i64 = 0
        self.partition_count: i64 = 0

    def topic(self, name: str) -> Topic:
        """The topic called `name`. NotFound where there is none."""
        topic = self.by_name.get(name)
        if topic is None:
            raise NotFound(f"no topic '{name}' in vhost '{self._vhost}'")
        return topic

    def check_creation(self, name: str, partitions: int, overrides: dict[str, str | None]) -> dict[str, str]:
        """The overrides as they are kept, or why there cannot be such a topic: InvalidName, AlreadyExists,
        InvalidCount, InvalidSetting, LimitExceeded."""
        check_topic_name(name)
        if name in self.by_name:
            raise AlreadyExists(f"Topic '{name}' already exists.")
        if name in self._queues:
            raise AlreadyExists(f"there is a queue called '{name}'")
        if partitions < 1:
            raise InvalidCount("Number of partitions must be larger than 0.")
        self._check_count(name, partitions, partitions)
        return {key: checked_config(key, value) for key, value in overrides.items()}

    def create(self, name: str, partitions: int, overrides: dict[str, str | None]) -> Topic:
        """Make a topic. Errors as `check_creation`."""
        checked = self.check_creation(name, partitions, overrides)
        return self._create(name, partitions, checked, None)

    def create_stream(self, name: str, overrides: dict[str, str], arguments: dict[str, object]) -> Topic:
        """Make a topic with one partition out of what AMQP declares, which has been checked. Unlike other topics it may
        have any name; Kafka's clients see no topics whose names they do not know for such."""
        return self._create(name, 1, overrides, arguments)

    def create_history(self, name: str, arguments: dict[str, object]) -> Topic:
        """Make the topic that has the messages of a queue, which is declared so."""
        retention_ms = arguments["x-retention-ms"]
        # What counts is when the queue took a message, not what its publisher says.
        overrides = {"retention.ms": str(retention_ms), "message.timestamp.type": "LogAppendTime"}
        topic = self._create(name, 1, overrides, None)
        topic.is_history = True
        return topic

    def recreate(
        self, name: str, partitions: int, overrides: dict[str, str], arguments: dict[str, object] | None
    ) -> Topic:
        """Make a topic as it was elsewhere, also where AMQP had declared it."""
        return self._create(name, partitions, overrides, arguments)

    def _create(
        self, name: str, partitions: int, overrides: dict[str, str], arguments: dict[str, object] | None
    ) -> Topic:
        topic = Topic(name, uuid.uuid4().bytes, overrides, self._context.streams, arguments)
        self._owner.topic_made(topic)
        self._record(topic, overrides)
        self._add(topic)
        self._add_partitions(topic, partitions)
        return topic

    def _record(self, topic: Topic, overrides: dict[str, str]) -> None:
        self._catalog.put_topic(TopicRow(self._vhost, topic.name, topic.id.hex(), dict(overrides), topic.arguments))

    def known_to_kafka(self) -> list[Topic]:
        """The topics whose names Kafka's clients know for such: AMQP gives streams names of all sorts."""
        return [topic for topic in self.by_name.values() if topic.has_kafka_name]

    def check_changeable(self, topic: Topic) -> None:
        """ReadOnlyTopic where a topic is what a queue keeps of its messages: it changes with the queue only."""
        if topic.is_history:
            raise ReadOnlyTopic(f"topic '{topic.name}' is the history of the queue of its name, and is read-only")

    def add_partitions(self, topic: Topic, count: int) -> None:
        """Let a topic have `count` partitions: more than it has."""
        self.check_partitions(topic, count)
        self._owner.topic_grows(topic)
        self._add_partitions(topic, count - len(topic.partitions))
        if self.on_partitions_added is not None:
            self.on_partitions_added(topic)

    def check_partitions(self, topic: Topic, count: int) -> None:
        """InvalidCount, LimitExceeded or ReadOnlyTopic where a topic cannot have so many partitions from now on."""
        self.check_changeable(topic)
        present = len(topic.partitions)
        if count == present:
            raise InvalidCount(f"Topic already has {present} partition(s).")
        if count < present:
            raise InvalidCount(
                f"The topic {topic.name} currently has {present} partition(s); {count} would not be an increase."
            )
        self._check_count(topic.name, count, count - present)

    def _check_count(self, name: str, count: int, new: int) -> None:
        if count > PARTITIONS_PER_TOPIC_MAX:
            raise LimitExceeded(f"a topic has no more than {PARTITIONS_PER_TOPIC_MAX} partitions")
        self._owner.check_room(f"topic '{name}'", new)

    def _add_partitions(self, topic: Topic, count: int) -> None:
        first = len(topic.partitions)
        for number in range(first, first + count):
            log_id = self._catalog.add_partition(PartitionRow(self._vhost, topic.name, number))
            self._add_partition(topic, log_id)
        self.version += 1
        self._owner.topics_changed()
        self._context.turn.touch()

    def configure(self, topic: Topic, overrides: dict[str, str | None]) -> None:
        """Let a topic have this configuration, and the defaults for the rest. InvalidSetting, ReadOnlyTopic."""
        self.check_changeable(topic)
        checked = {key: checked_config(key, value) for key, value in overrides.items()}
        if checked != topic.overrides:
            self._record(topic, checked)
            topic.configure(checked)
            self._context.turn.touch()

    def delete(self, topic: Topic) -> None:
        """Delete a topic with all its records. ReadOnlyTopic."""
        self.check_changeable(topic)
        del self.by_name[topic.name]
        del self.by_id[topic.id]
        self.version += 1
        self._context.queue_count -= len(topic.partitions)
        self.partition_count -= len(topic.partitions)
        self._catalog.delete_topic(self._vhost, topic.name)
        self._owner.topic_deleted(topic)
        topic.delete()
        self._context.turn.touch()

    def restore(self, row: TopicRow, partitions: list[PartitionRow]) -> None:
        """A topic that the catalog remembers, still empty."""
        topic = Topic(row.name, bytes.fromhex(row.id), {key: str(row.configs[key]) for key in row.configs},
                      self._context.streams, row.arguments)  # fmt: skip
        self._owner.topic_made(topic)
        self._add(topic)
        for partition in sorted(partitions, key=_number):
            self._add_partition(topic, partition.id)

    def _add(self, topic: Topic) -> None:
        self.by_name[topic.name] = topic
        self.by_id[topic.id] = topic
        self.version += 1

    def _add_partition(self, topic: Topic, log_id: i64) -> None:
        context = self._context
        name = f"{topic.name}-{len(topic.partitions)}"
        topic.add_partition(Partition(context.streams, name, log_id, context.store.available))
        context.queue_count += 1
        self.partition_count += 1


def _number(row: PartitionRow) -> int:
    return row.number
