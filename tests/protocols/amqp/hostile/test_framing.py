"""Frames that are malformed, out of place or too large: what is answered, and that it reaches nobody else."""

from __future__ import annotations

import pytest

from millpond.base.limits import FRAME_BYTES_MAX
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.methods import Method, encode_method
from tests.protocols.amqp.harness import (
    BODY,
    HEADER,
    HEARTBEAT,
    HEARTBEAT_FRAME,
    METHOD,
    Client,
    Closed,
    Pond,
    frame,
    header_frame,
    method_frame,
    pond_of,
    publish_frames,
)

PUBLISH = methods.BasicPublish(routing_key="q")
QOS = methods.BasicQos(prefetch_count=1)


def tried(client: Client, data: bytes) -> Closed:
    """What the connection is closed with, after which another client of the same broker works as before."""
    client.feed(data)
    closed = client.expect_closed()
    other = client.pond.client(channels=1)
    other.declare(1, "still-works")
    other.publish(1, "still-works")
    assert other.call(1, methods.QueueDelete(queue="still-works"), methods.QueueDeleteOk).message_count == 1
    return closed


class TestFrames:
    def test_a_frame_of_unknown_type_is_a_frame_error(self, client: Client) -> None:
        assert tried(client, frame(4, 1, b"abc")) == (
            501,
            "FRAME_ERROR - type 4, all octets = <<97,98,99>>: unknown_frame",
            0,
        )

    def test_a_frame_of_unknown_type_on_channel_0_is_a_frame_error(self, client: Client) -> None:
        closed = tried(client, frame(9, 0, bytes(range(20))))
        assert closed.code == 501
        assert closed.text == (
            "FRAME_ERROR - type 9, first 16 octets = <<0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15>>: unknown_frame"
        )

    @pytest.mark.parametrize("channel", [0, 1])
    @pytest.mark.parametrize("end", [b"\x00", b"\xcd", b"\xff"])
    def test_a_wrong_end_octet_is_a_frame_error(self, client: Client, channel: int, end: bytes) -> None:
        closed = tried(client, frame(METHOD, channel, encode_method(QOS), end))
        assert closed.code == 501
        assert closed.text.endswith(f"{{invalid_frame_end_marker,{end[0]}}}")

    @pytest.mark.parametrize("length", [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, FRAME_BYTES_MAX + 1])
    @pytest.mark.parametrize("channel", [0, 1, 7])
    def test_a_length_above_frame_max_is_refused_before_its_bytes_arrive(
        self, client: Client, length: int, channel: int
    ) -> None:
        head = bytes([METHOD]) + channel.to_bytes(2, "big") + length.to_bytes(4, "big") + b"\0"
        closed = tried(client, head)
        assert closed.code == 501
        assert closed.text == (
            f"FRAME_ERROR - type 1, all octets = <<>>: {{frame_too_large,{length},{FRAME_BYTES_MAX - 8}}}"
        )

    def test_the_negotiated_frame_max_counts(self, pond: Pond) -> None:
        client = Client(pond)
        client.open(frame_max=4096, channels=1)
        client.declare(1, "q")
        client.publish(1, "q", b"a" * 5000, frame_max=4096)
        assert client.ready(1, "q") == 1
        assert tried(client, publish_frames(1, "q", b"a" * 5000)).code == 501

    def test_a_frame_that_forgot_its_overhead_is_forgiven_as_rabbitmq_does(self, pond: Pond) -> None:
        client = Client(pond)
        client.open(frame_max=4096, channels=1)
        client.declare(1, "q")
        client.publish(1, "q", b"a" * 4096, frame_max=4104)
        assert client.ready(1, "q") == 1

    def test_deliveries_keep_to_the_frame_max_of_their_consumer(self, pond: Pond) -> None:
        publisher = pond.client(channels=1)
        publisher.declare(1, "q")
        body = bytes(range(256)) * 100
        publisher.publish(1, "q", body)
        consumer = Client(pond)
        consumer.open(frame_max=4096, channels=1)
        consumer.consume(1, "q")
        found = consumer.frames()
        assert all(len(each.payload) <= 4096 - 8 for each in found)
        assert b"".join([each.payload for each in found[2:]]) == body

    @pytest.mark.parametrize("channel", [0, 1])
    @pytest.mark.parametrize("payload", [b"", b"\x00", b"\x00\x3c\x00"])
    def test_a_method_frame_without_a_method_is_a_frame_error(
        self, client: Client, channel: int, payload: bytes
    ) -> None:
        assert tried(client, frame(METHOD, channel, payload)).code == 501

    @pytest.mark.parametrize("channel", [0, 1])
    def test_a_method_that_does_not_exist_closes_the_connection(self, client: Client, channel: int) -> None:
        assert tried(client, frame(METHOD, channel, b"\x03\xe7\x00\x01")).code == 540

    def test_a_method_that_is_cut_short_is_a_syntax_error(self, client: Client) -> None:
        payload = encode_method(methods.QueueDeclare(queue="q"))
        for size in range(4, len(payload)):
            other = client.pond.client(channels=1)
            assert tried(other, frame(METHOD, 1, payload[:size])).code == 502

    def test_bytes_after_a_method_are_a_syntax_error(self, client: Client) -> None:
        assert tried(client, frame(METHOD, 1, encode_method(QOS) + b"\0")).code == 502

    def test_a_heartbeat_is_no_method_and_needs_no_answer(self, client: Client) -> None:
        client.feed(HEARTBEAT_FRAME * 3)
        assert client.frames() == []

    def test_a_heartbeat_with_content_is_a_frame_error(self, client: Client) -> None:
        assert tried(client, frame(HEARTBEAT, 0, b"x")) == (
            501,
            "FRAME_ERROR - type 8, all octets = <<120>>: unknown_frame",
            0,
        )

    def test_a_heartbeat_on_a_channel_is_unexpected(self, client: Client) -> None:
        assert tried(client, frame(HEARTBEAT, 1, b"")).code == 505

    @pytest.mark.parametrize("kind", [HEADER, BODY])
    def test_content_on_channel_0_is_unexpected(self, client: Client, kind: int) -> None:
        assert tried(client, frame(kind, 0, b"\x00\x3c")) == (
            505,
            f"UNEXPECTED_FRAME - type {kind}, all octets = <<0,60>>",
            0,
        )


class TestContent:
    @pytest.mark.parametrize("data", [header_frame(1, 1), frame(BODY, 1, b"x"), frame(BODY, 1, b"")])
    def test_content_without_a_publish_is_unexpected(self, client: Client, data: bytes) -> None:
        closed = tried(client, data)
        assert closed[:2] == (505, "UNEXPECTED_FRAME - expected method frame, got non method frame instead")

    @pytest.mark.parametrize(
        "data",
        [method_frame(1, PUBLISH), method_frame(1, QOS), method_frame(1, methods.ChannelClose()), frame(BODY, 1, b"x")],
    )
    def test_anything_but_a_header_after_a_publish_is_unexpected(self, client: Client, data: bytes) -> None:
        closed = tried(client, method_frame(1, PUBLISH) + data)
        assert closed[:2] == (
            505,
            "UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead",
        )

    @pytest.mark.parametrize(
        "data",
        [
            method_frame(1, PUBLISH),
            method_frame(1, methods.BasicAck(delivery_tag=1)),
            method_frame(1, methods.ChannelClose()),
            header_frame(1, 3),
        ],
    )
    def test_anything_but_a_body_after_a_header_is_unexpected(self, client: Client, data: bytes) -> None:
        closed = tried(client, method_frame(1, PUBLISH) + header_frame(1, 3) + data)
        assert closed[:2] == (505, "UNEXPECTED_FRAME - expected content body, got non content body frame instead")

    @pytest.mark.parametrize("content_class", [0, 10, 61, 0xFFFF])
    def test_a_header_of_another_class_is_unexpected(self, client: Client, content_class: int) -> None:
        closed = tried(client, method_frame(1, PUBLISH) + header_frame(1, 1, content_class=content_class))
        assert closed == (
            505,
            f"UNEXPECTED_FRAME - expected content header for class 60, got one for class {content_class} instead",
            methods.BasicPublish.method_id,
        )

    @pytest.mark.parametrize("parts", [[b"abcd"], [b"ab", b"cd"], [b"abc", b"d"]])
    def test_a_body_that_is_longer_than_its_header_says_is_a_frame_error(
        self, client: Client, parts: list[bytes]
    ) -> None:
        data = method_frame(1, PUBLISH) + header_frame(1, 3)
        if parts[0] == b"abc":
            # The message is whole after its third byte, so what follows is no content of it.
            closed = tried(client, data + b"".join([frame(BODY, 1, part) for part in parts]))
            assert closed.code == 505
        else:
            closed = tried(client, data + b"".join([frame(BODY, 1, part) for part in parts]))
            assert closed[:2] == (501, "FRAME_ERROR - content body frame exceeds remaining content size")

    def test_a_body_frame_after_an_empty_message_is_unexpected(self, client: Client) -> None:
        assert tried(client, method_frame(1, PUBLISH) + header_frame(1, 0) + frame(BODY, 1, b"")).code == 505

    def test_the_content_of_several_channels_may_be_interleaved(self, client: Client) -> None:
        client.declare(1, "q")
        client.send(1, PUBLISH)
        client.send(2, PUBLISH)
        client.feed(header_frame(2, 2) + header_frame(1, 4))
        client.feed(frame(BODY, 1, b"on") + frame(BODY, 2, b"tw") + HEARTBEAT_FRAME + frame(BODY, 1, b"e1"))
        client.consume(1, "q")
        assert client.bodies() == [b"tw", b"one1"]

    def test_empty_body_frames_are_harmless_and_take_no_memory(self, client: Client) -> None:
        client.declare(1, "q")
        client.feed(method_frame(1, PUBLISH) + header_frame(1, 2))
        for _ in range(100):
            client.feed(frame(BODY, 1, b"") * 1000)
        channel = client.connection.channels[1]
        assert channel is not None
        assert len(channel._body_parts) <= 1
        client.feed(frame(BODY, 1, b"a") + frame(BODY, 1, b"") + frame(BODY, 1, b"b"))
        client.consume(1, "q")
        assert client.bodies() == [b"ab"]

    def test_a_body_in_frames_of_one_byte_takes_about_its_own_size(self, client: Client) -> None:
        client.declare(1, "q")
        body = bytes(range(256)) * 80
        client.feed(method_frame(1, PUBLISH) + header_frame(1, len(body)))
        client.feed(b"".join([frame(BODY, 1, body[at : at + 1]) for at in range(len(body) - 1)]))
        channel = client.connection.channels[1]
        assert channel is not None
        assert len(channel._body_parts) <= len(body) // 1024 + 1
        client.feed(frame(BODY, 1, body[-1:]))
        client.consume(1, "q")
        assert client.bodies() == [body]

    @pytest.mark.parametrize("size", [101, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
    def test_a_message_above_the_limit_closes_its_channel_only(self, size: int) -> None:
        with pond_of(message_bytes_max=100) as pond:
            client = pond.client(channels=2)
            client.declare(2, "q")
            client.feed(method_frame(1, PUBLISH) + header_frame(1, size) + frame(BODY, 1, b"x" * 64) * 4)
            assert client.expect_channel_closed(1) == (
                406,
                f"PRECONDITION_FAILED - message size {size} is larger than configured max size 100",
                methods.BasicPublish.method_id,
            )
            client.publish(1, "q", b"y" * 100)
            assert client.ready(2, "q") == 1

    def test_properties_that_do_not_decode_are_a_syntax_error(self, client: Client) -> None:
        good = b"\xff\xfc" + b"\x01a" * 2 + b"\0\0\0\0" + b"\2\0" + b"\x01a" * 2 + b"\x011" + b"\x01a"
        good += bytes(8) + b"\x01a\x05guest\x01a\x01a"
        client.declare(1, "q")
        client.publish(1, "q", b"x", properties=good)
        assert client.ready(1, "q") == 1
        for size in range(2, len(good)):
            other = client.pond.client(channels=1)
            assert tried(other, publish_frames(1, "q", b"x", properties=good[:size])).code in (502, 406)

    @pytest.mark.parametrize("flags", [b"\x00\x01", b"\x00\x02", b"\xff\xff"])
    def test_property_flags_that_stand_for_nothing_are_a_syntax_error(self, client: Client, flags: bytes) -> None:
        assert tried(client, publish_frames(1, "q", properties=flags)).code == 502

    def test_a_publish_whose_fields_are_cut_short_is_a_syntax_error(self, client: Client) -> None:
        payload = encode_method(methods.BasicPublish(exchange="ex", routing_key="key"))
        for size in range(4, len(payload)):
            other = client.pond.client(channels=1)
            assert tried(other, frame(METHOD, 1, payload[:size])).code == 502
        assert tried(client, frame(METHOD, 1, payload + b"\0")).code == 502


class TestChannels:
    @pytest.mark.parametrize(
        "data",
        [
            method_frame(3, QOS),
            method_frame(3, PUBLISH),
            header_frame(3, 1),
            frame(BODY, 3, b"x"),
            method_frame(3, methods.ChannelClose()),
            method_frame(3, methods.ChannelCloseOk()),
            method_frame(0xFFFF, QOS),
        ],
    )
    def test_a_frame_of_a_channel_that_is_not_open_closes_the_connection(self, client: Client, data: bytes) -> None:
        assert tried(client, data)[:2] == (504, "CHANNEL_ERROR - expected 'channel.open'")

    def test_a_frame_of_a_channel_that_the_client_closed_closes_the_connection(self, client: Client) -> None:
        client.call(1, methods.ChannelClose(), methods.ChannelCloseOk)
        assert tried(client, method_frame(1, QOS))[:2] == (504, "CHANNEL_ERROR - expected 'channel.open'")

    def test_opening_an_open_channel_closes_the_connection(self, client: Client) -> None:
        closed = tried(client, method_frame(1, methods.ChannelOpen()))
        assert closed == (504, "CHANNEL_ERROR - second 'channel.open' seen", methods.ChannelOpen.method_id)

    def test_frames_of_a_channel_that_the_broker_closed_are_ignored_until_the_client_agrees(
        self, client: Client
    ) -> None:
        client.declare(2, "q")
        client.send(1, methods.QueuePurge(queue="none"), QOS)
        client.publish(1, "q")
        client.feed(frame(BODY, 1, b"x") + header_frame(1, 0) + method_frame(1, methods.ChannelOpen()))
        closed = client.expect(methods.ChannelClose, 1)
        assert (closed.reply_code, closed.reply_text) == (404, "NOT_FOUND - no queue 'none' in vhost '/'")
        assert (closed.failing_class_id, closed.failing_method_id) == (50, 30)
        client.send(1, methods.ChannelCloseOk())
        client.open_channel(1)
        assert client.ready(2, "q") == 0

    def test_both_sides_may_close_a_channel_at_once(self, client: Client) -> None:
        client.send(1, methods.QueuePurge(queue="none"), methods.ChannelClose())
        found = client.methods()
        assert [type(method) for method in found] == [methods.ChannelClose, methods.ChannelCloseOk]
        client.open_channel(1)

    @pytest.mark.parametrize("number", [5, 2047, 65535])
    def test_a_channel_number_above_channel_max_is_not_allowed(self, pond: Pond, number: int) -> None:
        client = Client(pond)
        client.open(channels=4, channel_max=4)
        assert tried(client, method_frame(number, methods.ChannelOpen()))[:2] == (
            530,
            "NOT_ALLOWED - number of channels opened (4) has reached the negotiated channel_max (4)",
        )

    def test_channel_numbers_use_all_of_their_16_bits(self) -> None:
        with pond_of(channel_max=65535) as pond:
            client = pond.client()
            for number in (0x7FFF, 0x8000, 0xFFFF):
                client.open_channel(number)
                client.declare(number, "q")
                client.send(number, methods.ConfirmSelect())
                client.publish(number, "q", b"x" * 10)
                client.publish(number, "nowhere", b"x" * 10, mandatory=True)
                assert {each.channel for each in client.frames()} == {number}
                client.send(number, methods.BasicConsume(queue="q", consumer_tag="c"))
                assert {each.channel for each in client.frames()} == {number}
                client.call(number, methods.BasicCancel(consumer_tag="c"), methods.BasicCancelOk)

    @pytest.mark.parametrize(
        "method",
        [
            methods.BasicConsumeOk(consumer_tag="c"),
            methods.BasicQosOk(),
            methods.BasicGetEmpty(),
            methods.BasicRecoverOk(),
            methods.ChannelOpenOk(),
            methods.ConfirmSelectOk(),
            methods.ExchangeDeclareOk(),
            methods.QueueDeclareOk(queue="q"),
            methods.TxCommitOk(),
            methods.ConnectionOpen(virtual_host="/"),
            methods.ConnectionClose(),
        ],
    )
    def test_a_method_that_is_not_a_clients_to_send_on_a_channel_is_invalid(
        self, client: Client, method: Method
    ) -> None:
        closed = tried(client, method_frame(1, method))
        assert closed == (503, "COMMAND_INVALID - unimplemented method", method.method_id)

    @pytest.mark.parametrize(
        "method",
        [
            methods.ConnectionStart(),
            methods.ConnectionTune(),
            methods.ConnectionOpenOk(),
            methods.ConnectionBlocked(reason="x"),
            methods.ConnectionStartOk(response=b"\0guest\0guest"),
            methods.ConnectionTuneOk(frame_max=4096),
            methods.ConnectionOpen(virtual_host="/"),
            methods.ConnectionSecureOk(),
            methods.BasicQos(),
            methods.ChannelOpen(),
            methods.ConnectionCloseOk(),
        ],
    )
    def test_a_method_that_is_not_for_an_open_connection_is_an_error(self, client: Client, method: Method) -> None:
        closed = tried(client, method_frame(0, method))
        assert closed == (504, "CHANNEL_ERROR - unexpected method in connection state running", method.method_id)


SOFT: list[tuple[Method, int, str]] = [
    (methods.QueueDeclare(queue="none", passive=True), 404, "NOT_FOUND - no queue 'none' in vhost '/'"),
    (methods.QueueDeclare(queue="amq.mine"), 403, "ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix"),
    (methods.QueueDeclare(queue="q", durable=True), 406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue"),
    (methods.QueueDeclare(queue="mine"), 405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue"),
    (methods.QueueBind(queue="q", exchange="none"), 404, "NOT_FOUND - no exchange 'none' in vhost '/'"),
    (methods.QueueBind(queue="none", exchange="amq.topic"), 404, "NOT_FOUND - no queue 'none' in vhost '/'"),
    (methods.QueueBind(queue="q"), 403, "ACCESS_REFUSED - operation not permitted on the default exchange"),
    (methods.QueuePurge(queue="none"), 404, "NOT_FOUND - no queue 'none' in vhost '/'"),
    (methods.QueueBind(exchange="amq.topic"), 404, "NOT_FOUND - no previously declared queue"),
    (methods.ExchangeDeclare(exchange="none", passive=True), 404, "NOT_FOUND - no exchange 'none' in vhost '/'"),
    (methods.ExchangeDeclare(exchange="amq.topic", type="direct"), 406, "PRECONDITION_FAILED - inequivalent arg"),
    (methods.ExchangeDelete(exchange="amq.direct"), 403, "ACCESS_REFUSED - deletion of system exchange 'amq.direct'"),
    (methods.BasicConsume(queue="none"), 404, "NOT_FOUND - no queue 'none' in vhost '/'"),
    (methods.BasicGet(queue="none"), 404, "NOT_FOUND - no queue 'none' in vhost '/'"),
    (methods.BasicPublish(exchange="none"), 404, "NOT_FOUND - no exchange 'none' in vhost '/'"),
    (methods.BasicAck(delivery_tag=1), 406, "PRECONDITION_FAILED - unknown delivery tag 1"),
    (methods.BasicAck(delivery_tag=0), 406, "PRECONDITION_FAILED - unknown delivery tag 0"),
    (methods.BasicReject(delivery_tag=1), 406, "PRECONDITION_FAILED - unknown delivery tag 1"),
    (methods.BasicNack(delivery_tag=9, multiple=True), 406, "PRECONDITION_FAILED - unknown delivery tag 9"),
    (methods.TxCommit(), 406, "PRECONDITION_FAILED - channel is not transactional"),
    (methods.TxRollback(), 406, "PRECONDITION_FAILED - channel is not transactional"),
]

HARD: list[tuple[Method, int, str]] = [
    (methods.BasicQos(prefetch_size=1), 540, "NOT_IMPLEMENTED - prefetch_size!=0 (1)"),
    (methods.BasicRecover(requeue=False), 540, "NOT_IMPLEMENTED - requeue=false"),
    (methods.BasicRecoverAsync(requeue=False), 540, "NOT_IMPLEMENTED - requeue=false"),
    (methods.BasicPublish(immediate=True), 540, "NOT_IMPLEMENTED - immediate=true"),
    (methods.ChannelFlow(active=False), 540, "NOT_IMPLEMENTED - active=false"),
    (methods.BasicConsume(queue="q", consumer_tag="taken"), 530, "NOT_ALLOWED - attempt to reuse consumer tag 'taken'"),
]


class TestMistakes:
    @pytest.mark.parametrize(("method", "code", "text"), SOFT, ids=lambda value: str(getattr(value, "name", "")))
    def test_a_soft_error_closes_its_channel_and_no_other(
        self, pond: Pond, client: Client, method: Method, code: int, text: str
    ) -> None:
        owner = pond.client(channels=1)
        owner.declare(1, "mine", exclusive=True)
        client.declare(2, "q")
        client.send(1, method)
        closed = client.expect_channel_closed(1)
        assert closed.code == code
        assert closed.text.startswith(text)
        assert closed.method_id == method.method_id
        client.publish(2, "q")
        assert client.ready(2, "q") == 1

    @pytest.mark.parametrize(("method", "code", "text"), HARD, ids=lambda value: str(getattr(value, "name", "")))
    def test_a_hard_error_closes_the_connection(self, client: Client, method: Method, code: int, text: str) -> None:
        client.declare(1, "q")
        client.consume(1, "q", "taken")
        assert tried(client, method_frame(1, method)) == (code, text, method.method_id)

    def test_confirms_and_transactions_exclude_each_other(self, client: Client) -> None:
        client.call(1, methods.ConfirmSelect(), methods.ConfirmSelectOk)
        client.call(1, methods.ConfirmSelect(), methods.ConfirmSelectOk)
        client.send(1, methods.TxSelect())
        assert client.expect_channel_closed(1)[:2] == (
            406,
            "PRECONDITION_FAILED - cannot switch from confirm to tx mode",
        )
        client.call(1, methods.TxSelect(), methods.TxSelectOk)
        client.call(1, methods.TxSelect(), methods.TxSelectOk)
        client.send(1, methods.ConfirmSelect())
        assert client.expect_channel_closed(1)[:2] == (
            406,
            "PRECONDITION_FAILED - cannot switch from tx to confirm mode",
        )

    def test_a_reply_text_is_cut_to_what_fits_also_inside_a_character(self, client: Client) -> None:
        for stem in ("é", "aé", "日本"):
            name = (stem * 200).encode()[:254].decode("utf-8", "ignore")
            client.send(1, methods.QueueDeclare(queue=name, passive=True))
            closed = client.expect_channel_closed(1)
            assert closed.code == 404
            assert len(closed.text.encode()) <= 255

    def test_names_that_are_no_utf8_are_refused_but_routing_keys_may_be_anything(self, client: Client) -> None:
        client.declare(1, "q")
        client.publish(1, "\udcff\udcfe", mandatory=True)
        (returned,) = client.messages()
        assert isinstance(returned.method, methods.BasicReturn)
        assert returned.method.routing_key == "\udcff\udcfe"
        client.publish(1, "q", exchange="\udcff")
        assert client.expect_channel_closed(1).code == 404
        payload = encode_method(methods.QueueDeclare(queue="\udcff"))
        assert tried(client, frame(METHOD, 1, payload))[:2] == (501, "FRAME_ERROR - Malformed UTF-8 in shortstr")

    def test_after_a_closed_connection_nothing_is_handled_but_the_answer(self, client: Client) -> None:
        client.declare(1, "q")
        client.send(3, QOS)
        client.publish(1, "q")
        client.send(0, methods.ConnectionOpen(virtual_host="/"))
        client.feed(frame(77, 0, b"??") + frame(HEADER, 0, b"") + frame(METHOD, 1, b""))
        assert client.expect_closed().code == 504
        assert client.pond.client(channels=1).ready(1, "q") == 0

    def test_both_sides_may_close_the_connection_at_once(self, client: Client) -> None:
        client.send(3, QOS)
        client.send(0, methods.ConnectionClose())
        found = [type(method) for method in client.methods()]
        assert found == [methods.ConnectionClose, methods.ConnectionCloseOk]
        client.send(0, methods.ConnectionCloseOk())
        assert client.transport.is_closed

    def test_bytes_after_the_end_are_read_and_ignored(self, client: Client) -> None:
        client.call(0, methods.ConnectionClose(), methods.ConnectionCloseOk)
        # A socket that is closed before they are read is reset, and the client may never see our close-ok.
        assert not client.transport.is_closed
        assert client.transport.is_reading
        client.feed(b"anything")
        client.publish(1, "q")
        assert client.frames() == []


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("x-max-length", (1 << 64) - 1),
            ("x-max-length-bytes", (1 << 64) - 1),
            ("x-message-ttl", (1 << 64) - 1),
            ("x-max-length", -1),
            ("x-max-length", True),
            ("x-max-length", "many"),
            ("x-max-length", None),
            ("x-overflow", []),
            ("x-overflow", {}),
            ("x-queue-type", {"a": [1]}),
            ("x-dead-letter-exchange", 5),
            ("x-message-ttl", 1.5),
        ],
    )
    def test_an_argument_without_sense_closes_the_channel(self, client: Client, name: str, value: object) -> None:
        client.send(1, methods.QueueDeclare(queue="q", arguments={name: value}))
        assert client.expect_channel_closed(1).code == 406

    def test_any_table_is_taken_as_arguments_and_compared(self, client: Client) -> None:
        nested: object = "x"
        for _ in range(28):
            nested = [nested]
        arguments: dict[str, object] = {
            "x-any": nested,
            "\udcff": "\udcfe",
            "float": float("nan"),
            "$bytes": b"\xff\0",
            "big": (1 << 64) - 1,
            "": {},
        }
        for durable in (False, True):
            name = f"q-{durable}"
            for _ in range(2):
                client.declare(1, name, durable=durable, arguments=arguments)
            for exchange in ("amq.direct", "amq.headers", "amq.topic"):
                bind = methods.QueueBind(queue=name, exchange=exchange, routing_key="a.#", arguments=arguments)
                client.call(1, bind, methods.QueueBindOk)
                client.call(1, bind, methods.QueueBindOk)
            unbind = methods.QueueUnbind(queue=name, exchange="amq.headers", routing_key="a.#", arguments=arguments)
            client.call(1, unbind, methods.QueueUnbindOk)

    def test_a_dead_letter_routing_key_that_fits_no_frame_is_refused(self, client: Client) -> None:
        arguments: dict[str, object] = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "k" * 256}
        client.send(1, methods.QueueDeclare(queue="q", arguments=arguments))
        assert client.expect_channel_closed(1).code == 406
