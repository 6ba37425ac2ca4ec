"""Queues: declaring, passive, exclusive, auto-delete, purging, deleting, and RabbitMQ's words of refusal."""

from __future__ import annotations

from typing import Any

import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from tests.support.pika_client import (
    Connect,
    Inbox,
    Unique,
    channel_refused,
    drain,
    publish,
    ready_count,
    wait_ready,
)
from tests.support.waiting import eventually


def queue_exists(connect: Connect, name: str) -> bool:
    connection = connect()
    try:
        connection.channel().queue_declare(name, passive=True)
    except ChannelClosedByBroker as error:
        # 405: it is there, and another connection's.
        return error.reply_code == 405
    finally:
        connection.close()
    return True


class TestDeclare:
    def test_answers_with_name_messages_and_consumers(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("queue")
        answer = channel.queue_declare(name).method
        assert (answer.queue, answer.message_count, answer.consumer_count) == (name, 0, 0)
        publish(channel, name, b"1", b"2", b"3")
        channel.basic_consume(name, lambda *_: None)
        answer = channel.queue_declare(name).method
        assert (answer.queue, answer.message_count, answer.consumer_count) == (name, 0, 1)

    def test_the_same_again_is_fine(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("queue")
        for _ in range(2):
            channel.queue_declare(name, durable=True, arguments={"x-message-ttl": 60000, "x-max-length": 5})

    def test_the_order_and_width_of_arguments_do_not_matter(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("queue")
        channel.queue_declare(name, arguments={"x-message-ttl": 60000, "x-max-length": 5})
        channel.queue_declare(name, arguments={"x-max-length": 5, "x-message-ttl": 60000})

    def test_passive_answers_without_creating(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("missing")
        with channel_refused(404, f"NOT_FOUND - no queue '{name}' in vhost '/'"):
            channel.queue_declare(name, passive=True)

    def test_passive_ignores_the_other_properties(self, channel: BlockingChannel, queue: str) -> None:
        channel.queue_declare(queue, passive=True, durable=True, auto_delete=True, arguments={"x-max-length": 1})

    def test_an_empty_name_makes_one(self, channel: BlockingChannel) -> None:
        names = {str(channel.queue_declare("", exclusive=True).method.queue) for _ in range(3)}
        assert len(names) == 3
        assert all(name.startswith("amq.gen-") for name in names)

    def test_an_empty_name_then_means_the_last_declared_queue(self, channel: BlockingChannel) -> None:
        name = str(channel.queue_declare("", exclusive=True).method.queue)
        channel.queue_bind("", "amq.fanout")
        publish(channel, name, b"m")
        assert channel.basic_get("")[2] == b"m"

    def test_an_empty_name_with_no_queue_declared_is_404(self, channel: BlockingChannel) -> None:
        with channel_refused(404, "NOT_FOUND - no previously declared queue"):
            channel.basic_get("")

    def test_the_amq_prefix_is_reserved(self, channel: BlockingChannel) -> None:
        with channel_refused(403, "ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix 'amq.*'"):
            channel.queue_declare("amq.mine")

    def test_a_queue_that_the_broker_has_named_is_not_declared_again(self, channel: BlockingChannel) -> None:
        name = str(channel.queue_declare("", exclusive=True).method.queue)
        assert channel.queue_declare(name, passive=True).method.queue == name
        with channel_refused(403, f"ACCESS_REFUSED - queue name '{name}' contains reserved prefix 'amq.*'"):
            channel.queue_declare(name, exclusive=True)

    @pytest.mark.millpond_only("x-name-prefix is newer than the RabbitMQ that Debian has")
    def test_a_client_may_choose_what_a_made_name_begins_with(self, connect: Connect) -> None:
        channel = connect().channel()
        prefix = "x" * 64
        name = str(channel.queue_declare("", exclusive=True, arguments={"x-name-prefix": prefix}).method.queue)
        assert name.startswith(f"{prefix}-")
        assert len(name) > 80
        # It belongs to the name, not to the queue, and says nothing where there is a name.
        assert channel.queue_declare(name, exclusive=True).method.queue == name
        channel.queue_declare(name, exclusive=True, arguments={"x-name-prefix": "ignored"})
        with channel_refused(406, f"PRECONDITION_FAILED - Queue name prefix '{prefix}x' exceeds the 64-byte limit"):
            channel.queue_declare("", exclusive=True, arguments={"x-name-prefix": f"{prefix}x"})

    @pytest.mark.parametrize(
        ("first", "again", "text"),
        [
            (
                {},
                {"durable": True},
                "inequivalent arg 'durable' for queue '{}' in vhost '/': received 'true' but current is 'false'",
            ),
            (
                {},
                {"auto_delete": True},
                "inequivalent arg 'auto_delete' for queue '{}' in vhost '/': received 'true' but current is 'false'",
            ),
            (
                {"arguments": {"x-message-ttl": 100000}},
                {"arguments": {"x-message-ttl": 200000}},
                (
                    "inequivalent arg 'x-message-ttl' for queue '{}' in vhost '/': received '200000' but current "
                    "is '100000'"
                ),
            ),
            (
                {"arguments": {"x-message-ttl": 100000}},
                {},
                (
                    "inequivalent arg 'x-message-ttl' for queue '{}' in vhost '/': received none but current is "
                    "the value '100000' of type 'signedint'"
                ),
            ),
            (
                {},
                {"arguments": {"x-dead-letter-exchange": "dlx"}},
                (
                    "inequivalent arg 'x-dead-letter-exchange' for queue '{}' in vhost '/': received the value 'dlx' "
                    "of type 'longstr' but current is none"
                ),
            ),
        ],
    )
    def test_other_properties_are_refused_with_406(
        self, channel: BlockingChannel, unique: Unique, first: dict[str, Any], again: dict[str, Any], text: str
    ) -> None:
        name = unique("queue")
        channel.queue_declare(name, **first)
        with channel_refused(406, "PRECONDITION_FAILED - " + text.format(name)):
            channel.queue_declare(name, **again)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"x-message-ttl": -1},
            {"x-message-ttl": "soon"},
            {"x-max-length": -1},
            {"x-max-length-bytes": -1},
            {"x-overflow": "explode"},
            {"x-dead-letter-routing-key": "without-an-exchange"},
        ],
    )
    def test_arguments_that_make_no_sense_are_refused_with_406(
        self, channel: BlockingChannel, unique: Unique, arguments: dict[str, Any]
    ) -> None:
        with channel_refused(406):
            channel.queue_declare(unique("queue"), arguments=arguments)

    def test_the_text_of_a_refused_argument_names_it(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("queue")
        with pytest.raises(ChannelClosedByBroker) as refused:
            channel.queue_declare(name, arguments={"x-message-ttl": -1})
        assert refused.value.reply_text.startswith("PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue ")
        assert name in refused.value.reply_text


class TestExclusive:
    LOCKED = (
        "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{}' in vhost '/'. It could be originally "
        "declared on another connection or the exclusive property value does not match that of the original "
        "declaration."
    )

    @pytest.mark.parametrize("operation", ["declare", "passive", "consume", "get", "purge", "delete", "bind"])
    def test_another_connection_is_refused_with_405(self, connect: Connect, unique: Unique, operation: str) -> None:
        name = unique("exclusive")
        connect().channel().queue_declare(name, exclusive=True)
        other = connect().channel()
        with channel_refused(405, self.LOCKED.format(name)):
            match operation:
                case "declare":
                    other.queue_declare(name, exclusive=True)
                case "passive":
                    other.queue_declare(name, passive=True)
                case "consume":
                    other.basic_consume(name, lambda *_: None)
                case "get":
                    other.basic_get(name)
                case "purge":
                    other.queue_purge(name)
                case "delete":
                    other.queue_delete(name)
                case "bind":
                    other.queue_bind(name, "amq.fanout")

    def test_another_channel_of_the_connection_may_use_it(self, connect: Connect, unique: Unique) -> None:
        connection = connect()
        name = unique("exclusive")
        connection.channel().queue_declare(name, exclusive=True)
        other = connection.channel()
        publish(other, name, b"m")
        assert drain(other, name) == [b"m"]

    def test_anybody_may_publish_to_it(self, connect: Connect, unique: Unique) -> None:
        name = unique("exclusive")
        owner = connect().channel()
        owner.queue_declare(name, exclusive=True)
        inbox = Inbox(owner, name, auto_ack=True)
        publish(connect().channel(), name, b"from outside")
        assert inbox.wait(1)[0].body == b"from outside"

    def test_it_goes_with_its_connection(self, connect: Connect, unique: Unique) -> None:
        connection = connect()
        name = unique("exclusive")
        connection.channel().queue_declare(name, exclusive=True)
        connection.close()
        eventually(lambda: not queue_exists(connect, name), "the queue is deleted")

    def test_it_stays_when_only_its_channel_closes(self, connect: Connect, unique: Unique) -> None:
        connection = connect()
        name = unique("exclusive")
        channel = connection.channel()
        channel.queue_declare(name, exclusive=True)
        channel.close()
        connection.channel().queue_declare(name, passive=True)


class TestAutoDelete:
    def test_it_goes_with_its_last_consumer(self, connect: Connect, unique: Unique) -> None:
        channel = connect().channel()
        name = unique("auto-delete")
        channel.queue_declare(name, auto_delete=True)
        one, two = Inbox(channel, name), Inbox(channel, name)
        one.cancel()
        assert queue_exists(connect, name)
        two.cancel()
        eventually(lambda: not queue_exists(connect, name), "the queue is deleted")

    def test_it_stays_until_it_had_a_consumer(self, connect: Connect, unique: Unique) -> None:
        channel = connect().channel()
        name = unique("auto-delete")
        channel.queue_declare(name, auto_delete=True)
        channel.close()
        assert queue_exists(connect, name)

    def test_a_lost_connection_counts_as_a_cancel(self, connect: Connect, unique: Unique) -> None:
        connection = connect()
        channel = connection.channel()
        name = unique("auto-delete")
        channel.queue_declare(name, auto_delete=True)
        Inbox(channel, name)
        connection.close()
        eventually(lambda: not queue_exists(connect, name), "the queue is deleted")


class TestPurge:
    def test_removes_what_is_ready_and_counts_it(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"1", b"2", b"3")
        wait_ready(channel, queue, 3)
        assert channel.queue_purge(queue).method.message_count == 3
        assert ready_count(channel, queue) == 0

    def test_leaves_what_is_delivered_and_not_acknowledged(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"1", b"2", b"3")
        method, _, _ = channel.basic_get(queue)
        assert channel.queue_purge(queue).method.message_count == 2
        channel.basic_nack(method.delivery_tag)
        wait_ready(channel, queue, 1)
        assert drain(channel, queue) == [b"1"]

    def test_a_missing_queue_is_404(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("missing")
        with channel_refused(404, f"NOT_FOUND - no queue '{name}' in vhost '/'"):
            channel.queue_purge(name)


class TestDelete:
    def test_counts_the_messages_it_drops(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"1", b"2")
        wait_ready(channel, queue, 2)
        assert channel.queue_delete(queue).method.message_count == 2
        with channel_refused(404):
            channel.queue_declare(queue, passive=True)

    def test_deleting_what_is_missing_is_fine(self, channel: BlockingChannel, unique: Unique) -> None:
        assert channel.queue_delete(unique("missing")).method.message_count == 0

    def test_if_empty_refuses_while_messages_wait(self, connect: Connect, queue: str) -> None:
        connection = connect()
        channel = connection.channel()
        publish(channel, queue, b"1")
        wait_ready(channel, queue, 1)
        with channel_refused(406, f"PRECONDITION_FAILED - queue '{queue}' in vhost '/' not empty"):
            connection.channel().queue_delete(queue, if_empty=True)
        drain(channel, queue)
        channel.queue_delete(queue, if_empty=True)

    def test_if_unused_refuses_while_consumed(self, connect: Connect, queue: str) -> None:
        connection = connect()
        channel = connection.channel()
        inbox = Inbox(channel, queue)
        with channel_refused(406, f"PRECONDITION_FAILED - queue '{queue}' in vhost '/' in use"):
            connection.channel().queue_delete(queue, if_unused=True)
        inbox.cancel()
        channel.queue_delete(queue, if_unused=True)

    def test_bindings_of_a_deleted_queue_do_not_come_back(self, channel: BlockingChannel, queue: str) -> None:
        channel.queue_bind(queue, "amq.direct", queue)
        channel.queue_delete(queue)
        channel.queue_declare(queue)
        channel.basic_publish("amq.direct", queue, b"nobody")
        publish(channel, queue, b"by name")
        wait_ready(channel, queue, 1)
        assert drain(channel, queue) == [b"by name"]


def test_order_of_one_publisher_is_kept(channel: BlockingChannel, queue: str) -> None:
    bodies = [b"%d" % number for number in range(500)]
    publish(channel, queue, *bodies)
    wait_ready(channel, queue, 500)
    assert drain(channel, queue) == bodies
