"""A topic's configuration: the names, types and defaults of Apache Kafka's, and which of them act here.

A new entry that acts is a line in `TOPIC_CONFIGS`, an attribute of `TopicSettings`, and the place that looks at it.
Those that do not act are checked, kept and shown: they are about replicas, caches of the operating system and remote
storage, of which there is none here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

from mypy_extensions import i64

from millpond.base.errors import InvalidSetting
from millpond.base.limits import KAFKA_BATCH_BYTES_MAX, STREAM_SEGMENT_BYTES, TOPIC_MESSAGE_BYTES
from millpond.storage.compression import CODECS

INT: Final = "int"
LONG: Final = "long"
DOUBLE: Final = "double"
BOOLEAN: Final = "boolean"
STRING: Final = "string"
LIST: Final = "list"

_INT_MAX: Final = (1 << 31) - 1
LONG_MAX: Final = (1 << 63) - 1

# What a topic's compression.type means where it leaves batches as they come.
AS_PRODUCED: Final = -1


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """One entry. `least` and `most` bound numbers, `choices` the words that a text or the items of a list may be."""

    name: str
    kind: str
    default: str
    text: str
    acts: bool = False
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()


def _table(*entries: TopicConfig) -> dict[str, TopicConfig]:
    return {entry.name: entry for entry in entries}


TOPIC_CONFIGS: Final[dict[str, TopicConfig]] = _table(
    TopicConfig(
        "cleanup.policy", LIST, "delete", "delete: old segments go. compact: of each key the latest value stays.",
        True, choices=("compact", "delete"),
    ),
    TopicConfig("compression.gzip.level", INT, "-1", "The level where compression.type is gzip.", True, -1, 9),
    TopicConfig("compression.lz4.level", INT, "9", "The level where compression.type is lz4.", True, 1, 17),
    TopicConfig(
        "compression.type", STRING, "producer", "How batches are compressed; producer leaves them as they come.", True,
        choices=(*CODECS, "producer"),
    ),
    TopicConfig("compression.zstd.level", INT, "3", "The level where compression.type is zstd.", True, -131_072, 22),
    TopicConfig("delete.retention.ms", LONG, "86400000", "How long compaction keeps a deletion.", True, 0),
    TopicConfig("file.delete.delay.ms", LONG, "60000", "Files are deleted at once here.", False, 0),
    TopicConfig("flush.messages", LONG, str(LONG_MAX), "The journal makes messages durable, not this.", False, 1),
    TopicConfig("flush.ms", LONG, str(LONG_MAX), "The journal makes messages durable, not this.", False, 0),
    TopicConfig("follower.replication.throttled.replicas", LIST, "", "There are no other replicas."),
    TopicConfig("index.interval.bytes", INT, "4096", "How far apart index entries are.", False, 0),
    TopicConfig("leader.replication.throttled.replicas", LIST, "", "There are no other replicas."),
    TopicConfig("local.retention.bytes", LONG, "-2", "There is no remote storage.", False, -2),
    TopicConfig("local.retention.ms", LONG, "-2", "There is no remote storage.", False, -2),
    TopicConfig(
        "max.compaction.lag.ms", LONG, str(LONG_MAX), "Compaction comes at the latest after this long.", True, 1
    ),
    TopicConfig(
        "max.message.bytes", INT, str(TOPIC_MESSAGE_BYTES), "The largest batch of records.", True, 0,
        KAFKA_BATCH_BYTES_MAX,
    ),
    TopicConfig(
        "message.timestamp.after.max.ms", LONG, "3600000", "How far in the future a timestamp may lie.", True, 0
    ),
    TopicConfig(
        "message.timestamp.before.max.ms", LONG, str(LONG_MAX), "How far in the past a timestamp may lie.", True, 0
    ),
    TopicConfig(
        "message.timestamp.type", STRING, "CreateTime", "Whose clock it is: the producer's, or the broker's.", True,
        choices=("CreateTime", "LogAppendTime"),
    ),
    TopicConfig(
        "min.cleanable.dirty.ratio", DOUBLE, "0.5", "Compaction waits until this share of the log is new.", True, 0, 1
    ),
    TopicConfig("min.compaction.lag.ms", LONG, "0", "Compaction leaves what is younger.", True, 0),
    TopicConfig("min.insync.replicas", INT, "1", "There are no other replicas.", False, 1),
    TopicConfig("preallocate", BOOLEAN, "false", "Files grow as they are written."),
    TopicConfig("remote.log.copy.disable", BOOLEAN, "false", "There is no remote storage."),
    TopicConfig("remote.log.delete.on.disable", BOOLEAN, "false", "There is no remote storage."),
    TopicConfig("remote.storage.enable", BOOLEAN, "false", "There is no remote storage.", choices=("false",)),
    TopicConfig("retention.bytes", LONG, "-1", "How much of a partition is kept; -1 for all.", True),
    TopicConfig("retention.ms", LONG, "604800000", "How long records are kept; -1 for ever.", True, -1),
    TopicConfig(
        "segment.bytes", INT, str(STREAM_SEGMENT_BYTES), "Retention and compaction work on segments this large.",
        True, 14,
    ),
    TopicConfig("segment.index.bytes", INT, "10485760", "An index is as large as its segment needs.", False, 4),
    TopicConfig("segment.jitter.ms", LONG, "0", "Segments are rolled when segment.ms says.", False, 0),
    TopicConfig("segment.ms", LONG, "604800000", "A segment is complete at the latest after this long.", True, 1),
    TopicConfig("unclean.leader.election.enable", BOOLEAN, "false", "There are no other replicas."),
)  # fmt: skip


def checked_config(name: str, value: str | None) -> str:
    """The value as it is kept. InvalidSetting where there is no such entry, or it cannot have this value."""
    entry = TOPIC_CONFIGS.get(name)
    if entry is None:
        raise InvalidSetting(f"Unknown topic config name: {name}")
    if value is None:
        raise InvalidSetting(f"Null value not supported for topic configs: {name}")
    text = value.strip()
    if entry.kind in {INT, LONG, DOUBLE}:
        _check_number(entry, text)
    elif entry.kind == BOOLEAN:
        text = text.lower()
        if text not in (entry.choices or ("true", "false")):
            raise _invalid(entry, value, "Expected value to be either true or false")
    elif entry.kind == LIST:
        items = [item.strip() for item in text.split(",")] if text else []
        if entry.choices and (not items or any(item not in entry.choices for item in items)):
            raise _invalid(entry, value, f"String must be one of: {', '.join(entry.choices)}")
        text = ",".join(items)
    elif entry.choices and text not in entry.choices:
        raise _invalid(entry, value, f"String must be one of: {', '.join(entry.choices)}")
    return text


def _check_number(entry: TopicConfig, text: str) -> None:
    try:
        number = float(text) if entry.kind == DOUBLE else int(text)
    except ValueError:
        raise _invalid(entry, text, f"Not a number of type {entry.kind.upper()}") from None
    most = min(entry.most, {INT: _INT_MAX, LONG: LONG_MAX, DOUBLE: math.inf}[entry.kind])
    least = max(entry.least, -most - 1)
    if not least <= number <= most:
        raise _invalid(entry, text, f"Value must be at least {least:.15g} and at most {most:.15g}")


def _invalid(entry: TopicConfig, value: str, why: str) -> InvalidSetting:
    return InvalidSetting(f"Invalid value {value} for configuration {entry.name}: {why}")


@final
class TopicSettings:
    """What a topic's configuration says, as far as it acts. Built from checked overrides."""

    def __init__(self, overrides: dict[str, str]) -> None:
        def value(name: str) -> str:
            return overrides.get(name, TOPIC_CONFIGS[name].default)

        policies = value("cleanup.policy").split(",")
        self.deletes: Final = "delete" in policies
        self.compacts: Final = "compact" in policies
        self.retention_ms: Final[i64] = int(value("retention.ms"))
        self.retention_bytes: Final[i64] = int(value("retention.bytes"))
        self.segment_bytes: Final[i64] = int(value("segment.bytes"))
        self.segment_ms: Final[i64] = int(value("segment.ms"))
        self.delete_retention_ms: Final[i64] = int(value("delete.retention.ms"))
        self.min_compaction_lag_ms: Final[i64] = int(value("min.compaction.lag.ms"))
        self.max_compaction_lag_ms: Final[i64] = int(value("max.compaction.lag.ms"))
        self.min_cleanable_dirty_ratio: Final = float(value("min.cleanable.dirty.ratio"))
        self.batch_bytes_max: Final[i64] = int(value("max.message.bytes"))
        self.stamps_append_time: Final = value("message.timestamp.type") == "LogAppendTime"
        self.before_max_ms: Final[i64] = int(value("message.timestamp.before.max.ms"))
        self.after_max_ms: Final[i64] = int(value("message.timestamp.after.max.ms"))
        codec = value("compression.type")
        self.codec: Final[i64] = CODECS.get(codec, AS_PRODUCED)
        level = f"compression.{codec}.level"
        self.codec_level: Final = int(value(level)) if level in TOPIC_CONFIGS else None
