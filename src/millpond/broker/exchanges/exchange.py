"""Destinations, bindings, and what all exchange types share.

    Destination            has a name; a queue or an exchange
    └── Exchange           routes what is published to it to the destinations bound to it
        ├── DirectExchange, FanoutExchange, TopicExchange, HeadersExchange     (one file each)
        ├── ConsistentHashExchange, ModulusHashExchange, RandomExchange
        └── DelayedExchange                                                    (has one of the others in it)

An exchange keeps its bindings by destination, so that a queue's disappearance costs only its own bindings. A type adds
the index that makes its `match` fast: it implements `_index` and `_unindex`, which see every binding exactly once.

Everything here decides or applies in memory. Permissions, journaling and auto-delete are the caller's: it asks
`validate` first, records the change, then calls `bind` or `unbind`, which never refuse. Recovery calls the same.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import blake2b
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_plus

from mypy_extensions import i64, mypyc_attr

if TYPE_CHECKING:
    from millpond.broker.policies import Applied


@mypyc_attr(allow_interpreted_subclasses=True)
class Destination:
    """Where a binding can lead: `kind` is "queue" or "exchange". A destination equals only itself."""

    def __init__(self, name: str, kind: str) -> None:
        self.name: Final = name
        self.kind: Final = kind
        # What policies make of it.
        self.applied: Applied | None = None


def canonical(value: object) -> str:
    """A text that is equal for two decoded header or argument values exactly if they match as RabbitMQ compares them.

    The type is part of it: the number 1, the text "1", true and 1.0 are four values, though Python's `==` holds three
    of them equal. The order of a table's entries is not.
    """
    if type(value) is str:
        return "'" + value
    if isinstance(value, dict):
        entries = [repr(key) + "=" + _nested(value[key]) for key in sorted(value)]
        return "{" + ",".join(entries) + "}"
    if isinstance(value, list):
        return "[" + ",".join([_nested(item) for item in value]) + "]"
    return type(value).__name__ + ":" + repr(value)


def _nested(value: object) -> str:
    # Inside a table the end of a text must be visible, so it is quoted.
    return repr(value) if type(value) is str else canonical(value)


class Binding:
    """One rule of an exchange. Identified by destination, routing key and arguments."""

    def __init__(
        self, source: Exchange, destination: Destination, routing_key: str, arguments: dict[str, object]
    ) -> None:
        self.source: Final = source
        self.destination: Final = destination
        self.routing_key: Final = routing_key
        self.arguments: Final = arguments

    @property
    def properties_key(self) -> str:
        """The binding's name in the management API: the quoted routing key and, where there are arguments, "~" and a
        hash of them; "~" where there is neither. Clients read it and send it back, so only its uniqueness matters:
        RabbitMQ's hash is of an Erlang term, ours is not.
        """
        # quote_plus leaves "~" as it is, but here it separates.
        key = quote_plus(self.routing_key, errors="surrogateescape").replace("~", "%7E")
        if not self.arguments:
            return key or "~"
        digest = blake2b(canonical(self.arguments).encode("utf-8", "surrogatepass"), digest_size=9).digest()
        return key + "~" + urlsafe_b64encode(digest).decode("ascii")


class Exchange(Destination):
    """An exchange of one type. What a type tells the router about itself:

    needs_headers    `match` looks at headers
    key_property     a property of the message, of those in `Properties.named`, stands for its routing key
    per_message      a route through it must not be remembered by routing key: each of the above, and chance
    chooses_one      each message goes to one destination; further routing keys that its sender names do not count

    `alternate_exchange` is the exchange that gets what this one routes nowhere, None where there is none.
    """

    def __init__(
        self,
        name: str,
        type: str,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        arguments: dict[str, object],
        needs_headers: bool = False,
        key_property: str | None = None,
        per_message: bool = False,
        chooses_one: bool = False,
    ) -> None:
        super().__init__(name, "exchange")
        self.type: Final = type
        self.durable: Final = durable
        self.auto_delete: Final = auto_delete
        self.internal: Final = internal
        self.arguments: Final = arguments
        self.needs_headers: Final = needs_headers
        self.key_property: Final = key_property
        self.per_message: Final = per_message or needs_headers or key_property is not None
        self.chooses_one: Final = chooses_one
        alternate = arguments.get("alternate-exchange")
        # Not Final: a policy may set it later.
        self.alternate_exchange: str | None = alternate if isinstance(alternate, str) else None
        # Of all matches so far: how many nodes, rules or the like they had to look at. Each takes some 0.1 us.
        self.effort: i64 = 0
        # Routing key and canonical arguments -> binding, by destination.
        self._bindings: dict[Destination, dict[tuple[str, str], Binding]] = {}
        # The destinations that are exchanges, in the order of their first binding.
        self._exchanges_bound: dict[Exchange, None] = {}

    # --- What a type implements ------------------------------------------------------------------------------------

    def match(self, routing_key: str, headers: dict[str, object] | None, found: list[Destination]) -> None:
        """Append the destinations that a message goes to. A destination may be appended more than once.

        `headers` are the message's decoded headers; None means the same as empty.
        """
        raise NotImplementedError

    def validate(self, routing_key: str, arguments: dict[str, object]) -> None:
        """Raise PreconditionFailed if this type cannot have such a binding."""

    def _index(self, binding: Binding) -> None:
        raise NotImplementedError

    def _unindex(self, binding: Binding) -> None:
        raise NotImplementedError

    # --- Bindings --------------------------------------------------------------------------------------------------

    def bind(self, destination: Destination, routing_key: str, arguments: dict[str, object]) -> bool:
        """Add a binding. False if the same one existed: then nothing changes."""
        key = (routing_key, canonical(arguments) if arguments else "")
        bindings = self._bindings.get(destination)
        if bindings is None:
            bindings = self._bindings[destination] = {}
            if isinstance(destination, Exchange):
                self._exchanges_bound[destination] = None
        elif key in bindings:
            return False
        binding = bindings[key] = Binding(self, destination, routing_key, arguments)
        self._index(binding)
        return True

    def unbind(self, destination: Destination, routing_key: str, arguments: dict[str, object]) -> bool:
        """Remove a binding. False if there is none such."""
        bindings = self._bindings.get(destination)
        if bindings is None:
            return False
        binding = bindings.pop((routing_key, canonical(arguments) if arguments else ""), None)
        if binding is None:
            return False
        if not bindings:
            self._forget(destination)
        self._unindex(binding)
        return True

    def unbind_destination(self, destination: Destination) -> list[Binding]:
        """Remove all bindings to a destination, which is about to disappear. Returns them, oldest first."""
        bindings = self._bindings.get(destination)
        if bindings is None:
            return []
        self._forget(destination)
        removed = list(bindings.values())
        for binding in removed:
            self._unindex(binding)
        return removed

    def bindings(self) -> list[Binding]:
        """All bindings of this exchange, grouped by destination."""
        return [binding for bindings in self._bindings.values() for binding in bindings.values()]

    def bindings_to(self, destination: Destination) -> list[Binding]:
        """The bindings to one destination, oldest first."""
        bindings = self._bindings.get(destination)
        return list(bindings.values()) if bindings is not None else []

    def exchanges_bound(self) -> list[Exchange]:
        """The exchanges that are bound to this one."""
        return list(self._exchanges_bound)

    @property
    def is_unbound(self) -> bool:
        """No binding leads from this exchange: an auto-delete exchange goes with its last one."""
        return not self._bindings

    def _forget(self, destination: Destination) -> None:
        del self._bindings[destination]
        if isinstance(destination, Exchange):
            del self._exchanges_bound[destination]


class DestinationCounts:
    """Destinations, each with the number of bindings that lead to it: the leaf of an index.

    Bindings that differ only in their arguments lead to the same place, which stays until the last of them is gone.
    """

    def __init__(self) -> None:
        self._counts: dict[Destination, int] = {}

    def add(self, destination: Destination) -> None:
        self._counts[destination] = self._counts.get(destination, 0) + 1

    def remove(self, destination: Destination) -> None:
        count = self._counts[destination]
        if count > 1:
            self._counts[destination] = count - 1
        else:
            del self._counts[destination]

    def append_to(self, found: list[Destination]) -> None:
        found.extend(self._counts)

    @property
    def is_empty(self) -> bool:
        return not self._counts
