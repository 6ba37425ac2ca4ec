"""aio-pika: the asyncio client that most Python services use, and its robust connection across restarts."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractRobustConnection
from aio_pika.exceptions import ChannelPreconditionFailed, DeliveryError
from aio_pika.patterns import RPC, Master, NackMessage, RejectMessage

from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.pika_client import Unique

DEADLINE_S = 20.0
PERSISTENT = aio_pika.DeliveryMode.PERSISTENT


async def until(condition: Callable[[], object], what: str, *, deadline_s: float = DEADLINE_S) -> None:
    give_up_at = asyncio.get_running_loop().time() + deadline_s
    while not condition():
        assert asyncio.get_running_loop().time() < give_up_at, f"not within {deadline_s:g} s: {what}"
        await asyncio.sleep(0.01)


@pytest.fixture
async def connection(broker: Endpoint) -> AsyncIterator[AbstractRobustConnection]:
    async with await aio_pika.connect_robust(broker.url) as opened:
        yield opened


async def test_publishes_with_confirms_and_iterates_over_a_queue(
    connection: AbstractRobustConnection, unique: Unique
) -> None:
    async with connection.channel() as channel:
        await channel.set_qos(prefetch_count=10)
        queue = await channel.declare_queue(unique("queue"), durable=True)
        for number in range(100):
            await channel.default_exchange.publish(
                aio_pika.Message(b"%d" % number, delivery_mode=PERSISTENT, headers={"number": number}), queue.name
            )
        received: list[bytes] = []
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    assert message.headers["number"] == int(message.body)
                    received.append(message.body)
                if len(received) == 100:
                    break
        assert received == [b"%d" % number for number in range(100)]


async def test_many_publishes_may_wait_for_their_confirms_together(
    connection: AbstractRobustConnection, unique: Unique
) -> None:
    channel = await connection.channel()
    queue = await channel.declare_queue(unique("queue"), durable=True)
    confirmations = await asyncio.gather(
        *(
            channel.default_exchange.publish(aio_pika.Message(b"%d" % number, delivery_mode=PERSISTENT), queue.name)
            for number in range(500)
        )
    )
    assert len(confirmations) == 500
    assert (await queue.declare()).message_count == 500


async def test_an_unroutable_mandatory_message_raises(connection: AbstractRobustConnection, unique: Unique) -> None:
    channel = await connection.channel(on_return_raises=True)
    with pytest.raises(DeliveryError):
        await channel.default_exchange.publish(aio_pika.Message(b"m"), unique("nowhere"), mandatory=True)


async def test_an_inequivalent_declaration_raises_and_the_connection_survives(
    connection: AbstractRobustConnection, unique: Unique
) -> None:
    name = unique("queue")
    channel = await connection.channel()
    await channel.declare_queue(name, durable=True)
    other = await connection.channel()
    with pytest.raises(ChannelPreconditionFailed):
        await other.declare_queue(name, durable=False)
    assert (await channel.declare_queue(name, durable=True)).name == name


async def test_a_message_whose_processing_fails_is_requeued_or_rejected(
    connection: AbstractRobustConnection, unique: Unique
) -> None:
    channel = await connection.channel()
    dead = await channel.declare_queue(unique("dead"))
    queue = await channel.declare_queue(
        unique("queue"), arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name}
    )
    await channel.default_exchange.publish(aio_pika.Message(b"m"), queue.name)

    first = await queue.get(timeout=DEADLINE_S)
    with pytest.raises(ZeroDivisionError):
        async with first.process(requeue=True):
            _ = 1 // 0
    second = await queue.get(timeout=DEADLINE_S)
    assert second.redelivered
    with pytest.raises(ZeroDivisionError):
        async with second.process(requeue=False):
            _ = 1 // 0

    async with asyncio.timeout(DEADLINE_S):
        while (message := await dead.get(fail=False)) is None:
            await asyncio.sleep(0.01)
    assert message.body == b"m"
    await message.ack()


async def test_exchanges_of_every_type_are_declared_and_bound(
    connection: AbstractRobustConnection, unique: Unique
) -> None:
    channel = await connection.channel()
    for kind in (aio_pika.ExchangeType.DIRECT, aio_pika.ExchangeType.FANOUT, aio_pika.ExchangeType.TOPIC):
        exchange = await channel.declare_exchange(unique(kind.value), kind, auto_delete=True)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange, "a.b")
        await exchange.publish(aio_pika.Message(kind.value.encode()), "a.b")
        message = await queue.get(timeout=DEADLINE_S)
        assert message.body == kind.value.encode()
        await message.ack()
        await queue.unbind(exchange, "a.b")


async def test_a_transaction_commits_and_rolls_back(connection: AbstractRobustConnection, unique: Unique) -> None:
    channel = await connection.channel(publisher_confirms=False)
    queue = await channel.declare_queue(unique("queue"))
    async with channel.transaction():
        await channel.default_exchange.publish(aio_pika.Message(b"committed"), queue.name)

    async def fail_halfway() -> None:
        async with channel.transaction():
            await channel.default_exchange.publish(aio_pika.Message(b"rolled back"), queue.name)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        await fail_halfway()
    message = await queue.get(no_ack=True, timeout=DEADLINE_S)
    assert message.body == b"committed"
    assert await queue.get(no_ack=True, fail=False) is None


async def test_remote_procedure_calls(connection: AbstractRobustConnection, unique: Unique) -> None:
    async def multiply(*, x: int, y: int) -> int:
        return x * y

    channel = await connection.channel()
    rpc = await RPC.create(channel)
    name = unique("multiply")
    await rpc.register(name, multiply, auto_delete=True)
    results = await asyncio.gather(*(rpc.call(name, kwargs={"x": x, "y": 10}) for x in range(20)))
    assert results == [x * 10 for x in range(20)]
    await rpc.close()


async def test_master_and_workers_with_refusals(connection: AbstractRobustConnection, unique: Unique) -> None:
    done: list[int] = []
    refused_once: set[int] = set()

    async def work(*, task: int) -> None:
        if task == 3 and task not in refused_once:
            refused_once.add(task)
            raise NackMessage(requeue=True)
        if task == 4:
            raise RejectMessage(requeue=False)
        done.append(task)

    channel = await connection.channel()
    master = Master(channel)
    name = unique("tasks")
    worker = await master.create_worker(name, work, auto_delete=True)
    for task in range(10):
        await master.create_task(name, kwargs={"task": task})
    await until(lambda: len(done) == 9, "all tasks but the rejected one")
    assert sorted(done) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    await worker.close()


class TestRobustConnection:
    """A service that keeps publishing and consuming while its broker goes away and comes back."""

    @pytest.mark.parametrize("end", ["terminate", "kill"])
    async def test_reconnects_and_continues(self, broker_process: BrokerProcess, end: str) -> None:
        name, exchange_name = f"robust-{uuid.uuid4().hex}", "robust"
        received: list[bytes] = []

        async def on_message(message: AbstractIncomingMessage) -> None:
            async with message.process():
                received.append(message.body)

        connection = await aio_pika.connect_robust(broker_process.amqp_url, reconnect_interval=0.1)
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=5)
            exchange = await channel.declare_exchange(exchange_name, aio_pika.ExchangeType.TOPIC, durable=True)
            queue = await channel.declare_queue(name, durable=True)
            await queue.bind(exchange, "events.#")
            # A queue that goes with the connection: the client has to declare it again.
            temporary = await channel.declare_queue("temporary", exclusive=True)
            await temporary.bind(exchange, "temporary.#")
            await queue.consume(on_message)
            await temporary.consume(on_message)

            async def publish(key: str, body: bytes) -> None:
                await exchange.publish(aio_pika.Message(body, delivery_mode=PERSISTENT), key)

            await publish("events.a", b"before")
            await until(lambda: b"before" in received, "a delivery before the restart")

            reconnected = asyncio.Event()
            connection.reconnect_callbacks.add(lambda *_: reconnected.set())
            await asyncio.to_thread(getattr(broker_process, end))
            await asyncio.to_thread(broker_process.start)
            await asyncio.wait_for(reconnected.wait(), DEADLINE_S)

            await self.eventually_publish(lambda: publish("events.b", b"after"))
            await self.eventually_publish(lambda: publish("temporary.b", b"temporary"))
            await until(lambda: {b"after", b"temporary"} <= set(received), "deliveries after the restart")

    @staticmethod
    async def eventually_publish(publish: Callable[[], Awaitable[None]]) -> None:
        """aio-pika raises while its channel is still being restored; a service would try again, and so do we."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    await publish()
                    return
                except (aio_pika.exceptions.AMQPError, RuntimeError, ConnectionError):
                    await asyncio.sleep(0.05)


async def test_a_stream_is_replayed_while_others_write_to_it(
    connection: AbstractRobustConnection, unique: Unique
) -> None:
    channel = await connection.channel()
    stream = await channel.declare_queue(unique("stream"), durable=True, arguments={"x-queue-type": "stream"})

    async def write(numbers: range) -> None:
        publishing = await connection.channel()
        for number in numbers:
            await publishing.default_exchange.publish(aio_pika.Message(b"%d" % number), stream.name)

    async def read(start: object, count: int) -> list[int]:
        reading = await connection.channel()
        await reading.set_qos(prefetch_count=20)
        queue = await reading.get_queue(stream.name)
        received: list[int] = []
        async with queue.iterator(arguments={"x-stream-offset": start}) as messages:
            async for message in messages:
                await message.ack()
                assert message.headers["x-stream-offset"] == int(message.body)
                received.append(int(message.body))
                if len(received) == count:
                    return received
        raise AssertionError("the stream ended")

    await write(range(100))
    async with asyncio.timeout(DEADLINE_S):
        results = await asyncio.gather(
            read("first", 300), read(50, 250), read(200, 100), write(range(100, 300)), read("first", 300)
        )
    assert results == [list(range(300)), list(range(50, 300)), list(range(200, 300)), None, list(range(300))]
