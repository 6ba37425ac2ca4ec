"""The memory that messages take, against the budget that the operator gave.

Above `page_out_bytes` queues move their backlog to disk. Above `block_bytes` that was not fast enough: publishers are
held back until it falls below `unblock_bytes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64

from millpond.base.limits import BUFFERED_BYTES_MAX, UNSETTLED_WHEN_SHORT_MAX

if TYPE_CHECKING:
    from millpond.broker.queues.consumer import Consumer


@final
class MemoryBudget:
    """Counts bytes of messages held in memory. Shared by all queues of a node."""

    def __init__(self, budget_bytes: i64) -> None:
        self.budget_bytes: Final[i64] = budget_bytes
        # Paging out starts early, because a page leaves memory only when the disk has taken it.
        self.page_out_bytes: Final[i64] = budget_bytes // 2
        self.unblock_bytes: Final[i64] = budget_bytes // 4 * 3
        self.used: i64 = 0
        # Incomplete messages and open transactions, which the alarm does not end: publishers must be able to end them.
        self.buffered_bytes_max: Final[i64] = max(budget_bytes, BUFFERED_BYTES_MAX)
        self.buffered: i64 = 0
        # Consumers that take without end and settle nothing; see `hold`.
        self._held: dict[Consumer, None] = {}

    def hold(self, consumer: Consumer) -> bool:
        """Whether `consumer` gets nothing for now, because memory is short and much of it is in its hands.

        It would pull the whole backlog from the disk into memory. It is let go when memory is free again; until then
        it is granted a little more from time to time, because it may settle only after so many messages.
        """
        if self.used <= self.budget_bytes or consumer.unsettled < consumer.granted:
            return False
        self._held[consumer] = None
        return True

    def let_go(self, consumer: Consumer) -> None:
        """The consumer is gone."""
        if self._held:
            self._held.pop(consumer, None)

    def release(self) -> None:
        """Let all go on that are held, where memory is free again."""
        if self._held and self.used <= self.budget_bytes:
            held = self._held
            self._held = {}
            for consumer in held:
                consumer.granted = UNSETTLED_WHEN_SHORT_MAX
                consumer.queue.wake(consumer)

    def grant(self) -> None:
        """Some time has passed: allow those that are held a few messages more."""
        held = self._held
        self._held = {}
        for consumer in held:
            consumer.granted = consumer.unsettled + UNSETTLED_WHEN_SHORT_MAX
            consumer.queue.wake(consumer)
