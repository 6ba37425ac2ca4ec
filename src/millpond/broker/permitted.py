"""What a user must be allowed for a change of the topology: RabbitMQ's rules, for all protocols and the management API.

Each function raises AccessRefused where a permission is missing, and does nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from millpond.broker.access import Operation

if TYPE_CHECKING:
    from millpond.broker.access import Access
    from millpond.broker.vhost import VirtualHost

TOPIC: Final = "topic"


def check_exchange_declaration(
    access: Access, user: str, vhost: VirtualHost, name: str, arguments: dict[str, object]
) -> None:
    """An exchange that names an alternate exchange sends it what it routes nowhere."""
    access.check(user, vhost.name, Operation.CONFIGURE, "exchange", name)
    alternate = arguments.get("alternate-exchange")
    if isinstance(alternate, str) and name not in vhost.router.exchanges:
        access.check(user, vhost.name, Operation.READ, "exchange", name)
        access.check(user, vhost.name, Operation.WRITE, "exchange", alternate)


def check_queue_declaration(
    access: Access, user: str, vhost: VirtualHost, name: str, arguments: dict[str, object]
) -> None:
    """A queue that names a dead-letter exchange publishes to it."""
    access.check(user, vhost.name, Operation.CONFIGURE, "queue", name)
    dead_letter_exchange = arguments.get("x-dead-letter-exchange")
    if isinstance(dead_letter_exchange, str) and vhost.find_queue(name) is None:
        access.check(user, vhost.name, Operation.READ, "queue", name)
        access.check(user, vhost.name, Operation.WRITE, "exchange", dead_letter_exchange)


def check_binding(
    access: Access, user: str, vhost: VirtualHost, kind: str, destination: str, source: str, routing_key: str
) -> None:
    """To bind, and to unbind, the `kind` ("queue" or "exchange") `destination`."""
    access.check(user, vhost.name, Operation.WRITE, kind, destination)
    access.check(user, vhost.name, Operation.READ, "exchange", source)
    check_topic(access, user, vhost, Operation.READ, source, routing_key)


def check_topic(
    access: Access, user: str, vhost: VirtualHost, operation: Operation, exchange: str, routing_key: str
) -> None:
    """The routing key, where the exchange is a topic exchange. An exchange that does not exist has no such rules."""
    found = vhost.router.exchanges.get(exchange)
    if found is not None and found.type == TOPIC:
        access.check_topic(user, vhost.name, operation, exchange, routing_key)
