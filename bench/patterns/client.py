"""A lean AMQP client for asyncio: one connection, one channel, frames read and written by hand where messages go.

Its cost for a delivery and its acknowledgement is some 30 µs of CPU, so that one process can be fifty consumers. It
runs on a loop of `select`, whose timers keep to the microsecond: those of epoll are rounded up to a whole millisecond,
which would be a tenth of the work that a consumer is given here.
"""

from __future__ import annotations

import asyncio
import selectors
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import pamqp.base
import pamqp.commands as commands
import pamqp.frame
import pamqp.header

from bench.peers import RunningPeer

_T = TypeVar("_T")

_HEAD: Final = struct.Struct(">BHI")
_DELIVER: Final = b"\x00\x3c\x00\x3c"
_ACK: Final = b"\x00\x3c\x00\x50"
_NACK: Final = b"\x00\x3c\x00\x78"
_ACK_FRAME: Final = struct.Struct(">BHIHHQBB")
_FRAME_BYTES_MAX: Final = 131_072
_ANSWER_SECONDS_MAX: Final = 60.0


class ClientError(Exception):
    """The broker closed the channel or the connection, refused a message, or did not answer."""


OnDelivery = Callable[[int, bool, bytes], None]
"""Called with the delivery tag, whether it was delivered before, and the body."""


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run `main` on a loop whose timers are precise."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(main)


class Client(asyncio.Protocol):
    """`consume` and `publish` may be used on one client, but their figures are cleaner on two."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._answer: asyncio.Future[pamqp.base.Frame] | None = None
        self._on_delivery: OnDelivery | None = None
        self._tag = 0
        self._redelivered = False
        self._missing_bytes = 0
        self._body: list[bytes] = []
        self.published = 0
        self.confirmed = 0
        self.on_confirm: Callable[[int], None] | None = None
        """Called with the number of the last message that is confirmed, which is all up to it."""
        self._confirmed_apart: set[int] = set()
        self.failure: ClientError | None = None

    @classmethod
    async def connect(cls, peer: RunningPeer, prefetch: int = 0, confirms: bool = False) -> Client:
        """A client whose channel is open."""
        _, client = await asyncio.get_running_loop().create_connection(cls, peer.host, peer.port)
        client._write(b"AMQP\x00\x00\x09\x01")
        await client._expect(0, None)
        await client._expect(0, commands.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"))
        client._send(0, commands.Connection.TuneOk(2047, _FRAME_BYTES_MAX, 0))
        await client.call(commands.Connection.Open("/"), 0)
        await client.call(commands.Channel.Open())
        if prefetch:
            await client.call(commands.Basic.Qos(0, prefetch, False))
        if confirms:
            await client.call(commands.Confirm.Select())
        return client

    # --- Requests -----------------------------------------------------------------------------------------------

    async def call(self, method: pamqp.base.Frame, channel: int = 1) -> pamqp.base.Frame:
        """Send a method and return its answer."""
        return await self._expect(channel, method)

    async def declare(self, queue: str, durable: bool = False, passive: bool = False) -> int:
        """How many messages are ready in the queue."""
        declared = await self.call(commands.Queue.Declare(0, queue, passive, durable, False, False, False, {}))
        assert isinstance(declared, commands.Queue.DeclareOk)
        return declared.message_count or 0

    async def delete(self, queue: str) -> None:
        await self.call(commands.Queue.Delete(0, queue))

    async def consume(self, queue: str, on_delivery: OnDelivery) -> None:
        self._on_delivery = on_delivery
        await self.call(commands.Basic.Consume(0, queue, "", False, False, False, False, {}))

    def ack(self, tag: int) -> None:
        self._write(_ACK_FRAME.pack(1, 1, 13, 60, 80, tag, 0, 0xCE))

    def publish(self, frames: bytes, count: int = 1) -> None:
        """Send what `message_frames` has made, `count` messages of it."""
        self.published += count
        self._write(frames)

    def stop_reading(self) -> None:
        """From now on whatever comes stays in the socket."""
        assert self._transport is not None
        self._transport.pause_reading()

    def kill(self) -> None:
        """Reset the connection, as a process does that is killed with unread data."""
        assert self._transport is not None
        self._on_delivery = None
        self._transport.abort()

    async def close(self) -> None:
        assert self._transport is not None
        await self.call(commands.Connection.Close(200, "", 0, 0), 0)
        self._transport.close()

    # --- Frames -------------------------------------------------------------------------------------------------

    async def _expect(self, channel: int, method: pamqp.base.Frame | None) -> pamqp.base.Frame:
        if self.failure is not None:
            raise self.failure
        self._answer = asyncio.get_running_loop().create_future()
        if method is not None:
            self._send(channel, method)
        async with asyncio.timeout(_ANSWER_SECONDS_MAX):
            return await self._answer

    def _send(self, channel: int, method: pamqp.base.Frame) -> None:
        self._write(pamqp.frame.marshal(method, channel))

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ClientError(f"the connection is lost: {exc}"))

    def _fail(self, failure: ClientError) -> None:
        self.failure = self.failure or failure
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(failure)

    def data_received(self, data: bytes) -> None:
        if self._data:
            data = self._data + data
        position, size = 0, len(data)
        while size - position >= 8:
            kind, _, length = _HEAD.unpack_from(data, position)
            end = position + 8 + length
            if end > size:
                break
            self._frame(kind, data, position + 7, end - 1)
            position = end
        self._data = data[position:]

    def _frame(self, kind: int, data: bytes, start: int, end: int) -> None:
        if kind == 1:
            method = data[start : start + 4]
            if method == _DELIVER:
                at = start + 5 + data[start + 4]
                self._tag = int.from_bytes(data[at : at + 8], "big")
                self._redelivered = data[at + 8] & 1 != 0
            elif method == _ACK:
                self._confirm(int.from_bytes(data[start + 4 : start + 12], "big"), data[start + 12] & 1 != 0)
            elif method == _NACK:
                self._fail(ClientError("a message was refused"))
            else:
                self._method(data[start - 7 : end + 1])
        elif kind == 2:
            self._missing_bytes = int.from_bytes(data[start + 4 : start + 12], "big")
            self._body = []
            if self._missing_bytes == 0:
                self._deliver()
        elif kind == 3:
            self._body.append(data[start:end])
            self._missing_bytes -= end - start
            if self._missing_bytes == 0:
                self._deliver()

    def _deliver(self) -> None:
        if self._on_delivery is not None:
            self._on_delivery(self._tag, self._redelivered, b"".join(self._body))

    def _confirm(self, tag: int, multiple: bool) -> None:
        # RabbitMQ confirms single messages in any order.
        if multiple:
            self.confirmed = max(self.confirmed, tag)
        elif tag == self.confirmed + 1:
            self.confirmed = tag
        else:
            self._confirmed_apart.add(tag)
        while self._confirmed_apart and self.confirmed + 1 in self._confirmed_apart:
            self.confirmed += 1
            self._confirmed_apart.discard(self.confirmed)
        if self.on_confirm is not None:
            self.on_confirm(self.confirmed)

    def _method(self, frame: bytes) -> None:
        _, channel, method = pamqp.frame.unmarshal(frame)
        if isinstance(method, commands.Channel.Close | commands.Connection.Close):
            self._fail(ClientError(f"the broker closes channel {channel}: {method.reply_code} {method.reply_text}"))
        elif self._answer is not None and not self._answer.done():
            assert isinstance(method, pamqp.base.Frame)
            self._answer.set_result(method)


def message_frames(exchange: str, routing_key: str, body: bytes, persistent: bool = False) -> bytes:
    """One message, ready to be sent on channel 1. The body must fit a frame."""
    properties = commands.Basic.Properties(delivery_mode=2 if persistent else 1)
    return (
        pamqp.frame.marshal(commands.Basic.Publish(0, exchange, routing_key, False, False), 1)
        + pamqp.frame.marshal(pamqp.header.ContentHeader(0, len(body), properties), 1)
        + _HEAD.pack(3, 1, len(body))
        + body
        + b"\xce"
    )


async def fill(client: Client, queue: str, body: bytes, count: int) -> None:
    """Publish `count` transient messages to the queue, and wait until they are in it."""
    frames = message_frames("", queue, body)
    batch = max(1, 262_144 // len(frames))
    for sent in range(0, count, batch):
        size = min(batch, count - sent)
        client.publish(frames * size, size)
        # An answered request: the broker has read all before it.
        await client.declare(queue, passive=True)
    async with asyncio.timeout(_ANSWER_SECONDS_MAX):
        while await client.declare(queue, passive=True) < count:
            await asyncio.sleep(0.02)
