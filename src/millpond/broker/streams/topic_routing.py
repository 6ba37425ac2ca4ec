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
from millpond.broker.exchanges.exchange import Destination, Exchange
from millpond.broker.exchanges.topic_source import START_ARGUMENT, TopicSource
from millpond.broker.keepers import KeeperState, RecordKeeper
from millpond.broker.queues.message_queue import MessageQueue
from millpond.broker.records import CHANGE_ROUTED
from millpond.broker.streams.record_router import (
    GONE,
    UNKNOWN,
    RecordRouter,
    RoutingTurns,
    decode_cursor,
    encode_cursor,
)
from millpond.broker.streams.stream_names import topic_behind
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
        count = sum([sources.restored(self._found) for sources in self.sources.values()])
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
    """The topics of a virtual host, as exchanges."""

    def __init__(self, routing: TopicRouting, vhost: VirtualHost) -> None:
        self._routing: Final = routing
        self._vhost: Final = vhost
        # Those that somebody has asked for, with bindings or without.
        self._known: Final[dict[Topic, TopicSource]] = {}
        # By topic and the names of cursors: a router for each partition.
        self._routers: Final[dict[Topic, dict[str, list[RecordRouter]]]] = {}
        # Whether a topic's records come to another topic, by their names, as long as the topology is of this version.
        self._leads: Final[dict[tuple[str, str], bool]] = {}
        self._version = -1

    def find(self, name: str) -> TopicSource | None:
        """A topic as an exchange; None where there is no such topic."""
        topic = self._vhost.topics.by_name.get(name)
        return self.of(topic) if topic is not None else None

    def of(self, topic: Topic) -> TopicSource:
        source = self._known.get(topic)
        if source is None:
            source = self._known[topic] = TopicSource(topic.name)
            self._vhost.router.sources[topic.name] = source
        return source

    def is_bound(self, name: str) -> bool:
        """Whether a topic has bindings."""
        topic = self._vhost.topics.by_name.get(name)
        return topic in self._known and not self._known[topic].is_unbound

    def bound(self) -> list[TopicSource]:
        """Those that have bindings, in the order of their names."""
        return sorted([source for source in self._known.values() if not source.is_unbound], key=_name)

    def routers(self) -> Iterator[RecordRouter]:
        """All of them."""
        for topic in self._routers:
            yield from self.routers_of(topic)

    def routers_of(self, topic: Topic) -> Iterator[RecordRouter]:
        """All that read a topic, by their cursors' names and partitions."""
        for routers in self._routers.get(topic, {}).values():
            yield from routers

    def check(self, source: TopicSource, arguments: dict[str, object]) -> None:
        """PreconditionFailed where a binding cannot begin where it says."""
        self._start(source, arguments.get(START_ARGUMENT))

    def leads_back(self, topic: Topic, name: str) -> bool:
        """Whether the records of `topic` come to the topic called `name`, which may be itself: then what is routed from
        there to here would go round for ever."""
        router = self._vhost.router
        if router.version != self._version:
            self._leads.clear()
            self._version = router.version
        known = self._leads.get((topic.name, name))
        if known is None:
            known = self._leads[topic.name, name] = self._comes_to(topic, name)
            if known:
                logger.warning("records of topic %r do not go to topic %r, from where they would come back to it",
                               name, topic.name)  # fmt: skip
        return known

    def _comes_to(self, topic: Topic, name: str) -> bool:
        seen: set[Destination] = set()
        ahead: list[Exchange] = [self.of(topic)]
        while ahead:
            current = ahead.pop()
            if current.name == name and isinstance(current, TopicSource):
                return True
            for binding in current.bindings():
                destination = binding.destination
                if destination in seen:
                    continue
                seen.add(destination)
                if isinstance(destination, Exchange):
                    ahead.append(destination)
                elif isinstance(destination, MessageQueue):
                    behind = topic_behind(destination)
                    if behind is not None:
                        ahead.append(self.of(behind))
        return False

    # --- What is read -----------------------------------------------------------------------------------------------

    def bindings_changed(self, source: TopicSource) -> None:
        """A source has other bindings than before: let what is new be read, and what has no bindings any more not."""
        topic = self._vhost.topics.by_name.get(source.name)
        if topic is not None and self._known.get(topic) is source:
            self.read(topic, source, {})

    def topics_changed(self) -> None:
        """There may be other partitions than before: new ones are read from their beginnings."""
        for topic in list(self._routers):
            self.read(topic, self._known[topic], {})

    def deleted(self, topic: Topic) -> None:
        """A topic is gone, and with it its bindings."""
        for routers in self._routers.pop(topic, {}).values():
            for router in routers:
                router.stop()
        if self._known.pop(topic, None) is not None:
            self._vhost.router.sources.pop(topic.name, None)

    def restored(self, found: dict[tuple[int, str], int]) -> int:
        """Read what has bindings from where it had been read. How many cursors were found."""
        return sum([self.read(topic, source, found) for topic, source in list(self._known.items())])

    def read(self, topic: Topic, source: TopicSource, found: dict[tuple[int, str], int]) -> int:
        """Let a source and each of its subscriptions be read, if anything is bound to it. Cursors that were `found` go
        on where they were. How many of these there were."""
        wanted = {one.cursor: one for one in [source, *source.subscriptions.values()] if one.is_read}
        known = self._routers.get(topic, {})
        for cursor in [cursor for cursor in known if cursor not in wanted]:
            for router in known.pop(cursor):
                router.stop()
        count = 0
        for cursor, one in wanted.items():
            routers = known.get(cursor)
            if routers is None:
                known[cursor] = [self._started(one, read, found) for read in topic.partitions]
                count += sum([(int(read.log_id), cursor) in found for read in topic.partitions])
                continue
            for router in routers:
                router.source = one
            for read in topic.partitions[len(routers) :]:
                routers.append(self._router(one, read, int(read.start_offset)))
        if known:
            self._routers[topic] = known
        else:
            self._routers.pop(topic, None)
        return count

    def _started(self, source: TopicSource, read: Partition, found: dict[tuple[int, str], int]) -> RecordRouter:
        """A router that goes on where it was found, or begins where the source's binding says, or with what comes from
        now on."""
        end = int(read.end_offset)
        known = found.get((int(read.log_id), source.cursor))
        if known is not None:
            # Where the end of the log is lost, so is what it had.
            return self._router(source, read, min(known, end), True)
        start, position = self._start(source, source.starting_point())
        if start == START_NEXT:
            return self._router(source, read, end)
        if start == START_FIRST:
            return self._router(source, read, int(read.start_offset))
        if start == START_OFFSET:
            return self._router(source, read, min(max(position, int(read.start_offset)), end))
        router = self._router(source, read, UNKNOWN)
        streams = self._routing.context.streams
        if start == START_LAST:
            streams.find_last(read, router.begin)
        elif start == START_TIME:
            streams.find_record_at(read, position, partial(_begin_at_record, router, int(read.durable_end)))
        return router

    def _router(self, source: TopicSource, read: Partition, offset: int, is_recorded: bool = False) -> RecordRouter:
        return RecordRouter(self._routing.turns, self._vhost, source, read, offset, is_recorded)

    def _start(self, source: Exchange, value: object) -> tuple[int, int]:
        resource = f"topic '{source.name}' in vhost '{self._vhost.name}'"
        return starting_place(value, resource, int(self._routing.context.turn.now_ms))


def _name(source: TopicSource) -> str:
    return source.name


class _AlarmsOver(AlarmListener):
    def __init__(self, turns: RoutingTurns) -> None:
        self._turns: Final = turns

    def alarms_changed(self, reasons: list[str]) -> None:
        if not reasons:
            self._turns.go_on()


def _begin_at_record(router: RecordRouter, end_offset: int, offset: int, timestamp_ms: int) -> None:
    """The first record that is new enough has been looked for: there may be none before `end_offset`."""
    router.begin(offset if offset >= 0 else end_offset)
