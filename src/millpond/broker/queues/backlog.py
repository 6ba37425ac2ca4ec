"""The messages of a queue, in pages, which of them are in memory, and in which order they leave.

Messages have consecutive offsets and lie in pages (see `page.py`). A message is in one of four places:

    fresh      at or after the head page's `taken`: never delivered; a range, not a list
    returned   delivered and given back; delivered again before anything fresh, in offset order
    unsettled  delivered; held by the consumer's channel, its slot in the page still filled
    settled    acknowledged, dropped or dead-lettered; its slot is None, and an emptied page is forgotten

Only the ends of a long backlog are in memory: `PageStore` writes pages out and reads them back ahead of the consumers.
The `restore_*` calls that recovery uses build the pages that publishing would have built.

A queue has one backlog, or one for each priority that its messages have: a lane. Each lane has a log of its own.
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from millpond.base.limits import PAGE_BYTES_MAX, PAGE_MESSAGES_MAX, PAGES_AHEAD
from millpond.broker.ledger import Ledger
from millpond.broker.memory import MemoryBudget
from millpond.broker.message import Message
from millpond.broker.queues.entry import Entry, memory_size, message_size
from millpond.broker.queues.page import Page
from millpond.broker.turn import Turn
from millpond.storage.log import BatchPlace

if TYPE_CHECKING:
    from millpond.broker.queues.message_queue import MessageQueue
    from millpond.broker.queues.page_store import PageStore

# A lane's log id is its queue's id and, above these bits, the number of the lane.
LANE_SHIFT: Final = 40
# Lanes 1 to 255 are priorities; lane 0 has those without one, and all messages where priorities do not count.
LANE_DELAYED: Final = 256

# Messages that come back together, up to so many, are put among the others one by one.
INSERTED_MAX: Final = 16


def lane_log_id(log_id: i64, lane: i64) -> i64:
    """The id of the log of one lane of the queue `log_id`; negative where the queue's is."""
    offset = lane << LANE_SHIFT
    return log_id - offset if log_id < 0 else log_id + offset


def queue_id(log_id: int) -> int:
    """The id of the recoverable queue that a log belongs to."""
    return log_id & ((1 << LANE_SHIFT) - 1)


def lane_number(log_id: int) -> int:
    """The lane that a recoverable queue's log belongs to."""
    return log_id >> LANE_SHIFT


class Backlog:
    """The pages of one queue, or of one lane of it."""

    def __init__(self, queue: MessageQueue, lane: i64) -> None:
        self.queue: Final = queue
        self.lane: Final[i64] = lane
        self.name: Final = queue.name
        self.turn: Final[Turn] = queue.turn
        self.ledger: Final[Ledger] = queue.ledger
        self.memory: Final[MemoryBudget] = queue.memory
        self.store: Final[PageStore] = queue.store
        self.log_id: Final[i64] = lane_log_id(queue.log_id, lane)
        self.recoverable: Final[bool] = queue.recoverable
        self.deleted = False

        first = Page(0)
        self.pages: list[Page] = [first]
        # The page that is being filled, and the index of the one that is delivered from.
        self.tail = first
        self.head: i64 = 0
        self.next_offset: i64 = 0
        # Recovered messages below this offset may have been delivered before, and say so.
        self.redelivered_before: i64 = 0
        # How often messages were given back, by offset, where the queue counts it and a restart must not forget it.
        self.attempts: dict[int, int] = {}
        self.returned: list[Entry] = []
        self.ready: i64 = 0
        self.ready_bytes: i64 = 0
        # Bytes of its messages in memory, each counted in full even where other queues share it.
        self.resident_bytes: i64 = 0
        self.pages_out: i64 = 0
        # Pages that are in memory and in the log as well, in the order in which they were written.
        self.kept: dict[Page, None] = {}
        # One past the last offset that the log covers, counting pages on their way to it.
        self.log_end: i64 = 0
        self.writes_under_way: i64 = 0
        # The page in which something was settled last.
        self._settling: Page = first

        # The offsets settled one after the other that the ledger has not been told of yet.
        self._run_page: Page = first
        self._run_start: i64 = 0
        self._run_end: i64 = 0
        self._run_count: i64 = 0
        self._run_bytes: i64 = 0
        self._run_open = False

    # --- Putting in and taking out ----------------------------------------------------------------------------------

    def append(self, message: Message) -> Entry:
        """Put a message at the end."""
        size = message_size(message)
        page = self.tail
        if len(page.entries) >= PAGE_MESSAGES_MAX or page.filled_bytes >= PAGE_BYTES_MAX:
            page = self._open_page(self.next_offset)
        entry = Entry(message, self.next_offset, size)
        page.entries.append(entry)
        page.live += 1
        page.live_bytes += size
        properties = message.properties
        page.filled_bytes += size + len(properties.raw)
        if properties.persistent:
            page.persistent += 1
        self.next_offset += 1
        page.end = self.next_offset
        self.ready += 1
        self.ready_bytes += size
        self._hold(message)
        if properties.expiration_ms >= 0 or self.queue.settings.message_ttl_ms >= 0:
            self._set_expiry(entry)
        return entry

    def take(self) -> Entry | None:
        """Take the next message in order out of the ready ones. None when it has to be read from disk first."""
        if self.returned:
            entry = self.returned.pop()
        else:
            while True:
                page = self.pages[self.head]
                if not page.resident:
                    self.store.load(self, page)
                    return None
                if page.taken < len(page.entries):
                    slot = page.entries[page.taken]
                    page.taken += 1
                    if slot is not None:
                        entry = slot
                        break
                elif self.head + 1 < len(self.pages):
                    self.head += 1
                    if self.pages_out > 0:
                        self.read_ahead()
                else:
                    return None
        self.ready -= 1
        self.ready_bytes -= entry.size
        return entry

    def load_next(self) -> bool:
        """Read the page that `take` wants before returning. False when it can't be read now."""
        page = self.pages[self.head]
        self.store.load_now(self, page)
        # What cannot be read at all is gone by now, and the next page's turn.
        return page.resident or page.live == 0

    def peek(self) -> Entry | None:
        """The next message in order. None when there is none, or it has to be read from disk first."""
        if self.returned:
            return self.returned[-1]
        while True:
            page = self.pages[self.head]
            if not page.resident:
                self.store.load(self, page)
                return None
            at = page.taken
            while at < len(page.entries):
                slot = page.entries[at]
                if slot is not None:
                    return slot
                at += 1
            if self.head + 1 == len(self.pages):
                return None
            # Where the head is, there is the page that is to stay in memory.
            self.head += 1

    def put_back(self, entries: list[Entry]) -> None:
        """Messages that were taken are ready again, at their old places."""
        for entry in entries:
            self.ready += 1
            self.ready_bytes += entry.size
        returned = self.returned
        if len(entries) <= INSERTED_MAX:
            # Not sorted as a whole: there may be very many, and they may come back one by one.
            for entry in entries:
                insort(returned, entry, key=_newest_first)
        else:
            returned.extend(entries)
            returned.sort(key=_newest_first)

    def count_attempt(self, entry: Entry) -> None:
        """Let the count of a message's returns survive a restart."""
        if self.recoverable and entry.message.properties.persistent:
            self.attempts[int(entry.offset)] = int(entry.returns)
            self.ledger.attempted(self, entry)
            self.turn.touch()

    def settle(self, entry: Entry) -> None:
        """Forget a message that was taken."""
        offset = entry.offset
        page = self._settling
        if offset < page.start or offset >= page.end:
            page = self.page_of(offset)
            self._settling = page
        page.entries[offset - page.start] = None
        page.live -= 1
        page.live_bytes -= entry.size
        message = entry.message
        persistent = message.properties.persistent
        if persistent:
            page.persistent -= 1
        if self.recoverable and (persistent or page.writing or page.place is not None):
            if not (self._run_open and page is self._run_page and offset == self._run_end):
                self._next_run(page, offset)
            self._run_end = offset + 1
            self._run_count += 1
            self._run_bytes += entry.size
        if self.attempts:
            self.attempts.pop(int(offset), None)
        self._release(message)
        if page.live == 0 and page is not self.tail:
            self._forget_page(page)

    def _next_run(self, page: Page, offset: i64) -> None:
        if self._run_open:
            self._write_run()
        else:
            self._run_open = True
            self.ledger.open_run(self)
            # Nobody may wait for it, but the turn's frame must be written.
            self.turn.touch()
        self._run_page = page
        self._run_start = offset

    def _write_run(self) -> None:
        if self._run_count > 0:
            self.ledger.settled(self.log_id, self._run_start, self._run_end, self._run_count, self._run_bytes)
            self._run_count = 0
            self._run_bytes = 0

    def close_run(self) -> None:
        """Write the open run of settled offsets to the ledger. Called at the end of the turn."""
        self._write_run()
        self._run_open = False

    def purge(self) -> i64:
        """Forget every ready message. How many there were."""
        count = self.ready
        while self.returned:
            entry = self.returned.pop()
            self.ready -= 1
            self.ready_bytes -= entry.size
            self.settle(entry)
        for page in self.pages[self.head :]:
            if page.resident:
                while page.taken < len(page.entries):
                    slot = page.entries[page.taken]
                    page.taken += 1
                    if slot is not None:
                        self.settle(slot)
            else:
                if self.recoverable:
                    self.ledger.settled(self.log_id, page.start, page.end, page.live, page.live_bytes)
                    self.turn.touch()
                page.live = 0
                self._forget_page(page)
        self.ready = 0
        self.ready_bytes = 0
        self._keep_attempts()
        return count

    def delete(self) -> None:
        """Forget everything, and the log."""
        self.deleted = True
        for page in self.pages:
            for slot in page.entries:
                if slot is not None:
                    self._release(slot.message)
        empty = Page(self.next_offset)
        self.pages = [empty]
        self.tail = empty
        self._settling = empty
        self._run_page = empty
        self._run_count = 0
        self._run_open = False
        self.head = 0
        self.kept = {}
        self.returned = []
        self.attempts = {}
        self.ready = 0
        self.ready_bytes = 0
        self.pages_out = 0
        self.store.delete_log(self)

    # --- Pages --------------------------------------------------------------------------------------------------------

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
        if self.pages_out > 0 and index == self.head and self.queue.consumers:
            self.read_ahead()

    def _count(self, messages: i64, size: i64) -> None:
        """So many more messages, `size` bytes together, are there to be taken than was known."""
        self.ready += messages
        self.ready_bytes += size

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
        ttl = self.queue.settings.message_ttl_ms
        expiration = entry.message.properties.expiration_ms
        if ttl < 0 or 0 <= expiration < ttl:
            ttl = expiration
        if ttl >= 0:
            entry.expires_ms = entry.message.timestamp_ms + ttl
            self.queue.expiring = True

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

    def drop_kept(self, first: i64, bytes_wanted: i64) -> i64:
        """Give up pages from the index `first` on that the log has as well, beginning with the one that is needed last.
        How many bytes that has freed."""
        from_offset = self.pages[first].start
        chosen: list[Page] = []
        freed: i64 = 0
        for page in reversed(self.kept):
            if freed >= bytes_wanted or page.start < from_offset:
                break
            if page.taken == 0:
                chosen.append(page)
                freed += page.memory_bytes
        # Pages that were read ahead are not among them, and always are close to the head.
        for index in range(first, min(len(self.pages) - 1, self.head + PAGES_AHEAD)):
            page = self.pages[index]
            if freed < bytes_wanted and page.resident and page.place is not None and page.taken == 0:
                if page not in chosen:
                    chosen.append(page)
                    freed += page.memory_bytes
        for page in chosen:
            self.drop_resident(page)
        return freed

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
        self._count(live - page.live, size - page.live_bytes)
        page.live = live
        page.live_bytes = size
        page.persistent = persistent
        if live == 0 and page is not self.tail:
            self._forget_page(page)
        self.turn.touch_queue(self.queue)

    def page_lost(self, page: Page) -> None:
        """A page cannot be read back: its messages are gone, and never served."""
        if not self.deleted and not page.resident and page.live > 0:
            self._count(-page.live, -page.live_bytes)
            page.live = 0
            self._forget_page(page)
            self._keep_attempts()
            self.turn.touch_queue(self.queue)

    # --- Recovery ---------------------------------------------------------------------------------------------

    def restore(self, next_offset: i64, log_end: i64, redelivered_before: i64, expiring: bool) -> None:
        """Take over what a checkpoint knew of the queue; its pages follow, then what the journal knows."""
        self.next_offset = next_offset
        self.log_end = log_end
        self.redelivered_before = redelivered_before
        if expiring:
            self.queue.expiring = True

    def restore_page(
        self,
        start: i64,
        end: i64,
        live: i64,
        size: i64,
        settled: list[tuple[int, int]],
        place: BatchPlace,
        due_ms: i64 = -1,
    ) -> None:
        """A page that is in the log, following those already restored."""
        page = Page(start)
        page.end = end
        page.live = live
        page.persistent = live
        page.live_bytes = size
        page.settled_ranges = settled
        page.due_ms = due_ms
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
            self._count(page.live, page.live_bytes)
            if page.start < self.redelivered_before:
                # While the journal was read it was not known yet whether the stop had been a clean one.
                for slot in page.entries:
                    if slot is not None and slot.offset < self.redelivered_before:
                        slot.redelivered = True
        self._keep_attempts()
        if len(self.pages) > 1:
            self.store.backlogs[self] = None
        if self.queue.expiring and self.ready > 0:
            self.turn.touch_queue(self.queue)

    def _keep_attempts(self) -> None:
        """Keep the counts of what is still there, and let its messages know them: pages may have gone without a look
        at what is in them, and in recovery messages come before their counts."""
        attempts: dict[int, int] = {}
        for offset, returns in self.attempts.items():
            page = self.page_of(offset)
            if not page.start <= offset < page.end:
                continue
            if not page.resident:
                if not page.is_settled_at(offset):
                    attempts[offset] = returns
                continue
            index = offset - page.start
            slot = page.entries[index] if index < len(page.entries) else None
            if slot is not None:
                attempts[offset] = returns
                slot.returns = max(slot.returns, returns)
                slot.redelivered = True
        self.attempts = attempts

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
        if self.attempts:
            entry.returns = self.attempts.get(int(offset), 0)
        entry.redelivered = offset < self.redelivered_before or entry.returns > 0
        self._hold(message)
        if message.properties.expiration_ms >= 0 or self.queue.settings.message_ttl_ms >= 0:
            self._set_expiry(entry)
        return entry


def _newest_first(entry: Entry) -> int:
    return -int(entry.offset)
