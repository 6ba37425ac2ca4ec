"""Length limits: a full queue drops its oldest messages, or refuses new ones."""

from __future__ import annotations

from collections.abc import Callable

import pamqp.commands as commands
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import NackError

from tests.support.pika_client import Connect, Unique, drain, get, numbered, publish, ready_count, wait_ready
from tests.support.raw_amqp import RawConnection


@pytest.fixture
def channel(connect: Connect) -> BlockingChannel:
    """In confirm mode: a message is in its queue before the queue is looked at."""
    channel = connect().channel()
    channel.confirm_delivery()
    return channel


class TestDropHead:
    def test_the_oldest_leave(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("limited")
        channel.queue_declare(name, arguments={"x-max-length": 3})
        publish(channel, name, *numbered(10))
        wait_ready(channel, name, 3)
        assert drain(channel, name) == [b"7", b"8", b"9"]

    def test_is_meant_when_named_as_well(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("limited")
        channel.queue_declare(name, arguments={"x-max-length": 2, "x-overflow": "drop-head"})
        publish(channel, name, *numbered(4))
        wait_ready(channel, name, 2)
        assert drain(channel, name) == [b"2", b"3"]

    def test_the_publish_is_confirmed(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("limited")
        channel.queue_declare(name, arguments={"x-max-length": 1})
        publish(channel, name, *numbered(3))
        assert drain(channel, name) == [b"2"]

    def test_what_consumers_hold_does_not_count(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("limited")
        channel.queue_declare(name, arguments={"x-max-length": 2})
        publish(channel, name, b"held 1", b"held 2")
        for _ in range(2):
            get(channel, name, auto_ack=False)
        publish(channel, name, *numbered(3))
        wait_ready(channel, name, 2)
        assert drain(channel, name) == [b"1", b"2"]

    def test_limits_bytes_of_bodies(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("limited")
        channel.queue_declare(name, arguments={"x-max-length-bytes": 100})
        publish(channel, name, b"a" * 60, b"b" * 30, b"c" * 10)
        wait_ready(channel, name, 3)
        publish(channel, name, b"d" * 10)
        wait_ready(channel, name, 3)
        assert drain(channel, name) == [b"b" * 30, b"c" * 10, b"d" * 10]

    def test_a_message_larger_than_the_limit_leaves_nothing(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("limited")
        channel.queue_declare(name, arguments={"x-max-length-bytes": 100})
        publish(channel, name, b"small", b"x" * 101)
        wait_ready(channel, name, 0)

    def test_both_limits_hold(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("limited")
        channel.queue_declare(name, arguments={"x-max-length": 3, "x-max-length-bytes": 100})
        publish(channel, name, *[b"x"] * 4)
        wait_ready(channel, name, 3)
        publish(channel, name, b"x" * 99)
        wait_ready(channel, name, 2)

    def test_zero_keeps_nothing(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("limited")
        channel.queue_declare(name, arguments={"x-max-length": 0})
        publish(channel, name, b"m")
        wait_ready(channel, name, 0)


class TestRejectPublish:
    def test_a_full_queue_refuses_with_a_nack(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("limited")
        channel.queue_declare(name, arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
        publish(channel, name, b"1", b"2")
        with pytest.raises(NackError):
            publish(channel, name, b"3")
        assert drain(channel, name) == [b"1", b"2"]
        publish(channel, name, b"4")
        assert drain(channel, name) == [b"4"]

    def test_every_publish_of_a_burst_is_acked_or_nacked(
        self, raw: Callable[..., RawConnection], channel: BlockingChannel, unique: Unique
    ) -> None:
        name = unique("limited")
        channel.queue_declare(name, arguments={"x-max-length": 5, "x-overflow": "reject-publish"})
        connection = raw()
        connection.handshake()
        connection.open_channel()
        connection.rpc(commands.Confirm.Select(), commands.Confirm.SelectOk)
        connection.send_bytes(b"".join(connection.encode_publish(1, name, body) for body in numbered(20)))
        outcomes: dict[int, type] = {}
        while len(outcomes) < 20:
            _, frame = connection.read_frame()
            assert isinstance(frame, (commands.Basic.Ack, commands.Basic.Nack))
            first = 1 if frame.multiple else frame.delivery_tag
            for tag in range(first, frame.delivery_tag + 1):
                outcomes.setdefault(tag, type(frame))
        accepted = [tag for tag, kind in sorted(outcomes.items()) if kind is commands.Basic.Ack]
        # What was acked is in the queue, what was nacked is not.
        assert drain(channel, name) == [b"%d" % (tag - 1) for tag in accepted]
        assert accepted[:5] == [1, 2, 3, 4, 5]
        assert len(accepted) < 20

    def test_without_confirms_the_message_is_dropped(self, connect: Connect, unique: Unique) -> None:
        channel = connect().channel()
        name = unique("limited")
        channel.queue_declare(name, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        publish(channel, name, b"1")
        wait_ready(channel, name, 1)
        publish(channel, name, b"2")
        assert ready_count(channel, name) == 1
        assert drain(channel, name) == [b"1"]

    def test_a_nack_of_one_queue_is_a_nack_of_the_message(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange, full, roomy = unique("fanout"), unique("full"), unique("roomy")
        channel.exchange_declare(exchange, "fanout")
        channel.queue_declare(full, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
        channel.queue_declare(roomy)
        for name in (full, roomy):
            channel.queue_bind(name, exchange)
        with pytest.raises(NackError):
            channel.basic_publish(exchange, "", b"m")
        assert drain(channel, full) == []
        assert drain(channel, roomy) == [b"m"]
