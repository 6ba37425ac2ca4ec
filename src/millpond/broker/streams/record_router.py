"""What carries a topic's records to the queues that are bound to it.

    partition ──► RecordRouter: a cursor ──► its bindings ──► queues
                        └──► the ledger: how far it has come, in the turn in which the queues got what is before

A record is so in its queues and behind the cursor after a crash, or neither: it is routed once. Read is what is durable
and belongs to no open transaction; batches of aborted ones and control batches are passed over. A router does some work
and lets others have the loop; while an alarm holds publishers back, or a queue refuses what it should get, it waits,
and the log has what waits with it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, final

from librt.strings import BytesWriter, read_i64_be, write_i64_be
from mypy_extensions import i64

from millpond.base.errors import CorruptData
from millpond.base.limits import (
    ROUTED_BYTES_PER_TURN_MAX,
    ROUTED_RECORDS_PER_TURN_MAX,
    ROUTES_CACHED_MAX,
    ROUTING_RETRY_MS,
)
from millpond.broker.commits import Alarms
from millpond.broker.exchanges.topic_source import TopicSource
from millpond.broker.message import Address, Message
from millpond.broker.queues.entry import message_size
from millpond.broker.queues.message_queue import MessageQueue, QueueContext
from millpond.broker.records import CHANGE_ROUTED
from millpond.broker.streams.partition import Partition, PartitionListener
from millpond.broker.streams.record_messages import RecordMessages
from millpond.broker.turn import TurnTask
from millpond.storage.record_batch import BatchHeader

if TYPE_CHECKING:
    from millpond.broker.vhost import Route, VirtualHost

logger = logging.getLogger(__name__)

# Where a cursor is that is still being looked for, and what is recorded of one that is gone.
UNKNOWN: Final = -1
GONE: Final = -1

# What is in the way of a router.
AT_END: Final = 0
LOADING: Final = 1
REFUSED: Final = 2
LOOKED_FOR: Final = 3
HAS_MORE: Final = 4
STATES: Final = ("running", "loading", "refused", "starting", "behind")


@final
class RoutingTurns(TurnTask):
    """Gives the routers of a node their shares of each turn, one after the other."""

    def __init__(self, context: QueueContext, alarms: Alarms) -> None:
        self.turn_pending = False
        self._context: Final = context
        self._alarms: Final = alarms
        self._awake: list[RecordRouter] = []
        self._refused: list[RecordRouter] = []
        self._is_timed = False

    def wake(self, router: RecordRouter) -> None:
        """There may be something for `router` to do."""
        if not router.is_awake and not router.is_stopped:
            router.is_awake = True
            self._awake.append(router)
            self.go_on()

    def go_on(self) -> None:
        """Nothing holds publishers back any more, or there is something to do."""
        if self._awake and not self.turn_pending and not self._alarms.reasons:
            context = self._context
            context.turn.touch_queue(self)

    def run_turn(self) -> None:
        if self._alarms.reasons:
            return
        context = self._context
        turn = context.turn
        # What woke them may have been a thread, which does not look at the clock.
        turn.now_ms = context.clock.wall_ms()
        records_left: i64 = ROUTED_RECORDS_PER_TURN_MAX
        bytes_left: i64 = ROUTED_BYTES_PER_TURN_MAX
        while self._awake and records_left > 0 and bytes_left > 0:
            router = self._awake.pop(0)
            router.is_awake = False
            if router.is_stopped:
                continue
            try:
                router.route(records_left, bytes_left)
            except Exception:
                # A bug with one record must not keep those behind it, and other topics, from being routed.
                logger.exception("a bug kept a record of topic %r from being routed", router.source.name)
                router.pass_over()
            records_left -= router.records_seen
            bytes_left -= router.bytes_seen
            if router.state == HAS_MORE:
                router.is_awake = True
                # Others come when a batch is through, so that there is never more than one open.
                if router.has_open_batch:
                    self._awake.insert(0, router)
                else:
                    self._awake.append(router)
            elif router.state == REFUSED:
                self._refused.append(router)
                self._try_later()
        if self._awake:
            turn.touch_queue_later(self)

    def _try_later(self) -> None:
        if not self._is_timed:
            self._is_timed = True
            context = self._context
            context.clock.call_later(ROUTING_RETRY_MS, self._try_again)

    def _try_again(self) -> None:
        self._is_timed = False
        refused = self._refused
        self._refused = []
        for router in refused:
            self.wake(router)


@final
class RecordRouter(PartitionListener):
    """One cursor: it reads a partition for a source. `next_offset` is the first offset that has not been routed."""

    def __init__(
        self,
        turns: RoutingTurns,
        vhost: VirtualHost,
        source: TopicSource,
        partition: Partition,
        next_offset: i64,
        is_recorded: bool = False,
    ) -> None:
        """`is_recorded` says that this is what the ledger has of the cursor."""
        # As the bindings have it now: where those of a subscription are made again, it is another one.
        self.source = source
        self.partition: Final = partition
        self.next_offset: i64 = next_offset
        self.state: i64 = AT_END if next_offset >= 0 else LOOKED_FOR
        # Known to the turns as one that has something to do.
        self.is_awake = False
        self.is_stopped = False
        # What the latest turn's share was used for.
        self.records_seen: i64 = 0
        self.bytes_seen: i64 = 0
        # Since the start of the node: published to at least one queue, led nowhere, gone before they were routed.
        self.routed_total: i64 = 0
        self.unroutable_total: i64 = 0
        self.missed_total: i64 = 0
        self._turns: Final = turns
        self._vhost: Final = vhost
        self._recorded: i64 = next_offset if is_recorded else UNKNOWN
        self._messages: Final = RecordMessages(f"topic {source.name!r}")
        # The batch that is open, if one is, ends here; and its message that was refused.
        self._batch_end: i64 = UNKNOWN
        self._message: Message | None = None
        self._message_offset: i64 = 0
        # What it takes in memory besides the partition's own.
        self._open_bytes: i64 = 0
        # Routes by routing key, as long as the topology is of this version.
        self._routes: dict[str, Route] = {}
        self._version: i64 = -1
        self._needs_headers = False
        partition.add_listener(self)
        # What is produced is to be routed as soon as it can be.
        partition.readers_waiting += 1
        if next_offset >= 0:
            self._record()
            turns.wake(self)

    @property
    def lag(self) -> i64:
        """How many offsets are still to be routed."""
        if self.next_offset < 0:
            return 0
        return max(0, self.partition.durable_end - self.next_offset)

    @property
    def has_open_batch(self) -> bool:
        return self._batch_end >= 0

    def begin(self, offset: int) -> None:
        """The place where it begins has been found."""
        if not self.is_stopped and self.next_offset < 0:
            self.next_offset = offset
            self.state = AT_END
            self._record()
            self._turns.wake(self)

    def stop(self) -> None:
        """There is nothing to be routed to any more, or nothing to be routed."""
        if self.is_stopped:
            return
        self.is_stopped = True
        self._close()
        self.partition.remove_listener(self)
        self.partition.readers_waiting -= 1
        if self._recorded >= 0:
            self.next_offset = GONE
            self._record()

    def advanced(self) -> None:
        if self.state == AT_END:
            self._turns.wake(self)

    def loaded(self) -> None:
        if self.state == LOADING:
            self._turns.wake(self)

    # --- Routing ----------------------------------------------------------------------------------------------------

    def route(self, records_max: i64, bytes_max: i64) -> None:
        """Route up to so many records, and a few bytes more than that. `state` says why no more."""
        self.records_seen = 0
        self.bytes_seen = 0
        if self.next_offset < 0 or self.partition.deleted:
            return
        self.state = HAS_MORE
        try:
            while self.state == HAS_MORE and self.records_seen < records_max and self.bytes_seen < bytes_max:
                if self._message is not None or self._batch_end >= 0:
                    self._route_next()
                else:
                    self._open_next()
        finally:
            self._record()

    def pass_over(self) -> None:
        """The record that was to be routed cannot be."""
        if self._message is not None or self._batch_end >= 0:
            self.next_offset = max(self.next_offset, self._message_offset + 1)
        self._message = None
        self.state = HAS_MORE
        self._record()

    def _open_next(self) -> None:
        """Begin to read the batch that has the next offset."""
        partition = self.partition
        if self.next_offset < partition.start_offset:
            self._miss(partition.start_offset)
        if self.next_offset >= partition.stable_end:
            self.state = AT_END
            return
        batch = partition.batch_at(self.next_offset)
        if batch is None:
            self.state = LOADING
            partition.load(self.next_offset)
            return
        partition.load_ahead(batch.end_offset)
        # Batches without anything in them count too: there may be very many of them.
        self.records_seen += 1
        data = batch.data
        if data and not self._is_passed_over(data) and self._messages.open(data):
            self._open_bytes = self._messages.decompressed_bytes
            partition.memory.used += self._open_bytes
            self.bytes_seen += self._open_bytes
            partition.read_bytes += len(data)
            self._batch_end = batch.end_offset
        else:
            self.bytes_seen += len(data) // 16
            self.next_offset = batch.end_offset

    def _is_passed_over(self, data: bytes) -> bool:
        try:
            header = BatchHeader(data)
        except CorruptData as error:
            logger.error("a batch of topic %r makes no sense and is passed over: %s", self.source.name, error)
            return True
        return header.is_control or self.partition.is_aborted(header)

    def _route_next(self) -> None:
        """Route one record of the open batch."""
        message = self._message
        if message is None:
            message = self._read_next()
            if message is None:
                return
        route = self._route_of(message)
        if route.queues:
            if route.may_refuse and _is_refused(route.queues, message):
                self._message = message
                self.state = REFUSED
                return
            self._vhost.publish(route, message)
            self.routed_total += 1
        else:
            self.unroutable_total += 1
        self._message = None
        self.next_offset = self._message_offset + 1

    def _read_next(self) -> Message | None:
        """The next record's message; None where the batch has no more, or this one has been routed before."""
        messages = self._messages
        if not messages.next():
            self.next_offset = max(self.next_offset, self._batch_end)
            self._close()
            return None
        self.records_seen += 1
        if messages.offset < self.next_offset:
            return None
        found = messages.message
        self.bytes_seen += len(found.body)
        self._message_offset = messages.offset
        address = found.address
        if not address.exchange:
            address = self._named(address)
        # To its queues it is new: a time to live begins now.
        return Message(address, found.properties, found.body, self.partition.store.turn.now_ms)

    def _named(self, address: Address) -> Address:
        """Where a record of Kafka's was published to, for those who ask: to its topic."""
        return Address(self.source.name, address.routing_key)

    def _close(self) -> None:
        self._messages.close()
        self.partition.memory.used -= self._open_bytes
        self._open_bytes = 0
        self._batch_end = UNKNOWN
        self._message = None

    def _route_of(self, message: Message) -> Route:
        vhost = self._vhost
        router = vhost.router
        if router.version != self._version:
            self._routes = {}
            self._version = router.version
            self._needs_headers = self.source.looks_at_headers or router.needs_headers(self.source)
        if self._needs_headers:
            return vhost.route_record(self.source, message.address, message.properties)
        key = message.address.routing_key
        known = self._routes.get(key)
        if known is not None:
            return known
        route = vhost.route_record(self.source, message.address, None)
        if router.cacheable:
            if len(self._routes) >= ROUTES_CACHED_MAX:
                self._routes = {}
            self._routes[key] = route
        return route

    def _miss(self, start_offset: i64) -> None:
        """Retention, or an operator, has deleted what was still to be routed."""
        missed = start_offset - self.next_offset
        self.missed_total += missed
        logger.warning(
            "%d records of %r were deleted before they were routed to its bindings", missed, self.partition.name
        )
        self._close()
        self.next_offset = start_offset

    # --- What is kept -----------------------------------------------------------------------------------------------

    def _record(self) -> None:
        """Tell the ledger how far it has come, if that is anything new."""
        ledger = self.partition.ledger
        if self.next_offset == self._recorded or not self.partition.recoverable or ledger.journal is None:
            return
        self._recorded = self.next_offset
        ledger.recorded(CHANGE_ROUTED, encode_cursor(self.partition.log_id, self.next_offset, self.source.cursor))
        self.partition.store.turn.touch()


def _is_refused(queues: list[MessageQueue], message: Message) -> bool:
    """Whether one of them has no room, and wants publishers to try again."""
    size = message_size(message)
    for queue in queues:
        if queue.settings.rejects and not queue.dead_letters_refused() and queue.refuses(size):
            return True
    return False


def encode_cursor(log_id: i64, next_offset: i64, cursor: str) -> bytes:
    """A record of the change ROUTED: log id i64 | next offset i64, -1 for a cursor that is gone | its name."""
    writer = BytesWriter()
    write_i64_be(writer, log_id)
    write_i64_be(writer, next_offset)
    writer.write(cursor.encode("utf-8", "surrogateescape"))
    return writer.getvalue()


def decode_cursor(payload: bytes) -> tuple[int, int, str]:
    """What `encode_cursor` was given. CorruptData."""
    if len(payload) < 16:
        raise CorruptData("a routing cursor is cut short")
    return read_i64_be(payload, 0), read_i64_be(payload, 8), payload[16:].decode("utf-8", "surrogateescape")
