"""The messages of a queue, in pages, and which of them are in memory.

Messages have consecutive offsets and lie in pages (see `page.py`). Only the ends of a long queue are in memory:
`PageStore` writes pages out and reads them back ahead of the consumers. The `restore_*` calls that recovery uses build
the pages that publishing would have built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64

from millpond.base.clock import Clock
from millpond.base.limits import PAGE_BYTES_MAX, PAGE_MESSAGES_MAX, PAGES_AHEAD, QUEUES_MAX
from millpond.broker.exchanges.exchange import Destination
from millpond.broker.ledger import Ledger
from millpond.broker.memory import MemoryBudget
from millpond.broker.message import Message
from millpond.broker.queues.consumer import Consumer
from millpond.broker.queues.entry import Entry, memory_size, message_size
from millpond.broker.queues.page import Page
from millpond.broker.queues.settings import QueueSettings
from millpond.broker.turn import Turn, TurnTask
from millpond.storage.log import BatchPlace

if TYPE_CHECKING:
    from millpond.broker.queues.page_store import PageStore


@final
class QueueContext:
    """What all queues of a node share."""

    def __init__(
        self,
        turn: Turn,
        clock: Clock,
        ledger: Ledger,
        memory: MemoryBudget,
        store: PageStore,
        queues_max: i64 = QUEUES_MAX,
    ) -> None:
        self.queues_max: Final[i64] = queues_max
        # Queues of all virtual hosts.
        self.queue_count: i64 = 0
        self.turn: Final = turn
        self.clock: Final = clock
        self.ledger: Final = ledger
        self.memory: Final = memory
        self.store: Final = store
        self._transient_id: i64 = 0

    def next_transient_id(self) -> i64:
        """An id for a queue that the catalog does not know: negative, and used until the next start only."""
        self._transient_id -= 1
        return self._transient_id


class Backlog(Destination, TurnTask):
    """The pages of one queue.

    `log_id` names its log and its records in the journal; it is never used again. `recoverable` queues survive a
    restart with their persistent messages.
    """

    def __init__(
        self, context: QueueContext, name: str, log_id: i64, recoverable: bool, settings: QueueSettings
    ) -> None:
        super().__init__(name, "queue")
        self.turn_pending = False
        self.turn: Final = context.turn
        self.clock: Final = context.clock
        self.ledger: Final = context.ledger
        self.memory: Final = context.memory
        self.store: Final = context.store
        self.log_id: Final[i64] = log_id
        self.recoverable: Final = recoverable
        self.settings = settings
        self.deleted = False

        first = Page(0)
        self.pages: list[Page] = [first]
        # The page that is being filled, and the index of the one that is delivered from.
        self.tail = first
        self.head: i64 = 0
        self.next_offset: i64 = 0
        # Recovered messages below this offset may have been delivered before, and say so.
        self.redelivered_before: i64 = 0
        self.ready: i64 = 0
        self.ready_bytes: i64 = 0
        # Bytes of its messages in memory, each counted in full even where other queues share it.
        self.resident_bytes: i64 = 0
        self.pages_out: i64 = 0
        # Pages that are in memory and in the log as well, in the order in which they were written.
        self.kept: dict[Page, None] = {}
        # One past the last offset that the queue's log covers, counting pages on their way to it.
        self.log_end: i64 = 0
        self.writes_under_way: i64 = 0
        # The page in which something was settled last.
        self._settling: Page = first
        # Whoever reads from it: what they will need next stays in memory.
        self.consumers: list[Consumer] = []
        # Set for good by the first message that can expire.
        self.expiring = False

    def page_of(self, offset: i64) -> Page:
        """The page that holds `offset`, which has not been settled."""
        return self.pages[self.index_of(offset)]

    def index_of(self, offset: i64) -> i64:
        """Index of the last page that starts at or before `offset`; 0 where none does."""
        pages = self.pages
        low: i64 = 0
        high: i64 = len(pages) - 1
        while low < high:
            middle = (low + high + 1) >> 1
            if pages[middle].start <= offset:
                low = middle
            else:
                high = middle - 1
        return low

    def _open_page(self, start: i64) -> Page:
        page = Page(start)
        previous = self.tail
        self.pages.append(page)
        self.tail = page
        if previous.live == 0:
            self._forget_page(previous)
        else:
            self.store.backlogs[self] = None
        return page

    def _forget_page(self, page: Page) -> None:
        index: i64 = 0
        if self.pages[0] is not page:
            index = self.index_of(page.start)
        del self.pages[index]
        if index < self.head:
            self.head -= 1
        if not page.resident:
            self.pages_out -= 1
        if self._settling is page:
            self._settling = self.tail
        if page.place is not None:
            self.kept.pop(page, None)
            self.store.page_settled(self, page)
        if self.pages_out > 0 and index == self.head and self.consumers:
            self.read_ahead()

    def _hold(self, message: Message) -> None:
        size = memory_size(message)
        message.holders += 1
        if message.holders == 1:
            self.memory.used += size
        self.resident_bytes += size

    def _release(self, message: Message) -> None:
        size = memory_size(message)
        message.holders -= 1
        if message.holders == 0:
            self.memory.used -= size
        self.resident_bytes -= size

    def _set_expiry(self, entry: Entry) -> None:
        ttl = self.settings.message_ttl_ms
        expiration = entry.message.properties.expiration_ms
        if ttl < 0 or 0 <= expiration < ttl:
            ttl = expiration
        if ttl >= 0:
            entry.expires_ms = entry.message.timestamp_ms + ttl
            self.expiring = True

    # --- Paging -----------------------------------------------------------------------------------------------

    def read_ahead(self) -> None:
        """Ask for the pages that consumers will need next: where memory is short, only for the one that comes next."""
        index = self.head
        end = self.head + (PAGES_AHEAD if self.memory.used < self.memory.unblock_bytes else 1)
        while index < end and index < len(self.pages):
            page = self.pages[index]
            if not page.resident:
                self.store.load(self, page)
            index += 1

    def seal_tail(self) -> None:
        """Let the next message open a new page, so that the present one can be written as it is."""
        if self.tail.entries:
            self._open_page(self.next_offset)

    def drop_resident(self, page: Page) -> None:
        """Give up the messages of a page that the log holds and of which nothing has been delivered."""
        ranges: list[tuple[int, int]] = []
        offset = page.start
        for slot in page.entries:
            if slot is None:
                if ranges and ranges[-1][1] == offset:
                    ranges[-1] = (ranges[-1][0], int(offset + 1))
                else:
                    ranges.append((int(offset), int(offset + 1)))
            else:
                self._release(slot.message)
            offset += 1
        page.settled_ranges = ranges
        page.entries = []
        page.resident = False
        self.pages_out += 1
        self.kept.pop(page, None)

    def page_loaded(self, page: Page, offsets: list[i64], messages: list[Message]) -> None:
        """A page's messages are back. Those settled meanwhile are left out."""
        if self.deleted or page.resident or page.live == 0:
            return
        page.loading = False
        entries: list[Entry | None] = [None] * int(page.end - page.start)
        live: i64 = 0
        size: i64 = 0
        persistent: i64 = 0
        for index in range(len(messages)):
            offset = offsets[index]
            if offset < page.start or offset >= page.end or page.is_settled_at(offset):
                continue
            entry = self._restored(messages[index], offset)
            entries[offset - page.start] = entry
            live += 1
            size += entry.size
            if messages[index].properties.persistent:
                persistent += 1
        page.entries = entries
        page.resident = True
        page.settled_ranges = []
        self.pages_out -= 1
        self.ready += live - page.live
        self.ready_bytes += size - page.live_bytes
        page.live = live
        page.live_bytes = size
        page.persistent = persistent
        if live == 0 and page is not self.tail:
            self._forget_page(page)
        self.turn.touch_queue(self)

    def page_lost(self, page: Page) -> None:
        """A page cannot be read back: its messages are gone, and never served."""
        if not self.deleted and not page.resident and page.live > 0:
            self.ready -= page.live
            self.ready_bytes -= page.live_bytes
            page.live = 0
            self._forget_page(page)
            self.turn.touch_queue(self)

    # --- Recovery ---------------------------------------------------------------------------------------------

    def restore(self, next_offset: i64, log_end: i64, redelivered_before: i64, expiring: bool) -> None:
        """Take over what a checkpoint knew of the queue; its pages follow, then what the journal knows."""
        self.next_offset = next_offset
        self.log_end = log_end
        self.redelivered_before = redelivered_before
        self.expiring = expiring

    def restore_page(
        self, start: i64, end: i64, live: i64, size: i64, settled: list[tuple[int, int]], place: BatchPlace
    ) -> None:
        """A page that is in the log, following those already restored."""
        page = Page(start)
        page.end = end
        page.live = live
        page.persistent = live
        page.live_bytes = size
        page.settled_ranges = settled
        page.place = place
        page.resident = False
        self.pages_out += 1
        if self.tail.end == self.tail.start:
            self.pages.pop()
        self.pages.append(page)
        self.tail = page

    def restore_message(self, message: Message, offset: i64) -> None:
        """A message that the journal holds: a new one, or an older one that was carried forward."""
        if offset >= self.next_offset:
            self.next_offset = offset + 1
        page = self.page_of(offset)
        if page.start <= offset < page.end:
            # Written again by a checkpoint that was not finished, or in the log already.
            return
        if page.end == page.start:
            page.start = offset
        elif (
            offset < page.start
            or not page.resident
            or offset - page.start >= PAGE_MESSAGES_MAX
            or page.filled_bytes >= PAGE_BYTES_MAX
        ):
            index = self.index_of(offset)
            page = Page(offset)
            self.pages.insert(index if offset < self.pages[index].start else index + 1, page)
            self.tail = self.pages[-1]
        entry = self._restored(message, offset)
        entries = page.entries
        while page.start + len(entries) < offset:
            entries.append(None)
        entries.append(entry)
        page.end = offset + 1
        page.live += 1
        page.live_bytes += entry.size
        page.filled_bytes += entry.size + len(message.properties.raw)
        page.persistent += 1

    def restore_settled(self, start: i64, end: i64, count: i64, size: i64) -> None:
        """Messages of [start, end) were settled: `count` of them, `size` bytes."""
        first = self.index_of(start)
        last = self.index_of(end - 1)
        for page in self.pages[first : last + 1]:
            if page.end <= start:
                continue
            if not page.resident:
                page.live -= count
                page.persistent -= count
                page.live_bytes -= size
                page.settled_ranges.append((int(start), int(end)))
            else:
                for index in range(max(start, page.start) - page.start, min(end, page.end) - page.start):
                    slot = page.entries[index]
                    if slot is not None:
                        page.entries[index] = None
                        page.live -= 1
                        page.persistent -= 1
                        page.live_bytes -= slot.size
                        self._release(slot.message)
            if page.live <= 0 and page is not self.tail:
                self._forget_page(page)

    def restored(self) -> None:
        """Recovery is over: count what is there, and continue after it."""
        self.head = 0
        self._settling = self.tail
        self._open_after_recovery()
        for page in [page for page in self.pages if page.live <= 0 and page is not self.tail]:
            # It was the last one when it was emptied.
            self._forget_page(page)
        for page in self.pages:
            self.ready += page.live
            self.ready_bytes += page.live_bytes
            if page.start < self.redelivered_before:
                # While the journal was read it was not known yet whether the stop had been a clean one.
                for slot in page.entries:
                    if slot is not None and slot.offset < self.redelivered_before:
                        slot.returns = 1
        if len(self.pages) > 1:
            self.store.backlogs[self] = None
        if self.expiring and self.ready > 0:
            self.turn.touch_queue(self)

    def _open_after_recovery(self) -> None:
        """The tail must be a page in memory that new messages can be appended to."""
        tail = self.tail
        if tail.end == tail.start:
            tail.start = self.next_offset
            tail.end = self.next_offset
        elif not tail.resident or tail.start + len(tail.entries) != self.next_offset or tail.live == 0:
            self._open_page(self.next_offset)
            self._settling = self.tail

    def _restored(self, message: Message, offset: i64) -> Entry:
        entry = Entry(message, offset, message_size(message))
        if offset < self.redelivered_before:
            entry.returns = 1
        self._hold(message)
        if message.properties.expiration_ms >= 0 or self.settings.message_ttl_ms >= 0:
            self._set_expiry(entry)
        return entry
