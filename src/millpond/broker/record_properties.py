"""What a Kafka record says besides its value, as a message's properties: format 2.

    flags             u8    1 the record has no value, 2 it has no key
    timestamp, ms     i64   -1 where it has none
    key length        u32
    key
    headers length    u32
    headers                 as they stand in the record: their count, then each of them
    changes                 text, empty where there are none: what AMQP has put among the headers since, as a JSON list
                            of [name, value], in the form of `catalog/field_values.py`

Everything of the record is kept as it was, so that the message can become the same record again. AMQP is shown what it
has words for:

    headers           text where a value is UTF-8, bytes where it is not; a list where a name occurs several times
    timestamp         in seconds, and the header timestamp_in_ms
    properties        from the headers of HEADERS_OF_PROPERTIES, and the priority from the header "priority"
    delivery_mode     2: a record is on the disk
    x-kafka-key       the key, where it cannot be a routing key: it is empty, too long, or not UTF-8
    x-kafka-tombstone true, where the record has no value

The same three `x-kafka-*` and `timestamp_in_ms` headers are read from AMQP's messages when they become records.
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import BytesWriter, read_i32_be, read_i64_be, write_i32_be, write_i64_be
from mypy_extensions import i32, i64

from millpond.base.errors import CorruptData
from millpond.base.limits import NAME_BYTES_MAX, RECORD_HEADERS_SHOWN_MAX
from millpond.broker.message import PROPERTIES_FORMATS, Properties
from millpond.catalog.field_values import decode, encode
from millpond.storage.record_batch import decode_headers, encode_headers

FORMAT: Final = 2

KEY_HEADER: Final = "x-kafka-key"
TOMBSTONE_HEADER: Final = "x-kafka-tombstone"
TIMESTAMP_HEADER: Final = "timestamp_in_ms"

# A property of AMQP's -> the header that has it in a record. `user_id` is what the broker has verified of a publisher,
# and is never taken from a record; nor is an expiration, which would make a record's copy vanish for a header's name.
HEADERS_OF_PROPERTIES: Final[dict[str, bytes]] = {
    "content_type": b"content-type",
    "content_encoding": b"content-encoding",
    "correlation_id": b"correlation-id",
    "reply_to": b"reply-to",
    "message_id": b"message-id",
    "type": b"type",
    "app_id": b"app-id",
}
PRIORITY_HEADER: Final = b"priority"
# As records have AMQP's properties; the last two are not read from them.
PROPERTY_HEADERS: Final[dict[str, bytes]] = {
    **HEADERS_OF_PROPERTIES,
    "priority": PRIORITY_HEADER,
    "expiration": b"expiration",
    "user_id": b"user-id",
}
_PRIORITY_MAX: Final = 255

# Headers that AMQP's publishers set to lists.
_OF_ROUTING_KEYS: Final = frozenset(("CC", "BCC"))

_WITHOUT_VALUE: Final[i64] = 1
_WITHOUT_KEY: Final[i64] = 2
_NO_HEADERS: Final = b"\x00"
_HEAD_BYTES: Final[i64] = 13


@final
class RecordProperties(Properties):
    """Made by `record_properties` and `parse_record_properties`."""

    def __init__(
        self,
        raw: bytes,
        priority: int,
        timestamp_ms: i64,
        key: bytes | None,
        is_tombstone: bool,
        headers_raw: bytes,
        changes: str,
    ) -> None:
        super().__init__(FORMAT, raw, True, priority, -1)
        self.timestamp_ms: Final[i64] = timestamp_ms
        self.key: Final = key
        self.is_tombstone: Final = is_tombstone
        self.headers_raw: Final = headers_raw
        self._changes: Final = changes

    def record_headers(self) -> list[tuple[bytes, bytes | None]]:
        """The record's own headers, without those that AMQP has replaced."""
        return decode_headers(self.headers_raw)

    def changes(self) -> list[tuple[str, object]]:
        """What AMQP has put among the headers since, in order."""
        if not self._changes:
            return []
        pairs = decode(self._changes)
        if not isinstance(pairs, list):
            raise CorruptData("a record's further headers are no list")
        changes: list[tuple[str, object]] = []
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
                raise CorruptData("a record's further header has no name")
            changes.append((pair[0], pair[1]))
        return changes

    def of_record(self, timestamp_ms: i64, key: bytes | None, is_tombstone: bool) -> RecordProperties:
        """As these, of a record with another time, key, or value."""
        if timestamp_ms == self.timestamp_ms and key == self.key and is_tombstone == self.is_tombstone:
            return self
        return _made(timestamp_ms, key, is_tombstone, self.headers_raw, self._changes)

    def headers(self) -> dict[str, object]:
        headers: dict[str, object] = {}
        if self.headers_raw != _NO_HEADERS:
            counts: dict[str, int] = {}
            for raw_name, value in decode_headers(self.headers_raw, RECORD_HEADERS_SHOWN_MAX):
                if len(raw_name) > NAME_BYTES_MAX:
                    # AMQP has no room for the name.
                    continue
                name = raw_name.decode("utf-8", "surrogateescape")
                count = counts.get(name, 0)
                counts[name] = count + 1
                if count == 0:
                    headers[name] = _typed(name, shown(value))
                else:
                    several = headers[name]
                    if count == 1 or not isinstance(several, list):
                        several = headers[name] = [several]
                    several.append(shown(value))
        if self.timestamp_ms >= 0:
            headers[TIMESTAMP_HEADER] = int(self.timestamp_ms)
        key = self.key
        if key is not None and routing_key_of(key) == "":
            headers[KEY_HEADER] = key
        if self.is_tombstone:
            headers[TOMBSTONE_HEADER] = True
        headers.update(self.changes())
        return headers

    def named(self, name: str) -> str:
        if name == "timestamp":
            return str(self.timestamp_ms // 1000) if self.timestamp_ms >= 0 else ""
        return self._text(name) or ""

    def _text(self, name: str) -> str | None:
        """A property of AMQP's that a header stands for."""
        header = HEADERS_OF_PROPERTIES[name]
        # What most records do not have is not looked for twice.
        if header not in self.headers_raw:
            return None
        for key, value in decode_headers(self.headers_raw, RECORD_HEADERS_SHOWN_MAX):
            if key == header and value is not None and len(value) <= NAME_BYTES_MAX:
                text = shown(value)
                if isinstance(text, str):
                    return text
        return None

    def described(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for name in HEADERS_OF_PROPERTIES:
            text = self._text(name)
            if text is not None:
                found[name] = text
        headers = self.headers()
        if headers:
            found["headers"] = headers
        found["delivery_mode"] = 2
        if self.priority > 0:
            found["priority"] = self.priority
        if self.timestamp_ms >= 0:
            found["timestamp"] = int(self.timestamp_ms // 1000)
        return found

    def replaced(self, headers: dict[str, object], keep_expiration: bool) -> RecordProperties:
        if not headers:
            return self
        kept = self.headers_raw
        if kept != _NO_HEADERS:
            own = decode_headers(kept)
            left = [(name, value) for name, value in own if name.decode("utf-8", "surrogateescape") not in headers]
            if len(left) < len(own):
                kept = encode_headers(left)
        changes = [[name, value] for name, value in self.changes() if name not in headers]
        changes += [[name, value] for name, value in headers.items() if value is not None]
        text = encode(changes) if changes else ""
        return _made(self.timestamp_ms, self.key, self.is_tombstone, kept, text)


def shown(value: bytes | None) -> object:
    """A header's value as AMQP sees it: text where it is UTF-8."""
    if value is None:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _typed(name: str, value: object) -> object:
    """The value of a header as those read it for whom it is meant: those of Kafka's are all text."""
    return [value] if name in _OF_ROUTING_KEYS and isinstance(value, str) else value


def routing_key_of(key: bytes | None) -> str:
    """The routing key that stands for a record's key; empty where none can."""
    if key is None or len(key) > NAME_BYTES_MAX:
        return ""
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def record_properties(timestamp_ms: i64, key: bytes | None, is_tombstone: bool, headers_raw: bytes) -> RecordProperties:
    """The properties of a record. `headers_raw` as `RecordReader.headers_raw`, which has checked them."""
    return _made(timestamp_ms, key, is_tombstone, headers_raw, "")


def _made(
    timestamp_ms: i64, key: bytes | None, is_tombstone: bool, headers_raw: bytes, changes: str
) -> RecordProperties:
    flags: i64 = (_WITHOUT_VALUE if is_tombstone else 0) | (_WITHOUT_KEY if key is None else 0)
    writer = BytesWriter()
    writer.append(int(flags))
    write_i64_be(writer, timestamp_ms)
    write_i32_be(writer, 0 if key is None else i32(len(key)))
    if key is not None:
        writer.write(key)
    write_i32_be(writer, i32(len(headers_raw)))
    writer.write(headers_raw)
    if changes:
        writer.write(changes.encode("ascii"))
    priority = _priority(headers_raw) if PRIORITY_HEADER in headers_raw else 0
    return RecordProperties(writer.getvalue(), priority, timestamp_ms, key, is_tombstone, headers_raw, changes)


def parse_record_properties(raw: bytes) -> RecordProperties:
    """What `RecordProperties.raw` says. Raises CorruptData."""
    size: i64 = len(raw)
    if size < _HEAD_BYTES:
        raise CorruptData("a record's properties are cut short")
    flags: i64 = raw[0]
    timestamp_ms = read_i64_be(raw, 1)
    key_end: i64 = _HEAD_BYTES + (i64(read_i32_be(raw, 9)) & 0xFFFF_FFFF)
    if key_end + 4 > size:
        raise CorruptData("a record's key is cut short")
    headers_end: i64 = key_end + 4 + (i64(read_i32_be(raw, key_end)) & 0xFFFF_FFFF)
    if headers_end > size:
        raise CorruptData("a record's headers are cut short")
    headers_raw = raw[key_end + 4 : headers_end]
    if headers_raw != _NO_HEADERS:
        decode_headers(headers_raw)
    try:
        changes = raw[headers_end:].decode("ascii")
    except UnicodeDecodeError as error:
        raise CorruptData(f"a record's further headers make no sense: {error}") from error
    key = None if flags & _WITHOUT_KEY != 0 else raw[_HEAD_BYTES:key_end]
    priority = _priority(headers_raw) if PRIORITY_HEADER in headers_raw else 0
    properties = RecordProperties(raw, priority, timestamp_ms, key, flags & _WITHOUT_VALUE != 0, headers_raw, changes)
    properties.changes()
    return properties


def _priority(headers_raw: bytes) -> int:
    for name, value in decode_headers(headers_raw, RECORD_HEADERS_SHOWN_MAX):
        if name == PRIORITY_HEADER and value is not None and len(value) <= 3 and value.isdigit():
            return min(int(value), _PRIORITY_MAX)
    return 0


PROPERTIES_FORMATS[FORMAT] = parse_record_properties
