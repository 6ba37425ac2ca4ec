"""A topic: a stream in several partitions, each a log of its own, with one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64

from millpond.base.limits import RECORDS_DECOMPRESSED_AT_ONCE_MAX
from millpond.broker.streams.partition import Partition
from millpond.broker.streams.topic_settings import TopicSettings

if TYPE_CHECKING:
    from millpond.broker.streams.stream_store import StreamStore


@final
class Topic:
    """One topic of a virtual host. `id` is the 16 bytes by which clients tell it from a later one of its name."""

    def __init__(self, name: str, id: bytes, overrides: dict[str, str], store: StreamStore) -> None:
        self.name: Final = name
        self.id: Final = id
        # What was configured, by its name; the defaults are not in it.
        self.overrides = overrides
        self.settings = TopicSettings(overrides)
        self.partitions: Final[list[Partition]] = []
        self.deleted = False
        self._store: Final = store

    def add_partition(self, partition: Partition) -> None:
        self.partitions.append(partition)
        self._set_up(partition)
        self._store.add(partition)

    def configure(self, overrides: dict[str, str]) -> None:
        """Take another configuration, which acts at once."""
        self.overrides = overrides
        self.settings = TopicSettings(overrides)
        for partition in self.partitions:
            self._set_up(partition)
            self._store.retain(partition)

    def _set_up(self, partition: Partition) -> None:
        settings = self.settings
        partition.deletes = settings.deletes
        partition.age_max_ms = settings.retention_ms
        partition.bytes_max = settings.retention_bytes
        partition.segment_bytes = settings.segment_bytes
        partition.segment_ms = settings.segment_ms
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
