"""Class basic, but for publish and ack, which `channel.py` handles.

Behaviour: as RabbitMQ 4. `basic.qos` counts messages only; with `global` it limits the channel, without it the
consumers that come after. `no_local` is ignored, as RabbitMQ does.
"""

from __future__ import annotations

import secrets

from millpond.base.errors import NotAllowed, NotImplementedHere, PreconditionFailed
from millpond.base.limits import CONSUMERS_PER_CHANNEL_MAX
from millpond.broker.access import Operation
from millpond.broker.queues.message_queue import MessageQueue
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.channel import Channel
from millpond.protocols.amqp.classes.queue import named
from millpond.protocols.amqp.consumer import AmqpConsumer
from millpond.protocols.amqp.content import counted_returns, write_content
from millpond.protocols.amqp.publish_route import REPLY_TO
from millpond.protocols.amqp.registry import check, on_channel


@on_channel(methods.BasicQos)
def qos(channel: Channel, method: methods.BasicQos) -> None:
    if method.prefetch_size:
        raise NotImplementedHere(f"prefetch_size!=0 ({method.prefetch_size})")
    if method.global_:
        channel.prefetch_global = method.prefetch_count
        channel.wake_consumers()
    else:
        channel.prefetch = method.prefetch_count
    channel.connection.send(channel.number, methods.BasicQosOk())


@on_channel(methods.BasicConsume)
def consume(channel: Channel, method: methods.BasicConsume) -> None:
    connection = channel.connection
    name = named(channel, method.queue)
    tag = method.consumer_tag
    if tag in channel.consumers:
        raise NotAllowed(f"attempt to reuse consumer tag '{tag}'")
    if len(channel.consumers) >= CONSUMERS_PER_CHANNEL_MAX:
        raise NotAllowed(f"reached maximum ({CONSUMERS_PER_CHANNEL_MAX}) of consumers per channel")
    if name == REPLY_TO:
        queue = _reply_queue(channel, method)
    else:
        check(connection, Operation.READ, "queue", name)
        queue = channel.vhost.queue(name, connection)
    channel.vhost.check_consumable(queue, method.exclusive)
    if not tag:
        tag = "amq.ctag-" + secrets.token_urlsafe(16)
    consumer = AmqpConsumer(
        channel, queue, tag, channel.prefetch, not method.no_ack, method.exclusive, method.arguments
    )
    consumer.priority = _integer(method.arguments, "x-priority", -(2**31), 0)
    consumer.timeout_ms = _integer(method.arguments, "x-consumer-timeout", 0, -1)
    queue.check_consumer(consumer, channel.prefetch_global > 0)
    channel.consumers[tag] = consumer
    if not method.nowait:
        connection.send(channel.number, methods.BasicConsumeOk(consumer_tag=tag))
    queue.add_consumer(consumer)


def _integer(arguments: dict[str, object], name: str, lowest: int, default: int) -> int:
    value = arguments.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value < 2**31:
        raise PreconditionFailed(f"invalid arg '{name}': expected integer")
    return value


def _reply_queue(channel: Channel, method: methods.BasicConsume) -> MessageQueue:
    """Direct reply-to: answers come to this channel, without acknowledgement."""
    if not method.no_ack:
        raise PreconditionFailed("reply consumer cannot acknowledge")
    if channel.reply_queue is not None and not channel.reply_queue.deleted:
        raise PreconditionFailed("reply consumer already set")
    channel.reply_queue = channel.vhost.reply_queue(channel.connection)
    channel.properties_forgotten()
    return channel.reply_queue


@on_channel(methods.BasicCancel)
def cancel(channel: Channel, method: methods.BasicCancel) -> None:
    """Behaviour: what the consumer holds unsettled stays with the channel. An unknown tag is cancelled already."""
    _cancel(channel, method.consumer_tag)
    if not method.nowait:
        channel.connection.send(channel.number, methods.BasicCancelOk(consumer_tag=method.consumer_tag))


@on_channel(methods.BasicCancelOk)
def cancel_ok(channel: Channel, method: methods.BasicCancelOk) -> None:
    _cancel(channel, method.consumer_tag)


def _cancel(channel: Channel, tag: str) -> None:
    consumer = channel.consumers.pop(tag, None)
    if consumer is not None:
        consumer.queue.remove_consumer(consumer)
        channel.connection.consumer_gone(consumer)


@on_channel(methods.BasicGet)
def get(channel: Channel, method: methods.BasicGet) -> None:
    connection = channel.connection
    name = named(channel, method.queue)
    check(connection, Operation.READ, "queue", name)
    queue = channel.vhost.queue(name, connection)
    channel.vhost.used(queue)
    entry = queue.get()
    if entry is None:
        connection.send(channel.number, methods.BasicGetEmpty())
        return
    message = entry.message
    tag = channel.skip_delivery_tag() if method.no_ack else channel.track(entry)
    connection.send(
        channel.number,
        methods.BasicGetOk(
            delivery_tag=tag,
            redelivered=entry.redelivered,
            exchange=message.address.exchange,
            routing_key=message.address.routing_key,
            message_count=int(queue.ready),
        ),
    )
    write_content(
        connection.output, channel.number, message, connection.body_frame_bytes, counted_returns(entry, queue)
    )
    if method.no_ack:
        queue.settle(entry)


@on_channel(methods.BasicAck)
def ack(channel: Channel, method: methods.BasicAck) -> None:
    channel.acknowledge(_tag(method.delivery_tag), method.multiple)


@on_channel(methods.BasicReject)
def reject(channel: Channel, method: methods.BasicReject) -> None:
    channel.refuse(_tag(method.delivery_tag), False, method.requeue)


@on_channel(methods.BasicNack)
def nack(channel: Channel, method: methods.BasicNack) -> None:
    channel.refuse(_tag(method.delivery_tag), method.multiple, method.requeue)


def _tag(tag: int) -> int:
    if tag >= 1 << 63:
        raise PreconditionFailed(f"unknown delivery tag {tag}")
    return tag


@on_channel(methods.BasicRecover)
def recover(channel: Channel, method: methods.BasicRecover) -> None:
    if not method.requeue:
        raise NotImplementedHere("requeue=false")
    channel.recover()
    channel.connection.send(channel.number, methods.BasicRecoverOk())


@on_channel(methods.BasicRecoverAsync)
def recover_async(channel: Channel, method: methods.BasicRecoverAsync) -> None:
    if not method.requeue:
        raise NotImplementedHere("requeue=false")
    channel.recover()
