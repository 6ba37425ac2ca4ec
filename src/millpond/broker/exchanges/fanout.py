"""The fanout exchange: a message goes to every destination, whatever its routing key and headers."""

from __future__ import annotations

from typing import final

from millpond.broker.exchanges.exchange import Binding, Destination, Exchange


@final
class FanoutExchange(Exchange):
    """The bindings, which are kept by destination, are the index."""

    def __init__(
        self, name: str, durable: bool, auto_delete: bool, internal: bool, arguments: dict[str, object]
    ) -> None:
        super().__init__(name, "fanout", durable, auto_delete, internal, arguments)

    def match(self, routing_key: str, headers: dict[str, object] | None, found: list[Destination]) -> None:
        found.extend(self._bindings)

    def _index(self, binding: Binding) -> None:
        pass

    def _unindex(self, binding: Binding) -> None:
        pass
