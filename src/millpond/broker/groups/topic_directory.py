"""The topics of a virtual host, as its groups look at them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from millpond.broker.vhost import VirtualHost


class VhostTopics:
    """A `TopicDirectory` (see `modern.py`) of a virtual host, whose topics need not be there yet."""

    def __init__(self, vhost: VirtualHost) -> None:
        self._vhost: Final = vhost

    @property
    def version(self) -> int:
        return int(self._vhost.topics.version)

    def names(self) -> Iterator[str]:
        return iter(self._vhost.topics.by_name)

    def find(self, name: str) -> tuple[bytes, int] | None:
        topic = self._vhost.topics.by_name.get(name)
        return None if topic is None else (topic.id, len(topic.partitions))

    def name(self, topic_id: bytes) -> str | None:
        topic = self._vhost.topics.by_id.get(topic_id)
        return None if topic is None else topic.name


class NoTopics:
    """Of a broker that has none."""

    version = 0

    def names(self) -> Iterator[str]:
        return iter(())

    def find(self, name: str) -> tuple[bytes, int] | None:
        return None

    def name(self, topic_id: bytes) -> str | None:
        return None
