"""The delayed exchange: a message with a header `x-delay` is held for so many milliseconds, and routed then.

How it is routed says the argument `x-delayed-type`, the name of another exchange type. See RabbitMQ's plugin
rabbitmq-delayed-message-exchange.

The virtual host gives each such exchange a queue of its own, its `holder`, where messages wait. To the router it is a
destination like others: a message with a delay goes there and nowhere else. When its time has come it is routed again,
with its delay negated, so that no delayed exchange on its way holds it once more.
"""

from __future__ import annotations

from typing import Final, final

from millpond.base.limits import DELAY_MS_MAX
from millpond.broker.exchanges.exchange import Binding, Destination, Exchange

TYPE_DELAYED: Final = "x-delayed-message"
DELAY_HEADER: Final = "x-delay"
# The longest number that a text may be for a delay: more than the largest one takes.
_DIGITS_MAX: Final = 20


@final
class DelayedExchange(Exchange):
    """`inner` is an exchange of the type that routes, made for this one: it gets the same bindings, and is no exchange
    of the router's."""

    def __init__(self, inner: Exchange) -> None:
        super().__init__(
            inner.name,
            TYPE_DELAYED,
            inner.durable,
            inner.auto_delete,
            inner.internal,
            inner.arguments,
            needs_headers=True,
            key_property=inner.key_property,
            chooses_one=inner.chooses_one,
        )
        self._inner: Final = inner
        # Where messages wait. Not there before the virtual host has made it.
        self.holder: Destination | None = None

    def match(self, routing_key: str, headers: dict[str, object] | None, found: list[Destination]) -> None:
        if headers and self.holder is not None and delay_ms(headers) > 0:
            found.append(self.holder)
        else:
            self._inner.match(routing_key, headers, found)
            self.effort = self._inner.effort

    def validate(self, routing_key: str, arguments: dict[str, object]) -> None:
        self._inner.validate(routing_key, arguments)

    def _index(self, binding: Binding) -> None:
        self._inner.bind(binding.destination, binding.routing_key, binding.arguments)

    def _unindex(self, binding: Binding) -> None:
        self._inner.unbind(binding.destination, binding.routing_key, binding.arguments)


def requested_delay(headers: dict[str, object]) -> int | None:
    """The number in a message's header `x-delay`, in milliseconds; None where there is none."""
    value = headers.get(DELAY_HEADER)
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        digits = value[1:] if value[:1] in ("-", "+") else value
        return int(value) if digits.isdecimal() and digits.isascii() and len(digits) <= _DIGITS_MAX else None
    if isinstance(value, float) and abs(value) <= DELAY_MS_MAX:
        return int(value)
    return None


def delay_ms(headers: dict[str, object]) -> int:
    """How long a message with these headers is held: 0 for one that is routed at once, also where its delay is longer
    than DELAY_MS_MAX, as in the plugin."""
    delay = requested_delay(headers)
    return delay if delay is not None and 0 < delay <= DELAY_MS_MAX else 0
