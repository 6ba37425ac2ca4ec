"""How a message of AMQP's becomes a record that Kafka's consumers understand, and that AMQP gets back as it was.

    key        the routing key, none where that is empty; the header x-kafka-key instead where the message has one
    value      the body; none where it is empty and the header x-kafka-tombstone is true
    timestamp  the property `timestamp`, unless it lies more than an hour ahead; else when the broker received it
    headers    the message's headers, as text; its properties, under the names of `record_properties.py` and a few more;
               and last the reserved header

Values of headers are text: numbers in digits, true and false, times in ISO 8601, tables and arrays as JSON. Bytes stay
bytes. A header that the application has set itself has its name; a property that would have the same one is only in the
reserved header, which keeps all of them:

    reserved header   flags and format u8 | exchange length u8 | exchange
                      | checksum u32                            with flag 0x40
                      | routing key length u8 | routing key     with flag 0x20
                      | properties, in the encoding of the format

The checksum is the CRC32C of the headers before it, as they stand in the record: it tells whether a program of Kafka's
has changed them since. Without other headers there is none. The routing key is there where the record's key is another.

A record of Kafka's that came by way of AMQP becomes what it was: its key, value, timestamp, and its headers in their
order. What AMQP has added comes after them. If that is nothing, there is no reserved header.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, final

from crc32c import crc32c
from librt.strings import BytesWriter, write_i32_be
from mypy_extensions import i32, i64, u8

from millpond.base.limits import RECORD_TIMESTAMP_AHEAD_MS_MAX
from millpond.broker.message import Message, Properties
from millpond.broker.record_properties import (
    KEY_HEADER,
    PROPERTY_HEADERS,
    TIMESTAMP_HEADER,
    TOMBSTONE_HEADER,
    RecordProperties,
    routing_key_of,
)
from millpond.storage.record_batch import RESERVED_HEADER, decode_headers, write_headers, write_varint

# Flags of the reserved header's first byte.
CHECKED: Final = 0x40
ROUTED: Final = 0x20
FORMAT_MASK: Final = 0x1F

# Headers that stand for the key, the value and the timestamp of the record.
EXPRESSED: Final = frozenset((KEY_HEADER.encode(), TOMBSTONE_HEADER.encode(), TIMESTAMP_HEADER.encode()))

_json: Final = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))


@final
class MessageRecord:
    """The record of one message after the other: what messages have in common is worked out once for neighbours.

    `key`, `value`, `timestamp_ms` and `headers`, which are as `encode_headers` has them, are for
    `BatchBuilder.append_encoded`.
    """

    def __init__(self) -> None:
        self.key: bytes | None = None
        self.value: bytes | None = None
        self.timestamp_ms: i64 = -1
        self.headers = b""
        self._message: Message | None = None
        # What the message says of its time; -1 where it says nothing. Whether that is exact to the millisecond.
        self._stated_ms: i64 = -1
        self._is_exact = False
        self._is_tombstone = False

    def of(self, message: Message) -> None:
        """Be this message's record."""
        last = self._message
        if last is None or message.address is not last.address or message.properties is not last.properties:
            self._prepare(message)
        self._message = message
        body = message.body
        self.value = None if self._is_tombstone and len(body) == 0 else body
        self.timestamp_ms = message.timestamp_ms
        stated_ms = self._stated_ms
        if stated_ms >= 0 and stated_ms <= message.timestamp_ms + RECORD_TIMESTAMP_AHEAD_MS_MAX:
            # A publisher that states this very second knows the time less well than the clock does.
            if self._is_exact or stated_ms // 1000 != message.timestamp_ms // 1000:
                self.timestamp_ms = stated_ms

    def _prepare(self, message: Message) -> None:
        properties = message.properties
        address = message.address
        routing_key = address.routing_key.encode("utf-8", "surrogateescape")
        self.key = routing_key or None
        self._stated_ms = -1
        self._is_exact = False
        self._is_tombstone = False
        others = BytesWriter()
        count = properties.write_record_headers(others)
        if count >= 0:
            timestamp_s = properties.named("timestamp")
            if timestamp_s:
                self._state_time(int(timestamp_s), None)
        elif isinstance(properties, RecordProperties):
            self.key = properties.key
            self._stated_ms = properties.timestamp_ms
            self._is_exact = True
            self._is_tombstone = properties.is_tombstone
            if address.exchange == "" and address.routing_key == routing_key_of(self.key) and not properties.changes():
                self.headers = properties.headers_raw
                return
        else:
            described = properties.described()
            found = described.get("headers")
            headers: dict[str, object] = found if isinstance(found, dict) else {}
            self._state_time(described.get("timestamp"), headers.get(TIMESTAMP_HEADER))
            self._is_tombstone = headers.get(TOMBSTONE_HEADER) is True
            self.key = stated_key(headers, address.routing_key)
        if count < 0:
            written = record_headers(properties)
            others = BytesWriter()
            write_headers(others, written)
            count = len(written)
        self._complete(properties, address.exchange, routing_key, count, others.getvalue())

    def _complete(self, properties: Properties, exchange: str, routing_key: bytes, count: i64, others: bytes) -> None:
        """Put the reserved header after the others."""
        is_routed = (self.key or b"") != routing_key
        flags: i64 = properties.format
        name = exchange.encode("utf-8", "surrogateescape")
        raw = properties.raw
        size: i64 = 2 + len(name) + len(raw)
        if count > 0:
            flags |= CHECKED
            size += 4
        if is_routed:
            flags |= ROUTED
            size += 1 + len(routing_key)
        writer = BytesWriter()
        write_varint(writer, count + 1)
        writer.write(others)
        write_varint(writer, len(RESERVED_HEADER))
        writer.write(RESERVED_HEADER)
        write_varint(writer, size)
        writer.append(u8(flags))
        writer.append(len(name))
        writer.write(name)
        if count > 0:
            checksum: i64 = crc32c(others)
            write_i32_be(writer, i32(checksum - (checksum >> 31 << 32)))
        if is_routed:
            writer.append(len(routing_key))
            writer.write(routing_key)
        writer.write(raw)
        self.headers = writer.getvalue()

    def _state_time(self, timestamp_s: object, timestamp_ms: object) -> None:
        self._stated_ms = -1
        self._is_exact = False
        # Zero is what programs write that have no time to state.
        if isinstance(timestamp_s, int) and 0 < timestamp_s < 1 << 50:
            self._stated_ms = i64(timestamp_s) * 1000
            if (
                isinstance(timestamp_ms, int)
                and not isinstance(timestamp_ms, bool)
                and 0 <= timestamp_ms < 1 << 60
                and timestamp_ms // 1000 == timestamp_s
            ):
                self._stated_ms = timestamp_ms
                self._is_exact = True


def stated_key(headers: dict[str, object], routing_key: str) -> bytes | None:
    """The key that a publisher asks for with a header; else the routing key."""
    if KEY_HEADER in headers:
        stated = headers[KEY_HEADER]
        if stated is None or isinstance(stated, bytes):
            return stated
        if isinstance(stated, str):
            return stated.encode("utf-8", "surrogateescape")
    return routing_key.encode("utf-8", "surrogateescape") or None


def record_headers(properties: Properties) -> list[tuple[bytes, bytes | None]]:
    """The headers that Kafka's consumers are shown of a message, without the reserved one."""
    others: list[tuple[bytes, bytes | None]] = []
    if isinstance(properties, RecordProperties):
        others = properties.record_headers()
        for name, value in properties.changes():
            others.append((name.encode("utf-8", "surrogateescape"), header_value(value)))
        return others
    writer = BytesWriter()
    count = properties.write_record_headers(writer)
    if count >= 0:
        counted = BytesWriter()
        write_varint(counted, count)
        return decode_headers(counted.getvalue() + writer.getvalue())
    described = properties.described()
    found = described.get("headers")
    names: set[bytes] = set()
    if isinstance(found, dict):
        for name, value in found.items():
            encoded = name.encode("utf-8", "surrogateescape")
            names.add(encoded)
            if encoded not in EXPRESSED:
                others.append((encoded, header_value(value)))
    for name, header in PROPERTY_HEADERS.items():
        value = described.get(name)
        if value is not None and header not in names:
            others.append((header, header_value(value)))
    return others


def header_value(value: object) -> bytes | None:
    """A value of a header of AMQP's as Kafka's consumers are shown it."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, dict | list):
        return _json.encode(_plain(value)).encode("utf-8", "surrogateescape")
    return str(_plain(value)).encode()


def _plain(value: object) -> object:
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return b64encode(value).decode("ascii")
    if isinstance(value, Decimal) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value
