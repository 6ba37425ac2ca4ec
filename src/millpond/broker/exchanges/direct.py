"""The direct exchange: a message goes to the destinations whose binding's routing key is its own."""

from __future__ import annotations

from typing import Final, final

from millpond.broker.exchanges.exchange import Binding, Destination, DestinationCounts, Exchange


@final
class DirectExchange(Exchange):
    """Matching is one look-up, however many bindings there are."""

    def __init__(
        self, name: str, durable: bool, auto_delete: bool, internal: bool, arguments: dict[str, object]
    ) -> None:
        super().__init__(name, "direct", durable, auto_delete, internal, arguments)
        self._by_key: Final[dict[str, DestinationCounts]] = {}

    def match(self, routing_key: str, headers: dict[str, object] | None, found: list[Destination]) -> None:
        destinations = self._by_key.get(routing_key)
        if destinations is not None:
            destinations.append_to(found)

    def _index(self, binding: Binding) -> None:
        destinations = self._by_key.get(binding.routing_key)
        if destinations is None:
            destinations = self._by_key[binding.routing_key] = DestinationCounts()
        destinations.add(binding.destination)

    def _unindex(self, binding: Binding) -> None:
        destinations = self._by_key[binding.routing_key]
        destinations.remove(binding.destination)
        if destinations.is_empty:
            del self._by_key[binding.routing_key]
