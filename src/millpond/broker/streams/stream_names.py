"""The names by which AMQP knows the topics of a virtual host, and what is behind each: made when it is first asked for.

    t      a topic with one partition: that partition
    t      a topic with several: the topic, which is published to
    t-1    the second partition of a topic with several, unless a queue or a topic is called so

This is RabbitMQ's naming of super streams. Partitions do not reserve these names: a queue or topic that comes to have
one takes it away from the partition.
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from millpond.broker.arguments import queue_settings
from millpond.broker.exchanges.exchange import Destination
from millpond.broker.exchanges.router import FurtherNames
from millpond.broker.policies import Applied, Policies, effective_arguments
from millpond.broker.queues.message_queue import MessageQueue, QueueContext, QueueOwner
from millpond.broker.queues.settings import TYPE_STREAM, QueueSettings
from millpond.broker.streams.stream_arguments import shown_arguments
from millpond.broker.streams.stream_queue import StreamQueue
from millpond.broker.streams.topic import Limits, Topic
from millpond.broker.streams.topic_queue import TopicQueue


@final
class StreamNames(FurtherNames):
    """Those of one virtual host. `queues` are its queues that are no streams, `topics` its topics, by their names."""

    def __init__(
        self,
        owner: QueueOwner,
        context: QueueContext,
        policies: Policies,
        queues: dict[str, MessageQueue],
        topics: dict[str, Topic],
    ) -> None:
        self._owner: Final = owner
        self._context: Final = context
        self._policies: Final = policies
        self._queues: Final = queues
        self._topics: Final = topics
        # Those that somebody has asked for.
        self._known: Final[dict[str, MessageQueue]] = {}
        # Partitions whose name is another's by now, for those who publish to their topic.
        self._nameless: Final[dict[tuple[bytes, int], StreamQueue]] = {}

    # --- Looking up -------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Destination | None:
        return self.stream(name)

    def stream(self, name: str) -> MessageQueue | None:
        """What is called so. The virtual host's other queues come first: they are not looked for here."""
        known = self._known.get(name)
        if known is not None:
            return known
        made = self._made(name)
        if made is not None:
            self._known[name] = made
        return made

    def _made(self, name: str) -> MessageQueue | None:
        topic = self._topics.get(name)
        if topic is not None:
            if len(topic.partitions) == 1:
                return self._stream(topic, name, 0)
            whole = TopicQueue(self._owner, self._context, topic, self, self._settings(topic))
            self._describe(whole, topic)
            return whole
        base, hyphen, number = name.rpartition("-")
        topic = self._topics.get(base) if hyphen else None
        if topic is None or not number.isdecimal() or len(number) > 9 or str(int(number)) != number:
            return None
        index = int(number)
        return self._stream(topic, name, index) if 1 < len(topic.partitions) > index else None

    def partition(self, topic: Topic, number: i64) -> MessageQueue:
        """A partition of a topic with several, also where its name is another's."""
        name = f"{topic.name}-{number}"
        if name not in self._queues and name not in self._topics:
            stream = self.stream(name)
            if stream is not None:
                return stream
        key = (topic.id, int(number))
        nameless = self._nameless.get(key)
        if nameless is None:
            nameless = self._nameless[key] = self._stream(topic, name, int(number))
        return nameless

    def consumer_count(self, topic: Topic) -> i64:
        """Who consumes from any of a topic's partitions."""
        count: i64 = 0
        for number in range(len(topic.partitions)):
            known = self._known.get(f"{topic.name}-{number}")
            if isinstance(known, StreamQueue) and known.topic is topic:
                count += len(known.consumers)
        return count

    def all(self) -> list[MessageQueue]:
        """All streams under the names by which they can be consumed from. They are not kept for being listed."""
        streams: list[MessageQueue] = []
        for topic in list(self._topics.values()):
            # A queue's history is shown as the queue.
            names = [topic.name] if not topic.is_history else []
            if len(topic.partitions) > 1:
                names = [f"{topic.name}-{number}" for number in range(len(topic.partitions))]
                names = [name for name in names if name not in self._queues and name not in self._topics]
            for name in names:
                stream = self._known.get(name) or self._made(name)
                if stream is not None:
                    streams.append(stream)
        return streams

    # --- What they are ----------------------------------------------------------------------------------------------

    def _stream(self, topic: Topic, name: str, number: int) -> StreamQueue:
        stream = StreamQueue(self._owner, self._context, name, topic, number, self._settings(topic))
        self._describe(stream, topic)
        return stream

    def _describe(self, queue: MessageQueue, topic: Topic) -> None:
        queue.arguments = shown_arguments(topic)
        queue.applied = self._applied(topic)

    def _applied(self, topic: Topic) -> Applied | None:
        return self._policies.of_queue(topic.name, TYPE_STREAM)

    def _settings(self, topic: Topic) -> QueueSettings:
        return queue_settings(effective_arguments(shown_arguments(topic), self._applied(topic), TYPE_STREAM))

    def apply_policies(self, topic: Topic) -> None:
        """Let the policies of now act on a topic, which they know by its own name."""
        applied = self._applied(topic)
        settings = queue_settings(effective_arguments({}, applied, TYPE_STREAM))
        topic.limit(Limits(settings.age_max_ms, settings.length_bytes_max, settings.segment_bytes))

    def policies_changed(self) -> None:
        """As `apply_policies`, to all."""
        for topic in self._topics.values():
            self.apply_policies(topic)
        for queue in self._known.values():
            topic_of = topic_behind(queue)
            if topic_of is not None:
                queue.applied = self._applied(topic_of)
                queue.apply_settings(self._settings(topic_of))

    # --- Changes ----------------------------------------------------------------------------------------------------

    def forget(self, name: str) -> MessageQueue | None:
        """A name is to mean something else from now on: what it has meant, if anybody has asked."""
        return self._known.pop(name, None)

    def forget_topic(self, topic: Topic) -> list[MessageQueue]:
        """A topic is gone: all that was made of it."""
        gone: list[MessageQueue] = []
        for name in [topic.name, *[f"{topic.name}-{number}" for number in range(len(topic.partitions))]]:
            known = self._known.get(name)
            if known is not None and topic_behind(known) is topic:
                gone.append(self._known.pop(name))
        for number in range(len(topic.partitions)):
            nameless = self._nameless.pop((topic.id, number), None)
            if nameless is not None:
                gone.append(nameless)
        return gone


def topic_behind(queue: MessageQueue) -> Topic | None:
    """The topic that a queue is, or is a partition of; None for one that is neither."""
    if isinstance(queue, StreamQueue):
        return queue.topic
    return queue.topic if isinstance(queue, TopicQueue) else None
