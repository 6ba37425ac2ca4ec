"""Priority queues: what a queue with `x-max-priority` does with the priority of its messages."""

from __future__ import annotations

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.broker_process import BrokerProcess
from tests.support.pika_client import (
    Connect,
    Inbox,
    Unique,
    channel_refused,
    drain,
    get,
    publish,
    ready_count,
    turn,
    wait_ready,
)


def declare(channel: BlockingChannel, name: str, highest: int = 10, **arguments: object) -> str:
    named = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
    channel.queue_declare(name, durable=True, arguments={"x-max-priority": highest, **named})
    return name


def publish_priorities(channel: BlockingChannel, queue: str, *priorities: int | None) -> None:
    """One message each, whose body is its priority and its place."""
    for place, priority in enumerate(priorities):
        body = f"{priority}.{place}".encode()
        channel.basic_publish("", queue, body, BasicProperties(priority=priority, delivery_mode=2))
    wait_ready(channel, queue, len(priorities))


class TestOrder:
    def test_higher_first_and_in_order_within_a_priority(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = declare(channel, unique("work"))
        publish_priorities(channel, queue, 1, 9, 0, 9, 5, 1)
        assert drain(channel, queue) == [b"9.1", b"9.3", b"5.4", b"1.0", b"1.5", b"0.2"]

    def test_without_a_priority_is_the_lowest(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = declare(channel, unique("work"))
        publish_priorities(channel, queue, None, 1, 0, None)
        assert drain(channel, queue) == [b"1.1", b"None.0", b"0.2", b"None.3"]

    def test_above_the_maximum_counts_as_the_maximum(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = declare(channel, unique("work"), 3)
        publish_priorities(channel, queue, 3, 200, 2)
        assert drain(channel, queue) == [b"3.0", b"200.1", b"2.2"]

    def test_all_256_priorities(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = declare(channel, unique("work"), 255)
        publish_priorities(channel, queue, *range(256))
        assert drain(channel, queue) == [b"%d.%d" % (number, number) for number in reversed(range(256))]

    def test_a_maximum_of_zero_is_a_plain_queue(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = declare(channel, unique("work"), 0)
        publish_priorities(channel, queue, 1, 9)
        assert drain(channel, queue) == [b"1.0", b"9.1"]

    def test_a_late_message_of_higher_priority_overtakes_what_is_not_delivered(
        self, channel: BlockingChannel, unique: Unique
    ) -> None:
        queue = declare(channel, unique("work"))
        channel.confirm_delivery()
        channel.basic_qos(prefetch_count=1)
        publish_priorities(channel, queue, 1, 1, 1)
        inbox = Inbox(channel, queue)
        inbox.wait(1)
        publish(channel, queue, b"urgent", priority=9)
        inbox.deliveries[0].ack()
        assert [delivery.body for delivery in inbox.wait(2)] == [b"1.0", b"urgent"]

    def test_a_returned_message_comes_before_others_of_its_priority_only(
        self, channel: BlockingChannel, unique: Unique
    ) -> None:
        queue = declare(channel, unique("work"))
        publish_priorities(channel, queue, 5, 5, 9)
        highest, first = get(channel, queue, auto_ack=False), get(channel, queue, auto_ack=False)
        channel.basic_nack(first.tag, requeue=True)
        channel.basic_nack(highest.tag, requeue=True)
        wait_ready(channel, queue, 3)
        assert drain(channel, queue) == [b"9.2", b"5.0", b"5.1"]


class TestWithOtherFeatures:
    def test_counts_are_of_all_priorities(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = declare(channel, unique("work"))
        publish_priorities(channel, queue, 1, 2, 3)
        assert ready_count(channel, queue) == 3
        assert channel.queue_purge(queue).method.message_count == 3
        assert ready_count(channel, queue) == 0

    @pytest.mark.millpond_only("RabbitMQ lets what has expired wait behind higher priorities")
    def test_expires_at_the_head_of_each_priority(self, channel: BlockingChannel, unique: Unique) -> None:
        dead = unique("dead")
        channel.queue_declare(dead)
        queue = declare(channel, unique("work"), dead_letter_exchange="", dead_letter_routing_key=dead)
        publish(channel, queue, b"high", priority=9)
        publish(channel, queue, b"low", priority=1, expiration="1")
        wait_ready(channel, dead, 1)
        assert drain(channel, dead) == [b"low"]
        assert drain(channel, queue) == [b"high"]

    def test_the_length_limit_is_for_all_priorities_together(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = declare(channel, unique("work"), max_length=2, overflow="reject-publish")
        for number in range(5):
            publish(channel, queue, b"%d" % number, priority=number)
        wait_ready(channel, queue, 2)
        assert drain(channel, queue) == [b"1", b"0"]

    def test_competing_consumers_share_by_priority(self, connect: Connect, unique: Unique) -> None:
        channel = connect().channel()
        queue = declare(channel, unique("work"))
        publish_priorities(channel, queue, *[number % 3 for number in range(30)])
        channel.basic_qos(prefetch_count=1)
        received: list[bytes] = []
        inboxes = [
            Inbox(channel, queue, on_delivery=lambda delivery: (received.append(delivery.body), delivery.ack()))
            for _ in range(3)
        ]
        while len(received) < 30:
            turn(channel)
        assert [body[:1] for body in received] == sorted([body[:1] for body in received], reverse=True)
        assert all(inbox.deliveries for inbox in inboxes)


class TestDeclaring:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (-1, "{value_negative,-1}"),
            (256, "{max_value_exceeded,256}"),
        ],
    )
    def test_refused(self, channel: BlockingChannel, unique: Unique, value: int, text: str) -> None:
        queue = unique("work")
        expected = f"PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue '{queue}' in vhost '/': {text}"
        with channel_refused(406, expected):
            channel.queue_declare(queue, arguments={"x-max-priority": value})

    def test_again_with_another_maximum(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = declare(channel, unique("work"), 10)
        with channel_refused(
            406,
            f"PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue '{queue}' in vhost '/': received '5' "
            "but current is '10'",
        ):
            declare(channel, queue, 5)


def test_priorities_survive_a_restart(broker_process: BrokerProcess) -> None:
    with pika.BlockingConnection(pika.URLParameters(broker_process.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        declare(channel, "work")
        publish_priorities(channel, "work", 1, 9, 0, 9, 5)
        assert get(channel, "work").body == b"9.1"
        # What is confirmed after it is on the disk after it.
        channel.queue_declare("other", durable=True)
        publish(channel, "other", b"marker", delivery_mode=2)
    broker_process.kill()
    broker_process.start()
    with pika.BlockingConnection(pika.URLParameters(broker_process.amqp_url)) as connection:
        channel = connection.channel()
        publish(channel, "work", b"new", priority=7)
        assert drain(channel, "work") == [b"9.3", b"new", b"5.4", b"1.0", b"0.2"]
