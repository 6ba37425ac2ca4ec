"""What a user must be allowed for a change of the topology: RabbitMQ's rules, for all protocols and the management API.

Each function raises AccessRefused where a permission is missing, and does nothing else. `host` is the address that the
user is at, of which ACLs may speak; "" where it is not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from millpond.base.errors import AccessRefused
from millpond.broker.access import Operation
from millpond.broker.arguments import keeps_history
from millpond.broker.streams.stream_names import topic_behind

if TYPE_CHECKING:
    from millpond.broker.access import Access
    from millpond.broker.vhost import VirtualHost

# A type of exchanges, and what a topic of Kafka's is to permissions.
TOPIC: Final = "topic"

QUEUE: Final = "queue"
EXCHANGE: Final = "exchange"


def check_name(
    access: Access, user: str, host: str, vhost: VirtualHost, operation: Operation, kind: str, name: str
) -> None:
    """What goes by the name of a queue or an exchange. ACLs of a topic count by whatever name it is reached."""
    if kind == EXCHANGE and name not in vhost.router.exchanges and name in vhost.topics.by_name:
        kind = TOPIC
    access.check(user, vhost.name, operation, kind, name, host)
    queue = vhost.find_queue(name) if kind == QUEUE else None
    topic = topic_behind(queue) if queue is not None else None
    if (
        topic is not None
        and topic.name != name
        and access.rules_allow(user, vhost.name, host, operation, TOPIC, topic.name) is False
    ):
        raise AccessRefused(
            f"{operation.value} access to topic '{topic.name}' in vhost '{vhost.name}' refused for user '{user}'"
        )


def check_exchange_declaration(
    access: Access, user: str, host: str, vhost: VirtualHost, name: str, arguments: dict[str, object]
) -> None:
    """An exchange that names an alternate exchange sends it what it routes nowhere."""
    access.check(user, vhost.name, Operation.CONFIGURE, EXCHANGE, name, host)
    alternate = arguments.get("alternate-exchange")
    if isinstance(alternate, str) and name not in vhost.router.exchanges:
        access.check(user, vhost.name, Operation.READ, EXCHANGE, name, host)
        check_name(access, user, host, vhost, Operation.WRITE, EXCHANGE, alternate)


def check_queue_declaration(
    access: Access, user: str, host: str, vhost: VirtualHost, name: str, arguments: dict[str, object]
) -> None:
    """A queue that names a dead-letter exchange publishes to it, and one that names a topic reads it."""
    access.check(user, vhost.name, Operation.CONFIGURE, QUEUE, name, host)
    dead_letter_exchange = arguments.get("x-dead-letter-exchange")
    source = arguments.get("x-source-topic")
    if vhost.find_queue(name) is not None:
        return
    if isinstance(dead_letter_exchange, str):
        access.check(user, vhost.name, Operation.READ, QUEUE, name, host)
        check_name(access, user, host, vhost, Operation.WRITE, EXCHANGE, dead_letter_exchange)
    if isinstance(source, str):
        access.check(user, vhost.name, Operation.READ, TOPIC, source, host)


def check_binding(
    access: Access, user: str, host: str, vhost: VirtualHost, kind: str, destination: str, source: str, routing_key: str
) -> None:
    """To bind, and to unbind, the `kind` ("queue" or "exchange") `destination`."""
    check_name(access, user, host, vhost, Operation.WRITE, kind, destination)
    check_name(access, user, host, vhost, Operation.READ, EXCHANGE, source)
    queue = vhost.queues.get(destination) if kind == QUEUE else None
    topic = queue.arguments.get("x-source-topic") if queue is not None and not keeps_history(queue.arguments) else None
    if isinstance(topic, str):
        # What comes to the queue is appended to its topic.
        access.check(user, vhost.name, Operation.WRITE, TOPIC, topic, host)
    check_topic(access, user, vhost, Operation.READ, source, routing_key)


def check_topic(
    access: Access, user: str, vhost: VirtualHost, operation: Operation, exchange: str, routing_key: str
) -> None:
    """The routing key, where the exchange is a topic exchange. An exchange that does not exist has no such rules."""
    found = vhost.router.exchanges.get(exchange)
    if found is not None and found.type == TOPIC:
        access.check_topic(user, vhost.name, operation, exchange, routing_key)
