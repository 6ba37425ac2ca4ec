"""Single active consumer: of several consumers one gets all messages, until it leaves."""

from __future__ import annotations

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.pika_client import Connect, Inbox, Unique, channel_refused, numbered, publish, turn
from tests.support.waiting import eventually


def declare(channel: BlockingChannel, name: str) -> str:
    channel.queue_declare(name, arguments={"x-single-active-consumer": True})
    return name


def test_only_the_first_consumer_gets_messages(channel: BlockingChannel, unique: Unique) -> None:
    queue = declare(channel, unique("work"))
    first, second = Inbox(channel, queue, auto_ack=True), Inbox(channel, queue, auto_ack=True)
    publish(channel, queue, *numbered(10))
    first.wait(10)
    assert first.bodies == numbered(10)
    assert not second.deliveries


def test_the_next_one_takes_over_when_it_is_cancelled(channel: BlockingChannel, unique: Unique) -> None:
    queue = declare(channel, unique("work"))
    first, second = Inbox(channel, queue, auto_ack=True), Inbox(channel, queue, auto_ack=True)
    third = Inbox(channel, queue, auto_ack=True)
    publish(channel, queue, b"a")
    first.wait(1)
    first.cancel()
    publish(channel, queue, b"b")
    second.wait(1)
    assert not third.deliveries


def test_when_its_connection_is_lost_the_next_one_gets_what_it_held(connect: Connect, unique: Unique) -> None:
    channel, crashing = connect().channel(), connect()
    queue = declare(channel, unique("work"))
    first = Inbox(crashing.channel(), queue)
    publish(channel, queue, *numbered(3))
    first.wait(3)
    second = Inbox(channel, queue)
    publish(channel, queue, b"3")
    first.wait(4)
    crashing.close()
    second.wait(4)
    assert second.bodies == numbered(4)
    assert all(delivery.redelivered for delivery in second.deliveries)


def test_a_limited_prefetch_of_the_active_one_does_not_let_others_in(channel: BlockingChannel, unique: Unique) -> None:
    queue = declare(channel, unique("work"))
    channel.basic_qos(prefetch_count=1)
    first, second = Inbox(channel, queue), Inbox(channel, queue)
    publish(channel, queue, *numbered(3))
    for count in (1, 2, 3):
        first.wait(count)[-1].ack()
    eventually(lambda: True, "a turn", step=lambda: turn(channel))
    assert not second.deliveries


def test_the_one_of_higher_priority_takes_over_first(channel: BlockingChannel, unique: Unique) -> None:
    queue = declare(channel, unique("work"))
    first = Inbox(channel, queue, auto_ack=True)
    low = Inbox(channel, queue, auto_ack=True)
    high = Inbox(channel, queue, auto_ack=True, arguments={"x-priority": 5})
    first.cancel()
    publish(channel, queue, b"m")
    high.wait(1)
    assert not low.deliveries


def test_nobody_can_have_it_exclusively(channel: BlockingChannel, unique: Unique) -> None:
    queue = declare(channel, unique("work"))
    with channel_refused(403, f"ACCESS_REFUSED - queue '{queue}' in vhost '/' in exclusive use"):
        channel.basic_consume(queue, print, exclusive=True)


def test_part_of_what_a_queue_is(channel: BlockingChannel, unique: Unique) -> None:
    queue = declare(channel, unique("work"))
    with channel_refused(406):
        channel.queue_declare(queue)


@pytest.mark.millpond_only("RabbitMQ does so since 4.0")
def test_one_of_a_higher_priority_takes_over_from_a_quorum_queues_active_one_when_it_has_settled_all(
    channel: BlockingChannel, unique: Unique
) -> None:
    queue = unique("work")
    arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    channel.queue_declare(queue, durable=True, arguments=arguments)
    first = Inbox(channel, queue)
    publish(channel, queue, *numbered(2))
    first.wait(2)
    second, urgent = Inbox(channel, queue), Inbox(channel, queue, arguments={"x-priority": 5})
    publish(channel, queue, b"2")
    first.deliveries[0].ack()
    turn(channel)
    # Nobody gets anything before the last one is settled: messages stay in order.
    assert [len(inbox.deliveries) for inbox in (first, second, urgent)] == [2, 0, 0]
    channel.basic_nack(first.deliveries[1].tag, requeue=True)
    urgent.wait(2)
    assert urgent.bodies == [b"1", b"2"]
    urgent.cancel()
    publish(channel, queue, b"3")
    first.wait(3)
    assert not second.deliveries


def test_one_of_a_higher_priority_waits_for_a_classic_queues_active_one_to_leave(
    channel: BlockingChannel, unique: Unique
) -> None:
    queue = declare(channel, unique("work"))
    first = Inbox(channel, queue, auto_ack=True)
    second, urgent = (Inbox(channel, queue, auto_ack=True, arguments={"x-priority": level}) for level in (0, 5))
    publish(channel, queue, b"0")
    first.wait(1)
    first.cancel()
    publish(channel, queue, b"1")
    urgent.wait(1)
    assert not second.deliveries
