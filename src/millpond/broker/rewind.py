"""Rewind: what a queue over a topic has had settled is work again, from an offset or a time on.

Nothing is copied: the delivery state goes back, and the journal is told of it in one record. What is in somebody's
hands stays there. Retention may have taken the beginning: then it is from there on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from millpond.base.errors import PreconditionFailed
from millpond.broker.shares.share_queue import ShareQueue

if TYPE_CHECKING:
    from millpond.broker.shares.share_partition import SharePartition
    from millpond.broker.vhost import VirtualHost


class Rewind:
    """One order to rewind a queue: to `offset`, of its only partition or of `partition`, or to the first record of each
    that is not older than `timestamp_ms`. `done` is called when the turn has all of it."""

    def __init__(
        self,
        vhost: VirtualHost,
        name: str,
        offset: int | None,
        timestamp_ms: int | None,
        partition: int | None,
        done: Callable[[], None],
    ) -> None:
        """NotFound, or PreconditionFailed where that cannot be."""
        queue = vhost.queue(name, None)
        resource = vhost.queue_resource(name)
        if not isinstance(queue, ShareQueue):
            raise PreconditionFailed(
                f"{resource} has no history to go back to: it has no x-retention-ms, and is not over a topic"
            )
        if (offset is None) == (timestamp_ms is None):
            raise PreconditionFailed("a queue is rewound to an offset or to a time")
        chosen = [one for one in queue.partitions() if partition is None or one.number == partition]
        if not chosen or (offset is not None and len(chosen) > 1):
            raise PreconditionFailed(
                f"{resource} has {len(queue.partitions())} partitions: an offset is in one of them"
            )
        self._vhost: Final = vhost
        self._queue: Final = queue
        self._offset: Final = offset
        self._timestamp_ms: Final = timestamp_ms
        self._left: Final = chosen
        self._done: Final = done
        # Of `go_on`: it is running, and what it asked for has been found meanwhile.
        self._is_going = False
        self._is_found = False
        # Messages that are to be done again, and from where on in each partition.
        self.messages = 0
        self.offsets: Final[dict[int, int]] = {}

    def go_on(self) -> None:
        """Rewind one partition after the other. Places are often found at once: a topic may have thousands of
        partitions, so none of them calls the next one."""
        self._is_found = True
        if self._is_going:
            return
        self._is_going = True
        while self._is_found:
            self._is_found = False
            if self._queue.deleted or not self._left:
                self._done()
            else:
                self._begin(self._left.pop(0))
        self._is_going = False

    def _begin(self, partition: SharePartition) -> None:
        if self._offset is not None:
            self._to(partition, self._offset)
            return
        assert self._timestamp_ms is not None
        log = partition.partition

        def found(offset: int, timestamp_ms: int) -> None:
            self._to(partition, offset if offset >= 0 else int(log.durable_end))

        log.store.find_record_at(log, self._timestamp_ms, found)

    def _to(self, partition: SharePartition, offset: int) -> None:
        turn = self._vhost.context.turn
        turn.now_ms = self._vhost.context.clock.wall_ms()
        if not self._queue.deleted and not partition.is_gone:
            before = partition.ready
            partition.rewind(offset)
            self.messages += partition.ready - before
            self.offsets[partition.number] = max(offset, int(partition.partition.start_offset))
            turn.touch()
        self.go_on()
