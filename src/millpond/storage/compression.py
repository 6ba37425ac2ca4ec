"""Kafka's codecs, by their number in a record batch's attributes.

    0  none
    1  gzip      one or more members (RFC 1952)
    2  snappy    in snappy-java's framing, "xerial"; bare snappy is read as well, as librdkafka can write it
    3  lz4       the frame format, with independent blocks: Kafka's own clients read no others
    4  zstd      one or more frames (RFC 8878)

    xerial       0x82 "SNAPPY" 0 (8) | version (4) | compatible version (4) | blocks of: length (4), snappy
                 numbers are big-endian, as snappy-java writes them; both versions are 1

What is decompressed comes from clients, and a few bytes can be made to become any amount. So the caller says what it
accepts, and no more memory is taken than that.

Source: Apache Kafka, "Record Batch"; snappy-java's `SnappyOutputStream`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

from millpond.base.errors import CorruptData

NONE: Final = 0
GZIP: Final = 1
SNAPPY: Final = 2
LZ4: Final = 3
ZSTD: Final = 4

# Names as in the topic setting `compression.type`.
CODECS: Final = {"uncompressed": NONE, "gzip": GZIP, "snappy": SNAPPY, "lz4": LZ4, "zstd": ZSTD}

_GZIP_WINDOW: Final = 31
_XERIAL_MAGIC: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER: Final = _XERIAL_MAGIC + b"\x00\x00\x00\x01\x00\x00\x00\x01"
# What snappy-java puts into a block.
_XERIAL_BLOCK_BYTES: Final = 32 * 1024
# Three bytes of snappy stand for at most 64, and one byte of lz4 for at most 255; frames have a little more.
_SNAPPY_RATIO_MAX: Final = 22
_LZ4_RATIO_MAX: Final = 256
# Kafka's default of compression.lz4.level, which stands for lz4's fast way.
_LZ4_LEVEL_FAST: Final = 9
# The first room for what has not said how large it is.
_ROOM_BYTES: Final = 64 * 1024


def compress(codec: int, data: bytes, level: int | None = None) -> bytes:
    """`data` as the codec has it, readable by every Kafka client. `level` is one of the topic settings
    `compression.<codec>.level`. ValueError for a codec that there is not."""
    packer = _COMPRESSORS.get(codec)
    if packer is None:
        raise ValueError(f"there is no codec {codec}")
    return packer(data, level)


def decompress(codec: int, data: bytes, bytes_max: int) -> bytes:
    """What was compressed. CorruptData where that is not possible, or would be more than `bytes_max`."""
    unpacker = _DECOMPRESSORS.get(codec)
    if unpacker is None:
        raise CorruptData(f"records are compressed with the unknown codec {codec}")
    return unpacker(data, bytes_max)


def _too_large(bytes_max: int) -> CorruptData:
    return CorruptData(f"compressed records are more than {bytes_max} bytes, or damaged")


# --- None -----------------------------------------------------------------------------------------------------------


def _keep(data: bytes, level: int | None) -> bytes:
    return data


def _keep_bounded(data: bytes, bytes_max: int) -> bytes:
    if len(data) > bytes_max:
        raise CorruptData(f"records of {len(data)} bytes are more than {bytes_max}")
    return data


# --- Gzip -----------------------------------------------------------------------------------------------------------


def _gzip(data: bytes, level: int | None) -> bytes:
    packer = zlib.compressobj(-1 if level is None else level, wbits=_GZIP_WINDOW)
    return packer.compress(data) + packer.flush()


def _gunzip(data: bytes, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    left = bytes_max
    rest = data
    while rest:
        unpacker = zlib.decompressobj(wbits=_GZIP_WINDOW)
        try:
            # One more than is accepted, to see whether there is more.
            part = unpacker.decompress(rest, left + 1)
        except zlib.error as error:
            raise CorruptData(f"gzip: {error}") from None
        left -= len(part)
        if left < 0:
            raise _too_large(bytes_max)
        if not unpacker.eof:
            raise CorruptData("gzip: records are cut short")
        parts.append(part)
        rest = unpacker.unused_data
    if not parts:
        raise CorruptData("gzip: nothing is there")
    return parts[0] if len(parts) == 1 else b"".join(parts)


# --- Snappy ---------------------------------------------------------------------------------------------------------


def _snap(data: bytes, level: int | None) -> bytes:
    import cramjam

    parts = [_XERIAL_HEADER]
    for start in range(0, len(data), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(data[start : start + _XERIAL_BLOCK_BYTES]))
        parts += (len(block).to_bytes(4, "big"), block)
    return b"".join(parts)


def _unsnap(data: bytes, bytes_max: int) -> bytes:
    if not data.startswith(_XERIAL_MAGIC):
        return _unsnap_block(data, bytes_max)
    if len(data) < len(_XERIAL_HEADER):
        raise CorruptData("snappy: records are cut short")
    parts: list[bytes] = []
    left = bytes_max
    position = len(_XERIAL_HEADER)
    while position < len(data):
        start = position + 4
        position = start + int.from_bytes(data[position:start], "big")
        if start > len(data) or position > len(data):
            raise CorruptData("snappy: records are cut short")
        part = _unsnap_block(data[start:position], left)
        left -= len(part)
        parts.append(part)
    return b"".join(parts)


def _unsnap_block(block: bytes, bytes_max: int) -> bytes:
    import cramjam

    try:
        size = cramjam.snappy.decompress_raw_len(block)
        if size > bytes_max or size > len(block) * _SNAPPY_RATIO_MAX:
            raise _too_large(bytes_max)
        return bytes(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError as error:
        raise CorruptData(f"snappy: {error}") from None


# --- LZ4 and zstd ---------------------------------------------------------------------------------------------------


def _lz4(data: bytes, level: int | None) -> bytes:
    import cramjam

    level = None if level == _LZ4_LEVEL_FAST else level
    packer = cramjam.lz4.Compressor(level, content_checksum=False, block_linked=False)
    packer.compress(data)
    return bytes(packer.finish())


def _unlz4(data: bytes, bytes_max: int) -> bytes:
    import cramjam

    return _unpack(cramjam.lz4.decompress_into, data, min(bytes_max, len(data) * _LZ4_RATIO_MAX), bytes_max)


def _zstd(data: bytes, level: int | None) -> bytes:
    import cramjam

    return bytes(cramjam.zstd.compress(data, level))


def _unzstd(data: bytes, bytes_max: int) -> bytes:
    import cramjam

    return _unpack(cramjam.zstd.decompress_into, data, bytes_max, bytes_max)


def _unpack(unpacker: Callable[[bytes, bytearray], int], data: bytes, room_max: int, bytes_max: int) -> bytes:
    """Decompress into more and more room, up to a limit. What has no room, and what is damaged, look alike."""
    import cramjam

    if not data:
        raise CorruptData("no compressed records are there")
    room = min(room_max, max(_ROOM_BYTES, len(data) * 4))
    while True:
        result = bytearray(room)
        try:
            size = unpacker(data, result)
        except cramjam.DecompressionError as error:
            if room < room_max:
                room = min(room_max, room * 4)
                continue
            raise CorruptData(f"{_too_large(bytes_max)}: {error}") from None
        return bytes(memoryview(result)[:size])


_COMPRESSORS: Final[dict[int, Callable[[bytes, int | None], bytes]]] = {
    NONE: _keep,
    GZIP: _gzip,
    SNAPPY: _snap,
    LZ4: _lz4,
    ZSTD: _zstd,
}
_DECOMPRESSORS: Final[dict[int, Callable[[bytes, int], bytes]]] = {
    NONE: _keep_bounded,
    GZIP: _gunzip,
    SNAPPY: _unsnap,
    LZ4: _unlz4,
    ZSTD: _unzstd,
}
