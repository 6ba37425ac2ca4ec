"""A message as the core sees it: where it was published to, its properties, its body.

The core never looks inside a protocol's encoding. `Properties` keeps the bytes that the protocol put in, answers the
few questions that the core asks (persistent? priority? expiration? headers?), and makes changed copies for
dead-lettering. Each protocol registers its encoding in `PROPERTIES_FORMATS`, so that a message read back from the log
comes out exactly as it went in.

Messages are immutable and shared: a fanout to a hundred queues holds one `Message`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from librt.strings import BytesWriter
from mypy_extensions import i64, mypyc_attr

from millpond.base.errors import PreconditionFailed


@final
@mypyc_attr(acyclic=True)
class Address:
    """Where a message was published to. Shared by all messages that take the same route."""

    def __init__(self, exchange: str, routing_key: str) -> None:
        self.exchange: Final = exchange
        self.routing_key: Final = routing_key


@mypyc_attr(allow_interpreted_subclasses=True)
class Properties:
    """A message's properties in the encoding of the protocol that published it.

    `format` is the encoding's number in `PROPERTIES_FORMATS`; `expiration_ms` is -1 where the message never expires.
    """

    def __init__(self, format: int, raw: bytes, persistent: bool, priority: int, expiration_ms: i64) -> None:
        self.format: Final = format
        self.raw: Final = raw
        self.persistent: Final = persistent
        self.priority: Final = priority
        self.expiration_ms: Final = expiration_ms

    def headers(self) -> dict[str, object]:
        """The application's headers, decoded. Empty where there are none. A fresh dict on every call."""
        raise NotImplementedError

    def named(self, name: str) -> str:
        """The text of `message_id`, `correlation_id` or `timestamp` (seconds since 1970, in digits). Empty where the
        message has none."""
        raise NotImplementedError

    def described(self) -> dict[str, object]:
        """Those that the message has, as plain values under AMQP's names, for operators to look at."""
        raise NotImplementedError

    def write_record_headers(self, writer: BytesWriter) -> i64:
        """Append the headers that Kafka's consumers are shown, as they stand in a record, and say how many they are; -1
        where `described` must be asked. Only for speed: `streams/message_records.py` says what they are."""
        return -1

    def replaced(self, headers: dict[str, object], keep_expiration: bool) -> Properties:
        """A copy whose headers named in `headers` are set (removed where the value is None), the others untouched,
        byte for byte; without the expiration unless `keep_expiration`."""
        raise NotImplementedError


def further_routing_keys(headers: dict[str, object]) -> list[str] | None:
    """The routing keys in the headers CC and BCC; None where there are none.

    Raises PreconditionFailed where they are not lists of texts.
    """
    keys: list[str] = []
    for name in ("CC", "BCC"):
        named = headers.get(name)
        if named is None:
            continue
        if not isinstance(named, list) or not all([isinstance(key, str) for key in named]):
            raise PreconditionFailed(f"invalid message: {{unacceptable_type_in_header,{name}}}")
        for key in named:
            if isinstance(key, str):
                keys.append(key)
    return keys or None


# Encoding number, below 32 -> how to read it back from `Properties.raw`. The numbers are on disk: never reuse one.
PROPERTIES_FORMATS: Final[dict[int, Callable[[bytes], Properties]]] = {}

# What a Message and its place in a queue take besides properties and body, in bytes; measured.
MESSAGE_OVERHEAD_BYTES: Final = 256


@final
@mypyc_attr(acyclic=True)
class Message:
    """One published message. `timestamp_ms` is when the broker received it (wall clock).

    One that waits for its time in a `DelayedBacklog` has a `due_ms` (wall clock), and `returns`: how often it was given
    back before.
    """

    def __init__(
        self,
        address: Address,
        properties: Properties,
        body: bytes,
        timestamp_ms: i64,
        due_ms: i64 = 0,
        returns: i64 = 0,
    ) -> None:
        self.address: Final = address
        self.properties: Final = properties
        self.body: Final = body
        self.timestamp_ms: Final[i64] = timestamp_ms
        self.due_ms: Final[i64] = due_ms
        self.returns: Final[i64] = returns
        # How many queues hold it in memory: it counts once against the memory budget, however many they are.
        self.holders: i64 = 0
