"""Fetch sessions (KIP-227): a client names its partitions once, and after that only what changes of them.

A connection has one session at most, which goes with it: whoever comes back without it is told that there is none, and
names all partitions again. Within a session each request has the number that follows the one before; the answer has
those partitions only of which there is something new to be told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64

if TYPE_CHECKING:
    from millpond.broker.streams.partition import Batch, Partition

# What has not been told yet: no offset.
_UNTOLD: Final = -2
_EPOCH_MAX: Final = 0x7FFF_FFFF


@final
class Wanted:
    """What a request, or a session, asks of one partition, and what there is. `topic` is empty where only the id is
    known, and there is no such topic."""

    def __init__(self, topic: str, topic_id: bytes, index: i64) -> None:
        self.topic = topic
        self.topic_id: Final = topic_id
        self.index: Final[i64] = index
        self.leader_epoch: i64 = -1
        self.offset: i64 = 0
        self.bytes_max: i64 = 0
        self.partition: Partition | None = None
        self.error: i64 = 0
        self.batches: list[Batch] = []
        self.size: i64 = 0
        # There is more than may be brought.
        self.has_more = False
        # What the client of a session has been told last.
        self._told_end: i64 = _UNTOLD
        self._told_start: i64 = _UNTOLD

    def take(self, other: Wanted) -> None:
        """Ask what another request asks."""
        self.leader_epoch = other.leader_epoch
        self.offset = other.offset
        self.bytes_max = other.bytes_max

    def is_news(self) -> bool:
        """Whether there is something that the client does not know."""
        partition = self.partition
        if self.size > 0 or self.error != 0 or partition is None:
            return True
        return partition.durable_end != self._told_end or partition.start_offset != self._told_start

    def told(self) -> None:
        """The client gets this answer. What it brought need not be kept."""
        self.batches = []
        self.size = 0
        partition = self.partition
        if partition is None or self.error != 0:
            self._told_end = self._told_start = _UNTOLD
        else:
            self._told_end = partition.durable_end
            self._told_start = partition.start_offset


@final
class FetchSession:
    """The partitions of one client, in the order in which they are served."""

    def __init__(self, id: i64, has_ids: bool) -> None:
        self.id: Final[i64] = id
        # Topics are named by their ids.
        self.has_ids: Final = has_ids
        # The number of the next request.
        self.epoch: i64 = 1
        self.wanted: dict[tuple[str, bytes, int], Wanted] = {}

    def advance(self) -> None:
        self.epoch = self.epoch + 1 if self.epoch < _EPOCH_MAX else i64(1)

    def want(self, wanted: Wanted) -> None:
        """Add a partition, or change what is asked of it."""
        key = (wanted.topic if not self.has_ids else "", wanted.topic_id, int(wanted.index))
        present = self.wanted.get(key)
        if present is None:
            self.wanted[key] = wanted
        else:
            present.take(wanted)

    def forget(self, topic: str, topic_id: bytes, index: i64) -> None:
        self.wanted.pop((topic, topic_id, int(index)), None)

    def served(self, found: list[Wanted]) -> None:
        """These have brought something: next time the others come first."""
        for wanted in found:
            key = (wanted.topic if not self.has_ids else "", wanted.topic_id, int(wanted.index))
            if self.wanted.pop(key, None) is not None:
                self.wanted[key] = wanted
