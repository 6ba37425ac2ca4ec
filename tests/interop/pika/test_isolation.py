"""What one client does is not another's trouble: slow consumers, consumers that are killed, queues that are many."""

from __future__ import annotations

from collections.abc import Callable

import pamqp.commands as commands
import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.broker_process import BrokerProcess
from tests.support.pika_client import (
    Connect,
    Delivery,
    Inbox,
    Unique,
    consumer_count,
    numbered,
    publish,
    ready_count,
    turn,
)
from tests.support.raw_amqp import RawConnection
from tests.support.waiting import eventually

PERSISTENT = pika.BasicProperties(delivery_mode=2)

Raw = Callable[..., RawConnection]


@pytest.mark.millpond_only("the files of its journal are read")
def test_a_body_for_a_hundred_queues_is_written_to_the_journal_once(broker_process: BrokerProcess) -> None:
    queues = [f"copy-{number}" for number in range(100)]
    bodies = [b"<message %d>" % number + bytes(9_000) for number in range(20)]
    with pika.BlockingConnection(pika.URLParameters(broker_process.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.exchange_declare("copies", "fanout")
        for queue in queues:
            channel.queue_declare(queue, durable=True)
            channel.queue_bind(queue, "copies")
        for body in bodies:
            channel.basic_publish("copies", "", body, PERSISTENT)
        assert [ready_count(channel, queue) for queue in queues] == [len(bodies)] * len(queues)
    journal = b"".join(path.read_bytes() for path in (broker_process.data / "journal").iterdir())
    assert [journal.count(body[:20]) for body in bodies] == [1] * len(bodies)
    # The one copy is every queue's: each has its own after a crash.
    broker_process.kill()
    broker_process.start()
    with pika.BlockingConnection(pika.URLParameters(broker_process.amqp_url)) as connection:
        channel = connection.channel()
        for queue in queues:
            assert [channel.basic_get(queue, auto_ack=True)[2] for _ in bodies] == bodies


def consume_and_stop_reading(raw: Raw, queue: str, prefetch: int) -> RawConnection:
    consumer = raw(receive_buffer_bytes=4096)
    consumer.handshake()
    consumer.open_channel()
    consumer.rpc(commands.Basic.Qos(prefetch_count=prefetch), commands.Basic.QosOk)
    consumer.rpc(commands.Basic.Consume(queue=queue), commands.Basic.ConsumeOk)
    return consumer


@pytest.mark.parametrize("prefetch", [1, 50])
def test_a_consumer_that_stops_reading_keeps_its_prefetch_and_nothing_else(
    channel: BlockingChannel, queue: str, raw: Raw, prefetch: int
) -> None:
    stuck = consume_and_stop_reading(raw, queue, prefetch)
    # More than its socket takes.
    publish(channel, queue, *[bytes(100_000) for _ in range(200)])
    channel.basic_qos(prefetch_count=10)
    inbox = Inbox(channel, queue, on_delivery=Delivery.ack)
    # It may hold less than its prefetch: what its socket does not take is given to others.
    eventually(lambda: len(inbox.deliveries) >= 200 - prefetch, "all that it may not hold", step=lambda: turn(channel))
    stuck.socket.close()
    inbox.wait(200)


def test_a_producer_is_confirmed_while_its_consumers_are_killed_and_nothing_is_lost(
    connect: Connect, channel: BlockingChannel, unique: Unique, raw: Raw
) -> None:
    queue = unique("queue")
    channel.queue_declare(queue, durable=True)
    channel.confirm_delivery()
    doomed = [consume_and_stop_reading(raw, queue, 20) for _ in range(5)]
    bodies = numbered(300)
    for number, body in enumerate(bodies):
        # Returns when it is confirmed, whatever becomes of the consumers.
        channel.basic_publish("", queue, body, PERSISTENT)
        if number == 100:
            doomed.pop().socket.close()
        if number == 200:
            while doomed:
                doomed.pop().socket.close()
    eventually(lambda: consumer_count(channel, queue) == 0, "all consumers are gone")
    assert ready_count(channel, queue) == 300
    inbox = Inbox(connect().channel(), queue, on_delivery=Delivery.ack)
    inbox.wait(300)
    assert inbox.bodies == bodies
    # They had a hundred between them, and the first hundred were theirs.
    assert [delivery.redelivered for delivery in inbox.deliveries[:20]] == [True] * 20
