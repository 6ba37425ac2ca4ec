"""A real node under clients that hold it up, flood it, or never read. In each case another client goes on."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from millpond.config import Settings
from millpond.protocols.amqp import methods
from millpond.protocols.amqp.methods import Method, decode_method
from millpond.server.node import Node
from tests.protocols.amqp.harness import (
    CAPABILITIES,
    METHOD,
    PLAIN_GUEST,
    PROTOCOL_HEADER,
    Frame,
    frame,
    header_frame,
    method_frame,
    publish_frames,
)

DEADLINE_S = 20.0
CONNECTIONS = 2_000
QUEUES = 5_000
LOGIN = method_frame(0, methods.ConnectionStartOk(response=PLAIN_GUEST))


class Peer:
    """A client of asyncio streams. Nothing is read that the test does not ask for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read(self) -> Frame:
        async with asyncio.timeout(DEADLINE_S):
            head = await self.reader.readexactly(7)
            rest = await self.reader.readexactly(int.from_bytes(head[3:7], "big") + 1)
        assert rest[-1:] == b"\xce"
        return Frame(head[0], int.from_bytes(head[1:3], "big"), rest[:-1])

    async def read_method(self) -> Method:
        while True:
            found = await self.read()
            if found.kind == METHOD:
                return decode_method(found.payload)

    async def call(self, channel: int, method: Method) -> Method:
        await self.send(method_frame(channel, method))
        return await self.read_method()

    async def closed(self) -> bytes:
        """All that comes before the broker ends the connection."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def cut(self) -> None:
        self.writer.transport.abort()


class Pool:
    """A node on a port of its own, and the peers that were connected to it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.address = node.addresses["amqp"]
        self._peers: list[Peer] = []

    async def peer(self, receive_buffer: int | None = None) -> Peer:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.address)
        peer = Peer(*await asyncio.open_connection(sock=sock, limit=1 << 16))
        self._peers.append(peer)
        return peer

    async def client(self, channels: int = 1, receive_buffer: int | None = None) -> Peer:
        peer = await self.peer(receive_buffer)
        start_ok = methods.ConnectionStartOk(client_properties={"capabilities": CAPABILITIES}, response=PLAIN_GUEST)
        await peer.send(
            PROTOCOL_HEADER
            + method_frame(0, start_ok)
            + method_frame(0, methods.ConnectionTuneOk())
            + method_frame(0, methods.ConnectionOpen(virtual_host="/"))
        )
        for kind in (methods.ConnectionStart, methods.ConnectionTune, methods.ConnectionOpenOk):
            assert isinstance(await peer.read_method(), kind)
        for number in range(1, channels + 1):
            await peer.call(number, methods.ChannelOpen())
        return peer

    async def check_serves(self, within_s: float = 2.0) -> None:
        """A new client connects, publishes and gets its message back."""
        others = len(self.node._protocols)
        async with asyncio.timeout(within_s):
            client = await self.client()
            await client.call(1, methods.QueueDeclare(queue="served", exclusive=True))
            await client.send(publish_frames(1, "served", b"yes"))
            assert isinstance(await client.call(1, methods.BasicGet(queue="served", no_ack=True)), methods.BasicGetOk)
            assert isinstance(await client.call(0, methods.ConnectionClose()), methods.ConnectionCloseOk)
            client.cut()
            await self.until(f"len(node._protocols) <= {others}")

    async def until(self, condition: str) -> None:
        """Wait until an expression of `node` and `broker` holds."""
        give_up_at = time.monotonic() + DEADLINE_S
        names = {"node": self.node, "broker": self.node.broker}
        while not eval(condition, names):
            assert time.monotonic() < give_up_at, f"{condition} does not come true"
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        for peer in self._peers:
            peer.cut()
        await self.until("not node._protocols")


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[Pool]:
    node = Node(Settings.of(amqp="127.0.0.1:0", admin="off", memory=True, **settings))
    await node.start()
    pool = Pool(node)
    try:
        yield pool
        await pool.check_serves()
        await pool.close()
        assert node.broker.connections == {}
        assert node.broker.alarms.reasons == []
    finally:
        await node.stop()


async def test_clients_that_trickle_do_not_stop_others() -> None:
    async with running(handshake_timeout_ms=1_000) as pool:
        silent = [await pool.peer() for _ in range(50)]
        trickling = [await pool.peer() for _ in range(50)]
        slow_body = await pool.client()
        await slow_body.send(method_frame(1, methods.BasicPublish(routing_key="x")) + header_frame(1, 1000))
        started = time.monotonic()
        for number in range(40):
            for peer in trickling:
                if not peer.writer.is_closing():
                    peer.writer.write((PROTOCOL_HEADER + b"\x01\0\0\0\0\x10\0" + bytes(100))[number : number + 1])
            await slow_body.send(frame(3, 1, b"x"))
            await pool.check_serves()
        for peer in silent + trickling:
            await peer.closed()
        assert time.monotonic() - started < DEADLINE_S
        await pool.until("len(node._protocols) == 1")


async def test_two_thousand_connections_come_and_go() -> None:
    async with running() as pool:
        for _ in range(CONNECTIONS // 200):
            peers = await asyncio.gather(*[pool.peer() for _ in range(200)])
            for number, peer in enumerate(peers):
                if number % 4 == 1:
                    peer.writer.write(PROTOCOL_HEADER)
                elif number % 4 == 2:
                    peer.writer.write(PROTOCOL_HEADER + LOGIN)
                elif number % 4 == 3:
                    peer.writer.write(b"GET / HTTP/1.0\r\n\r\n")
            await asyncio.sleep(0)
            for peer in peers:
                peer.cut()
            await pool.check_serves()
        await pool.until("not node._protocols")


@pytest.mark.parametrize("no_ack", [False, True])
async def test_a_consumer_that_never_reads_takes_a_bounded_share_of_memory(no_ack: bool) -> None:
    async with running() as pool:
        publisher = await pool.client()
        await publisher.call(1, methods.QueueDeclare(queue="q"))
        stuck = await pool.client(receive_buffer=4096)
        await stuck.send(method_frame(1, methods.BasicConsume(queue="q", no_ack=no_ack)))
        body = bytes(100_000)
        for _ in range(300):
            await publisher.send(publish_frames(1, "q", body))
        await publisher.call(1, methods.BasicQos())
        (protocol,) = [
            each for each in pool.node._protocols
            if each._connection is not None and each._connection.paused
        ]  # fmt: skip
        assert protocol._transport is not None
        assert protocol._transport.get_write_buffer_size() < 4 * 1024 * 1024
        await pool.check_serves()
        # What it does not take, others can have.
        declared = await publisher.call(1, methods.QueueDeclare(queue="q", passive=True))
        assert isinstance(declared, methods.QueueDeclareOk)
        assert declared.message_count > 200
        stuck.cut()
        await publisher.call(1, methods.QueueDelete(queue="q"))


async def test_a_client_that_asks_for_much_and_never_reads_is_not_read_from() -> None:
    async with running() as pool:
        client = await pool.client(receive_buffer=4096)
        await client.call(1, methods.QueueDeclare(queue="q"))
        await client.send(publish_frames(1, "q", bytes(100_000)))
        get = method_frame(1, methods.BasicGet(queue="q")) + method_frame(
            1, methods.BasicNack(delivery_tag=0, multiple=True)
        )
        client.writer.write(get * 2_000)
        await pool.until("any(each._connection.paused for each in node._protocols)")
        await pool.check_serves()
        (protocol,) = pool.node._protocols
        assert protocol._transport is not None
        assert protocol._transport.get_write_buffer_size() < 4 * 1024 * 1024
        # Who reads at last gets all of it.
        gets = 0
        while gets < 2_000:
            method = await client.read_method()
            assert isinstance(method, methods.BasicGetOk)
            gets += 1
        await client.call(1, methods.QueueDelete(queue="q"))


async def test_huge_declared_lengths_take_no_memory() -> None:
    async with running() as pool:
        for head in (b"\x01\0\0", b"\x03\0\1"):
            client = await pool.client()
            await client.send(head + (0xFFFFFFF0).to_bytes(4, "big") + b"\0" * 100)
            close = await client.read_method()
            assert isinstance(close, methods.ConnectionClose)
            assert close.reply_code == 501
            await client.send(method_frame(0, methods.ConnectionCloseOk()))
            assert await client.closed() == b""
        client = await pool.client()
        await client.send(method_frame(1, methods.BasicPublish()) + header_frame(1, (1 << 63) - 1))
        assert isinstance(await client.read_method(), methods.ChannelClose)


async def test_all_channels_of_a_connection_can_be_open() -> None:
    async with running() as pool:
        client = await pool.client()
        await client.send(b"".join([method_frame(number, methods.ChannelOpen()) for number in range(2, 2048)]))
        for _ in range(2, 2048):
            assert isinstance(await client.read_method(), methods.ChannelOpenOk)
        await client.call(2047, methods.QueueDeclare(queue="q", exclusive=True))
        await client.send(
            b"".join([method_frame(number, methods.BasicConsume(queue="q")) for number in range(1, 2048)])
        )
        for _ in range(1, 2048):
            assert isinstance(await client.read_method(), methods.BasicConsumeOk)
        await client.send(publish_frames(5, "q") * 2047)
        seen: set[int] = set()
        while len(seen) < 2047:
            found = await client.read()
            if found.kind == METHOD:
                seen.add(found.channel)
        close = await client.call(2048, methods.ChannelOpen())
        assert isinstance(close, methods.ConnectionClose)
        assert close.reply_code == 530


async def test_a_storm_of_queues_comes_and_goes() -> None:
    async with running() as pool:
        client = await pool.client()
        names = [f"storm-{number}" for number in range(QUEUES)]

        async def storm(sent: list[Method], answer: type[Method]) -> None:
            client.writer.write(b"".join([method_frame(1, method) for method in sent]))
            await pool.check_serves(within_s=10)
            for _ in sent:
                assert isinstance(await client.read_method(), answer)

        await storm([methods.QueueDeclare(queue=name) for name in names], methods.QueueDeclareOk)
        await storm([methods.QueueBind(queue=name, exchange="amq.fanout") for name in names], methods.QueueBindOk)
        await client.send(publish_frames(1, "", b"to all", exchange="amq.fanout"))
        await client.call(1, methods.BasicQos())
        assert sum([int(queue.ready) for queue in pool.node.broker.all_queues()]) == QUEUES
        await storm([methods.QueueDelete(queue=name) for name in names], methods.QueueDeleteOk)
        assert pool.node.broker.all_queues() == []
        assert pool.node.broker.memory.used == 0
