"""What is measured of Kafka's protocol. A workload is a line in `WORKLOADS`: what its client processes do.

Settings are librdkafka's; what is not named has the library's default. Idempotence is off, as it is by default there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class KafkaWorkload:
    """One row of the table for each broker."""

    name: str
    title: str
    roles: tuple[str, ...]
    """What each client process does: a name of `bench.kafka.client.ROLES`."""
    record_bytes: int = 100
    partitions: int = 1
    """Of the topic that is made for a run, or that is read."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The producer's."""
    flushed_too: bool = False
    """Whether Apache Kafka is also measured with a topic that is forced to the disk."""
    is_paced: bool = False
    """Whether the rate is given, so that only latency and CPU tell brokers apart."""
    has_latency: bool = False
    seconds_factor: float = 1.0

    @property
    def reads_history(self) -> bool:
        """Whether it reads a topic that has been filled before, and not one of its own."""
        return all(role in {"replay", "member"} for role in self.roles)

    @property
    def is_by_request(self) -> bool:
        """Whether each record is a request of its own, as fast as that goes."""
        return self.settings.get("batch.num.messages") == 1


KAFKA_PACED_RATE: Final = 1000  # records per second, where the rate is given
_NOT_BATCHED: Final = {"batch.num.messages": 1, "linger.ms": 0, "queue.buffering.max.messages": 1000}

WORKLOADS: Final = (
    KafkaWorkload("kafka-produce", "100 B records, default batching, one partition", ("flood",), flushed_too=True),
    KafkaWorkload("kafka-produce-1k", "the same with 1 KiB records", ("flood",), record_bytes=1024),
    KafkaWorkload(
        "kafka-produce-100-partitions", "100 B records over 100 partitions in turn", ("flood",), partitions=100
    ),
    KafkaWorkload(
        "kafka-produce-single",
        "one record per request, at most 1,000 outstanding",
        ("flood",),
        settings=_NOT_BATCHED,
        flushed_too=True,
    ),
    KafkaWorkload(
        "kafka-produce-sync",
        "one record per request, one in flight; latency is from the call to the acknowledgement",
        ("synchronous",),
        settings=_NOT_BATCHED,
        flushed_too=True,
        has_latency=True,
    ),
    KafkaWorkload("kafka-consume", "replay from the beginning by one consumer", ("replay",)),
    KafkaWorkload("kafka-consume-4", "the same by four consumers at once, each of everything", ("replay",) * 4),
    KafkaWorkload(
        "kafka-groups",
        "replay by two groups of two members each, with their commits",
        ("member",) * 4,
        partitions=4,
    ),
    KafkaWorkload(
        "kafka-latency",
        "1,000 records/s, linger 0; latency is from when a record was due to the consumer in another process",
        ("paced", "listener"),
        settings={"linger.ms": 0},
        flushed_too=True,
        is_paced=True,
        has_latency=True,
        seconds_factor=1.5,
    ),
)
