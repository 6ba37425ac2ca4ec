"""The records of a stream or a topic as messages, whoever made them.

    records = RecordMessages("topic 'orders'")
    records.open(batch.data)
    while records.next():
        ... records.message, records.offset

A message that AMQP has made a record comes back as it was, by the reserved header that `message_records.py` describes.
If a program of Kafka's has taken it and changed its headers on the way, the message has the changed ones. A record of
Kafka's is a message with `RecordProperties`: its routing key is the record's key where that can be one, its body the
value, and it was published to no exchange.

Batches may be compressed. Control batches have no messages. What cannot be read is told in the log and passed over: it
was checked when it came, and again when it was read from the disk.
"""

from __future__ import annotations

import logging
from typing import Final, final

from crc32c import crc32c
from librt.strings import read_i32_be
from mypy_extensions import i64

from millpond.base.errors import CorruptData, PeerError
from millpond.base.limits import NAME_BYTES_MAX, RECORD_HEADERS_SHOWN_MAX, RECORDS_DECOMPRESSED_AT_ONCE_MAX
from millpond.broker.message import PROPERTIES_FORMATS, Address, Message, Properties
from millpond.broker.record_properties import (
    KEY_HEADER,
    TOMBSTONE_HEADER,
    RecordProperties,
    record_properties,
    routing_key_of,
    shown,
)
from millpond.broker.records import TIMED, TIMED_BYTES
from millpond.broker.streams.message_records import CHECKED, FORMAT_MASK, ROUTED, record_headers, stated_key
from millpond.storage.batch_rewrite import plain_batch
from millpond.storage.record_batch import RESERVED_HEADER, BatchHeader, RecordReader

logger = logging.getLogger(__name__)

_NOTHING: Final = Message(Address("", ""), Properties(0, b"", False, 0, -1), b"", 0)


@final
class RecordMessages:
    """Reads one batch after the other. What neighbouring messages have in common is shared among them."""

    def __init__(self, source: str) -> None:
        """`source` is what is being read, for the log."""
        self.message: Message = _NOTHING
        self.offset: i64 = -1
        # What the open batch takes in memory if it had to be decompressed; else 0.
        self.decompressed_bytes: i64 = 0
        self._source: Final = source
        self._records: RecordReader | None = None
        # The record before, and what was made of it.
        self._key: bytes | None = None
        self._headers = b""
        self._is_tombstone = False
        self._address: Address | None = None
        self._properties: Properties | None = None
        # Where it was Kafka's: its properties have its time.
        self._is_foreign = False
        self._foreign_ms: i64 = -1

    def open(self, batch: bytes) -> bool:
        """Begin to read a batch; the one before is forgotten. False where it has nothing that could be read."""
        self._records = None
        self.decompressed_bytes = 0
        try:
            header = BatchHeader(batch)
            if header.is_control:
                return False
            plain = plain_batch(batch, RECORDS_DECOMPRESSED_AT_ONCE_MAX)
            if plain is not batch:
                self.decompressed_bytes = len(plain)
            self._records = RecordReader(plain)
        except CorruptData as error:
            logger.error("a batch of %s makes no sense and is passed over: %s", self._source, error)
            return False
        return True

    def close(self) -> None:
        """Give up the batch that is open."""
        self._records = None
        self.decompressed_bytes = 0
        self.message = _NOTHING

    def next(self) -> bool:
        """Go to the next message; False where the batch has no more."""
        records = self._records
        if records is None:
            return False
        try:
            if not records.next():
                self._records = None
                return False
            self._read(records)
        except CorruptData as error:
            logger.error("the rest of a batch of %s makes no sense and is passed over: %s", self._source, error)
            self._records = None
            return False
        return True

    def _read(self, records: RecordReader) -> None:
        key = records.key
        value = records.value
        headers = records.headers_raw
        timestamp_ms = records.timestamp_ms
        is_tombstone = value is None
        address = self._address
        properties = self._properties
        if (
            address is None
            or properties is None
            or headers != self._headers
            or key != self._key
            or is_tombstone != self._is_tombstone
        ):
            self._address = None
            found = self._made_by_amqp(records, key, is_tombstone)
            if found is None:
                found = self._made_by_kafka(records, key, is_tombstone, headers)
            address, properties = found
            self._key = key
            self._headers = headers
            self._is_tombstone = is_tombstone
            self._address = address
            self._properties = properties
        elif self._is_foreign and timestamp_ms != self._foreign_ms:
            properties = self._properties = record_properties(timestamp_ms, key, is_tombstone, headers)
            self._foreign_ms = timestamp_ms
        self.message = Message(address, properties, value if value is not None else b"", timestamp_ms)
        self.offset = records.offset

    def _made_by_kafka(
        self, records: RecordReader, key: bytes | None, is_tombstone: bool, headers: bytes
    ) -> tuple[Address, Properties]:
        self._is_foreign = True
        self._foreign_ms = records.timestamp_ms
        properties = record_properties(records.timestamp_ms, key, is_tombstone, headers)
        return Address("", routing_key_of(key)), properties

    def _made_by_amqp(
        self, records: RecordReader, key: bytes | None, is_tombstone: bool
    ) -> tuple[Address, Properties] | None:
        """Where the message was published to, and its properties; None where AMQP has not made the record."""
        header = records.header_value
        if header is None or len(header) < 2:
            return None
        self._is_foreign = False
        flags: i64 = header[0]
        size: i64 = len(header)
        position: i64 = 2 + header[1]
        checksum: i64 = -1
        routing_key = ""
        if flags & TIMED != 0:
            # Only queues have messages that wait, but its time says nothing here.
            flags ^= TIMED
            position += TIMED_BYTES
        if flags & CHECKED != 0:
            if position + 4 > size:
                return None
            checksum = i64(read_i32_be(header, position)) & 0xFFFF_FFFF
            position += 4
        if flags & ROUTED != 0:
            if position >= size:
                return None
            start: i64 = position + 1
            position = start + header[position]
            routing_key = header[start:position].decode("utf-8", "surrogateescape")
        decode = PROPERTIES_FORMATS.get(int(flags & FORMAT_MASK))
        if position > size or decode is None:
            return None
        try:
            properties = decode(header[position:])
        except (PeerError, CorruptData):
            # The name is reserved, but a program of Kafka's may write what it likes.
            return None
        exchange = header[2 : 2 + header[1]].decode("utf-8", "surrogateescape")
        before = records.headers_before
        is_unchanged = before is not None and (before == b"" if checksum < 0 else crc32c(before) == checksum)
        if not is_unchanged:
            properties = _merged(properties, _others(records))
        if flags & ROUTED == 0:
            routing_key = _routing_key(key)
        if isinstance(properties, RecordProperties):
            return Address(exchange, routing_key), properties.of_record(records.timestamp_ms, key, is_tombstone)
        if flags & ROUTED != 0 or not is_unchanged or (key is not None and len(key) > NAME_BYTES_MAX):
            if (stated_key(properties.headers(), routing_key) or b"") != (key or b""):
                # A program of Kafka's has given it another key.
                routing_key = routing_key_of(key)
                properties = properties.replaced({KEY_HEADER: key if routing_key == "" else None}, True)
        if is_tombstone and properties.headers().get(TOMBSTONE_HEADER) is not True:
            properties = properties.replaced({TOMBSTONE_HEADER: True}, True)
        return Address(exchange, routing_key), properties


def _routing_key(key: bytes | None) -> str:
    if key is None or len(key) > NAME_BYTES_MAX:
        return ""
    return key.decode("utf-8", "surrogateescape")


def _others(records: RecordReader) -> list[tuple[bytes, bytes | None]]:
    """All headers but the reserved one, which is the last of its name that has a value."""
    others = records.headers()
    index = len(others) - 1
    while others[index][0] != RESERVED_HEADER or others[index][1] is None:
        index -= 1
    del others[index]
    return others


def _merged(properties: Properties, others: list[tuple[bytes, bytes | None]]) -> Properties:
    """The properties with what has become of the headers that Kafka's programs are shown of them."""
    expected = _by_name(record_headers(properties))
    changes: dict[str, object] = {}
    actual = _by_name(others)
    for name in expected:
        if name not in actual:
            changes[name.decode("utf-8", "surrogateescape")] = None
    for name, values in actual.items():
        if values != expected.get(name) and len(name) <= NAME_BYTES_MAX and len(changes) < RECORD_HEADERS_SHOWN_MAX:
            # What has no value says at least that it is there.
            texts = [shown(value) if value is not None else "" for value in values]
            changes[name.decode("utf-8", "surrogateescape")] = texts[0] if len(texts) == 1 else texts
    return properties.replaced(changes, True)


def _by_name(headers: list[tuple[bytes, bytes | None]]) -> dict[bytes, list[bytes | None]]:
    found: dict[bytes, list[bytes | None]] = {}
    for name, value in headers:
        values = found.get(name)
        if values is None:
            found[name] = [value]
        else:
            values.append(value)
    return found
