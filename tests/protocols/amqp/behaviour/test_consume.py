"""Consuming: fairness, prefetch, acknowledging, putting back, and what a consumer is told."""

from __future__ import annotations

from collections.abc import Callable

import pamqp.commands as commands
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.pika_client import (
    Connect,
    Delivery,
    Inbox,
    Unique,
    channel_refused,
    connection_refused,
    consumer_count,
    drain,
    get,
    numbered,
    publish,
    ready_count,
    turn,
    wait_ready,
)
from tests.support.raw_amqp import RawConnection
from tests.support.waiting import eventually

Raw = Callable[..., RawConnection]


class TestDelivery:
    def test_messages_arrive_in_order_with_rising_tags(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(100))
        inbox = Inbox(channel, queue)
        inbox.wait(100)
        assert inbox.bodies == numbered(100)
        assert [delivery.tag for delivery in inbox.deliveries] == list(range(1, 101))
        assert not any(delivery.redelivered for delivery in inbox.deliveries)
        assert {delivery.method.consumer_tag for delivery in inbox.deliveries} == {inbox.consumer_tag}

    def test_a_waiting_consumer_gets_a_new_message(self, connect: Connect, queue: str) -> None:
        inbox = Inbox(connect().channel(), queue, auto_ack=True)
        publish(connect().channel(), queue, b"new")
        assert inbox.wait(1)[0].body == b"new"

    def test_consumers_of_equal_speed_get_equal_shares(self, connect: Connect, queue: str) -> None:
        connection = connect()
        channels = [connection.channel() for _ in range(4)]
        inboxes = [Inbox(channel, queue, auto_ack=True) for channel in channels]
        publish(channels[0], queue, *numbered(40))
        eventually(
            lambda: sum(len(inbox.deliveries) for inbox in inboxes) == 40,
            "all messages delivered",
            step=lambda: turn(channels[0]),
        )
        assert [len(inbox.deliveries) for inbox in inboxes] == [10, 10, 10, 10]
        # Round robin: every consumer has every fourth message.
        assert sorted(inbox.bodies[0] for inbox in inboxes) == [b"0", b"1", b"2", b"3"]
        for inbox in inboxes:
            first = int(inbox.bodies[0])
            assert inbox.bodies == [b"%d" % number for number in range(first, 40, 4)]

    def test_two_consumers_of_one_channel_share_too(self, channel: BlockingChannel, queue: str) -> None:
        one, two = Inbox(channel, queue, auto_ack=True), Inbox(channel, queue, auto_ack=True)
        publish(channel, queue, *numbered(20))
        eventually(lambda: len(one.deliveries) + len(two.deliveries) == 20, "20 deliveries", step=lambda: turn(channel))
        assert len(one.deliveries) == len(two.deliveries) == 10

    def test_auto_ack_leaves_nothing_to_acknowledge(self, connect: Connect, queue: str) -> None:
        connection = connect()
        publish(connection.channel(), queue, *numbered(10))
        Inbox(connection.channel(), queue, auto_ack=True).wait(10)
        connection.close()
        assert ready_count(connect().channel(), queue) == 0

    def test_a_server_named_consumer_tag_is_unique(self, raw: Raw, queue: str) -> None:
        connection = raw()
        connection.handshake()
        connection.open_channel()
        tags = [
            connection.rpc(commands.Basic.Consume(0, queue, ""), commands.Basic.ConsumeOk).consumer_tag
            for _ in range(3)
        ]
        assert len(set(tags)) == 3
        assert all(tag.startswith("amq.ctag-") for tag in tags)

    def test_a_missing_queue_is_404(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("missing")
        with channel_refused(404, f"NOT_FOUND - no queue '{name}' in vhost '/'"):
            channel.basic_consume(name, lambda *_: None)

    def test_the_same_tag_twice_on_a_channel_closes_the_connection_with_530(self, raw: Raw, queue: str) -> None:
        # pika itself refuses duplicate tags, so this needs the wire.
        connection = raw()
        connection.handshake()
        connection.open_channel()
        connection.rpc(commands.Basic.Consume(0, queue, "twice"), commands.Basic.ConsumeOk)
        connection.send(commands.Basic.Consume(0, queue, "twice"), 1)
        close = connection.expect(commands.Connection.Close, 0)
        assert (close.reply_code, close.reply_text) == (530, "NOT_ALLOWED - attempt to reuse consumer tag 'twice'")

    def test_a_consumer_without_answer_is_served(self, raw: Raw, queue: str, channel: BlockingChannel) -> None:
        connection = raw()
        connection.handshake()
        connection.open_channel()
        connection.send(commands.Basic.Consume(0, queue, "quiet", no_ack=True, nowait=True), 1)
        publish(channel, queue, b"m")
        assert connection.expect(commands.Basic.Deliver, 1).consumer_tag == "quiet"


class TestPrefetch:
    def test_limits_what_a_consumer_holds(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(10))
        channel.basic_qos(prefetch_count=3)
        inbox = Inbox(channel, queue)
        inbox.wait(3)
        assert ready_count(channel, queue) == 7
        inbox.deliveries[0].ack()
        inbox.wait(4)
        assert ready_count(channel, queue) == 6

    def test_acknowledging_several_makes_room_for_several(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(10))
        channel.basic_qos(prefetch_count=3)
        inbox = Inbox(channel, queue)
        inbox.wait(3)
        channel.basic_ack(3, multiple=True)
        inbox.wait(6)
        assert ready_count(channel, queue) == 4

    def test_is_per_consumer_unless_global(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(20))
        channel.basic_qos(prefetch_count=3)
        one, two = Inbox(channel, queue), Inbox(channel, queue)
        one.wait(3)
        two.wait(3)
        assert ready_count(channel, queue) == 14

    def test_applies_to_consumers_started_afterwards(self, channel: BlockingChannel, queue: str) -> None:
        channel.basic_qos(prefetch_count=2)
        first = Inbox(channel, queue)
        channel.basic_qos(prefetch_count=5)
        second = Inbox(channel, queue)
        publish(channel, queue, *numbered(20))
        first.wait(2)
        second.wait(5)
        assert ready_count(channel, queue) == 13

    def test_global_is_shared_by_the_channel(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(20))
        channel.basic_qos(prefetch_count=4, global_qos=True)
        one, two = Inbox(channel, queue), Inbox(channel, queue)
        eventually(lambda: len(one.deliveries) + len(two.deliveries) == 4, "4 deliveries", step=lambda: turn(channel))
        assert ready_count(channel, queue) == 16
        channel.basic_ack(0, multiple=True)
        eventually(
            lambda: len(one.deliveries) + len(two.deliveries) == 8, "4 more deliveries", step=lambda: turn(channel)
        )
        assert ready_count(channel, queue) == 12

    def test_the_consumers_and_the_channels_limit_hold_together(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(20))
        channel.basic_qos(prefetch_count=2)
        channel.basic_qos(prefetch_count=3, global_qos=True)
        one, two = Inbox(channel, queue), Inbox(channel, queue)
        eventually(lambda: len(one.deliveries) + len(two.deliveries) == 3, "3 deliveries", step=lambda: turn(channel))
        assert max(len(one.deliveries), len(two.deliveries)) == 2
        assert ready_count(channel, queue) == 17

    def test_does_not_limit_auto_ack(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(10))
        channel.basic_qos(prefetch_count=1)
        Inbox(channel, queue, auto_ack=True).wait(10)

    def test_does_not_limit_get(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(3))
        channel.basic_qos(prefetch_count=1)
        for body in numbered(3):
            assert get(channel, queue, auto_ack=False).body == body

    def test_zero_is_no_limit(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(300))
        channel.basic_qos(prefetch_count=1)
        channel.basic_qos(prefetch_count=0)
        Inbox(channel, queue).wait(300)

    def test_a_size_limit_is_not_implemented(self, channel: BlockingChannel) -> None:
        with connection_refused(540):
            channel.basic_qos(prefetch_size=100)

    def test_a_full_consumer_does_not_hold_up_the_others(self, connect: Connect, queue: str) -> None:
        connection = connect()
        full, hungry = connection.channel(), connection.channel()
        full.basic_qos(prefetch_count=1)
        stuck = Inbox(full, queue)
        publish(full, queue, b"stuck")
        stuck.wait(1)
        busy = Inbox(hungry, queue, auto_ack=True)
        publish(full, queue, *numbered(50))
        busy.wait(50)
        assert busy.bodies == numbered(50)


class TestAcknowledge:
    def test_an_acknowledged_message_does_not_come_back(self, connect: Connect, queue: str) -> None:
        connection = connect()
        channel = connection.channel()
        publish(channel, queue, *numbered(3))
        inbox = Inbox(channel, queue)
        for delivery in inbox.wait(3):
            delivery.ack()
        connection.close()
        assert ready_count(connect().channel(), queue) == 0

    def test_multiple_covers_all_up_to_the_tag(self, connect: Connect, queue: str) -> None:
        channel = connect().channel()
        publish(channel, queue, *numbered(5))
        Inbox(channel, queue).wait(5)
        channel.basic_ack(3, multiple=True)
        channel.close()
        assert drain(connect().channel(), queue) == [b"3", b"4"]

    def test_multiple_zero_covers_all(self, connect: Connect, queue: str) -> None:
        channel = connect().channel()
        publish(channel, queue, *numbered(5))
        Inbox(channel, queue).wait(5)
        channel.basic_ack(0, multiple=True)
        channel.close()
        assert drain(connect().channel(), queue) == []

    def test_out_of_order_acknowledgements_are_fine(self, connect: Connect, queue: str) -> None:
        channel = connect().channel()
        publish(channel, queue, *numbered(6))
        Inbox(channel, queue).wait(6)
        for tag in (5, 1, 3):
            channel.basic_ack(tag)
        channel.close()
        assert drain(connect().channel(), queue) == [b"1", b"3", b"5"]

    def test_multiple_skips_what_is_acknowledged_already(self, connect: Connect, queue: str) -> None:
        channel = connect().channel()
        publish(channel, queue, *numbered(6))
        Inbox(channel, queue).wait(6)
        channel.basic_ack(2)
        channel.basic_ack(4, multiple=True)
        channel.close()
        assert drain(connect().channel(), queue) == [b"4", b"5"]

    @pytest.mark.parametrize("operation", ["ack", "ack multiple", "nack", "reject"])
    def test_an_unknown_tag_is_406(self, channel: BlockingChannel, queue: str, operation: str) -> None:
        with channel_refused(406, "PRECONDITION_FAILED - unknown delivery tag 99"):
            match operation:
                case "ack":
                    channel.basic_ack(99)
                case "ack multiple":
                    channel.basic_ack(99, multiple=True)
                case "nack":
                    channel.basic_nack(99)
                case "reject":
                    channel.basic_reject(99)
            ready_count(channel, queue)

    def test_acknowledging_twice_is_406(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"m")
        Inbox(channel, queue).wait(1)
        channel.basic_ack(1)
        with channel_refused(406, "PRECONDITION_FAILED - unknown delivery tag 1"):
            channel.basic_ack(1)
            ready_count(channel, queue)

    def test_acknowledging_an_auto_acked_delivery_is_406(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"m")
        Inbox(channel, queue, auto_ack=True).wait(1)
        with channel_refused(406, "PRECONDITION_FAILED - unknown delivery tag 1"):
            channel.basic_ack(1)
            ready_count(channel, queue)

    def test_tags_belong_to_the_channel_that_received(self, connect: Connect, queue: str) -> None:
        connection = connect()
        receiving, other = connection.channel(), connection.channel()
        publish(receiving, queue, b"m")
        Inbox(receiving, queue).wait(1)
        with channel_refused(406, "PRECONDITION_FAILED - unknown delivery tag 1"):
            other.basic_ack(1)
            ready_count(other, queue)

    def test_what_was_unacknowledged_comes_back_after_the_channel_error(self, connect: Connect, queue: str) -> None:
        connection = connect()
        channel = connection.channel()
        publish(channel, queue, b"m")
        Inbox(channel, queue).wait(1)
        with channel_refused(406):
            channel.basic_ack(99)
            ready_count(channel, queue)
        wait_ready(connection.channel(), queue, 1)


class TestPuttingBack:
    @pytest.mark.parametrize("operation", ["nack", "reject"])
    def test_a_requeued_message_comes_back_redelivered(
        self, channel: BlockingChannel, queue: str, operation: str
    ) -> None:
        publish(channel, queue, b"m")
        delivery = get(channel, queue, auto_ack=False)
        assert not delivery.redelivered
        if operation == "nack":
            channel.basic_nack(delivery.tag, requeue=True)
        else:
            channel.basic_reject(delivery.tag, requeue=True)
        again = get(channel, queue)
        assert (again.body, again.redelivered) == (b"m", True)

    @pytest.mark.parametrize("operation", ["nack", "reject"])
    def test_a_message_not_requeued_is_dropped(self, channel: BlockingChannel, queue: str, operation: str) -> None:
        publish(channel, queue, b"m", b"next")
        delivery = get(channel, queue, auto_ack=False)
        if operation == "nack":
            channel.basic_nack(delivery.tag, requeue=False)
        else:
            channel.basic_reject(delivery.tag, requeue=False)
        assert drain(channel, queue) == [b"next"]

    def test_a_requeued_message_has_its_original_position(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(5))
        tags = [get(channel, queue, auto_ack=False).tag for _ in range(3)]
        channel.basic_ack(tags[0])
        channel.basic_reject(tags[1], requeue=True)
        # 2 is still held: 1 is ahead of 3 and 4.
        assert drain(channel, queue) == [b"1", b"3", b"4"]
        channel.basic_reject(tags[2], requeue=True)
        assert drain(channel, queue) == [b"2"]

    def test_requeued_in_any_order_they_stand_in_the_original_order(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(8))
        tags = [get(channel, queue, auto_ack=False).tag for _ in range(6)]
        for position in (3, 0, 5, 1, 4, 2):
            channel.basic_nack(tags[position], requeue=True)
        assert drain(channel, queue) == numbered(8)

    def test_nack_multiple_requeues_all_up_to_the_tag_in_order(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(6))
        tags = [get(channel, queue, auto_ack=False).tag for _ in range(5)]
        channel.basic_nack(tags[2], multiple=True, requeue=True)
        assert drain(channel, queue) == [b"0", b"1", b"2", b"5"]
        channel.basic_nack(0, multiple=True, requeue=True)
        assert drain(channel, queue) == [b"3", b"4"]

    def test_nack_multiple_drops_all_up_to_the_tag(self, connect: Connect, queue: str) -> None:
        channel = connect().channel()
        publish(channel, queue, *numbered(5))
        Inbox(channel, queue).wait(5)
        channel.basic_nack(3, multiple=True, requeue=False)
        channel.close()
        assert drain(connect().channel(), queue) == [b"3", b"4"]

    def test_a_requeued_message_goes_to_another_consumer_too(self, connect: Connect, queue: str) -> None:
        connection = connect()
        refusing, taking = connection.channel(), connection.channel()
        for channel in (refusing, taking):
            channel.basic_qos(prefetch_count=1)
        refuser = Inbox(refusing, queue)
        publish(refusing, queue, b"m")
        refuser.wait(1)
        taker = Inbox(taking, queue)
        refuser.cancel()
        refusing.basic_reject(refuser.deliveries[0].tag, requeue=True)
        assert taker.wait(1)[0].redelivered

    def test_a_consumer_may_requeue_to_itself(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"m")
        attempts: list[bool] = []

        def until_the_third(delivery: Delivery) -> None:
            attempts.append(delivery.redelivered)
            if len(attempts) < 3:
                channel.basic_reject(delivery.tag, requeue=True)
            else:
                delivery.ack()

        Inbox(channel, queue, on_delivery=until_the_third).wait(3)
        assert attempts == [False, True, True]


class TestRecover:
    def test_puts_everything_unacknowledged_back_in_order(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(5))
        for _ in range(3):
            get(channel, queue, auto_ack=False)
        channel.basic_recover(requeue=True)
        inbox = Inbox(channel, queue)
        inbox.wait(5)
        assert inbox.bodies == numbered(5)
        assert [delivery.redelivered for delivery in inbox.deliveries] == [True, True, True, False, False]

    def test_a_running_consumer_gets_them_again(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(3))
        inbox = Inbox(channel, queue)
        inbox.wait(3)
        channel.basic_recover(requeue=True)
        inbox.wait(6)
        assert inbox.bodies == numbered(3) * 2

    def test_without_requeue_is_not_implemented(self, channel: BlockingChannel) -> None:
        with connection_refused(540):
            channel.basic_recover(requeue=False)

    def test_leaves_other_channels_alone(self, connect: Connect, queue: str) -> None:
        connection = connect()
        mine, other = connection.channel(), connection.channel()
        publish(mine, queue, *numbered(2))
        wait_ready(other, queue, 2)
        assert get(other, queue, auto_ack=False).body == b"0"
        assert get(mine, queue, auto_ack=False).body == b"1"
        mine.basic_recover(requeue=True)
        assert drain(mine, queue) == [b"1"]


class TestReturnedByClosing:
    @pytest.mark.parametrize("what", ["channel", "connection", "socket"])
    def test_what_was_unacknowledged_is_back_in_order_and_redelivered(
        self, connect: Connect, raw: Raw, queue: str, what: str
    ) -> None:
        observer = connect().channel()
        publish(observer, queue, *numbered(10))
        if what == "socket":
            lost = raw()
            lost.handshake()
            lost.open_channel()
            lost.rpc(commands.Basic.Qos(0, 5), commands.Basic.QosOk)
            lost.rpc(commands.Basic.Consume(0, queue, "lost"), commands.Basic.ConsumeOk)
            for _ in range(5):
                lost.expect(commands.Basic.Deliver)
                lost.expect_body()
            lost.send(commands.Basic.Ack(2), 1)
            wait_ready(observer, queue, 4)
            lost.socket.close()
        else:
            connection = connect()
            channel = connection.channel()
            channel.basic_qos(prefetch_count=5)
            inbox = Inbox(channel, queue)
            inbox.wait(5)
            channel.basic_ack(2)
            inbox.wait(6)
            (channel if what == "channel" else connection).close()
        wait_ready(observer, queue, 9)
        inbox = Inbox(observer, queue)
        inbox.wait(9)
        assert inbox.bodies == [b"0", *numbered(10)[2:]]
        assert [delivery.redelivered for delivery in inbox.deliveries] == [True] * 5 + [False] * 4

    def test_consumers_of_several_queues_are_all_returned(self, connect: Connect, unique: Unique) -> None:
        names = [unique("queue") for _ in range(3)]
        channel = connect().channel()
        for name in names:
            channel.queue_declare(name)
            publish(channel, name, *numbered(4))
            Inbox(channel, name).wait(4)
        channel.close()
        observer = connect().channel()
        for name in names:
            wait_ready(observer, name, 4)
            assert drain(observer, name) == numbered(4)


class TestCancel:
    def test_a_cancelled_consumer_gets_nothing_more_and_may_still_acknowledge(
        self, connect: Connect, queue: str
    ) -> None:
        channel = connect().channel()
        publish(channel, queue, *numbered(2))
        channel.basic_qos(prefetch_count=1)
        inbox = Inbox(channel, queue)
        inbox.wait(1)
        inbox.cancel()
        assert consumer_count(channel, queue) == 0
        inbox.deliveries[0].ack()
        assert ready_count(channel, queue) == 1
        channel.close()
        assert drain(connect().channel(), queue) == [b"1"]

    def test_what_a_cancelled_consumer_holds_stays_held(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"m")
        inbox = Inbox(channel, queue)
        inbox.wait(1)
        # pika's own cancel gives back what it has not handed out; what was handed out stays the client's.
        inbox.cancel()
        assert ready_count(channel, queue) == 0
        channel.basic_recover(requeue=True)
        wait_ready(channel, queue, 1)

    def test_an_unknown_tag_is_answered(self, raw: Raw) -> None:
        connection = raw()
        connection.handshake()
        connection.open_channel()
        assert connection.rpc(commands.Basic.Cancel("never"), commands.Basic.CancelOk).consumer_tag == "never"

    def test_a_tag_can_be_used_again_after_a_cancel(self, channel: BlockingChannel, queue: str) -> None:
        for _ in range(3):
            channel.basic_consume(queue, lambda *_: None, consumer_tag="again")
            channel.basic_cancel("again")

    def test_a_deleted_queue_cancels_its_consumers(self, connect: Connect, queue: str) -> None:
        channel = connect().channel()
        cancelled: list[str] = []
        channel.add_on_cancel_callback(lambda frame: cancelled.append(frame.method.consumer_tag))
        inbox = Inbox(channel, queue)
        connect().channel().queue_delete(queue)
        eventually(lambda: cancelled, "the cancel", step=lambda: turn(channel))
        assert cancelled == [inbox.consumer_tag]
        assert channel.is_open

    def test_a_client_that_deletes_what_it_consumes_from_is_answered_before_it_is_told(
        self, raw: Raw, queue: str
    ) -> None:
        connection = raw()
        connection.handshake(capabilities={"consumer_cancel_notify": True})
        connection.open_channel()
        connection.rpc(commands.Basic.Consume(0, queue, "tag"), commands.Basic.ConsumeOk)
        connection.rpc(commands.Queue.Delete(0, queue), commands.Queue.DeleteOk)
        assert connection.expect(commands.Basic.Cancel).consumer_tag == "tag"
        # There is no second one for a consumer that is gone.
        connection.rpc(commands.Basic.Qos(0, 1), commands.Basic.QosOk)

    def test_a_client_that_does_not_know_cancels_is_not_sent_any(self, raw: Raw, connect: Connect, queue: str) -> None:
        connection = raw()
        connection.handshake()
        connection.open_channel()
        connection.rpc(commands.Basic.Consume(0, queue, "tag"), commands.Basic.ConsumeOk)
        connect().channel().queue_delete(queue)
        # The next frame is the answer to this, with no basic.cancel before it.
        connection.rpc(commands.Basic.Qos(0, 1), commands.Basic.QosOk)


class TestExclusiveConsumer:
    def test_keeps_others_out_with_403(self, connect: Connect, queue: str) -> None:
        connection = connect()
        holder = Inbox(connection.channel(), queue, exclusive=True)
        with channel_refused(403, f"ACCESS_REFUSED - queue '{queue}' in vhost '/' in exclusive use"):
            connection.channel().basic_consume(queue, lambda *_: None)
        holder.cancel()
        connection.channel().basic_consume(queue, lambda *_: None)

    def test_is_refused_while_others_consume(self, connect: Connect, queue: str) -> None:
        connection = connect()
        Inbox(connection.channel(), queue)
        with channel_refused(403, f"ACCESS_REFUSED - queue '{queue}' in vhost '/' in exclusive use"):
            connection.channel().basic_consume(queue, lambda *_: None, exclusive=True)

    def test_does_not_keep_get_out(self, connect: Connect, queue: str) -> None:
        connection = connect()
        Inbox(connection.channel(), queue, exclusive=True)
        assert connection.channel().basic_get(queue)[0] is None


class TestGet:
    def test_an_empty_queue_says_so(self, channel: BlockingChannel, queue: str) -> None:
        assert channel.basic_get(queue) == (None, None, None)

    def test_tells_how_many_are_left(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, *numbered(3))
        left = [get(channel, queue).method.message_count for _ in range(3)]
        assert left == [2, 1, 0]

    def test_names_exchange_and_routing_key(self, channel: BlockingChannel, queue: str) -> None:
        channel.queue_bind(queue, "amq.topic", f"{queue}.#")
        channel.basic_publish("amq.topic", f"{queue}.a", b"m")
        wait_ready(channel, queue, 1)
        method = get(channel, queue).method
        assert (method.exchange, method.routing_key) == ("amq.topic", f"{queue}.a")

    def test_unacknowledged_it_returns_with_the_channel(self, connect: Connect, queue: str) -> None:
        connection = connect()
        channel = connection.channel()
        publish(channel, queue, *numbered(3))
        get(channel, queue, auto_ack=False)
        assert ready_count(channel, queue) == 2
        channel.close()
        other = connection.channel()
        wait_ready(other, queue, 3)
        assert get(other, queue).redelivered

    def test_tags_of_get_and_consume_are_one_sequence(self, connect: Connect, unique: Unique) -> None:
        channel = connect().channel()
        polled, consumed = unique("polled"), unique("consumed")
        for name in (polled, consumed):
            channel.queue_declare(name)
            publish(channel, name, b"m")
        assert get(channel, polled, auto_ack=False).tag == 1
        assert Inbox(channel, consumed).wait(1)[0].tag == 2
        channel.basic_ack(2, multiple=True)
        channel.close()
        observer = connect().channel()
        assert [ready_count(observer, name) for name in (polled, consumed)] == [0, 0]

    def test_a_missing_queue_is_404(self, channel: BlockingChannel, unique: Unique) -> None:
        name = unique("missing")
        with channel_refused(404, f"NOT_FOUND - no queue '{name}' in vhost '/'"):
            channel.basic_get(name)


def test_a_slow_reader_does_not_stop_the_others(raw: Raw, connect: Connect, unique: Unique) -> None:
    channel = connect().channel()
    slow_queue, fast_queue = unique("slow"), unique("fast")
    for name in (slow_queue, fast_queue):
        channel.queue_declare(name)
    slow = raw(receive_buffer_bytes=4096)
    slow.handshake()
    slow.open_channel()
    slow.rpc(commands.Basic.Consume(0, slow_queue, "slow", no_ack=True), commands.Basic.ConsumeOk)
    body = b"x" * 100_000
    # More than the sockets can hold between them: the broker has to stop writing to this one.
    publish(channel, slow_queue, *[body] * 200)
    inbox = Inbox(channel, fast_queue, auto_ack=True)
    publish(channel, fast_queue, *numbered(100))
    inbox.wait(100)
    for _ in range(200):
        slow.expect(commands.Basic.Deliver)
        assert slow.expect_body()[1] == body


def test_tags_and_counts_survive_ten_thousand_messages(connect: Connect, queue: str) -> None:
    connection = connect()
    channel = connection.channel()
    publish(channel, queue, *[b"x" * 50] * 10_000)
    channel.basic_qos(prefetch_count=500)
    received: list[int] = []

    def acknowledge_in_hundreds(delivery: Delivery) -> None:
        received.append(delivery.tag)
        if delivery.tag % 100 == 0:
            channel.basic_ack(delivery.tag, multiple=True)

    Inbox(channel, queue, on_delivery=acknowledge_in_hundreds).wait(10_000, deadline_s=40)
    assert received == list(range(1, 10_001))
    channel.close()
    assert ready_count(connection.channel(), queue) == 0
