"""Transactions of Kafka's and what AMQP sees of them: what is committed, once it is, and nothing that is aborted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pika
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from tests.kafka.test_restarts import create, kill_and_start
from tests.kafka.test_transactions import producer_of, write
from tests.support.broker_process import BrokerProcess
from tests.support.kafka_client import quiet
from tests.support.pika_client import Inbox, drain, ready_count, wait_ready
from tests.support.waiting import DEADLINE_S

SHARE = {"x-queue-type": "share", "x-source-topic": "orders", "x-stream-offset": "first"}


def connected(process: BrokerProcess) -> BlockingChannel:
    return pika.BlockingConnection(pika.URLParameters(process.amqp_url)).channel()


@pytest.fixture
def channel(kafka_process: BrokerProcess) -> Iterator[BlockingChannel]:
    """A channel to a broker with the topic "orders", of one partition."""
    create(AdminClient(quiet(kafka_process.kafka_address)), "orders")
    channel = connected(kafka_process)
    yield channel
    # A test may have killed the broker.
    with suppress(AMQPError):
        channel.connection.close()


@pytest.fixture
def producer(kafka_process: BrokerProcess, channel: BlockingChannel) -> Producer:
    return producer_of(kafka_process.kafka_address, "billing")


def write_one_of_each(producer: Producer) -> None:
    """A transaction that is committed, one that is aborted, and another that is committed."""
    for values, commits in (((b"1", b"2"), True), ((b"aborted", b"also aborted"), False), ((b"3",), True)):
        producer.begin_transaction()
        write(producer, "orders", *values)
        if commits:
            producer.commit_transaction(DEADLINE_S)
        else:
            producer.abort_transaction(DEADLINE_S)


def test_queues_that_are_bound_to_the_topic_get_what_is_committed(channel: BlockingChannel, producer: Producer) -> None:
    for queue, arguments in (("all", None), ("history", {"x-stream-offset": "first"})):
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, "orders", "", arguments)
    write_one_of_each(producer)
    for queue in ("all", "history"):
        wait_ready(channel, queue, 3)
        assert drain(channel, queue) == [b"1", b"2", b"3"]


def test_consumers_of_the_stream_get_what_is_committed(channel: BlockingChannel, producer: Producer) -> None:
    channel.basic_qos(prefetch_count=100)
    live = Inbox(channel, "orders", arguments={"x-stream-offset": "first"})
    write_one_of_each(producer)
    live.wait(3)
    assert live.bodies == [b"1", b"2", b"3"]
    late = Inbox(channel, "orders", arguments={"x-stream-offset": "first"})
    late.wait(3)
    assert late.bodies == [b"1", b"2", b"3"]


def test_a_queue_over_the_topic_gets_what_is_committed(channel: BlockingChannel, producer: Producer) -> None:
    channel.queue_declare("work", durable=True, arguments=SHARE)
    channel.basic_qos(prefetch_count=100)
    inbox = Inbox(channel, "work", on_delivery=lambda delivery: delivery.ack())
    write_one_of_each(producer)
    inbox.wait(3)
    assert inbox.bodies == [b"1", b"2", b"3"]
    wait_ready(channel, "work", 0)


def test_nothing_of_an_open_transaction_is_seen_before_it_is_committed(
    channel: BlockingChannel, kafka_process: BrokerProcess, producer: Producer
) -> None:
    channel.queue_declare("bound", durable=True)
    channel.queue_bind("bound", "orders", "")
    channel.queue_declare("over", durable=True, arguments=SHARE)
    channel.basic_qos(prefetch_count=100)
    stream = Inbox(channel, "orders", arguments={"x-stream-offset": "first"})
    producer.begin_transaction()
    write(producer, "orders", b"open")
    # Behind an open transaction in its partition everybody waits.
    plain = Producer(quiet(kafka_process.kafka_address))
    write(plain, "orders", b"plain")
    assert ready_count(channel, "bound") == ready_count(channel, "over") == 0
    assert channel.basic_get("over")[0] is None
    assert stream.bodies == []
    producer.commit_transaction(DEADLINE_S)
    stream.wait(2)
    assert stream.bodies == [b"open", b"plain"]
    wait_ready(channel, "bound", 2)
    assert drain(channel, "bound") == [b"open", b"plain"]
    over = Inbox(channel, "over")
    over.wait(2)
    assert over.bodies == [b"open", b"plain"]


def test_what_was_aborted_stays_unseen_when_the_broker_is_killed(
    channel: BlockingChannel, kafka_process: BrokerProcess, producer: Producer
) -> None:
    channel.queue_declare("bound", durable=True)
    channel.queue_bind("bound", "orders", "")
    channel.queue_declare("over", durable=True, arguments=SHARE)
    write_one_of_each(producer)
    producer.begin_transaction()
    write(producer, "orders", b"open over the restart")
    kill_and_start(kafka_process)
    producer.abort_transaction(DEADLINE_S)
    after = connected(kafka_process)
    # What is produced last shows that all before it has been passed.
    write(Producer(quiet(kafka_process.kafka_address)), "orders", b"4")
    wait_ready(after, "bound", 4)
    assert drain(after, "bound") == [b"1", b"2", b"3", b"4"]
    after.basic_qos(prefetch_count=100)
    for queue, arguments in (("over", {}), ("orders", {"x-stream-offset": "first"})):
        inbox = Inbox(after, queue, arguments=arguments)
        inbox.wait(4)
        assert inbox.bodies == [b"1", b"2", b"3", b"4"]
    after.connection.close()
