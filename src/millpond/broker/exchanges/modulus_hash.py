"""The modulus-hash exchange: a message goes to one destination, chosen by a hash of its routing key.

    destinations, sorted by kind and name        hash of the routing key modulo their number chooses one

Binding keys and arguments are ignored. As long as the set of destinations is the same a routing key keeps its
destination, also over restarts; where it changes, most keys move. (`x-consistent-hash` moves few.) See RabbitMQ 4.3.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, final

from millpond.broker.exchanges.exchange import Binding, Destination, Exchange

TYPE_MODULUS_HASH: Final = "x-modulus-hash"


@final
class ModulusHashExchange(Exchange):
    """The sorted destinations are the index."""

    def __init__(
        self, name: str, durable: bool, auto_delete: bool, internal: bool, arguments: dict[str, object]
    ) -> None:
        super().__init__(name, TYPE_MODULUS_HASH, durable, auto_delete, internal, arguments, chooses_one=True)
        self._sorted: list[Destination] = []
        self._is_sorted = True

    def match(self, routing_key: str, headers: dict[str, object] | None, found: list[Destination]) -> None:
        if not self._is_sorted:
            self._sorted = sorted(self._bindings, key=_place)
            self._is_sorted = True
        if self._sorted:
            # Python's own hash differs from process to process, and a key must keep its destination.
            digest = blake2b(routing_key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            found.append(self._sorted[int.from_bytes(digest, "big") % len(self._sorted)])

    def _index(self, binding: Binding) -> None:
        self._is_sorted = False

    def _unindex(self, binding: Binding) -> None:
        self._is_sorted = False


def _place(destination: Destination) -> tuple[str, str]:
    return destination.kind, destination.name
