"""A virtual host: exchanges, queues, bindings, and the way of a message from one to the other.

Every change is decided here, recorded in the catalog where it is durable, and applied. Errors are `PeerError`s with
RabbitMQ's wording. Permissions are the caller's to check: they belong to a user, and there is none here.
"""

from __future__ import annotations

import logging
import secrets
from functools import partial
from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64

from millpond.base.clock import Timer
from millpond.base.errors import (
    AccessRefused,
    CorruptData,
    LimitExceeded,
    NotFound,
    PeerError,
    PreconditionFailed,
    ResourceLocked,
)
from millpond.broker.arguments import (
    check_queue_arguments,
    compare_exchange_arguments,
    compare_flag,
    compare_queue_arguments,
    keeps_history,
    queue_settings,
    queue_type,
)
from millpond.broker.dead_letter import DeadLetter, carbon_copies, dead_lettered, is_cycle
from millpond.broker.exchanges.delayed import DelayedExchange
from millpond.broker.exchanges.exchange import Binding, Destination, Exchange
from millpond.broker.exchanges.registry import create_exchange
from millpond.broker.exchanges.router import Router
from millpond.broker.exchanges.topic_source import TopicSource
from millpond.broker.groups.coordinator import ConsumerGroups
from millpond.broker.groups.topic_directory import VhostTopics
from millpond.broker.message import Address, Message, Properties
from millpond.broker.policies import Policies, effective_arguments
from millpond.broker.queues.backlog import Backlog
from millpond.broker.queues.delay_queue import DELAY_QUEUE_PREFIX, DelayQueue
from millpond.broker.queues.entry import message_size
from millpond.broker.queues.message_queue import MessageQueue, QueueContext, QueueOwner
from millpond.broker.queues.queue import REASON_LENGTH, REASON_REJECTED, Queue
from millpond.broker.queues.registry import QUEUE_TYPES
from millpond.broker.queues.settings import TYPE_CLASSIC, TYPE_SHARE, TYPE_STREAM, QueueSettings
from millpond.broker.shares.coordinator import ShareGroups, Shares
from millpond.broker.shares.members import MemberWatcher
from millpond.broker.shares.share_queue import ShareQueue, check_source
from millpond.broker.streams.stream_arguments import compare_with_topic, configs_of
from millpond.broker.streams.stream_names import StreamNames, topic_behind
from millpond.broker.streams.stream_queue import StreamQueue
from millpond.broker.streams.topic import Topic
from millpond.broker.streams.topic_routing import TopicRouting
from millpond.broker.streams.topics import TopicOwner, Topics
from millpond.broker.transactions.coordinator import Transactions
from millpond.catalog.rows import BindingRow, ExchangeRow, PolicyRow, QueueRow

if TYPE_CHECKING:
    from millpond.broker.streams.topic import Topic
    from millpond.catalog.catalog import Catalog

logger = logging.getLogger(__name__)

# What became of a published message: a queue refused it; all queues have it; the journal will have it too.
REFUSED: Final = -1
ACCEPTED: Final = 0
JOURNALED: Final = 1

RESERVED_PREFIX: Final = "amq."
GENERATED_PREFIX: Final = "amq.gen"
REPLY_PREFIX: Final = "amq.rabbitmq.reply-to."


@final
class Route:
    """Where messages published to one exchange with one routing key go, as long as the topology is `version`."""

    def __init__(self, address: Address, exchange: Exchange, queues: list[MessageQueue], version: i64) -> None:
        self.address: Final = address
        self.exchange: Final = exchange
        self.queues: Final = queues
        # Where messages without a priority lie that the journal is to be told of.
        self.recoverable: Final[list[Backlog]] = [
            queue.lowest_backlog() for queue in queues if queue.recoverable and not queue.journals_itself
        ]
        self.has_priorities: Final = any([queue.settings.priority_max > 0 for queue in queues])
        themselves = [queue for queue in queues if queue.recoverable and queue.journals_itself]
        self.has_streams: Final = any([not queue.journals_persistent_only for queue in themselves])
        self.has_delays: Final = any([queue.journals_persistent_only for queue in themselves])
        self.version: Final[i64] = version
        self.may_refuse: Final = any([queue.settings.rejects for queue in queues])

    def recoverable_for(self, message: Message) -> list[Backlog]:
        """Where a message with a priority lies that the journal is to be told of."""
        return [queue.backlog_for(message) for queue in self.queues if queue.recoverable and not queue.journals_itself]


@final
class VirtualHost(QueueOwner, TopicOwner):
    """A name space of exchanges and queues; a stream of AMQP's is a topic of Kafka's.

    `queues` are those that are no streams; `find_queue` finds these too.
    """

    def __init__(
        self,
        name: str,
        context: QueueContext,
        catalog: Catalog,
        groups: ConsumerGroups,
        shares: ShareGroups,
        routing: TopicRouting,
        transactions: Transactions,
    ) -> None:
        self.name: Final = name
        self.context: Final = context
        self.catalog: Final = catalog
        self.queues: Final[dict[str, MessageQueue]] = {}
        self.groups: Final = groups.add(name, self.has_topic, VhostTopics(self))
        self.shares: Final[Shares] = shares.add(name)
        self.groups.store.configs = self.shares.configs
        self.topics: Final = Topics(name, self.queues, context, catalog, self)
        self.transactions: Final = transactions.add(name, self.topics, self.groups)
        self.topics.on_partitions_added = self.shares.partitions_added
        self.shares.attach(self.topics)
        self.groups.shares.watchers.append(MemberWatcher(self.shares))
        # Where messages of delayed exchanges wait, by the exchange's name. Not among `queues`: clients see none of it.
        self.delay_queues: dict[str, DelayQueue] = {}
        # Of queues that expire when nobody uses them.
        self._expiries: dict[MessageQueue, Timer] = {}
        self.policies: Final = Policies()
        self.streams: Final = StreamNames(self, context, self.policies, self.queues, self.topics.by_name)
        self.router: Final = Router(self.queues, self.streams)
        # Topics as exchanges.
        self.sources: Final = routing.add(self)
        # What administrators say about it; nothing is done with it.
        self.description = ""
        self.tags: tuple[str, ...] = ()
        # The type of queues whose declaration names none, where such a queue can be of this type.
        self.default_queue_type = TYPE_CLASSIC
        # The limits of RabbitMQ's `vhost-limits`; -1 where there is none.
        self.queues_max: i64 = -1
        self.connections_max: i64 = -1
        # The only partition of a topic that is about to get more of them.
        self._grown: MessageQueue | None = None
        # Of `queues`, how many are for direct reply-to: clients see no queues in them, and no limit counts them.
        self._reply_queues: i64 = 0
        self.published_total: i64 = 0
        self.unroutable_total: i64 = 0

    def queue_resource(self, name: str) -> str:
        """How RabbitMQ's texts call a queue."""
        return f"queue '{name}' in vhost '{self.name}'"

    def exchange_resource(self, name: str) -> str:
        """How RabbitMQ's texts call an exchange."""
        return f"exchange '{name}' in vhost '{self.name}'"

    def has_topic(self, name: str) -> bool:
        """Whether a queue or a topic has this name: consumers may have an offset in it."""
        return name in self.topics.by_name or name in self.queues

    # --- Publishing ---------------------------------------------------------------------------------------------

    def route(
        self,
        exchange: Exchange,
        address: Address,
        properties: Properties | None,
        copies: list[str] | None = None,
    ) -> Route:
        """Where a message goes. It may be kept while `router.version` is the route's, if `router.cacheable`.

        `properties` may be None where `router.needs_headers` denies. `copies` are further routing keys; a queue that
        several of them reach gets the message once.
        """
        headers = properties.headers() if properties is not None else None
        queues = self._reached(exchange, address, headers, copies, properties)
        return Route(address, exchange, queues, self.router.version)

    def _reached(
        self,
        exchange: Exchange,
        address: Address,
        headers: dict[str, object] | None,
        copies: list[str] | None,
        properties: Properties | None,
    ) -> list[MessageQueue]:
        if isinstance(exchange, TopicSource):
            return self._appended(exchange.name)
        return self._matched(exchange, address, headers, copies, properties)

    def _appended(self, topic: str) -> list[MessageQueue]:
        """What is published to a topic as to an exchange becomes its record, and comes later to what is bound to it."""
        self.router.cacheable = True
        queue = self.streams.stream(topic)
        return [queue] if queue is not None else []

    def route_record(self, source: TopicSource, address: Address, properties: Properties | None) -> Route:
        """As `route`, for a record of a topic: to what is bound to it. It never comes back to the topic."""
        headers = properties.headers() if properties is not None else None
        queues: list[MessageQueue] = []
        for queue in self._matched(source, address, headers, None, properties):
            topic = topic_behind(queue)
            if topic is None or not self.sources.leads_back(topic, source.name):
                queues.append(queue)
        return Route(address, source, queues, self.router.version)

    def _matched(
        self,
        exchange: Exchange,
        address: Address,
        headers: dict[str, object] | None,
        copies: list[str] | None,
        properties: Properties | None,
    ) -> list[MessageQueue]:
        queues: list[MessageQueue] = []
        for destination in self.router.route(exchange, address.routing_key, headers, copies, properties):
            if isinstance(destination, MessageQueue):
                queues.append(destination)
        return queues

    def publish(self, route: Route, message: Message) -> i64:
        """Put `message` into the queues of `route`: REFUSED, ACCEPTED or JOURNALED."""
        if route.may_refuse:
            return self._publish_unless_refused(route.queues, message)
        for queue in route.queues:
            queue.publish(message)
        if message.properties.persistent and route.recoverable:
            recoverable = route.recoverable
            if route.has_priorities and message.properties.priority > 0:
                recoverable = route.recoverable_for(message)
            self.context.ledger.published(message, recoverable)
            return JOURNALED
        # What no journal is told of must not wait for a commit: there may be none.
        return JOURNALED if route.has_streams or (route.has_delays and message.properties.persistent) else ACCEPTED

    def _publish_unless_refused(self, queues: list[MessageQueue], message: Message) -> i64:
        outcome: i64 = ACCEPTED
        size = message_size(message)
        recoverable: list[Backlog] = []
        refused: list[MessageQueue] = []
        accepting: list[MessageQueue] = []
        # All are asked first: to find out, a queue may let messages go, which may be dead-lettered to another of these.
        for queue in queues:
            if queue.refuses(size):
                refused.append(queue)
            else:
                accepting.append(queue)
        for queue in accepting:
            queue.publish(message)
            if queue.journals_itself:
                if queue.recoverable and (message.properties.persistent or not queue.journals_persistent_only):
                    outcome = JOURNALED
            elif queue.recoverable and message.properties.persistent:
                recoverable.append(queue.backlog_for(message))
        if recoverable:
            self.context.ledger.published(message, recoverable)
            outcome = JOURNALED
        for queue in refused:
            outcome = REFUSED
            if queue.dead_letters_refused():
                self.dead_letter(queue, message, REASON_LENGTH)
        return outcome

    def dead_letter(self, queue: MessageQueue, message: Message, reason: str) -> None:
        name = queue.settings.dead_letter_exchange
        exchange = self.found_exchange(name) if name is not None else None
        if exchange is not None:
            dead = self._dead(queue, message, reason, exchange)
            self._publish_unless_refused(self._dead_letter_queues(queue, dead, reason, exchange), dead.message)

    def dead_letter_surely(self, queue: MessageQueue, message: Message, reason: str, done: set[str]) -> bool:
        name = queue.settings.dead_letter_exchange
        exchange = self.found_exchange(name) if name is not None else None
        if exchange is None:
            return False
        dead = self._dead(queue, message, reason, exchange)
        targets = self._dead_letter_queues(queue, dead, reason, exchange)
        for target in targets:
            if target.name not in done and self._publish_unless_refused([target], dead.message) != REFUSED:
                done.add(target.name)
        return bool(targets) and all([target.name in done for target in targets])

    def route_delayed(self, queue: MessageQueue, message: Message) -> None:
        if not isinstance(queue, DelayQueue):
            return
        copies = carbon_copies(message.properties.headers())
        route = self.route(queue.exchange, message.address, message.properties, copies)
        if route.queues:
            self._publish_unless_refused(route.queues, message)
        else:
            self.unroutable_total += 1

    def _dead(self, queue: MessageQueue, message: Message, reason: str, exchange: Exchange) -> DeadLetter:
        """The message as it goes to the dead-letter exchange."""
        now_ms = int(self.context.turn.now_ms)
        key = queue.settings.dead_letter_routing_key
        return dead_lettered(message, queue.name, reason, exchange.name, key, now_ms)

    def _dead_letter_queues(
        self, queue: MessageQueue, dead: DeadLetter, reason: str, exchange: Exchange
    ) -> list[MessageQueue]:
        headers, letter = dead.headers, dead.message
        queues = self._reached(exchange, letter.address, headers, carbon_copies(headers), letter.properties)
        if reason == REASON_REJECTED:
            return queues
        targets = [target for target in queues if not is_cycle(target.name, headers)]
        if len(targets) != len(queues):
            logger.warning("a message from %s was dropped: it would be dead-lettered in a cycle", queue.name)
        return targets

    # --- Exchanges ----------------------------------------------------------------------------------------------

    def exchange(self, name: str) -> Exchange:
        """The exchange called `name`, or the topic where there is no such exchange. NotFound where there is neither."""
        exchange = self.found_exchange(name)
        if exchange is None:
            raise NotFound(f"no {self.exchange_resource(name)}")
        return exchange

    def found_exchange(self, name: str) -> Exchange | None:
        """As `exchange`; None where there is none."""
        return self.router.exchanges.get(name) or self.sources.find(name)

    def exchange_bound(self, name: str) -> Destination:
        """The exchange called `name` as a destination; where there is none such, the topic, of which what comes there
        becomes records. NotFound where there is neither."""
        exchange = self.exchange(name)
        stream = self.streams.stream(name) if isinstance(exchange, TopicSource) else None
        return stream if stream is not None else exchange

    def declare_exchange(
        self,
        name: str,
        type: str,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        arguments: dict[str, object],
    ) -> Exchange:
        """The exchange called `name`, which is made where there is none, and else must be as described."""
        current = self.router.exchanges.get(name)
        if current is None:
            if name.startswith(RESERVED_PREFIX):
                raise AccessRefused(f"exchange name '{name}' contains reserved prefix 'amq.*'")
            if self.sources.is_bound(name):
                # Nobody could tell any more whose bindings are meant.
                raise PreconditionFailed(
                    f"cannot declare {self.exchange_resource(name)}: there is a topic of this name that has bindings"
                )
            alternate = arguments.get("alternate-exchange")
            if alternate is not None and not isinstance(alternate, str):
                raise PreconditionFailed(f"invalid type for arg 'alternate-exchange' in {self.exchange_resource(name)}")
            exchange = create_exchange(name, type, durable, auto_delete, internal, arguments)
            self._hold_delayed(exchange)
            if durable:
                self.catalog.add_exchange(ExchangeRow(self.name, name, type, durable, auto_delete, internal, arguments))
                self.context.turn.touch()
            self._add_exchange(exchange)
            return exchange
        resource = self.exchange_resource(name)
        compare_flag("type", resource, type, current.type)
        compare_flag("durable", resource, durable, current.durable)
        compare_flag("auto_delete", resource, auto_delete, current.auto_delete)
        compare_flag("internal", resource, internal, current.internal)
        compare_exchange_arguments(resource, arguments, current.arguments)
        return current

    def restore_exchange(self, row: ExchangeRow) -> None:
        """An exchange that the catalog remembers."""
        self._add_exchange(
            create_exchange(row.name, row.type, row.durable, row.auto_delete, row.internal, row.arguments)
        )

    def _add_exchange(self, exchange: Exchange) -> None:
        self._apply_policies_to_exchange(exchange)
        self.router.add(exchange)

    def _hold_delayed(self, exchange: Exchange) -> None:
        """Give a delayed exchange the queue where its messages wait. PreconditionFailed where there are too many."""
        if not isinstance(exchange, DelayedExchange):
            return
        self._check_queue_count(self.exchange_resource(exchange.name))
        context = self.context
        if exchange.durable:
            name = DELAY_QUEUE_PREFIX + exchange.name
            log_id: i64 = self.catalog.add_queue(QueueRow(self.name, name, True, False, False, {}))
        else:
            log_id = context.next_transient_id()
        self._add_delay_queue(DelayQueue(self, context, exchange, log_id, exchange.durable and context.store.available))

    def _add_delay_queue(self, queue: DelayQueue) -> None:
        queue.exchange.holder = queue
        self.delay_queues[queue.exchange.name] = queue
        self.context.queue_count += 1

    def _restore_delay_queue(self, row: QueueRow) -> DelayQueue:
        exchange = self.router.exchanges.get(row.name[len(DELAY_QUEUE_PREFIX) :])
        if not isinstance(exchange, DelayedExchange):
            raise CorruptData(f"{self.queue_resource(row.name)} belongs to no delayed exchange")
        queue = DelayQueue(self, self.context, exchange, row.id, self.context.store.available)
        self._add_delay_queue(queue)
        return queue

    def remove_delay_queue(self, queue: DelayQueue) -> None:
        """Delete what waits for its time, with the exchange that it belongs to or before it."""
        del self.delay_queues[queue.exchange.name]
        queue.exchange.holder = None
        self.context.queue_count -= 1
        if queue.durable:
            self.catalog.delete_queue(queue.log_id)
            self.context.turn.touch()
        queue.delete()

    def delete_exchange(self, name: str, if_unused: bool) -> None:
        """Delete an exchange and its bindings. It need not exist."""
        if not name:
            raise AccessRefused("operation not permitted on the default exchange")
        if name.startswith(RESERVED_PREFIX):
            raise AccessRefused(f"deletion of system {self.exchange_resource(name)} not allowed")
        exchange = self.router.exchanges.get(name)
        if exchange is None:
            if name in self.topics.by_name:
                raise PreconditionFailed(f"{self.exchange_resource(name)} is a topic, and is deleted as one")
            return
        if if_unused and not exchange.is_unbound:
            raise PreconditionFailed(f"{self.exchange_resource(name)} in use")
        self._remove_exchange(exchange)

    def _remove_exchange(self, exchange: Exchange) -> None:
        leading_here = self.router.remove(exchange)
        delay_queue = self.delay_queues.get(exchange.name)
        if delay_queue is not None:
            self.remove_delay_queue(delay_queue)
        if exchange.durable:
            self.catalog.delete_exchange(self.name, exchange.name)
            self.context.turn.touch()
        self._bindings_removed(leading_here)

    # --- Bindings -----------------------------------------------------------------------------------------------

    def bind(self, source: Exchange, destination: Destination, routing_key: str, arguments: dict[str, object]) -> None:
        """Bind a queue or an exchange to an exchange. A binding that exists is left as it is."""
        if not source.name:
            raise AccessRefused("operation not permitted on the default exchange")
        source.validate(routing_key, arguments)
        if isinstance(source, TopicSource):
            self.sources.check(source, arguments)
        if source.bind(destination, routing_key, arguments):
            self.router.changed()
            if isinstance(source, TopicSource):
                self._bound_to_topic(source, destination, routing_key, arguments)
            elif source.durable and self._is_durable(destination):
                self.catalog.add_binding(
                    BindingRow(self.name, source.name, destination.kind, destination.name, routing_key, arguments)
                )
                self.context.turn.touch()

    def _bound_to_topic(
        self, source: TopicSource, destination: Destination, routing_key: str, arguments: dict[str, object]
    ) -> None:
        self.sources.bindings_changed(source)
        if self._is_durable(destination):
            self.catalog.add_topic_binding(
                BindingRow(self.name, source.name, destination.kind, destination.name, routing_key, arguments)
            )
            self.context.turn.touch()

    def restore_topic_binding(self, row: BindingRow) -> None:
        """A binding to a topic that the catalog remembers. It is read when recovery is over."""
        topic = self.topics.by_name.get(row.source)
        destination = self._destination(row)
        if topic is not None and destination is not None:
            self.sources.of(topic).bind(destination, row.routing_key, row.arguments)

    def restore_binding(self, row: BindingRow) -> None:
        """A binding that the catalog remembers."""
        source = self.router.exchanges.get(row.source)
        destination = self._destination(row)
        if source is not None and destination is not None:
            source.bind(destination, row.routing_key, row.arguments)

    def _destination(self, row: BindingRow) -> Destination | None:
        if row.destination_type == "exchange":
            return self.router.exchanges.get(row.destination)
        return self.find_queue(row.destination)

    def unbind(
        self, source: Exchange, destination: Destination, routing_key: str, arguments: dict[str, object]
    ) -> None:
        """Remove a binding. It need not exist."""
        if not source.name:
            raise AccessRefused("operation not permitted on the default exchange")
        if source.unbind(destination, routing_key, arguments):
            self.router.changed()
            self._forget_binding(source, destination, routing_key, arguments)
            self._delete_if_unbound(source)

    def _forget_binding(
        self, source: Exchange, destination: Destination, routing_key: str, arguments: dict[str, object]
    ) -> None:
        """Let the catalog forget a binding, if it knows it."""
        if not source.durable or not self._is_durable(destination):
            return
        row = BindingRow(self.name, source.name, destination.kind, destination.name, routing_key, arguments)
        if isinstance(source, TopicSource):
            self.catalog.delete_topic_binding(row)
        else:
            self.catalog.delete_binding(row)
        self.context.turn.touch()

    def _is_durable(self, destination: Destination) -> bool:
        if isinstance(destination, MessageQueue):
            return destination.durable
        return isinstance(destination, Exchange) and destination.durable

    def _bindings_removed(self, bindings: list[Binding]) -> None:
        for binding in bindings:
            self._delete_if_unbound(binding.source)

    def _delete_if_unbound(self, source: Exchange) -> None:
        if isinstance(source, TopicSource):
            self.sources.bindings_changed(source)
        elif source.auto_delete and source.is_unbound and source.name in self.router.exchanges:
            self._remove_exchange(source)

    # --- Policies -----------------------------------------------------------------------------------------------

    def put_policy(self, row: PolicyRow) -> None:
        """Add or replace a policy, which acts at once on every queue and exchange that it matches or matched."""
        if row in self.policies.rows(row.kind):
            return
        self.policies.put(row)
        self.catalog.put_policy(row)
        self._policies_changed()

    def delete_policy(self, name: str, kind: str) -> None:
        """What it set is as it was before. NotFound where there is no such policy."""
        self.policies.remove(name, kind)
        self.catalog.delete_policy(self.name, name, kind)
        self._policies_changed()

    def restore_policy(self, row: PolicyRow) -> None:
        """A policy that the catalog remembers. Exchanges and queues are restored after all policies."""
        self.policies.put(row)
        for exchange in self.router.exchanges.values():
            self._apply_policies_to_exchange(exchange)

    def _policies_changed(self) -> None:
        turn = self.context.turn
        # Administrators come between two turns of the protocols: messages that go now go at this time.
        turn.now_ms = self.context.clock.wall_ms()
        for queue in self.queues.values():
            if self._apply_policies_to_queue(queue):
                # Its time to live without use may be another one now, or none.
                self._cancel_expiry(queue)
                self.used(queue)
        self.streams.policies_changed()
        for exchange in self.router.exchanges.values():
            self._apply_policies_to_exchange(exchange)
        # Remembered routes know which queues refuse messages, and which exchanges have an alternate.
        self.router.changed()
        turn.touch()

    def _apply_policies_to_queue(self, queue: MessageQueue) -> bool:
        """Let the policies of now act on a queue. Whether that changes anything."""
        if queue.name.startswith(REPLY_PREFIX):
            return False
        kind = queue_type(queue.arguments)
        applied = self.policies.of_queue(queue.name, kind)
        if applied == queue.applied:
            return False
        queue.applied = applied
        queue.apply_settings(queue_settings(effective_arguments(queue.arguments, applied, kind)))
        return True

    def _apply_policies_to_exchange(self, exchange: Exchange) -> None:
        applied = self.policies.of_exchange(exchange.name)
        exchange.applied = applied
        alternate = exchange.arguments.get("alternate-exchange")
        if alternate is None and applied is not None:
            alternate = applied.definition.get("alternate-exchange")
        exchange.alternate_exchange = alternate if isinstance(alternate, str) else None

    # --- Queues -------------------------------------------------------------------------------------------------

    def find_queue(self, name: str) -> MessageQueue | None:
        """The queue called `name`: one that is no stream, a topic, or one partition of a topic; None where nothing is
        called so."""
        queue = self.queues.get(name)
        return queue if queue is not None else self.streams.stream(name)

    def all_queues(self) -> list[MessageQueue]:
        """All that can be consumed from by a name: queues, and the partitions of all topics."""
        return [*self.queues.values(), *self.streams.all()]

    def queue(self, name: str, connection: object) -> MessageQueue:
        """The queue called `name`, for use by `connection`. NotFound, or ResourceLocked where it is another's."""
        queue = self.find_queue(name)
        if queue is None:
            raise NotFound(f"no {self.queue_resource(name)}")
        self._check_exclusive(queue, connection)
        return queue

    def _check_exclusive(self, queue: MessageQueue, connection: object) -> None:
        if queue.exclusive_owner is not None and queue.exclusive_owner is not connection:
            raise self._locked(queue)

    def _locked(self, queue: MessageQueue) -> ResourceLocked:
        return ResourceLocked(
            f"cannot obtain exclusive access to locked {self.queue_resource(queue.name)}. It could be originally "
            "declared on another connection or the exclusive property value does not match that of the original "
            "declaration."
        )

    def declare_queue(
        self,
        name: str,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: dict[str, object],
        connection: object,
        is_generated: bool = False,
    ) -> MessageQueue:
        """The queue called `name`, which is made where there is none, and else must be as described.

        `is_generated` says that the broker has chosen the name. An exclusive queue belongs to `connection` and is never
        durable.
        """
        durable = durable and not exclusive
        if self.default_queue_type != TYPE_CLASSIC and "x-queue-type" not in arguments:
            # Kept with the queue: it stays what it is when the default becomes another one.
            default = QUEUE_TYPES.get(self.default_queue_type)
            if default is not None and default.suits(durable, exclusive, auto_delete):
                arguments = {**arguments, "x-queue-type": default.name}
        current = self.queues.get(name)
        if current is None and (name in self.topics.by_name or queue_type(arguments) == TYPE_STREAM):
            # What is no stream may have the name of a topic's partition, but not of a topic.
            current = self.streams.stream(name)
        if current is not None:
            resource = self.queue_resource(name)
            if exclusive != (current.exclusive_owner is not None):
                raise self._locked(current)
            self._check_exclusive(current, connection)
            compare_flag("durable", resource, durable, current.durable)
            compare_flag("auto_delete", resource, auto_delete, current.auto_delete)
            topic = topic_behind(current)
            if topic is not None:
                compare_with_topic(resource, arguments, topic)
            else:
                compare_queue_arguments(resource, arguments, current.arguments)
            self.used(current)
            return current
        if name.startswith(RESERVED_PREFIX) and not is_generated:
            raise AccessRefused(f"queue name '{name}' contains reserved prefix 'amq.*'")
        check_queue_arguments(arguments, self.queue_resource(name))
        kind = QUEUE_TYPES[queue_type(arguments)]
        kind.check(self.queue_resource(name), durable, exclusive, auto_delete, is_generated)
        if kind.name == TYPE_SHARE:
            self._check_share_queue(name, arguments)
        self._check_queue_count(self.queue_resource(name))
        context = self.context
        if self._exceeds_queues_max(1):
            raise PreconditionFailed(
                f"cannot declare queue '{name}': queue limit in vhost '{self.name}' ({self.queues_max}) is reached"
            )
        if kind.create is None:
            self.topics.create_stream(name, configs_of(arguments), arguments)
            return self.queue(name, connection)
        if kind.name == TYPE_SHARE:
            self._ensure_group(name)
        self._name_taken(name)
        if durable:
            row = QueueRow(self.name, name, durable, auto_delete, False, arguments)
            log_id: i64 = self.catalog.add_queue(row)
            context.turn.touch()
        else:
            log_id = context.next_transient_id()
        queue = kind.create(self, context, name, log_id, durable and context.store.available, queue_settings(arguments))
        queue.durable = durable
        queue.auto_delete = auto_delete
        queue.arguments = arguments
        queue.exclusive_owner = connection if exclusive else None
        if keeps_history(arguments):
            self.topics.create_history(name, arguments)
        self._add_queue(queue)
        if isinstance(queue, ShareQueue):
            self._attach(queue)
            queue.begin()
        return queue

    def _check_share_queue(self, name: str, arguments: dict[str, object]) -> None:
        """PreconditionFailed where there can be no such queue over a topic."""
        resource = self.queue_resource(name)
        source = arguments.get("x-source-topic")
        check_source(arguments, source in self.topics.by_name, resource)
        try:
            self.shares.check_room(name, self.topics.by_name.get(source) if isinstance(source, str) else None)
            self.groups.shares.check_name(name)
        except PeerError as error:
            raise PreconditionFailed(f"cannot declare {resource}: {error}") from None

    def _ensure_group(self, name: str) -> None:
        try:
            self.groups.shares.ensure(name)
        except PeerError as error:
            raise PreconditionFailed(f"cannot declare {self.queue_resource(name)}: {error}") from None

    def _attach(self, queue: ShareQueue) -> None:
        has_history = keeps_history(queue.arguments)
        source = queue.name if has_history else queue.arguments.get("x-source-topic")
        topic = self.topics.by_name.get(source) if isinstance(source, str) else None
        if topic is None:
            raise CorruptData(f"{self.queue_resource(queue.name)} is over a topic that is not there")
        topic.is_history = topic.is_history or has_history
        queue.attach(self.shares, topic, self.streams)

    def attach_share_queues(self) -> None:
        """The catalog's topics are there as well now: queues over topics find theirs."""
        for queue in list(self.queues.values()):
            if isinstance(queue, ShareQueue):
                self._attach(queue)

    def _exceeds_queues_max(self, count: i64) -> bool:
        """Whether so many more queues and partitions are too many for this virtual host."""
        if self.queues_max < 0:
            return False
        return len(self.queues) - self._reply_queues + self.topics.partition_count + count > self.queues_max

    def _check_queue_count(self, resource: str) -> None:
        context = self.context
        if context.queue_count >= context.queues_max:
            raise PreconditionFailed(f"cannot declare {resource}: node queue limit ({context.queues_max}) is reached")

    def _add_queue(self, queue: MessageQueue) -> None:
        self.queues[queue.name] = queue
        self.context.queue_count += 1
        self._apply_policies_to_queue(queue)
        self.used(queue)
        self.router.changed()

    def generated_name(self, prefix: str = GENERATED_PREFIX) -> str:
        """A name for a queue that its client did not name."""
        return f"{prefix}-{secrets.token_urlsafe(16)}"

    def restore_queue(self, row: QueueRow) -> MessageQueue:
        """A queue that the catalog remembers, still empty."""
        if row.name.startswith(DELAY_QUEUE_PREFIX):
            return self._restore_delay_queue(row)
        kind = QUEUE_TYPES[queue_type(row.arguments)]
        if kind.create is None:
            raise CorruptData(f"the catalog has a stream, {self.queue_resource(row.name)}, among its queues")
        available = self.context.store.available
        queue = kind.create(self, self.context, row.name, row.id, available, queue_settings(row.arguments))
        queue.durable = row.durable
        queue.auto_delete = row.auto_delete
        queue.arguments = row.arguments
        self._add_queue(queue)
        return queue

    def delete_queue(self, queue: MessageQueue, if_unused: bool, if_empty: bool) -> int:
        """Delete a queue, its messages and its bindings. How many messages were ready."""
        if if_unused and queue.consumer_count > 0:
            raise PreconditionFailed(f"{self.queue_resource(queue.name)} in use")
        if if_empty and queue.ready + queue.delayed > 0:
            raise PreconditionFailed(f"{self.queue_resource(queue.name)} not empty")
        count = int(queue.ready)
        self.remove_queue(queue)
        return count

    def remove_queue(self, queue: MessageQueue) -> None:
        """Delete a queue, whatever is in it and whoever consumes from it."""
        if queue.deleted:
            return
        topic = topic_behind(queue)
        if topic is not None:
            if topic.name != queue.name:
                raise PreconditionFailed(
                    f"{self.queue_resource(queue.name)} is a partition of the topic '{topic.name}', and is deleted "
                    "with it only"
                )
            self.topics.delete(topic)
            return
        del self.queues[queue.name]
        self.context.queue_count -= 1
        if queue.name.startswith(REPLY_PREFIX):
            self._reply_queues -= 1
        self._cancel_expiry(queue)
        leading_here = self.router.unbind_destination(queue)
        if queue.durable:
            self.catalog.delete_queue(queue.log_id)
            self.context.turn.touch()
        queue.delete()
        if isinstance(queue, ShareQueue):
            self._forget_group_of(queue)
            if queue.topic is not None and keeps_history(queue.arguments) and not queue.topic.deleted:
                queue.topic.is_history = False
                self.topics.delete(queue.topic)
        self.groups.offsets.topic_deleted(queue.name)
        self._bindings_removed(leading_here)

    # --- Topics -------------------------------------------------------------------------------------------------

    def check_room(self, resource: str, count: i64) -> None:
        context = self.context
        if context.queue_count + count > context.queues_max:
            raise LimitExceeded(f"the node's limit of {context.queues_max} queues and partitions is reached")
        if self._exceeds_queues_max(count):
            raise LimitExceeded(
                f"cannot declare {resource}: queue limit in vhost '{self.name}' ({self.queues_max}) is reached"
            )

    def topic_made(self, topic: Topic) -> None:
        self._name_taken(topic.name)
        self.streams.apply_policies(topic)

    def _name_taken(self, name: str) -> None:
        """What comes now has a name by which a topic's partition was known: it has no bindings nor consumers yet."""
        partition = self.streams.forget(name)
        if isinstance(partition, StreamQueue):
            self._unbind_stream(partition)
            partition.cancel_consumers()

    def _unbind_stream(self, stream: MessageQueue) -> None:
        leading_here = self.router.unbind_destination(stream)
        for binding in leading_here:
            self._forget_binding(binding.source, binding.destination, binding.routing_key, binding.arguments)
        self._bindings_removed(leading_here)

    def topic_grows(self, topic: Topic) -> None:
        # One partition has the name of its topic only as long as there is no other.
        self._grown = self.streams.forget(topic.name) if len(topic.partitions) == 1 else None

    def topics_changed(self) -> None:
        partition, self._grown = self._grown, None
        if isinstance(partition, StreamQueue):
            whole = self.streams.stream(partition.name)
            if whole is not None:
                for binding in self.router.unbind_destination(partition):
                    # The catalog knows it by the name, which stays.
                    binding.source.bind(whole, binding.routing_key, binding.arguments)
            partition.cancel_consumers()
        self.sources.topics_changed()
        self.router.changed()

    def topic_deleted(self, topic: Topic) -> None:
        for stream in self.streams.forget_topic(topic):
            self._unbind_stream(stream)
            stream.delete()
        self.sources.deleted(topic)
        self.groups.offsets.topic_deleted(topic.name)
        for queue in list(self.queues.values()):
            if isinstance(queue, ShareQueue) and queue.topic is topic:
                self.remove_queue(queue)
        self.shares.topic_deleted(topic.name)
        self.router.changed()

    def _forget_group_of(self, queue: ShareQueue) -> None:
        """With a queue over a topic goes what it has worked off, unless Kafka's consumers go on with it."""
        group = self.groups.store.groups.get(queue.name)
        if (group is None or group.is_empty) and not self.shares.is_read(queue.name):
            if group is not None:
                self.groups.delete(queue.name)
            self.shares.delete_group(queue.name)

    # --- The life of queues -------------------------------------------------------------------------------------

    def consumers_gone(self, queue: MessageQueue) -> None:
        if queue.auto_delete:
            self.remove_queue(queue)
        else:
            self.used(queue)

    def used(self, queue: MessageQueue) -> None:
        """Somebody has used the queue: where it expires without use, its time begins anew."""
        expires_ms = queue.settings.expires_ms
        if expires_ms < 0 or queue.deleted:
            return
        self._cancel_expiry(queue)
        self._expiries[queue] = self.context.clock.call_later(int(expires_ms), partial(self._unused, queue))

    def _cancel_expiry(self, queue: MessageQueue) -> None:
        timer = self._expiries.pop(queue, None)
        if timer is not None:
            timer.cancel()

    def _unused(self, queue: MessageQueue) -> None:
        self._expiries.pop(queue, None)
        # While it has consumers it is in use; when the last of them leaves, its time begins anew.
        if not queue.consumers:
            self.remove_queue(queue)

    def reply_queue(self, connection: object) -> Queue:
        """A queue that only `connection` may use, and only those it tells the name can publish to."""
        name = f"{REPLY_PREFIX}{secrets.token_urlsafe(24)}"
        context = self.context
        queue = Queue(self, context, name, context.next_transient_id(), False, QueueSettings())
        queue.auto_delete = True
        queue.exclusive_owner = connection
        self._reply_queues += 1
        self._add_queue(queue)
        return queue

    def check_consumable(self, queue: MessageQueue, exclusive: bool) -> None:
        """AccessRefused where another consumer has, or this one cannot have, the queue for itself."""
        if topic_behind(queue) is not None:
            # A stream's consumers take nothing from each other, and RabbitMQ lets any of them be exclusive.
            return
        consumers = queue.consumers
        if (consumers and (exclusive or next(iter(consumers)).exclusive)) or (
            exclusive and queue.settings.single_active
        ):
            raise AccessRefused(f"{self.queue_resource(queue.name)} in exclusive use")
