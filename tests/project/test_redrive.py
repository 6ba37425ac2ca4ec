"""Redrive: what has died is inspected, and moved back to where it came from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pika
import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.broker_process import BrokerProcess, run_operator_command
from tests.support.pika_client import drain, get, numbered, publish, ready_count, wait_ready


@pytest.fixture
def channel(broker_process: BrokerProcess) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(broker_process.amqp_url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("failed", durable=True)
        channel.exchange_declare("shop", "topic", durable=True)
        for name in ("orders", "mails"):
            channel.queue_declare(
                name,
                durable=True,
                arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "failed"},
            )
            channel.queue_bind(name, "shop", f"{name}.#")
        yield channel
    finally:
        # A test may have killed the broker.
        with suppress(pika.exceptions.AMQPError):
            connection.close()


def kill(channel: BlockingChannel, queue: str, count: int) -> None:
    for _ in range(count):
        channel.basic_reject(get(channel, queue, auto_ack=False).tag, requeue=False)


def redrive(process: BrokerProcess, *arguments: str) -> str:
    return run_operator_command(process.data, "redrive", *arguments).strip()


def test_each_goes_back_to_where_it_died_as_it_was_published(
    channel: BlockingChannel, broker_process: BrokerProcess
) -> None:
    properties = pika.BasicProperties(delivery_mode=2, headers={"kept": "yes"}, message_id="1")
    channel.basic_publish("shop", "orders.new", b"order", properties)
    channel.basic_publish("shop", "mails.new", b"mail", properties)
    kill(channel, "orders", 1)
    kill(channel, "mails", 1)
    wait_ready(channel, "failed", 2)
    assert redrive(broker_process, "failed") == "2 moved, 0 kept"
    assert ready_count(channel, "failed") == 0
    delivery = get(channel, "orders")
    assert (delivery.body, delivery.headers, delivery.properties.message_id) == (b"order", {"kept": "yes"}, "1")
    assert (delivery.method.exchange, delivery.method.routing_key) == ("shop", "orders.new")
    assert not delivery.redelivered
    assert drain(channel, "mails") == [b"mail"]


def test_it_survives_a_kill(channel: BlockingChannel, broker_process: BrokerProcess) -> None:
    publish(channel, "orders", *numbered(1200), delivery_mode=2)
    kill(channel, "orders", 1200)
    wait_ready(channel, "failed", 1200)
    assert redrive(broker_process, "failed", "--count", "1000") == "1000 moved, 0 kept"
    broker_process.kill()
    broker_process.start()
    with pika.BlockingConnection(pika.URLParameters(broker_process.amqp_url)) as connection:
        after = connection.channel()
        assert drain(after, "orders") == numbered(1000)
        assert drain(after, "failed") == numbered(1200)[1000:]


def test_what_is_no_dead_letter_stays_in_its_place(channel: BlockingChannel, broker_process: BrokerProcess) -> None:
    publish(channel, "failed", b"a")
    publish(channel, "orders", b"b")
    kill(channel, "orders", 1)
    publish(channel, "failed", b"c")
    wait_ready(channel, "failed", 3)
    assert redrive(broker_process, "failed") == "1 moved, 2 kept"
    delivery = get(channel, "failed")
    assert (delivery.body, delivery.redelivered) == (b"a", False)
    assert drain(channel, "failed") == [b"c"]


def test_what_a_full_queue_refuses_stays(channel: BlockingChannel, broker_process: BrokerProcess) -> None:
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "failed"}
    channel.queue_declare("narrow", arguments={"x-max-length": 1, "x-overflow": "reject-publish", **dead})
    for body in (b"a", b"b"):
        publish(channel, "narrow", body)
        kill(channel, "narrow", 1)
    wait_ready(channel, "failed", 2)
    assert redrive(broker_process, "failed") == "1 moved, 1 kept"
    assert drain(channel, "narrow") == [b"a"]
    assert drain(channel, "failed") == [b"b"]


def test_what_a_full_queue_refuses_and_dead_letters_is_not_there_twice(
    channel: BlockingChannel, broker_process: BrokerProcess
) -> None:
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "failed"}
    channel.queue_declare("narrow", arguments={"x-max-length": 1, "x-overflow": "reject-publish-dlx", **dead})
    for body in numbered(3):
        publish(channel, "narrow", body)
        kill(channel, "narrow", 1)
    wait_ready(channel, "failed", 3)
    assert redrive(broker_process, "failed") == "1 moved, 2 kept"
    assert drain(channel, "failed") == numbered(3)[1:]


def test_to_another_queue(channel: BlockingChannel, broker_process: BrokerProcess) -> None:
    channel.queue_declare("analysis")
    publish(channel, "orders", b"a")
    kill(channel, "orders", 1)
    publish(channel, "failed", b"b")
    wait_ready(channel, "failed", 2)
    assert redrive(broker_process, "failed", "--to", "analysis") == "2 moved, 0 kept"
    assert drain(channel, "analysis") == [b"a", b"b"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere"], "no queue 'nowhere' in vhost '/'"),
        (["failed", "--to", "nowhere"], "no queue 'nowhere' in vhost '/'"),
        (["failed", "--to", "failed"], "cannot be moved to itself"),
    ],
)
def test_what_cannot_be_done(
    channel: BlockingChannel, broker_process: BrokerProcess, arguments: list[str], reason: str
) -> None:
    with pytest.raises(AssertionError, match=reason):
        redrive(broker_process, *arguments)
