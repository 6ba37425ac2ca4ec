"""What a publish means before its content is looked at, and what its properties add to that.

RabbitMQ lets the sender name further routing keys in the headers CC and BCC (sender-selected distribution), and gives
a client that consumes from the pseudo queue `amq.rabbitmq.reply-to` an address that others can answer to (direct
reply-to). Here that address is a queue of the client's own, which nobody can mistake for another: its name is secret.
"""

from __future__ import annotations

from typing import Final, final

from millpond.broker.message import further_routing_keys
from millpond.broker.vhost import Route
from millpond.protocols.amqp.properties import BasicProperties

REPLY_TO: Final = "amq.rabbitmq.reply-to"


@final
class PublishRoute:
    """What a `basic.publish` with certain bytes means, as far as it does not depend on the message."""

    def __init__(
        self,
        route: Route,
        mandatory: bool,
        cacheable: bool,
        needs_headers: bool,
        copies: list[str] | None = None,
    ) -> None:
        self.route: Final = route
        self.mandatory: Final = mandatory
        # Where messages go depends on more than their routing key: `route` says only from where.
        self.needs_headers: Final = needs_headers
        self.cacheable: Final = cacheable
        # Further routing keys, from the headers of one message.
        self.copies: Final = copies


def copies_of(properties: BasicProperties) -> list[str] | None:
    """The routing keys of the headers CC and BCC; None where there are none."""
    if not properties.has_headers:
        return None
    return further_routing_keys(properties.headers())


def without_blind_copies(properties: BasicProperties) -> BasicProperties:
    """The properties as receivers may see them."""
    return properties.replaced({"BCC": None}, True)
