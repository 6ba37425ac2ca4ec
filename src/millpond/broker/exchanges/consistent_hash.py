"""The consistent-hash exchange: a message goes to one destination, chosen by a hash of its routing key.

A binding's key is its weight, a number from 1 to 10,000. Equal keys go to one destination, different ones are spread in
proportion to the weights. An argument of the exchange names something else to be hashed, at most one of them:

    hash-header = name        the message's header of that name
    hash-property = name      message_id, correlation_id or timestamp

Messages without it all go to the same destination. See RabbitMQ's plugin rabbitmq_consistent_hash_exchange.

The weights, in the order of the bindings, are buckets in a row; the hash chooses a bucket:

    destination    a (weight 2)    b (weight 1)    c (weight 3)
    buckets        0  1            2               3  4  5
    ends           2               3               6

A jump consistent hash (Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm", 2014) makes that choice
in a few steps, and so that one more destination at the end takes its share of the keys from the others and moves no
other key. When one in the middle goes, those behind it move up, and many keys with them.

A destination has the weight of its oldest binding, and others do not count as long as that is there.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from hashlib import blake2b
from typing import Final, final

from millpond.base.errors import PreconditionFailed
from millpond.base.limits import BINDING_WEIGHT_MAX
from millpond.broker.exchanges.exchange import Binding, Destination, Exchange, canonical

PROPERTIES: Final = ("correlation_id", "message_id", "timestamp")

# What Erlang reads as an integer: no spaces, no underscores, no digits of other scripts.
_INTEGER: Final = re.compile("[+-]?[0-9]+")


@final
class ConsistentHashExchange(Exchange):
    """Raises PreconditionFailed where the arguments name nothing that can be hashed."""

    def __init__(
        self, name: str, durable: bool, auto_delete: bool, internal: bool, arguments: dict[str, object]
    ) -> None:
        header = _name(arguments, "hash-header")
        hashed_property = _name(arguments, "hash-property")
        if header is not None and hashed_property is not None:
            raise PreconditionFailed("hash-header and hash-property are mutually exclusive")
        if hashed_property is not None and hashed_property not in PROPERTIES:
            raise PreconditionFailed(f"Unsupported property: {hashed_property}")
        super().__init__(
            name,
            "x-consistent-hash",
            durable,
            auto_delete,
            internal,
            arguments,
            needs_headers=header is not None,
            key_property=hashed_property,
            chooses_one=True,
        )
        self._header: Final = header
        # Where each destination's buckets end. Laid out when they are asked for, so that a thousand queues that go
        # one after the other do not each cost a step per binding.
        self._destinations: list[Destination] = []
        self._ends: list[int] = []
        self._laid_out = True

    def validate(self, routing_key: str, arguments: dict[str, object]) -> None:
        if _INTEGER.fullmatch(routing_key) is None:
            raise PreconditionFailed(f"The binding key must be an integer: {_as_erlang_writes(routing_key)}")
        weight = int(routing_key)
        if weight < 1:
            raise PreconditionFailed("The binding key must be greater than 0")
        if weight > BINDING_WEIGHT_MAX:
            raise PreconditionFailed(f"The binding key must not exceed {BINDING_WEIGHT_MAX}")

    def match(self, routing_key: str, headers: dict[str, object] | None, found: list[Destination]) -> None:
        if not self._laid_out:
            self._lay_out()
        if not self._ends:
            return
        key = routing_key
        if self._header is not None:
            key = canonical(headers.get(self._header) if headers is not None else None)
        # Python's own hash differs from process to process, and a key must keep its destination.
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        bucket = jump_consistent_hash(int.from_bytes(digest, "big"), self._ends[-1])
        found.append(self._destinations[bisect_right(self._ends, bucket)])

    def _index(self, binding: Binding) -> None:
        self._laid_out = False

    def _unindex(self, binding: Binding) -> None:
        self._laid_out = False

    def _lay_out(self) -> None:
        self._destinations = []
        self._ends = []
        end = 0
        for destination, bindings in self._bindings.items():
            oldest = next(iter(bindings.values()))
            # A binding that was refused by `validate` cannot be here, but the smallest weight stands for it.
            weight = int(oldest.routing_key) if _INTEGER.fullmatch(oldest.routing_key) is not None else 1
            end += min(max(weight, 1), BINDING_WEIGHT_MAX)
            self._destinations.append(destination)
            self._ends.append(end)
        self._laid_out = True


def jump_consistent_hash(key: int, buckets: int) -> int:
    """The bucket, from 0 up, of a key of 64 bits. Of the keys, 1/n move when the n-th bucket is added, all to it."""
    bucket = 0
    ahead = 0
    while ahead < buckets:
        bucket = ahead
        # The paper's generator of pseudo-random numbers, and a jump to where the key moves next.
        key = (key * 2862933555777941757 + 1) & 0xFFFFFFFFFFFFFFFF
        ahead = int((bucket + 1) * (2147483648 / ((key >> 33) + 1)))
    return bucket


def _name(arguments: dict[str, object], argument: str) -> str | None:
    """An argument that is a text; None where it is absent."""
    if argument not in arguments:
        return None
    name = arguments[argument]
    if not isinstance(name, str):
        raise PreconditionFailed(f"invalid type for arg '{argument}': it must be a text")
    return name


def _as_erlang_writes(key: str) -> str:
    """A binary as RabbitMQ's texts show it."""
    if key.isascii() and key.isprintable():
        quoted = key.replace("\\", "\\\\").replace('"', '\\"')
        return f'<<"{quoted}">>' if key else "<<>>"
    return "<<" + ",".join([str(byte) for byte in key.encode("utf-8", "surrogateescape")]) + ">>"
