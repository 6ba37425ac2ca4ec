"""The backlogs of recoverable queues, and the partitions of streams, by the ids of their logs, for recovery."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, final

from millpond.broker.queues.backlog import Backlog, lane_number, queue_id
from millpond.broker.queues.message_queue import MessageQueue

if TYPE_CHECKING:
    from millpond.broker.streams.partition import Partition


@final
class Lanes:
    """Finds the backlog or the partition that a log belongs to; a queue's further lanes begin when something speaks of
    them."""

    def __init__(self, queues: Iterable[MessageQueue], partitions: Iterable[Partition]) -> None:
        self._queues: Final[dict[int, MessageQueue]] = {int(queue.log_id): queue for queue in queues}
        self._found: Final[dict[int, Backlog]] = {}
        self._partitions: Final[dict[int, Partition]] = {int(partition.log_id): partition for partition in partitions}

    def get(self, log_id: int) -> Backlog | None:
        """None where the queue is gone."""
        backlog = self._found.get(log_id)
        if backlog is None:
            queue = self._queues.get(queue_id(log_id))
            if queue is None or not queue.has_lane(lane_number(log_id)):
                return None
            backlog = self._found[log_id] = queue.lane(lane_number(log_id))
        return backlog

    def partition(self, log_id: int) -> Partition | None:
        """The partition that a log belongs to. None where it is gone, or no stream's."""
        return self._partitions.get(log_id)

    def partitions(self) -> list[Partition]:
        """Those of all streams."""
        return list(self._partitions.values())

    def backlogs(self) -> list[Backlog]:
        """All of them, also those that nothing was said of."""
        return [backlog for queue in self._queues.values() for backlog in queue.backlogs()]
