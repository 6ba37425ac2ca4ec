"""Class queue.

Behaviour: an empty queue name means the queue that the channel declared last; with an empty routing key too, it is
also the routing key (AMQP 0-9-1, queue.bind).
"""

from __future__ import annotations

from typing import Final

from millpond.base.errors import AccessRefused, NotFound, PreconditionFailed
from millpond.base.limits import NAME_PREFIX_BYTES_MAX
from millpond.broker.access import Operation
from millpond.broker.permitted import check_binding, check_queue_declaration
from millpond.broker.vhost import GENERATED_PREFIX, RESERVED_PREFIX
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.channel import Channel
from millpond.protocols.amqp.classes.exchange import without_line_breaks
from millpond.protocols.amqp.publish_route import REPLY_TO
from millpond.protocols.amqp.registry import check, check_any, host_of, on_channel

NAME_PREFIX_ARGUMENT: Final = "x-name-prefix"

_COUNT_MAX: Final = (1 << 32) - 1


def named(channel: Channel, name: str) -> str:
    """The queue that a method means."""
    if name:
        return without_line_breaks(name)
    if not channel.last_queue_name:
        raise NotFound("no previously declared queue")
    return channel.last_queue_name


def _prefix(value: object) -> str:
    """What the name that the broker chooses begins with, before a hyphen. It is no property of the queue."""
    prefix = without_line_breaks(value) if isinstance(value, str) else ""
    if len(prefix.encode("utf-8", "surrogateescape")) > NAME_PREFIX_BYTES_MAX:
        raise PreconditionFailed(f"Queue name prefix '{prefix}' exceeds the {NAME_PREFIX_BYTES_MAX}-byte limit")
    return prefix or GENERATED_PREFIX


@on_channel(methods.QueueDeclare)
def declare(channel: Channel, method: methods.QueueDeclare) -> None:
    connection = channel.connection
    vhost = channel.vhost
    name = without_line_breaks(method.queue)
    if method.passive and name == REPLY_TO:
        # The pseudo queue of direct reply-to is always there.
        if not method.nowait:
            connection.send(channel.number, methods.QueueDeclareOk(queue=name))
        return
    if method.passive:
        name = named(channel, name)
        check_any(connection, "queue", name)
        queue = vhost.queue(name, connection)
    else:
        # What a user may not configure by that name is not to be had by leaving the choice to the broker.
        is_generated = not name
        prefix = method.arguments.pop(NAME_PREFIX_ARGUMENT, None)
        if is_generated:
            name = vhost.generated_name(_prefix(prefix))
        elif name.startswith(RESERVED_PREFIX):
            # Also where there is such a queue: one that the broker has named is not to be declared again.
            raise AccessRefused(f"queue name '{name}' contains reserved prefix 'amq.*'")
        check_queue_declaration(connection.access, connection.user, host_of(connection), vhost, name, method.arguments)
        queue = vhost.declare_queue(
            name, method.durable, method.exclusive, method.auto_delete, method.arguments, connection, is_generated
        )
        if queue.exclusive_owner is connection and queue not in connection.exclusive_queues:
            connection.exclusive_queues.append(queue)
    channel.last_queue_name = queue.name
    if not method.nowait:
        connection.send(
            channel.number,
            methods.QueueDeclareOk(
                queue=queue.name, message_count=_count(int(queue.ready)), consumer_count=int(queue.consumer_count)
            ),
        )


def _count(number: int) -> int:
    """A number of messages in the 32 bits that there are for it: a stream can have more."""
    return min(number, _COUNT_MAX)


@on_channel(methods.QueueBind)
def bind(channel: Channel, method: methods.QueueBind) -> None:
    name, exchange, routing_key = _ends(channel, method.queue, method.exchange, method.routing_key)
    vhost = channel.vhost
    vhost.bind(vhost.exchange(exchange), vhost.queue(name, channel.connection), routing_key, method.arguments)
    if not method.nowait:
        channel.connection.send(channel.number, methods.QueueBindOk())


@on_channel(methods.QueueUnbind)
def unbind(channel: Channel, method: methods.QueueUnbind) -> None:
    name, exchange, routing_key = _ends(channel, method.queue, method.exchange, method.routing_key)
    vhost = channel.vhost
    # RabbitMQ: unbinding what does not exist is done already.
    source = vhost.found_exchange(exchange)
    if source is not None and vhost.find_queue(name) is not None:
        vhost.unbind(source, vhost.queue(name, channel.connection), routing_key, method.arguments)
    channel.connection.send(channel.number, methods.QueueUnbindOk())


def _ends(channel: Channel, queue: str, exchange: str, routing_key: str) -> tuple[str, str, str]:
    name = named(channel, queue)
    if not queue and not routing_key:
        routing_key = name
    exchange = without_line_breaks(exchange)
    if not exchange:
        raise AccessRefused("operation not permitted on the default exchange")
    connection = channel.connection
    check_binding(
        connection.access, connection.user, host_of(connection), channel.vhost, "queue", name, exchange, routing_key
    )
    return name, exchange, routing_key


@on_channel(methods.QueuePurge)
def purge(channel: Channel, method: methods.QueuePurge) -> None:
    name = named(channel, method.queue)
    check(channel.connection, Operation.READ, "queue", name)
    count = channel.vhost.queue(name, channel.connection).purge()
    if not method.nowait:
        channel.connection.send(channel.number, methods.QueuePurgeOk(message_count=count))


@on_channel(methods.QueueDelete)
def delete(channel: Channel, method: methods.QueueDelete) -> None:
    """Behaviour: deleting a queue that does not exist is done already (RabbitMQ)."""
    name = named(channel, method.queue)
    vhost = channel.vhost
    connection = channel.connection
    check(connection, Operation.CONFIGURE, "queue", name)
    count = 0
    # A client that deletes what it consumes from is answered first and then told of the cancel: py-amqp relies on it.
    connection.hold_cancels()
    try:
        if vhost.find_queue(name) is not None:
            queue = vhost.queue(name, connection)
            count = vhost.delete_queue(queue, method.if_unused, method.if_empty)
            if queue in connection.exclusive_queues:
                connection.exclusive_queues.remove(queue)
        if not method.nowait:
            connection.send(channel.number, methods.QueueDeleteOk(message_count=_count(count)))
    finally:
        connection.send_cancels()
