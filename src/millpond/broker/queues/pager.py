"""Which pages leave memory when messages take more of it than they should.

    used     page_out_bytes       unblock_bytes     budget_bytes
    ---------------|------------------|------------------|------------>
     nothing to do | far pages leave  | all pages leave  | publishers wait

Far pages are those that consumers will not need soon. Above `unblock_bytes` that was not enough: then the pages close
to consumers go as well, and those that are being filled: thousands of queues with a little in each are a backlog too.

It is called at the end of every turn while memory is short, so a call does a bounded amount of work: a few queues,
those that hold most first, and a few pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from millpond.base.limits import (
    PAGED_BYTES_PER_TURN,
    PAGES_AHEAD,
    PAGES_WRITTEN_PER_TURN,
    QUEUES_PAGED_PER_TURN,
    TAIL_PAGED_BYTES_MIN,
)
from millpond.broker.memory import MemoryBudget
from millpond.broker.turn import Turn

if TYPE_CHECKING:
    from millpond.broker.queues.backlog import Backlog
    from millpond.broker.queues.page_store import PageStore


class Pager:
    """Keeps the messages of a node within the memory budget, as far as the disk can help."""

    def __init__(
        self, memory: MemoryBudget, store: PageStore, turn: Turn, all_backlogs: Callable[[], Sequence[Backlog]]
    ) -> None:
        self._memory = memory
        self._store = store
        self._turn = turn
        self._all_backlogs = all_backlogs
        # Queues that are still to be looked at when all pages must go.
        self._ahead: list[Backlog] = []
        self._freed_this_round = 0
        # Nothing could be done when memory use was a little below this, so it is not tried again before.
        self._not_below_bytes = 0

    def relieve(self) -> None:
        """Let pages go until what remains is within bounds."""
        memory, store = self._memory, self._store
        used = int(memory.used)
        excess = used - int(memory.page_out_bytes) - store.leaving_bytes
        if excess <= 0 or store.free_writes() <= 0:
            return
        wanted = min(excess, PAGED_BYTES_PER_TURN)
        freed = self._page_out(self._next_backlogs(), wanted, False)
        is_to_go_on = freed > 0
        if freed < wanted and used - store.leaving_bytes > memory.unblock_bytes and used >= self._not_below_bytes:
            freed += self._page_out(self._next_of_all(), wanted - freed, True)
            self._freed_this_round += freed
            is_to_go_on = is_to_go_on or bool(self._ahead) or freed > 0
            if not self._ahead:
                # A round through all queues is over. Where it was in vain, the next is not before there is more.
                self._not_below_bytes = used + int(memory.budget_bytes) // 64 if self._freed_this_round == 0 else 0
                self._freed_this_round = 0
        if is_to_go_on and freed < excess and store.free_writes() > 0:
            # There may be no other reason for a next turn. A page that has been written is one.
            self._turn.touch()

    def look_again(self) -> None:
        """To be called now and then: something may have changed since nothing could be done."""
        self._not_below_bytes = 0

    def _page_out(self, queues: list[Backlog], wanted: int, all_pages: bool) -> int:
        store = self._store
        freed = 0
        pages_max = min(PAGES_WRITTEN_PER_TURN, store.free_writes())
        queues.sort(key=_most_memory_first)
        for queue in queues:
            if freed < wanted:
                kept = PAGES_AHEAD if queue.queue.consumers else 1
                if all_pages:
                    # Consumers, expiry and length limits look at the first page all the time.
                    owner = queue.queue
                    kept = 1 if owner.consumers or owner.expiring or owner.settings.bounded else 0
                    if pages_max > 0 and queue.tail.memory_bytes >= TAIL_PAGED_BYTES_MIN:
                        queue.seal_tail()
                started = store.pages_started_total
                freed_here = store.page_out(queue, wanted - freed, kept, pages_max)
                pages_max -= store.pages_started_total - started
                freed += freed_here
                if freed_here == 0 and pages_max > 0 and not store.resting and queue.writes_under_way == 0:
                    # There is nothing more to be had from it before it opens another page.
                    continue
            if not all_pages:
                # At the end, so that the others have their turn.
                store.backlogs[queue] = None
        return freed

    def _next_backlogs(self) -> list[Backlog]:
        """Take some of the queues that have several pages."""
        backlogs = self._store.backlogs
        some = []
        for _ in range(min(len(backlogs), QUEUES_PAGED_PER_TURN)):
            queue = next(iter(backlogs))
            del backlogs[queue]
            if len(queue.pages) > 1 and not queue.deleted:
                some.append(queue)
        return some

    def _next_of_all(self) -> list[Backlog]:
        """Some of all queues, in turn, that have something to give."""
        if not self._ahead:
            self._ahead = list(self._all_backlogs())
        some = self._ahead[-QUEUES_PAGED_PER_TURN:]
        del self._ahead[-QUEUES_PAGED_PER_TURN:]
        return [queue for queue in some if queue.resident_bytes >= TAIL_PAGED_BYTES_MIN and not queue.deleted]


def _most_memory_first(queue: Backlog) -> int:
    return -int(queue.resident_bytes)
