"""A queue: a log plus delivery state.

Messages have consecutive offsets and lie in pages (see `page.py`). A message is in one of four places:

    fresh      at or after the head page's `taken`: never delivered; a range, not a list
    returned   delivered and given back; delivered again before anything fresh, in offset order
    unsettled  delivered; held by the consumer's channel, its slot in the page still filled
    settled    acknowledged, dropped or dead-lettered; its slot is None, and an emptied page is forgotten

`Backlog` has the pages; what is in here happens to messages one by one. All calls are synchronous and on the event
loop's thread. Deliveries happen in `run_turn`, at the end of the turn.
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from millpond.base.clock import Timer
from millpond.base.limits import DELIVERIES_PER_TURN_MAX, PAGE_BYTES_MAX, PAGE_MESSAGES_MAX
from millpond.broker.message import Message
from millpond.broker.queues.backlog import Backlog, QueueContext
from millpond.broker.queues.consumer import Consumer
from millpond.broker.queues.entry import Entry, message_size
from millpond.broker.queues.page import Page
from millpond.broker.queues.settings import OVERFLOW_REJECT_DEAD_LETTER, QueueSettings

# Why a message left its queue without being acknowledged: the reasons of RabbitMQ's x-death header.
REASON_REJECTED: Final = "rejected"
REASON_EXPIRED: Final = "expired"
REASON_LENGTH: Final = "maxlen"


class QueueOwner:
    """What a queue asks of its virtual host."""

    def dead_letter(self, queue: Queue, message: Message, reason: str) -> None:
        """Publish `message` to the queue's dead-letter exchange, if it has one."""
        raise NotImplementedError

    def consumers_gone(self, queue: Queue) -> None:
        """The last consumer has left: an auto-delete queue goes with it."""
        raise NotImplementedError


@final
class Queue(Backlog):
    """One queue of a virtual host: its messages, its consumers, and what is in their hands."""

    def __init__(
        self,
        owner: QueueOwner,
        context: QueueContext,
        name: str,
        log_id: i64,
        recoverable: bool,
        settings: QueueSettings,
    ) -> None:
        super().__init__(context, name, log_id, recoverable, settings)
        self.owner: Final = owner
        # As declared. `exclusive_owner` is the connection that the queue belongs to.
        self.durable = recoverable
        self.auto_delete = False
        self.arguments: dict[str, object] = {}
        self.exclusive_owner: object | None = None

        self.returned: list[Entry] = []
        self.unsettled: i64 = 0

        self._rotation: list[Consumer] = []
        self._next_consumer: i64 = 0

        self._expiry: Timer | None = None
        self._expiry_ms: i64 = 0

        # The offsets settled one after the other that the ledger has not been told of yet.
        self._run_page: Page = self.tail
        self._run_start: i64 = 0
        self._run_end: i64 = 0
        self._run_count: i64 = 0
        self._run_bytes: i64 = 0
        self._run_open = False

        self.published_total: i64 = 0
        self.delivered_total: i64 = 0
        self.settled_total: i64 = 0

    # --- Publishing ---------------------------------------------------------------------------------------------

    def publish(self, message: Message) -> None:
        """Append `message`. It is delivered at the end of the turn."""
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
        self.published_total += 1
        self._hold(message)
        if properties.expiration_ms >= 0 or self.settings.message_ttl_ms >= 0:
            self._set_expiry(entry)
        if not self.turn_pending:
            self.turn.touch_queue(self)

    def refuses(self, size: i64) -> bool:
        """Whether the queue is full and its overflow policy is to refuse a message of `size` bytes."""
        settings = self.settings
        if not settings.rejects or not settings.bounded:
            return False
        if self._has_room():
            return False
        # Consumers may be waiting for what this turn has brought so far.
        self._deliver(DELIVERIES_PER_TURN_MAX)
        return not self._has_room()

    def dead_letters_refused(self) -> bool:
        """Whether a refused message goes to the dead-letter exchange."""
        return self.settings.overflow == OVERFLOW_REJECT_DEAD_LETTER

    def _has_room(self) -> bool:
        settings = self.settings
        if settings.length_max >= 0 and self.ready >= settings.length_max:
            return False
        return settings.length_bytes_max < 0 or self.ready_bytes < settings.length_bytes_max

    # --- Delivering ---------------------------------------------------------------------------------------------

    def run_turn(self) -> None:
        """Deliver what consumers will take, then let go of what has expired or exceeds the length limit."""
        if self.deleted:
            return
        if self.ready > 0 and self._rotation and not self._deliver(DELIVERIES_PER_TURN_MAX):
            self.turn.touch_queue_later(self)
        if self.expiring:
            self._expire()
        if self.settings.bounded and not self.settings.rejects:
            self._drop_excess()

    def _deliver(self, limit: i64) -> bool:
        """Deliver up to `limit` messages round robin. False when more could be delivered at once."""
        rotation = self._rotation
        while self.ready > 0:
            count = len(rotation)
            if count == 0:
                return True
            if self._next_consumer >= count or rotation[self._next_consumer].priority < rotation[0].priority:
                self._next_consumer = 0
            consumer = rotation[self._next_consumer]
            if not consumer.can_take():
                consumer.in_rotation = False
                del rotation[self._next_consumer]
                continue
            if limit == 0:
                return False
            entry = self._take()
            if entry is None:
                return True
            if entry.expires_ms >= 0 and entry.expires_ms < self.turn.now_ms:
                self._discard(entry, REASON_EXPIRED)
                continue
            self._next_consumer += 1
            limit -= 1
            self.delivered_total += 1
            consumer.delivered += 1
            if consumer.acknowledges:
                entry.queue = self
                entry.consumer = consumer
                consumer.unsettled += 1
                self.unsettled += 1
                consumer.deliver(entry)
            else:
                consumer.deliver(entry)
                self._settle(entry)
        return True

    def get(self) -> Entry | None:
        """The next message for a client that asks for one, unsettled in the client's hands; None when empty."""
        while self.ready > 0:
            entry = self._take()
            if entry is None:
                # The answer must come before the next method's, so this one read is not left to a thread.
                page = self.pages[self.head]
                self.store.load_now(self, page)
                if not page.resident and page.live > 0:
                    # It cannot be read now. What cannot be read at all is gone by now, and the next page's turn.
                    return None
                continue
            if entry.expires_ms >= 0 and entry.expires_ms <= self.turn.now_ms:
                self._discard(entry, REASON_EXPIRED)
                continue
            entry.queue = self
            self.unsettled += 1
            self.delivered_total += 1
            if self.expiring and not self.turn_pending:
                # The next one has become the head, and may have expired behind this one.
                self.turn.touch_queue(self)
            return entry
        return None

    def _take(self) -> Entry | None:
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

    def _peek(self) -> Entry | None:
        """The next message in order. None when there is none, or it has to be read from disk first."""
        if self.returned:
            return self.returned[-1]
        index = self.head
        while index < len(self.pages):
            page = self.pages[index]
            if not page.resident:
                self.store.load(self, page)
                return None
            at = page.taken
            while at < len(page.entries):
                slot = page.entries[at]
                if slot is not None:
                    return slot
                at += 1
            index += 1
        return None

    # --- Settling -----------------------------------------------------------------------------------------------

    def settle(self, entry: Entry) -> None:
        """A delivered message is done with: acknowledged, or rejected for good. `entry` must not be used again."""
        if self.deleted:
            entry.queue = None
            entry.consumer = None
            return
        self.unsettled -= 1
        self._out_of_hands(entry)
        entry.queue = None
        self._settle(entry)

    def reject(self, entry: Entry) -> None:
        """A delivered message is refused for good: dead-letter it, or drop it."""
        if not self.deleted:
            self.owner.dead_letter(self, entry.message, REASON_REJECTED)
        self.settle(entry)

    def give_back(self, entries: list[Entry]) -> None:
        """Delivered messages come back, to their old places, and count as redelivered from now on."""
        if self.deleted:
            for entry in entries:
                entry.queue = None
                entry.consumer = None
            return
        for entry in entries:
            self._out_of_hands(entry)
            entry.queue = None
            entry.returns += 1
            self.unsettled -= 1
            self.ready += 1
            self.ready_bytes += entry.size
        self.returned.extend(entries)
        self.returned.sort(key=_newest_first)
        self.turn.touch_queue(self)

    def _out_of_hands(self, entry: Entry) -> None:
        """Whoever had the delivery, if it was not taken by `get`, may have another one."""
        consumer = entry.consumer
        if consumer is not None:
            entry.consumer = None
            consumer.unsettled -= 1
            if not consumer.in_rotation:
                self.wake(consumer)

    def _settle(self, entry: Entry) -> None:
        offset = entry.offset
        page = self._settling
        if offset < page.start or offset >= page.end:
            page = self.page_of(offset)
            self._settling = page
        page.entries[offset - page.start] = None
        page.live -= 1
        page.live_bytes -= entry.size
        self.settled_total += 1
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
        self._release(message)
        if page.live == 0 and page is not self.tail:
            self._forget_page(page)

    def _discard(self, entry: Entry, reason: str) -> None:
        """Let go of a message that was taken but not delivered."""
        self.owner.dead_letter(self, entry.message, reason)
        self._settle(entry)

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

    # --- Expiry and length --------------------------------------------------------------------------------------

    def _expire(self) -> None:
        """Discard expired messages at the head, and come back when the next one expires (RabbitMQ: head only)."""
        now_ms = self.turn.now_ms
        while True:
            entry = self._peek()
            if entry is None or entry.expires_ms < 0:
                return
            if entry.expires_ms > now_ms:
                break
            taken = self._take()
            if taken is None:
                return
            self._discard(taken, REASON_EXPIRED)
        if self._expiry is not None:
            if self._expiry_ms <= entry.expires_ms:
                return
            self._expiry.cancel()
        self._expiry_ms = entry.expires_ms
        self._expiry = self.clock.call_later(int(entry.expires_ms - now_ms), self._expiry_due)

    def _expiry_due(self) -> None:
        self._expiry = None
        if not self.deleted:
            self.turn.now_ms = self.clock.wall_ms()
            self.turn.touch_queue(self)

    def _drop_excess(self) -> None:
        settings = self.settings
        while self.ready > 0 and (
            (settings.length_max >= 0 and self.ready > settings.length_max)
            or (settings.length_bytes_max >= 0 and self.ready_bytes > settings.length_bytes_max)
        ):
            entry = self._take()
            if entry is None:
                return
            self._discard(entry, REASON_LENGTH)

    def apply_settings(self, settings: QueueSettings) -> None:
        """Let other settings act from now on; messages already there keep the expiry they were given."""
        self.settings = settings
        self.turn.touch_queue(self)

    # --- Consumers ----------------------------------------------------------------------------------------------

    def add_consumer(self, consumer: Consumer) -> None:
        """Let `consumer` take part. Its first delivery comes at the end of the turn."""
        self.consumers.append(consumer)
        self.wake(consumer)

    def remove_consumer(self, consumer: Consumer) -> None:
        """Let `consumer` have no further deliveries. What it holds unsettled stays with it."""
        if consumer in self.consumers:
            consumer.cancelled = True
            self.consumers.remove(consumer)
            if consumer.in_rotation:
                consumer.in_rotation = False
                self._rotation.remove(consumer)
            if not self.consumers and not self.deleted:
                self.owner.consumers_gone(self)

    def wake(self, consumer: Consumer) -> None:
        """`consumer` may be able to take deliveries again."""
        if not consumer.in_rotation and not consumer.cancelled:
            consumer.in_rotation = True
            rotation = self._rotation
            rotation.append(consumer)
            if len(rotation) > 1 and rotation[len(rotation) - 2].priority < consumer.priority:
                rotation.sort(key=_highest_priority_first)
            if self.ready > 0 and not self.turn_pending:
                self.turn.touch_queue(self)

    # --- Purging and deleting -----------------------------------------------------------------------------------

    def purge(self) -> int:
        """Drop every ready message, without dead-lettering. How many there were."""
        count = self.ready
        while self.returned:
            entry = self.returned.pop()
            self.ready -= 1
            self.ready_bytes -= entry.size
            self._settle(entry)
        for page in self.pages[self.head :]:
            if page.resident:
                while page.taken < len(page.entries):
                    slot = page.entries[page.taken]
                    page.taken += 1
                    if slot is not None:
                        self._settle(slot)
            else:
                if self.recoverable:
                    self.ledger.settled(self.log_id, page.start, page.end, page.live, page.live_bytes)
                    self.turn.touch()
                self.settled_total += page.live
                page.live = 0
                self._forget_page(page)
        self.ready = 0
        self.ready_bytes = 0
        return int(count)

    def delete(self) -> None:
        """Forget everything. The catalog, not the journal, remembers that the queue is gone."""
        self.deleted = True
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        for consumer in self.consumers:
            consumer.cancelled = True
            consumer.in_rotation = False
            consumer.queue_deleted()
        self.consumers = []
        self._rotation = []
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
        self.ready = 0
        self.ready_bytes = 0
        self.pages_out = 0
        self.store.delete_log(self)


def _highest_priority_first(consumer: Consumer) -> int:
    return -int(consumer.priority)


def _newest_first(entry: Entry) -> int:
    return -int(entry.offset)
