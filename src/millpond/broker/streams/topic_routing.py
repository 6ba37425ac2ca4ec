"""Topics as exchanges: what is bound to them, and the routers that read them.

    TopicSources    of a virtual host: the topics that have bindings
    TopicRouting    of a node: keeps the cursors, over restarts too

The first binding of a topic makes its cursors, one for each partition, which begin at the end of that moment; the last
one takes them away. A subscription, a binding that says where it begins, has cursors of its own. A partition that comes
later is read from its beginning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from millpond.broker.commits import AlarmListener, Alarms
from millpond.broker.exchanges.exchange import Binding, Exchange
from millpond.broker.exchanges.topic_source import START_ARGUMENT, TopicSource
from millpond.broker.keepers import KeeperState, RecordKeeper
from millpond.broker.records import CHANGE_ROUTED
from millpond.broker.streams.record_router import (
    GONE,
    UNKNOWN,
    RecordRouter,
    RoutingTurns,
    decode_cursor,
    encode_cursor,
)
from millpond.broker.streams.subscription import (
    START_FIRST,
    START_LAST,
    START_NEXT,
    START_OFFSET,
    START_TIME,
    starting_place,
)

if TYPE_CHECKING:
    from millpond.broker.queues.message_queue import QueueContext
    from millpond.broker.streams.partition import Partition
    from millpond.broker.streams.topic import Topic
    from millpond.broker.vhost import VirtualHost

logger = logging.getLogger(__name__)


class CursorState(KeeperState):
    """Cursors as they were at the moment of a checkpoint."""

    def __init__(self, cursors: list[tuple[int, int, str]]) -> None:
        self._cursors: Final = cursors

    def records(self) -> list[bytes]:
        return [encode_cursor(*cursor) for cursor in self._cursors]


class TopicRouting(RecordKeeper):
    """The routers of all virtual hosts."""

    change = CHANGE_ROUTED

    def __init__(self, context: QueueContext, alarms: Alarms) -> None:
        self.context: Final = context
        self.turns: Final = RoutingTurns(context, alarms)
        self.sources: Final[dict[str, TopicSources]] = {}
        # What recovery has found, by log and name. It is asked for once.
        self._found: dict[tuple[int, str], int] = {}
        alarms.add(_AlarmsOver(self.turns))

    def add(self, vhost: VirtualHost) -> TopicSources:
        """The sources of a virtual host, none of which has bindings yet."""
        sources = self.sources[vhost.name] = TopicSources(self, vhost)
        return sources

    def remove(self, vhost: str) -> None:
        """A virtual host is gone, and its topics before it."""
        del self.sources[vhost]

    # --- Recovery ---------------------------------------------------------------------------------------------------

    def restore(self, payload: bytes) -> None:
        log_id, next_offset, cursor = decode_cursor(payload)
        if next_offset == GONE:
            self._found.pop((log_id, cursor), None)
        else:
            self._found[log_id, cursor] = next_offset

    def restored(self) -> None:
        count = 0
        for sources in self.sources.values():
            for topic, source in sources.by_topic.items():
                count += sources.start_all(topic, source, self._found)
        self._found = {}
        if count:
            logger.info("recovered %d cursors of topics that are routed to queues", count)

    def capture(self) -> list[CursorState]:
        cursors = [
            (int(router.partition.log_id), int(router.next_offset), router.source.cursor)
            for sources in self.sources.values()
            for router in sources.routers()
            if router.next_offset >= 0 and router.partition.recoverable and not router.is_stopped
        ]
        return [CursorState(cursors)]


class TopicSources:
    """The topics of a virtual host to which something is bound."""

    def __init__(self, routing: TopicRouting, vhost: VirtualHost) -> None:
        self._routing: Final = routing
        self._vhost: Final = vhost
        self.by_topic: Final[dict[Topic, TopicSource]] = {}
        # By the source, which may be a subscription.
        self._routers: Final[dict[TopicSource, list[RecordRouter]]] = {}

    def find(self, name: str) -> TopicSource | None:
        """A topic as an exchange; None where there is no such topic. Without bindings it is nothing that would stay."""
        topic = self._vhost.topics.by_name.get(name)
        if topic is None:
            return None
        source = self.by_topic.get(topic)
        return source if source is not None else TopicSource(name)

    def is_bound(self, name: str) -> bool:
        """Whether a topic has bindings."""
        topic = self._vhost.topics.by_name.get(name)
        return topic is not None and topic in self.by_topic

    def routers(self) -> Iterator[RecordRouter]:
        for routers in self._routers.values():
            yield from routers

    def routers_of(self, topic: Topic) -> list[RecordRouter]:
        """All that read a topic, by their cursors' names and partitions."""
        source = self.by_topic.get(topic)
        if source is None:
            return []
        sources = [source, *source.subscriptions.values()]
        return [router for one in sources for router in self._routers.get(one, ())]

    def bindings(self) -> Iterator[Binding]:
        for source in self.by_topic.values():
            yield from source.bindings()

    # --- Bindings ---------------------------------------------------------------------------------------------------

    def check(self, source: TopicSource, arguments: dict[str, object]) -> None:
        """PreconditionFailed where a binding cannot begin where it says."""
        self._start(source, arguments.get(START_ARGUMENT))

    def restore(self, topic: Topic) -> TopicSource:
        """The source of a topic that the catalog has bindings of."""
        source = self.by_topic.get(topic)
        if source is None:
            source = self.by_topic[topic] = TopicSource(topic.name)
            self._vhost.router.sources[topic.name] = source
        return source

    def bound(self, source: TopicSource) -> None:
        """A binding has been added to a source: let what is new be read."""
        topic = self._vhost.topics.by_name[source.name]
        if topic not in self.by_topic:
            self.by_topic[topic] = source
            self._vhost.router.sources[topic.name] = source
        self.start_all(topic, source, {})

    def unbound(self, source: TopicSource) -> None:
        """Bindings of a source have gone: what nothing is bound to any more is not read."""
        topic = self._vhost.topics.by_name.get(source.name)
        for known in list(self._routers):
            if known.name != source.name:
                continue
            is_read = known.is_read if known is source else source.subscriptions.get(known.cursor) is known
            if not is_read:
                self._stop(known)
        if topic is not None and source.is_unbound and self.by_topic.get(topic) is source:
            del self.by_topic[topic]
            self._vhost.router.sources.pop(topic.name, None)

    # --- Topics -----------------------------------------------------------------------------------------------------

    def grown(self, topic: Topic) -> None:
        """A topic has more partitions: they are read from their beginnings."""
        source = self.by_topic.get(topic)
        if source is None:
            return
        for one, routers in self._routers.items():
            if one is source or source.subscriptions.get(one.cursor) is one:
                for found in topic.partitions[len(routers) :]:
                    routers.append(self._router(one, found, int(found.start_offset), False))

    def deleted(self, topic: Topic) -> None:
        """A topic is gone, and with it its bindings."""
        source = self.by_topic.pop(topic, None)
        if source is None:
            return
        self._vhost.router.sources.pop(topic.name, None)
        for one in [source, *source.subscriptions.values()]:
            self._stop(one)

    # --- Routers ----------------------------------------------------------------------------------------------------

    def start_all(self, topic: Topic, source: TopicSource, found: dict[tuple[int, str], int]) -> int:
        """Let a source, and each of its subscriptions, be read that is not yet. Cursors that were `found` go on where
        they were. How many of these there were."""
        count = 0
        for one in [source, *source.subscriptions.values()]:
            if one in self._routers or not one.is_read:
                continue
            routers = self._routers[one] = []
            for read in topic.partitions:
                known = found.get((int(read.log_id), one.cursor), UNKNOWN)
                if known == UNKNOWN:
                    routers.append(self._started(one, read))
                else:
                    count += 1
                    # Where the end of the log is lost, so is what it had.
                    routers.append(self._router(one, read, min(known, int(read.end_offset)), True))
        return count

    def _started(self, source: TopicSource, read: Partition) -> RecordRouter:
        """A router that begins where the source's binding says, or with what comes from now on."""
        start, position = self._start(source, source.starting_point())
        end = int(read.end_offset)
        if start == START_NEXT:
            return self._router(source, read, end, False)
        if start == START_FIRST:
            return self._router(source, read, int(read.start_offset), False)
        if start == START_OFFSET:
            return self._router(source, read, min(max(position, int(read.start_offset)), end), False)
        router = self._router(source, read, UNKNOWN, False)
        streams = self._routing.context.streams
        if start == START_LAST:
            streams.find_last(read, router.begin)
        elif start == START_TIME:
            streams.find_record_at(read, position, partial(_begin_at_record, router, int(read.durable_end)))
        return router

    def _router(self, source: TopicSource, read: Partition, offset: int, is_recorded: bool) -> RecordRouter:
        return RecordRouter(self._routing.turns, self._vhost, source, read, offset, is_recorded)

    def _start(self, source: Exchange, value: object) -> tuple[int, int]:
        resource = f"topic '{source.name}' in vhost '{self._vhost.name}'"
        return starting_place(value, resource, int(self._routing.context.turn.now_ms))

    def _stop(self, source: TopicSource) -> None:
        for router in self._routers.pop(source, ()):
            router.stop()


class _AlarmsOver(AlarmListener):
    def __init__(self, turns: RoutingTurns) -> None:
        self._turns: Final = turns

    def alarms_changed(self, reasons: list[str]) -> None:
        if not reasons:
            self._turns.go_on()


def _begin_at_record(router: RecordRouter, end_offset: int, offset: int, timestamp_ms: int) -> None:
    """The first record that is new enough has been looked for: there may be none before `end_offset`."""
    router.begin(offset if offset >= 0 else end_offset)
