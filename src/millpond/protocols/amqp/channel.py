"""An AMQP channel: publishing, deliveries and their acknowledgement, confirms, transactions.

What happens per message is here and compiled; what happens per method is in `classes/`, one file per AMQP class.

Delivery tags count up from 1 without gaps, so the unsettled deliveries are a list, by tag - `unsettled_base`:

    unsettled_base          first of the list
    unsettled_head          before it everything is settled
    None in the list        settled, or delivered without the need to acknowledge
    stragglers              long unsettled while nearly all after them are settled: taken out of the list, by tag

Confirms: a publish that no journal has to keep is confirmed at the end of the turn; one that it has, when the commit
that covers it is durable. They leave in order, so one `basic.ack` with `multiple` covers all that are due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from librt.strings import read_i16_be, read_i64_be
from mypy_extensions import i64

from millpond.base.errors import (
    AccessRefused,
    FrameFault,
    NotImplementedHere,
    PreconditionFailed,
    SyntaxFault,
    UnexpectedFrame,
)
from millpond.base.limits import QUEUES_COUNTED_MIN, ROUTES_CACHED_MAX, TRANSACTION_BYTES_MAX
from millpond.broker.commits import CommitWaiter
from millpond.broker.exchanges.exchange import Exchange
from millpond.broker.message import MESSAGE_OVERHEAD_BYTES, Address, Message, Properties
from millpond.broker.permitted import TOPIC
from millpond.broker.queues.consumer import Consumer
from millpond.broker.queues.entry import Entry
from millpond.broker.queues.message_queue import MessageQueue
from millpond.broker.vhost import JOURNALED, REFUSED, Route, VirtualHost
from millpond.protocols.amqp.consumer import AmqpConsumer
from millpond.protocols.amqp.properties import BasicProperties, parse_properties
from millpond.protocols.amqp.publish_route import REPLY_TO, PublishRoute, copies_of, without_blind_copies

if TYPE_CHECKING:
    from millpond.protocols.amqp.connection import Connection

CLASS_BASIC: Final = 60

_NO_CONTENT: Final = 0
_AWAIT_HEADER: Final = 1
_AWAIT_BODY: Final = 2

# The settled part at the front of the unsettled list is given back when it is at least this long.
_COMPACT_AT: Final = 4096

# A list of at least this length of which less than an eighth is unsettled is given up for its stragglers: one
# delivery that is never acknowledged must not keep a slot for each that comes after it.
_SPARSE_AT: Final = 4096

# Parts of a body that are shorter are joined as they come.
_BODY_PART_BYTES_MIN: Final = 1024


@final
class Transaction:
    """What a transactional channel has been told since the last commit."""

    def __init__(self) -> None:
        self.routes: list[PublishRoute] = []
        self.messages: list[Message] = []
        # Settlements: the entry, and whether it is acknowledged, rejected or requeued.
        self.entries: list[Entry] = []
        self.outcomes: list[i64] = []
        self.size: i64 = 0


ACKNOWLEDGE: Final = 0
REJECT: Final = 1
REQUEUE: Final = 2


@final
class Channel(CommitWaiter):
    """One open channel of a connection."""

    def __init__(self, connection: Connection, number: i64, vhost: VirtualHost) -> None:
        self.connection: Final = connection
        self.number: Final[i64] = number
        self.vhost: Final = vhost
        self.closing = False
        self.flow_active = True

        self.consumers: dict[str, AmqpConsumer] = {}
        self.next_delivery_tag: i64 = 1
        self.unsettled: list[Entry | None] = []
        self.unsettled_base: i64 = 1
        self.unsettled_head: i64 = 0
        self.unsettled_count: i64 = 0
        # In the order of their tags, which are all below those of the list.
        self.stragglers: dict[int, Entry] = {}
        self.prefetch: i64 = 0
        self.prefetch_global: i64 = 0

        self._routes: dict[bytes, PublishRoute] = {}
        self._last_payload = b""
        self._last_route: PublishRoute | None = None
        self._access_version = -1
        # The properties that came last, as they came and as they are kept, and the further routing keys they name.
        self._last_raw = b""
        self._last_properties: BasicProperties | None = None
        self._copies: list[str] | None = None
        # Where answers to this channel's direct reply-to go.
        self.reply_queue: MessageQueue | None = None
        self._content = _NO_CONTENT
        self._route: PublishRoute | None = None
        self._properties: BasicProperties | None = None
        self._body_size: i64 = 0
        self._body_parts: list[bytes] = []
        self._body_received: i64 = 0

        self.confirming = False
        self._published_tag: i64 = 0
        self._confirmed_tag: i64 = 0
        # Up to here everything may be confirmed at the end of the turn.
        self._confirmable_tag: i64 = 0
        # Runs of publishes that wait for a commit: the last tag of each, and the commit.
        self._waiting_tags: list[i64] = []
        self._waiting_commits: list[i64] = []
        self._is_waiting = False

        self.transaction: Transaction | None = None
        self.commit_ok_sequence: i64 = 0

        self.last_queue_name = ""
        self.published_total: i64 = 0

    # --- Publishing ---------------------------------------------------------------------------------------------

    def begin_publish(self, payload: bytes) -> None:
        """A `basic.publish` has arrived: its payload after class and method. Content follows."""
        if self._content != _NO_CONTENT:
            raise self.unexpected_frame()
        route = self._last_route
        if (
            route is None
            or payload != self._last_payload
            or route.route.version != self.vhost.router.version
            or self._access_version != self.connection.access.version
        ):
            route = self._find_route(payload)
        self._route = route
        self._content = _AWAIT_HEADER

    def _find_route(self, payload: bytes) -> PublishRoute:
        if self._access_version != self.connection.access.version:
            self._routes.clear()
            self._access_version = self.connection.access.version
        route = self._routes.get(payload)
        if route is None or route.route.version != self.vhost.router.version:
            route = self._new_route(payload)
            if route.cacheable:
                if len(self._routes) >= ROUTES_CACHED_MAX:
                    self._routes.clear()
                self._routes[payload] = route
        self._last_payload = payload
        self._last_route = route
        return route

    def _new_route(self, payload: bytes) -> PublishRoute:
        # ticket u16 | exchange | routing key | bits: mandatory, immediate
        size: i64 = len(payload)
        if size < 5:
            raise SyntaxFault("a publish that is cut short")
        exchange_end = 3 + i64(payload[2])
        if exchange_end >= size:
            raise SyntaxFault("a publish that is cut short")
        key_end = exchange_end + 1 + i64(payload[exchange_end])
        if key_end + 1 != size:
            raise SyntaxFault("a publish that is cut short or too long")
        name = payload[3:exchange_end].decode("utf-8", "surrogateescape")
        routing_key = payload[exchange_end + 1 : key_end].decode("utf-8", "surrogateescape")
        bits = payload[key_end]
        if bits & 2:
            raise NotImplementedHere("immediate=true")
        self.connection.check_write("exchange", name)
        exchange = self.vhost.exchange(name)
        if exchange.internal:
            raise AccessRefused(f"cannot publish to internal {self.vhost.exchange_resource(name)}")
        if exchange.type == TOPIC:
            self.connection.check_topics(name, [routing_key])
        address = Address(name, routing_key)
        router = self.vhost.router
        if router.needs_headers(exchange):
            return PublishRoute(Route(address, exchange, [], router.version), bits & 1 != 0, True, True)
        route = self._routed(exchange, address, None, None)
        return PublishRoute(route, bits & 1 != 0, router.cacheable, False)

    def content_header(self, data: bytes, start: i64, end: i64) -> None:
        """A content header frame: its payload is data[start:end]."""
        if self._content != _AWAIT_HEADER:
            raise self.unexpected_frame()
        if end - start < 14:
            raise SyntaxFault("a content header that is cut short")
        content_class = i64(read_i16_be(data, start)) & 0xFFFF
        if content_class != CLASS_BASIC:
            raise UnexpectedFrame(
                f"expected content header for class {CLASS_BASIC}, got one for class {content_class} instead"
            )
        size = read_i64_be(data, start + 4)
        if size < 0 or size > self.connection.message_bytes_max:
            self._content = _NO_CONTENT
            raise PreconditionFailed(
                f"message size {_unsigned(size)} is larger than configured max size {self.connection.message_bytes_max}"
            )
        raw = data[start + 12 : end]
        properties = self._last_properties
        if properties is None or raw != self._last_raw:
            # The publish is given up where they are refused; its body frames must not be.
            self._content = _NO_CONTENT
            properties = parse_properties(raw)
            user_id = properties.user_id()
            if user_id is not None and user_id != self.connection.user and not self.connection.may_impersonate():
                raise PreconditionFailed(
                    f"user_id property set to '{user_id}' but authenticated user was '{self.connection.user}'"
                )
            self._copies = copies_of(properties)
            if self._copies is not None:
                properties = without_blind_copies(properties)
            if properties.reply_to() == REPLY_TO:
                if self.reply_queue is None:
                    raise PreconditionFailed("fast reply consumer does not exist")
                properties = properties.with_reply_to(self.reply_queue.name)
            self._last_raw = raw
            self._last_properties = properties
        self._properties = properties
        self._body_size = size
        self._body_received = 0
        if size == 0:
            self._complete(b"")
        else:
            self._content = _AWAIT_BODY

    def content_body(self, data: bytes, start: i64, end: i64) -> None:
        """A body frame: its payload is data[start:end]."""
        if self._content != _AWAIT_BODY:
            raise self.unexpected_frame()
        received = self._body_received + (end - start)
        if received > self._body_size:
            raise FrameFault("content body frame exceeds remaining content size")
        if received == self._body_size:
            if self._body_received == 0:
                self._complete(data[start:end])
            else:
                self._body_parts.append(data[start:end])
                body = b"".join(self._body_parts)
                self._body_parts = []
                self.connection.buffer(-self._body_received)
                self._body_received = 0
                self._complete(body)
        else:
            parts = self._body_parts
            last = len(parts) - 1
            # A body in tiny frames must not take many times its size: an object each, also for empty ones.
            if last >= 0 and len(parts[last]) < _BODY_PART_BYTES_MIN:
                parts[last] += data[start:end]
            else:
                parts.append(data[start:end])
            self._body_received = received
            self.connection.buffer(end - start)

    def unexpected_frame(self) -> UnexpectedFrame:
        """The error for a frame that is not what the channel waits for, in RabbitMQ's words."""
        if self._content == _AWAIT_HEADER:
            return UnexpectedFrame(
                f"expected content header for class {CLASS_BASIC}, got non content header frame instead"
            )
        if self._content == _AWAIT_BODY:
            return UnexpectedFrame("expected content body, got non content body frame instead")
        return UnexpectedFrame("expected method frame, got non method frame instead")

    @property
    def expects_content(self) -> bool:
        """Whether a publish waits for its content, so that no method may come."""
        return self._content != _NO_CONTENT

    def properties_forgotten(self) -> None:
        """What the properties that came last mean has changed."""
        self._last_properties = None

    def _complete(self, body: bytes) -> None:
        self._content = _NO_CONTENT
        route = self._route
        properties = self._properties
        if route is None or properties is None:
            raise UnexpectedFrame("content without a publish")
        if self._copies is not None:
            self.connection.check_topics(route.route.address.exchange, self._copies)
        self.published_total += 1
        message = Message(route.route.address, properties, body, self.connection.turn.now_ms)
        if self._copies is not None:
            route = PublishRoute(route.route, route.mandatory, False, True, self._copies)
        transaction = self.transaction
        if transaction is not None:
            self._buffer(transaction, route, message)
        else:
            self._publish(route, message)

    def _publish(self, publish: PublishRoute, message: Message) -> i64:
        route = publish.route
        if publish.needs_headers or route.version != self.vhost.router.version:
            route = self._routed(route.exchange, route.address, message.properties, publish.copies)
        self.vhost.published_total += 1
        outcome: i64 = 0
        count: i64 = len(route.queues)
        if count > 0:
            if count >= QUEUES_COUNTED_MIN:
                self.connection.spend(count)
            outcome = self.vhost.publish(route, message)
        else:
            self.vhost.unroutable_total += 1
            if publish.mandatory:
                self._return(message)
        if self.confirming:
            self._published_tag += 1
            self._to_be_confirmed(self._published_tag, outcome)
        return outcome

    def _routed(
        self, exchange: Exchange, address: Address, properties: Properties | None, copies: list[str] | None
    ) -> Route:
        """Where a message goes, which may take long to find out: then the connection's next frames wait."""
        router = self.vhost.router
        before = router.effort
        route = self.vhost.route(exchange, address, properties, copies)
        self.connection.spend(router.effort - before)
        return route

    def _return(self, message: Message) -> None:
        self.connection.write_return(self.number, message)

    # --- Confirms -----------------------------------------------------------------------------------------------

    def _to_be_confirmed(self, tag: i64, outcome: i64) -> None:
        waiting = self._waiting_tags
        if outcome == REFUSED:
            # What is before it and due goes first, so that no ack names it as its last. A later one with `multiple`
            # may pass over it: it has been answered by then.
            self.write_confirms()
            self.connection.write_nack(self.number, tag, False)
            if not waiting:
                self._confirmed_tag = tag
                self._confirmable_tag = tag
        elif outcome == JOURNALED:
            ledger = self.connection.ledger
            ledger.sync_wanted = True
            sequence = ledger.sequence()
            last = len(waiting) - 1
            if last >= 0 and self._waiting_commits[last] == sequence:
                waiting[last] = tag
            else:
                waiting.append(tag)
                self._waiting_commits.append(sequence)
            if not self._is_waiting:
                self._is_waiting = True
                self.connection.commits.wait(self)
        elif waiting:
            # Confirms keep their order, so it goes with the one before it.
            waiting[len(waiting) - 1] = tag
        else:
            self._confirmable_tag = tag
            if not self.connection.turn_pending:
                self.connection.touch()
            self.connection.confirms_due(self)

    def committed(self, durable_sequence: i64) -> bool:
        if self.closing:
            self._is_waiting = False
            return False
        if 0 < self.commit_ok_sequence <= durable_sequence:
            self.commit_ok_sequence = 0
            self.connection.transaction_committed(self)
        due: i64 = 0
        count: i64 = len(self._waiting_tags)
        while due < count and self._waiting_commits[due] <= durable_sequence:
            due += 1
        if due > 0:
            self._confirmable_tag = self._waiting_tags[due - 1]
            del self._waiting_tags[:due]
            del self._waiting_commits[:due]
            self.connection.touch()
            self.connection.confirms_due(self)
        self._is_waiting = len(self._waiting_tags) > 0 or self.commit_ok_sequence > 0
        return self._is_waiting

    def commit_failed(self) -> None:
        self._is_waiting = False
        if self.closing:
            return
        self.write_confirms()
        if self._waiting_tags:
            tag = self._waiting_tags[len(self._waiting_tags) - 1]
            self._waiting_tags = []
            self._waiting_commits = []
            self._confirmed_tag = tag
            self._confirmable_tag = tag
            self.connection.write_nack(self.number, tag, True)
            self.connection.touch()
        if self.commit_ok_sequence > 0:
            self.commit_ok_sequence = 0
            self.connection.transaction_failed(self)

    @property
    def unconfirmed_count(self) -> i64:
        """Publishes that have not been confirmed yet."""
        return self._published_tag - self._confirmed_tag

    def write_confirms(self) -> None:
        """Write the ack for what may be confirmed now."""
        tag = self._confirmable_tag
        if tag > self._confirmed_tag:
            self.connection.write_ack(self.number, tag, tag - self._confirmed_tag > 1)
            self._confirmed_tag = tag

    # --- Deliveries ---------------------------------------------------------------------------------------------

    def can_deliver(self, consumer: AmqpConsumer) -> bool:
        """Whether the channel and its connection take another delivery now."""
        if not self.flow_active or (self.prefetch_global > 0 and self.unsettled_count >= self.prefetch_global):
            return False
        return self.connection.can_write(consumer)

    def skip_delivery_tag(self) -> i64:
        """The tag of a delivery that needs no acknowledgement."""
        tag = self.next_delivery_tag
        self.next_delivery_tag = tag + 1
        if self.unsettled_head == len(self.unsettled):
            self.unsettled_base += 1
            if self.unsettled:
                self.unsettled_base += self.unsettled_head
                self.unsettled = []
                self.unsettled_head = 0
        else:
            self.unsettled.append(None)
            self._set_aside_if_sparse()
        return tag

    def track(self, entry: Entry) -> i64:
        """Give a delivery that must be acknowledged its tag."""
        tag = self.next_delivery_tag
        self.next_delivery_tag = tag + 1
        entry.delivery_tag = tag
        self.unsettled.append(entry)
        self.unsettled_count += 1
        return tag

    def acknowledge(self, tag: i64, multiple: bool) -> None:
        """`basic.ack`."""
        if self.transaction is not None:
            self._settle_in_transaction(self.transaction, self._collect(tag, multiple), ACKNOWLEDGE)
        elif not multiple:
            entry = self._take_one(tag)
            queue = entry.queue
            if queue is not None:
                queue.settle(entry)
        else:
            for entry in self._collect(tag, True):
                queue = entry.queue
                if queue is not None:
                    queue.settle(entry)
        if self.prefetch_global > 0:
            self.wake_consumers()

    def refuse(self, tag: i64, multiple: bool, requeue: bool) -> None:
        """`basic.nack` and `basic.reject`."""
        entries = self._collect(tag, multiple)
        outcome = REQUEUE if requeue else REJECT
        if self.transaction is not None:
            self._settle_in_transaction(self.transaction, entries, outcome)
        elif requeue:
            give_back(entries, False)
        else:
            for entry in entries:
                queue = entry.queue
                if queue is not None:
                    queue.reject(entry)
        if self.prefetch_global > 0:
            self.wake_consumers()

    def recover(self) -> None:
        """`basic.recover` with requeue: everything unsettled goes back to its queue."""
        give_back(self._collect(0, True), False)
        if self.prefetch_global > 0:
            self.wake_consumers()

    def _take_one(self, tag: i64) -> Entry:
        index = tag - self.unsettled_base
        unsettled = self.unsettled
        entry: Entry | None = None
        if self.unsettled_head <= index < len(unsettled):
            entry = unsettled[index]
        if entry is None:
            entry = self.stragglers.pop(int(tag), None)
            if entry is None:
                raise _unknown_tag(tag)
            self.unsettled_count -= 1
            return entry
        unsettled[index] = None
        self.unsettled_count -= 1
        if index == self.unsettled_head:
            self._advance(index + 1)
        else:
            self._set_aside_if_sparse()
        return entry

    def _collect(self, tag: i64, multiple: bool) -> list[Entry]:
        """Take the deliveries that `tag` names out of the unsettled ones; 0 with `multiple` names all."""
        if not multiple:
            return [self._take_one(tag)]
        unsettled = self.unsettled
        end: i64 = len(unsettled)
        if tag != 0:
            index = tag - self.unsettled_base
            if self.unsettled_head <= index < end and unsettled[index] is not None:
                end = index + 1
            elif int(tag) in self.stragglers:
                end = self.unsettled_head
            else:
                raise _unknown_tag(tag)
        taken: list[Entry] = []
        if self.stragglers:
            taken = self._take_stragglers(tag)
        for position in range(self.unsettled_head, end):
            entry = unsettled[position]
            if entry is not None:
                unsettled[position] = None
                taken.append(entry)
        self.unsettled_count -= len(taken)
        self._advance(end)
        return taken

    def _take_stragglers(self, tag: i64) -> list[Entry]:
        """Those up to `tag`, or all where it is 0."""
        tags: list[int] = []
        for straggler in self.stragglers:
            if tag != 0 and straggler > tag:
                break
            tags.append(straggler)
        return [self.stragglers.pop(straggler) for straggler in tags]

    def _set_aside_if_sparse(self) -> None:
        end: i64 = len(self.unsettled)
        if end - self.unsettled_head < _SPARSE_AT or self.unsettled_count * 8 > end - self.unsettled_head:
            return
        for index in range(self.unsettled_head, end):
            entry = self.unsettled[index]
            if entry is not None:
                self.stragglers[int(self.unsettled_base + index)] = entry
        self.unsettled = []
        self.unsettled_base += end
        self.unsettled_head = 0

    def _advance(self, head: i64) -> None:
        unsettled = self.unsettled
        end: i64 = len(unsettled)
        while head < end and unsettled[head] is None:
            head += 1
        if head == end:
            self.unsettled_base += head
            self.unsettled = []
            head = 0
        elif head >= _COMPACT_AT and head * 2 >= end:
            del unsettled[:head]
            self.unsettled_base += head
            head = 0
        self.unsettled_head = head

    def wake_consumers(self) -> None:
        """Something that held all consumers of the channel back has changed."""
        for consumer in self.consumers.values():
            consumer.queue.wake(consumer)

    def consumer_cancelled(self, consumer: AmqpConsumer) -> None:
        """A consumer's queue is gone."""
        self.consumers.pop(consumer.tag, None)
        self.connection.consumer_gone(consumer)
        self.connection.notify_cancel(self.number, consumer.tag)

    def cancel(self, consumer: AmqpConsumer) -> None:
        """End a consumer that its client has not asked to end, and tell the client."""
        # It is forgotten first: removing the last consumer may delete its queue.
        self.consumer_cancelled(consumer)
        consumer.queue.remove_consumer(consumer)

    def overdue(self, now_ms: i64, default_ms: i64) -> i64:
        """The timeout that an unsettled delivery has exceeded; -1 where there is none. `default_ms` is for those whose
        consumer and queue say nothing."""
        if self.unsettled_count == 0:
            return -1
        for straggler in self.stragglers.values():
            timeout = _timeout_of(straggler, default_ms)
            if now_ms - straggler.delivered_ms > timeout:
                return timeout
        shortest = default_ms
        held: i64 = 0
        for consumer in self.consumers.values():
            shortest = min(shortest, _consumer_timeout(consumer, default_ms))
            held += consumer.unsettled
        if held < self.unsettled_count:
            # By `basic.get`, or by consumers that are gone: how long theirs may be only each of them can say.
            shortest = -1
        for index in range(self.unsettled_head, len(self.unsettled)):
            entry = self.unsettled[index]
            if entry is not None:
                age = now_ms - entry.delivered_ms
                if age <= shortest:
                    # Those after it are younger.
                    break
                timeout = _timeout_of(entry, default_ms)
                if age > timeout:
                    return timeout
        return -1

    def shut(self, failed: bool) -> None:
        """Stop consuming and give back what is unsettled, in order; nothing is delivered or confirmed after. `failed`
        says that this was not the client's wish."""
        self.closing = True
        consumers = list(self.consumers.values())
        self.consumers = {}
        # First what is unsettled: an auto-delete queue goes with its last consumer.
        unsettled = self._collect(0, True)
        if self.transaction is not None:
            unsettled.extend(self.transaction.entries)
            self.connection.buffer(-self.transaction.size)
            self.transaction = None
        give_back(unsettled, failed)
        for consumer in consumers:
            consumer.queue.remove_consumer(consumer)
            self.connection.consumer_gone(consumer)
        self.connection.buffer(-self._body_received)
        self._body_received = 0
        self._body_parts = []
        self._routes = {}
        self._last_route = None
        self._route = None

    # --- Transactions -------------------------------------------------------------------------------------------

    def _buffer(self, transaction: Transaction, route: PublishRoute, message: Message) -> None:
        size: i64 = len(message.body) + len(message.properties.raw) + MESSAGE_OVERHEAD_BYTES
        transaction.size += size
        self.connection.buffer(size)
        if transaction.size > TRANSACTION_BYTES_MAX:
            raise PreconditionFailed(f"a transaction of more than {TRANSACTION_BYTES_MAX} bytes")
        transaction.routes.append(route)
        transaction.messages.append(message)

    def _settle_in_transaction(self, transaction: Transaction, entries: list[Entry], outcome: i64) -> None:
        # Until the commit they count against the prefetch limits as before.
        self.unsettled_count += len(entries)
        for entry in entries:
            transaction.entries.append(entry)
            transaction.outcomes.append(outcome)

    def commit(self) -> None:
        """`tx.commit`: do all of it, in one turn, which the journal keeps as a whole or not at all.

        The answer comes through `Connection.transaction_committed`, when it is durable.
        """
        transaction = self.transaction
        if transaction is None:
            raise PreconditionFailed("channel is not transactional")
        self.transaction = Transaction()
        self.connection.buffer(-transaction.size)
        ledger = self.connection.ledger
        is_refused = False
        for index in range(len(transaction.messages)):
            if self._publish(transaction.routes[index], transaction.messages[index]) == REFUSED:
                is_refused = True
        self.unsettled_count -= len(transaction.entries)
        for index in range(len(transaction.entries)):
            entry = transaction.entries[index]
            outcome = transaction.outcomes[index]
            queue = entry.queue
            if queue is None:
                continue
            if outcome == ACKNOWLEDGE:
                queue.settle(entry)
            elif outcome == REJECT:
                queue.reject(entry)
            else:
                queue.give_back([entry], False)
        if self.prefetch_global > 0:
            self.wake_consumers()
        if is_refused:
            # The rest is done all the same, as in RabbitMQ.
            raise PreconditionFailed("partial tx completion")
        if not ledger.has_changes():
            self.connection.transaction_committed(self)
            return
        ledger.sync_wanted = True
        self.commit_ok_sequence = ledger.sequence()
        if not self._is_waiting:
            self._is_waiting = True
            self.connection.commits.wait(self)

    def rollback(self) -> None:
        """`tx.rollback`: forget the publishes; what was acknowledged is unsettled again, under its old tag."""
        transaction = self.transaction
        if transaction is None:
            raise PreconditionFailed("channel is not transactional")
        self.transaction = Transaction()
        self.connection.buffer(-transaction.size)
        if transaction.entries:
            self._restore(transaction.entries)

    def _restore(self, entries: list[Entry]) -> None:
        """Put deliveries that were taken out of the unsettled ones back under their tags."""
        unsettled = self.unsettled
        restored: dict[int, Entry] = {}
        for entry in entries:
            index = entry.delivery_tag - self.unsettled_base
            if self.unsettled_head <= index < len(unsettled):
                unsettled[index] = entry
            else:
                restored[int(entry.delivery_tag)] = entry
        if restored:
            restored.update(self.stragglers)
            self.stragglers = {tag: restored[tag] for tag in sorted(restored)}

    def select_confirms(self) -> None:
        """`confirm.select`."""
        if self.transaction is not None:
            raise PreconditionFailed("cannot switch from tx to confirm mode")
        self.confirming = True

    def select_transactions(self) -> None:
        """`tx.select`."""
        if self.confirming:
            raise PreconditionFailed("cannot switch from confirm to tx mode")
        if self.transaction is None:
            self.transaction = Transaction()


def _unsigned(number: i64) -> int:
    """A number of 64 bits as its sender meant it."""
    return int(number) & 0xFFFFFFFFFFFFFFFF


def _unknown_tag(tag: i64) -> PreconditionFailed:
    return PreconditionFailed(f"unknown delivery tag {_unsigned(tag)}")


def _timeout_of(entry: Entry, default_ms: i64) -> i64:
    """How long a delivery may be unsettled."""
    consumer = entry.consumer
    if consumer is not None:
        return _consumer_timeout(consumer, default_ms)
    queue = entry.queue
    if queue is not None and queue.settings.consumer_timeout_ms >= 0:
        return queue.settings.consumer_timeout_ms
    return default_ms


def _consumer_timeout(consumer: Consumer, default_ms: i64) -> i64:
    if consumer.timeout_ms >= 0:
        return consumer.timeout_ms
    timeout = consumer.queue.settings.consumer_timeout_ms
    return timeout if timeout >= 0 else default_ms


def give_back(entries: list[Entry], failed: bool) -> None:
    """Return deliveries to their queues, each queue's together. `failed` says that the client did not wish it."""
    by_queue: dict[MessageQueue, list[Entry]] = {}
    for entry in entries:
        queue = entry.queue
        if queue is not None:
            together = by_queue.get(queue)
            if together is None:
                by_queue[queue] = [entry]
            else:
                together.append(entry)
    for queue, together in by_queue.items():
        queue.give_back(together, failed)
