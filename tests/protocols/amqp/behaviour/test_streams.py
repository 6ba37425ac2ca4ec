"""Streams as AMQP 0-9-1 clients use them: queues of type stream."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.broker_process import BrokerProcess
from tests.support.pika_client import (
    Connect,
    Inbox,
    Unique,
    channel_refused,
    connection_refused,
    numbered,
    publish,
    ready_count,
    turn,
    wait_ready,
)
from tests.support.waiting import eventually

Declare = Callable[..., str]


@pytest.fixture
def declare(channel: BlockingChannel, unique: Unique) -> Declare:
    def make(**arguments: Any) -> str:
        name = unique("stream")
        named = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "stream", **named})
        return name

    return make


@pytest.fixture
def stream(declare: Declare) -> str:
    return declare()


def reader(connect: Connect, stream: str, offset: object = "first", prefetch: int = 100, **arguments: Any) -> Inbox:
    """A consumer on a channel of its own that acknowledges what it gets."""
    channel = connect().channel()
    channel.basic_qos(prefetch_count=prefetch)
    named: dict[str, Any] = {f"x-stream-{key.replace('_', '-')}": value for key, value in arguments.items()}
    if offset is not None:
        named["x-stream-offset"] = offset
    return Inbox(channel, stream, on_delivery=lambda delivery: delivery.ack(), arguments=named)


def offsets(inbox: Inbox) -> list[int]:
    return [int(delivery.headers["x-stream-offset"]) for delivery in inbox.deliveries]


def fill(connect: Connect, stream: str, bodies: list[bytes], **properties: Any) -> None:
    """Publish, and wait for every confirm."""
    channel = connect().channel()
    channel.confirm_delivery()
    publish(channel, stream, *bodies, **properties)


# --- Consuming ------------------------------------------------------------------------------------------------------


def test_messages_stay_and_every_consumer_gets_them_all(connect: Connect, stream: str) -> None:
    fill(connect, stream, numbered(50))
    inboxes = [reader(connect, stream, prefetch=prefetch) for prefetch in (1, 7, 100)]
    for inbox in inboxes:
        inbox.wait(50)
        assert inbox.bodies == numbered(50)
        assert offsets(inbox) == list(range(50))
        assert not any(delivery.redelivered for delivery in inbox.deliveries)
    assert ready_count(inboxes[0].channel, stream) == 50


@pytest.mark.parametrize(("offset", "first"), [("first", 0), ("next", 20), (None, 20), (0, 0), (13, 13), ("1h", 0)])
def test_a_consumer_begins_where_it_says(connect: Connect, stream: str, offset: object, first: int) -> None:
    fill(connect, stream, numbered(20))
    inbox = reader(connect, stream, offset)
    fill(connect, stream, [b"last"])
    inbox.wait(21 - first)
    assert offsets(inbox) == list(range(first, 21))


def test_last_begins_with_the_batch_that_was_written_last(connect: Connect, stream: str) -> None:
    fill(connect, stream, numbered(20))
    inbox = reader(connect, stream, "last")
    eventually(lambda: b"19" in inbox.bodies, "the newest message", step=lambda: turn(inbox.channel))


def test_a_consumer_begins_at_a_timestamp(connect: Connect, stream: str) -> None:
    fill(connect, stream, numbered(5))
    now = dt.datetime.now(dt.UTC)
    reader(connect, stream, now - dt.timedelta(hours=1)).wait(5)
    later = reader(connect, stream, now + dt.timedelta(hours=1))
    fill(connect, stream, [b"after"])
    later.wait(1)
    assert later.bodies == [b"after"]


def test_an_offset_in_the_future_is_waited_for(connect: Connect, stream: str) -> None:
    inbox = reader(connect, stream, 5)
    fill(connect, stream, numbered(8))
    inbox.wait(3)
    assert offsets(inbox) == [5, 6, 7]


def test_properties_come_back_with_the_offset_among_the_headers(connect: Connect, stream: str) -> None:
    headers = {"kind": "x-stream-offset", "x-stream-offset": 12, "nested": {"x-stream-offset": [1, "two"]}}
    fill(connect, stream, [b"1"], headers=headers, content_type="text/plain", message_id="m", delivery_mode=1)
    fill(
        connect,
        stream,
        [b"2"],
        headers={"kind": "x-stream-offset"},
        content_type="text/plain",
        timestamp=17,
        app_id="a",
    )
    fill(connect, stream, [b"3"])
    inbox = reader(connect, stream)
    first, second, third = inbox.wait(3)
    assert first.headers == {**headers, "x-stream-offset": 0}
    assert (first.properties.content_type, first.properties.message_id) == ("text/plain", "m")
    assert first.properties.delivery_mode == 1
    assert second.headers == {"kind": "x-stream-offset", "x-stream-offset": 1}
    assert (second.properties.timestamp, second.properties.app_id) == (17, "a")
    assert third.headers == {"x-stream-offset": 2}
    assert (third.method.exchange, third.method.routing_key) == ("", stream)


def test_properties_that_fill_a_frame_leave_no_room_for_the_offset(connect: Connect, stream: str) -> None:
    # A header frame has 131,064 bytes of payload, of which this takes all.
    fill(connect, stream, [b"1"], headers={"k": "x" * 131_039})
    fill(connect, stream, [b"2"])
    inbox = reader(connect, stream)
    first, second = inbox.wait(2)
    assert list(first.headers) == ["k"]
    assert second.headers == {"x-stream-offset": 1}


def test_large_bodies_are_split_into_frames(connect: Connect, stream: str) -> None:
    bodies = [b"a" * 300_000, b"", b"b" * 131_064, b"c" * 1_000_000]
    fill(connect, stream, bodies)
    inbox = reader(connect, stream, prefetch=2)
    inbox.wait(4)
    assert inbox.bodies == bodies


def test_prefetch_is_the_credit_and_acknowledgements_give_it_back(connect: Connect, stream: str) -> None:
    fill(connect, stream, numbered(10))
    channel = connect().channel()
    channel.basic_qos(prefetch_count=3)
    inbox = Inbox(channel, stream, arguments={"x-stream-offset": "first"})
    inbox.wait(3)
    channel.basic_nack(inbox.deliveries[0].tag, requeue=True)
    channel.basic_reject(inbox.deliveries[1].tag, requeue=False)
    inbox.wait(5)
    channel.basic_ack(inbox.deliveries[4].tag, multiple=True)
    inbox.wait(8)
    assert offsets(inbox) == list(range(8)), "what was given back is not delivered again"
    channel.basic_recover(requeue=True)
    inbox.wait(10)
    assert offsets(inbox) == list(range(10))


def test_replay_while_others_write_is_complete_and_in_order(connect: Connect, stream: str) -> None:
    publisher = connect().channel()
    publish(publisher, stream, *numbered(500))
    inbox = reader(connect, stream, prefetch=20)
    for start in range(500, 3000, 50):
        publish(publisher, stream, *[b"%d" % number for number in range(start, start + 50)])
        turn(inbox.channel)
    inbox.wait(3000)
    assert inbox.bodies == numbered(3000)
    assert offsets(inbox) == list(range(3000))


def test_a_cancelled_consumer_gets_nothing_more(connect: Connect, stream: str) -> None:
    inbox = reader(connect, stream, "next")
    inbox.cancel()
    other = reader(connect, stream, "next")
    fill(connect, stream, [b"1"])
    other.wait(1)
    turn(inbox.channel)
    assert not inbox.deliveries


def test_streams_are_bound_to_exchanges_like_queues(
    channel: BlockingChannel, connect: Connect, stream: str, unique: Unique
) -> None:
    name, queue = unique("exchange"), unique("queue")
    channel.exchange_declare(name, "topic")
    channel.queue_declare(queue)
    channel.queue_bind(stream, name, "a.*")
    channel.queue_bind(queue, name, "a.b")
    channel.confirm_delivery()
    for key in ("a.b", "a.c", "b.c"):
        channel.basic_publish(name, key, key.encode(), pika.BasicProperties(delivery_mode=2))
    inbox = reader(connect, stream)
    inbox.wait(2)
    assert [(delivery.method.exchange, delivery.method.routing_key) for delivery in inbox.deliveries] == [
        (name, "a.b"), (name, "a.c"),
    ]  # fmt: skip
    wait_ready(channel, queue, 1)


def test_a_stream_keeps_what_was_dead_lettered(
    channel: BlockingChannel, connect: Connect, stream: str, unique: Unique
) -> None:
    queue = unique("queue")
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": stream}
    channel.queue_declare(queue, arguments=arguments)
    publish(channel, queue, b"poison")
    wait_ready(channel, queue, 1)
    method, _, _ = channel.basic_get(queue)
    channel.basic_reject(method.delivery_tag, requeue=False)
    inbox = reader(connect, stream)
    (delivery,) = inbox.wait(1)
    assert delivery.headers["x-death"][0]["queue"] == queue
    assert delivery.headers["x-stream-offset"] == 0


def test_a_transaction_is_kept_as_a_whole(channel: BlockingChannel, connect: Connect, stream: str) -> None:
    channel.tx_select()
    publish(channel, stream, *numbered(3))
    channel.tx_rollback()
    publish(channel, stream, *numbered(5))
    channel.tx_commit()
    inbox = reader(connect, stream)
    inbox.wait(5)
    assert inbox.bodies == numbered(5)


# --- Filters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "unfiltered", "expected"),
    [
        ("red", False, [0, 3, 6]),
        (["red", "blue"], False, [0, 2, 3, 5, 6, 8]),
        ("red", True, [0, 1, 3, 4, 6, 7]),
    ],
)
def test_a_filter_lets_through_what_it_names(
    connect: Connect, stream: str, wanted: object, unfiltered: bool, expected: list[int]
) -> None:
    channel = connect().channel()
    channel.confirm_delivery()
    for number in range(9):
        value = ("red", None, "blue")[number % 3]
        headers = {"x-stream-filter-value": value} if value else None
        publish(channel, stream, b"%d" % number, headers=headers)
    inbox = reader(connect, stream, prefetch=1, filter=wanted, match_unfiltered=unfiltered)
    inbox.wait(len(expected))
    assert offsets(inbox) == expected


# --- What is refused, in RabbitMQ's words ---------------------------------------------------------------------------


def resource(stream: str) -> str:
    return f"queue '{stream}' in vhost '/'"


def test_a_consumer_needs_a_prefetch_limit(connect: Connect, stream: str) -> None:
    text = f"PRECONDITION_FAILED - consumer prefetch count is not set for stream {resource(stream)}"
    with channel_refused(406, text):
        Inbox(connect().channel(), stream)


def test_a_consumer_must_acknowledge(connect: Connect, stream: str) -> None:
    channel = connect().channel()
    channel.basic_qos(prefetch_count=10)
    text = f"NOT_IMPLEMENTED - automatic acknowledgement not supported by stream {resource(stream)}"
    with connection_refused(540, text):
        Inbox(channel, stream, auto_ack=True)


def test_a_limit_of_the_channel_is_not_for_streams(connect: Connect, stream: str) -> None:
    channel = connect().channel()
    channel.basic_qos(prefetch_count=10)
    channel.basic_qos(prefetch_count=10, global_qos=True)
    with connection_refused(540, f"NOT_IMPLEMENTED - {resource(stream)} does not support global qos"):
        Inbox(channel, stream)


def test_a_stream_has_no_next_message_to_get(connect: Connect, stream: str) -> None:
    text = f"NOT_IMPLEMENTED - basic.get not supported by stream queues {resource(stream)}"
    with connection_refused(540, text):
        connect().channel().basic_get(stream)


def test_a_stream_cannot_be_purged(connect: Connect, stream: str) -> None:
    text = f"NOT_IMPLEMENTED - queue.purge not supported by stream queues {resource(stream)}"
    with connection_refused(540, text):
        connect().channel().queue_purge(stream)


@pytest.mark.parametrize("offset", ["yesterday", "1w", "", -1, True, [1], {"a": 1}])
def test_an_offset_that_makes_no_sense_is_refused(connect: Connect, stream: str, offset: object) -> None:
    channel = connect().channel()
    channel.basic_qos(prefetch_count=10)
    with channel_refused(406):
        Inbox(channel, stream, arguments={"x-stream-offset": offset})


def test_the_text_for_an_invalid_offset_names_it(connect: Connect, stream: str) -> None:
    channel = connect().channel()
    channel.basic_qos(prefetch_count=10)
    text = (
        f"PRECONDITION_FAILED - invalid arg 'x-stream-offset' for {resource(stream)}: "
        '{invalid_stream_offset_arg,{longstr,<<"soon">>}}'
    )
    with channel_refused(406, text):
        Inbox(channel, stream, arguments={"x-stream-offset": "soon"})


def test_a_consumer_of_a_stream_has_no_priority(connect: Connect, stream: str) -> None:
    channel = connect().channel()
    channel.basic_qos(prefetch_count=10)
    text = f"PRECONDITION_FAILED - invalid arg 'x-priority' for {resource(stream)} of queue type rabbit_stream_queue"
    with channel_refused(406, text):
        Inbox(channel, stream, arguments={"x-priority": 1})


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_consumer_of_another_queue_has_no_offset(connect: Connect, unique: Unique, kind: str) -> None:
    name, channel = unique("queue"), connect().channel()
    channel.queue_declare(name, durable=True, arguments={"x-queue-type": kind})
    text = f"invalid arg 'x-stream-offset' for {resource(name)} of queue type rabbit_{kind}_queue"
    with channel_refused(406, f"PRECONDITION_FAILED - {text}"):
        Inbox(channel, name, arguments={"x-stream-offset": "first"})


@pytest.mark.parametrize(
    "argument",
    [
        {"x-message-ttl": 1000},
        {"x-expires": 1000},
        {"x-dead-letter-exchange": ""},
        {"x-max-length": 10},
        {"x-max-priority": 10},
        {"x-overflow": "drop-head"},
        {"x-single-active-consumer": True},
        {"x-delivery-limit": 3},
        {"x-queue-version": 2},
    ],
)
def test_arguments_of_other_queues_are_refused(connect: Connect, unique: Unique, argument: dict[str, Any]) -> None:
    name = unique("stream")
    text = f"invalid arg '{next(iter(argument))}' for {resource(name)} of queue type rabbit_stream_queue"
    with channel_refused(406, f"PRECONDITION_FAILED - {text}"):
        connect().channel().queue_declare(name, durable=True, arguments={"x-queue-type": "stream", **argument})


@pytest.mark.parametrize("argument", ["x-max-age", "x-stream-max-segment-size-bytes"])
def test_arguments_of_streams_are_refused_for_other_queues(connect: Connect, unique: Unique, argument: str) -> None:
    name = unique("queue")
    text = f"invalid arg '{argument}' for {resource(name)} of queue type rabbit_classic_queue"
    with channel_refused(406, f"PRECONDITION_FAILED - {text}"):
        connect().channel().queue_declare(name, arguments={argument: "1h" if "age" in argument else 1000})


@pytest.mark.parametrize(
    "argument",
    [
        {"x-max-age": "1w"},
        {"x-max-age": 10},
        {"x-max-length-bytes": -1},
        {"x-max-length-bytes": "10"},
        {"x-stream-max-segment-size-bytes": 3_000_000_001},
        {"x-stream-filter-size-bytes": 15},
        {"x-stream-filter-size-bytes": 256},
    ],
)
def test_arguments_that_make_no_sense_are_refused(connect: Connect, unique: Unique, argument: dict[str, Any]) -> None:
    with channel_refused(406):
        connect().channel().queue_declare(
            unique("stream"), durable=True, arguments={"x-queue-type": "stream", **argument}
        )


@pytest.mark.parametrize("flags", [{"durable": False}, {"exclusive": True}, {"auto_delete": True}])
def test_a_stream_is_durable_and_belongs_to_nobody(connect: Connect, unique: Unique, flags: dict[str, bool]) -> None:
    with channel_refused(406):
        connect().channel().queue_declare(
            unique("stream"), **{"durable": True, **flags}, arguments={"x-queue-type": "stream"}
        )


def test_a_second_declaration_must_be_the_same(connect: Connect, declare: Declare) -> None:
    name = declare(max_age="7D", max_length_bytes=1_000_000, stream_max_segment_size_bytes=100_000)
    same = {"x-queue-type": "stream", "x-max-length-bytes": 1_000_000, "x-stream-max-segment-size-bytes": 100_000}
    connect().channel().queue_declare(name, durable=True, arguments={**same, "x-max-age": "7D"})
    for other in ({**same, "x-max-age": "8D"}, {**same}, {"x-queue-type": "classic"}):
        with channel_refused(406):
            connect().channel().queue_declare(name, durable=True, arguments=other)


# --- Deleting and restarting ----------------------------------------------------------------------------------------


def test_deleting_a_stream_cancels_its_consumers(connect: Connect, stream: str) -> None:
    fill(connect, stream, numbered(3))
    inbox = reader(connect, stream)
    inbox.wait(3)
    cancelled: list[object] = []
    inbox.channel.add_on_cancel_callback(cancelled.append)
    connect().channel().queue_delete(stream)
    eventually(lambda: cancelled, "the cancellation", step=lambda: turn(inbox.channel))
    with channel_refused(404):
        connect().channel().queue_declare(stream, passive=True)


def test_retention_by_size_deletes_the_oldest(connect: Connect, declare: Declare) -> None:
    name = declare(max_length_bytes=400_000, stream_max_segment_size_bytes=100_000)
    channel = connect().channel()
    channel.confirm_delivery()
    for number in range(60):
        publish(channel, name, b"%d" % number + b"x" * 50_000)
    eventually(lambda: ready_count(channel, name) < 30, "the oldest messages' end", step=lambda: turn(channel))
    inbox = reader(connect, name)
    left = ready_count(channel, name)
    eventually(lambda: len(inbox.deliveries) >= min(5, left), "what is left", step=lambda: turn(inbox.channel))
    assert offsets(inbox)[0] >= 30


@pytest.mark.parametrize("way", ["kill", "restart"])
def test_everything_confirmed_is_there_after_a_restart(broker_process: BrokerProcess, way: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(broker_process.amqp_url)) as connection:
        channel = connection.channel()
        channel.queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
        channel.confirm_delivery()
        publish(channel, "s", *[b"%d " % number + b"x" * 20_000 for number in range(300)], delivery_mode=1)
    if way == "kill":
        broker_process.kill()
        broker_process.start()
    else:
        broker_process.restart()
    with pika.BlockingConnection(pika.URLParameters(broker_process.amqp_url)) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=50)
        inbox = Inbox(channel, "s", on_delivery=lambda delivery: delivery.ack(), arguments={"x-stream-offset": "first"})
        inbox.wait(300)
        assert [int(body.split()[0]) for body in inbox.bodies] == list(range(300))
        assert offsets(inbox) == list(range(300))
        # What was consumed before is consumed again by whoever asks for it.
        again = connection.channel()
        again.basic_qos(prefetch_count=10)
        second = Inbox(again, "s", on_delivery=lambda delivery: delivery.ack(), arguments={"x-stream-offset": 290})
        second.wait(10)
        assert offsets(second) == list(range(290, 300))
