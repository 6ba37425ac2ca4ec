"""Publishing: mandatory, confirms, and what a publish to nowhere does."""

from __future__ import annotations

from collections.abc import Callable

import pamqp.commands as commands
import pamqp.header as headers
import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import UnroutableError

from tests.support.pika_client import Connect, Unique, channel_refused, drain, get, numbered, publish, wait_ready
from tests.support.raw_amqp import RawConnection
from tests.support.waiting import eventually

Raw = Callable[..., RawConnection]
PERSISTENT = commands.Basic.Properties(delivery_mode=2)


@pytest.fixture
def confirming(raw: Raw) -> RawConnection:
    """A raw connection whose channel 1 is in confirm mode."""
    connection = raw()
    connection.handshake()
    connection.open_channel()
    connection.rpc(commands.Confirm.Select(), commands.Confirm.SelectOk)
    return connection


def collect_confirms(connection: RawConnection, count: int) -> list[int]:
    """The delivery tags of `count` confirmed publishes, in the order in which they were confirmed."""
    confirmed: list[int] = []
    last = 0
    outstanding = set(range(1, count + 1))
    while outstanding:
        ack = connection.expect(commands.Basic.Ack, 1)
        tags = [tag for tag in sorted(outstanding) if tag <= ack.delivery_tag] if ack.multiple else [ack.delivery_tag]
        assert tags, f"an ack of {ack.delivery_tag} that confirms nothing, after {last}"
        outstanding.difference_update(tags)
        confirmed.extend(tags)
        last = ack.delivery_tag
    return confirmed


class TestMandatory:
    def test_an_unroutable_message_comes_back_whole(self, channel: BlockingChannel, unique: Unique) -> None:
        returned: list[tuple[pika.spec.Basic.Return, pika.BasicProperties, bytes]] = []
        channel.add_on_return_callback(lambda _, method, properties, body: returned.append((method, properties, body)))
        key = unique("nowhere")
        channel.basic_publish(
            "amq.direct", key, b"body", pika.BasicProperties(message_id="7", headers={"h": 1}), mandatory=True
        )
        eventually(lambda: returned, "the return", step=lambda: channel.connection.process_data_events(time_limit=0.01))
        method, properties, body = returned[0]
        assert (method.reply_code, method.reply_text) == (312, "NO_ROUTE")
        assert (method.exchange, method.routing_key) == ("amq.direct", key)
        assert (properties.message_id, properties.headers, body) == ("7", {"h": 1}, b"body")

    def test_a_routable_message_does_not_come_back(self, channel: BlockingChannel, queue: str) -> None:
        channel.confirm_delivery()
        channel.basic_publish("", queue, b"m", mandatory=True)
        assert drain(channel, queue) == [b"m"]

    def test_pika_raises_when_a_confirmed_mandatory_message_is_unroutable(
        self, channel: BlockingChannel, unique: Unique
    ) -> None:
        channel.confirm_delivery()
        with pytest.raises(UnroutableError) as unroutable:
            channel.basic_publish("", unique("nowhere"), b"m", mandatory=True)
        assert unroutable.value.messages[0].body == b"m"

    def test_the_return_comes_before_the_confirm(self, confirming: RawConnection, unique: Unique) -> None:
        confirming.publish(1, unique("nowhere"), b"m", mandatory=True)
        confirming.expect(commands.Basic.Return, 1)
        assert confirming.expect_body()[1] == b"m"
        assert confirming.expect(commands.Basic.Ack, 1).delivery_tag == 1

    def test_each_return_comes_before_its_confirm_among_routable_messages(
        self, confirming: RawConnection, queue: str, unique: Unique
    ) -> None:
        nowhere = unique("nowhere")
        burst = [(b"%d" % number, number % 3 == 0) for number in range(1, 31)]
        confirming.send_bytes(
            b"".join(
                confirming.encode_publish(1, nowhere if lost else queue, body, mandatory=True) for body, lost in burst
            )
        )
        returned: set[int] = set()
        acked: set[int] = set()
        while len(acked) < len(burst):
            _, frame = confirming.read_frame()
            if isinstance(frame, commands.Basic.Return):
                returned.add(int(confirming.expect_body()[1]))
            else:
                assert isinstance(frame, commands.Basic.Ack)
                tags = range(1, frame.delivery_tag + 1) if frame.multiple else [frame.delivery_tag]
                acked.update(tags)
                assert {tag for tag in acked if tag % 3 == 0} <= returned
        assert returned == {number for number in range(1, 31) if number % 3 == 0}

    def test_immediate_is_not_implemented(self, confirming: RawConnection, queue: str) -> None:
        # RabbitMQ dropped `immediate` in 3.0 and answers 540 on the connection.
        confirming.send(commands.Basic.Publish(0, "", queue, False, True), 1)
        confirming.send(headers.ContentHeader(0, 1, commands.Basic.Properties()), 1)
        confirming.send_frame(3, 1, b"m")
        assert confirming.expect(commands.Connection.Close, 0).reply_code == 540


class TestConfirms:
    def test_a_single_publish_is_confirmed(self, confirming: RawConnection, queue: str) -> None:
        confirming.publish(1, queue, b"m")
        ack = confirming.expect(commands.Basic.Ack, 1)
        assert ack.delivery_tag == 1

    @pytest.mark.parametrize("properties", [commands.Basic.Properties(), PERSISTENT], ids=["transient", "persistent"])
    def test_a_burst_is_confirmed_completely_and_in_order(
        self, confirming: RawConnection, channel: BlockingChannel, unique: Unique, properties: commands.Basic.Properties
    ) -> None:
        name = unique("durable")
        channel.queue_declare(name, durable=True)
        burst = [confirming.encode_publish(1, name, body, properties=properties) for body in numbered(500)]
        confirming.send_bytes(b"".join(burst))
        confirmed = collect_confirms(confirming, 500)
        assert confirmed == sorted(confirmed)
        assert drain(channel, name) == numbered(500)

    def test_an_unroutable_publish_is_confirmed(self, confirming: RawConnection, unique: Unique) -> None:
        confirming.publish(1, unique("nowhere"), b"m")
        assert confirming.expect(commands.Basic.Ack, 1).delivery_tag == 1

    def test_tags_count_per_channel_from_the_select(self, raw: Raw, queue: str) -> None:
        connection = raw()
        connection.handshake()
        for number in (1, 2):
            connection.open_channel(number)
            # Published before the select: not counted.
            connection.publish(number, queue, b"before")
            connection.rpc(commands.Confirm.Select(), commands.Confirm.SelectOk, number)
        for number, expected in ((1, 1), (2, 1), (1, 2), (1, 3), (2, 2)):
            connection.publish(number, queue, b"m")
            assert connection.expect(commands.Basic.Ack, number).delivery_tag == expected

    def test_selecting_again_keeps_counting(self, confirming: RawConnection, queue: str) -> None:
        confirming.publish(1, queue, b"m")
        confirming.expect(commands.Basic.Ack, 1)
        confirming.rpc(commands.Confirm.Select(), commands.Confirm.SelectOk)
        confirming.publish(1, queue, b"m")
        assert confirming.expect(commands.Basic.Ack, 1).delivery_tag == 2

    def test_select_without_answer_works(self, raw: Raw, queue: str) -> None:
        connection = raw()
        connection.handshake()
        connection.open_channel()
        connection.send(commands.Confirm.Select(nowait=True), 1)
        connection.publish(1, queue, b"m")
        assert connection.expect(commands.Basic.Ack, 1).delivery_tag == 1

    def test_a_message_to_several_queues_is_confirmed_once(
        self, confirming: RawConnection, channel: BlockingChannel, unique: Unique
    ) -> None:
        exchange = unique("fanout")
        channel.exchange_declare(exchange, "fanout")
        names = [unique("copy") for _ in range(5)]
        for name in names:
            channel.queue_declare(name, durable=True)
            channel.queue_bind(name, exchange)
        confirming.publish(1, "", b"one", exchange=exchange, properties=PERSISTENT)
        confirming.publish(1, "", b"two", exchange=exchange, properties=PERSISTENT)
        assert collect_confirms(confirming, 2) == [1, 2]
        for name in names:
            assert drain(channel, name) == [b"one", b"two"]

    def test_confirms_and_tx_exclude_each_other(self, connect: Connect) -> None:
        connection = connect()
        channel = connection.channel()
        channel.tx_select()
        with channel_refused(406, "PRECONDITION_FAILED - cannot switch from tx to confirm mode"):
            channel.confirm_delivery()
        channel = connection.channel()
        channel.confirm_delivery()
        with channel_refused(406, "PRECONDITION_FAILED - cannot switch from confirm to tx mode"):
            channel.tx_select()

    def test_a_confirmed_message_can_be_fetched_at_once(self, connect: Connect, queue: str) -> None:
        publisher, reader = connect().channel(), connect().channel()
        publisher.confirm_delivery()
        for body in numbered(20):
            publish(publisher, queue, body)
            assert get(reader, queue).body == body


class TestMissingExchange:
    def test_closes_the_channel_with_404_and_the_connection_survives(
        self, connect: Connect, queue: str, unique: Unique
    ) -> None:
        connection = connect()
        missing = unique("missing")
        channel = connection.channel()
        with channel_refused(404, f"NOT_FOUND - no exchange '{missing}' in vhost '/'"):
            channel.basic_publish(missing, "", b"m")
            channel.basic_qos(prefetch_count=1)
        assert connection.is_open
        channel = connection.channel()
        publish(channel, queue, b"m")
        wait_ready(channel, queue, 1)

    def test_the_error_names_basic_publish(self, raw: Raw) -> None:
        connection = raw()
        connection.handshake()
        connection.open_channel()
        connection.publish(1, "", b"m", exchange="no-such-exchange")
        close = connection.expect(commands.Channel.Close, 1)
        assert (close.class_id, close.method_id) == (60, 40)

    def test_publishes_before_the_error_are_kept(self, connect: Connect, queue: str, unique: Unique) -> None:
        connection = connect()
        channel = connection.channel()
        with channel_refused(404):
            publish(channel, queue, b"1", b"2")
            channel.basic_publish(unique("missing"), "", b"m")
            channel.basic_qos(prefetch_count=1)
        other = connection.channel()
        wait_ready(other, queue, 2)

    def test_a_deleted_exchange_is_missing_for_the_next_publish(self, channel: BlockingChannel, unique: Unique) -> None:
        exchange = unique("exchange")
        channel.exchange_declare(exchange, "fanout")
        channel.basic_publish(exchange, "", b"fine")
        channel.exchange_delete(exchange)
        with channel_refused(404):
            channel.basic_publish(exchange, "", b"not fine")
            channel.basic_qos(prefetch_count=1)


class TestUserId:
    def test_ones_own_name_is_accepted(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"m", user_id="guest")
        assert get(channel, queue).properties.user_id == "guest"

    def test_another_name_is_refused_with_406(self, channel: BlockingChannel, queue: str) -> None:
        with channel_refused(
            406, "PRECONDITION_FAILED - user_id property set to 'somebody' but authenticated user was 'guest'"
        ):
            publish(channel, queue, b"m", user_id="somebody")
            channel.basic_qos(prefetch_count=1)


@pytest.mark.parametrize("expiration", ["soon", "-1", "1.5", ""])
def test_an_expiration_that_is_no_number_is_refused_with_406(
    channel: BlockingChannel, queue: str, expiration: str
) -> None:
    with channel_refused(406):
        publish(channel, queue, b"m", expiration=expiration)
        channel.basic_qos(prefetch_count=1)
