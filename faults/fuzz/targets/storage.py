"""Files on the disk with some of their bits flipped: the journal, and a log's segments with their indexes.

    place u16 | what the byte there is XORed with, u8        of as many flips as there is room for

Whatever is found, it is never served: what is read is what was written, or less of it.
"""

from __future__ import annotations

from functools import cache

from crc32c import crc32c
from librt.strings import BytesWriter

from faults.fuzz.targets.target import target
from millpond.base.errors import CorruptData, UnsupportedFormat
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.storage.file_pool import FilePool
from millpond.storage.frames import file_header, write_frame_head, write_mark
from millpond.storage.journal_recovery import file_path, read_journal
from millpond.storage.record_batch import BatchBuilder
from millpond.storage.segment import Segment, SegmentIndex

_FOLDER = "/data"
_SALT = b"saltsalt"
_FLIP_BYTES = 3
_RUN_BYTES = 1000
_BASE_OFFSET = 1000
_BATCHES = 40


def _flipped(content: bytes, flips: bytes) -> bytes:
    changed = bytearray(content)
    for at in range(0, len(flips) - _FLIP_BYTES + 1, _FLIP_BYTES):
        changed[int.from_bytes(flips[at : at + 2], "big") % len(changed)] ^= flips[at + 2]
    return bytes(changed)


# --- The journal ------------------------------------------------------------------------------------------------------


@cache
def _journal() -> tuple[tuple[bytes, ...], bytes]:
    """The payloads of a file, and the file."""
    payloads = tuple(b"payload %d " % number * (number + 1) for number in range(12))
    writer = BytesWriter()
    for payload in payloads:
        write_mark(writer, crc32c(_SALT), len(writer))
        write_frame_head(writer, crc32c(_SALT), 1, b"", payload)
        writer.write(payload)
    return payloads, file_header(0, _SALT, False) + writer.getvalue() + bytes(4096)


def _flips() -> list[bytes]:
    return [b"", b"\0\x09\1", b"\0\x20\xff", b"\0\x40\x80\1\0\7", b"\0\1\1\0\x21\2\0\x29\4", b"\2\0\x10"]


@target("journal-file", _flips, UnsupportedFormat, memory_bytes=8 << 20)
def recover_journal(data: bytes) -> object:
    """A journal's file: what is applied is its beginning, and what is left of it is found the same once more."""
    payloads, content = _journal()
    disk = FaultyFilesystem()
    disk.mkdirs(_FOLDER)
    disk.put(file_path(_FOLDER, 0), _flipped(content, data))
    found: list[bytes] = []
    report = read_journal(disk, _FOLDER, 0, lambda _, payload: found.append(payload))
    assert tuple(found) == payloads[: len(found)], "something is recovered that was not written"
    assert len(found) == len(payloads) or report.reason, "something is missing, and nobody is told"
    again: list[bytes] = []
    read_journal(disk, _FOLDER, 0, lambda _, payload: again.append(payload))
    assert again == found, "the next recovery finds something else"
    return len(found), report.damage, report.reason


# --- A segment and its index ------------------------------------------------------------------------------------------


@cache
def _segment() -> tuple[dict[int, bytes], bytes, bytes]:
    """Batches by their base offsets, the segment, and its index."""
    batches: dict[int, bytes] = {}
    index = SegmentIndex(_BASE_OFFSET)
    builder = BatchBuilder()
    offset, position = _BASE_OFFSET, 0
    for number in range(_BATCHES):
        builder.append(0, number, b"key", b"value %d " % number * 20, b"h")
        batches[offset] = builder.finish(offset, 1)
        index.batch_begins(offset, position, number - 1)
        position += len(batches[offset])
        offset += 2
    return batches, b"".join(batches.values()), index.content(offset, position, _BATCHES - 1)


def _flips_of_both() -> list[bytes]:
    return [bytes([which]) + flips for which in (0, 1, 2) for flips in _flips()]


@target("segment-file", _flips_of_both, CorruptData, memory_bytes=8 << 20)
def read_segment(data: bytes) -> object:
    """Which of the two is damaged u8 | flips. Every offset is looked for."""
    batches, content, index = _segment()
    which, flips = data[0] % 3 if data else 0, data[1:]
    disk = FaultyFilesystem()
    disk.mkdirs(_FOLDER)
    files = FilePool(disk)
    segment = Segment(files, _FOLDER, _BASE_OFFSET)
    disk.put(segment.path, _flipped(content, flips) if which != 1 else content)
    disk.put(segment.index_path, _flipped(index, flips) if which != 0 else index)
    segment.size = len(content)
    served = 0
    offset, end = _BASE_OFFSET, _BASE_OFFSET + 2 * _BATCHES
    while offset < end:
        run = segment.read_run(offset, _RUN_BYTES)
        expected = [batches[at] for at in batches if offset - 1 <= at < run.next_offset]
        assert all(batch in expected for batch in run.batches), "a batch is served that was not written"
        assert len(run.batches) == len(expected) or run.damage, "a batch is missing, and nobody is told"
        served += len(run.batches)
        if run.ends_segment:
            break
        assert run.next_offset > offset, "reading does not come any further"
        offset = run.next_offset
    walk = segment.walk(None, None)
    assert content.startswith(b"".join([batch for at, batch in batches.items() if at < walk.end_offset]))
    assert walk.end_offset == end or walk.reason
    for wanted in (_BASE_OFFSET, _BASE_OFFSET + 33, end - 1):
        assert segment.seek_offset(wanted).offset <= wanted
    try:
        return served, segment.end_offset, segment.max_timestamp_ms, segment.first_timestamp_ms
    finally:
        assert segment.size == len(content)
