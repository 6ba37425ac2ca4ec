"""A message's place in one queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64, mypyc_attr

from millpond.broker.message import MESSAGE_OVERHEAD_BYTES, Message

if TYPE_CHECKING:
    from millpond.broker.queues.consumer import Consumer
    from millpond.broker.queues.message_queue import MessageQueue


@final
@mypyc_attr(acyclic=True)
class Entry:
    """One message in one queue, from publish to settlement.

    `queue` and `consumer` are set while it is delivered and unsettled, so that an acknowledgement needs no look-up;
    they are cleared on settlement and on return, which keeps the reference cycle through the queue short-lived.
    """

    def __init__(self, message: Message, offset: i64, size: i64) -> None:
        # A stream gives it up when it has been delivered.
        self.message: Message = message
        self.offset: Final[i64] = offset
        # What the message counts for in length limits: its body, in bytes.
        self.size: Final[i64] = size
        # Wall clock; -1 where it never expires.
        self.expires_ms: i64 = -1
        # How often it was given back after a delivery.
        self.returns: i64 = 0
        # It was delivered before, or may have been.
        self.redelivered = False
        # The tag under which it was last delivered, and when (wall clock).
        self.delivery_tag: i64 = 0
        self.delivered_ms: i64 = 0
        self.queue: MessageQueue | None = None
        self.consumer: Consumer | None = None


def message_size(message: Message) -> i64:
    """Bytes that count for a queue's length limit: the body's, as in RabbitMQ."""
    return len(message.body)


def memory_size(message: Message) -> i64:
    """Bytes that a message is assumed to take in memory."""
    return len(message.body) + len(message.properties.raw) + MESSAGE_OVERHEAD_BYTES
