"""A topic as an exchange: what is bound to it gets its records, each as a message with the record's key as routing key.

    the empty binding key               every record
    a binding key                       a pattern of words, as at a topic exchange: * one word, # any number of them
    x-match among the arguments         the record's headers decide, as at a headers exchange; the key does not count
    x-stream-offset among them          where in the topic this binding begins, as with a consumer of a stream

Nothing is matched when a record is produced: behind the topic, cursors read what is durable and publish it. All
bindings share one cursor for each partition, but those that say where they begin: each of these is a **subscription**
with cursors of its own, because it may be a million records behind the others. A queue to which a subscription leads,
and another binding too, gets what both match twice.

Clients cannot declare an exchange of this type: it is there as long as the topic is.
"""

from __future__ import annotations

from typing import Final, final

from millpond.broker.exchanges.exchange import Binding, Destination, Exchange
from millpond.broker.exchanges.headers import HeadersExchange
from millpond.broker.exchanges.topic import TopicExchange

TYPE_TOPIC: Final = "x-topic"
START_ARGUMENT: Final = "x-stream-offset"
MATCH_ARGUMENT: Final = "x-match"
# The name of the cursor that all bindings share which do not say where they begin.
SHARED: Final = ""


@final
class TopicSource(Exchange):
    """One topic's bindings, or one subscription's. `cursor` names the cursors that read for it."""

    def __init__(self, name: str, cursor: str = SHARED) -> None:
        super().__init__(name, TYPE_TOPIC, True, False, False, {})
        self.cursor: Final = cursor
        # By their cursors' names.
        self.subscriptions: Final[dict[str, TopicSource]] = {}
        self._patterns: Final = TopicExchange(name, True, False, False, {})
        self._headers: Final = HeadersExchange(name, True, False, False, {})
        # Bindings as the two know them.
        self._known: Final[dict[Binding, Binding]] = {}
        # How many bindings look at headers, and how many take part in `match` at all.
        self._header_count = 0
        self._count = 0

    @property
    def looks_at_headers(self) -> bool:
        """Whether `match` needs headers. Unlike with other types that changes with the bindings."""
        return self._header_count > 0

    @property
    def is_read(self) -> bool:
        """Whether there is anything to be matched, subscriptions apart."""
        return self._count > 0

    def starting_point(self) -> object:
        """Where a subscription begins, as its binding says; None for what all others share."""
        for binding in self._known:
            return binding.arguments.get(START_ARGUMENT)
        return None

    def match(self, routing_key: str, headers: dict[str, object] | None, found: list[Destination]) -> None:
        self._patterns.match(routing_key, headers, found)
        if self._header_count > 0:
            self._headers.match(routing_key, headers, found)

    def validate(self, routing_key: str, arguments: dict[str, object]) -> None:
        self._headers.validate(routing_key, arguments)

    def _index(self, binding: Binding) -> None:
        if START_ARGUMENT in binding.arguments and self.cursor == SHARED:
            name = subscription_name(binding)
            subscription = self.subscriptions[name] = TopicSource(self.name, name)
            subscription._index(binding)
            return
        self._count += 1
        if MATCH_ARGUMENT in binding.arguments:
            # Where to begin is nothing that a record's headers could have.
            arguments = {name: value for name, value in binding.arguments.items() if name != START_ARGUMENT}
            known = Binding(self, binding.destination, binding.routing_key, arguments)
            self._headers._index(known)
            self._header_count += 1
        else:
            known = Binding(self, binding.destination, binding.routing_key or "#", {})
            self._patterns._index(known)
        self._known[binding] = known

    def _unindex(self, binding: Binding) -> None:
        if START_ARGUMENT in binding.arguments and self.cursor == SHARED:
            del self.subscriptions[subscription_name(binding)]
            return
        self._count -= 1
        known = self._known.pop(binding)
        if MATCH_ARGUMENT in binding.arguments:
            self._headers._unindex(known)
            self._header_count -= 1
        else:
            self._patterns._unindex(known)


def subscription_name(binding: Binding) -> str:
    """The name of the cursors of a binding that says where it begins: on the disk, and shown to operators."""
    return f"{binding.destination.kind} {binding.destination.name} {binding.properties_key}"
