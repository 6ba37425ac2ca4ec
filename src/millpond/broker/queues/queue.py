"""A queue: its messages, in one or more backlogs, and what is in the hands of its consumers.

A message is ready in a backlog, unsettled in the hands of a consumer, or stuck: dead, but its dead-letter queue has not
taken it yet. What is in here happens to messages one by one; where they lie is the backlogs' business:

    lane 0          all messages, where priorities do not count, or those without one
    lanes 1 to 255  messages of that priority; served from the highest down
    lane 256        messages that were given back and are held for a while; served first, when they are due

All calls are synchronous and on the event loop's thread. Deliveries happen in `run_turn`, at the end of the turn.
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from millpond.base.clock import Timer
from millpond.base.limits import DEAD_LETTER_RETRY_MS, DEAD_LETTERS_REFUSED_MAX, DELIVERIES_PER_TURN_MAX
from millpond.broker.arguments import queue_type
from millpond.broker.message import MESSAGE_OVERHEAD_BYTES, Message
from millpond.broker.queues.backlog import LANE_DELAYED, Backlog
from millpond.broker.queues.consumer import Consumer
from millpond.broker.queues.delayed_backlog import DelayedBacklog
from millpond.broker.queues.entry import Entry
from millpond.broker.queues.message_queue import MessageQueue, QueueContext, QueueOwner
from millpond.broker.queues.settings import OVERFLOW_REJECT_DEAD_LETTER, TYPE_QUORUM, QueueSettings

# Why a message left its queue without being acknowledged: the reasons of RabbitMQ's x-death header.
REASON_REJECTED: Final = "rejected"
REASON_EXPIRED: Final = "expired"
REASON_LENGTH: Final = "maxlen"
REASON_DELIVERY_LIMIT: Final = "delivery_limit"


@final
class _Stuck:
    """A dead message that still has to be taken by a dead-letter queue, and the queues that have taken it."""

    def __init__(self, entry: Entry, reason: str) -> None:
        self.entry: Final = entry
        self.reason: Final = reason
        self.done: Final[set[str]] = set()


@final
class Queue(MessageQueue):
    """One queue of a virtual host."""

    def __init__(
        self,
        owner: QueueOwner,
        context: QueueContext,
        name: str,
        log_id: i64,
        recoverable: bool,
        settings: QueueSettings,
    ) -> None:
        super().__init__(owner, context, name, log_id, recoverable, settings)
        self.backlog: Final = Backlog(self, 0)
        self._lanes: dict[int, Backlog] = {0: self.backlog}
        # In the order in which they are served.
        self._served: list[Backlog] = [self.backlog]
        self._delayed: DelayedBacklog | None = None

        self._rotation: list[Consumer] = []
        # How many of them are cancelled.
        self._gone: i64 = 0
        self._next_consumer: i64 = 0
        # With a single active consumer: who that is.
        self.active_consumer: Consumer | None = None
        # It gets nothing more: when it has settled what it has, one of a higher priority takes over.
        self._is_handing_over = False

        # In the order in which they died.
        self._stuck: list[_Stuck] = []
        self._stuck_bytes: i64 = 0
        self._stuck_timer: Timer | None = None
        # `published_total` as of the last turn.
        self._published_before: i64 = 0

        self._expiry: Timer | None = None
        self._expiry_ms: i64 = 0

    # --- What it holds ----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> i64:
        if len(self._served) == 1:
            return self.backlog.ready
        count: i64 = 0
        for backlog in self._served:
            count += backlog.ready
        return count

    @property
    def ready_bytes(self) -> i64:
        if len(self._served) == 1:
            return self.backlog.ready_bytes
        size: i64 = 0
        for backlog in self._served:
            size += backlog.ready_bytes
        return size

    @property
    def resident_bytes(self) -> i64:
        size: i64 = 0
        for backlog in self._served:
            size += backlog.resident_bytes
        return size

    @property
    def delayed(self) -> i64:
        return self._delayed.waiting if self._delayed is not None else 0

    @property
    def stuck(self) -> i64:
        """Dead messages that no dead-letter queue has taken yet."""
        return len(self._stuck)

    def backlogs(self) -> list[Backlog]:
        return self._served

    def details(self) -> dict[str, object]:
        shown: dict[str, object] = {"messages_dlx": len(self._stuck), "messages_delayed": int(self.delayed)}
        if self.settings.priority_max > 0:
            shown["messages_ready_by_priority"] = {
                str(backlog.lane): int(backlog.ready) for backlog in self._served if backlog is not self._delayed
            }
        if self.settings.single_active:
            active = self.active_consumer
            shown["single_active_consumer_tag"] = active.tag if active is not None else None
        return shown

    def is_active(self, consumer: Consumer) -> bool:
        return self.active_consumer is None or consumer is self.active_consumer

    def lowest_backlog(self) -> Backlog:
        return self.backlog

    def backlog_for(self, message: Message) -> Backlog:
        priority = message.properties.priority
        if priority == 0 or self.settings.priority_max == 0:
            return self.backlog
        return self.lane(min(priority, int(self.settings.priority_max)))

    def has_lane(self, number: int) -> bool:
        return 0 <= number <= self.settings.priority_max or number == LANE_DELAYED

    def lane(self, number: int) -> Backlog:
        if number == LANE_DELAYED:
            return self._delayed_lane()
        backlog = self._lanes.get(number)
        if backlog is None:
            backlog = Backlog(self, number)
            self._add_lane(backlog)
        return backlog

    def _delayed_lane(self) -> DelayedBacklog:
        delayed = self._delayed
        if delayed is None:
            delayed = self._delayed = DelayedBacklog(self, LANE_DELAYED)
            self._add_lane(delayed)
        return delayed

    def _add_lane(self, backlog: Backlog) -> None:
        self._lanes[int(backlog.lane)] = backlog
        self._served = [self._lanes[lane] for lane in sorted(self._lanes, reverse=True)]

    # --- Publishing -------------------------------------------------------------------------------------------------

    def publish(self, message: Message) -> None:
        self.published_total += 1
        if self.settings.priority_max == 0:
            self.backlog.append(message)
        else:
            self.backlog_for(message).append(message)
        if not self.turn_pending:
            self.turn.touch_queue(self)

    def refuses(self, size: i64) -> bool:
        settings = self.settings
        if not settings.rejects or not settings.bounded:
            return False
        if self._has_room():
            return False
        # Consumers may be waiting for what this turn has brought so far.
        self._deliver(DELIVERIES_PER_TURN_MAX)
        return not self._has_room()

    def dead_letters_refused(self) -> bool:
        return self.settings.overflow == OVERFLOW_REJECT_DEAD_LETTER

    def _has_room(self) -> bool:
        settings = self.settings
        count, size = self._counting()
        if settings.length_max >= 0 and count + len(self._stuck) >= settings.length_max:
            return False
        return settings.length_bytes_max < 0 or size + self._stuck_bytes < settings.length_bytes_max

    def _counting(self) -> tuple[i64, i64]:
        """Messages and bytes that count for the length limits: also those that wait for their time, as in RabbitMQ."""
        delayed = self._delayed
        if delayed is None:
            return self.ready, self.ready_bytes
        return self.ready + delayed.waiting, self.ready_bytes + delayed.waiting_bytes

    # --- Delivering -------------------------------------------------------------------------------------------------

    def run_turn(self) -> None:
        """Deliver what consumers will take, then let go of what has expired or exceeds the length limit."""
        if self.deleted:
            return
        delayed = self._delayed
        if delayed is not None:
            delayed.release()
        if self._rotation and self.ready > 0 and not self._deliver(DELIVERIES_PER_TURN_MAX):
            self.turn.touch_queue_later(self)
        if delayed is not None and self._rotation and delayed.ready == 0:
            # Not all that is due becomes ready at once.
            delayed.release()
            if delayed.ready > 0:
                self.turn.touch_queue_later(self)
        # More than has come since the last turn, so that it has an end.
        share = DELIVERIES_PER_TURN_MAX + 2 * (self.published_total - self._published_before)
        self._published_before = self.published_total
        if self.expiring:
            share = self._expire(share)
        if self.settings.bounded and not self.settings.rejects:
            self._drop_excess(share)

    def _deliver(self, limit: i64) -> bool:
        """Deliver up to `limit` messages round robin. False when more could be delivered at once."""
        rotation = self._rotation
        now_ms = self.turn.now_ms
        if self._is_clogged():
            return True
        while self.ready > 0:
            count = len(rotation)
            if count == 0:
                return True
            if self._next_consumer >= count or rotation[self._next_consumer].priority < rotation[0].priority:
                self._next_consumer = 0
            consumer = rotation[self._next_consumer]
            if consumer.cancelled:
                self._gone -= 1
                del rotation[self._next_consumer]
                continue
            if not consumer.can_take():
                consumer.in_rotation = False
                del rotation[self._next_consumer]
                continue
            if limit == 0:
                return False
            entry = self._take()
            if entry is None:
                return True
            if entry.expires_ms >= 0 and entry.expires_ms < now_ms:
                self._discard(entry, REASON_EXPIRED)
                if self._is_clogged():
                    return True
                continue
            self._next_consumer += 1
            limit -= 1
            self.delivered_total += 1
            consumer.delivered += 1
            if consumer.acknowledges:
                entry.queue = self
                entry.consumer = consumer
                entry.delivered_ms = now_ms
                consumer.unsettled += 1
                self.unsettled += 1
                consumer.deliver(entry)
            else:
                consumer.deliver(entry)
                self._settle(entry)
        return True

    def get(self) -> Entry | None:
        while self.ready > 0 and not self._is_clogged():
            entry = self._take()
            if entry is None:
                # The answer must come before the next method's, so this one read is not left to a thread.
                if not self._first_ready().load_next():
                    return None
                continue
            if entry.expires_ms >= 0 and entry.expires_ms <= self.turn.now_ms:
                self._discard(entry, REASON_EXPIRED)
                continue
            entry.queue = self
            entry.delivered_ms = self.turn.now_ms
            self.unsettled += 1
            self.delivered_total += 1
            if (self.expiring or self._delayed is not None) and not self.turn_pending:
                # The next one has become the head, and may have expired behind this one; or more may be due.
                self.turn.touch_queue(self)
            return entry
        return None

    def _take(self) -> Entry | None:
        """Take the next message in order. None when it has to be read from disk first."""
        return self.backlog.take() if len(self._served) == 1 else self._first_ready().take()

    def _first_ready(self) -> Backlog:
        """The backlog whose turn it is."""
        for backlog in self._served:
            if backlog.ready > 0:
                return backlog
        return self.backlog

    # --- Settling ---------------------------------------------------------------------------------------------------

    def settle(self, entry: Entry) -> None:
        if self.deleted:
            entry.queue = None
            entry.consumer = None
            return
        self.unsettled -= 1
        self._out_of_hands(entry)
        entry.queue = None
        self._settle(entry)

    def reject(self, entry: Entry) -> None:
        if self.deleted:
            self.settle(entry)
            return
        self.unsettled -= 1
        self._out_of_hands(entry)
        entry.queue = None
        self._discard(entry, REASON_REJECTED)

    def give_back(self, entries: list[Entry], failed: bool) -> None:
        if self.deleted:
            for entry in entries:
                entry.queue = None
                entry.consumer = None
            return
        settings = self.settings
        limit = settings.delivery_limit
        is_held = settings.holds_back(failed)
        returned: list[Entry] = []
        for entry in entries:
            self._out_of_hands(entry)
            entry.queue = None
            entry.returns += 1
            entry.redelivered = True
            self.unsettled -= 1
            if 0 <= limit < entry.returns:
                self._discard(entry, REASON_DELIVERY_LIMIT)
            elif is_held:
                self._hold_back(entry)
            else:
                if settings.counts_returns:
                    self._backlog_of(entry).count_attempt(entry)
                returned.append(entry)
        self._put_back(returned)

    def put_back(self, entries: list[Entry]) -> None:
        """What `get` gave was only looked at: it is ready again as if it had never been taken."""
        if self.deleted:
            return
        for entry in entries:
            entry.queue = None
            self.unsettled -= 1
        self._put_back(entries)

    def _put_back(self, entries: list[Entry]) -> None:
        if len(self._served) == 1:
            self.backlog.put_back(entries)
        else:
            by_backlog: dict[Backlog, list[Entry]] = {}
            for entry in entries:
                by_backlog.setdefault(self._backlog_of(entry), []).append(entry)
            for backlog, together in by_backlog.items():
                backlog.put_back(together)
        self.turn.touch_queue(self)

    def _hold_back(self, entry: Entry) -> None:
        """Let a message that has come back wait for a while: as another message, in place of this one."""
        message = entry.message
        due_ms = self.turn.now_ms + self.settings.retry_delay_ms(entry.returns)
        held = Message(message.address, message.properties, message.body, message.timestamp_ms, due_ms, entry.returns)
        source = self._backlog_of(entry)
        delayed = self._delayed_lane()
        delayed.append(held)
        if self.recoverable and message.properties.persistent:
            self.ledger.published(held, delayed.alone)
            self.turn.touch()
        source.settle(entry)

    def _backlog_of(self, entry: Entry) -> Backlog:
        if len(self._served) == 1:
            return self.backlog
        if entry.message.due_ms > 0 and self._delayed is not None:
            return self._delayed
        return self.backlog_for(entry.message)

    def _out_of_hands(self, entry: Entry) -> None:
        """Whoever had the delivery, if it was not taken by `get`, may have another one."""
        consumer = entry.consumer
        if consumer is not None:
            entry.consumer = None
            consumer.unsettled -= 1
            if self._is_handing_over and consumer is self.active_consumer and consumer.unsettled == 0:
                self._activate_next()
            elif not consumer.in_rotation:
                self.wake(consumer)

    def _settle(self, entry: Entry) -> None:
        self.settled_total += 1
        self._backlog_of(entry).settle(entry)

    def _discard(self, entry: Entry, reason: str) -> None:
        """Let go of a message that was taken and is not in a consumer's hands."""
        if self.settings.dead_letters_surely:
            stuck = _Stuck(entry, reason)
            if not self.owner.dead_letter_surely(self, entry.message, reason, stuck.done):
                self._stuck.append(stuck)
                self._stuck_bytes += entry.size
                self._retry_stuck_later(DEAD_LETTER_RETRY_MS)
                return
        else:
            self.owner.dead_letter(self, entry.message, reason)
        self._settle(entry)

    # --- Dead-lettering at least once -------------------------------------------------------------------------------

    def _is_clogged(self) -> bool:
        """Whether memory is short, and much of it is what died here: then no more messages leave, because they would
        be read from disk to die and stay."""
        if not self._stuck or self.memory.used <= self.memory.budget_bytes:
            return False
        return self._stuck_bytes + len(self._stuck) * MESSAGE_OVERHEAD_BYTES > self.memory.budget_bytes // 8

    def _retry_stuck_later(self, delay_ms: int) -> None:
        if self._stuck_timer is None:
            self._stuck_timer = self.clock.call_later(delay_ms, self._retry_stuck)

    def _retry_stuck(self) -> None:
        self._stuck_timer = None
        if self.deleted:
            return
        self.turn.now_ms = self.clock.wall_ms()
        # There may be room for more to die.
        self.turn.touch_queue(self)
        refused: list[_Stuck] = []
        position = 0
        while position < min(len(self._stuck), DELIVERIES_PER_TURN_MAX) and len(refused) < DEAD_LETTERS_REFUSED_MAX:
            stuck = self._stuck[position]
            position += 1
            if self.settings.dead_letters_surely:
                if not self.owner.dead_letter_surely(self, stuck.entry.message, stuck.reason, stuck.done):
                    refused.append(stuck)
                    continue
            else:
                self.owner.dead_letter(self, stuck.entry.message, stuck.reason)
            self._stuck_bytes -= stuck.entry.size
            self._settle(stuck.entry)
        self._stuck[:position] = refused
        if self._stuck:
            self._retry_stuck_later(DEAD_LETTER_RETRY_MS if refused else 0)

    # --- Expiry and length ------------------------------------------------------------------------------------------

    def _expire(self, share: i64) -> i64:
        """Discard expired messages at the head, up to `share`, and come back when the next one expires (RabbitMQ: head
        only). How much of the share is left."""
        now_ms = self.turn.now_ms
        next_ms: i64 = -1
        for backlog in self._served:
            while True:
                entry = backlog.peek()
                if entry is None or entry.expires_ms < 0:
                    break
                if entry.expires_ms > now_ms:
                    if next_ms < 0 or entry.expires_ms < next_ms:
                        next_ms = entry.expires_ms
                    break
                if share == 0:
                    self.turn.touch_queue_later(self)
                    return 0
                taken = backlog.take() if not self._is_clogged() else None
                if taken is None:
                    break
                share -= 1
                self._discard(taken, REASON_EXPIRED)
        if next_ms >= 0 and (self._expiry is None or next_ms < self._expiry_ms):
            if self._expiry is not None:
                self._expiry.cancel()
            self._expiry_ms = next_ms
            self._expiry = self.clock.call_later(int(next_ms - now_ms), self._expiry_due)
        return share

    def _expiry_due(self) -> None:
        self._expiry = None
        if not self.deleted:
            self.turn.now_ms = self.clock.wall_ms()
            self.turn.touch_queue(self)

    def _drop_excess(self, share: i64) -> None:
        settings = self.settings
        while self.ready > 0:
            count, size = self._counting()
            if (settings.length_max < 0 or count <= settings.length_max) and (
                settings.length_bytes_max < 0 or size <= settings.length_bytes_max
            ):
                return
            if share == 0:
                self.turn.touch_queue_later(self)
                return
            entry = self._take()
            if entry is None:
                return
            share -= 1
            self._discard(entry, REASON_LENGTH)

    def apply_settings(self, settings: QueueSettings) -> None:
        self.settings = settings
        self.turn.touch_queue(self)

    # --- Consumers --------------------------------------------------------------------------------------------------

    def add_consumer(self, consumer: Consumer) -> None:
        self.consumers[consumer] = None
        if self.settings.single_active:
            active = self.active_consumer
            if active is None:
                self.active_consumer = consumer
            elif consumer.priority > active.priority and queue_type(self.arguments) == TYPE_QUORUM:
                self._hand_over(active)
        self.wake(consumer)

    def remove_consumer(self, consumer: Consumer) -> None:
        if consumer in self.consumers:
            consumer.cancelled = True
            self.consumers.pop(consumer, None)
            self._gone_from_rotation(consumer)
            if consumer is self.active_consumer:
                self._activate_next()
            if not self.consumers and not self.deleted:
                self.owner.consumers_gone(self)

    def _leave_rotation(self, consumer: Consumer) -> None:
        if consumer.in_rotation:
            consumer.in_rotation = False
            self._rotation.remove(consumer)

    def _gone_from_rotation(self, consumer: Consumer) -> None:
        """A consumer that is cancelled is passed over. They are taken out together when they are many: looking for each
        of thousands that go at once would take the square of it."""
        if consumer.in_rotation:
            consumer.in_rotation = False
            self._gone += 1
            if self._gone * 2 > len(self._rotation):
                self._rotation[:] = [one for one in self._rotation if not one.cancelled]
                self._gone = 0

    def _hand_over(self, active: Consumer) -> None:
        """One of a higher priority waits: let it take over when the active one has nothing in hands, so that messages
        stay in order."""
        self._leave_rotation(active)
        if active.unsettled > 0:
            self._is_handing_over = True
        else:
            self._activate_next()

    def _activate_next(self) -> None:
        """The consumer of the highest priority becomes the active one, the oldest of them first."""
        self._is_handing_over = False
        self.active_consumer = None
        for consumer in self.consumers:
            if self.active_consumer is None or consumer.priority > self.active_consumer.priority:
                self.active_consumer = consumer
        if self.active_consumer is not None:
            self.wake(self.active_consumer)

    def wake(self, consumer: Consumer) -> None:
        if not consumer.in_rotation and not consumer.cancelled:
            if self.active_consumer is not None and (consumer is not self.active_consumer or self._is_handing_over):
                return
            consumer.in_rotation = True
            rotation = self._rotation
            rotation.append(consumer)
            if len(rotation) > 1 and rotation[len(rotation) - 2].priority < consumer.priority:
                rotation.sort(key=_highest_priority_first)
            if not self.turn_pending and self.ready > 0:
                self.turn.touch_queue(self)

    # --- Purging and deleting ---------------------------------------------------------------------------------------

    def purge(self) -> int:
        count: i64 = 0
        for backlog in self._served:
            count += backlog.purge()
        for stuck in self._stuck:
            self._backlog_of(stuck.entry).settle(stuck.entry)
        count += len(self._stuck)
        self._stuck = []
        self._stuck_bytes = 0
        self.settled_total += count
        return int(count)

    def delete(self) -> None:
        self.deleted = True
        for timer in (self._expiry, self._stuck_timer):
            if timer is not None:
                timer.cancel()
        self._expiry = None
        self._stuck_timer = None
        self._stuck = []
        for consumer in self.consumers:
            consumer.cancelled = True
            consumer.in_rotation = False
            consumer.queue_deleted()
        self.consumers = {}
        self._rotation = []
        self._gone = 0
        self.active_consumer = None
        for backlog in self._served:
            backlog.delete()


def _highest_priority_first(consumer: Consumer) -> int:
    return -int(consumer.priority)
