"""AMQP: channels, consumers, queues and transactions, very many and never given back."""

from __future__ import annotations

import random
import struct
import time

from faults.hostile import wire
from faults.hostile.attacks.registry import attack, times
from faults.hostile.target import Target

KIB = 1 << 10


@attack("100,000 channel opens: open and close, and beyond channel_max", memory_mib=160)
def channels(target: Target, chance: random.Random, scale: float) -> str:
    wanted = times(100_000, scale)
    opened = 0
    connections = []
    while opened < wanted // 2:
        # All that a connection may have, at once, and they stay open.
        connection = wire.Amqp(target)
        count = min(2047, wanted // 2 - opened)
        connection.call(b"".join(wire.channel_open(number + 1) for number in range(count)), 20, 11, count)
        opened += count
        connections.append(connection)
    connection = wire.Amqp(target)
    while opened < wanted:
        connection.call(
            b"".join(wire.channel_open(n + 1) + wire.channel_close(n + 1) for n in range(1000)), 20, 41, 1000
        )
        opened += 1000
    for _ in range(times(10, scale)):
        beyond = wire.Amqp(target)
        beyond.call(b"".join(wire.channel_open(number + 1) for number in range(2047)), 20, 11, 2047)
        beyond.send(wire.channel_open(2048))
        code = beyond.refusal()
        assert code == 530, f"a channel beyond channel_max was answered by {code}"
        beyond.close()
    return f"{opened:,} channels, {len(connections) * 2047:,} at once on {len(connections)} connections"


@attack("very many consumers and channels, all lost at once", memory_mib=192)
def consumers(target: Target, chance: random.Random, scale: float) -> str:
    total = 0
    kept = []
    for _ in range(times(8, scale)):
        connection = wire.Amqp(target)
        count = times(1000, scale)
        connection.call(b"".join(wire.channel_open(n + 1) for n in range(count)), 20, 11, count)
        connection.call(wire.queue_declare(1, "hostile.consumed", 8), 50, 11)
        connection.call(
            b"".join(wire.consume(n + 1, "hostile.consumed", f"{k}") for n in range(count) for k in range(5)),
            60,
            21,
            count * 5,
        )
        total += count * 5
        kept.append(connection)
    return f"{total:,} consumers of one queue on {len(kept)} connections"


@attack("storm of queues, exchanges and bindings", memory_mib=256, kept_mib=96)
def storm(target: Target, chance: random.Random, scale: float) -> str:
    connection = wire.Amqp(target)
    connection.open()
    count = times(4000, scale)
    for start in range(0, count, 200):
        names = [f"hostile.storm.{number}" for number in range(start, min(start + 200, count))]
        bits = 2 if start % 400 else 0
        connection.call(b"".join(wire.queue_declare(1, name, bits) for name in names), 50, 11, len(names))
        connection.call(b"".join(wire.exchange_declare(1, name, "topic", bits) for name in names), 40, 11, len(names))
        connection.call(
            b"".join(wire.queue_bind(1, name, name, f"a.{n}.*.#") for name in names for n in range(3)),
            50,
            21,
            len(names) * 3,
        )
    for start in range(0, count, 200):
        names = [f"hostile.storm.{number}" for number in range(start, min(start + 200, count))]
        connection.call(b"".join(wire.exchange_delete(1, name) for name in names), 40, 21, len(names))
        connection.call(b"".join(wire.queue_delete(1, name) for name in names), 50, 41, len(names))
    return f"{count:,} queues, as many exchanges, {3 * count:,} bindings, made and deleted"


@attack("very many exclusive queues, all lost at once", memory_mib=192, kept_mib=96)
def exclusive(target: Target, chance: random.Random, scale: float) -> str:
    connection = wire.Amqp(target)
    connection.open()
    count = times(10_000, scale)
    for start in range(0, count, 500):
        part = min(500, count - start)
        connection.call(wire.queue_declare(1, "", 4) * part, 50, 11, part)
    return f"{count:,} queues"


@attack("consumers with a large prefetch that never read, or never settle", memory_mib=320, kept_mib=96)
def greedy(target: Target, chance: random.Random, scale: float) -> str:
    publisher = wire.Amqp(target)
    publisher.open()
    publisher.call(wire.queue_declare(1, "hostile.greedy", 2), 50, 11)
    publisher.call(wire.method(1, 85, 10, b"\0"), 85, 11)
    kept = []
    for number in range(times(40, scale)):
        consumer = wire.Amqp(target, receive_buffer=4096)
        consumer.open()
        consumer.call(wire.prefetch(1, 0 if number % 2 else 65535), 60, 11)
        # Half of them read nothing, and half without settling.
        consumer.send(wire.consume(1, "hostile.greedy", "", 2 if number % 4 == 3 else 0))
        kept.append(consumer)
    messages = times(8000, scale)
    data = wire.publish(1, "", "hostile.greedy", bytes(16 * KIB), durable=True)
    for start in range(0, messages, 100):
        publisher.send(data * min(100, messages - start))
        if start % 1000 == 0:
            for consumer in kept[::4]:
                consumer.socket.setblocking(False)
                try:
                    while consumer.socket.recv(1 << 20):
                        pass
                except BlockingIOError:
                    pass
    last = wire.Amqp(target)
    last.open()
    last.call(wire.queue_delete(1, "hostile.greedy"), 50, 41)
    return f"{messages:,} messages of 16 KiB, {len(kept)} consumers"


@attack("transactions of AMQP's left open, and messages never finished", memory_mib=320, kept_mib=96)
def transactions(target: Target, chance: random.Random, scale: float) -> str:
    kept = []
    held = 0
    for _ in range(times(24, scale)):
        connection = wire.Amqp(target)
        kept.append(connection)
        for channel in range(1, 4):
            data = wire.publish(channel, "", "nobody", bytes(100 * KIB))
            try:
                connection.open(channel)
                connection.call(wire.method(channel, 90, 10, b""), 90, 11)
                connection.socket.settimeout(1.0)
                for _ in range(times(100, scale)):
                    connection.send(data)
                    held += 100 * KIB
            except (TimeoutError, ConnectionError, wire.Refused):
                # There is no room for more, of all connections together.
                break
    return f"{len(kept)} connections, {held >> 20:,} MiB in transactions"


@attack("one publish of many small messages after the other, without a pause", memory_mib=256, kept_mib=96)
def firehose(target: Target, chance: random.Random, scale: float) -> str:
    connections = []
    for number in range(4):
        connection = wire.Amqp(target)
        connection.open()
        connection.call(wire.queue_declare(1, f"hostile.firehose.{number}", 0), 50, 11)
        connections.append(connection)
    sent = 0
    until = time.monotonic() + 2.0 * max(scale, 0.1)
    while time.monotonic() < until:
        for number, connection in enumerate(connections):
            connection.send(wire.publish(1, "", f"hostile.firehose.{number}", b"") * 2000)
            sent += 2000
    for number, connection in enumerate(connections):
        connection.call(wire.queue_delete(1, f"hostile.firehose.{number}"), 50, 41)
    return f"{sent:,} messages"


@attack("a queue of very many messages is purged, rejected, returned, deleted at once", memory_mib=256, kept_mib=96)
def masses(target: Target, chance: random.Random, scale: float) -> str:
    connection = wire.Amqp(target)
    connection.open()
    connection.call(wire.queue_declare(1, "hostile.masses", 2), 50, 11)
    count = times(50_000, scale)
    data = wire.publish(1, "", "hostile.masses", b"x" * 20)
    for _ in range(2):
        for start in range(0, count, 1000):
            connection.send(data * min(1000, count - start))
        connection.call(wire.consume(1, "hostile.masses", "all"), 60, 21)
        connection.wait_for(60, 60, count)
        # All of them at once come back, and again are settled.
        connection.call(wire.method(1, 60, 30, wire.short("all") + b"\0"), 60, 31)
        connection.send(wire.method(1, 60, 120, struct.pack(">QB", 0, 3)))
        connection.call(wire.queue_declare(1, "hostile.masses", 3), 50, 11)
        connection.call(wire.method(1, 50, 30, b"\0\0" + wire.short("hostile.masses") + b"\0"), 50, 31)
    connection.call(wire.queue_delete(1, "hostile.masses"), 50, 41)
    return f"{count:,} messages, twice"
