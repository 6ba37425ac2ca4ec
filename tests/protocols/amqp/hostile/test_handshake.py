"""Clients that do not get as far as an open connection."""

from __future__ import annotations

import pytest

from millpond.base.limits import FRAME_BYTES_MAX, HANDSHAKE_TIMEOUT_MS
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.field_table import encode_table
from millpond.protocols.amqp.methods import Method
from tests.protocols.amqp.harness import (
    BODY,
    CAPABILITIES,
    HEADER,
    HEARTBEAT_FRAME,
    PLAIN_GUEST,
    PROTOCOL_HEADER,
    Client,
    Pond,
    frame,
    method_frame,
)

AMQP_1_0 = b"AMQP\x00\x01\x00\x00"
AMQP_1_0_SASL = b"AMQP\x03\x01\x00\x00"
AMQP_0_8 = b"AMQP\x01\x01\x08\x00"
TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01"


def tuning(pond: Pond) -> Client:
    """A client that has logged in and was told the limits."""
    client = Client(pond)
    client.start()
    client.expect(methods.ConnectionTune)
    return client


class TestProtocolHeader:
    @pytest.mark.parametrize(
        "data",
        [
            AMQP_0_8,
            AMQP_1_0,
            AMQP_1_0_SASL,
            TLS_HELLO,
            b"AMQP\x00\x00\x09\x00",
            b"AMQP\x00\x00\x09\x02",
            b"GET / HTTP/1.1\r\nHost: pond\r\n\r\n",
            b"\x00",
            b"amqp",
            b"AMQPX",
            b"CONNECT\n\n\0",
            HEARTBEAT_FRAME,
        ],
    )
    @pytest.mark.parametrize("at_once", [True, False])
    def test_any_other_protocol_is_told_what_is_spoken_here_and_closed(
        self, pond: Pond, data: bytes, at_once: bool
    ) -> None:
        client = Client(pond)
        if at_once:
            client.feed(data)
        else:
            for at in range(len(data)):
                client.feed(data[at : at + 1])
        assert client.output() == PROTOCOL_HEADER
        assert client.transport.is_closed

    def test_the_header_may_come_byte_by_byte(self, pond: Pond) -> None:
        client = Client(pond)
        for at in range(7):
            client.feed(PROTOCOL_HEADER[at : at + 1])
            assert client.frames() == []
        client.feed(PROTOCOL_HEADER[7:])
        client.expect(methods.ConnectionStart)

    def test_a_second_header_is_no_frame(self, pond: Pond) -> None:
        client = Client(pond)
        client.feed(PROTOCOL_HEADER)
        client.frames()
        client.feed(PROTOCOL_HEADER * 2)
        assert client.expect_closed().code == 501


class TestOrder:
    @pytest.mark.parametrize(
        "method",
        [
            methods.ConnectionOpen(virtual_host="/"),
            methods.ConnectionTuneOk(frame_max=4096),
            methods.ConnectionStart(),
            methods.ConnectionSecureOk(),
            methods.ConnectionUpdateSecret(new_secret=b"guest"),
            methods.ConnectionCloseOk(),
            methods.BasicQos(),
            methods.ChannelOpen(),
        ],
    )
    def test_a_method_before_login_closes_the_connection(self, pond: Pond, method: Method) -> None:
        client = Client(pond)
        client.feed(PROTOCOL_HEADER)
        client.frames()
        client.send(0, method)
        assert client.expect_closed() == (
            504,
            "CHANNEL_ERROR - unexpected method in connection state starting",
            method.method_id,
        )

    @pytest.mark.parametrize("method", [methods.ConnectionOpen(), methods.ConnectionStartOk(response=PLAIN_GUEST)])
    def test_a_method_before_its_time_closes_the_connection(self, pond: Pond, method: Method) -> None:
        client = tuning(pond)
        client.send(0, method)
        assert client.expect_closed()[:2] == (504, "CHANNEL_ERROR - unexpected method in connection state tuning")

    def test_a_second_tune_ok_closes_the_connection(self, pond: Pond) -> None:
        client = tuning(pond)
        client.send(0, methods.ConnectionTuneOk(), methods.ConnectionTuneOk())
        assert client.expect_closed()[:2] == (504, "CHANNEL_ERROR - unexpected method in connection state opening")

    @pytest.mark.parametrize(
        "data", [method_frame(1, methods.ChannelOpen()), frame(HEADER, 1, b"\0"), frame(BODY, 1, b"x")]
    )
    def test_a_frame_of_a_channel_before_the_connection_is_open_is_unexpected(self, pond: Pond, data: bytes) -> None:
        for begin in (Client, tuning):
            client = begin(pond)
            if begin is Client:
                client.feed(PROTOCOL_HEADER)
                client.frames()
            client.feed(data)
            assert client.expect_closed().code == 505

    def test_a_client_may_send_all_of_its_handshake_at_once(self, pond: Pond) -> None:
        client = Client(pond)
        client.feed(
            PROTOCOL_HEADER
            + method_frame(0, methods.ConnectionStartOk(mechanism="PLAIN", response=PLAIN_GUEST))
            + method_frame(0, methods.ConnectionTuneOk())
            + method_frame(0, methods.ConnectionOpen(virtual_host="/"))
            + method_frame(1, methods.ChannelOpen())
        )
        assert [type(method) for method in client.methods()] == [
            methods.ConnectionStart,
            methods.ConnectionTune,
            methods.ConnectionOpenOk,
            methods.ChannelOpenOk,
        ]

    def test_a_client_may_give_up_during_the_handshake(self, pond: Pond) -> None:
        client = tuning(pond)
        client.call(0, methods.ConnectionClose(), methods.ConnectionCloseOk)
        client.pond.clock.advance(5_000)
        assert client.transport.is_closed


class TestLogin:
    @pytest.mark.parametrize("response", [b"", b"guest", b"\0guest", b"guest\0guest", b"\xff" * 50])
    def test_a_plain_response_that_is_none_is_a_syntax_error(self, pond: Pond, response: bytes) -> None:
        client = Client(pond)
        client.start(response=response)
        assert client.expect_closed().code == 502

    @pytest.mark.parametrize(
        "response",
        [
            b"\0guest\0",
            b"\0\0",
            b"\0\0guest",
            b"\0guest\0guest\0",
            b"\0\xff\xfe\0\xff",
            b"\0guest\0" + b"x" * 100_000,
            b"\0" + b"x" * 100_000 + b"\0guest",
            b"\0guest'; drop table users\0guest",
        ],
    )
    def test_wrong_credentials_are_refused(self, pond: Pond, response: bytes) -> None:
        client = Client(pond)
        client.start(response=response)
        assert client.expect_closed()[:2] == (
            403,
            (
                "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. "
                "For details see the broker logfile."
            ),
        )

    def test_a_client_without_the_capability_is_refused_without_a_word(self, pond: Pond) -> None:
        client = Client(pond)
        client.start(capabilities={}, response=b"\0guest\0wrong")
        assert client.frames() == []
        assert client.transport.is_closed

    @pytest.mark.parametrize(
        "response",
        [
            b"\x05",
            b"\xff" * 40,
            b"\x05LOGINS\xff\xff\xff\xff",
            encode_table({})[4:],
            encode_table({"LOGIN": "guest"})[4:],
            encode_table({"LOGIN": "guest", "PASSWORD": 5})[4:],
            encode_table({"LOGIN": ["guest"], "PASSWORD": {}})[4:],
        ],
    )
    def test_an_amqplain_response_that_is_none_is_a_syntax_error(self, pond: Pond, response: bytes) -> None:
        client = Client(pond)
        client.start(mechanism="AMQPLAIN", response=response)
        assert client.expect_closed().code == 502

    def test_amqplain_logs_in(self, pond: Pond) -> None:
        client = Client(pond)
        client.start(mechanism="AMQPLAIN", response=encode_table({"LOGIN": "guest", "PASSWORD": "guest"})[4:])
        client.expect(methods.ConnectionTune)

    @pytest.mark.parametrize("mechanism", ["", "plain", "external", "PLAIN AMQPLAIN", "x" * 255])
    def test_an_unknown_mechanism_is_invalid(self, pond: Pond, mechanism: str) -> None:
        client = Client(pond)
        client.start(mechanism=mechanism)
        closed = client.expect_closed()
        assert closed.code == 503
        assert closed.text.startswith(f"COMMAND_INVALID - unknown authentication mechanism '{mechanism[:100]}")

    def test_odd_client_properties_are_no_reason_to_fail(self, pond: Pond) -> None:
        odd: list[dict[str, object]] = [
            {"capabilities": 5},
            {"capabilities": ["x"]},
            {"capabilities": {"x": 1}},
            {"product": {}},
        ]
        for properties in odd:
            client = Client(pond)
            client.feed(PROTOCOL_HEADER)
            client.frames()
            client.send(0, methods.ConnectionStartOk(client_properties=properties, response=PLAIN_GUEST))
            client.expect(methods.ConnectionTune)

    def test_frames_that_arrive_while_the_password_is_verified_wait(self, pond: Pond) -> None:
        pond.broker.access.put_user("slow", pond.broker.access.hash_password(b"secret"))
        pond.broker.access.set_permission("slow", "/", ".*", ".*", ".*")
        client = Client(pond)
        client.feed(PROTOCOL_HEADER)
        client.frames()
        start_ok = methods.ConnectionStartOk(
            client_properties={"capabilities": CAPABILITIES}, response=b"\0slow\0secret"
        )
        client.send(0, start_ok)
        assert not client.transport.is_reading
        for byte in method_frame(0, methods.ConnectionTuneOk()) + method_frame(0, methods.ConnectionOpen()):
            client.feed(bytes([byte]))
        assert client.transport.sent.count(b"\xce") >= 1
        assert [type(method) for method in client.methods()] == [methods.ConnectionTune, methods.ConnectionOpenOk]
        assert client.transport.is_reading

    def test_a_client_may_leave_while_its_password_is_verified(self, pond: Pond) -> None:
        pond.broker.access.put_user("slow", pond.broker.access.hash_password(b"secret"))
        for password in (b"secret", b"wrong"):
            client = Client(pond)
            client.feed(PROTOCOL_HEADER)
            client.frames()
            client.send(0, methods.ConnectionStartOk(response=b"\0slow\0" + password))
            client.drop()
            assert client.frames() == []


class TestTuning:
    @pytest.mark.parametrize("frame_max", [1, 4095])
    def test_a_frame_max_below_the_least_is_not_allowed(self, pond: Pond, frame_max: int) -> None:
        client = tuning(pond)
        client.send(0, methods.ConnectionTuneOk(frame_max=frame_max))
        assert client.expect_closed() == (
            530,
            f"NOT_ALLOWED - negotiated frame_max = {frame_max} is lower than the minimum allowed value (4096)",
            methods.ConnectionTuneOk.method_id,
        )

    @pytest.mark.parametrize("frame_max", [FRAME_BYTES_MAX + 1, 0x7FFFFFFF, 0xFFFFFFFF])
    def test_a_frame_max_above_what_was_offered_is_not_allowed(self, pond: Pond, frame_max: int) -> None:
        client = tuning(pond)
        client.send(0, methods.ConnectionTuneOk(frame_max=frame_max))
        assert client.expect_closed()[:2] == (
            530,
            (
                f"NOT_ALLOWED - negotiated frame_max = {frame_max} is higher than the maximum allowed value "
                f"({FRAME_BYTES_MAX})"
            ),
        )

    def test_a_channel_max_above_what_was_offered_is_not_allowed(self, pond: Pond) -> None:
        client = tuning(pond)
        client.send(0, methods.ConnectionTuneOk(channel_max=2048))
        assert client.expect_closed()[:2] == (
            530,
            "NOT_ALLOWED - negotiated channel_max = 2048 is higher than the maximum allowed value (2047)",
        )

    def test_zero_takes_what_was_offered(self, pond: Pond) -> None:
        client = Client(pond)
        client.open(frame_max=0, channel_max=0)
        client.open_channel(2047)
        client.declare(2047, "q")
        client.publish(2047, "q", bytes(FRAME_BYTES_MAX))
        assert client.ready(2047, "q") == 1

    @pytest.mark.parametrize("name", ["", "nowhere", "/ ", "x" * 255])
    def test_an_unknown_virtual_host_is_not_allowed(self, pond: Pond, name: str) -> None:
        client = tuning(pond)
        client.send(0, methods.ConnectionTuneOk(), methods.ConnectionOpen(virtual_host=name))
        closed = client.expect_closed()
        assert (closed.code, closed.method_id) == (530, methods.ConnectionOpen.method_id)
        assert closed.text == f"NOT_ALLOWED - vhost {name} not found"[:255]

    def test_a_virtual_host_without_permission_is_not_allowed(self, pond: Pond) -> None:
        pond.broker.create_vhost("other")
        client = tuning(pond)
        client.send(0, methods.ConnectionTuneOk(), methods.ConnectionOpen(virtual_host="other"))
        assert client.expect_closed()[:2] == (
            530,
            "NOT_ALLOWED - access to vhost 'other' refused for user 'guest'",
        )


class TestTimeouts:
    @pytest.mark.parametrize("steps", range(4))
    def test_a_handshake_that_takes_too_long_is_cut(self, pond: Pond, steps: int) -> None:
        client = Client(pond)
        sent = [
            PROTOCOL_HEADER,
            method_frame(0, methods.ConnectionStartOk(response=PLAIN_GUEST)),
            method_frame(0, methods.ConnectionTuneOk(heartbeat=1)),
        ]
        for data in sent[:steps]:
            client.feed(data)
            client.frames()
        pond.clock.advance(HANDSHAKE_TIMEOUT_MS - 1)
        pond.rest()
        assert not client.transport.is_closed
        client.feed(b"" if steps else b"AMQP")
        pond.clock.advance(1)
        pond.rest()
        assert client.transport.is_closed

    def test_an_open_connection_is_not_bound_by_the_handshakes_time(self, client: Client) -> None:
        client.pond.clock.advance(10 * HANDSHAKE_TIMEOUT_MS)
        assert not client.transport.is_closed
        client.open_channel(3)

    def test_a_client_that_never_answers_a_close_is_cut(self, client: Client) -> None:
        client.send(9, methods.BasicQos())
        client.expect(methods.ConnectionClose)
        client.pond.clock.advance(4_999)
        assert not client.transport.is_closed
        client.pond.clock.advance(1)
        assert client.transport.is_closed

    def test_a_client_that_has_closed_but_keeps_its_socket_is_cut(self, client: Client) -> None:
        client.call(0, methods.ConnectionClose(), methods.ConnectionCloseOk)
        client.pond.clock.advance(4_999)
        assert not client.transport.is_closed
        client.pond.clock.advance(1)
        assert client.transport.is_aborted

    def test_a_socket_whose_client_has_closed_does_not_hold_up_the_end_of_the_broker(self, client: Client) -> None:
        client.call(0, methods.ConnectionClose(), methods.ConnectionCloseOk)
        client.connection.close_by_operator("shutdown")
        assert client.transport.is_closed
        assert client.frames() == []


class TestHeartbeats:
    def test_an_idle_connection_is_sent_one_per_half_interval(self, pond: Pond) -> None:
        client = Client(pond)
        client.open(heartbeat=10)
        for _ in range(20):
            pond.clock.advance(5_000)
            client.feed(HEARTBEAT_FRAME)
            sent = client.output()
            assert sent.endswith(HEARTBEAT_FRAME) or pond.clock.monotonic_ms() == 5_000
        assert not client.transport.is_closed

    def test_a_silent_client_is_cut_after_two_intervals(self, pond: Pond) -> None:
        client = Client(pond)
        client.open(heartbeat=10)
        client.feed(HEARTBEAT_FRAME)
        pond.clock.advance(19_999)
        assert not client.transport.is_closed
        pond.clock.advance(10_000)
        assert client.transport.is_aborted
        assert client.connection not in pond.broker.connections

    def test_the_messages_of_a_client_that_is_cut_go_back(self, pond: Pond) -> None:
        other = pond.client(channels=1)
        other.declare(1, "q")
        other.publish(1, "q")
        client = Client(pond)
        client.open(heartbeat=10, channels=1)
        client.consume(1, "q")
        assert len(client.messages()) == 1
        pond.clock.advance(40_000)
        assert client.transport.is_aborted
        assert other.ready(1, "q") == 1

    def test_any_byte_is_a_sign_of_life(self, pond: Pond) -> None:
        client = Client(pond)
        client.open(heartbeat=10, channels=1)
        for byte in method_frame(1, methods.BasicQos(prefetch_count=1)):
            client.feed(bytes([byte]))
            pond.clock.advance(15_000)
        assert not client.transport.is_closed

    def test_without_heartbeats_a_silent_client_stays(self, pond: Pond) -> None:
        client = pond.client(heartbeat=0)
        pond.clock.advance(10**9)
        assert client.frames() == []
        assert not client.transport.is_closed

    def test_a_client_whose_reading_is_paused_is_not_taken_for_dead(self, pond: Pond) -> None:
        client = Client(pond)
        client.open(heartbeat=10, channels=1)
        client.declare(1, "q")
        client.publish(1, "q")
        pond.broker.alarms.raise_alarm("disk")
        pond.clock.advance(600_000)
        assert not client.transport.is_closed
        pond.broker.alarms.clear_alarm("disk")
        pond.clock.advance(19_000)
        assert not client.transport.is_closed
        pond.clock.advance(20_000)
        assert client.transport.is_aborted
