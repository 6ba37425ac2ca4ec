"""The topics of a virtual host: made, configured, deleted, and remembered by the catalog.

Topics and queues share one name space. Errors are `PeerError`s; permissions are the caller's to check.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64

from millpond.base.errors import AlreadyExists, InvalidCount, InvalidName, LimitExceeded, NotFound
from millpond.base.limits import PARTITIONS_PER_TOPIC_MAX
from millpond.broker.queues.message_queue import QueueContext
from millpond.broker.streams.partition import Partition
from millpond.broker.streams.topic import Topic
from millpond.broker.streams.topic_settings import checked_config
from millpond.catalog.rows import PartitionRow, TopicRow

if TYPE_CHECKING:
    from millpond.broker.queues.message_queue import MessageQueue
    from millpond.catalog.catalog import Catalog

# Kafka's rule.
_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def check_topic_name(name: str) -> None:
    """InvalidName where no topic may be called so."""
    if not name:
        raise InvalidName("the topic name is empty")
    if name in {".", ".."} or not _NAME.fullmatch(name):
        raise InvalidName(
            f"the topic name {name!r} is not valid: a name has up to 249 letters, digits, '.', '_' and '-', and is "
            "neither '.' nor '..'"
        )


@final
class Topics:
    """The topics of one virtual host. `queues` are its queues, by their names; `on_deleted` is told of each topic that
    goes, `on_grown` of each that has more partitions than before."""

    def __init__(
        self,
        vhost: str,
        queues: dict[str, MessageQueue],
        context: QueueContext,
        catalog: Catalog,
        on_deleted: Callable[[Topic], None],
        on_grown: Callable[[Topic], None],
    ) -> None:
        self._vhost: Final = vhost
        self._queues: Final = queues
        self._context: Final = context
        self._catalog: Final = catalog
        self._on_deleted: Final = on_deleted
        self._on_grown: Final = on_grown
        self.by_name: Final[dict[str, Topic]] = {}
        self.by_id: Final[dict[bytes, Topic]] = {}
        # Grows with every change of what topics and partitions there are.
        self.version: i64 = 0

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
        self._check_count(partitions, partitions)
        return {key: checked_config(key, value) for key, value in overrides.items()}

    def create(self, name: str, partitions: int, overrides: dict[str, str | None]) -> Topic:
        """Make a topic. Errors as `check_creation`."""
        checked = self.check_creation(name, partitions, overrides)
        topic = Topic(name, uuid.uuid4().bytes, checked, self._context.streams)
        self._catalog.put_topic(TopicRow(self._vhost, name, topic.id.hex(), dict(checked)))
        self._add(topic)
        self._add_partitions(topic, partitions)
        return topic

    def add_partitions(self, topic: Topic, count: int) -> None:
        """Let a topic have `count` partitions: more than it has."""
        self.check_partitions(topic, count)
        self._add_partitions(topic, count - len(topic.partitions))
        self._on_grown(topic)

    def check_partitions(self, topic: Topic, count: int) -> None:
        """InvalidCount or LimitExceeded where a topic cannot have so many partitions from now on."""
        present = len(topic.partitions)
        if count == present:
            raise InvalidCount(f"Topic already has {present} partition(s).")
        if count < present:
            raise InvalidCount(
                f"The topic {topic.name} currently has {present} partition(s); {count} would not be an increase."
            )
        self._check_count(count, count - present)

    def _check_count(self, count: int, new: int) -> None:
        context = self._context
        if count > PARTITIONS_PER_TOPIC_MAX:
            raise LimitExceeded(f"a topic has no more than {PARTITIONS_PER_TOPIC_MAX} partitions")
        if context.queue_count + new > context.queues_max:
            raise LimitExceeded(f"the node's limit of {context.queues_max} queues and partitions is reached")

    def _add_partitions(self, topic: Topic, count: int) -> None:
        first = len(topic.partitions)
        for number in range(first, first + count):
            log_id = self._catalog.add_partition(PartitionRow(self._vhost, topic.name, number))
            self._add_partition(topic, log_id)
        self.version += 1
        self._context.turn.touch()

    def configure(self, topic: Topic, overrides: dict[str, str | None]) -> None:
        """Let a topic have this configuration, and the defaults for the rest. InvalidSetting."""
        checked = {key: checked_config(key, value) for key, value in overrides.items()}
        if checked != topic.overrides:
            self._catalog.put_topic(TopicRow(self._vhost, topic.name, topic.id.hex(), dict(checked)))
            topic.configure(checked)
            self._context.turn.touch()

    def delete(self, topic: Topic) -> None:
        """Delete a topic with all its records."""
        del self.by_name[topic.name]
        del self.by_id[topic.id]
        self.version += 1
        self._context.queue_count -= len(topic.partitions)
        self._catalog.delete_topic(self._vhost, topic.name)
        topic.delete()
        self._on_deleted(topic)
        self._context.turn.touch()

    def restore(self, row: TopicRow, partitions: list[PartitionRow]) -> None:
        """A topic that the catalog remembers, still empty."""
        topic = Topic(row.name, bytes.fromhex(row.id), {key: str(row.configs[key]) for key in row.configs},
                      self._context.streams)  # fmt: skip
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


def _number(row: PartitionRow) -> int:
    return row.number
