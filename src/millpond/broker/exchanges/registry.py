"""The exchange types, and the exchanges that every virtual host has.

A new type is a file in this folder and a line in `EXCHANGE_TYPES`. The delayed exchange is none of them: it is one of
them, and holds messages before it routes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from millpond.base.errors import PreconditionFailed
from millpond.broker.exchanges.consistent_hash import ConsistentHashExchange
from millpond.broker.exchanges.delayed import TYPE_DELAYED, DelayedExchange
from millpond.broker.exchanges.direct import DirectExchange
from millpond.broker.exchanges.exchange import Exchange
from millpond.broker.exchanges.fanout import FanoutExchange
from millpond.broker.exchanges.headers import HeadersExchange
from millpond.broker.exchanges.modulus_hash import TYPE_MODULUS_HASH, ModulusHashExchange
from millpond.broker.exchanges.random_choice import TYPE_LOCAL_RANDOM, TYPE_RANDOM, RandomExchange
from millpond.broker.exchanges.topic import TopicExchange


def _local_random(
    name: str, durable: bool, auto_delete: bool, internal: bool, arguments: dict[str, object]
) -> Exchange:
    return RandomExchange(name, durable, auto_delete, internal, arguments, TYPE_LOCAL_RANDOM)


# Type -> its class, to be called with name, durable, auto_delete, internal, arguments.
EXCHANGE_TYPES: Final[dict[str, Callable[[str, bool, bool, bool, dict[str, object]], Exchange]]] = {
    "direct": DirectExchange,
    "fanout": FanoutExchange,
    "topic": TopicExchange,
    "headers": HeadersExchange,
    "x-consistent-hash": ConsistentHashExchange,
    TYPE_RANDOM: RandomExchange,
    TYPE_LOCAL_RANDOM: _local_random,
    TYPE_MODULUS_HASH: ModulusHashExchange,
}

# AMQP 0-9-1, 3.1.3, and amq.match, which is amq.headers by its older name.
PREDECLARED: Final[tuple[tuple[str, str], ...]] = (
    ("", "direct"),
    ("amq.direct", "direct"),
    ("amq.fanout", "fanout"),
    ("amq.headers", "headers"),
    ("amq.match", "headers"),
    ("amq.topic", "topic"),
)


def create_exchange(
    name: str, type: str, durable: bool, auto_delete: bool, internal: bool, arguments: dict[str, object]
) -> Exchange:
    """Raises PreconditionFailed where there is no such type, or it cannot have such arguments."""
    if type == TYPE_DELAYED:
        routing_type = arguments.get("x-delayed-type")
        if not isinstance(routing_type, str) or routing_type == TYPE_DELAYED:
            raise PreconditionFailed("Invalid argument, 'x-delayed-type' must be an existing exchange type")
        return DelayedExchange(create_exchange(name, routing_type, durable, auto_delete, internal, arguments))
    create = EXCHANGE_TYPES.get(type)
    if create is None:
        raise PreconditionFailed(f"unknown exchange type '{type}'")
    return create(name, durable, auto_delete, internal, arguments)


def predeclared_exchanges() -> list[Exchange]:
    """A fresh set of the exchanges that every virtual host has, all durable."""
    return [create_exchange(name, kind, True, False, False, {}) for name, kind in PREDECLARED]
