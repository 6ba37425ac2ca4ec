"""A topic: a stream in several partitions, each a log of its own, with one configuration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64

from millpond.base.limits import RECORDS_DECOMPRESSED_AT_ONCE_MAX
from millpond.broker.streams.partition import Partition
from millpond.broker.streams.topic_settings import LONG_MAX, TOPIC_CONFIGS, TopicSettings

if TYPE_CHECKING:
    from millpond.broker.streams.stream_store import StreamStore

# Kafka's rule.
_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")
# The segment.ms of a stream that AMQP has declared: RabbitMQ's segments are not completed by their age.
NEVER_MS: Final = LONG_MAX


def is_topic_name(name: str) -> bool:
    """Whether Kafka lets a topic be called so."""
    return name not in {".", ".."} and _NAME.fullmatch(name) is not None


@final
class Limits:
    """Retention and the size of segments, where a policy says it; -1 where it does not."""

    def __init__(self, age_max_ms: i64, bytes_max: i64, segment_bytes: i64) -> None:
        self.age_max_ms: Final[i64] = age_max_ms
        self.bytes_max: Final[i64] = bytes_max
        self.segment_bytes: Final[i64] = segment_bytes


NO_LIMITS: Final = Limits(-1, -1, -1)


@final
class Topic:
    """One topic of a virtual host. `id` is the 16 bytes by which clients tell it from a later one of its name.
    `arguments` are those of the stream that AMQP has declared; None where the topic was made in another way."""

    def __init__(
        self,
        name: str,
        id: bytes,
        overrides: dict[str, str],
        store: StreamStore,
        arguments: dict[str, object] | None = None,
    ) -> None:
        self.name: Final = name
        self.id: Final = id
        self.arguments: Final = arguments
        # What was configured, by its name; the defaults are not in it.
        self.overrides = overrides
        self.settings = TopicSettings(overrides)
        # What acts in place of its configuration.
        self.limits = NO_LIMITS
        self.partitions: Final[list[Partition]] = []
        self.deleted = False
        # It is what a queue keeps of its messages, and belongs to it.
        self.is_history = False
        self.has_kafka_name: Final = is_topic_name(name)
        self._store: Final = store

    def config(self, name: str) -> str:
        """What an entry of the configuration is: configured, or by default."""
        return self.overrides.get(name, TOPIC_CONFIGS[name].default)

    def limit_of(self, name: str) -> i64:
        """What policies say in place of an entry of the configuration; -1 where they say nothing."""
        limits = self.limits
        if name == "retention.ms":
            return limits.age_max_ms
        if name == "retention.bytes":
            return limits.bytes_max
        return limits.segment_bytes if name == "segment.bytes" else -1

    def add_partition(self, partition: Partition) -> None:
        self.partitions.append(partition)
        self._set_up(partition)
        self._store.add(partition)

    def configure(self, overrides: dict[str, str]) -> None:
        """Take another configuration, which acts at once."""
        self.overrides = overrides
        self.settings = TopicSettings(overrides)
        self._changed()

    def limit(self, limits: Limits) -> None:
        """Let policies say what is kept. It acts at once."""
        current = self.limits
        if (
            limits.age_max_ms != current.age_max_ms
            or limits.bytes_max != current.bytes_max
            or limits.segment_bytes != current.segment_bytes
        ):
            self.limits = limits
            self._changed()

    def _changed(self) -> None:
        for partition in self.partitions:
            self._set_up(partition)
            self._store.retain(partition)

    def _set_up(self, partition: Partition) -> None:
        settings, limits = self.settings, self.limits
        partition.deletes = settings.deletes
        partition.age_max_ms = limits.age_max_ms if limits.age_max_ms >= 0 else settings.retention_ms
        partition.bytes_max = limits.bytes_max if limits.bytes_max >= 0 else settings.retention_bytes
        segment_bytes = settings.segment_bytes if "segment.bytes" in self.overrides else -1
        partition.segment_bytes = limits.segment_bytes if limits.segment_bytes >= 0 else segment_bytes
        # A stream of AMQP's keeps the segment that is written to, however old it is, as RabbitMQ does.
        is_never = self.arguments is not None and settings.segment_ms == NEVER_MS
        partition.segment_ms = -1 if is_never else settings.segment_ms
        partition.compacts = settings.compacts
        partition.delete_retention_ms = settings.delete_retention_ms
        partition.min_compaction_lag_ms = settings.min_compaction_lag_ms
        partition.max_compaction_lag_ms = settings.max_compaction_lag_ms
        partition.min_cleanable_dirty_ratio = settings.min_cleanable_dirty_ratio

    def rewrites(self, codec: i64) -> bool:
        """Whether batches of this codec are changed before they are appended."""
        settings = self.settings
        return settings.stamps_append_time or (settings.codec >= 0 and settings.codec != codec)

    def rewritten(self, batch: bytes, now_ms: int) -> bytes:
        """A batch as the configuration wants it. CorruptData where its records cannot be read."""
        # Few topics ask for it, and it brings the codecs along.
        from millpond.storage.batch_rewrite import recompressed, with_append_time

        settings = self.settings
        if settings.codec >= 0:
            batch = recompressed(batch, settings.codec, settings.codec_level, RECORDS_DECOMPRESSED_AT_ONCE_MAX)
        return with_append_time(batch, now_ms) if settings.stamps_append_time else batch

    def delete(self) -> None:
        """Forget everything, and the logs."""
        self.deleted = True
        for partition in self.partitions:
            partition.delete()
