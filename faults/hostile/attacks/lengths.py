"""Lengths and counts that are larger than what there is, and values inside each other without end."""

from __future__ import annotations

import random
import socket
import struct
from contextlib import suppress

from faults.hostile import wire
from faults.hostile.attacks.registry import attack, times
from faults.hostile.target import Target

HUGE = (0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFF0, 1 << 30)


def _table_inside(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = wire.short("t") + b"F" + wire.long(inner)
    return inner


def _array_inside(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = b"A" + wire.long(inner)
    return wire.short("a") + inner if depth else b""


@attack("AMQP: huge lengths of frames, bodies, tables, arrays and strings", memory_mib=64)
def amqp_lengths(target: Target, chance: random.Random, scale: float) -> str:
    codes: dict[int, int] = {}
    count = 0
    for _ in range(times(40, scale)):
        for length in HUGE:
            declared = struct.pack(">I", length)
            for data in (
                struct.pack(">BHI", 1, 1, length) + b"x" * 100,
                wire.method(1, 50, 10, b"\0\0" + wire.short("q") + b"\0" + declared + b"x" * 40),
                wire.queue_declare(1, "q", 0, wire.short("k") + b"S" + declared),
                wire.queue_declare(1, "q", 0, wire.short("k") + b"A" + declared),
                wire.queue_declare(1, "q", 0, wire.short("k") + b"F" + declared),
                wire.method(1, 60, 40, b"\0\0\0\xff" + b"k" * 10),
                wire.method(1, 60, 40, b"\0\0\0\0\0") + wire.frame(2, 1, struct.pack(">HHQH", 60, 0, length << 20, 0)),
            ):
                connection = wire.Amqp(target)
                connection.open()
                connection.send(data)
                code = connection.refusal()
                codes[code] = codes.get(code, 0) + 1
                assert code in {406, 501, 502, 505}, f"{data[:40]!r} was answered by {code}"
                connection.close()
                count += 1
    return f"{count:,} connections, refused by {codes}"


@attack("AMQP: tables and arrays inside each other, and very wide ones", memory_mib=96)
def amqp_depth(target: Target, chance: random.Random, scale: float) -> str:
    count = 0
    for _ in range(times(60, scale)):
        for table in (_table_inside(4000), _array_inside(20_000), _table_inside(33), _array_inside(40)):
            for data in (
                wire.queue_declare(1, "", 0, table),
                wire.publish(1, "", "nobody", b"x", headers=table),
            ):
                connection = wire.Amqp(target)
                connection.open()
                connection.send(data)
                code = connection.refusal()
                assert code in {501, 502, 530}, f"a table of {len(table)} bytes was answered by {code}"
                connection.close()
                count += 1
    wide = b"".join(wire.short(f"{number:05}") + b"V" for number in range(15_000))
    connection = wire.Amqp(target)
    connection.open()
    connection.call(wire.exchange_declare(1, "hostile.wide", "headers"), 40, 11)
    published = 0
    for _ in range(times(100, scale)):
        connection.send(wire.publish(1, "hostile.wide", "", b"x", headers=wide))
        published += 1
    connection.call(wire.exchange_delete(1, "hostile.wide"), 40, 21)
    return f"{count:,} tables refused, {published} messages with 15,000 headers"


def _kafka_bodies(length: int) -> list[bytes]:
    huge = struct.pack(">i", min(length, 0x7FFFFFFF))
    batch = bytearray(wire.batch(wire.record(0, b"x" * 100), 1))
    batch[57:61] = huge
    long_batch = bytearray(wire.batch(wire.record(0, b"x" * 100), 1))
    long_batch[8:12] = huge
    return [
        # Topics, partitions, names: each says that there are more than there could be.
        wire.kafka_request(3, 1, huge + b"x" * 50),
        wire.kafka_request(3, 9, wire.varint(min(length, 0x7FFFFFFF)) + b"x" * 50, flexible=True),
        wire.kafka_request(1, 4, struct.pack(">iiiib", -1, 0, 1, 1 << 20, 0) + huge + b"x" * 50),
        wire.kafka_request(0, 7, wire.text(None) + struct.pack(">hi", -1, 1000) + huge + b"x" * 50),
        wire.kafka_request(
            0, 7, wire.text(None) + struct.pack(">hii", -1, 1000, 1) + wire.text("t") + struct.pack(">ii", 1, 0) + huge
        ),
        wire.kafka_request(19, 2, huge + b"x" * 50),
        wire.kafka_request(11, 2, wire.text("g") + struct.pack(">i", 10_000) + wire.text("") + b"\x7f\xff"),
        wire.kafka_request(8, 2, wire.text("g") + struct.pack(">i", -1) + wire.text("") + struct.pack(">q", 1) + huge),
        struct.pack(">i", min(length, 0x7FFFFFFF)) + b"\0\3\0\1" + b"x" * 50,
        wire.kafka_request(0, 7, wire.produce("hostile.lengths", bytes(batch))),
        wire.kafka_request(0, 7, wire.produce("hostile.lengths", bytes(long_batch))),
    ]


@attack("Kafka: huge lengths of requests, arrays, strings and batches", memory_mib=64)
def kafka_lengths(target: Target, chance: random.Random, scale: float) -> str:
    kafka = wire.Kafka(target)
    kafka.ask(19, 2, wire.create_topics(["hostile.lengths"]))
    closed = answered = 0
    for _ in range(times(25, scale)):
        for length in HUGE:
            for data in _kafka_bodies(length):
                connection = wire.Kafka(target)
                connection.send(data)
                try:
                    connection.receive()
                    answered += 1
                except wire.Refused:
                    closed += 1
                connection.close()
    kafka.ask(20, 1, wire.delete_topics(["hostile.lengths"]))
    return f"{closed:,} connections closed, {answered:,} errors answered"


@attack("Kafka: the most partitions, topics and items that a request may name", memory_mib=256)
def kafka_counts(target: Target, chance: random.Random, scale: float) -> str:
    kafka = wire.Kafka(target)
    kafka.ask(19, 2, wire.create_topics(["hostile.counts"]))
    count = times(99_000, scale)
    numbers = range(count)
    fetched = b"".join(struct.pack(">iqi", number, 0, 1) for number in numbers)
    listed = b"".join(struct.pack(">iq", number, -1) for number in numbers)
    asked = 0
    for _ in range(2):
        for api, version, body in (
            (
                1,
                4,
                struct.pack(">iiiibi", -1, 0, 1, 1 << 20, 0, 1)
                + wire.text("hostile.counts")
                + struct.pack(">i", count)
                + fetched,
            ),
            (
                1,
                4,
                struct.pack(">iiiibi", -1, 1000, 1, 1 << 20, 0, 1)
                + wire.text("bystanders")
                + struct.pack(">i", count)
                + fetched,
            ),
            (2, 1, struct.pack(">ii", -1, 1) + wire.text("hostile.counts") + struct.pack(">i", count) + listed),
            (3, 4, struct.pack(">i", count) + b"".join(wire.text(f"no.{number}") for number in numbers) + b"\0"),
            (
                9,
                1,
                wire.text("hostile.group")
                + struct.pack(">i", 1)
                + wire.text("hostile.counts")
                + struct.pack(">i", count)
                + b"".join(struct.pack(">i", n) for n in numbers),
            ),
            (
                8,
                2,
                wire.text("hostile.group")
                + struct.pack(">i", -1)
                + wire.text("")
                + struct.pack(">q", -1)
                + struct.pack(">i", 1)
                + wire.text("hostile.counts")
                + struct.pack(">i", count)
                + b"".join(struct.pack(">iq", n, 1) + wire.text("") for n in numbers),
            ),
        ):
            connection = wire.Kafka(target)
            connection.send(wire.kafka_request(api, version, body))
            with suppress(wire.Refused):
                connection.receive()
            connection.close()
            asked += 1
    kafka.ask(20, 1, wire.delete_topics(["hostile.counts"]))
    return f"{asked} requests of {count:,} items"


@attack("management: huge lengths, headers, and bodies that never end", memory_mib=96)
def http_lengths(target: Target, chance: random.Random, scale: float) -> str:
    login = b"Host: x\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n"
    deep = b"[" * 60_000
    requests = (
        b"PUT /api/queues/%2F/q HTTP/1.1\r\n" + login + b"Content-Length: 999999999999999\r\n\r\n" + b"x" * 200_000,
        b"POST /api/definitions HTTP/1.1\r\n" + login + b"Content-Length: 99999999999\r\n\r\n" + b"{" * 200_000,
        b"PUT /api/queues/%2F/q HTTP/1.1\r\n"
        + login
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + (b"ffff\r\n" + b"x" * 65535 + b"\r\n") * 4,
        b"PUT /api/queues/%2F/q HTTP/1.1\r\n" + login + b"Content-Length: 60000\r\n\r\n" + deep,
        b"GET /api/overview HTTP/1.1\r\n" + login + b"X: " + b"y" * 300_000,
        b"GET /" + b"a" * 300_000,
    )
    statuses: dict[str, int] = {}
    for _ in range(times(30, scale)):
        for request in requests:
            connection = socket.create_connection((target.host, target.admin), timeout=wire.TIMEOUT_S)
            try:
                connection.sendall(request)
                status = connection.recv(4096)[9:12].decode() or "closed"
            except ConnectionError:
                status = "closed"
            statuses[status] = statuses.get(status, 0) + 1
            assert status in {"400", "411", "413", "414", "431", "422", "closed"}, f"{request[:60]!r}: {status}"
            connection.close()
    return f"{sum(statuses.values())} requests: {statuses}"
