"""The journal's bytes: the header of its files, and the frames in them. `docs/formats/journal.md` draws them.

    file header, 32 bytes                         frame
     0  8  magic, "MILLPOND"                       0  4  length: of kind and payload, so never 0
     8  4  version                                 4  4  CRC32C of salt, length, kind and payload
    12  8  file number, as in the name             8  1  kind
    20  8  salt, random                            9     payload
    28  4  CRC32C of the above

Whole numbers are big-endian. The salt is part of every checksum, so that no frame of another file, and nothing that a
client made up, is ever taken for one of this file's. A length of zero ends the file: it was preallocated with zeros.

A file of version 2 was another one before, whose content is still there where it has not been written over. Its last
frame, where a later file exists, is an end: a frame of kind 0 without payload. Those of version 1 have none.

Each turn's frames begin with a mark, a frame of kind 0: 8 bytes that say up to which position the file was known to be
durable when the turn began. A mark after a damaged place thus tells whether what was there had already been promised.
"""

from __future__ import annotations

from typing import Final, final

from crc32c import crc32c
from librt.strings import BytesWriter, read_i32_be, read_i64_be, write_i32_be, write_i64_be
from mypy_extensions import i32, i64, u8

from millpond.base import limits
from millpond.base.errors import CorruptData, UnsupportedFormat
from millpond.base.filesystem import File

FILE_MAGIC: Final = b"MILLPOND"
FILE_VERSION: Final = 1
# Of a file that is used again.
FILE_VERSION_REUSED: Final = 2
FILE_HEADER_BYTES: Final[i64] = 32
SALT_BYTES: Final = 8
FRAME_HEADER_BYTES: Final[i64] = 9
# The kind of a mark; all others are the caller's.
MARK: Final[i64] = 0
MARK_BYTES: Final[i64] = 17
END_BYTES: Final[i64] = 9
# How a mark begins: what to look for after a damaged place.
_MARK_LENGTH: Final = b"\x00\x00\x00\x09"
_READ_BYTES: Final[i64] = 1 << 20
# To see that nothing is in a piece by comparing, which is much faster than looking for what is.
_NOTHING: Final = bytes(1 << 20)


def _write_u32(writer: BytesWriter, number: i64) -> None:
    # librt writes signed numbers only.
    write_i32_be(writer, i32(number - (1 << 32) if number >= 1 << 31 else number))


def _read_u32(data: bytes, position: i64) -> i64:
    return i64(read_i32_be(data, position)) & 0xFFFF_FFFF


def write_frame_head(writer: BytesWriter, salt_crc: i64, kind: i64, head: bytes, body: bytes) -> None:
    """Add a frame whose payload is `head` and `body`, all but the body, which must follow. `salt_crc` is the checksum
    of the file's salt. Raises ValueError for what recovery would not believe."""
    length: i64 = 1 + len(head) + len(body)
    if length > limits.JOURNAL_FRAME_BYTES_MAX:
        raise ValueError(f"a journal frame of {length} bytes is longer than recovery would believe")
    checked = BytesWriter()
    write_i32_be(checked, i32(length))
    checked.append(u8(kind))
    crc: i64 = crc32c(head, crc32c(checked.getvalue(), salt_crc))
    if body:
        crc = crc32c(body, crc)
    write_i32_be(writer, i32(length))
    _write_u32(writer, crc)
    writer.append(u8(kind))
    writer.write(head)


def write_mark(writer: BytesWriter, salt_crc: i64, durable_position: i64) -> None:
    """Begin the frames of a turn."""
    payload = BytesWriter()
    write_i64_be(payload, durable_position)
    write_frame_head(writer, salt_crc, MARK, payload.getvalue(), b"")


def end_of_file(salt: bytes) -> bytes:
    """Ends a file in which something else follows."""
    writer = BytesWriter()
    write_frame_head(writer, crc32c(salt), MARK, b"", b"")
    return writer.getvalue()


def file_header(file_number: i64, salt: bytes, is_reused: bool) -> bytes:
    """The first bytes of a journal file."""
    writer = BytesWriter()
    writer.write(FILE_MAGIC)
    write_i32_be(writer, i32(FILE_VERSION_REUSED if is_reused else FILE_VERSION))
    write_i64_be(writer, file_number)
    writer.write(salt)
    _write_u32(writer, crc32c(writer.getvalue()))
    return writer.getvalue()


def read_file_header(header: bytes, file_number: i64) -> tuple[bytes, bool]:
    """The salt of a file, and whether it is one that was used before. Raises CorruptData for what is not this file's
    header, UnsupportedFormat for a newer one.

    A header's checksum is at the same place in every version, so that damage is never mistaken for the future."""
    if len(header) < FILE_HEADER_BYTES or header[:8] != FILE_MAGIC:
        raise CorruptData("this is not a journal file")
    if _read_u32(header, 28) != crc32c(header[:28]):
        raise CorruptData("the checksum of the file header does not match")
    version = i64(read_i32_be(header, 8))
    if version not in (FILE_VERSION, FILE_VERSION_REUSED):
        raise UnsupportedFormat(
            f"journal format {version}, but this version of Millpond reads up to {FILE_VERSION_REUSED} only"
        )
    if read_i64_be(header, 12) != file_number:
        raise CorruptData(f"the file header is that of journal file {read_i64_be(header, 12)}")
    return header[20:28], version == FILE_VERSION_REUSED


@final
class FrameReader:
    """Reads one file's frames in turn, in pieces that stay small whatever the file's size:

        while reader.next():
            ... reader.kind, reader.payload

    `position` is the end of the last good frame; when `next` is False it is where reading stopped. `is_ended` says that
    this is where the file ends, whatever follows.
    """

    def __init__(self, file: File, salt: bytes) -> None:
        self.kind: i64 = -1
        self.payload = b""
        self.position: i64 = FILE_HEADER_BYTES
        self.is_ended = False
        self._file: Final = file
        self._file_bytes: Final[i64] = file.size()
        self._salt_crc: Final[i64] = crc32c(salt)
        self._data = b""
        # Where in the file `_data` begins.
        self._data_at: i64 = FILE_HEADER_BYTES

    def next(self) -> bool:
        """Go to the next frame; False at the end and at a bad frame. Marks are read, and passed over."""
        while not self.is_ended:
            start: i64 = self.position
            if not self._have(start, FRAME_HEADER_BYTES):
                return False
            at: i64 = start - self._data_at
            length = _read_u32(self._data, at)
            if length < 1 or length > limits.JOURNAL_FRAME_BYTES_MAX or not self._have(start, 8 + length):
                return False
            at = start - self._data_at
            data = self._data
            view = memoryview(data)
            crc: i64 = crc32c(view[at : at + 4], self._salt_crc)
            crc = crc32c(view[at + 8 : at + 8 + length], crc)
            if crc != _read_u32(data, at + 4):
                return False
            kind: i64 = data[at + 8]
            payload = data[at + 9 : at + 8 + length]
            self.position = start + 8 + length
            if kind != MARK:
                self.kind = kind
                self.payload = payload
                return True
            self.is_ended = not payload
        return False

    def content_end(self) -> int:
        """Where the last byte after `position` is that is not zero; `position` where there is none."""
        end = self.position
        start: i64 = self.position
        while start < self._file_bytes:
            piece = self._file.pread(start, _READ_BYTES)
            if not piece:
                break
            if piece != _NOTHING:
                content = len(piece.rstrip(b"\x00"))
                if content > 0:
                    end = start + content
            start += len(piece)
        return end

    def durable_position(self) -> int:
        """The highest durable position that a mark after `position` tells of; -1 where there is no mark."""
        durable: i64 = -1
        start: i64 = self.position
        while start + MARK_BYTES <= self._file_bytes:
            # The pieces overlap by a mark, so that none is missed.
            piece = self._file.pread(start, _READ_BYTES + MARK_BYTES)
            view = memoryview(piece)
            at: i64 = piece.find(_MARK_LENGTH)
            while at >= 0 and at + MARK_BYTES <= len(piece):
                if piece[at + 8] == MARK:
                    crc: i64 = crc32c(view[at : at + 4], self._salt_crc)
                    crc = crc32c(view[at + 8 : at + MARK_BYTES], crc)
                    if crc == _read_u32(piece, at + 4):
                        durable = max(durable, read_i64_be(piece, at + FRAME_HEADER_BYTES))
                at = piece.find(_MARK_LENGTH, at + 1)
            if len(piece) < _READ_BYTES:
                break
            start += _READ_BYTES
        return durable

    def _have(self, position: i64, size: i64) -> bool:
        """Have `size` bytes at `position` in `_data`; False where the file ends before."""
        if position + size <= self._data_at + len(self._data):
            return True
        if position + size > self._file_bytes:
            return False
        self._data = self._file.pread(position, max(size, _READ_BYTES))
        self._data_at = position
        return len(self._data) >= size
