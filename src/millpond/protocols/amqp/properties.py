"""A message's properties in AMQP 0-9-1: the part of a content header frame that follows the body size.

    flags            16 bits: which of the properties follow, in this order; the last two bits are never set
    0x8000           content_type         name (8-bit length, text)
    0x4000           content_encoding     name
    0x2000           headers              table (32-bit length, entries)
    0x1000           delivery_mode        8 bits: 2 is persistent
    0x0800           priority             8 bits
    0x0400           correlation_id       name
    0x0200           reply_to             name
    0x0100           expiration           name: milliseconds in decimal digits
    0x0080           message_id           name
    0x0040           timestamp            64 bits: seconds since 1970
    0x0020           type                 name
    0x0010           user_id              name
    0x0008           app_id               name
    0x0004           cluster_id           name

The bytes stay as they came, and go to consumers as they are. What the core asks for is found by walking over them once;
the headers are checked then, so that what no client could decode is refused from its publisher and never reaches a
consumer, and are decoded only when something asks.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, final

from librt.strings import BytesWriter, read_i16_be, read_i32_be, read_i64_be, write_i32_be, write_i64_be
from mypy_extensions import i64

from millpond.base.errors import PeerError, PreconditionFailed, SyntaxFault
from millpond.base.limits import EXPIRATION_MS_MAX, NAME_BYTES_MAX
from millpond.broker.message import PROPERTIES_FORMATS, Properties
from millpond.broker.record_properties import PROPERTY_HEADERS
from millpond.protocols.amqp import field_table
from millpond.protocols.amqp.record_headers import write_header, write_headers

FORMAT: Final = 1

CONTENT_TYPE: Final = 0x8000
CONTENT_ENCODING: Final = 0x4000
HEADERS: Final = 0x2000
DELIVERY_MODE: Final = 0x1000
PRIORITY: Final = 0x0800
CORRELATION_ID: Final = 0x0400
REPLY_TO: Final = 0x0200
EXPIRATION: Final = 0x0100
MESSAGE_ID: Final = 0x0080
TIMESTAMP: Final = 0x0040
TYPE: Final = 0x0020
USER_ID: Final = 0x0010
APP_ID: Final = 0x0008
CLUSTER_ID: Final = 0x0004
# The flag that says that more flags follow, and one that stands for nothing: AMQP 0-9-1 has no such properties.
_UNUSED: Final = 0x0003

# In their order on the wire.
NAMES: Final[list[tuple[str, int]]] = [
    ("content_type", CONTENT_TYPE),
    ("content_encoding", CONTENT_ENCODING),
    ("headers", HEADERS),
    ("delivery_mode", DELIVERY_MODE),
    ("priority", PRIORITY),
    ("correlation_id", CORRELATION_ID),
    ("reply_to", REPLY_TO),
    ("expiration", EXPIRATION),
    ("message_id", MESSAGE_ID),
    ("timestamp", TIMESTAMP),
    ("type", TYPE),
    ("user_id", USER_ID),
    ("app_id", APP_ID),
    ("cluster_id", CLUSTER_ID),
]

# What a record of a stream has as headers: all but delivery mode, timestamp and cluster.
_SHOWN_AS: Final[dict[int, bytes]] = {flag: PROPERTY_HEADERS[name] for name, flag in NAMES if name in PROPERTY_HEADERS}
_SHOWN: Final = sum(_SHOWN_AS)

PERSISTENT: Final = 2

# A number that takes 64 bits in a field table.
_LARGEST: Final = (1 << 63) - 1

# How many headers had no room.
HEADERS_LEFT_OUT: Final = "x-headers-left-out"

# Properties without any property: two bytes of flags.
EMPTY: Final = b"\x00\x00"


@final
class BasicProperties(Properties):
    """Made by `parse_properties`, which has checked the bytes."""

    def __init__(
        self,
        raw: bytes,
        persistent: bool,
        priority: int,
        expiration_ms: i64,
        flags: i64,
        headers_start: i64,
        headers_end: i64,
    ) -> None:
        super().__init__(FORMAT, raw, persistent, priority, expiration_ms)
        self._flags: Final[i64] = flags
        # Where the entries of the header table are, without its length; both 0 where there is none.
        self._headers_start: Final[i64] = headers_start
        self._headers_end: Final[i64] = headers_end

    @property
    def has_headers(self) -> bool:
        """There is at least one header."""
        return self._headers_end > self._headers_start

    @property
    def headers_raw(self) -> bytes:
        """The entries of the header table as they came, without the table's length."""
        return self.raw[self._headers_start : self._headers_end]

    def headers(self) -> dict[str, object]:
        if self._headers_end == self._headers_start:
            return {}
        return field_table.decode_entries(self.raw, self._headers_start, self._headers_end, 0)

    def text(self, flag: i64) -> str | None:
        """One of the properties that are names, by its flag; None where it is absent."""
        if self._flags & flag == 0:
            return None
        start = _position_of(self.raw, flag)
        return field_table.decode_text(self.raw, start + 1, start + 1 + self.raw[start])

    def content_type(self) -> str | None:
        return self.text(CONTENT_TYPE)

    def content_encoding(self) -> str | None:
        return self.text(CONTENT_ENCODING)

    def correlation_id(self) -> str | None:
        return self.text(CORRELATION_ID)

    def reply_to(self) -> str | None:
        return self.text(REPLY_TO)

    def expiration(self) -> str | None:
        """As the publisher wrote it: dead-lettering keeps it as `original-expiration`."""
        return self.text(EXPIRATION)

    def message_id(self) -> str | None:
        return self.text(MESSAGE_ID)

    def type(self) -> str | None:
        return self.text(TYPE)

    def user_id(self) -> str | None:
        return self.text(USER_ID)

    def app_id(self) -> str | None:
        return self.text(APP_ID)

    def timestamp_s(self) -> int | None:
        """What the publisher put into `timestamp`: seconds since 1970, though some write milliseconds."""
        if self._flags & TIMESTAMP == 0:
            return None
        return int(read_i64_be(self.raw, _position_of(self.raw, TIMESTAMP))) & 0xFFFFFFFFFFFFFFFF

    def described(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, flag in NAMES:
            if self._flags & flag == 0:
                continue
            if flag == HEADERS:
                found[name] = self.headers()
            elif flag == TIMESTAMP:
                found[name] = self.timestamp_s()
            elif flag & (DELIVERY_MODE | PRIORITY) != 0:
                found[name] = self.raw[_position_of(self.raw, flag)]
            else:
                found[name] = self.text(flag)
        return found

    def named(self, name: str) -> str:
        if name == "timestamp":
            timestamp_s = self.timestamp_s()
            return "" if timestamp_s is None else str(timestamp_s)
        return self.text(MESSAGE_ID if name == "message_id" else CORRELATION_ID) or ""

    def write_record_headers(self, writer: BytesWriter) -> i64:
        raw = self.raw
        taken: list[bytes] = []
        count: i64 = 0
        if self._headers_end > self._headers_start:
            count = write_headers(writer, raw, self._headers_start, self._headers_end, taken)
            if count < 0:
                return -1
        if self._flags & _SHOWN == 0:
            return count
        position: i64 = 2
        flag: i64 = CONTENT_TYPE
        while flag >= APP_ID:
            if self._flags & flag != 0:
                if flag == HEADERS:
                    position = self._headers_end
                elif flag == TIMESTAMP:
                    position += 8
                elif flag == PRIORITY:
                    if b"priority" not in taken:
                        write_header(writer, b"priority", str(raw[position]).encode())
                        count += 1
                    position += 1
                elif flag == DELIVERY_MODE:
                    position += 1
                else:
                    end: i64 = position + 1 + raw[position]
                    name = _SHOWN_AS[int(flag)]
                    if name not in taken:
                        write_header(writer, name, raw[position + 1 : end])
                        count += 1
                    position = end
            flag >>= 1
        return count

    def replaced(self, headers: dict[str, object], keep_expiration: bool) -> BasicProperties:
        drop_expiration = not keep_expiration and self._flags & EXPIRATION != 0
        if not headers and not drop_expiration:
            return self
        entries = self._entries_replaced(headers)
        flags = self._flags & ~EXPIRATION if drop_expiration else self._flags
        if entries:
            flags |= HEADERS
        writer = BytesWriter()
        _write_flags(writer, flags)
        # Where the header table is or, where there is none, belongs.
        table_start: i64 = self._headers_start - 4
        table_end: i64 = self._headers_end
        if self._flags & HEADERS == 0:
            table_start = table_end = _position_of(self.raw, HEADERS)
        writer.write(self.raw[2:table_start])
        if flags & HEADERS != 0:
            write_i32_be(writer, len(entries))
            writer.write(entries)
        if drop_expiration:
            start = _position_of(self.raw, EXPIRATION)
            writer.write(self.raw[table_end:start])
            writer.write(self.raw[start + 1 + self.raw[start] :])
        else:
            writer.write(self.raw[table_end:])
        return parse_properties(writer.getvalue())

    def around_number(self, name: str) -> tuple[bytes, bytes]:
        """What comes before and after eight bytes that are the value of a further header, in place of any of that name:
        for one that every delivery has another value of."""
        entry = field_table.encode_entry(name, _LARGEST)
        if self._has_header(name):
            return self.replaced({name: None}, True).around_number(name)
        table_start: i64 = self._headers_start - 4
        table_end: i64 = self._headers_end
        if self._flags & HEADERS == 0:
            table_start = table_end = _position_of(self.raw, HEADERS)
        entries = self.headers_raw + entry
        writer = BytesWriter()
        _write_flags(writer, self._flags | HEADERS)
        writer.write(self.raw[2:table_start])
        write_i32_be(writer, len(entries))
        writer.write(entries[: len(entries) - 8])
        return writer.getvalue(), self.raw[table_end:]

    def _has_header(self, name: str) -> bool:
        raw = self.raw
        end: i64 = self._headers_end
        position: i64 = self._headers_start
        while position < end:
            value_at = field_table.name_end(raw, position, end)
            if field_table.decode_text(raw, position + 1, value_at) == name:
                return True
            position = field_table.value_end(raw, value_at, end, 1)
        return False

    def with_reply_to(self, reply_to: str) -> BasicProperties:
        """A copy with another `reply_to`, which must be there."""
        start = _position_of(self.raw, REPLY_TO)
        name = reply_to.encode("utf-8", "surrogateescape")
        rest = self.raw[start + 1 + self.raw[start] :]
        return parse_properties(self.raw[:start] + bytes((len(name),)) + name + rest)

    def _entries_replaced(self, headers: dict[str, object]) -> bytes:
        """The entries of the header table, those named set or removed, the others as they are."""
        raw = self.raw
        end: i64 = self._headers_end
        writer = BytesWriter()
        ahead = dict(headers)
        copied: i64 = self._headers_start
        position: i64 = copied
        while position < end:
            value_at = field_table.name_end(raw, position, end)
            name = field_table.decode_text(raw, position + 1, value_at)
            after = field_table.value_end(raw, value_at, end, 1)
            if name in headers:
                writer.write(raw[copied:position])
                # In its old place. A second entry of the same name has no place to go.
                value = ahead.pop(name, None)
                if value is not None:
                    writer.write(field_table.encode_entry(name, value))
                copied = after
            position = after
        writer.write(raw[copied:end])
        for name, value in ahead.items():
            if value is not None:
                writer.write(field_table.encode_entry(name, value))
        return writer.getvalue()


def parse_properties(raw: bytes) -> BasicProperties:
    """Check properties and find what the core asks for.

    Raises SyntaxFault for bytes that do not decode, LimitExceeded for headers nested too deep, PreconditionFailed for
    an expiration that is not a number of milliseconds, with RabbitMQ's text.
    """
    end: i64 = len(raw)
    if end < 2:
        raise SyntaxFault("the properties are cut short")
    flags: i64 = i64(read_i16_be(raw, 0)) & 0xFFFF
    if flags & _UNUSED != 0:
        raise SyntaxFault(f"property flags 0x{flags:04x} are for properties that do not exist")
    position: i64 = 2
    headers_start: i64 = 0
    headers_end: i64 = 0
    persistent = False
    priority: i64 = 0
    expiration_ms: i64 = -1
    if flags & CONTENT_TYPE != 0:
        position = field_table.name_end(raw, position, end)
    if flags & CONTENT_ENCODING != 0:
        position = field_table.name_end(raw, position, end)
    if flags & HEADERS != 0:
        headers_end = field_table.content_end(raw, position, end)
        headers_start = position + 4
        field_table.check_entries(raw, headers_start, headers_end, 0)
        position = headers_end
    if flags & DELIVERY_MODE != 0:
        persistent = _octet(raw, position, end) == PERSISTENT
        position += 1
    if flags & PRIORITY != 0:
        priority = _octet(raw, position, end)
        position += 1
    if flags & CORRELATION_ID != 0:
        position = field_table.name_end(raw, position, end)
    if flags & REPLY_TO != 0:
        position = field_table.name_end(raw, position, end)
    if flags & EXPIRATION != 0:
        start = position + 1
        position = field_table.name_end(raw, position, end)
        expiration_ms = _parse_expiration(raw, start, position)
    if flags & MESSAGE_ID != 0:
        position = field_table.name_end(raw, position, end)
    if flags & TIMESTAMP != 0:
        # Not read here: whether it is all there shows in the names after it, or at the end.
        position += 8
    if flags & TYPE != 0:
        position = field_table.name_end(raw, position, end)
    if flags & USER_ID != 0:
        position = field_table.name_end(raw, position, end)
    if flags & APP_ID != 0:
        position = field_table.name_end(raw, position, end)
    if flags & CLUSTER_ID != 0:
        position = field_table.name_end(raw, position, end)
    if position > end:
        raise SyntaxFault("the properties are cut short")
    if position < end:
        raise SyntaxFault(f"{end - position} bytes after the properties")
    return BasicProperties(raw, persistent, int(priority), expiration_ms, flags, headers_start, headers_end)


def basic_properties(properties: Properties) -> BasicProperties:
    """Any message's properties as AMQP has them. What AMQP has no encoding for is left out."""
    return properties if isinstance(properties, BasicProperties) else _TRANSLATION.of(properties)


def fitting_properties(properties: Properties, bytes_max: i64) -> BasicProperties:
    """As `basic_properties`, in no more than `bytes_max`: the largest headers are left out where there is no room for
    them all, since a header frame cannot be split, and a further one says how many."""
    basic = basic_properties(properties)
    if len(basic.raw) <= bytes_max:
        return basic
    entries = [(name, field_table.encode_entry(name, value)) for name, value in basic.headers().items()]
    kept = dict(entries)
    size: i64 = len(basic.raw) + len(field_table.encode_entry(HEADERS_LEFT_OUT, _LARGEST))
    for name, entry in sorted(entries, key=_size_of, reverse=True):
        if size <= bytes_max:
            break
        size -= len(entry)
        del kept[name]
    changes: dict[str, object] = {name: None for name, _ in entries if name not in kept}
    changes[HEADERS_LEFT_OUT] = len(entries) - len(kept)
    return basic.replaced(changes, True)


def _size_of(entry: tuple[str, bytes]) -> int:
    return len(entry[1])


@final
class _Translation:
    """Properties of another protocol's in AMQP's encoding. The last ones are kept: a message goes to several queues."""

    def __init__(self) -> None:
        self._source: Properties | None = None
        self._made: BasicProperties | None = None

    def of(self, properties: Properties) -> BasicProperties:
        made = self._made
        if made is None or properties is not self._source:
            made = self._made = _translated(properties)
            self._source = properties
        return made


_TRANSLATION: Final = _Translation()


def _translated(properties: Properties) -> BasicProperties:
    values = properties.described()
    try:
        return parse_properties(encode_properties(**values))  # type: ignore[arg-type]
    except (TypeError, ValueError, PeerError):
        # One of the headers has no encoding: its number is too large, or it is nested too deep.
        headers = values.pop("headers", None)
        encodable: dict[str, object] = {}
        if isinstance(headers, dict):
            for name, value in headers.items():
                try:
                    field_table.encode_entry(name, value)
                except (TypeError, ValueError):
                    continue
                encodable[name] = value
        return parse_properties(encode_properties(headers=encodable or None, **values))  # type: ignore[arg-type]


def _octet(raw: bytes, position: i64, end: i64) -> i64:
    if position >= end:
        raise SyntaxFault("the properties are cut short")
    return raw[position]


def _position_of(raw: bytes, flag: i64) -> i64:
    """Where the property of a flag begins or, where it is absent, would. `raw` has been checked."""
    flags: i64 = i64(read_i16_be(raw, 0)) & 0xFFFF
    position: i64 = 2
    before: i64 = CONTENT_TYPE
    while before != flag:
        if flags & before != 0:
            if before == HEADERS:
                position += 4 + i64(read_i32_be(raw, position))
            elif before & (DELIVERY_MODE | PRIORITY) != 0:
                position += 1
            elif before == TIMESTAMP:
                position += 8
            else:
                position += 1 + raw[position]
        before >>= 1
    return position


def _write_flags(writer: BytesWriter, flags: i64) -> None:
    writer.append(int(flags >> 8))
    writer.append(int(flags & 0xFF))


def _parse_expiration(raw: bytes, start: i64, end: i64) -> i64:
    """Milliseconds. RabbitMQ reads a sign and digits, which must be all, not negative, and at most ten years."""
    position = start
    if position < end and (raw[position] == ord("-") or raw[position] == ord("+")):
        position += 1
    first_digit = position
    while position < end and ord("0") <= raw[position] <= ord("9"):
        position += 1
    if position == first_digit:
        raise _invalid_expiration(raw, start, end, "no_integer")
    number = int(raw[start:position])
    if position < end:
        rest = field_table.decode_text(raw, position, end)
        raise _invalid_expiration(raw, start, end, f'{{leftover_string,"{rest}"}}')
    if number < 0:
        raise _invalid_expiration(raw, start, end, f"{{value_negative,{number}}}")
    if number > EXPIRATION_MS_MAX:
        raise _invalid_expiration(raw, start, end, f"{{value_too_large,{number}}}")
    return number


def _invalid_expiration(raw: bytes, start: i64, end: i64, reason: str) -> PreconditionFailed:
    return PreconditionFailed(f"invalid expiration '{field_table.decode_text(raw, start, end)}': {reason}")


def encode_properties(
    *,
    content_type: str | None = None,
    content_encoding: str | None = None,
    headers: dict[str, object] | None = None,
    delivery_mode: int | None = None,
    priority: int | None = None,
    correlation_id: str | None = None,
    reply_to: str | None = None,
    expiration: str | None = None,
    message_id: str | None = None,
    timestamp: datetime | int | None = None,
    type: str | None = None,
    user_id: str | None = None,
    app_id: str | None = None,
    cluster_id: str | None = None,
) -> bytes:
    """The bytes of properties: those that are not None. Raises TypeError or ValueError for what has no encoding."""
    body = BytesWriter()
    flags = _write_text(body, CONTENT_TYPE, content_type) | _write_text(body, CONTENT_ENCODING, content_encoding)
    if headers is not None:
        flags |= HEADERS
        field_table.write_table(body, headers, 0)
    if delivery_mode is not None:
        flags |= DELIVERY_MODE
        body.append(delivery_mode)
    if priority is not None:
        flags |= PRIORITY
        body.append(priority)
    flags |= _write_text(body, CORRELATION_ID, correlation_id) | _write_text(body, REPLY_TO, reply_to)
    flags |= _write_text(body, EXPIRATION, expiration) | _write_text(body, MESSAGE_ID, message_id)
    if timestamp is not None:
        flags |= TIMESTAMP
        write_i64_be(body, timestamp if isinstance(timestamp, int) else int(timestamp.timestamp()))
    flags |= _write_text(body, TYPE, type) | _write_text(body, USER_ID, user_id)
    flags |= _write_text(body, APP_ID, app_id) | _write_text(body, CLUSTER_ID, cluster_id)
    writer = BytesWriter()
    _write_flags(writer, flags)
    writer.write(body.getvalue())
    return writer.getvalue()


def _write_text(writer: BytesWriter, flag: int, text: str | None) -> int:
    """Append a name, if there is one. Returns the flags that this sets."""
    if text is None:
        return 0
    encoded = text.encode("utf-8", "surrogateescape")
    if len(encoded) > NAME_BYTES_MAX:
        raise ValueError(f"a property of {len(encoded)} bytes, but only {NAME_BYTES_MAX} fit")
    writer.append(len(encoded))
    writer.write(encoded)
    return flag


PROPERTIES_FORMATS[FORMAT] = parse_properties
