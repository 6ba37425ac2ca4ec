"""Requests and frames as bytes, many of them in little time: what attackers and bystanders send.

Clients' libraries are careful, and slow. An attacker is neither. So AMQP's frames are written here by `struct`, and so
are those requests of Kafka's of which an attack sends thousands.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import struct
import time
from typing import Any, Final

from crc32c import crc32c

from faults.hostile.target import Target

PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"
TIMEOUT_S: Final = 20.0
FRAME_END: Final = b"\xce"


class Refused(Exception):
    """The broker has closed the connection, or answered with an error."""


def short(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return bytes([len(data)]) + data


def long(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def text(value: str | bytes | None) -> bytes:
    """Kafka's string, with a length of two bytes."""
    if value is None:
        return b"\xff\xff"
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">h", len(data)) + data


def varint(value: int) -> bytes:
    """Kafka's unsigned varint."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def compact(value: str | bytes) -> bytes:
    """Kafka's compact string or bytes."""
    data = value.encode() if isinstance(value, str) else value
    return varint(len(data) + 1) + data


def method(channel: int, class_id: int, method_id: int, arguments: bytes) -> bytes:
    return frame(1, channel, struct.pack(">HH", class_id, method_id) + arguments)


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + FRAME_END


def login(mechanism: str = "PLAIN", response: bytes = b"\0guest\0guest", properties: bytes = b"") -> bytes:
    """connection.start-ok."""
    return method(0, 10, 11, long(properties) + short(mechanism) + long(response) + short("en_US"))


def opening(vhost: str = "/", channel_max: int = 2047, frame_max: int = 131072) -> bytes:
    """connection.tune-ok and connection.open."""
    return method(0, 10, 31, struct.pack(">HIH", channel_max, frame_max, 0)) + method(
        0, 10, 40, short(vhost) + b"\0" + b"\0"
    )


def channel_open(channel: int) -> bytes:
    return method(channel, 20, 10, b"\0")


def channel_close(channel: int) -> bytes:
    return method(channel, 20, 40, struct.pack(">H", 200) + b"\0" + b"\0\0\0\0")


def queue_declare(channel: int, name: str, bits: int = 0, arguments: bytes = b"") -> bytes:
    """`bits`: 1 passive, 2 durable, 4 exclusive, 8 automatic deletion, 16 no answer."""
    return method(channel, 50, 10, b"\0\0" + short(name) + bytes([bits]) + long(arguments))


def queue_delete(channel: int, name: str, bits: int = 0) -> bytes:
    return method(channel, 50, 40, b"\0\0" + short(name) + bytes([bits]))


def queue_bind(channel: int, queue: str, exchange: str, key: str, arguments: bytes = b"", bits: int = 0) -> bytes:
    return method(
        channel, 50, 20, b"\0\0" + short(queue) + short(exchange) + short(key) + bytes([bits]) + long(arguments)
    )


def exchange_declare(channel: int, name: str, kind: str, bits: int = 0, arguments: bytes = b"") -> bytes:
    """`bits`: 1 passive, 2 durable, 4 automatic deletion, 8 internal, 16 no answer."""
    return method(channel, 40, 10, b"\0\0" + short(name) + short(kind) + bytes([bits]) + long(arguments))


def exchange_delete(channel: int, name: str, bits: int = 0) -> bytes:
    return method(channel, 40, 20, b"\0\0" + short(name) + bytes([bits]))


def consume(channel: int, queue: str, tag: str = "", bits: int = 0, arguments: bytes = b"") -> bytes:
    """`bits`: 1 no local, 2 no acknowledgements, 4 exclusive, 8 no answer."""
    return method(channel, 60, 20, b"\0\0" + short(queue) + short(tag) + bytes([bits]) + long(arguments))


def prefetch(channel: int, count: int) -> bytes:
    return method(channel, 60, 10, struct.pack(">IHB", 0, count, 0))


def publish(
    channel: int, exchange: str, key: str, body: bytes, *, headers: bytes | None = None, durable: bool = False
) -> bytes:
    """basic.publish with its content, which must fit into one frame."""
    flags = (0x2000 if headers is not None else 0) | (0x1000 if durable else 0)
    properties = (long(headers) if headers is not None else b"") + (b"\2" if durable else b"")
    return (
        method(channel, 60, 40, b"\0\0" + short(exchange) + short(key) + b"\0")
        + frame(2, channel, struct.pack(">HHQH", 60, 0, len(body), flags) + properties)
        + (frame(3, channel, body) if body else b"")
    )


class Amqp:
    """A connection of AMQP's that has logged in, unless told otherwise."""

    def __init__(self, target: Target, *, logs_in: bool = True, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect((target.host, target.amqp))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        if logs_in:
            self.send(PROTOCOL_HEADER)
            self.wait_for(10, 10)
            self.send(login())
            self.wait_for(10, 30)
            self.send(opening())
            self.wait_for(10, 41)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def open(self, channel: int = 1) -> int:
        self.send(channel_open(channel))
        self.wait_for(20, 11)
        return channel

    def read(self) -> tuple[int, int, bytes]:
        """The next frame: its type, channel and payload. Refused when there will be none."""
        buffer = self._buffer
        while True:
            if len(buffer) >= 7:
                kind, channel, length = struct.unpack_from(">BHI", buffer)
                if len(buffer) >= length + 8:
                    payload = bytes(buffer[7 : 7 + length])
                    del buffer[: length + 8]
                    return kind, channel, payload
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionError:
                data = b""
            if not data:
                raise Refused("closed")
            buffer += data

    def wait_for(self, class_id: int, method_id: int, count: int = 1) -> bytes:
        """The arguments of the next method of this kind, or of the last of so many. Refused where the broker closes
        the connection or the channel instead."""
        while True:
            kind, _, payload = self.read()
            if kind != 1:
                continue
            found = struct.unpack_from(">HH", payload)
            if found == (class_id, method_id):
                count -= 1
                if count == 0:
                    return payload[4:]
            elif found in {(10, 50), (20, 40)}:
                raise Refused(f"{struct.unpack_from('>H', payload, 4)[0]} {payload[7 : 7 + payload[6]].decode()}")

    def call(self, data: bytes, class_id: int, method_id: int, count: int = 1) -> bytes:
        self.send(data)
        return self.wait_for(class_id, method_id, count)

    def refusal(self) -> int:
        """With which code the broker closes the connection or the channel; 0 where it only closes the socket."""
        try:
            while True:
                kind, channel, payload = self.read()
                if kind == 1 and struct.unpack_from(">HH", payload) in {(10, 50), (20, 40)}:
                    self.send(method(channel, payload[1], payload[3] + 1, b""))
                    return int(struct.unpack_from(">H", payload, 4)[0])
        except (Refused, ConnectionError):
            return 0

    def close(self) -> None:
        self.socket.close()


def kafka_request(api: int, version: int, body: bytes, *, flexible: bool = False, client: str = "hostile") -> bytes:
    """A request with its length. The id that correlates it with its answer is always 1."""
    payload = struct.pack(">hhi", api, version, 1) + text(client) + (b"\0" if flexible else b"") + body
    return struct.pack(">i", len(payload)) + payload


class Kafka:
    """A connection of Kafka's."""

    def __init__(self, target: Target, *, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect((target.host, target.kafka))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> bytes:
        """The next answer, without its length and the id that correlates it. Refused when there will be none."""
        (length,) = struct.unpack(">i", self._exactly(4))
        return self._exactly(length)[4:]

    def ask(self, api: int, version: int, body: bytes, *, flexible: bool = False) -> bytes:
        self.send(kafka_request(api, version, body, flexible=flexible))
        return self.receive()

    def _exactly(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            try:
                part = self.socket.recv(min(length - len(parts), 1 << 20))
            except ConnectionError:
                part = b""
            if not part:
                raise Refused("closed")
            parts += part
        return bytes(parts)

    def is_closed(self) -> bool:
        """Whether the broker closes without another answer."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.socket.close()


_BATCH_HEAD: Final = struct.Struct(">qiib")
_BATCH_BODY: Final = struct.Struct(">hiqqqhii")


def batch(records: bytes, count: int, *, codec: int = 0, producer: tuple[int, int] = (-1, -1), bits: int = 0) -> bytes:
    """A record batch of `count` records, whatever `records` are."""
    now_ms = int(time.time() * 1000)
    sequence = -1 if producer[0] < 0 else 0
    body = _BATCH_BODY.pack(codec | bits, count - 1, now_ms, now_ms, *producer, sequence, count) + records
    return _BATCH_HEAD.pack(0, len(body) + 9, -1, 2) + struct.pack(">I", crc32c(body)) + body


def zigzag(value: int) -> bytes:
    return varint((value << 1) ^ (value >> 63))


def record(number: int, value: bytes, key: bytes | None = None) -> bytes:
    """One record of a batch."""
    body = b"\0" + zigzag(0) + zigzag(number)
    body += zigzag(-1) if key is None else zigzag(len(key)) + key
    body += zigzag(len(value)) + value + zigzag(0)
    return zigzag(len(body)) + body


def produce(topic: str, data: bytes, partition: int = 0, transactional_id: str | None = None) -> bytes:
    """A Produce request of version 7, as its body, with acks=all."""
    return (
        text(transactional_id)
        + struct.pack(">hii", -1, 10_000, 1)
        + text(topic)
        + struct.pack(">iii", 1, partition, len(data))
        + data
    )


def fetch(topic: str, offset: int, wait_ms: int, partition: int = 0) -> bytes:
    """A Fetch request of version 4, as its body."""
    return (
        struct.pack(">iiiibi", -1, wait_ms, 1, 1 << 20, 0, 1)
        + text(topic)
        + struct.pack(">iiqi", 1, partition, offset, 1 << 20)
    )


def create_topics(names: list[str], partitions: int = 1, configs: dict[str, str] | None = None) -> bytes:
    """A CreateTopics request of version 2, as its body."""
    entries = configs or {}
    settings = struct.pack(">i", len(entries)) + b"".join(text(name) + text(value) for name, value in entries.items())
    topics = [text(name) + struct.pack(">ihi", partitions, 1, 0) + settings for name in names]
    return struct.pack(">i", len(topics)) + b"".join(topics) + struct.pack(">i?", 60_000, False)


def delete_topics(names: list[str]) -> bytes:
    """A DeleteTopics request of version 1, as its body."""
    return struct.pack(">i", len(names)) + b"".join(map(text, names)) + struct.pack(">i", 60_000)


def topic_ids(kafka: Kafka, names: list[str]) -> list[bytes]:
    """The topics' ids, by a Metadata request of version 10."""
    wanted = varint(len(names) + 1) + b"".join(bytes(16) + compact(name) + b"\0" for name in names)
    answer = kafka.ask(3, 10, wanted + b"\0\0\0\0", flexible=True)
    ends = [answer.index(compact(name)) + len(compact(name)) for name in names]
    return [answer[end : end + 16] for end in ends]


def manage(target: Target, verb: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """One request to the management API: the status and what was said."""
    connection = http.client.HTTPConnection(target.host, target.admin, timeout=TIMEOUT_S)
    try:
        headers = {"Authorization": "Basic " + base64.b64encode(b"guest:guest").decode()}
        connection.request(verb, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
