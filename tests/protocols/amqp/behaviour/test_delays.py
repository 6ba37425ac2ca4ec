"""Messages that are delivered later: by the delayed exchange, and when they come back to a queue that retries later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import AMQPError, UnroutableError

from tests.support.broker_process import BrokerProcess
from tests.support.endpoint import Endpoint
from tests.support.pika_client import (
    Connect,
    Inbox,
    Unique,
    channel_refused,
    drain,
    get,
    publish,
    ready_count,
    wait_ready,
)
from tests.support.waiting import eventually

Open = Callable[[], BlockingChannel]
DELAYED = "x-delayed-message"


@pytest.fixture
def channel(connect: Connect) -> BlockingChannel:
    channel = connect().channel()
    channel.confirm_delivery()
    return channel


def delayed(delay: object, **headers: Any) -> BasicProperties:
    return BasicProperties(headers={"x-delay": delay, **headers}, delivery_mode=2)


def declare(channel: BlockingChannel, unique: Unique, kind: str = "direct", *keys: str) -> tuple[str, list[str]]:
    """A delayed exchange, and a queue for each key."""
    exchange = unique("later")
    channel.exchange_declare(exchange, DELAYED, durable=True, arguments={"x-delayed-type": kind})
    queues = []
    for key in keys:
        queues.append(unique("queue"))
        channel.queue_declare(queues[-1], durable=True)
        channel.queue_bind(queues[-1], exchange, key)
    return exchange, queues


class TestDelayedExchange:
    def test_messages_arrive_in_the_order_of_their_delays(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, (queue,) = declare(channel, unique, "direct", "key")
        inbox = Inbox(channel, queue, auto_ack=True)
        for delay in (900, 300, 600, 0):
            channel.basic_publish(exchange, "key", b"%d" % delay, delayed(delay))
        inbox.wait(4)
        assert inbox.bodies == [b"0", b"300", b"600", b"900"]

    def test_no_message_arrives_before_its_time(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, (queue,) = declare(channel, unique, "direct", "key")
        inbox = Inbox(channel, queue, auto_ack=True)
        started = time.time_ns() // 1_000_000
        channel.basic_publish(exchange, "key", b"", delayed(500))
        inbox.wait(1)
        # The broker counts whole milliseconds.
        assert time.time_ns() // 1_000_000 - started >= 499

    @pytest.mark.parametrize("alternate", [False, True])
    def test_a_transient_message_is_confirmed_too(
        self, channel: BlockingChannel, unique: Unique, alternate: bool
    ) -> None:
        exchange, (queue,) = declare(channel, unique, "direct", "key")
        if alternate:
            # Beside a queue that may refuse the message, which is another way through the broker.
            first, full = unique("first"), unique("full")
            channel.queue_declare(full, durable=True, arguments={"x-max-length": 9, "x-overflow": "reject-publish"})
            channel.exchange_declare(first, "fanout")
            channel.queue_bind(full, first)
            channel.exchange_bind(exchange, first)
        # Nothing of it is written, so no commit follows that it could wait for.
        inbox = Inbox(channel, queue, auto_ack=True)
        channel.basic_publish(
            first if alternate else exchange, "key", b"m", BasicProperties(headers={"x-delay": 50}, delivery_mode=1)
        )
        inbox.wait(1)

    def test_the_header_comes_negated(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, (queue,) = declare(channel, unique, "direct", "key")
        channel.basic_publish(exchange, "key", b"", delayed(50, other="stays"))
        wait_ready(channel, queue, 1)
        delivery = get(channel, queue)
        assert delivery.headers == {"x-delay": -50, "other": "stays"}
        assert delivery.method.exchange == exchange
        assert delivery.method.routing_key == "key"
        assert not delivery.redelivered

    def test_a_long_delay_in_the_header_is_understood(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, (queue,) = declare(channel, unique, "direct", "key")
        channel.basic_publish(exchange, "key", b"in 49 days", delayed(2**32 - 1))
        channel.basic_publish(exchange, "key", b"too long to be delayed", delayed(2**32))
        assert drain(channel, queue) == [b"too long to be delayed"]

    @pytest.mark.parametrize(
        ("kind", "keys", "key", "reached"),
        [
            ("direct", ("a", "b"), "b", [1]),
            ("fanout", ("", ""), "any", [0, 1]),
            ("topic", ("a.*", "b.#"), "b.c.d", [1]),
            ("x-consistent-hash", ("1",), "any", [0]),
        ],
    )
    def test_every_exchange_type_can_be_delayed(
        self, channel: BlockingChannel, unique: Unique, kind: str, keys: tuple[str, ...], key: str, reached: list[int]
    ) -> None:
        exchange, queues = declare(channel, unique, kind, *keys)
        channel.basic_publish(exchange, key, b"1", delayed(60))
        for index in reached:
            wait_ready(channel, queues[index], 1)
        assert sum(ready_count(channel, queue) for queue in queues) == len(reached)

    def test_headers_decide_when_the_message_is_due(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, _ = declare(channel, unique, "headers")
        queue = unique("queue")
        channel.queue_declare(queue)
        channel.queue_bind(queue, exchange, "", arguments={"x-match": "all", "shape": "round"})
        channel.basic_publish(exchange, "", b"no", delayed(30, shape="flat"))
        channel.basic_publish(exchange, "", b"yes", delayed(60, shape="round"))
        wait_ready(channel, queue, 1)
        assert drain(channel, queue) == [b"yes"]

    def test_copies_are_made_when_the_message_is_due(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, queues = declare(channel, unique, "direct", "a", "b")
        channel.basic_publish(exchange, "a", b"1", delayed(60, CC=["b"]))
        for queue in queues:
            wait_ready(channel, queue, 1)

    def test_a_mandatory_message_that_is_delayed_is_not_returned(
        self, channel: BlockingChannel, unique: Unique
    ) -> None:
        exchange, _ = declare(channel, unique)
        channel.basic_publish(exchange, "nowhere", b"", delayed(10_000), mandatory=True)
        with pytest.raises(UnroutableError):
            channel.basic_publish(exchange, "nowhere", b"", delayed(0), mandatory=True)

    def test_a_transaction_delays_when_it_is_committed(self, connect: Connect, unique: Unique) -> None:
        channel = connect().channel()
        exchange, (queue,) = declare(channel, unique, "direct", "key")
        channel.tx_select()
        channel.basic_publish(exchange, "key", b"gone", delayed(20))
        channel.tx_rollback()
        channel.basic_publish(exchange, "key", b"1", delayed(20))
        channel.tx_commit()
        wait_ready(channel, queue, 1)
        assert drain(channel, queue) == [b"1"]

    @pytest.mark.parametrize("arguments", [None, {"x-delayed-type": 1}, {"x-delayed-type": DELAYED}])
    def test_the_type_to_be_delayed_is_required(
        self, channel: BlockingChannel, unique: Unique, arguments: dict[str, object] | None
    ) -> None:
        with channel_refused(
            406, "PRECONDITION_FAILED - Invalid argument, 'x-delayed-type' must be an existing exchange type"
        ):
            channel.exchange_declare(unique("later"), DELAYED, arguments=arguments)

    def test_the_type_to_be_delayed_must_exist(self, channel: BlockingChannel, unique: Unique) -> None:
        with channel_refused(406, "PRECONDITION_FAILED - unknown exchange type 'x-none'"):
            channel.exchange_declare(unique("later"), DELAYED, arguments={"x-delayed-type": "x-none"})

    def test_where_messages_wait_cannot_be_used(self, connect: Connect, unique: Unique) -> None:
        channel = connect().channel()
        exchange, _ = declare(channel, unique)
        name = f"amq.delayed.{exchange}"
        text = f"NOT_FOUND - no queue '{name}' in vhost '/'"
        for use in (
            lambda used: used.queue_declare(name, passive=True),
            lambda used: used.queue_bind(name, "amq.fanout"),
            lambda used: used.queue_purge(name),
            lambda used: used.basic_consume(name, print),
            lambda used: used.basic_get(name),
        ):
            with channel_refused(404, text):
                use(connect().channel())
        channel.queue_delete(name)
        channel.basic_publish(exchange, "nowhere", b"", delayed(10_000))

    def test_what_waits_goes_with_the_exchange(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, (queue,) = declare(channel, unique, "direct", "key")
        channel.basic_publish(exchange, "key", b"gone", delayed(100))
        channel.exchange_delete(exchange)
        channel.exchange_declare(exchange, DELAYED, arguments={"x-delayed-type": "direct"})
        channel.queue_bind(queue, exchange, "key")
        channel.basic_publish(exchange, "key", b"new", delayed(150))
        wait_ready(channel, queue, 1)
        assert drain(channel, queue) == [b"new"]


class TestDelayedRetry:
    @staticmethod
    def declare(channel: BlockingChannel, unique: Unique, **arguments: object) -> str:
        queue = unique("queue")
        named = {f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}
        channel.queue_declare(
            queue, durable=True, arguments={"x-queue-type": "quorum", "x-delayed-retry-type": "all", **named}
        )
        return queue

    def test_a_rejected_message_comes_again_later_each_time(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = self.declare(channel, unique, delayed_retry_min=100, delayed_retry_backoff="exponential")
        arrivals: list[tuple[int, int]] = []

        def refuse(delivery: Any) -> None:
            arrivals.append((time.time_ns() // 1_000_000, delivery.headers.get("x-delivery-count", 0)))
            if len(arrivals) < 4:
                delivery.channel.basic_nack(delivery.tag, requeue=True)
            else:
                delivery.ack()

        inbox = Inbox(channel, queue, on_delivery=refuse)
        publish(channel, queue, b"1", delivery_mode=2)
        inbox.wait(4)
        assert [count for _, count in arrivals] == [0, 1, 2, 3]
        waits = [later - sooner for (sooner, _), (later, _) in pairwise(arrivals)]
        assert all(wait >= least - 1 for wait, least in zip(waits, [100, 200, 400], strict=True)), waits
        assert [delivery.redelivered for delivery in inbox.deliveries] == [False, True, True, True]

    def test_other_messages_do_not_wait_for_it(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = self.declare(channel, unique, delayed_retry_min=60_000)
        publish(channel, queue, b"1", b"2", b"3")
        channel.basic_nack(get(channel, queue, auto_ack=False).tag, requeue=True)
        assert drain(channel, queue) == [b"2", b"3"]
        assert channel.queue_purge(queue).method.message_count == 1

    def test_after_the_last_retry_it_is_dead_lettered(self, channel: BlockingChannel, unique: Unique) -> None:
        dead = unique("dead")
        channel.queue_declare(dead)
        queue = self.declare(
            channel, unique, delayed_retry_min=20, delivery_limit=3,
            dead_letter_exchange="", dead_letter_routing_key=dead,
        )  # fmt: skip
        inbox = Inbox(channel, queue, on_delivery=lambda delivery: channel.basic_nack(delivery.tag, requeue=True))
        publish(channel, queue, b"1", delivery_mode=2)
        wait_ready(channel, dead, 1)
        inbox.wait(4)
        (death,) = get(channel, dead).headers["x-death"]
        assert (death["reason"], death["queue"], death["count"]) == ("delivery_limit", queue, 1)


class TestRestart:
    @pytest.fixture
    def open(self, broker_process: BrokerProcess) -> Iterator[Open]:
        """Channels to the test's own broker. A broker that was killed has lost those opened before."""
        opened: list[BlockingConnection] = []

        def open_channel() -> BlockingChannel:
            opened.append(BlockingConnection(Endpoint.of_url(broker_process.amqp_url).parameters()))
            channel = opened[-1].channel()
            channel.confirm_delivery()
            return channel

        yield open_channel
        for connection in opened:
            if connection.is_open:
                try:
                    connection.close()
                except AMQPError:
                    # Its broker is gone.
                    continue

    @pytest.mark.parametrize("is_killed", [True, False])
    def test_delays_go_on(self, broker_process: BrokerProcess, open: Open, unique: Unique, is_killed: bool) -> None:
        channel = open()
        exchange, (queue,) = declare(channel, unique, "direct", "key")
        retried = TestDelayedRetry.declare(channel, unique, delayed_retry_min=1)
        late = TestDelayedRetry.declare(channel, unique, delayed_retry_min=3_600_000)
        for delay in (2000, 50, 100, 3_600_000):
            channel.basic_publish(exchange, "key", b"%d" % delay, delayed(delay))
        for name in (retried, late):
            publish(channel, name, name.encode(), delivery_mode=2)
            channel.basic_nack(get(channel, name, auto_ack=False).tag, requeue=True)
        # In the journal with what is confirmed after it.
        publish(channel, queue, b"first", delivery_mode=2)
        wait_ready(channel, retried, 1)
        wait_ready(channel, queue, 3)
        assert get(channel, queue).body == b"first"
        channel.basic_publish(exchange, "key", b"10", delayed(10))
        if is_killed:
            broker_process.kill()
            broker_process.start()
        else:
            broker_process.restart()
        channel = open()
        wait_ready(channel, queue, 4)
        bodies = drain(channel, queue)
        # The kill may have come before the acknowledgement was in the journal.
        assert [body for body in bodies if body != b"first"][-1] == b"2000"
        assert sorted(body for body in bodies if body != b"first") == [b"10", b"100", b"2000", b"50"]
        assert get(channel, retried).headers["x-delivery-count"] == 1
        assert ready_count(channel, late) == 0
        assert channel.queue_purge(late).method.message_count == 1

    def test_what_fell_due_meanwhile_comes_at_once(
        self, broker_process: BrokerProcess, open: Open, unique: Unique
    ) -> None:
        channel = open()
        exchange, (queue,) = declare(channel, unique, "direct", "key")
        started = time.time_ns() // 1_000_000
        for delay in (700, 500, 600):
            channel.basic_publish(exchange, "key", b"%d" % delay, delayed(delay))
        broker_process.kill()
        eventually(lambda: time.time_ns() // 1_000_000 > started + 800, "the time of all three")
        broker_process.start()
        channel = open()
        wait_ready(channel, queue, 3)
        assert drain(channel, queue) == [b"500", b"600", b"700"]
