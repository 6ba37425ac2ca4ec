"""FastStream: subscribers on exchanges of every type, acknowledgement policies, requests, a broker that restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from aio_pika.exceptions import DeliveryError
from faststream import AckPolicy
from faststream.exceptions import NackMessage, RejectMessage
from faststream.rabbit import (
    Channel,
    ExchangeType,
    QueueType,
    RabbitBroker,
    RabbitExchange,
    RabbitMessage,
    RabbitQueue,
    RabbitRouter,
)
from pydantic import BaseModel

from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.pika_client import Unique

DEADLINE_S = 20.0


async def until(condition: Callable[[], object], what: str) -> None:
    give_up_at = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        assert asyncio.get_running_loop().time() < give_up_at, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(0.01)


@pytest.fixture
async def app(broker: Endpoint) -> AsyncIterator[RabbitBroker]:
    """FastStream's broker object: subscribers are registered on it, and `start` declares and consumes."""
    async with RabbitBroker(broker.url, logger=None) as made:
        yield made


class Order(BaseModel):
    number: int
    items: list[str]


async def test_subscribers_get_models_and_publishers_send_what_they_return(app: RabbitBroker, unique: Unique) -> None:
    orders, prices, log = unique("orders"), unique("prices"), []

    @app.subscriber(RabbitQueue(orders, durable=True))
    @app.publisher(RabbitQueue(prices, durable=True))
    async def price(order: Order) -> dict[str, int]:
        return {"number": order.number, "price": 10 * len(order.items)}

    @app.subscriber(RabbitQueue(prices, durable=True))
    async def note(number: int, price: int) -> None:
        log.append((number, price))

    await app.start()
    for number in range(20):
        await app.publish(Order(number=number, items=["a", "b"]), orders, persist=True)
    await until(lambda: len(log) == 20, "all prices")
    assert log == [(number, 20) for number in range(20)]


class TestExchanges:
    async def test_topic(self, app: RabbitBroker, unique: Unique) -> None:
        exchange = RabbitExchange(unique("topic"), type=ExchangeType.TOPIC)
        errors, everything = [], []

        @app.subscriber(RabbitQueue(unique("errors"), routing_key="*.error"), exchange)
        async def on_error(body: str) -> None:
            errors.append(body)

        @app.subscriber(RabbitQueue(unique("all"), routing_key="#"), exchange)
        async def on_all(body: str) -> None:
            everything.append(body)

        await app.start()
        for key in ("app.error", "app.info", "db.error"):
            await app.publish(key, exchange=exchange, routing_key=key)
        await until(lambda: len(everything) == 3 and len(errors) == 2, "all deliveries")
        assert errors == ["app.error", "db.error"]

    async def test_parts_of_a_routing_key_are_arguments(self, app: RabbitBroker, unique: Unique) -> None:
        from faststream import Path

        exchange = RabbitExchange(unique("topic"), type=ExchangeType.TOPIC)
        seen = []

        @app.subscriber(RabbitQueue(unique("queue"), routing_key="logs.{level}.{source}"), exchange)
        async def on_log(body: str, level: str = Path(), source: str = Path()) -> None:
            seen.append((level, source, body))

        await app.start()
        await app.publish("full", exchange=exchange, routing_key="logs.error.disk")
        await until(lambda: seen, "the delivery")
        assert seen == [("error", "disk", "full")]

    async def test_fanout(self, app: RabbitBroker, unique: Unique) -> None:
        exchange = RabbitExchange(unique("fanout"), type=ExchangeType.FANOUT)
        seen: list[str] = []
        for _ in range(3):

            @app.subscriber(RabbitQueue(unique("queue"), auto_delete=True), exchange)
            async def on_event(body: str) -> None:
                seen.append(body)

        await app.start()
        await app.publish("event", exchange=exchange)
        await until(lambda: len(seen) == 3, "three deliveries")

    async def test_headers(self, app: RabbitBroker, unique: Unique) -> None:
        exchange = RabbitExchange(unique("headers"), type=ExchangeType.HEADERS)
        both, either = [], []

        @app.subscriber(
            RabbitQueue(unique("all"), bind_arguments={"x-match": "all", "kind": "pdf", "size": 4}), exchange
        )
        async def on_both(body: str) -> None:
            both.append(body)

        @app.subscriber(
            RabbitQueue(unique("any"), bind_arguments={"x-match": "any", "kind": "pdf", "size": 4}), exchange
        )
        async def on_either(body: str) -> None:
            either.append(body)

        await app.start()
        await app.publish("both", exchange=exchange, headers={"kind": "pdf", "size": 4})
        await app.publish("one", exchange=exchange, headers={"kind": "pdf", "size": 5})
        await until(lambda: len(either) == 2 and both, "all deliveries")
        assert (both, either) == (["both"], ["both", "one"])

    async def test_an_exchange_bound_to_another(self, app: RabbitBroker, unique: Unique) -> None:
        source = RabbitExchange(unique("source"), type=ExchangeType.TOPIC)
        exchange = RabbitExchange(unique("bound"), type=ExchangeType.FANOUT, bind_to=source, routing_key="europe.#")
        seen = []

        @app.subscriber(RabbitQueue(unique("queue")), exchange)
        async def on_event(body: str) -> None:
            seen.append(body)

        await app.start()
        await app.publish("paris", exchange=source, routing_key="europe.paris")
        # FastStream publishes with `mandatory`, and this one has nowhere to go.
        await app.publish("lima", exchange=source, routing_key="america.lima")
        await app.publish("rome", exchange=source, routing_key="europe.rome")
        await until(lambda: len(seen) == 2, "all deliveries")
        assert seen == ["paris", "rome"]


@pytest.mark.millpond_only("x-delayed-message is a plugin that RabbitMQ does not ship with")
async def test_an_exchange_that_delays(app: RabbitBroker, unique: Unique) -> None:
    exchange = RabbitExchange(
        unique("delayed"), type=ExchangeType.X_DELAYED_MESSAGE, arguments={"x-delayed-type": "topic"}
    )
    arrived: dict[str, float] = {}

    @app.subscriber(RabbitQueue(unique("queue"), routing_key="a.#"), exchange)
    async def note(body: str) -> None:
        arrived[body] = time.time()

    await app.start()
    sent_at = time.time()
    await app.publish("later", exchange=exchange, routing_key="a.b", headers={"x-delay": 500}, mandatory=False)
    await app.publish("now", exchange=exchange, routing_key="a.b")
    await until(lambda: len(arrived) == 2, "both deliveries")
    assert arrived["later"] >= sent_at + 0.5


async def test_an_unroutable_message_raises_when_asked_to(broker: Endpoint, unique: Unique) -> None:
    async with RabbitBroker(broker.url, logger=None, default_channel=Channel(on_return_raises=True)) as app:
        await app.start()
        with pytest.raises(DeliveryError):
            await app.publish("lost", unique("nowhere"))


class TestAcknowledgements:
    """What becomes of a message whose subscriber fails."""

    @pytest.fixture
    async def parked(self, app: RabbitBroker, unique: Unique) -> tuple[dict[str, str], list[str]]:
        """Arguments of a queue whose dead letters are collected, and the collection."""
        parking, bodies = unique("parking"), []

        @app.subscriber(RabbitQueue(parking, durable=True))
        async def park(message: RabbitMessage) -> None:
            bodies.append(message.body.decode())

        return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": parking}, bodies

    @pytest.mark.parametrize(
        ("policy", "attempts", "is_parked"),
        [
            (AckPolicy.REJECT_ON_ERROR, 1, True),
            (AckPolicy.NACK_ON_ERROR, 2, False),
            (AckPolicy.ACK, 1, False),
            (AckPolicy.ACK_FIRST, 1, False),
        ],
    )
    async def test_by_policy(
        self,
        app: RabbitBroker,
        unique: Unique,
        parked: tuple[dict[str, str], list[str]],
        policy: AckPolicy,
        attempts: int,
        is_parked: bool,
    ) -> None:
        arguments, bodies = parked
        redelivered: list[bool] = []
        healthy: list[str] = []

        queue = RabbitQueue(unique("queue"), durable=True, arguments=arguments)

        @app.subscriber(queue, ack_policy=policy)
        async def work(body: str, message: RabbitMessage) -> None:
            if body == "poison":
                redelivered.append(bool(message.raw_message.redelivered))
                if len(redelivered) == 1:
                    raise ValueError("on purpose")
            else:
                healthy.append(body)

        await app.start()
        await app.publish("poison", queue, persist=True)
        await app.publish("healthy", queue, persist=True)
        await until(lambda: healthy and len(redelivered) == attempts, "all attempts")
        await until(lambda: bodies or not is_parked, "the dead letter")
        assert redelivered == [False, True][:attempts]
        assert bodies == (["poison"] if is_parked else [])

    async def test_by_hand_and_by_exceptions(
        self, app: RabbitBroker, unique: Unique, parked: tuple[dict[str, str], list[str]]
    ) -> None:
        arguments, bodies = parked
        attempts: list[str] = []
        queue = RabbitQueue(unique("queue"), durable=True, arguments=arguments)

        @app.subscriber(queue, ack_policy=AckPolicy.MANUAL)
        async def work(body: str, message: RabbitMessage) -> None:
            attempts.append(body)
            if body == "requeue" and not message.raw_message.redelivered:
                await message.nack(requeue=True)
            elif body == "reject":
                await message.reject(requeue=False)
            else:
                await message.ack()

        raising = RabbitQueue(unique("raising"), durable=True, arguments=arguments)

        @app.subscriber(raising)
        async def work_too(body: str, message: RabbitMessage) -> None:
            attempts.append(body)
            if body == "raise nack" and not message.raw_message.redelivered:
                raise NackMessage
            if body == "raise reject":
                raise RejectMessage

        await app.start()
        for body in ("requeue", "reject", "ack"):
            await app.publish(body, queue)
        for body in ("raise nack", "raise reject"):
            await app.publish(body, raising)
        await until(lambda: len(attempts) == 7 and len(bodies) == 2, "all attempts")
        assert sorted(attempts) == [
            "ack", "raise nack", "raise nack", "raise reject", "reject", "requeue", "requeue"
        ]  # fmt: skip
        assert sorted(bodies) == ["raise reject", "reject"]


class TestRequests:
    async def test_a_request_is_answered_by_direct_reply_to(self, app: RabbitBroker, unique: Unique) -> None:
        name = unique("double")

        @app.subscriber(RabbitQueue(name))
        async def double(number: int) -> int:
            return 2 * number

        await app.start()
        answers = await asyncio.gather(*(app.request(number, name, timeout=DEADLINE_S) for number in range(20)))
        assert [await answer.decode() for answer in answers] == [2 * number for number in range(20)]

    async def test_an_answer_goes_to_the_queue_that_was_asked_for(self, app: RabbitBroker, unique: Unique) -> None:
        name, replies, seen = unique("double"), unique("replies"), []

        @app.subscriber(RabbitQueue(name))
        async def double(number: int) -> int:
            return 2 * number

        @app.subscriber(RabbitQueue(replies))
        async def on_reply(number: int, message: RabbitMessage) -> None:
            seen.append((message.correlation_id, number))

        await app.start()
        await app.publish(21, name, reply_to=replies, correlation_id="the question")
        await until(lambda: seen, "the answer")
        assert seen == [("the question", 42)]


async def test_a_channel_of_its_own_limits_what_a_subscriber_holds(app: RabbitBroker, unique: Unique) -> None:
    queue = RabbitQueue(unique("queue"))
    begun: list[int] = []
    release = asyncio.Event()

    @app.subscriber(queue, channel=Channel(prefetch_count=3))
    async def work(number: int) -> None:
        begun.append(number)
        await release.wait()

    await app.start()
    for number in range(10):
        await app.publish(number, queue)
    await until(lambda: len(begun) == 3, "three in hand")
    declared = await app.declare_queue(queue)
    # What is published is counted at once, so that what is not ready is in the subscriber's hands.
    assert (await declared.declare()).message_count == 7
    assert len(begun) == 3
    release.set()
    await until(lambda: len(begun) == 10, "the rest")


async def test_messages_of_a_higher_priority_go_first(app: RabbitBroker, unique: Unique) -> None:
    queue = RabbitQueue(unique("queue"), durable=True, arguments={"x-max-priority": 5})
    await app.declare_queue(queue)
    for priority in (0, 5, 3):
        await app.publish(priority, queue, priority=priority)
    seen: list[int] = []

    @app.subscriber(queue)
    async def work(number: int) -> None:
        seen.append(number)

    await app.start()
    await until(lambda: len(seen) == 3, "all deliveries")
    assert seen == [5, 3, 0]


async def test_a_quorum_queue_drops_what_is_nacked_too_often(app: RabbitBroker, unique: Unique) -> None:
    parking, attempts, parked = unique("parking"), [], []

    @app.subscriber(RabbitQueue(parking, durable=True))
    async def park(message: RabbitMessage) -> None:
        parked.append(message.headers["x-first-death-reason"])

    queue = RabbitQueue(
        unique("queue"),
        queue_type=QueueType.QUORUM,
        durable=True,
        arguments={"x-delivery-limit": 2, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": parking},
    )

    @app.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)
    async def work(message: RabbitMessage) -> None:
        attempts.append(message.headers.get("x-delivery-count", 0))
        raise ValueError("on purpose")

    await app.start()
    await app.publish("poison", queue, persist=True)
    await until(lambda: parked, "the dead letter")
    assert attempts == [0, 1, 2]
    assert parked == ["delivery_limit"]


async def test_a_stream_is_read_from_its_beginning_by_everybody(broker: Endpoint, unique: Unique) -> None:
    # FastStream declares a queue once, on one channel; streams are consumed with a prefetch only.
    async with RabbitBroker(broker.url, logger=None, default_channel=Channel(prefetch_count=5)) as app:
        stream = RabbitQueue(unique("stream"), queue_type=QueueType.STREAM, durable=True)
        await app.declare_queue(stream)
        for number in range(20):
            await app.publish(number, stream)
        seen: dict[str, list[int]] = {"first": [], "second": []}

        @app.subscriber(stream, consume_args={"x-stream-offset": "first"})
        async def first(number: int) -> None:
            seen["first"].append(number)

        @app.subscriber(stream, consume_args={"x-stream-offset": 10})
        async def second(number: int) -> None:
            seen["second"].append(number)

        await app.start()
        await until(lambda: len(seen["first"]) == 20 and len(seen["second"]) == 10, "all deliveries")
        await app.publish(20, stream)
        await until(lambda: len(seen["first"]) == 21 and len(seen["second"]) == 11, "what is written meanwhile")
        assert seen == {"first": list(range(21)), "second": list(range(10, 21))}


async def test_subscribers_of_a_router_and_a_message_taken_by_hand(app: RabbitBroker, unique: Unique) -> None:
    router = RabbitRouter(prefix="v1-")
    name, seen = unique("queue"), []

    @router.subscriber(RabbitQueue(name, auto_delete=True))
    async def work(body: str) -> None:
        seen.append(body)

    app.include_router(router)
    taken = app.subscriber(RabbitQueue(unique("by-hand"), auto_delete=True))
    await app.start()
    await app.publish("routed", f"v1-{name}")
    await app.publish("taken", taken.queue)
    message = await taken.get_one(timeout=DEADLINE_S)
    assert message is not None
    assert await message.decode() == "taken"
    await until(lambda: seen == ["routed"], "the delivery")


@pytest.mark.parametrize("end", ["terminate", "kill"])
async def test_subscribers_go_on_after_a_restart(broker_process: BrokerProcess, end: str) -> None:
    seen: list[int] = []
    reconnected = asyncio.Event()
    async with RabbitBroker(broker_process.amqp_url, logger=None, reconnect_interval=0.1) as app:

        @app.subscriber(RabbitQueue("queue", durable=True), RabbitExchange("exchange", type=ExchangeType.TOPIC))
        async def work(number: int) -> None:
            seen.append(number)

        await app.start()
        await app.publish(1, "queue", "exchange", persist=True)
        await until(lambda: seen == [1], "a delivery before the restart")
        connection = await app.connect()
        connection.reconnect_callbacks.add(lambda *_: reconnected.set())
        await asyncio.to_thread(getattr(broker_process, end))
        await asyncio.to_thread(broker_process.start)
        await asyncio.wait_for(reconnected.wait(), DEADLINE_S)
        await app.publish(2, "queue", "exchange", persist=True)
        # A kill may come before the first one's acknowledgement is on the disk; then it is delivered once more.
        await until(lambda: seen[-1] == 2, "a delivery after the restart")
        assert set(seen) == {1, 2}
