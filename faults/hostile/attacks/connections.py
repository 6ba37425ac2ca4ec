"""Connections: very many, very slow, half of one, and those that never read."""

from __future__ import annotations

import asyncio
import base64
import random
import selectors
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress

from faults.hostile import wire
from faults.hostile.attacks.registry import attack, times
from faults.hostile.target import Target

# What a peer that drips sends a byte at a time, for as long.
DRIP_S = 2.0


def _connect(target: Target, port: int, receive_buffer: int = 0) -> socket.socket:
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(wire.TIMEOUT_S)
    connection.connect((target.host, port))
    return connection


@attack("slowloris: handshakes, frames, requests, headers and bodies byte by byte", memory_mib=96)
def drip(target: Target, chance: random.Random, scale: float) -> str:
    login = wire.PROTOCOL_HEADER + wire.login(properties=bytes(2000)) + wire.opening()
    kafka = wire.kafka_request(3, 1, struct.pack(">i", 100) + b"".join(wire.text(f"topic-{n}") for n in range(100)))
    record = wire.kafka_request(0, 7, wire.produce("bystanders", bytes(60 << 20)))[:4000]
    head = b"GET /api/overview HTTP/1.1\r\nHost: x\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n" + b"X-A: b\r\n" * 200
    body = b"PUT /api/queues/%2F/q HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b"{" * 1000
    kinds = [(target.amqp, login), (target.kafka, kafka), (target.kafka, record)]
    kinds += [(target.admin, head), (target.admin, body)]
    count = times(250, scale)
    open_ones: list[tuple[socket.socket, bytes]] = []
    for port, data in kinds:
        open_ones += [(_connect(target, port), data) for _ in range(count)]
    for _ in range(times(100, scale)):
        connection = wire.Amqp(target)
        connection.open()
        connection.call(wire.queue_declare(1, "", 4), 50, 11)
        # A publish that never ends.
        frames = wire.publish(1, "", "nobody", bytes(1000))
        open_ones.append((connection.socket, frames))
    sent = 0
    place = 0
    until = time.monotonic() + DRIP_S * max(scale, 0.2)
    while time.monotonic() < until:
        for connection, data in open_ones:
            if place < len(data):
                with suppress(ConnectionError):
                    connection.send(data[place : place + 1])
                    sent += 1
        place += 1
    return f"{len(open_ones):,} connections, {sent:,} bytes one at a time"


@attack("flood of connections: open and close", memory_mib=96)
def flood(target: Target, chance: random.Random, scale: float) -> str:
    count = times(6000, scale)
    for number in range(count):
        connection = _connect(target, (target.amqp, target.kafka, target.admin)[number % 3])
        if number % 2:
            # A reset in place of an end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    return f"{count:,} connections"


@attack("half-open connections: nothing is said, or half of a login", memory_mib=160)
def half_open(target: Target, chance: random.Random, scale: float) -> str:
    count = times(4500, scale)
    kept = []
    for number in range(count):
        port = (target.amqp, target.kafka, target.admin)[number % 3]
        connection = _connect(target, port)
        if number % 2:
            connection.send(wire.PROTOCOL_HEADER[: chance.randrange(1, 8)] if port == target.amqp else b"\0\0")
        kept.append(connection)
    return f"{count:,} connections at once"


# Four hashes at once take 19 MiB each, and what threads have freed the C library keeps for them.
@attack("flood of logins with wrong passwords", memory_mib=160, kept_mib=144)
def wrong_passwords(target: Target, chance: random.Random, scale: float) -> str:
    count = times(300, scale)
    kept = []
    for number in range(count):
        if number % 3 == 2:
            connection = _connect(target, target.admin)
            login = base64.b64encode(f"guest:{number}".encode()).decode()
            connection.send(f"GET /api/overview HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {login}\r\n\r\n".encode())
            kept.append(connection)
            continue
        amqp = wire.Amqp(target, logs_in=False)
        amqp.send(wire.PROTOCOL_HEADER + wire.login(response=f"\0guest\0{number}".encode()))
        kept.append(amqp.socket)
    answered = 0
    until = time.monotonic() + 2 * max(scale, 0.2)
    with selectors.DefaultSelector() as selector:
        for connection in kept:
            selector.register(connection, selectors.EVENT_READ)
        while time.monotonic() < until:
            answered += len(selector.select(0.1))
            time.sleep(0.05)
    return f"{count:,} logins"


@attack("garbage from very many peers, each refused", memory_mib=96)
def garbage(target: Target, chance: random.Random, scale: float) -> str:
    count = times(4000, scale)
    for number in range(count):
        connection = _connect(target, (target.amqp, target.kafka)[number % 2])
        with suppress(ConnectionError):
            connection.send(b"\x7f" + chance.randbytes(40))
        connection.close()
    return f"{count:,} connections"


def _until_full(connection: socket.socket, pieces: Iterator[bytes], seconds: float) -> int:
    """Send without ever reading, until nothing more is taken."""
    sent = 0
    connection.settimeout(0.25)
    until = time.monotonic() + seconds
    with suppress(TimeoutError, ConnectionError):
        for piece in pieces:
            connection.sendall(piece)
            sent += len(piece)
            if time.monotonic() > until:
                break
    return sent


def _again(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


@attack("requests one after the other, whose answers are never read", memory_mib=192)
def never_reads(target: Target, chance: random.Random, scale: float) -> str:
    kept: list[object] = []
    sent = 0
    for number in range(times(12, scale)):
        if number % 3 == 0:
            amqp = wire.Amqp(target, receive_buffer=4096)
            amqp.open()
            piece = wire.queue_declare(1, "bystanders.queue", 1) * 1000
            sent += _until_full(amqp.socket, _again(piece), 0.4)
            kept.append(amqp)
        elif number % 3 == 1:
            kafka = wire.Kafka(target, receive_buffer=4096)
            piece = wire.kafka_request(3, 1, struct.pack(">i", -1)) * 200
            sent += _until_full(kafka.socket, _again(piece), 0.4)
            kept.append(kafka)
        else:
            connection = _connect(target, target.admin, 4096)
            request = b"GET /api/overview HTTP/1.1\r\nHost: x\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\r\n"
            sent += _until_full(connection, _again(request * 20), 0.4)
            kept.append(connection)
    return f"{len(kept)} connections, {sent >> 10:,} KiB of requests"


@attack("many clients log in at once, and are gone at once", memory_mib=128)
def crowd(target: Target, chance: random.Random, scale: float) -> str:
    """Logins that succeed, of AMQP's, with their heartbeats; Kafka's, each of which asks something."""

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(target.host, target.amqp if number % 2 else target.kafka)
        kept.append(writer)
        if number % 2:
            writer.write(wire.PROTOCOL_HEADER + wire.login() + wire.opening() + wire.channel_open(1))
        else:
            writer.write(wire.kafka_request(18, 0, b""))
        await reader.read(1)

    async def all_of_them() -> None:
        for start in range(0, count, 100):
            await asyncio.gather(*(one(number) for number in range(start, start + 100)))

    kept: list[asyncio.StreamWriter] = []
    count = times(3000, scale)
    asyncio.run(all_of_them())
    return f"{count:,} clients"
