"""What a queue knows of the one who reads from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import i64, mypyc_attr

from millpond.base.limits import UNSETTLED_WHEN_SHORT_MAX

if TYPE_CHECKING:
    from millpond.broker.queues.entry import Entry
    from millpond.broker.queues.message_queue import MessageQueue


@mypyc_attr(allow_interpreted_subclasses=True)
class Consumer:
    """A subscription to a queue. A protocol subclasses it and turns `deliver` into bytes.

    `prefetch` is how many deliveries may be unsettled at once; 0 means no limit. A consumer that cannot take another
    delivery says so in `can_take` and leaves the queue's rotation; whatever changes that calls `Queue.wake`.
    """

    def __init__(self, queue: MessageQueue, tag: str, prefetch: i64, acknowledges: bool, exclusive: bool) -> None:
        self.queue: Final = queue
        self.tag: Final = tag
        self.prefetch: i64 = prefetch
        self.acknowledges: Final = acknowledges
        self.exclusive: Final = exclusive
        # As the protocol brought them.
        self.arguments: dict[str, object] = {}
        # Those of the highest priority that can take a delivery get all of them.
        self.priority: i64 = 0
        # How long it may leave a delivery unsettled; -1 where the queue and the node say.
        self.timeout_ms: i64 = -1
        self.unsettled: i64 = 0
        # Unsettled messages that it may have even while memory is short.
        self.granted: i64 = UNSETTLED_WHEN_SHORT_MAX
        self.delivered: i64 = 0
        # Whether the queue's rotation holds it.
        self.in_rotation = False
        self.cancelled = False

    def can_take(self) -> bool:
        """Whether another delivery is welcome now."""
        return self.prefetch == 0 or self.unsettled < self.prefetch

    def describe_channel(self) -> dict[str, object]:
        """Where it consumes, as plain values under the names of RabbitMQ's management API."""
        return {}

    def described_arguments(self) -> dict[str, object]:
        """What its client has asked for besides."""
        return {}

    def deliver(self, entry: Entry) -> None:
        """Send `entry`. When `acknowledges` is false the queue settles it right after."""
        raise NotImplementedError

    def queue_deleted(self) -> None:
        """The queue is gone: tell the client, and forget this consumer."""
        raise NotImplementedError
