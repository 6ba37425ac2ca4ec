"""Connections and channels: how they open, what they negotiate, and what ends them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pamqp.body
import pamqp.commands as commands
import pamqp.heartbeat
import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    AMQPConnectionError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from tests.support.endpoint import Endpoint
from tests.support.pika_client import (
    Connect,
    Inbox,
    Unique,
    channel_refused,
    connection_refused,
    get,
    numbered,
    publish,
    ready_count,
)
from tests.support.raw_amqp import (
    FRAME_BODY,
    FRAME_HEADER,
    FRAME_METHOD,
    PROTOCOL_HEADER,
    ProtocolRefused,
    RawConnection,
)
from tests.support.waiting import eventually

Raw = Callable[..., RawConnection]
MEBIBYTE = 1024 * 1024


def closed_with(connection: RawConnection) -> commands.Connection.Close:
    """The broker's connection.close, answered, after which it ends the socket."""
    frames = connection.read_until(lambda frame: isinstance(frame, commands.Connection.Close))
    connection.send(commands.Connection.CloseOk())
    connection.expect_closed()
    close = frames[-1]
    assert isinstance(close, commands.Connection.Close)
    return close


class TestHandshake:
    def test_start_offers_plain_and_amqplain_and_the_capabilities_clients_look_for(self, raw: Raw) -> None:
        connection = raw()
        connection.send_bytes(PROTOCOL_HEADER)
        start = connection.expect(commands.Connection.Start)
        assert (start.version_major, start.version_minor) == (0, 9)
        assert {"PLAIN", "AMQPLAIN"} <= set(str(start.mechanisms).split())
        assert str(start.locales) == "en_US"
        capabilities = start.server_properties["capabilities"]
        for capability in (
            "publisher_confirms",
            "exchange_exchange_bindings",
            "basic.nack",
            "consumer_cancel_notify",
            "connection.blocked",
            "authentication_failure_close",
            "per_consumer_qos",
        ):
            assert capabilities[capability] is True, capability
        for text in ("product", "version", "platform"):
            assert start.server_properties[text]

    def test_amqplain_logs_in(self, raw: Raw, broker: Endpoint) -> None:
        connection = raw()
        connection.send_bytes(PROTOCOL_HEADER)
        connection.expect(commands.Connection.Start)
        login, password = broker.username.encode(), broker.password.encode()
        table = b"\x05LOGINS" + len(login).to_bytes(4, "big") + login
        table += b"\x08PASSWORDS" + len(password).to_bytes(4, "big") + password
        # pamqp would encode the response as text; AMQPLAIN's is a table without its length.
        connection.send(commands.Connection.StartOk({}, "AMQPLAIN", table.decode("latin-1"), "en_US"))
        connection.expect(commands.Connection.Tune)

    def test_an_unknown_protocol_version_is_answered_with_the_supported_one_and_closed(self, raw: Raw) -> None:
        connection = raw()
        connection.send_bytes(b"AMQP\x00\x00\x08\x00")
        with pytest.raises(ProtocolRefused) as refused:
            connection.read_frame()
        assert refused.value.args[0] == PROTOCOL_HEADER
        connection.expect_closed()

    def test_bytes_that_are_no_protocol_header_are_closed(self, raw: Raw) -> None:
        connection = raw()
        connection.send_bytes(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.expect_closed()

    def test_a_wrong_password_is_refused_with_403(self, broker: Endpoint) -> None:
        with pytest.raises(ProbableAuthenticationError) as refused:
            pika.BlockingConnection(broker.parameters(credentials=pika.PlainCredentials(broker.username, "wrong")))
        assert (
            "(403) 'ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. "
            "For details see the broker logfile.'"
        ) in str(refused.value)

    def test_an_unknown_user_is_refused_as_a_wrong_password_is(self, broker: Endpoint) -> None:
        with pytest.raises(ProbableAuthenticationError) as refused:
            pika.BlockingConnection(broker.parameters(credentials=pika.PlainCredentials("nobody", "guest")))
        assert "Login was refused using authentication mechanism PLAIN." in str(refused.value)

    def test_a_client_without_authentication_failure_close_just_loses_the_connection(self, raw: Raw) -> None:
        connection = raw()
        connection.start(response="\0guest\0wrong", capabilities={})
        with pytest.raises(EOFError):
            connection.read_frame()

    def test_an_unknown_mechanism_is_refused(self, raw: Raw) -> None:
        connection = raw()
        connection.start(mechanism="KERBEROS", response="x")
        connection.expect_closed()

    def test_an_unknown_virtual_host_is_refused_with_530(self, broker: Endpoint) -> None:
        # pika reports a refusal of connection.open as "probably no access", with the broker's words inside.
        with pytest.raises((ConnectionClosedByBroker, ProbableAccessDeniedError)) as refused:
            pika.BlockingConnection(broker.parameters(virtual_host="no-such-vhost"))
        assert "530" in str(refused.value)
        assert "NOT_ALLOWED - vhost no-such-vhost not found" in str(refused.value)

    def test_tune_proposes_rabbitmqs_limits(self, raw: Raw) -> None:
        connection = raw()
        connection.handshake()
        assert connection.tune is not None
        assert connection.tune.channel_max == 2047
        assert connection.tune.frame_max == 131072
        assert connection.tune.heartbeat == 60

    @pytest.mark.parametrize("frame_max", [1024, 1 << 20])
    def test_a_frame_max_outside_of_what_was_proposed_is_refused(self, raw: Raw, frame_max: int) -> None:
        connection = raw()
        connection.start()
        connection.expect(commands.Connection.Tune)
        connection.send(commands.Connection.TuneOk(2047, frame_max, 0))
        connection.expect_closed()

    def test_a_client_closes_and_is_answered(self, raw: Raw) -> None:
        connection = raw()
        connection.handshake()
        connection.rpc(commands.Connection.Close(200, "bye", 0, 0), commands.Connection.CloseOk, 0)


class TestHeartbeats:
    def test_the_broker_sends_heartbeats_on_an_idle_connection(self, raw: Raw) -> None:
        connection = raw()
        connection.handshake(heartbeat=1)
        _, frame = connection.read_frame()
        assert isinstance(frame, pamqp.heartbeat.Heartbeat)

    def test_a_silent_peer_is_closed_after_two_heartbeats(self, raw: Raw) -> None:
        connection = raw()
        connection.handshake(heartbeat=1)
        started = time.monotonic()
        connection.expect_closed()
        assert 1.0 < time.monotonic() - started < 10

    def test_a_peer_that_sends_heartbeats_stays_connected(self, connect: Connect) -> None:
        connection = connect(heartbeat=1)
        # Three heartbeat intervals: longer than a silent peer would live.
        connection.process_data_events(time_limit=3.5)
        assert connection.is_open
        connection.channel()

    def test_traffic_counts_as_a_sign_of_life(self, raw: Raw) -> None:
        connection = raw()
        connection.handshake(heartbeat=1)
        connection.open_channel()
        give_up_at = time.monotonic() + 3.5
        while time.monotonic() < give_up_at:
            # Each round trip waits for the broker's heartbeat, so this paces itself without sending one.
            connection.read_until(lambda frame: isinstance(frame, pamqp.heartbeat.Heartbeat))
            connection.rpc(commands.Basic.Qos(0, 1), commands.Basic.QosOk)

    def test_heartbeat_zero_turns_them_off(self, raw: Raw) -> None:
        connection = raw()
        connection.handshake(heartbeat=0)
        connection.socket.settimeout(2.5)
        with pytest.raises(TimeoutError):
            connection.read_frame()


class TestChannels:
    def test_a_closed_channel_number_can_be_opened_again(self, connect: Connect) -> None:
        connection = connect()
        for _ in range(20):
            channel = connection.channel(channel_number=7)
            channel.queue_declare("", exclusive=True)
            channel.close()

    def test_channels_of_one_connection_do_not_disturb_each_other(self, connect: Connect, queue: str) -> None:
        connection = connect()
        failing, healthy = connection.channel(), connection.channel()
        with pytest.raises(ChannelClosedByBroker):
            failing.queue_declare("no-such-queue", passive=True)
        publish(healthy, queue, b"still here")
        assert get(healthy, queue).body == b"still here"

    def test_opening_a_channel_twice_closes_the_connection_with_504(self, raw: Raw) -> None:
        connection = raw()
        connection.handshake()
        connection.open_channel(1)
        connection.send(commands.Channel.Open(), 1)
        assert closed_with(connection).reply_code == 504

    def test_a_method_on_a_channel_never_opened_closes_the_connection_with_504(self, raw: Raw) -> None:
        connection = raw()
        connection.handshake()
        connection.send(commands.Basic.Qos(0, 1), 5)
        assert closed_with(connection).reply_code == 504

    def test_channel_max_limits_channel_numbers(self, connect: Connect) -> None:
        connection = connect(channel_max=4)
        channels = [connection.channel() for _ in range(4)]
        assert all(channel.is_open for channel in channels)

    def test_one_channel_more_than_channel_max_is_refused_with_530(self, raw: Raw) -> None:
        connection = raw()
        connection.handshake(channel_max=4)
        for number in range(1, 5):
            connection.open_channel(number)
        connection.send(commands.Channel.Open(), 5)
        assert closed_with(connection).reply_code == 530

    def test_a_client_may_close_a_channel_while_deliveries_are_under_way(self, connect: Connect, queue: str) -> None:
        channel = connect().channel()
        publish(channel, queue, *[b"x"] * 200)
        consumer = connect().channel()
        Inbox(consumer, queue)
        consumer.close()
        assert consumer.is_closed
        eventually(lambda: ready_count(channel, queue) == 200, "all messages back in the queue")

    def test_channel_flow_is_answered(self, raw: Raw) -> None:
        connection = raw()
        connection.handshake()
        connection.open_channel()
        assert connection.rpc(commands.Channel.Flow(True), commands.Channel.FlowOk).active is True

    def test_closing_a_connection_ends_all_of_its_channels(self, connect: Connect, queue: str) -> None:
        observer = connect().channel()
        connection = connect()
        for _ in range(3):
            connection.channel().basic_consume(queue, lambda *_: None)
        assert observer.queue_declare(queue, passive=True).method.consumer_count == 3
        connection.close()
        eventually(
            lambda: observer.queue_declare(queue, passive=True).method.consumer_count == 0, "no consumer is left"
        )


class TestFraming:
    @pytest.mark.parametrize("size", [1, 131064, 131065, 2 * 131064, MEBIBYTE])
    def test_bodies_around_frame_max_arrive_whole(self, connect: Connect, queue: str, size: int) -> None:
        channel = connect().channel()
        body = bytes(range(256)) * (size // 256 + 1)
        body = body[:size]
        publish(channel, queue, body)
        assert get(channel, queue).body == body

    def test_a_megabyte_published_in_large_frames_is_delivered_in_small_ones(
        self, connect: Connect, raw: Raw, queue: str
    ) -> None:
        body = bytes(range(251)) * (MEBIBYTE // 251)
        publish(connect().channel(), queue, body)
        connection = raw()
        connection.handshake(frame_max=4096)
        connection.open_channel()
        connection.rpc(commands.Basic.Get(0, queue, True), commands.Basic.GetOk)
        header = connection.expect(pamqp.header.ContentHeader)
        assert header.body_size == len(body)
        received = b""
        while len(received) < len(body):
            part = connection.expect(pamqp.body.ContentBody).value
            assert len(part) <= 4096 - 8
            received += part
        assert received == body

    def test_a_megabyte_published_in_small_frames_is_delivered_in_large_ones(
        self, connect: Connect, raw: Raw, queue: str
    ) -> None:
        body = bytes(range(251)) * (MEBIBYTE // 251)
        connection = raw()
        connection.handshake(frame_max=4096)
        connection.open_channel()
        connection.publish(1, queue, body)
        connection.rpc(commands.Channel.Close(200, "done", 0, 0), commands.Channel.CloseOk)
        assert get(connect().channel(), queue).body == body

    def test_an_empty_body_has_no_body_frame(self, raw: Raw, queue: str) -> None:
        connection = raw()
        connection.handshake()
        connection.open_channel()
        connection.publish(1, queue, b"")
        connection.send(commands.Basic.Get(0, queue, True), 1)
        connection.expect(commands.Basic.GetOk)
        assert connection.expect(pamqp.header.ContentHeader).body_size == 0
        connection.rpc(commands.Basic.Qos(0, 1), commands.Basic.QosOk)

    def test_an_empty_body_is_consumed(self, channel: BlockingChannel, queue: str) -> None:
        publish(channel, queue, b"", b"after", b"")
        assert Inbox(channel, queue, auto_ack=True).wait(3)
        assert ready_count(channel, queue) == 0

    def test_bytes_may_arrive_one_at_a_time(self, raw: Raw, queue: str) -> None:
        connection = raw()
        connection.handshake()
        connection.open_channel()
        for byte in connection.encode_publish(1, queue, b"slowly"):
            connection.send_bytes(bytes([byte]))
        connection.send(commands.Basic.Get(0, queue, True), 1)
        connection.expect(commands.Basic.GetOk)
        assert connection.expect_body()[1] == b"slowly"

    def test_frames_of_two_channels_may_interleave(self, raw: Raw, queue: str) -> None:
        connection = raw()
        connection.handshake(frame_max=4096)
        connection.open_channel(1)
        connection.open_channel(2)
        bodies = {1: b"a" * 5000, 2: b"b" * 5000}
        for number, body in bodies.items():
            connection.send(commands.Basic.Publish(0, "", queue), number)
            connection.send(pamqp.header.ContentHeader(0, len(body), commands.Basic.Properties()), number)
        for part in (slice(0, 4000), slice(4000, 5000)):
            for number, body in bodies.items():
                connection.send(pamqp.body.ContentBody(body[part]), number)
        for number in (1, 2):
            connection.rpc(commands.Basic.Qos(0, 0), commands.Basic.QosOk, number)
        received = set()
        for _ in bodies:
            connection.send(commands.Basic.Get(0, queue, True), 1)
            connection.expect(commands.Basic.GetOk)
            received.add(connection.expect_body()[1])
        assert received == set(bodies.values())

    def test_every_property_comes_back_as_it_was_sent(self, channel: BlockingChannel, queue: str) -> None:
        sent = pika.BasicProperties(
            content_type="application/json",
            content_encoding="utf-8",
            headers={
                "text": "päivää",
                "number": -5,
                "large": 1 << 40,
                "yes": True,
                "nothing": None,
                "bytes": b"\x00\xff",
                "list": [1, "two", {"three": 3}],
                "table": {"a": {"b": "c"}},
            },
            delivery_mode=2,
            priority=7,
            correlation_id="correlation",
            reply_to="somewhere",
            expiration="60000",
            message_id="id-1",
            timestamp=1700000000,
            type="kind",
            user_id="guest",
            app_id="tests",
            cluster_id="cluster",
        )
        channel.basic_publish("", queue, b"body", sent)
        delivery = get(channel, queue)
        received = delivery.properties
        for name in vars(sent):
            assert getattr(received, name) == getattr(sent, name), name


class TestProtocolErrors:
    """What breaks the protocol ends the connection with the code the specification names, and nothing else."""

    @pytest.fixture
    def connection(self, raw: Raw) -> RawConnection:
        connection = raw()
        connection.handshake()
        connection.open_channel()
        return connection

    def test_a_frame_without_its_end_marker_is_a_frame_error(self, connection: RawConnection) -> None:
        connection.send_frame(FRAME_METHOD, 1, b"\x00\x3c\x00\x0a" + b"\x00" * 7, end=b"\x00")
        assert closed_with(connection).reply_code == 501

    def test_an_unknown_frame_type_is_a_frame_error(self, connection: RawConnection) -> None:
        connection.send_frame(77, 1, b"")
        connection.expect_closed()

    def test_a_frame_larger_than_negotiated_is_a_frame_error(self, connection: RawConnection) -> None:
        connection.send_bytes(bytes([FRAME_BODY]) + b"\x00\x01" + (1 << 30).to_bytes(4, "big"))
        assert closed_with(connection).reply_code == 501

    def test_a_body_without_a_publish_is_an_unexpected_frame(self, connection: RawConnection) -> None:
        connection.send_frame(FRAME_BODY, 1, b"where does this come from")
        assert closed_with(connection).reply_code == 505

    def test_a_header_without_a_publish_is_an_unexpected_frame(self, connection: RawConnection) -> None:
        connection.send(pamqp.header.ContentHeader(0, 5, commands.Basic.Properties()), 1)
        assert closed_with(connection).reply_code == 505

    def test_a_method_in_the_middle_of_a_publish_is_an_unexpected_frame(self, connection: RawConnection) -> None:
        connection.send(commands.Basic.Publish(0, "", "q"), 1)
        connection.send(commands.Basic.Qos(0, 1), 1)
        assert closed_with(connection).reply_code == 505

    def test_a_body_in_place_of_a_header_is_an_unexpected_frame(self, connection: RawConnection) -> None:
        connection.send(commands.Basic.Publish(0, "", "q"), 1)
        connection.send_frame(FRAME_BODY, 1, b"body")
        assert closed_with(connection).reply_code == 505

    @pytest.mark.millpond_only("RabbitMQ 3.10 waits for ever")
    def test_more_body_than_announced_ends_the_connection(self, connection: RawConnection) -> None:
        connection.send(commands.Basic.Publish(0, "", "q"), 1)
        connection.send(pamqp.header.ContentHeader(0, 3, commands.Basic.Properties()), 1)
        connection.send_frame(FRAME_BODY, 1, b"too much")
        connection.expect_closed()

    def test_an_unknown_method_ends_the_connection(self, connection: RawConnection) -> None:
        connection.send_frame(FRAME_METHOD, 1, b"\x00\x3c\x03\xe7")
        connection.expect_closed()

    def test_a_method_cut_short_is_a_syntax_error(self, connection: RawConnection) -> None:
        connection.send_frame(FRAME_METHOD, 1, b"\x00\x32\x00\x0a\x00\x00\x20abc")
        assert closed_with(connection).reply_code in (501, 502)

    def test_a_header_of_another_class_ends_the_connection(self, connection: RawConnection) -> None:
        connection.send(commands.Basic.Publish(0, "", "q"), 1)
        connection.send_frame(FRAME_HEADER, 1, b"\x00\x0a\x00\x00" + b"\x00" * 8 + b"\x00\x00")
        assert closed_with(connection).reply_code == 505

    def test_a_method_before_the_handshake_is_refused(self, raw: Raw) -> None:
        connection = raw()
        connection.send_bytes(PROTOCOL_HEADER)
        connection.expect(commands.Connection.Start)
        connection.send(commands.Queue.Declare(0, "q"), 1)
        connection.expect_closed()

    def test_other_connections_are_not_disturbed(self, raw: Raw, connect: Connect, queue: str) -> None:
        healthy = connect().channel()
        inbox = Inbox(healthy, queue, auto_ack=True)
        broken = raw()
        broken.handshake()
        broken.send_frame(99, 0, b"\x00" * 100, end=b"\x00")
        broken.expect_closed()
        publish(healthy, queue, b"fine")
        assert inbox.wait(1)[0].body == b"fine"

    def test_a_channel_error_is_answered_once_and_what_follows_is_ignored(self, raw: Raw, queue: str) -> None:
        connection = raw()
        connection.handshake()
        connection.open_channel(1)
        connection.open_channel(2)
        # Frames that were under way when the broker closed the channel do not count against the client.
        connection.publish(1, "x", b"1", exchange="no-such-exchange")
        for _ in range(10):
            connection.publish(1, queue, b"ignored")
        close = connection.expect(commands.Channel.Close, 1)
        assert close.reply_code == 404
        connection.send(commands.Channel.CloseOk(), 1)
        assert (
            connection.rpc(commands.Queue.Declare(0, queue, passive=True), commands.Queue.DeclareOk, 2).message_count
            == 0
        )
        connection.open_channel(1)


def test_many_connections_work_at_the_same_time(broker: Endpoint, unique: Unique) -> None:
    def work(name: str) -> list[bytes]:
        with pika.BlockingConnection(broker.parameters()) as connection:
            channel = connection.channel()
            channel.queue_declare(name, exclusive=True)
            publish(channel, name, *numbered(20))
            inbox = Inbox(channel, name, auto_ack=True)
            inbox.wait(20)
            return inbox.bodies

    with ThreadPoolExecutor(20) as threads:
        assert all(bodies == numbered(20) for bodies in threads.map(work, [unique("many") for _ in range(20)]))


def test_a_refused_port_is_a_connection_error_of_the_client(broker: Endpoint) -> None:
    # Guards the other tests: they rely on pika raising when there is nobody.
    with pytest.raises(AMQPConnectionError):
        pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", 1, connection_attempts=1))


def test_an_error_on_one_connection_names_the_method_that_caused_it(raw: Raw) -> None:
    connection = raw()
    connection.handshake()
    connection.open_channel()
    connection.send(commands.Queue.Declare(0, "no-such-queue", passive=True), 1)
    close = connection.expect(commands.Channel.Close, 1)
    assert (close.class_id, close.method_id) == (50, 10)


def test_channel_and_connection_refusals_are_told_apart(connect: Connect) -> None:
    connection = connect()
    with channel_refused(404, "NOT_FOUND - no queue 'no-such-queue' in vhost '/'"):
        connection.channel().queue_declare("no-such-queue", passive=True)
    assert connection.is_open
    with connection_refused(540):
        connection.channel().basic_qos(prefetch_size=100)
    assert connection.is_closed
