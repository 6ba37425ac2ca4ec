"""The random exchange: a message goes to one of the bindings, drawn anew for each. Keys and headers are ignored.

A destination that is bound several times is as many times as likely. See RabbitMQ's plugin rabbitmq_random_exchange.

RabbitMQ 4's local random exchange draws among the queues of the node that a client is connected to. Here that is all of
them; it only is stricter about its bindings.
"""

from __future__ import annotations

from random import random
from typing import Final, final

from millpond.base.errors import PreconditionFailed
from millpond.broker.exchanges.exchange import Binding, Destination, Exchange

TYPE_RANDOM: Final = "x-random"
TYPE_LOCAL_RANDOM: Final = "x-local-random"


@final
class RandomExchange(Exchange):
    """A draw is one step, however many bindings there are, and so is a change of them."""

    def __init__(
        self,
        name: str,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        arguments: dict[str, object],
        type: str = TYPE_RANDOM,
    ) -> None:
        super().__init__(name, type, durable, auto_delete, internal, arguments, per_message=True, chooses_one=True)
        self._drawn_from: Final[list[Binding]] = []
        self._places: Final[dict[Binding, int]] = {}

    def validate(self, routing_key: str, arguments: dict[str, object]) -> None:
        if routing_key and self.type == TYPE_LOCAL_RANDOM:
            raise PreconditionFailed(f"Non empty binding '{routing_key}' key not permitted")

    def match(self, routing_key: str, headers: dict[str, object] | None, found: list[Destination]) -> None:
        if self._drawn_from:
            found.append(self._drawn_from[int(random() * len(self._drawn_from))].destination)

    def _index(self, binding: Binding) -> None:
        self._places[binding] = len(self._drawn_from)
        self._drawn_from.append(binding)

    def _unindex(self, binding: Binding) -> None:
        # The last one takes its place: their order means nothing.
        place = self._places.pop(binding)
        last = self._drawn_from.pop()
        if last is not binding:
            self._drawn_from[place] = last
            self._places[last] = place
