"""The headers exchange: a message goes where its headers match a binding's arguments. The routing key is ignored.

    x-match = all (and where it is absent)    every argument is matched
    x-match = any                             at least one argument is matched

An argument without a value (void) is matched by a header of that name, any other by a header of the same name, type
and value. Arguments whose names begin with "x-" do not take part, unless x-match is all-with-x or any-with-x; x-match
itself never does. A binding without arguments that take part matches everything under all, nothing under any. See
RabbitMQ, "Headers exchange", https://www.rabbitmq.com/docs/exchanges#headers.

A binding is looked at only for a message that has one of its arguments: a binding under "any" is found by each of
them, and each is enough; one under "all" by a single one, then checked against the others. That one is chosen so that
few other bindings share it, so the thousand customers of "format=pdf, customer=..." do not all wait behind the format.
"""

from __future__ import annotations

from typing import Final, final

from millpond.base.errors import PreconditionFailed
from millpond.broker.exchanges.exchange import Binding, Destination, DestinationCounts, Exchange, canonical

# What x-match may be -> whether one argument is enough, and whether arguments named "x-..." take part.
MATCHES: Final[dict[str, tuple[bool, bool]]] = {
    "all": (False, False),
    "any": (True, False),
    "all-with-x": (False, True),
    "any-with-x": (True, True),
}

# A rule is looked at as long as so many nodes of a trie are; see `Exchange.effort`.
_EFFORT_PER_RULE: Final = 5

# The value of an argument that asks only for the header's presence. No canonical text is empty.
PRESENT: Final = ""


@final
class _Rule:
    """What a binding's arguments ask for: header names and the canonical values wanted, or PRESENT."""

    def __init__(self, arguments: dict[str, object]) -> None:
        match = arguments.get("x-match")
        # A binding that was refused by `validate` cannot be here, but RabbitMQ's default stands for it.
        self.any, with_x = MATCHES.get(match, (False, False)) if isinstance(match, str) else (False, False)
        self.wanted: Final[list[tuple[str, str]]] = []
        for name, value in arguments.items():
            if name != "x-match" and (with_x or not name.startswith("x-")):
                self.wanted.append((name, PRESENT if value is None else canonical(value)))

    def is_matched_by(self, headers: dict[str, object]) -> bool:
        """Whether all that is wanted is there."""
        for name, value in self.wanted:
            if name not in headers:
                return False
            if value != PRESENT and canonical(headers[name]) != value:
                return False
        return True


@final
class _Shelf:
    """The bindings that are found by one header and value."""

    def __init__(self) -> None:
        # Matched by this alone.
        self.destinations: Final = DestinationCounts()
        # To be checked against their other arguments.
        self.rules: Final[dict[Binding, _Rule]] = {}
        self.size = 0

    def append_to(self, headers: dict[str, object], found: list[Destination]) -> None:
        self.destinations.append_to(found)
        for binding, rule in self.rules.items():
            if rule.is_matched_by(headers):
                found.append(binding.destination)


@final
class HeadersExchange(Exchange):
    def __init__(
        self, name: str, durable: bool, auto_delete: bool, internal: bool, arguments: dict[str, object]
    ) -> None:
        super().__init__(name, "headers", durable, auto_delete, internal, arguments, needs_headers=True)
        # Header name -> canonical value or PRESENT -> what is found by it.
        self._shelves: Final[dict[str, dict[str, _Shelf]]] = {}
        # Those of bindings under "all" that ask for nothing.
        self._always: Final = DestinationCounts()
        # Where each binding under "all" was put, since a later choice may be another.
        self._places: Final[dict[Binding, tuple[str, str]]] = {}

    def validate(self, routing_key: str, arguments: dict[str, object]) -> None:
        if "x-match" not in arguments:
            return
        match = arguments["x-match"]
        if not isinstance(match, str):
            raise PreconditionFailed(
                f"Invalid x-match field type {type(match).__name__} (value {match!r}); expected longstr"
            )
        if match not in MATCHES:
            raise PreconditionFailed(
                f'Invalid x-match field value <<"{match}">>; expected all, any, all-with-x, or any-with-x'
            )

    def match(self, routing_key: str, headers: dict[str, object] | None, found: list[Destination]) -> None:
        self._always.append_to(found)
        if headers is None or not self._shelves:
            return
        for name, value in headers.items():
            by_value = self._shelves.get(name)
            if by_value is None:
                continue
            shelf = by_value.get(PRESENT)
            if shelf is not None:
                self.effort += _EFFORT_PER_RULE * len(shelf.rules)
                shelf.append_to(headers, found)
            if value is not None:
                shelf = by_value.get(canonical(value))
                if shelf is not None:
                    self.effort += _EFFORT_PER_RULE * len(shelf.rules)
                    shelf.append_to(headers, found)

    def _index(self, binding: Binding) -> None:
        rule = _Rule(binding.arguments)
        if rule.any:
            for name, value in rule.wanted:
                shelf = self._shelf(name, value)
                shelf.destinations.add(binding.destination)
                shelf.size += 1
        elif not rule.wanted:
            self._always.add(binding.destination)
        else:
            name, value = self._choose(rule.wanted)
            self._places[binding] = (name, value)
            shelf = self._shelf(name, value)
            shelf.size += 1
            if len(rule.wanted) == 1:
                shelf.destinations.add(binding.destination)
            else:
                shelf.rules[binding] = rule

    def _unindex(self, binding: Binding) -> None:
        rule = _Rule(binding.arguments)
        if rule.any:
            for name, value in rule.wanted:
                self._shelf(name, value).destinations.remove(binding.destination)
                self._shrink(name, value)
        elif not rule.wanted:
            self._always.remove(binding.destination)
        else:
            name, value = self._places.pop(binding)
            shelf = self._shelf(name, value)
            if len(rule.wanted) == 1:
                shelf.destinations.remove(binding.destination)
            else:
                del shelf.rules[binding]
            self._shrink(name, value)

    def _choose(self, wanted: list[tuple[str, str]]) -> tuple[str, str]:
        """The argument by which the fewest bindings are found so far."""
        best = wanted[0]
        best_size = -1
        for name, value in wanted:
            by_value = self._shelves.get(name)
            shelf = by_value.get(value) if by_value is not None else None
            size = shelf.size if shelf is not None else 0
            if best_size < 0 or size < best_size:
                best = (name, value)
                best_size = size
        return best

    def _shelf(self, name: str, value: str) -> _Shelf:
        by_value = self._shelves.get(name)
        if by_value is None:
            by_value = self._shelves[name] = {}
        shelf = by_value.get(value)
        if shelf is None:
            shelf = by_value[value] = _Shelf()
        return shelf

    def _shrink(self, name: str, value: str) -> None:
        by_value = self._shelves[name]
        shelf = by_value[value]
        shelf.size -= 1
        if shelf.size == 0:
            del by_value[value]
            if not by_value:
                del self._shelves[name]
