"""The router: all exchanges of a virtual host, and the way of a message through them to queues.

    route: exchange ── match ──► queues                  each queue once
                     └─────────► exchanges bound to it   each exchange once, so cycles are harmless
                     nothing ──► its alternate exchange  passed over where that does not exist

The default exchange, whose name is empty, has no bindings: every queue is reached by its own name. It is answered from
the virtual host's queues, which the router is given when it is made, and then from the names of its streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

from mypy_extensions import i64, mypyc_attr

from millpond.base.limits import EXCHANGE_HOPS_MAX
from millpond.broker.exchanges.exchange import Binding, Destination, Exchange
from millpond.broker.exchanges.registry import predeclared_exchanges
from millpond.broker.message import Properties

DEFAULT_EXCHANGE: Final = ""


@mypyc_attr(allow_interpreted_subclasses=True)
class FurtherNames:
    """Names of destinations that are not there before somebody asks for them."""

    def find(self, name: str) -> Destination | None:
        """What is called so; None where nothing is."""
        return None


@final
class Router:
    """`exchanges` are the virtual host's, by name: read it, and change it by `add` and `remove`.

    `version` grows with every change of the topology. A route may be remembered, by exchange and routing key, as long
    as `version` stays the same, and if `cacheable` was true after it was asked for.
    """

    def __init__(self, queues: Mapping[str, Destination], further: FurtherNames | None = None) -> None:
        self._queues: Final = queues
        self._further: Final = further
        self.exchanges: Final[dict[str, Exchange]] = {exchange.name: exchange for exchange in predeclared_exchanges()}
        # Topics that something is bound to, by their names. `route` does not begin at a name, so it asks none of them.
        self.sources: Final[dict[str, Exchange]] = {}
        self.version: i64 = 0
        # About the last call of `route`: no exchange on its way looked at more than routing keys.
        self.cacheable = True
        # What all calls of `route` together have looked at; see `Exchange.effort`.
        self.effort: i64 = 0

    def changed(self) -> None:
        """To be called after any change of queues or bindings: remembered routes are void."""
        self.version += 1

    def add(self, exchange: Exchange) -> None:
        self.exchanges[exchange.name] = exchange
        self.changed()

    def remove(self, exchange: Exchange) -> list[Binding]:
        """Remove an exchange and the bindings that lead to it, which are returned. Its own bindings go with it."""
        del self.exchanges[exchange.name]
        return self.unbind_destination(exchange)

    def unbind_destination(self, destination: Destination) -> list[Binding]:
        """Remove all bindings of all exchanges to a destination that disappears. The sources that are `is_unbound` now
        and auto-delete are the caller's to remove."""
        removed: list[Binding] = []
        for exchange in self.exchanges.values():
            removed += exchange.unbind_destination(destination)
        for source in self.sources.values():
            removed += source.unbind_destination(destination)
        self.changed()
        return removed

    def bindings_to(self, destination: Destination) -> list[Binding]:
        """The bindings to a destination, of all exchanges, without the default exchange's implicit one."""
        bindings: list[Binding] = []
        for exchange in self.exchanges.values():
            bindings += exchange.bindings_to(destination)
        for source in self.sources.values():
            bindings += source.bindings_to(destination)
        return bindings

    def needs_headers(self, exchange: Exchange) -> bool:
        """Whether a message published to this exchange can reach one that decides by more than routing keys: if not,
        the caller need not decode headers for `route`."""
        if exchange.per_message:
            return True
        seen = {exchange.name}
        ahead = [exchange]
        while ahead and len(seen) <= EXCHANGE_HOPS_MAX:
            current = ahead.pop()
            if current.per_message:
                return True
            for bound in current.exchanges_bound():
                if bound.name not in seen:
                    seen.add(bound.name)
                    ahead.append(bound)
            alternate = self._alternate(current)
            if alternate is not None and alternate.name not in seen:
                seen.add(alternate.name)
                ahead.append(alternate)
        # Where the limit was hit the answer is not known, and headers that are not needed only cost time.
        return bool(ahead)

    def route(
        self,
        exchange: Exchange,
        routing_key: str,
        headers: dict[str, object] | None,
        copies: list[str] | None = None,
        properties: Properties | None = None,
    ) -> list[Destination]:
        """The queues that a message goes to, each once. Sets `cacheable`.

        `copies` are further routing keys. An exchange is visited once for all of them, and its alternate is where they
        go if none of them leads anywhere. At most EXCHANGE_HOPS_MAX exchanges are visited; what is further away gets
        nothing.
        """
        self.cacheable = True
        keys = [routing_key] if copies is None else [routing_key, *copies]
        queues: dict[Destination, None] = {}
        seen = {exchange.name}
        ahead = [exchange]
        for current in ahead:
            self._visit(current, keys, headers, properties, queues, seen, ahead)
        return list(queues)

    def _visit(
        self,
        exchange: Exchange,
        keys: list[str],
        headers: dict[str, object] | None,
        properties: Properties | None,
        queues: dict[Destination, None],
        seen: set[str],
        ahead: list[Exchange],
    ) -> None:
        """Match at one exchange: put queues into `queues`, and exchanges not seen yet at the end of `ahead`."""
        if exchange.name == DEFAULT_EXCHANGE:
            for key in keys:
                self._to_queue(key, queues)
            return
        if exchange.per_message:
            self.cacheable = False
        found: list[Destination] = []
        effort_before = exchange.effort
        if exchange.key_property is not None:
            exchange.match(properties.named(exchange.key_property) if properties is not None else "", headers, found)
        elif exchange.chooses_one:
            exchange.match(keys[0], headers, found)
        else:
            for key in keys:
                exchange.match(key, headers, found)
        self.effort += exchange.effort - effort_before + len(found)
        if not found:
            alternate = self._alternate(exchange)
            if alternate is not None:
                found.append(alternate)
        for destination in found:
            if not isinstance(destination, Exchange):
                queues[destination] = None
            elif destination.name not in seen and len(seen) < EXCHANGE_HOPS_MAX:
                seen.add(destination.name)
                ahead.append(destination)

    def _to_queue(self, name: str, queues: dict[Destination, None]) -> None:
        queue = self._queues.get(name)
        if queue is None and self._further is not None:
            queue = self._further.find(name)
        if queue is not None:
            queues[queue] = None

    def _alternate(self, exchange: Exchange) -> Exchange | None:
        name = exchange.alternate_exchange
        return self.exchanges.get(name) if name is not None else None
