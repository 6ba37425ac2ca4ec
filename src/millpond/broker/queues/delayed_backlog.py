"""A backlog whose messages wait, each for a time of its own, and leave in the order in which they are due.

Messages lie in pages in the order in which they came, as in every backlog, but are taken in another. A page is

    asleep   known by the earliest time that anything in it is due, and may be on disk only
    awake    in memory, with a heap of when each of its messages is due: soon, or now

and a message is

    waiting  in an asleep page, or in the heap of an awake one
    ready    due, and to be taken: `take` has them in order
    taken    in somebody's hands, until it is settled or put back

A page wakes a little before its time. It goes to sleep when nothing in it is due soon, and may leave memory then.
`Page.taken` counts its messages that are ready or taken, and 1 for being awake: what is not 0 stays in memory.

Delays of all lengths mixed would bring every page back for each of its messages. So pages that come back more than
once are sorted: a few together are put at the end again, by when their messages are due. Each such page is needed for
a short time only, and pages that were written in order, as those of equal delays are, never come to it.

A log gives its disk back from its beginning only. Where something that waits for long keeps much that is gone behind
it on the disk, it is put at the end again as well.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64

from millpond.base.clock import Timer
from millpond.base.limits import (
    DELAY_CHECK_MS,
    DELAY_READ_AHEAD_MS,
    DELAYED_LOG_CHECK_MS,
    DELAYED_LOG_WASTE_BYTES,
    DELAYED_PAGES_AWAKE_MIN,
    DELAYED_PAGES_LOADING_MAX,
    DELAYED_PAGES_SORTED,
    DELAYED_READY_MAX,
    DELAYED_READY_WHEN_SHORT_MAX,
)
from millpond.broker.message import Message
from millpond.broker.queues.backlog import Backlog
from millpond.broker.queues.entry import Entry
from millpond.broker.queues.page import Page

if TYPE_CHECKING:
    from millpond.broker.queues.message_queue import MessageQueue

# An agenda with more entries than this, and several times as many as there are pages, is made anew.
_AGENDA_MIN: Final = 256


@final
class DelayedBacklog(Backlog):
    """Messages with a `due_ms`. `ready` counts those that can be taken, `waiting` all others that are not settled or
    taken. Whoever owns it calls `release` in every turn of the queue; for the next time it asks for a turn itself."""

    def __init__(self, queue: MessageQueue, lane: i64) -> None:
        super().__init__(queue, lane)
        # What the ledger is told: where such a message lies. Always the same list, so that messages share batches.
        self.alone: Final[list[Backlog]] = [self]
        self.waiting: i64 = 0
        self.waiting_bytes: i64 = 0
        # What waits in each of the pages that are awake: heaps of (due, offset).
        self._awake: dict[Page, list[tuple[int, int]]] = {}
        # Heaps of (due, start of page). An entry counts if nothing has changed about its page since.
        self._awake_agenda: list[tuple[int, int]] = []
        self._asleep_agenda: list[tuple[int, int]] = []
        # Pages that have been asked for, because something in them is due.
        self._awaited: dict[Page, None] = {}
        # A heap of (due, offset) of the messages that are ready.
        self._ready: list[tuple[int, int]] = []
        # Pages that are to be sorted.
        self._unsorted: dict[Page, None] = {}
        # Pages at the beginning of the log that are being read so that they can be put at its end.
        self._moving: dict[Page, None] = {}
        # When memory was short last.
        self._short_ms: i64 = 0
        self.log_waste_max: i64 = DELAYED_LOG_WASTE_BYTES
        self._log_checked_ms: i64 = 0
        self._timer: Timer | None = None
        self._timer_ms: i64 = 0

    # --- Putting in and taking out ----------------------------------------------------------------------------------

    def append(self, message: Message) -> Entry:
        """Let a message wait until it is due. It is ready at the end of the turn at the earliest."""
        entry = super().append(message)
        self.ready -= 1
        self.ready_bytes -= entry.size
        self._count(1, entry.size)
        entry.returns = message.returns
        entry.redelivered = message.returns > 0
        page = self.tail
        due_ms = message.due_ms
        is_earliest = page.due_ms < 0 or due_ms < page.due_ms
        if is_earliest:
            page.due_ms = due_ms
        heap = self._awake.get(page)
        if heap is not None:
            heappush(heap, (int(due_ms), int(entry.offset)))
            if heap[0][1] == entry.offset:
                self._note_awake(page, heap)
        elif is_earliest:
            self._note_asleep(page)
        return entry

    def take(self) -> Entry | None:
        """Take the next message that is ready."""
        if not self._ready:
            return None
        entry = self._entry_at(heappop(self._ready)[1])
        self.ready -= 1
        self.ready_bytes -= entry.size
        return entry

    def peek(self) -> Entry | None:
        return self._entry_at(self._ready[0][1]) if self._ready else None

    def put_back(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.ready += 1
            self.ready_bytes += entry.size
            heappush(self._ready, (int(entry.message.due_ms), int(entry.offset)))

    def settle(self, entry: Entry) -> None:
        page = self.page_of(entry.offset)
        page.taken -= 1
        super().settle(entry)
        if page.taken == 1:
            self._sleep_if_idle(page)

    def purge(self) -> i64:
        """Forget all that is ready or waits. How many there were."""
        count = self.ready + self.waiting
        for _, offset in self._ready:
            entry = self._entry_at(offset)
            self.ready -= 1
            self.ready_bytes -= entry.size
            self.settle(entry)
        self._ready = []
        self._asleep_agenda = []
        self._awake_agenda = []
        for page in list(self.pages):
            if page.live == 0:
                continue
            if not page.resident:
                if self.recoverable:
                    self.ledger.settled(self.log_id, page.start, page.end, page.live, page.live_bytes)
                    self.turn.touch()
                self._count(-page.live, -page.live_bytes)
                page.live = 0
                self._forget_page(page)
                continue
            if page not in self._awake:
                self._wake(page)
            heap = self._awake[page]
            self._awake[page] = []
            for _, offset in heap:
                self._settle_waiting(page, self._entry_at(offset))
        self._keep_attempts()
        return count

    def delete(self) -> None:
        super().delete()
        self.waiting = 0
        self.waiting_bytes = 0
        self._awake = {}
        self._awake_agenda = []
        self._asleep_agenda = []
        self._awaited = {}
        self._ready = []
        self._unsorted = {}
        self._moving = {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _settle_waiting(self, page: Page, entry: Entry) -> None:
        """Settle what is in no heap any more and was never ready."""
        page.taken += 1
        self._count(-1, -entry.size)
        self.settle(entry)

    def _entry_at(self, offset: i64) -> Entry:
        page = self.page_of(offset)
        entry = page.entries[offset - page.start]
        if entry is None:
            raise RuntimeError("a message that waits was settled")
        return entry

    def _count(self, messages: i64, size: i64) -> None:
        self.waiting += messages
        self.waiting_bytes += size

    # --- The time ---------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Make ready what is due by now, and ask for a turn of the queue when there will be more."""
        if self.waiting == 0:
            return
        now_ms = self.turn.now_ms
        is_short = self._is_short()
        if is_short:
            self._short_ms = now_ms
            self._rest(now_ms)
        limit: i64 = DELAYED_READY_WHEN_SHORT_MAX if is_short else DELAYED_READY_MAX
        while self.ready < limit:
            self._wake_due(now_ms)
            first = self._first_awake()
            if first is None or first[0] > now_ms or self._is_awaited_before(first):
                break
            page = self.page_of(first[1])
            heap = self._awake[page]
            heappop(self._awake_agenda)
            due, offset = heappop(heap)
            if heap:
                self._note_awake(page, heap)
            page.taken += 1
            size = self._entry_at(offset).size
            self._count(-1, -size)
            self.ready += 1
            self.ready_bytes += size
            heappush(self._ready, (due, offset))
        if not 0 <= now_ms - self._log_checked_ms < DELAYED_LOG_CHECK_MS:
            self._log_checked_ms = now_ms
            self._advance_log()
        self._set_timer(now_ms)

    def _wake_due(self, now_ms: i64) -> None:
        """Wake the pages whose time is near; where memory is short, only the one that comes next."""
        while True:
            first = self._first_asleep()
            if first is None or first[0] > self._horizon(now_ms):
                return
            page = self.page_of(first[1])
            if self._is_short() and len(self._awake) >= DELAYED_PAGES_AWAKE_MIN:
                awake = self._first_awake()
                if awake is not None and awake < first:
                    return
                self._put_last_to_sleep()
            if page.resident:
                heappop(self._asleep_agenda)
                self._wake(page)
            elif self._loads_under_way() >= DELAYED_PAGES_LOADING_MAX:
                return
            else:
                heappop(self._asleep_agenda)
                self._awaited[page] = None
                self.store.load(self, page)

    def _horizon(self, now_ms: i64) -> i64:
        """Pages in which something is due by then are awake."""
        if self._is_short() or 0 <= now_ms - self._short_ms < DELAY_READ_AHEAD_MS:
            # Memory that has just become free was that of pages that were put to sleep: they would only take it again.
            return now_ms
        return now_ms + DELAY_READ_AHEAD_MS

    def _is_short(self) -> bool:
        return self.memory.used >= self.memory.unblock_bytes

    def _loads_under_way(self) -> int:
        # One that failed waits for the disk, and nobody waits for it.
        return sum([page.loading for page in self._awaited])

    def _is_awaited_before(self, other: tuple[int, int]) -> bool:
        """Whether something that is being read from disk, or will be, is due before `other`."""
        for page in self._awaited:
            if page.loading and (int(page.due_ms), int(page.start)) < other:
                return True
        asleep = self._first_asleep()
        return asleep is not None and asleep < other and self._loads_under_way() > 0

    def _set_timer(self, now_ms: i64) -> None:
        wake_ms: i64 = -1
        awake = self._first_awake()
        if awake is not None and awake[0] > now_ms:
            wake_ms = awake[0]
        asleep = self._first_asleep()
        if asleep is not None and asleep[0] > now_ms:
            # What is due already is being read, and then there is a turn.
            due_ms: i64 = asleep[0]
            if due_ms - DELAY_READ_AHEAD_MS > now_ms:
                due_ms -= DELAY_READ_AHEAD_MS
            if wake_ms < 0 or due_ms < wake_ms:
                wake_ms = due_ms
        if wake_ms < 0:
            return
        wake_ms = min(wake_ms, now_ms + DELAY_CHECK_MS)
        if self._timer is not None:
            if now_ms < self._timer_ms <= wake_ms:
                return
            self._timer.cancel()
        self._timer_ms = wake_ms
        self._timer = self.queue.clock.call_later(int(wake_ms - now_ms), self._time_has_come)

    def _time_has_come(self) -> None:
        self._timer = None
        if not self.deleted:
            self.turn.now_ms = self.queue.clock.wall_ms()
            self.turn.touch_queue(self.queue)

    # --- Pages ------------------------------------------------------------------------------------------------------

    def _first_awake(self) -> tuple[int, int] | None:
        agenda = self._awake_agenda
        while agenda:
            due, start = agenda[0]
            page = self.page_of(start)
            heap = self._awake.get(page)
            if page.start == start and heap and heap[0][0] == due:
                return agenda[0]
            heappop(agenda)
        return None

    def _first_asleep(self) -> tuple[int, int] | None:
        agenda = self._asleep_agenda
        while agenda:
            due, start = agenda[0]
            page = self.page_of(start)
            if page.start == start and page.due_ms == due and page.live > 0:
                if page not in self._awake and page not in self._awaited:
                    return agenda[0]
            heappop(agenda)
        return None

    def _note_awake(self, page: Page, heap: list[tuple[int, int]]) -> None:
        heappush(self._awake_agenda, (heap[0][0], int(page.start)))
        if len(self._awake_agenda) > _AGENDA_MIN + 4 * len(self._awake):
            # Each message that is due before all others of its page leaves an entry behind that means nothing.
            self._awake_agenda = [(held[0][0], int(awake.start)) for awake, held in self._awake.items() if held]
            heapify(self._awake_agenda)

    def _note_asleep(self, page: Page) -> None:
        heappush(self._asleep_agenda, (int(page.due_ms), int(page.start)))
        if len(self._asleep_agenda) > _AGENDA_MIN + 4 * len(self.pages):
            self._plan()

    def _plan(self) -> None:
        """Make the agenda of the pages that are asleep anew."""
        self._asleep_agenda = [
            (int(page.due_ms), int(page.start))
            for page in self.pages
            if page.live > 0 and page not in self._awake and page not in self._awaited
        ]
        heapify(self._asleep_agenda)

    def _wake(self, page: Page) -> None:
        """Begin to take messages from a page that is in memory, and of which none is taken."""
        heap = [(int(slot.message.due_ms), int(slot.offset)) for slot in page.entries if slot is not None]
        heapify(heap)
        self._awake[page] = heap
        page.taken = 1
        if heap:
            self._note_awake(page, heap)

    def _sleep_if_idle(self, page: Page) -> None:
        """Let a page sleep of which nothing is ready or taken, if nothing in it is due soon."""
        heap = self._awake.get(page)
        if heap is None or page in self._unsorted:
            return
        if (heap and heap[0][0] > self._horizon(self.turn.now_ms)) or page.live == 0:
            self._sleep(page)

    def _sleep(self, page: Page) -> None:
        heap = self._awake.pop(page)
        page.taken = 0
        page.due_ms = heap[0][0] if heap else -1
        if not heap:
            return
        self._note_asleep(page)
        if page.place is not None:
            self.kept[page] = None
            if self._is_short():
                self.drop_resident(page)
        self.store.backlogs[self] = None

    def _rest(self, now_ms: i64) -> None:
        """Memory is short: let all pages sleep that can."""
        if len(self._awake) > DELAYED_PAGES_AWAKE_MIN:
            for page, heap in list(self._awake.items()):
                if page.taken == 1 and heap and heap[0][0] > now_ms and page not in self._unsorted:
                    self._sleep(page)

    def _put_last_to_sleep(self) -> None:
        """Let the page sleep that is needed last, if any can."""
        last: Page | None = None
        last_ms: i64 = -1
        for page, heap in self._awake.items():
            if page.taken == 1 and heap and heap[0][0] > last_ms and page not in self._unsorted:
                last = page
                last_ms = heap[0][0]
        if last is not None:
            self._sleep(last)

    def drop_kept(self, first: i64, bytes_wanted: i64) -> i64:
        """Give up pages that the log has as well and that sleep, beginning with the one that is needed last."""
        asleep = [page for page in self.kept if page.taken == 0]
        asleep.sort(key=_latest_first)
        freed: i64 = 0
        for page in asleep:
            if freed >= bytes_wanted:
                break
            freed += page.memory_bytes
            self.drop_resident(page)
        return freed

    def read_ahead(self) -> None:
        """Pages come back when they are due."""

    def page_loaded(self, page: Page, offsets: list[i64], messages: list[Message]) -> None:
        self._awaited.pop(page, None)
        super().page_loaded(page, offsets, messages)
        if self.deleted or not page.resident or page.live == 0 or page in self._awake:
            return
        page.loads += 1
        self._wake(page)
        if page in self._moving:
            del self._moving[page]
            self._unsorted[page] = None
            if not self._moving:
                self._sort()
        elif page.loads > 1:
            self._unsorted[page] = None
            if len(self._unsorted) >= DELAYED_PAGES_SORTED:
                self._sort()
        else:
            self._sleep_if_idle(page)

    def _advance_log(self) -> None:
        """Begin to put the beginning of the log at its end, if that frees much of it."""
        if self._moving or self.log_end == 0:
            return
        first: list[Page] = []
        start: i64 = self.log_end
        length: i64 = 0
        covered: i64 = 0
        live: i64 = 0
        for page in self.pages:
            place = page.place
            if place is not None and page.live > 0:
                if len(first) < DELAYED_PAGES_SORTED:
                    first.append(page)
                    start = min(start, page.start)
                length += place.length
                covered += page.end - page.start
                live += page.live
        # In messages, as if all had the length of those whose pages are known.
        wasted = self.log_end - start - 2 * live
        if covered == 0 or wasted <= 0 or wasted * (length // covered) < self.log_waste_max:
            return
        heap = self._awake.get(first[0])
        if heap is not None and not heap:
            # Somebody has it in hands, so nothing would be gained.
            return
        for page in first:
            if page.resident:
                if page not in self._awake:
                    self._wake(page)
                self._unsorted[page] = None
            else:
                self._moving[page] = None
                self._awaited[page] = None
                self.store.load(self, page)
        # To be looked at again at the next occasion: there may be more.
        self._log_checked_ms = 0
        if not self._moving:
            self._sort()

    def _sort(self) -> None:
        """Put what waits in the pages that are to be sorted at the end again, by when it is due."""
        moved: list[tuple[int, int]] = []
        for page in self._unsorted:
            moved += self._awake[page]
            self._awake[page] = []
        self._unsorted = {}
        moved.sort()
        self.seal_tail()
        for _, offset in moved:
            entry = self._entry_at(offset)
            message = entry.message
            if entry.returns > message.returns:
                message = Message(
                    message.address, message.properties, message.body, message.timestamp_ms, message.due_ms,
                    entry.returns,
                )  # fmt: skip
            self.append(message)
            if self.recoverable and message.properties.persistent:
                self.ledger.published(message, self.alone)
            self._settle_waiting(self.page_of(offset), entry)
        self.seal_tail()
        self.turn.touch()

    def _forget_page(self, page: Page) -> None:
        self._awake.pop(page, None)
        self._awaited.pop(page, None)
        self._unsorted.pop(page, None)
        self._moving.pop(page, None)
        super()._forget_page(page)

    # --- Recovery ---------------------------------------------------------------------------------------------------

    def restored(self) -> None:
        super().restored()
        for page in self.pages:
            if page.resident:
                page.due_ms = -1
                for slot in page.entries:
                    if slot is not None and (page.due_ms < 0 or slot.message.due_ms < page.due_ms):
                        page.due_ms = slot.message.due_ms
            elif page.due_ms < 0:
                # Not known: it will be when the page has been read.
                page.due_ms = 0
        self._plan()
        if self.waiting > 0:
            self.turn.touch_queue(self.queue)

    def _restored(self, message: Message, offset: i64) -> Entry:
        entry = super()._restored(message, offset)
        entry.returns = max(entry.returns, message.returns)
        entry.redelivered = entry.redelivered or entry.returns > 0
        return entry


def _latest_first(page: Page) -> int:
    return -int(page.due_ms)
