"""What clients may say in the arguments of a declaration, and when two declarations are the same.

Wording and rules are RabbitMQ's: an argument it does not know is kept and ignored, one it knows must have the right
type, and a second declaration must repeat those that matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from millpond.base.errors import PreconditionFailed
from millpond.base.limits import (
    NAME_BYTES_MAX,
    PRIORITY_MAX,
    QUORUM_DELIVERY_LIMIT,
    QUORUM_PRIORITY_MAX,
    SHARE_DELIVERIES_MAX,
    STREAM_SEGMENT_BYTES_MAX,
)
from millpond.broker.queues.settings import (
    BACKOFF_EXPONENTIAL,
    BACKOFF_LINEAR,
    DEAD_LETTER_AT_LEAST_ONCE,
    DEAD_LETTER_AT_MOST_ONCE,
    OVERFLOW_DROP_HEAD,
    OVERFLOW_REJECT,
    OVERFLOW_REJECT_DEAD_LETTER,
    RETRY_ALL,
    RETRY_DISABLED,
    RETRY_FAILED,
    RETRY_RETURNED,
    TYPE_CLASSIC,
    TYPE_QUORUM,
    TYPE_SHARE,
    TYPE_STREAM,
    QueueSettings,
)
from millpond.broker.streams.subscription import interval_ms

QUEUE_TYPE_NAMES: Final = (TYPE_CLASSIC, TYPE_QUORUM, TYPE_STREAM, TYPE_SHARE)
# How RabbitMQ's texts call them.
TYPE_MODULES: Final = {
    TYPE_CLASSIC: "rabbit_classic_queue",
    TYPE_QUORUM: "rabbit_quorum_queue",
    TYPE_STREAM: "rabbit_stream_queue",
    TYPE_SHARE: "share queue",
}

# RabbitMQ keeps timers in Erlang, whose longest is this many milliseconds (about 49 days) short of 2^32.
TTL_MS_MAX: Final = 4_294_967_294 * 1000

# What 64 bits hold: a field table can have larger numbers.
COUNT_MAX: Final = (1 << 63) - 1

_OVERFLOWS: Final = (OVERFLOW_DROP_HEAD, OVERFLOW_REJECT, OVERFLOW_REJECT_DEAD_LETTER)


def _check_count(value: object, arguments: dict[str, object]) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return "expected integer"
    if value > COUNT_MAX:
        return f"{{value_too_big,{value}}}"
    return f"{{value_negative,{value}}}" if value < 0 else None


def _check_ttl(value: object, arguments: dict[str, object]) -> str | None:
    problem = _check_count(value, arguments)
    if problem is None and isinstance(value, int) and value > TTL_MS_MAX:
        return f"{{value_too_big,{value}}}"
    return problem


def _check_expires(value: object, arguments: dict[str, object]) -> str | None:
    return "{value_zero,0}" if value == 0 and not isinstance(value, bool) else _check_ttl(value, arguments)


def _check_text(value: object, arguments: dict[str, object]) -> str | None:
    return None if isinstance(value, str) else "expected a string"


def _check_dead_letter_key(value: object, arguments: dict[str, object]) -> str | None:
    if isinstance(value, str) and "x-dead-letter-exchange" not in arguments:
        return "routing_key_but_no_dlx_defined"
    if isinstance(value, str) and len(value.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX:
        # RabbitMQ takes it, and fails when the message is delivered: no frame holds such a key.
        return f"longer than {NAME_BYTES_MAX} bytes"
    return _check_text(value, arguments)


def _check_overflow(value: object, arguments: dict[str, object]) -> str | None:
    return None if value in _OVERFLOWS else "invalid overflow"


def _check_queue_type(value: object, arguments: dict[str, object]) -> str | None:
    return None if value in QUEUE_TYPE_NAMES else f"unsupported queue type '{value}'"


def _check_priority(value: object, arguments: dict[str, object]) -> str | None:
    problem = _check_count(value, arguments)
    if problem is None and isinstance(value, int) and value > PRIORITY_MAX:
        return f"{{max_value_exceeded,{value}}}"
    return problem


def _check_boolean(value: object, arguments: dict[str, object]) -> str | None:
    return None if isinstance(value, bool) else "expected boolean"


def _check_delivery_limit(value: object, arguments: dict[str, object]) -> str | None:
    # -1 lifts the limit that a quorum queue has by default.
    return None if value == -1 and not isinstance(value, bool) else _check_count(value, arguments)


def _check_strategy(value: object, arguments: dict[str, object]) -> str | None:
    known = (DEAD_LETTER_AT_MOST_ONCE, DEAD_LETTER_AT_LEAST_ONCE)
    return None if value in known else "invalid_dlx_strategy"


def _check_retry_type(value: object, arguments: dict[str, object]) -> str | None:
    if value not in (RETRY_DISABLED, RETRY_RETURNED, RETRY_FAILED, RETRY_ALL):
        return "invalid delayed retry type"
    if value != RETRY_DISABLED and "x-delayed-retry-min" not in arguments:
        return f"x-delayed-retry-min is required when x-delayed-retry-type is {value}"
    return None


def _check_retry_min(value: object, arguments: dict[str, object]) -> str | None:
    return "{value_zero,0}" if value == 0 and not isinstance(value, bool) else _check_ttl(value, arguments)


def _check_retry_max(value: object, arguments: dict[str, object]) -> str | None:
    problem = _check_ttl(value, arguments)
    shortest = arguments.get("x-delayed-retry-min")
    if problem is None and isinstance(value, int) and isinstance(shortest, int) and value < shortest:
        return f"x-delayed-retry-max ({value}) must not be smaller than x-delayed-retry-min ({shortest})"
    return problem


def _check_backoff(value: object, arguments: dict[str, object]) -> str | None:
    return None if value in (BACKOFF_LINEAR, BACKOFF_EXPONENTIAL) else "invalid backoff"


def _check_age(value: object, arguments: dict[str, object]) -> str | None:
    if not isinstance(value, str):
        return "expected a string"
    return None if interval_ms(value) >= 0 else "invalid_max_age"


# Argument -> what is wrong with a value, None where nothing is. A new argument is a line here.
_CHECKS: Final[dict[str, Callable[[object, dict[str, object]], str | None]]] = {
    "x-message-ttl": _check_ttl,
    "x-expires": _check_expires,
    "x-max-length": _check_count,
    "x-max-length-bytes": _check_count,
    "x-overflow": _check_overflow,
    "x-dead-letter-exchange": _check_text,
    "x-dead-letter-routing-key": _check_dead_letter_key,
    "x-dead-letter-strategy": _check_strategy,
    "x-queue-type": _check_queue_type,
    "x-max-priority": _check_priority,
    "x-single-active-consumer": _check_boolean,
    "x-delivery-limit": _check_delivery_limit,
    "x-consumer-timeout": _check_count,
    "x-delayed-retry-type": _check_retry_type,
    "x-delayed-retry-min": _check_retry_min,
    "x-delayed-retry-max": _check_retry_max,
    "x-delayed-retry-backoff": _check_backoff,
    "x-max-age": _check_age,
    "x-stream-max-segment-size-bytes": _check_count,
    "x-stream-filter-size-bytes": _check_count,
    "x-source-topic": _check_text,
    "x-retention-ms": _check_ttl,
}

# Arguments of streams only, and all that a stream may have of those that other types know.
_STREAM_ONLY: Final = ("x-max-age", "x-stream-max-segment-size-bytes", "x-stream-filter-size-bytes")
_STREAM_ALLOWED: Final = (*_STREAM_ONLY, "x-queue-type", "x-max-length-bytes")
# Of a queue over a topic: its messages are the topic's, so nothing about keeping them.
_SHARE_ALLOWED: Final = (
    "x-queue-type",
    "x-source-topic",
    "x-retention-ms",
    "x-delivery-limit",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-single-active-consumer",
    "x-consumer-timeout",
    "x-expires",
)
# What RabbitMQ knows of other types besides, and refuses for a stream.
_STREAM_REFUSED: Final = (
    "x-queue-version",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-quorum-initial-group-size",
    "x-consumer-disconnected-timeout",
)
# RabbitMQ's range for the size of its filters of batches. Here there are none, as messages are filtered one by one.
FILTER_BYTES: Final = (16, 255)

# --- What policies may set ------------------------------------------------------------------------------------------

# A setting's value by one side, by the other, and the queue's type -> the value that acts.
Merge = Callable[[object, object, str], object]


def _first(first: object, second: object, queue_type: str) -> object:
    return first


def _second(first: object, second: object, queue_type: str) -> object:
    return second


def _smaller(first: object, second: object, queue_type: str) -> object:
    return min(first, second) if isinstance(first, int) and isinstance(second, int) else second


def _greater(first: object, second: object, queue_type: str) -> object:
    return max(first, second) if isinstance(first, int) and isinstance(second, int) else second


def _stricter_limit(first: object, second: object, queue_type: str) -> object:
    """The smaller limit. A negative one is none."""
    if isinstance(first, int) and isinstance(second, int) and (first < 0 or second < 0):
        return max(first, second)
    return _smaller(first, second, queue_type)


def _smaller_but_streams(first: object, second: object, queue_type: str) -> object:
    """The smaller, but for a stream, where the policy wins."""
    return first if queue_type == TYPE_STREAM else _smaller(first, second, queue_type)


def _second_but_quorum(first: object, second: object, queue_type: str) -> object:
    """The argument, but for a quorum queue, where the policy wins."""
    return first if queue_type == TYPE_QUORUM else second


def _check_any_integer(value: object, arguments: dict[str, object]) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return "expected integer"
    return None if abs(value) <= COUNT_MAX else f"{{value_too_big,{value}}}"


def _check_positive(value: object, arguments: dict[str, object]) -> str | None:
    return "expected a positive integer" if value == 0 else _check_ttl(value, arguments)


def _check_routing_key(value: object, arguments: dict[str, object]) -> str | None:
    # Unlike as an argument it may come without an exchange: then it does nothing.
    return _check_dead_letter_key(value, {**arguments, "x-dead-letter-exchange": ""})


def _check_max_age(value: object, arguments: dict[str, object]) -> str | None:
    is_age = isinstance(value, str) and interval_ms(value) >= 0
    return None if is_age else "expected a number and a unit of Y, M, D, h, m, s"


def _check_some_text(value: object, arguments: dict[str, object]) -> str | None:
    return None if isinstance(value, str) and value else "expected a text"


def _check_names(value: object, arguments: dict[str, object]) -> str | None:
    if isinstance(value, list):
        return None if all([isinstance(item, (str, dict)) for item in value]) else "expected a list of names"
    return _check_text(value, arguments)


def _one_of(*allowed: object) -> Callable[[object, dict[str, object]], str | None]:
    return lambda value, arguments: None if value in allowed and not isinstance(value, bool) else "not one of those"


def _between(low: int, high: int) -> Callable[[object, dict[str, object]], str | None]:
    return lambda value, arguments: (
        None if _check_count(value, arguments) is None and low <= value <= high else "out of range"  # type: ignore[operator]
    )


_CLASSIC: Final = frozenset({TYPE_CLASSIC})
_QUORUM: Final = frozenset({TYPE_QUORUM})
_STREAM: Final = frozenset({TYPE_STREAM})
_LOGS: Final = frozenset({TYPE_STREAM, TYPE_SHARE})


class PolicyKey(NamedTuple):
    """A key that the definition of a policy may have. The argument of the same meaning is called "x-" and the key.

    what           completes "... is not a valid", when `check` finds something wrong
    with_argument  what acts when a policy and a queue's own argument both say something
    with_operator  what acts when a policy and an operator policy both do; None: operator policies may not have it
    not_for        types of queues; a policy that has the key does not apply to such a queue at all (RabbitMQ's rule)
    """

    what: str
    check: Callable[[object, dict[str, object]], str | None]
    with_argument: Merge = _second
    with_operator: Merge | None = None
    not_for: frozenset[str] = frozenset()


# RabbitMQ 4's, and its rules. A new argument that policies may set too is one more line here. Those after
# "alternate-exchange" act on nothing: they are about clusters, or about how classic queues once kept their messages.
POLICY_KEYS: Final[dict[str, PolicyKey]] = {
    "message-ttl": PolicyKey("message TTL", _check_ttl, _smaller, _smaller, _LOGS),
    "expires": PolicyKey("queue expiry", _check_expires, _smaller, _smaller, _STREAM),
    "max-length": PolicyKey("maximum length", _check_count, _smaller, _smaller, _LOGS),
    "max-length-bytes": PolicyKey("maximum length in bytes", _check_count, _smaller_but_streams, _smaller),
    "overflow": PolicyKey("overflow value", _check_overflow, _second_but_quorum, _second, _LOGS),
    "dead-letter-exchange": PolicyKey("dead letter exchange name", _check_text, not_for=_STREAM),
    "dead-letter-routing-key": PolicyKey("dead letter routing key", _check_routing_key, not_for=_STREAM),
    "dead-letter-strategy": PolicyKey("dead letter strategy", _check_strategy, not_for=_CLASSIC | _STREAM),
    "delivery-limit": PolicyKey(
        "delivery limit", _check_any_integer, _stricter_limit, _stricter_limit, _CLASSIC | _STREAM
    ),
    "delayed-retry-type": PolicyKey(
        "delayed retry type. Must be one of: all, failed, returned, disabled",
        _one_of(RETRY_ALL, RETRY_FAILED, RETRY_RETURNED, RETRY_DISABLED),
        _first,
        _second,
    ),
    "delayed-retry-min": PolicyKey(
        "delayed retry minimum delay. Must be a positive integer", _check_retry_min, _smaller, _greater
    ),
    "delayed-retry-max": PolicyKey(
        "delayed retry maximum delay. Must be a positive integer", _check_retry_min, _smaller, _smaller
    ),
    # Not RabbitMQ's, whose delays grow linearly.
    "delayed-retry-backoff": PolicyKey("backoff", _check_backoff, _first, _second),
    "consumer-timeout": PolicyKey("consumer timeout", _check_count, _smaller),
    "consumer-disconnected-timeout": PolicyKey("consumer disconnected timeout", _check_count, _smaller),
    "max-age": PolicyKey("max age", _check_max_age, _first, not_for=_CLASSIC | _QUORUM),
    "stream-max-segment-size-bytes": PolicyKey(
        "segment size", _between(0, STREAM_SEGMENT_BYTES_MAX), _first, not_for=_CLASSIC | _QUORUM
    ),
    "stream-filter-size-bytes": PolicyKey("filter size. Valid range is 16-255", _between(16, 255), _first),
    "alternate-exchange": PolicyKey("alternate exchange name", _check_text),
    "max-in-memory-length": PolicyKey("maximum memory in bytes", _check_count, _smaller, _smaller, _CLASSIC | _STREAM),
    "max-in-memory-bytes": PolicyKey("maximum memory in bytes", _check_count, _smaller, _smaller, _CLASSIC | _STREAM),
    "queue-mode": PolicyKey("queue-mode value", _one_of("default", "lazy"), not_for=_QUORUM | _STREAM),
    "queue-version": PolicyKey("queue-version value", _one_of(1, 2), _second, _second),
    "queue-master-locator": PolicyKey("master locator", _check_text, _second, _second, _QUORUM | _STREAM),
    "queue-leader-locator": PolicyKey(
        "queue leader locator value", _one_of("client-local", "balanced", "random", "least-leaders")
    ),
    "initial-cluster-size": PolicyKey("cluster size", _check_count, not_for=_CLASSIC | _QUORUM),
    "target-group-size": PolicyKey("qq target count value", _check_positive, _second, _greater, _CLASSIC | _STREAM),
    "member-placement-tag": PolicyKey(
        "member-placement-tag value. Must be a non-empty string", _check_some_text, _second, _second
    ),
    "federation-upstream": PolicyKey("upstream name", _check_text),
    "federation-upstream-set": PolicyKey("upstream set name", _check_names),
    "federation-upstream-pattern": PolicyKey("pattern of upstream names", _check_text),
}

# Arguments that a second declaration must repeat.
_QUEUE_IDENTITY: Final = tuple(_CHECKS)


def queue_type(arguments: dict[str, object]) -> str:
    """The type of queue that a declaration asks for."""
    kind = _text(arguments, "x-queue-type") or TYPE_CLASSIC
    return TYPE_SHARE if keeps_history(arguments) else kind


def keeps_history(arguments: dict[str, object]) -> bool:
    """Whether a queue is to keep what has been settled. It is then a queue over a topic, which is its own."""
    return "x-retention-ms" in arguments and _text(arguments, "x-queue-type") != TYPE_STREAM


def checked_default_queue_type(name: str) -> str:
    """The queue type that a virtual host's setting means; RabbitMQ's files have older spellings. PreconditionFailed
    where there is none such."""
    if name in ("", "undefined"):
        return TYPE_CLASSIC
    short = name.removeprefix("rabbit_").removesuffix("_queue")
    if short not in (TYPE_CLASSIC, TYPE_QUORUM, TYPE_STREAM):
        raise PreconditionFailed(f"{name} is not a valid queue type")
    return short


def check_queue_arguments(arguments: dict[str, object], resource: str) -> None:
    """PreconditionFailed names the first argument that is wrong."""
    problem = _check_queue_type(arguments["x-queue-type"], arguments) if "x-queue-type" in arguments else None
    if problem is not None:
        raise PreconditionFailed(f"invalid arg 'x-queue-type' for {resource}: {problem}")
    kind = queue_type(arguments)
    for name, check in _CHECKS.items():
        if name in arguments and _is_known_to(kind, name):
            problem = check(arguments[name], arguments)
            if problem is not None:
                raise PreconditionFailed(f"invalid arg '{name}' for {resource}: {problem}")
    for name in arguments:
        if not _is_known_to(kind, name):
            raise PreconditionFailed(f"invalid arg '{name}' for {resource} of queue type {TYPE_MODULES[kind]}")
    if kind == TYPE_STREAM:
        _check_stream(arguments)


def _is_known_to(kind: str, name: str) -> bool:
    """Whether a queue of this type may have the argument. What no type knows is ignored."""
    if kind == TYPE_STREAM:
        return name in _STREAM_ALLOWED or (name not in _CHECKS and name not in _STREAM_REFUSED)
    if kind == TYPE_SHARE:
        return name in _SHARE_ALLOWED or (name not in _CHECKS and name not in _STREAM_REFUSED)
    return name not in _STREAM_ONLY and name != "x-source-topic"


def _check_stream(arguments: dict[str, object]) -> None:
    if _integer(arguments, "x-stream-max-segment-size-bytes") > STREAM_SEGMENT_BYTES_MAX:
        raise PreconditionFailed("Exceeded max value for x-stream-max-segment-size-bytes")
    smallest, largest = FILTER_BYTES
    if not smallest <= _integer(arguments, "x-stream-filter-size-bytes", smallest) <= largest:
        raise PreconditionFailed("Invalid value for x-stream-filter-size-bytes")


# How often a message comes back, where nothing else is said. A queue over a topic does as Kafka's share groups.
_DELIVERY_LIMITS: Final = {TYPE_QUORUM: QUORUM_DELIVERY_LIMIT, TYPE_SHARE: SHARE_DELIVERIES_MAX - 1}


def queue_settings(arguments: dict[str, object]) -> QueueSettings:
    """The settings that a queue's arguments, which have been checked, ask for."""
    kind = queue_type(arguments)
    is_quorum = kind == TYPE_QUORUM
    # A queue that keeps its history is else as the one that it is declared to be.
    retries_as = _text(arguments, "x-queue-type") or TYPE_CLASSIC
    # What a queue over a topic refuses it does not refuse by its length: nothing may be dropped to dead-letter it.
    overflow = OVERFLOW_REJECT if kind == TYPE_SHARE else _text(arguments, "x-overflow") or OVERFLOW_DROP_HEAD
    return QueueSettings(
        message_ttl_ms=_integer(arguments, "x-message-ttl"),
        length_max=_integer(arguments, "x-max-length"),
        length_bytes_max=_integer(arguments, "x-max-length-bytes"),
        overflow=overflow,
        dead_letter_exchange=_text(arguments, "x-dead-letter-exchange"),
        dead_letter_routing_key=_text(arguments, "x-dead-letter-routing-key"),
        dead_letter_strategy=_text(arguments, "x-dead-letter-strategy") or DEAD_LETTER_AT_MOST_ONCE,
        expires_ms=_integer(arguments, "x-expires"),
        delivery_limit=_integer(arguments, "x-delivery-limit", _DELIVERY_LIMITS.get(retries_as, -1)),
        priority_max=_integer(arguments, "x-max-priority", QUORUM_PRIORITY_MAX if is_quorum else 0),
        single_active=arguments.get("x-single-active-consumer") is True,
        consumer_timeout_ms=_integer(arguments, "x-consumer-timeout"),
        retry_type=_text(arguments, "x-delayed-retry-type") or RETRY_DISABLED,
        retry_min_ms=_integer(arguments, "x-delayed-retry-min", 0),
        retry_max_ms=_integer(arguments, "x-delayed-retry-max", TTL_MS_MAX),
        retry_backoff=_text(arguments, "x-delayed-retry-backoff") or BACKOFF_LINEAR,
        age_max_ms=interval_ms(_text(arguments, "x-max-age") or ""),
        segment_bytes=_integer(arguments, "x-stream-max-segment-size-bytes"),
    )


def _integer(arguments: dict[str, object], name: str, default: int = -1) -> int:
    value = arguments.get(name)
    return value if isinstance(value, int) else default


def _text(arguments: dict[str, object], name: str) -> str | None:
    value = arguments.get(name)
    return value if isinstance(value, str) else None


def compare_flag(name: str, resource: str, received: object, current: object) -> None:
    """Raise PreconditionFailed unless a declaration's flag or type is what it was at first."""
    if received != current:
        raise PreconditionFailed(
            f"inequivalent arg '{name}' for {resource}: received '{_shown(received)}' "
            f"but current is '{_shown(current)}'"
        )


def compare_queue_arguments(resource: str, received: dict[str, object], current: dict[str, object]) -> None:
    """Raise PreconditionFailed unless the arguments that make a queue what it is are the same."""
    for name in _QUEUE_IDENTITY:
        _compare_argument(name, resource, received.get(name), current.get(name))


def compare_exchange_arguments(resource: str, received: dict[str, object], current: dict[str, object]) -> None:
    """Raise PreconditionFailed unless the alternate exchange is the same."""
    _compare_argument(
        "alternate-exchange", resource, received.get("alternate-exchange"), current.get("alternate-exchange")
    )


def _compare_argument(name: str, resource: str, received: object, current: object) -> None:
    if name == "x-queue-type":
        # RabbitMQ adds the type to a declaration that has none, before it compares.
        received = TYPE_CLASSIC if received is None else received
        current = TYPE_CLASSIC if current is None else current
    if received == current and type(received) is type(current):
        return
    if received is not None and current is not None:
        compare_flag(name, resource, received, current)
        return
    raise PreconditionFailed(
        f"inequivalent arg '{name}' for {resource}: received {_typed(received)} but current is {_typed(current)}"
    )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _typed(value: object) -> str:
    if value is None:
        return "none"
    return f"the value '{_shown(value)}' of type '{_type_name(value)}'"


def _type_name(value: object) -> str:
    """The name that RabbitMQ gives the type in which clients send such a value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "signedint" if -(2**31) <= value < 2**31 else "long"
    if isinstance(value, float):
        return "double"
    return "longstr" if isinstance(value, str) else "table" if isinstance(value, dict) else "array"
