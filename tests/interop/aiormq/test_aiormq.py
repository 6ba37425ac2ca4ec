"""aiormq, on which aio-pika stands: AMQP's methods as coroutines, with nothing in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiormq
import pytest
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from aiormq.exceptions import (
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    DuplicateConsumerTag,
    PublishError,
)
from pamqp.commands import Basic

from tests.support.endpoint import Endpoint
from tests.support.pika_client import Unique

DEADLINE_S = 20.0


@pytest.fixture
async def connection(broker: Endpoint) -> AsyncIterator[AbstractConnection]:
    opened = await aiormq.connect(broker.url)
    yield opened
    await opened.close()


@pytest.fixture
async def channel(connection: AbstractConnection) -> AbstractChannel:
    return await connection.channel()


class Inbox:
    """What a consumer has received."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[DeliveredMessage] = asyncio.Queue()

    async def __call__(self, message: DeliveredMessage) -> None:
        await self._arrived.put(message)

    async def take(self, count: int) -> list[DeliveredMessage]:
        return [await asyncio.wait_for(self._arrived.get(), DEADLINE_S) for _ in range(count)]


async def test_confirms_come_for_every_publish(channel: AbstractChannel, unique: Unique) -> None:
    name = unique("queue")
    await channel.queue_declare(name, durable=True)
    confirms = await asyncio.gather(
        *(
            channel.basic_publish(b"%d" % number, routing_key=name, properties=Basic.Properties(delivery_mode=2))
            for number in range(200)
        )
    )
    assert all(isinstance(confirm, Basic.Ack) for confirm in confirms)
    assert (await channel.queue_declare(name, passive=True)).message_count == 200
    assert (await channel.queue_purge(name)).message_count == 200


async def test_a_consumer_gets_what_its_prefetch_allows(channel: AbstractChannel, unique: Unique) -> None:
    name, inbox = unique("queue"), Inbox()
    await channel.queue_declare(name)
    await channel.basic_qos(prefetch_count=2)
    for number in range(4):
        await channel.basic_publish(b"%d" % number, routing_key=name)
    tag = (await channel.basic_consume(name, inbox)).consumer_tag
    first, second = await inbox.take(2)
    assert (await channel.queue_declare(name, passive=True)).message_count == 2
    await channel.basic_ack(second.delivery_tag, multiple=True)
    third, fourth = await inbox.take(2)
    await channel.basic_nack(third.delivery_tag, requeue=False)
    await channel.basic_reject(fourth.delivery_tag, requeue=True)
    again = (await inbox.take(1))[0]
    assert [message.body for message in (first, second, third, fourth, again)] == [b"0", b"1", b"2", b"3", b"3"]
    assert again.redelivered
    await channel.basic_ack(again.delivery_tag)
    await channel.basic_cancel(tag)


async def test_recover_brings_everything_once_more(channel: AbstractChannel, unique: Unique) -> None:
    name, inbox = unique("queue"), Inbox()
    await channel.queue_declare(name)
    await channel.basic_publish(b"m", routing_key=name)
    await channel.basic_consume(name, inbox)
    assert not (await inbox.take(1))[0].redelivered
    await channel.basic_recover(requeue=True)
    assert (await inbox.take(1))[0].redelivered


async def test_errors_close_the_channel_and_not_the_connection(connection: AbstractConnection, unique: Unique) -> None:
    name = unique("queue")
    with pytest.raises(ChannelNotFoundEntity, match="no queue"):
        await (await connection.channel()).queue_declare(name, passive=True)
    channel = await connection.channel()
    await channel.queue_declare(name, durable=True)
    with pytest.raises(ChannelPreconditionFailed, match="inequivalent arg 'durable'"):
        await (await connection.channel()).queue_declare(name, durable=False)
    await channel.basic_consume(name, Inbox(), consumer_tag="mine")
    with pytest.raises(DuplicateConsumerTag):
        await channel.basic_consume(name, Inbox(), consumer_tag="mine")
    assert not channel.is_closed


async def test_what_cannot_be_routed_or_taken_raises(connection: AbstractConnection, unique: Unique) -> None:
    channel = await connection.channel(on_return_raises=True)
    with pytest.raises(PublishError):
        await channel.basic_publish(b"m", routing_key=unique("nowhere"), mandatory=True)
    full = unique("full")
    await channel.queue_declare(full, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await channel.basic_publish(b"m", routing_key=full)
    with pytest.raises(DeliveryError):
        await channel.basic_publish(b"n", routing_key=full)


async def test_direct_reply_to(connection: AbstractConnection, unique: Unique) -> None:
    name, replies = unique("echo"), Inbox()
    server, client = await connection.channel(), await connection.channel()
    await server.queue_declare(name)

    async def echo(message: DeliveredMessage) -> None:
        await server.basic_publish(
            message.body,
            routing_key=message.header.properties.reply_to or "",
            properties=Basic.Properties(correlation_id=message.header.properties.correlation_id),
        )

    await server.basic_consume(name, echo, no_ack=True)
    await client.basic_consume("amq.rabbitmq.reply-to", replies, no_ack=True)
    for number in range(10):
        await client.basic_publish(
            b"%d" % number,
            routing_key=name,
            properties=Basic.Properties(reply_to="amq.rabbitmq.reply-to", correlation_id=str(number)),
        )
    answers = await replies.take(10)
    assert [(answer.header.properties.correlation_id, answer.body) for answer in answers] == [
        (str(number), b"%d" % number) for number in range(10)
    ]


async def test_bodies_of_every_size_come_back_whole(channel: AbstractChannel, unique: Unique) -> None:
    name = unique("queue")
    await channel.queue_declare(name)
    # Around the size of one frame, and some frames.
    for size in (0, 1, 131064, 131065, 131072, 1 << 20):
        body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        await channel.basic_publish(body, routing_key=name)
        assert (await channel.basic_get(name, no_ack=True)).body == body
    assert isinstance((await channel.basic_get(name)).delivery, Basic.GetEmpty)


async def test_a_secret_is_updated_on_an_open_connection(connection: AbstractConnection, broker: Endpoint) -> None:
    await connection.update_secret(broker.password, reason="a test")
    assert not connection.is_closed
