"""How a message is written as a record, and what the journal's frames say.

A message is one record of a batch:

    key      routing key
    value    body
    header   "millpond": format u8 | exchange length u8 | exchange | properties, in the encoding that `format` names
             of a message that waits for its time, bit 7 of the format is set, and before the properties come
             due i64 | returns i32

The core writes one journal frame a turn (kind TURN), whose payload is a sequence of changes that recovery applies
together or not at all. A turn that is too large for one frame is written as several, TURN_BEGIN, TURN_MORE and so on up
to TURN_END, whose payloads count as one; what was begun and never ended is passed over.

    change u8 | length u32 | payload

    BATCH    target count u16 | (log id i64, base offset i64) each | record batch
             The batch's records were appended to every target; their offsets are the target's base offset + delta.
    SETTLED  log id i64 | start i64 | end i64 | count u32 | bytes i64
             Every message of [start, end) that was still there is settled: count of them, of this size together.
             A range never crosses a page.
    ATTEMPTED  log id i64 | offset i64 | returns i64
             So often has this message been given back by now.
    TRIMMED  log id i64 | start offset i64
             What a stream has before this offset is gone.
    GROUP, SHARE, TRANSACTION, ROUTED  a record of a keeper: see keepers.py
             A consumer group has changed, the delivery state of a share group, a transaction, or how far a topic's
             records have been routed.
    CARRIED  as BATCH, for messages that an earlier journal file holds and that a checkpoint wrote again: nothing that
             happened.
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import BytesWriter, read_i16_be, read_i32_be, read_i64_be, write_i32_be, write_i64_be
from mypy_extensions import i32, i64

# Registers the encoding of what a queue has of Kafka's.
import millpond.broker.record_properties  # noqa: F401
from millpond.base.errors import CorruptData, PeerError
from millpond.broker.message import PROPERTIES_FORMATS, Address, Message, Properties
from millpond.storage.record_batch import RecordReader

KIND_TURN: Final = 1
KIND_TURN_BEGIN: Final = 2
KIND_TURN_MORE: Final = 3
KIND_TURN_END: Final = 4

CHANGE_BATCH: Final = 1
CHANGE_SETTLED: Final = 2
CHANGE_CARRIED: Final = 3
CHANGE_ATTEMPTED: Final = 4
CHANGE_TRIMMED: Final = 5
# Those of keepers.
CHANGE_GROUP: Final = 6
CHANGE_SHARE: Final = 7
CHANGE_TRANSACTION: Final = 8
CHANGE_ROUTED: Final = 9

# A message may be routed to more queues than a batch has room for as targets: it is then written once for so many.
TARGETS_PER_BATCH_MAX: Final = 30_000

# The format byte of a message that waits for its time, and what that adds to the header.
TIMED: Final = 0x80
TIMED_BYTES: Final = 12

SETTLED_BYTES: Final = 36
ATTEMPTED_BYTES: Final = 24
TRIMMED_BYTES: Final = 16


def record_header(message: Message) -> bytes:
    """The value of the reserved header: where the message was published to, and its properties."""
    exchange = message.address.exchange.encode("utf-8", "surrogateescape")
    if message.due_ms == 0 and message.returns == 0:
        return bytes((message.properties.format, len(exchange))) + exchange + message.properties.raw
    writer = BytesWriter()
    writer.append(message.properties.format | TIMED)
    writer.append(len(exchange))
    writer.write(exchange)
    write_i64_be(writer, message.due_ms)
    write_i32_be(writer, i32(message.returns))
    writer.write(message.properties.raw)
    return writer.getvalue()


@final
class MessageReader:
    """Turns records back into messages. What neighbouring messages have in common is shared among them."""

    def __init__(self) -> None:
        self._key = b""
        self._header = b""
        self._address: Address | None = None
        self._properties: Properties | None = None
        self._due_ms: i64 = 0
        self._returns: i64 = 0

    def message(self, record: RecordReader) -> Message:
        """The message in the reader's present record. CorruptData where it is none."""
        key = record.key
        header = record.header_value
        if key is None or header is None:
            raise CorruptData("a record without a routing key or properties is no queue's message")
        address = self._address
        properties = self._properties
        if address is None or properties is None or key != self._key or header != self._header:
            if len(header) < 2 or len(header) < 2 + header[1]:
                raise CorruptData("a record's properties are cut short")
            start: i64 = 2 + header[1]
            address = Address(
                header[2:start].decode("utf-8", "surrogateescape"), key.decode("utf-8", "surrogateescape")
            )
            number: i64 = header[0]
            due_ms: i64 = 0
            returns: i64 = 0
            if number & TIMED != 0:
                if len(header) < start + TIMED_BYTES:
                    raise CorruptData("a record's due time is cut short")
                due_ms = read_i64_be(header, start)
                returns = i64(read_i32_be(header, start + 8))
                start += TIMED_BYTES
                number ^= TIMED
            decode = PROPERTIES_FORMATS.get(int(number))
            if decode is None:
                raise CorruptData(f"a record's properties have the unknown format {header[0]}")
            try:
                properties = decode(header[start:])
            except PeerError as error:
                # A protocol calls it a client's mistake. But no client wrote this.
                raise CorruptData(f"a record's properties make no sense: {error}") from error
            self._key = key
            self._header = header
            self._address = address
            self._properties = properties
            self._due_ms = due_ms
            self._returns = returns
        return Message(address, properties, record.value or b"", record.timestamp_ms, self._due_ms, self._returns)


@final
class Changes:
    """Walks the changes of one TURN frame. Every length is checked against the payload."""

    def __init__(self, payload: bytes) -> None:
        self._payload: Final = payload
        self._position: i64 = 0
        self.kind = 0
        self.body = b""

    def next(self) -> bool:
        """Move to the next change; False at the end."""
        position = self._position
        size: i64 = len(self._payload)
        if position >= size:
            return False
        if size - position < 5:
            raise CorruptData("a journal change is cut short")
        self.kind = self._payload[position]
        length = i64(read_i32_be(self._payload, position + 1))
        end = position + 5 + length
        if length < 0 or end > size:
            raise CorruptData("a journal change is longer than its frame")
        self.body = self._payload[position + 5 : end]
        self._position = end
        return True


def batch_targets(body: bytes) -> tuple[list[tuple[int, int]], bytes]:
    """A BATCH change's targets as (log id, base offset), and the record batch."""
    count = i64(read_i16_be(body, 0)) & 0xFFFF if len(body) >= 2 else i64(-1)
    start = 2 + count * 16
    if count < 1 or len(body) < start:
        raise CorruptData("a batch's targets are cut short")
    targets: list[tuple[int, int]] = []
    for index in range(count):
        at = 2 + i64(index) * 16
        targets.append((read_i64_be(body, at), read_i64_be(body, at + 8)))
    return targets, body[start:]


def settled_range(body: bytes) -> tuple[int, int, int, int, int]:
    """A SETTLED change's (log id, start, end, count, bytes)."""
    if len(body) != SETTLED_BYTES:
        raise CorruptData("a settlement is cut short")
    return (
        read_i64_be(body, 0),
        read_i64_be(body, 8),
        read_i64_be(body, 16),
        i64(read_i32_be(body, 24)) & 0xFFFFFFFF,
        read_i64_be(body, 28),
    )


def attempted(body: bytes) -> tuple[int, int, int]:
    """An ATTEMPTED change's (log id, offset, returns)."""
    if len(body) != ATTEMPTED_BYTES:
        raise CorruptData("a count of returns is cut short")
    return read_i64_be(body, 0), read_i64_be(body, 8), read_i64_be(body, 16)


def trimmed(body: bytes) -> tuple[int, int]:
    """A TRIMMED change's (log id, start offset)."""
    if len(body) != TRIMMED_BYTES:
        raise CorruptData("a stream's new start is cut short")
    return read_i64_be(body, 0), read_i64_be(body, 8)
