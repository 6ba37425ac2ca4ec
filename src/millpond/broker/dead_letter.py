"""Dead-lettering: what becomes of a message that leaves its queue without being acknowledged.

The message is published to the queue's dead-letter exchange with a record of its deaths in its headers, as RabbitMQ
does it (its Dead Letter Exchanges page): `x-death` lists one entry for each pair of queue and reason, the latest
first, and `x-first-death-*` and `x-last-death-*` name the ends of its history.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, final

from millpond.base.limits import DEATHS_RECORDED_MAX
from millpond.broker.message import Address, Message

_COUNT_MAX: Final = (1 << 63) - 1


@final
class DeadLetter:
    """A message as it is published to a dead-letter exchange, and its headers, decoded."""

    def __init__(self, message: Message, headers: dict[str, object]) -> None:
        self.message: Final = message
        self.headers: Final = headers


def dead_lettered(
    message: Message, queue: str, reason: str, exchange: str, routing_key: str | None, now_ms: int
) -> DeadLetter:
    """The message as it is published to `exchange`: it does not expire again, and keeps its routing key unless
    `routing_key` says otherwise."""
    source = message.address
    headers = message.properties.headers()
    died_before = deaths(headers)
    death: dict[str, object] = {"count": 1}
    others: list[dict[str, object]] = []
    for earlier in died_before:
        if earlier.get("queue") == queue and earlier.get("reason") == reason:
            count = earlier.get("count")
            death = dict(earlier)
            # A publisher may have put any number there, also one whose successor has no encoding.
            death["count"] = count + 1 if isinstance(count, int) and 0 < count < _COUNT_MAX else 1
        else:
            others.append(earlier)
    death["reason"] = reason
    death["queue"] = queue
    if "time" not in death:
        death["time"] = datetime.fromtimestamp(now_ms // 1000, UTC)
        death["exchange"] = source.exchange
        death["routing-keys"] = [source.routing_key, *(carbon_copies(headers) or [])]
        if message.properties.expiration_ms >= 0:
            death["original-expiration"] = str(message.properties.expiration_ms)
    changes: dict[str, object] = {
        "x-death": [death, *others[: DEATHS_RECORDED_MAX - 1]],
        "x-last-death-reason": reason,
        "x-last-death-queue": queue,
        "x-last-death-exchange": source.exchange,
    }
    if "x-first-death-reason" not in headers:
        changes["x-first-death-reason"] = reason
        changes["x-first-death-queue"] = queue
        changes["x-first-death-exchange"] = source.exchange
    if routing_key is not None and "CC" in headers:
        # Another routing key stands for all that the message had.
        changes["CC"] = None
    address = Address(exchange, source.routing_key if routing_key is None else routing_key)
    properties = message.properties.replaced(changes, False)
    headers.update(changes)
    if "CC" in changes:
        del headers["CC"]
    return DeadLetter(Message(address, properties, message.body, now_ms), headers)


def carbon_copies(headers: dict[str, object]) -> list[str] | None:
    """The further routing keys that a message still names in its header CC; None where there are none."""
    keys = headers.get("CC")
    return [key for key in keys if isinstance(key, str)] or None if isinstance(keys, list) else None


def deaths(headers: dict[str, object]) -> list[dict[str, object]]:
    """The entries of `x-death`, the latest first. Whatever a client may have put there instead is no entry."""
    entries = headers.get("x-death")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def is_cycle(queue: str, headers: dict[str, object]) -> bool:
    """Whether a message that was dead-lettered automatically has come round to `queue` again, where it died before,
    without ever being rejected by a consumer on the way: it would circle for ever."""
    for death in deaths(headers):
        if death.get("reason") == "rejected":
            return False
        if death.get("queue") == queue:
            return True
    return False
