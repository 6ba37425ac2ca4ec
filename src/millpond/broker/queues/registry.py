"""The queue types. A new one is a file in this folder, or next to it, and a line in `QUEUE_TYPES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from mypy_extensions import i64

from millpond.base.errors import PreconditionFailed
from millpond.broker.queues.message_queue import MessageQueue, QueueContext, QueueOwner
from millpond.broker.queues.queue import Queue
from millpond.broker.queues.settings import TYPE_CLASSIC, TYPE_QUORUM, TYPE_SHARE, TYPE_STREAM, QueueSettings
from millpond.broker.shares.share_queue import ShareQueue

# Called with owner, context, name, log id, whether it survives a restart, and settings.
Create = Callable[[QueueOwner, QueueContext, str, i64, bool, QueueSettings], MessageQueue]


@final
class QueueType:
    """What is to be known of a type before there is a queue of it. A `replicated` type is one that RabbitMQ keeps on
    several nodes: such a queue is durable, belongs to nobody, and has a name that its client gave it. Without
    `create` its messages are a topic's."""

    def __init__(self, name: str, create: Create | None, replicated: bool) -> None:
        self.name: Final = name
        self.create: Final = create
        self.replicated: Final = replicated

    def suits(self, durable: bool, exclusive: bool, auto_delete: bool) -> bool:
        """Whether there can be such a queue, if its client names it."""
        return not self.replicated or (durable and not exclusive and not auto_delete)

    def check(self, resource: str, durable: bool, exclusive: bool, auto_delete: bool, is_generated: bool) -> None:
        """PreconditionFailed where there can be no such queue."""
        if not self.replicated:
            return
        if is_generated:
            raise PreconditionFailed(f"Cannot declare a server-named queue for type {self.name}")
        if auto_delete:
            raise PreconditionFailed(f"invalid property 'auto-delete' for {resource}")
        if exclusive:
            raise PreconditionFailed(f"invalid property 'exclusive-owner' for {resource}")
        if not durable:
            raise PreconditionFailed(f"invalid property 'non-durable' for {resource}")


QUEUE_TYPES: Final[dict[str, QueueType]] = {
    kind.name: kind
    for kind in (
        QueueType(TYPE_CLASSIC, Queue, replicated=False),
        QueueType(TYPE_QUORUM, Queue, replicated=True),
        QueueType(TYPE_STREAM, None, replicated=True),
        QueueType(TYPE_SHARE, ShareQueue, replicated=True),
    )
}
