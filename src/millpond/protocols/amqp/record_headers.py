"""The headers of a Kafka record that AMQP's headers and properties become, written from the bytes that they came in.

What becomes of each is told in `broker/streams/message_records.py`, which gives the same in the general way: here it is
done without making objects of all of them, since every message of a stream goes through it.
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import BytesWriter, read_i32_be, read_i64_be
from mypy_extensions import i64

from millpond.broker.record_properties import PROPERTY_HEADERS
from millpond.broker.streams.message_records import EXPRESSED, header_value
from millpond.protocols.amqp import field_table
from millpond.storage.record_batch import write_varint

# Names that mean more than those of other headers.
_SPECIAL: Final = EXPRESSED | frozenset(PROPERTY_HEADERS.values())

_STRING: Final = ord("S")
_BYTES: Final = ord("x")
_BOOLEAN: Final = ord("t")
_LONG: Final = ord("l")
_INT: Final = ord("I")
_NOTHING: Final = ord("V")


@final
class _Texts:
    """Other values as text. The last one is kept: messages of one program often have the same."""

    def __init__(self) -> None:
        self._raw = b""
        self._text = b""

    def of(self, raw: bytes) -> bytes:
        if raw != self._raw:
            self._text = header_value(field_table.decode_value(raw, 0, len(raw))) or b""
            self._raw = raw
        return self._text


_TEXTS: Final = _Texts()


def write_headers(writer: BytesWriter, raw: bytes, position: i64, end: i64, taken: list[bytes]) -> i64:
    """Append the entries of a header table, which have been checked; how many there are. -1 where one of them says
    something of the record's key, value or time. Names that are those of properties too are put into `taken`."""
    count: i64 = 0
    while position < end:
        value_at: i64 = position + 1 + raw[position]
        name = raw[position + 1 : value_at]
        if name in _SPECIAL:
            if name in EXPRESSED:
                return -1
            taken.append(name)
        write_varint(writer, len(name))
        writer.write(name)
        letter: i64 = raw[value_at]
        if letter in (_STRING, _BYTES):
            position = value_at + 5 + (i64(read_i32_be(raw, value_at + 1)) & 0xFFFF_FFFF)
            write_varint(writer, position - value_at - 5)
            writer.write(raw[value_at + 5 : position])
        elif letter == _NOTHING:
            position = value_at + 1
            write_varint(writer, -1)
        else:
            if letter == _BOOLEAN:
                position = value_at + 2
                text = b"true" if raw[value_at + 1] != 0 else b"false"
            elif letter == _LONG:
                position = value_at + 9
                text = str(read_i64_be(raw, value_at + 1)).encode()
            elif letter == _INT:
                position = value_at + 5
                text = str(read_i32_be(raw, value_at + 1)).encode()
            else:
                position = field_table.value_end(raw, value_at, end, 1)
                text = _TEXTS.of(raw[value_at:position])
            write_varint(writer, len(text))
            writer.write(text)
        count += 1
    return count


def write_header(writer: BytesWriter, name: bytes, value: bytes) -> None:
    """Append one header."""
    write_varint(writer, len(name))
    writer.write(name)
    write_varint(writer, len(value))
    writer.write(value)
