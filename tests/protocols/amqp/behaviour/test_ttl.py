"""Time to live: of a queue's messages, of single messages, and where a message leaves when its time is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.pika_client import Connect, Inbox, Unique, drain, get, publish, ready_count, turn, wait_ready
from tests.support.waiting import eventually

DeclareQueue = Callable[..., str]
LONG = "60000"
SHORT = "80"


@pytest.fixture
def channel(connect: Connect) -> BlockingChannel:
    """In confirm mode: a message is in its queue before its time there is measured."""
    channel = connect().channel()
    channel.confirm_delivery()
    return channel


@pytest.fixture
def declare(channel: BlockingChannel, unique: Unique) -> DeclareQueue:
    def declare_queue(**arguments: Any) -> str:
        name = unique("queue")
        channel.queue_declare(name, arguments={key.replace("_", "-"): value for key, value in arguments.items()})
        return name

    return declare_queue


class TestQueueTtl:
    def test_messages_leave_when_their_time_is_over(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        name = declare(x_message_ttl=80)
        publish(channel, name, b"1", b"2")
        wait_ready(channel, name, 0)
        assert channel.basic_get(name)[0] is None

    def test_messages_in_time_are_delivered(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        name = declare(x_message_ttl=60000)
        publish(channel, name, b"1", b"2")
        assert drain(channel, name) == [b"1", b"2"]

    def test_a_message_held_by_a_consumer_does_not_expire(
        self, channel: BlockingChannel, declare: DeclareQueue
    ) -> None:
        name, witness = declare(x_message_ttl=80), declare(x_message_ttl=300)
        inbox = Inbox(channel, name)
        publish(channel, name, b"held")
        inbox.wait(1)
        publish(channel, witness, b"outlives the other")
        wait_ready(channel, witness, 0)
        inbox.deliveries[0].ack()
        # The channel would be closed if the delivery were not known any more.
        assert ready_count(channel, name) == 0

    def test_a_message_put_back_too_late_expires(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        name, witness = declare(x_message_ttl=80), declare(x_message_ttl=300)
        publish(channel, name, b"held")
        delivery = get(channel, name, auto_ack=False)
        publish(channel, witness, b"outlives the other")
        wait_ready(channel, witness, 0)
        channel.basic_reject(delivery.tag, requeue=True)
        wait_ready(channel, name, 0)
        assert channel.basic_get(name)[0] is None

    def test_zero_drops_what_no_consumer_takes_at_once(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        name = declare(x_message_ttl=0)
        publish(channel, name, b"nobody")
        wait_ready(channel, name, 0)
        inbox = Inbox(channel, name, auto_ack=True)
        publish(channel, name, b"taken")
        assert inbox.wait(1)[0].body == b"taken"


class TestMessageTtl:
    def test_a_message_leaves_when_its_time_is_over(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"short", expiration=SHORT)
        wait_ready(channel, queue, 0)

    def test_the_expiration_is_delivered_with_the_message(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"m", expiration=LONG)
        assert get(channel, queue).properties.expiration == LONG

    def test_the_shorter_of_queue_and_message_ttl_counts(self, channel: BlockingChannel, declare: DeclareQueue) -> None:
        short_queue, long_queue = declare(x_message_ttl=80), declare(x_message_ttl=60000)
        publish(channel, short_queue, b"m", expiration=LONG)
        publish(channel, long_queue, b"m", expiration=SHORT)
        for name in (short_queue, long_queue):
            wait_ready(channel, name, 0)

    def test_a_message_expires_only_at_the_head(self, channel: BlockingChannel, queue: str, unique: Unique) -> None:
        witness = unique("witness")
        channel.queue_declare(witness)
        publish(channel, queue, b"long", expiration=LONG)
        publish(channel, queue, b"short", expiration=SHORT)
        publish(channel, witness, b"m", expiration="300")
        wait_ready(channel, witness, 0)
        # Its time is over and still it counts, for RabbitMQ looks at the head alone.
        assert ready_count(channel, queue) == 2
        assert get(channel, queue).body == b"long"
        wait_ready(channel, queue, 0)

    def test_an_expired_message_is_not_delivered(self, channel: BlockingChannel, queue: str, unique: Unique) -> None:
        witness = unique("witness")
        channel.queue_declare(witness)
        publish(channel, queue, b"long", expiration=LONG)
        publish(channel, queue, b"short", expiration=SHORT)
        publish(channel, queue, b"last")
        publish(channel, witness, b"m", expiration="300")
        wait_ready(channel, witness, 0)
        inbox = Inbox(channel, queue, auto_ack=True)
        inbox.wait(2)
        assert inbox.bodies == [b"long", b"last"]

    def test_zero_reaches_a_waiting_consumer_only(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"nobody", expiration="0")
        wait_ready(channel, queue, 0)
        inbox = Inbox(channel, queue, auto_ack=True)
        publish(channel, queue, b"taken", expiration="0")
        assert inbox.wait(1)[0].body == b"taken"

    def test_a_consumer_with_a_full_prefetch_does_not_count(self, connect: Connect, queue: str) -> None:
        channel = connect().channel()
        channel.confirm_delivery()
        channel.basic_qos(prefetch_count=1)
        inbox = Inbox(channel, queue)
        publish(channel, queue, b"first")
        inbox.wait(1)
        publish(channel, queue, b"second", expiration=SHORT)
        wait_ready(channel, queue, 0)
        publish(channel, queue, b"third")
        inbox.deliveries[0].ack()
        eventually(lambda: len(inbox.deliveries) == 2, "the third message", step=lambda: turn(channel))
        assert inbox.bodies == [b"first", b"third"]
