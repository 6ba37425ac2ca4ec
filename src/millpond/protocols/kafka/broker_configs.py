"""The node's own configuration under the names of Apache Kafka's brokers, to be shown: none of it can be changed by a
client.

The defaults of topics are among it, each under the name by which a Kafka broker has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from millpond.base.limits import (
    KAFKA_FETCH_BYTES_MAX,
    KAFKA_IDLE_MS,
    KAFKA_PARTITIONS_DESCRIBED_MAX,
    PRODUCER_IDLE_MS,
)
from millpond.broker.streams.topic_settings import BOOLEAN, INT, LIST, LONG, STRING, TOPIC_CONFIGS
from millpond.protocols.kafka.apis.metadata import NODE_ID, node_address

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Connection

_HOUR_MS: Final = 3_600_000

# By what name, and in which unit, a broker has the default of a topic's entry. Those of remote storage and of single
# topics have none.
BROKER_NAMES: Final[dict[str, tuple[str, int]]] = {
    "cleanup.policy": ("log.cleanup.policy", 1),
    "compression.gzip.level": ("compression.gzip.level", 1),
    "compression.lz4.level": ("compression.lz4.level", 1),
    "compression.type": ("compression.type", 1),
    "compression.zstd.level": ("compression.zstd.level", 1),
    "delete.retention.ms": ("log.cleaner.delete.retention.ms", 1),
    "file.delete.delay.ms": ("log.segment.delete.delay.ms", 1),
    "flush.messages": ("log.flush.interval.messages", 1),
    "flush.ms": ("log.flush.scheduler.interval.ms", 1),
    "index.interval.bytes": ("log.index.interval.bytes", 1),
    "local.retention.bytes": ("log.local.retention.bytes", 1),
    "local.retention.ms": ("log.local.retention.ms", 1),
    "max.compaction.lag.ms": ("log.cleaner.max.compaction.lag.ms", 1),
    "max.message.bytes": ("message.max.bytes", 1),
    "message.timestamp.after.max.ms": ("log.message.timestamp.after.max.ms", 1),
    "message.timestamp.before.max.ms": ("log.message.timestamp.before.max.ms", 1),
    "message.timestamp.type": ("log.message.timestamp.type", 1),
    "min.cleanable.dirty.ratio": ("log.cleaner.min.cleanable.ratio", 1),
    "min.compaction.lag.ms": ("log.cleaner.min.compaction.lag.ms", 1),
    "min.insync.replicas": ("min.insync.replicas", 1),
    "preallocate": ("log.preallocate", 1),
    "retention.bytes": ("log.retention.bytes", 1),
    "retention.ms": ("log.retention.hours", _HOUR_MS),
    "segment.bytes": ("log.segment.bytes", 1),
    "segment.index.bytes": ("log.index.size.max.bytes", 1),
    "segment.jitter.ms": ("log.roll.jitter.hours", _HOUR_MS),
    "segment.ms": ("log.roll.hours", _HOUR_MS),
    "unclean.leader.election.enable": ("unclean.leader.election.enable", 1),
}

# The same in finer units, which win where they are set. None is: clients that look for them find no value.
_FINER_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "flush.ms": ("log.flush.interval.ms",),
    "retention.ms": ("log.retention.minutes", "log.retention.ms"),
    "segment.jitter.ms": ("log.roll.jitter.ms",),
    "segment.ms": ("log.roll.ms",),
}


class BrokerConfig(NamedTuple):
    """One entry. `is_set` says that the operator chooses it. Without a value another entry says what counts."""

    name: str
    kind: str
    value: str | None
    text: str
    is_set: bool = False


def broker_default(name: str) -> tuple[str, str] | None:
    """The broker's name and value for the default of a topic's entry; None where it has none."""
    found = BROKER_NAMES.get(name)
    if found is None:
        return None
    broker_name, unit = found
    default = TOPIC_CONFIGS[name].default
    return broker_name, default if unit == 1 else str(int(default) // unit)


def broker_configs(connection: Connection) -> list[BrokerConfig]:
    """What this node's client is shown, by its name."""
    settings = connection.settings
    listener = "PLAINTEXT://{}:{}".format(*connection.transport.local_address())
    advertised = "PLAINTEXT://{}:{}".format(*node_address(connection))
    entries = [
        BrokerConfig("advertised.listeners", STRING, advertised, "Where clients are told to connect.", True),
        BrokerConfig(
            "auto.create.topics.enable", BOOLEAN, "true" if settings.auto_create_topics else "false",
            "Whether a topic that a client asks for and that is not there is made.", True,
        ),
        BrokerConfig("broker.id", INT, str(NODE_ID), "There is one broker."),
        BrokerConfig("connections.max.idle.ms", LONG, str(KAFKA_IDLE_MS), "When an idle connection is closed."),
        BrokerConfig("default.replication.factor", INT, "1", "There are no other replicas."),
        BrokerConfig("delete.topic.enable", BOOLEAN, "true", "Topics can be deleted."),
        BrokerConfig("fetch.max.bytes", INT, str(KAFKA_FETCH_BYTES_MAX), "The largest answer to a fetch."),
        BrokerConfig("listeners", LIST, listener, "Where this client has connected to.", True),
        BrokerConfig("log.dirs", LIST, connection.broker.store.folder, "Where topics are kept.", True),
        BrokerConfig(
            "max.request.partition.size.limit", INT, str(KAFKA_PARTITIONS_DESCRIBED_MAX),
            "How many partitions an answer to DescribeTopicPartitions has.",
        ),
        BrokerConfig("node.id", INT, str(NODE_ID), "There is one node."),
        BrokerConfig("num.partitions", INT, str(settings.partitions), "Of a topic that does not say.", True),
        BrokerConfig("process.roles", LIST, "broker,controller", "The node is its own controller."),
        BrokerConfig("producer.id.expiration.ms", INT, str(PRODUCER_IDLE_MS), "When an idle producer is forgotten."),
        BrokerConfig(
            "socket.request.max.bytes", INT, str(settings.request_bytes_max), "The largest request.", True
        ),
    ]  # fmt: skip
    for name, entry in TOPIC_CONFIGS.items():
        default = broker_default(name)
        if default is not None:
            entries.append(BrokerConfig(default[0], entry.kind, default[1], f"A topic's {name}: {entry.text}"))
        for finer in _FINER_NAMES.get(name, ()):
            entries.append(BrokerConfig(finer, entry.kind, None, f"A topic's {name}, where it is set: {entry.text}"))
    return sorted(entries, key=lambda entry: entry.name)
