"""Where the messages of a delayed exchange wait for their time.

It belongs to the exchange: the virtual host makes it and deletes it with the exchange. No client sees it; messages get
into it because the exchange names it as a destination, and leave it through the exchange's bindings.
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from millpond.base.limits import DELIVERIES_PER_TURN_MAX
from millpond.broker.exchanges.delayed import DELAY_HEADER, DelayedExchange, delay_ms, requested_delay
from millpond.broker.message import Message
from millpond.broker.queues.backlog import Backlog
from millpond.broker.queues.delayed_backlog import DelayedBacklog
from millpond.broker.queues.message_queue import MessageQueue, QueueContext, QueueOwner
from millpond.broker.queues.settings import QueueSettings

# How the catalog calls the queue of an exchange. Clients cannot declare queues with such names.
DELAY_QUEUE_PREFIX: Final = "amq.delayed."


@final
class DelayQueue(MessageQueue):
    """Holds the messages of one exchange until they are due, then gives them to its owner to be routed."""

    def __init__(
        self, owner: QueueOwner, context: QueueContext, exchange: DelayedExchange, log_id: i64, recoverable: bool
    ) -> None:
        name = DELAY_QUEUE_PREFIX + exchange.name
        super().__init__(owner, context, name, log_id, recoverable, QueueSettings())
        self.exchange: Final = exchange
        self.durable = exchange.durable
        self.journals_itself = True
        self.journals_persistent_only = True
        self.backlog: Final = DelayedBacklog(self, 0)
        self._backlogs: Final[list[Backlog]] = [self.backlog]

    @property
    def ready(self) -> i64:
        return self.backlog.ready

    @property
    def ready_bytes(self) -> i64:
        return self.backlog.ready_bytes

    @property
    def resident_bytes(self) -> i64:
        return self.backlog.resident_bytes

    @property
    def delayed(self) -> i64:
        # None of them is delivered from here, so those whose time has just come still count.
        return self.backlog.waiting + self.backlog.ready

    def backlogs(self) -> list[Backlog]:
        return self._backlogs

    def has_lane(self, number: int) -> bool:
        return number == 0

    def lane(self, number: int) -> Backlog:
        return self.backlog

    def publish(self, message: Message) -> None:
        """Hold a message whose headers ask for it."""
        self.published_total += 1
        due_ms = self.turn.now_ms + delay_ms(message.properties.headers())
        held = Message(message.address, message.properties, message.body, message.timestamp_ms, due_ms)
        self.backlog.append(held)
        if self.recoverable and message.properties.persistent:
            self.ledger.published(held, self.backlog.alone)
        if not self.turn_pending:
            self.turn.touch_queue(self)

    def refuses(self, size: i64) -> bool:
        return False

    def run_turn(self) -> None:
        """Let go of what is due. A message is in its queues and out of this one in the same turn, or in neither."""
        backlog = self.backlog
        budget: i64 = DELIVERIES_PER_TURN_MAX
        while not self.deleted:
            backlog.release()
            if backlog.ready == 0:
                return
            if budget <= 0:
                self.turn.touch_queue_later(self)
                return
            while True:
                entry = backlog.take()
                if entry is None:
                    break
                budget -= 1
                self.settled_total += 1
                self.owner.route_delayed(self, self._on_its_way(entry.message))
                if backlog.deleted:
                    # An exchange that a message reached may have gone with it.
                    return
                backlog.settle(entry)
                self.ledger.flush_large()

    def _on_its_way(self, message: Message) -> Message:
        """The message as it is routed: as if it were published now, except for its delay, which is negated."""
        delay = requested_delay(message.properties.headers())
        properties = message.properties.replaced({DELAY_HEADER: -delay if delay is not None else None}, True)
        return Message(message.address, properties, message.body, self.turn.now_ms)

    def purge(self) -> int:
        count = self.backlog.purge()
        self.settled_total += count
        return int(count)

    def delete(self) -> None:
        self.deleted = True
        self.backlog.delete()
