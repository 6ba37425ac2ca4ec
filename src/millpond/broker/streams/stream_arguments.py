"""What AMQP says of a stream, in the words of a topic's configuration, and whether a topic is what AMQP declares.

x-max-age                         retention.ms      none: -1, as a stream without one keeps everything
x-max-length-bytes                retention.bytes
x-stream-max-segment-size-bytes   segment.bytes
"""

from __future__ import annotations

from typing import Final

from millpond.broker.arguments import check_queue_arguments, compare_queue_arguments
from millpond.broker.queues.settings import TYPE_STREAM
from millpond.broker.streams.subscription import interval_ms
from millpond.broker.streams.topic import NEVER_MS, Topic
from millpond.broker.streams.topic_settings import TOPIC_CONFIGS

_TYPE: Final = "x-queue-type"
_MAX_AGE: Final = "x-max-age"
_MAX_LENGTH_BYTES: Final = "x-max-length-bytes"
_SEGMENT_BYTES: Final = "x-stream-max-segment-size-bytes"
# Argument -> the entry that means the same.
_CONFIGS: Final = {
    _MAX_AGE: "retention.ms",
    _MAX_LENGTH_BYTES: "retention.bytes",
    _SEGMENT_BYTES: "segment.bytes",
}
# The range of Kafka's entry; a segment that is larger or smaller than what there can be is as near to it as possible.
_SEGMENT_BYTES_MIN: Final = int(TOPIC_CONFIGS["segment.bytes"].least)
_SEGMENT_BYTES_MAX: Final = (1 << 31) - 1


def configs_of(arguments: dict[str, object]) -> dict[str, str]:
    """The configuration of a topic that is declared with these arguments, which have been checked."""
    configs = {"retention.ms": "-1", "segment.ms": str(NEVER_MS)}
    for name, config in _CONFIGS.items():
        if name in arguments:
            configs[config] = _config(name, arguments[name])
    return configs


def _config(name: str, value: object) -> str:
    if name == _MAX_AGE:
        return str(interval_ms(value)) if isinstance(value, str) else "-1"
    number = value if isinstance(value, int) else -1
    return str(min(max(number, _SEGMENT_BYTES_MIN), _SEGMENT_BYTES_MAX) if name == _SEGMENT_BYTES else number)


def shown_arguments(topic: Topic) -> dict[str, object]:
    """The arguments that AMQP is shown of a topic's streams."""
    return topic.arguments if topic.arguments is not None else {_TYPE: TYPE_STREAM}


def compare_with_topic(resource: str, received: dict[str, object], topic: Topic) -> None:
    """Raise PreconditionFailed unless a declaration describes this topic. One that Kafka has made was never given
    arguments: those that are told must mean what its configuration says, and need not be told."""
    if topic.arguments is not None:
        compare_queue_arguments(resource, received, topic.arguments)
        return
    kind = received.get(_TYPE)
    if kind != TYPE_STREAM:
        compare_queue_arguments(resource, {} if kind is None else {_TYPE: kind}, {_TYPE: TYPE_STREAM})
    check_queue_arguments(received, resource)
    current: dict[str, object] = {}
    told: dict[str, object] = {}
    for name, config in _CONFIGS.items():
        if name in received and _config(name, received[name]) != topic.config(config):
            told[name] = received[name]
            value = topic.config(config)
            if name == _MAX_AGE:
                current[name] = f"{int(value) // 1000}s" if int(value) >= 0 else None
            else:
                current[name] = int(value) if int(value) >= 0 else None
    compare_queue_arguments(resource, told, current)
