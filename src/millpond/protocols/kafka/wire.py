"""The primitive types of Kafka's protocol, as far as they are read and written here and not by kio.

    i8 i16 i32 i64      big-endian
    string, bytes       length i16, or i32 for bytes, then so many bytes; -1 for null
    array               count i32, then so many items; -1 for null
    compact             of strings, bytes and arrays: the length + 1 as an unsigned varint; 0 for null
    tagged fields       count, then (tag, size, bytes) each, all of them unsigned varints; only in flexible versions

Source: Apache Kafka, "Protocol Primitive Types", and KIP-482 for the flexible versions.
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import BytesWriter, read_i16_be, read_i32_be, read_i64_be, write_i16_be, write_i32_be
from mypy_extensions import i16, i32, i64, u8

from millpond.base.errors import SyntaxFault


@final
class WireReader:
    """Reads `data` from `position` up to `end`. Raises SyntaxFault for what is not there, and takes no memory for what
    is not."""

    def __init__(self, data: bytes, position: i64, end: i64, flexible: bool) -> None:
        self.data: Final = data
        self.position: i64 = position
        self.end: Final[i64] = end
        self.flexible: Final = flexible

    def _advance(self, size: i64) -> i64:
        """Where the next `size` bytes begin."""
        position = self.position
        if size < 0 or size > self.end - position:
            raise SyntaxFault("a request ends within a field")
        self.position = position + size
        return position

    def int8(self) -> i64:
        value = i64(self.data[self._advance(1)])
        return value - 256 if value > 127 else value

    def int16(self) -> i64:
        return i64(read_i16_be(self.data, self._advance(2)))

    def int32(self) -> i64:
        return i64(read_i32_be(self.data, self._advance(4)))

    def int64(self) -> i64:
        return read_i64_be(self.data, self._advance(8))

    def varint(self) -> i64:
        """An unsigned number of up to 32 bits."""
        value: i64 = 0
        shift: i64 = 0
        while True:
            byte = i64(self.data[self._advance(1)])
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 28:
                raise SyntaxFault("an unsigned varint of more than 32 bits")
        if value > 0xFFFFFFFF:
            raise SyntaxFault("an unsigned varint of more than 32 bits")
        return value

    def count(self) -> i64:
        """The number of an array's items; -1 for null. An item takes one byte at least."""
        count = self.varint() - 1 if self.flexible else self.int32()
        if count < -1 or count > self.end - self.position:
            raise SyntaxFault(f"an array of {count} items does not fit into its request")
        return count

    def text(self) -> str | None:
        """A string; None for null."""
        size = self.varint() - 1 if self.flexible else self.int16()
        if size == -1:
            return None
        start = self._advance(size)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError:
            raise SyntaxFault("a string that is not UTF-8") from None

    def name(self) -> str:
        """A string that must not be null."""
        text = self.text()
        if text is None:
            raise SyntaxFault("null where a string is needed")
        return text

    def id(self) -> bytes:
        """The 16 bytes of a UUID."""
        start = self._advance(16)
        return self.data[start : start + 16]

    def size_of_bytes(self) -> i64:
        """The length of what `position` then is at; -1 for null."""
        size = self.varint() - 1 if self.flexible else self.int32()
        if size < -1 or size > self.end - self.position:
            raise SyntaxFault(f"{size} bytes do not fit into their request")
        return size

    def skip(self, size: i64) -> None:
        self._advance(size)

    def skip_tags(self) -> None:
        """Pass over tagged fields, where the version has them."""
        if not self.flexible:
            return
        count = self.varint()
        while count > 0:
            self.varint()
            self.skip(self.varint())
            count -= 1


def write_varint(writer: BytesWriter, value: i64) -> None:
    """An unsigned number."""
    while value > 0x7F:
        writer.append(u8((value & 0x7F) | 0x80))
        value >>= 7
    writer.append(u8(value))


def write_text(writer: BytesWriter, text: str | None, flexible: bool) -> None:
    """A string, or null."""
    if text is None:
        if flexible:
            writer.append(0)
        else:
            write_i16_be(writer, -1)
        return
    data = text.encode()
    if flexible:
        write_varint(writer, len(data) + 1)
    else:
        write_i16_be(writer, i16(len(data)))
    writer.write(data)


def write_count(writer: BytesWriter, count: i64, flexible: bool) -> None:
    """The length of an array or of bytes; -1 for null."""
    if flexible:
        write_varint(writer, count + 1)
    else:
        write_i32_be(writer, i32(count))


def write_no_tags(writer: BytesWriter, flexible: bool) -> None:
    if flexible:
        writer.append(0)
