"""Single active consumer: of several consumers one gets all messages, until it leaves."""

from __future__ import annotations

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
