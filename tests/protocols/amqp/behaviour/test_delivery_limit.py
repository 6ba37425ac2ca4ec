"""What quorum queues are chosen for: a poison message that moves aside, and a dead letter that is never lost."""

from __future__ import annotations

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.broker_process import BrokerProcess
from tests.support.pika_client import (
    Connect,
    Delivery,
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
from tests.support.waiting import eventually


@pytest.fixture
def channel(connect: Connect) -> BlockingChannel:
    channel = connect().channel()
    channel.confirm_delivery()
    return channel


def declare_quorum(channel: BlockingChannel, name: str, dead: str | None = None, **arguments: object) -> str:
    named = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
    if dead is not None:
        channel.queue_declare(dead, durable=True)
        named |= {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum", **named})
    return name


def reject_often(channel: BlockingChannel, queue: str, times: int) -> list[Delivery]:
    """Take the message and give it back, so many times."""
    seen: list[Delivery] = []
    for _ in range(times):
        wait_ready(channel, queue, 1)
        seen.append(get(channel, queue, auto_ack=False))
        channel.basic_nack(seen[-1].tag, requeue=True)
    return seen


class TestDeliveryLimit:
    def test_a_message_is_dead_after_it_came_back_more_often(self, channel: BlockingChannel, unique: Unique) -> None:
        dead = unique("dead")
        queue = declare_quorum(channel, unique("work"), dead, delivery_limit=2)
        publish(channel, queue, b"poison", delivery_mode=2)
        seen = reject_often(channel, queue, 3)
        wait_ready(channel, dead, 1)
        assert [delivery.redelivered for delivery in seen] == [False, True, True]
        assert [delivery.headers.get("x-delivery-count", 0) for delivery in seen] == [0, 1, 2]
        letter = get(channel, dead)
        assert letter.body == b"poison"
        assert letter.headers["x-death"][0]["reason"] == "delivery_limit"
        assert letter.headers["x-death"][0]["queue"] == queue
        assert letter.headers["x-first-death-reason"] == "delivery_limit"
        assert ready_count(channel, queue) == 0

    def test_without_a_dead_letter_exchange_it_is_dropped(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = declare_quorum(channel, unique("work"), delivery_limit=0)
        publish(channel, queue, b"poison")
        reject_often(channel, queue, 1)
        publish(channel, queue, b"next")
        wait_ready(channel, queue, 1)
        assert drain(channel, queue) == [b"next"]

    @pytest.mark.millpond_only("RabbitMQ has a limit by default since 4.0")
    def test_a_quorum_queue_gives_up_after_twenty(self, channel: BlockingChannel, unique: Unique) -> None:
        dead = unique("dead")
        queue = declare_quorum(channel, unique("work"), dead)
        publish(channel, queue, b"poison")
        reject_often(channel, queue, 21)
        wait_ready(channel, dead, 1)

    @pytest.mark.millpond_only("-1 lifts the limit since 4.0")
    def test_a_limit_of_minus_one_is_none(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = declare_quorum(channel, unique("work"), delivery_limit=-1)
        publish(channel, queue, b"m")
        reject_often(channel, queue, 30)
        wait_ready(channel, queue, 1)

    def test_a_lost_consumer_counts(self, channel: BlockingChannel, connect: Connect, unique: Unique) -> None:
        dead = unique("dead")
        queue = declare_quorum(channel, unique("work"), dead, delivery_limit=1)
        publish(channel, queue, b"poison")
        for _ in range(2):
            wait_ready(channel, queue, 1)
            crashing = connect()
            Inbox(crashing.channel(), queue).wait(1)
            crashing.close()
        wait_ready(channel, dead, 1)

    @pytest.mark.millpond_only("RabbitMQ has delivery limits for quorum queues only")
    def test_a_classic_queue_may_have_one(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = unique("work")
        channel.queue_declare(queue, arguments={"x-delivery-limit": 1})
        publish(channel, queue, b"poison")
        seen = reject_often(channel, queue, 2)
        assert seen[1].headers["x-delivery-count"] == 1
        wait_ready(channel, queue, 0)

    def test_a_good_message_behind_it_is_delivered(self, channel: BlockingChannel, unique: Unique) -> None:
        dead = unique("dead")
        queue = declare_quorum(channel, unique("work"), dead, delivery_limit=3)
        publish(channel, queue, b"poison", b"good")
        done: list[bytes] = []

        def work(delivery: Delivery) -> None:
            if delivery.body == b"poison":
                channel.basic_nack(delivery.tag, requeue=True)
            else:
                done.append(delivery.body)
                delivery.ack()

        channel.basic_qos(prefetch_count=1)
        Inbox(channel, queue, on_delivery=work)
        eventually(lambda: done == [b"good"], "the good message", step=lambda: turn(channel))
        wait_ready(channel, dead, 1)

    def test_the_count_survives_a_restart(self, broker_process: BrokerProcess) -> None:
        for start in range(3):
            with pika.BlockingConnection(pika.URLParameters(broker_process.amqp_url)) as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                if start == 0:
                    declare_quorum(channel, "work", "dead", delivery_limit=2)
                    publish(channel, "work", b"poison", delivery_mode=2)
                wait_ready(channel, "work", 1)
                delivery = get(channel, "work", auto_ack=False)
                assert delivery.headers.get("x-delivery-count", 0) == start
                channel.basic_nack(delivery.tag, requeue=True)
                # What is confirmed after it is on the disk after it.
                publish(channel, "dead", b"marker", delivery_mode=2)
                if start == 2:
                    wait_ready(channel, "dead", 4)
            broker_process.kill()
            broker_process.start()
        with pika.BlockingConnection(pika.URLParameters(broker_process.amqp_url)) as connection:
            channel = connection.channel()
            assert sorted(drain(channel, "dead")) == [b"marker"] * 3 + [b"poison"]
            assert ready_count(channel, "work") == 0


class TestDeadLetteringAtLeastOnce:
    def declare(self, channel: BlockingChannel, name: str, exchange: str, **arguments: object) -> str:
        return declare_quorum(
            channel, name, overflow="reject-publish", dead_letter_strategy="at-least-once",
            dead_letter_exchange=exchange, dead_letter_routing_key="dead", **arguments,
        )  # fmt: skip

    @pytest.mark.millpond_only("RabbitMQ tries again every three minutes")
    def test_a_dead_letter_waits_for_its_queue(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, dead = unique("dlx"), unique("dead")
        channel.exchange_declare(exchange, "direct", durable=True)
        queue = self.declare(channel, unique("work"), exchange)
        publish(channel, queue, b"a", b"b", delivery_mode=2)
        for _ in range(2):
            channel.basic_reject(get(channel, queue, auto_ack=False).tag, requeue=False)
        # Nothing is bound to the exchange yet: a dead-letter exchange would have dropped both.
        channel.queue_declare(dead, durable=True)
        channel.queue_bind(dead, exchange, "dead")
        wait_ready(channel, dead, 2)
        assert drain(channel, dead) == [b"a", b"b"]
        assert ready_count(channel, queue) == 0

    @pytest.mark.millpond_only("RabbitMQ tries again every three minutes")
    def test_a_dead_letter_waits_for_room(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, dead = unique("dlx"), unique("dead")
        channel.exchange_declare(exchange, "fanout", durable=True)
        channel.queue_declare(dead, durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        channel.queue_bind(dead, exchange)
        queue = self.declare(channel, unique("work"), exchange)
        publish(channel, queue, b"a", b"b", b"c", delivery_mode=2)
        for _ in range(3):
            channel.basic_reject(get(channel, queue, auto_ack=False).tag, requeue=False)
        received: list[bytes] = []
        while len(received) < 3:
            wait_ready(channel, dead, 1)
            received.append(get(channel, dead).body)
        assert sorted(received) == [b"a", b"b", b"c"]

    @pytest.mark.millpond_only("which of two queues has a letter already is RabbitMQ's own affair")
    def test_a_queue_that_has_it_does_not_get_it_twice(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, full, free = unique("dlx"), unique("full"), unique("free")
        channel.exchange_declare(exchange, "fanout", durable=True)
        channel.queue_declare(full, durable=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
        channel.queue_declare(free, durable=True)
        channel.queue_bind(full, exchange)
        channel.queue_bind(free, exchange)
        queue = self.declare(channel, unique("work"), exchange)
        publish(channel, queue, b"a", delivery_mode=2)
        channel.basic_reject(get(channel, queue, auto_ack=False).tag, requeue=False)
        wait_ready(channel, free, 1)
        channel.queue_unbind(full, exchange)
        publish(channel, queue, b"b", delivery_mode=2)
        channel.basic_reject(get(channel, queue, auto_ack=False).tag, requeue=False)
        wait_ready(channel, free, 2)
        assert drain(channel, free) == [b"a", b"b"]

    def test_it_survives_a_restart(self, broker_process: BrokerProcess) -> None:
        with pika.BlockingConnection(pika.URLParameters(broker_process.amqp_url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            self.declare(channel, "work", "none")
            publish(channel, "work", b"a", delivery_mode=2)
            channel.basic_reject(get(channel, "work", auto_ack=False).tag, requeue=False)
            assert ready_count(channel, "work") == 0
        broker_process.kill()
        broker_process.start()
        with pika.BlockingConnection(pika.URLParameters(broker_process.amqp_url)) as connection:
            channel = connection.channel()
            delivery = get(channel, "work", auto_ack=False)
            assert (delivery.body, delivery.redelivered) == (b"a", True)


class TestDeclaring:
    @pytest.mark.parametrize(
        ("flags", "what"),
        [
            ({"durable": False}, "non-durable"),
            ({"durable": True, "auto_delete": True}, "auto-delete"),
            ({"durable": True, "exclusive": True}, "exclusive-owner"),
        ],
    )
    def test_what_a_quorum_queue_cannot_be(
        self, channel: BlockingChannel, unique: Unique, flags: dict[str, bool], what: str
    ) -> None:
        queue = unique("work")
        text = f"PRECONDITION_FAILED - invalid property '{what}' for queue '{queue}' in vhost '/'"
        with channel_refused(406, text):
            channel.queue_declare(queue, arguments={"x-queue-type": "quorum"}, **flags)

    def test_the_type_is_part_of_what_a_queue_is(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = declare_quorum(channel, unique("work"))
        # A declaration without a type asks for a classic queue.
        with channel_refused(
            406,
            f"PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue '{queue}' in vhost '/': "
            "received 'classic' but current is 'quorum'",
        ):
            channel.queue_declare(queue, durable=True)

    def test_dead_letters_are_counted_against_the_length_limit(self, channel: BlockingChannel, unique: Unique) -> None:
        queue = declare_quorum(
            channel, unique("work"), overflow="reject-publish", dead_letter_strategy="at-least-once",
            dead_letter_exchange=unique("none"), max_length=1,
        )  # fmt: skip
        publish(channel, queue, b"a", delivery_mode=2)
        channel.basic_reject(get(channel, queue, auto_ack=False).tag, requeue=False)

        def refused() -> bool:
            try:
                publish(channel, queue, b"b", delivery_mode=2)
            except pika.exceptions.NackError:
                return True
            return False

        eventually(refused, "a full queue")
