"""A run of consecutive messages of a queue: the unit in which a backlog leaves memory and comes back.

    offsets      start                                   start + len(entries)
                   |  settled  |  delivered, unsettled  |  ready  |
                   0                                  taken

A page is filled at the tail of the queue, is written to the queue's log as one record batch when memory or a checkpoint
wants it (then it has a `place`), and may give up its `entries` while nothing in it has been delivered. What a page
costs while it is on disk only is this object.
"""

from __future__ import annotations

from typing import final

from mypy_extensions import i64

from millpond.broker.message import MESSAGE_OVERHEAD_BYTES
from millpond.broker.queues.entry import Entry
from millpond.storage.log import BatchPlace


@final
class Page:
    """Consecutive messages of one queue."""

    def __init__(self, start: i64) -> None:
        self.start: i64 = start
        # One past the last offset; while the page is being filled it grows with `entries`.
        self.end: i64 = start
        # index = offset - start; None where settled. `resident` is False while they are on disk only.
        self.entries: list[Entry | None] = []
        self.resident = True
        # Index of the next entry to deliver. Where messages wait for their time: not 0 while the page must stay.
        self.taken: i64 = 0
        self.live: i64 = 0
        self.live_bytes: i64 = 0
        # Bodies and properties of all that was ever put in: what closes it.
        self.filled_bytes: i64 = 0
        # Live messages that a restart must bring back.
        self.persistent: i64 = 0
        # Where the page is in the log, when it has been written; `writing` while the storage thread does it.
        self.place: BatchPlace | None = None
        self.writing = False
        self.loading = False
        # It is written because its memory is wanted.
        self.leaving = False
        # Where messages wait for their time: no message in it is due before (wall clock); -1 where there is none.
        self.due_ms: i64 = -1
        # How often it came back from disk.
        self.loads: i64 = 0
        # Offsets settled since the page was written, as (start, end) ranges; kept only for a page not in memory.
        self.settled_ranges: list[tuple[int, int]] = []

    @property
    def memory_bytes(self) -> i64:
        """About what its messages take in memory."""
        return self.live_bytes + self.live * MESSAGE_OVERHEAD_BYTES

    def is_settled_at(self, offset: i64) -> bool:
        """Whether a page that is on disk only has had `offset` settled."""
        for start, end in self.settled_ranges:
            if start <= offset < end:
                return True
        return False
