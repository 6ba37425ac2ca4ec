"""A topic: a stream in several partitions, each a log of its own, with one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

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
        partition.age_max_ms = settings.retention_ms if settings.deletes else -1
        partition.bytes_max = settings.retention_bytes if settings.deletes else -1
        partition.segment_bytes = settings.segment_bytes

    def delete(self) -> None:
        """Forget everything, and the logs."""
        self.deleted = True
        for partition in self.partitions:
            partition.delete()
