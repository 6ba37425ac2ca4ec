"""What a consumer of a stream may ask for: where to begin, and which messages. Wording and rules are RabbitMQ's."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final, final

from mypy_extensions import i64

from millpond.base.errors import NotImplementedHere, PreconditionFailed
from millpond.base.limits import STREAM_FILTER_SEARCHES_MAX
from millpond.broker.queues.consumer import Consumer

START_FIRST: Final = 0
START_LAST: Final = 1
START_NEXT: Final = 2
START_OFFSET: Final = 3
START_TIME: Final = 4

_NAMES: Final = {"first": START_FIRST, "last": START_LAST, "next": START_NEXT}
# RabbitMQ's units of age, in milliseconds.
_UNITS_MS: Final = {
    "Y": 365 * 86_400_000,
    "M": 30 * 86_400_000,
    "D": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
}
_INTERVAL: Final = re.compile(r"([0-9]{1,18})([YMDhms])", re.ASCII)
# Longer ago than anything: what is counted in milliseconds has 64 bits.
_INTERVAL_MS_MAX: Final = 1 << 53
# Arguments of consumers of other queues.
_UNSUPPORTED: Final = ("x-priority", "x-consumer-timeout")

FILTER_HEADER: Final = "x-stream-filter-value"


def interval_ms(text: str) -> int:
    """Milliseconds of an interval such as 7D; -1 where it is none."""
    found = _INTERVAL.fullmatch(text)
    if found is None or int(found[1]) == 0:
        return -1
    return min(int(found[1]) * _UNITS_MS[found[2]], _INTERVAL_MS_MAX)


@final
class Subscription:
    """Where to begin, and which messages."""

    def __init__(self, arguments: dict[str, object], resource: str, now_ms: int) -> None:
        """Raises PreconditionFailed."""
        # An offset, or a time in milliseconds since 1970, where `start` is one of these.
        self.start, self.position = starting_place(arguments.get("x-stream-offset"), resource, now_ms)
        # The values that a message's filter value must be one of; None where all messages are wanted.
        self.filter: Final = _filter(arguments.get("x-stream-filter"))
        # Whether a message without a filter value is wanted as well.
        self.takes_unfiltered: Final = arguments.get("x-stream-match-unfiltered") is True
        # As they stand in a batch: one in which none of them occurs has nothing for this consumer.
        self.needles: Final[list[bytes]] = [
            value.encode("utf-8", "surrogateescape") for value in sorted(self.filter or ())
        ]

    def skips(self, batch: bytes) -> bool:
        """Whether nothing in the batch can be wanted."""
        if self.filter is None or self.takes_unfiltered or len(self.needles) > STREAM_FILTER_SEARCHES_MAX:
            return False
        for needle in self.needles:
            if needle in batch:
                return False
        return True


def starting_place(value: object, resource: str, now_ms: int) -> tuple[int, int]:
    """What `x-stream-offset` says: one of START_..., and the offset or the time (ms) that goes with it."""
    if value is None:
        return START_NEXT, 0
    if isinstance(value, str):
        if value in _NAMES:
            return _NAMES[value], 0
        age_ms = interval_ms(value)
        if age_ms >= 0:
            return START_TIME, max(0, now_ms - age_ms)
        shown = f'{{longstr,<<"{value}">>}}'
    elif isinstance(value, datetime):
        return START_TIME, int(value.timestamp()) * 1000
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62:
        return START_OFFSET, value
    else:
        shown = str(value)
    raise PreconditionFailed(f"invalid arg 'x-stream-offset' for {resource}: {{invalid_stream_offset_arg,{shown}}}")


def _filter(value: object) -> frozenset[str] | None:
    if isinstance(value, str):
        return frozenset((value,))
    if isinstance(value, list):
        return frozenset([text for text in value if isinstance(text, str)])
    return None


def check_subscription(consumer: Consumer, has_channel_limit: bool, resource: str, now_ms: i64) -> None:
    """Raise what RabbitMQ refuses such a consumer with."""
    arguments = consumer.arguments
    for name in arguments:
        if name in _UNSUPPORTED:
            raise PreconditionFailed(f"invalid arg '{name}' for {resource} of queue type rabbit_stream_queue")
    Subscription(arguments, resource, int(now_ms))
    if consumer.prefetch == 0:
        raise PreconditionFailed(f"consumer prefetch count is not set for stream {resource}")
    if not consumer.acknowledges:
        raise NotImplementedHere(f"automatic acknowledgement not supported by stream {resource}")
    if has_channel_limit:
        raise NotImplementedHere(f"{resource} does not support global qos")
