"""RabbitMQ's extensions around the core: consumer priority, queue expiry, carbon copies, direct reply-to."""

from __future__ import annotations

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.protocols.amqp.behaviour.test_queues import queue_exists
from tests.support.pika_client import Connect, Inbox, Unique, channel_refused, get, numbered, publish, wait_ready
from tests.support.waiting import eventually


class TestConsumerPriority:
    def test_the_consumer_of_higher_priority_is_served_first(self, connect: Connect, queue: str) -> None:
        connection = connect()
        low, high = connection.channel(), connection.channel()
        for channel in (low, high):
            channel.basic_qos(prefetch_count=2)
        lower = Inbox(low, queue, arguments={"x-priority": 1})
        higher = Inbox(high, queue, arguments={"x-priority": 10})
        publish(low, queue, *numbered(3))
        higher.wait(2)
        lower.wait(1)
        assert higher.bodies == [b"0", b"1"]
        assert lower.bodies == [b"2"]


class TestQueueExpiry:
    def test_an_unused_queue_with_x_expires_goes(self, connect: Connect, unique: Unique) -> None:
        name = unique("expires")
        connect().channel().queue_declare(name, arguments={"x-expires": 100})
        # Looking counts as use, so look less often than it expires.
        watcher = connect()
        eventually(lambda: not queue_exists(connect, name), "the queue is deleted", step=lambda: watcher.sleep(0.3))

    def test_a_consumed_queue_with_x_expires_stays(self, connect: Connect, unique: Unique) -> None:
        name = unique("expires")
        channel = connect().channel()
        channel.queue_declare(name, arguments={"x-expires": 100})
        inbox = Inbox(channel, name, auto_ack=True)
        channel.connection.process_data_events(time_limit=0.5)
        publish(channel, name, b"still here")
        assert inbox.wait(1)[0].body == b"still here"

    def test_zero_is_refused_with_406(self, channel: BlockingChannel, unique: Unique) -> None:
        with channel_refused(406):
            channel.queue_declare(unique("expires"), arguments={"x-expires": 0})


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_sender_selected_distribution_adds_routing_keys(channel: BlockingChannel, unique: Unique, header: str) -> None:
    names = [unique("queue") for _ in range(3)]
    for name in names:
        channel.queue_declare(name)
    channel.basic_publish("", names[0], b"m", pika.BasicProperties(headers={header: names[1:]}))
    for name in names:
        wait_ready(channel, name, 1)
        delivery = get(channel, name)
        # The carbon copies are known to all receivers, the blind ones to none.
        assert delivery.headers.get(header) == (names[1:] if header == "CC" else None)


def test_an_answer_comes_to_the_pseudo_queue_of_direct_reply_to(connect: Connect, queue: str) -> None:
    asking, answering = connect().channel(), connect().channel()
    asking.queue_declare("amq.rabbitmq.reply-to", passive=True)
    answers = Inbox(asking, "amq.rabbitmq.reply-to", auto_ack=True)
    for question in (b"one", b"two"):
        properties = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id=question.decode())
        asking.basic_publish("", queue, question, properties)
    questions = Inbox(answering, queue, auto_ack=True)
    for question in questions.wait(2):
        reply_to = str(question.properties.reply_to)
        assert reply_to.startswith("amq.rabbitmq.reply-to."), "an address of the asker's own"
        properties = pika.BasicProperties(correlation_id=question.properties.correlation_id)
        answering.basic_publish("", reply_to, question.body.upper(), properties)
    answers.wait(2)
    assert [(a.properties.correlation_id, a.body) for a in answers.deliveries] == [("one", b"ONE"), ("two", b"TWO")]
