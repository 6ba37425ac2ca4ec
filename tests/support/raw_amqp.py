"""An AMQP 0-9-1 client that hides nothing: frames in the order of the wire, and any nonsense a test wants to send."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import pamqp.base
import pamqp.body
import pamqp.commands as commands
import pamqp.frame
import pamqp.header as headers
import pamqp.heartbeat

from tests.support.endpoint import Endpoint

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
FRAME_END = b"\xce"
FRAME_METHOD, FRAME_HEADER, FRAME_BODY, FRAME_HEARTBEAT = 1, 2, 3, 8
READ_DEADLINE_S = 15.0

Frame = Any
Method = TypeVar("Method")


class RawConnection:
    """One socket. Nothing is sent or answered that the test does not ask for."""

    def __init__(self, endpoint: Endpoint, *, receive_buffer_bytes: int | None = None) -> None:
        self.endpoint = endpoint
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(READ_DEADLINE_S)
        try:
            self.socket.connect((endpoint.host, endpoint.port))
        except OSError:
            self.socket.close()
            raise
        self.frame_max = 131072
        self.tune: commands.Connection.Tune | None = None
        self._buffer = b""

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    # --- bytes and frames

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send(self, frame: Frame, channel: int = 0) -> None:
        self.send_bytes(pamqp.frame.marshal(frame, channel))

    def send_frame(self, kind: int, channel: int, payload: bytes, end: bytes = FRAME_END) -> None:
        head = bytes([kind]) + channel.to_bytes(2, "big") + len(payload).to_bytes(4, "big")
        self.send_bytes(head + payload + end)

    def read_frame(self) -> tuple[int, Frame]:
        """The next frame and its channel. Raises EOFError when the broker has closed."""
        if self._peek(8)[:4] == b"AMQP":
            raise ProtocolRefused(self._buffer[:8])
        frame_bytes = 7 + int.from_bytes(self._buffer[3:7], "big") + 1
        data = self._peek(frame_bytes)
        self._buffer = self._buffer[frame_bytes:]
        assert data[-1:] == FRAME_END, f"a frame that does not end: {data[:64]!r}"
        _, channel, frame = pamqp.frame.unmarshal(data)
        return channel, frame

    def _peek(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self._receive()
            if not data:
                raise EOFError("the broker closed the connection")
            self._buffer += data
        return self._buffer[:count]

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(1 << 16)
        except ConnectionResetError:
            return b""

    def expect(self, kind: type[Method], channel: int | None = None) -> Method:
        """The next frame that is no heartbeat; it must be a `kind`."""
        while True:
            number, frame = self.read_frame()
            if isinstance(frame, pamqp.heartbeat.Heartbeat):
                continue
            assert isinstance(frame, kind), f"expected {kind.__name__}, got {describe(frame)}"
            assert channel is None or number == channel
            return frame

    def expect_body(self) -> tuple[headers.ContentHeader, bytes]:
        """A content header and all of its body frames."""
        header = self.expect(headers.ContentHeader)
        body = b""
        while len(body) < header.body_size:
            body += self.expect(pamqp.body.ContentBody).value
        return header, body

    def expect_closed(self) -> None:
        """The broker ends the TCP connection, whatever it says before. A connection.close is answered."""
        try:
            while True:
                _, frame = self.read_frame()
                if isinstance(frame, commands.Connection.Close):
                    self.send(commands.Connection.CloseOk())
        except (EOFError, BrokenPipeError, ConnectionResetError, ProtocolRefused):
            pass

    def read_until(self, done: Callable[[Frame], bool]) -> list[Frame]:
        """All frames up to and with the first that is `done`."""
        seen: list[Frame] = []
        while not seen or not done(seen[-1]):
            seen.append(self.read_frame()[1])
        return seen

    # --- the usual conversation

    def handshake(
        self,
        *,
        heartbeat: int = 0,
        frame_max: int | None = None,
        channel_max: int | None = None,
        capabilities: Any = None,
    ) -> None:
        """Log in and open the virtual host; `tune` keeps what the broker proposed."""
        self.start(capabilities=capabilities)
        self.tune = self.expect(commands.Connection.Tune)
        self.frame_max = frame_max if frame_max is not None else self.tune.frame_max
        self.send(
            commands.Connection.TuneOk(
                channel_max if channel_max is not None else self.tune.channel_max, self.frame_max, heartbeat
            )
        )
        self.send(commands.Connection.Open(self.endpoint.virtual_host))
        self.expect(commands.Connection.OpenOk)

    def start(self, mechanism: str = "PLAIN", response: str | None = None, capabilities: Any = None) -> None:
        self.send_bytes(PROTOCOL_HEADER)
        self.expect(commands.Connection.Start)
        properties = {"product": "raw", "capabilities": capabilities or {}}
        if response is None:
            response = f"\0{self.endpoint.username}\0{self.endpoint.password}"
        self.send(commands.Connection.StartOk(properties, mechanism, response, "en_US"))

    def open_channel(self, number: int = 1) -> int:
        self.send(commands.Channel.Open(), number)
        self.expect(commands.Channel.OpenOk, number)
        return number

    def rpc(self, request: Frame, answer: type[Method], channel: int = 1) -> Method:
        self.send(request, channel)
        return self.expect(answer, channel)

    def encode_publish(
        self,
        channel: int,
        routing_key: str,
        body: bytes,
        *,
        exchange: str = "",
        mandatory: bool = False,
        properties: commands.Basic.Properties | None = None,
    ) -> bytes:
        """A whole publish as bytes, so that many can go out in one write."""
        parts = [
            pamqp.frame.marshal(commands.Basic.Publish(0, exchange, routing_key, mandatory), channel),
            pamqp.frame.marshal(
                headers.ContentHeader(0, len(body), properties or commands.Basic.Properties()), channel
            ),
        ]
        room = self.frame_max - 8
        parts.extend(
            pamqp.frame.marshal(pamqp.body.ContentBody(body[start : start + room]), channel)
            for start in range(0, len(body), room)
        )
        return b"".join(parts)

    def publish(self, channel: int, routing_key: str, body: bytes, **options: Any) -> None:
        self.send_bytes(self.encode_publish(channel, routing_key, body, **options))


class ProtocolRefused(Exception):
    """The broker answered with a protocol header: it does not speak what the client asked for."""


def describe(frame: Frame) -> str:
    if isinstance(frame, pamqp.base.Frame):
        return f"{frame.name} {dict(frame)}"
    return repr(frame)
