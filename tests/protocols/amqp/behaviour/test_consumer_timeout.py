"""A consumer that leaves deliveries unsettled for too long loses its channel, and they go to others."""

from __future__ import annotations

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from tests.support.broker_process import BrokerProcess
from tests.support.pika_client import Connect, Inbox, Unique, get, publish, turn, wait_ready
from tests.support.waiting import eventually

pytestmark = pytest.mark.millpond_only("RabbitMQ looks once a minute only")


def closed_reason(channel: BlockingChannel) -> str:
    """Wait until the broker closes the channel; why it did."""
    eventually(lambda: not channel.is_open, "a closed channel", step=lambda: turn(channel))
    # There is no other way to be told by pika's blocking channel outside of a call.
    reason = channel._closing_reason
    assert isinstance(reason, ChannelClosedByBroker)
    assert reason.reply_code == 406
    return str(reason.reply_text)


def expected(timeout_ms: int) -> str:
    return (
        f"PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: {timeout_ms} ms. "
        "This timeout value can be configured, see consumers doc guide to learn more"
    )


def test_set_by_the_queue(connect: Connect, unique: Unique) -> None:
    channel, other = connect().channel(), connect().channel()
    queue = unique("work")
    channel.queue_declare(queue, arguments={"x-consumer-timeout": 50})
    publish(channel, queue, b"m")
    Inbox(channel, queue).wait(1)
    assert closed_reason(channel) == expected(50)
    wait_ready(other, queue, 1)
    assert get(other, queue).redelivered


def test_set_by_the_consumer(connect: Connect, unique: Unique) -> None:
    channel = connect().channel()
    queue = unique("work")
    channel.queue_declare(queue, arguments={"x-consumer-timeout": 3_600_000})
    publish(channel, queue, b"m")
    Inbox(channel, queue, arguments={"x-consumer-timeout": 30}).wait(1)
    assert closed_reason(channel) == expected(30)


def test_of_what_was_asked_for_and_not_consumed(connect: Connect, unique: Unique) -> None:
    channel = connect().channel()
    queue = unique("work")
    channel.queue_declare(queue, arguments={"x-consumer-timeout": 50})
    publish(channel, queue, b"m")
    wait_ready(channel, queue, 1)
    get(channel, queue, auto_ack=False)
    assert closed_reason(channel) == expected(50)


def test_of_what_a_consumer_had_that_is_cancelled(connect: Connect, unique: Unique) -> None:
    channel = connect().channel()
    queue = unique("work")
    channel.queue_declare(queue)
    publish(channel, queue, b"m")
    inbox = Inbox(channel, queue, arguments={"x-consumer-timeout": 60})
    inbox.wait(1)
    inbox.cancel()
    assert closed_reason(channel) == expected(60)


def test_what_is_settled_in_time_is_left_alone(connect: Connect, unique: Unique) -> None:
    prompt, slow = connect().channel(), connect().channel()
    queue, other = unique("work"), unique("other")
    prompt.queue_declare(queue, arguments={"x-consumer-timeout": 40})
    prompt.queue_declare(other, arguments={"x-consumer-timeout": 40})
    inbox = Inbox(prompt, queue)
    publish(prompt, queue, b"m")
    inbox.wait(1)[0].ack()
    publish(prompt, other, b"m")
    Inbox(slow, other).wait(1)
    # When the slow one has been found out, both have been looked at.
    closed_reason(slow)
    assert prompt.is_open
    publish(prompt, queue, b"n")
    inbox.wait(2)[1].ack()


def test_set_for_the_node(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("timeout")
    with BrokerProcess(folder, arguments=["--consumer-timeout-ms", "60"]) as process:
        connection = pika.BlockingConnection(pika.URLParameters(process.amqp_url))
        channel = connection.channel()
        channel.queue_declare("work")
        publish(channel, "work", b"m")
        wait_ready(channel, "work", 1)
        get(channel, "work", auto_ack=False)
        assert closed_reason(channel) == expected(60)
        assert connection.is_open
        connection.close()
