"""Redrive: dead letters go back to the queues where they died.

A message leaves the dead-letter queue and is in its old one within one turn, so the journal has both or neither. It
arrives as it was first published, with its exchange and routing key, and without the headers that tell of its deaths:
its attempts count from zero again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from millpond.base.errors import NotFound, PreconditionFailed
from millpond.base.limits import REDRIVE_KEPT_MAX, REDRIVEN_PER_TURN_MAX
from millpond.broker.dead_letter import deaths
from millpond.broker.message import Address, Message
from millpond.broker.queues.entry import message_size
from millpond.broker.queues.queue import Queue
from millpond.broker.vhost import Route

if TYPE_CHECKING:
    from millpond.broker.queues.entry import Entry
    from millpond.broker.vhost import VirtualHost

_DEATH_HEADERS: Final = (
    "x-death", "x-delivery-count",
    "x-first-death-queue", "x-first-death-reason", "x-first-death-exchange",
    "x-last-death-queue", "x-last-death-reason", "x-last-death-exchange",
)  # fmt: skip


class Origin(NamedTuple):
    """Where a message died first, and where it had been published to."""

    queue: str
    address: Address


def origin(message: Message) -> Origin | None:
    """None for a message that is no dead letter."""
    headers = message.properties.headers()
    history = deaths(headers)
    first = headers.get("x-first-death-queue")
    for death in reversed(history):
        queue, exchange, keys = death.get("queue"), death.get("exchange"), death.get("routing-keys")
        if isinstance(queue, str) and (first is None or queue == first):
            key = keys[0] if isinstance(keys, list) and keys else queue
            named = isinstance(exchange, str) and isinstance(key, str)
            return Origin(queue, Address(str(exchange), str(key)) if named else Address("", queue))
    return None


class Redrive:
    """One order to move what is in a queue now back to where it died, or all of it to the queue `target`.

    What cannot be moved, because it is no dead letter, its queue is gone or full, is `kept` where it is.
    """

    def __init__(self, vhost: VirtualHost, name: str, target: str | None, limit: int | None) -> None:
        queue = vhost.queue(name, None)
        if not isinstance(queue, Queue):
            raise PreconditionFailed(f"{vhost.queue_resource(name)} is no queue whose messages can be moved")
        if target is not None and vhost.find_queue(target) is None:
            raise NotFound(f"no {vhost.queue_resource(target)}")
        if target == name:
            raise PreconditionFailed("a queue's messages cannot be moved to itself")
        self._vhost = vhost
        self._queue = queue
        self._target = target
        self._left = min(int(queue.ready), limit if limit is not None else int(queue.ready))
        self._kept: list[Entry] = []
        self.moved = 0

    @property
    def kept(self) -> int:
        """Messages that were looked at and stay."""
        return len(self._kept)

    def run(self) -> bool:
        """Move one turn's share. False when there is nothing left to do; then call `finish`."""
        queue = self._queue
        for _ in range(REDRIVEN_PER_TURN_MAX):
            if self._left == 0 or queue.deleted or len(self._kept) >= REDRIVE_KEPT_MAX:
                return False
            entry = queue.get()
            if entry is None:
                return False
            self._left -= 1
            if self._publish(entry.message):
                queue.settle(entry)
                self.moved += 1
            else:
                self._kept.append(entry)
        return True

    def finish(self) -> None:
        """Put what stays back into its place."""
        self._queue.put_back(self._kept)

    def _publish(self, message: Message) -> bool:
        vhost = self._vhost
        home = origin(message)
        name = self._target or (home.queue if home is not None else "")
        target = vhost.find_queue(name)
        if target is None or target is self._queue:
            return False
        if target.refuses(message_size(message)):
            # Asked here, because a queue that is offered what it refuses may dead-letter it: to where it is already.
            return False
        address = home.address if home is not None else message.address
        properties = message.properties.replaced(dict.fromkeys(_DEATH_HEADERS), True)
        exchange = vhost.router.exchanges[""]
        route = Route(address, exchange, [target], vhost.router.version)
        renewed = Message(address, properties, message.body, vhost.context.turn.now_ms)
        vhost.publish(route, renewed)
        return True
