"""The memory that messages take, against the budget that the operator gave.

Above `page_out_bytes` queues move their backlog to disk. Above `block_bytes` that was not fast enough: publishers are
held back until it falls below `unblock_bytes`.
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64


@final
class MemoryBudget:
    """Counts bytes of messages held in memory. Shared by all queues of a node."""

    def __init__(self, budget_bytes: i64) -> None:
        self.budget_bytes: Final[i64] = budget_bytes
        # Paging out starts early, because a page leaves memory only when the disk has taken it.
        self.page_out_bytes: Final[i64] = budget_bytes // 2
        self.unblock_bytes: Final[i64] = budget_bytes // 4 * 3
        self.used: i64 = 0
