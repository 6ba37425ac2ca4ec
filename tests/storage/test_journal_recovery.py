"""Reading the journal back: whatever the disk did, only what was written is applied, and the report says the rest."""

from __future__ import annotations

import errno
import struct

import crc32c
import pytest

from millpond.base.errors import UnsupportedFormat
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.storage.frames import FILE_HEADER_BYTES, MARK_BYTES
from millpond.storage.journal_recovery import Damage, file_path
from tests.storage.journal_harness import FOLDER, JournalHarness, recover

FIRST, SECOND, THIRD = (file_path(FOLDER, number) for number in range(3))
PAYLOADS = [b"one", b"two two", b"", b"four" * 5]


def small_journal(closed: bool = True) -> FaultyFilesystem:
    """One file: a turn with two frames, two turns with one."""
    disk = FaultyFilesystem()
    harness = JournalHarness(disk, file_bytes=512).started()
    harness.commit(*PAYLOADS[:2])
    harness.commit(PAYLOADS[2])
    harness.commit(PAYLOADS[3])
    if closed:
        harness.close()
        return disk
    copy = disk.copy()
    harness.close()
    return copy


def content_bytes(disk: FaultyFilesystem, path: str) -> int:
    return len(disk.read_bytes(path).rstrip(b"\x00"))


def frame_ends() -> list[int]:
    """Where each of the payloads' frames ends."""
    ends: list[int] = []
    position = FILE_HEADER_BYTES
    for number, payload in enumerate(PAYLOADS):
        position += 9 + len(payload) + (0 if number == 1 else MARK_BYTES)
        ends.append(position)
    return ends


def test_no_journal_is_an_empty_one() -> None:
    payloads, report = recover(FaultyFilesystem(), 5)
    assert payloads == []
    assert (report.next_file, report.damage, report.last_file) == (5, Damage.NONE, -1)


def test_a_file_cut_anywhere_gives_its_whole_frames() -> None:
    disk = small_journal()
    whole = disk.read_bytes(FIRST)
    ends = frame_ends()
    for size in range(content_bytes(disk, FIRST) + 1):
        cut = FaultyFilesystem()
        cut.put(FIRST, whole[:size])
        payloads, report = recover(cut)
        assert payloads == PAYLOADS[: sum(end <= size for end in ends)], f"cut at {size}"
        content = len(whole[:size].rstrip(b"\x00"))
        assert report.bytes_cut == (max(0, content - report.last_position) if report.last_file == 0 else size)
        assert (report.damage is Damage.NONE) == (report.bytes_cut == 0)
        again, second = recover(cut)
        assert again == payloads, f"cut at {size}: the second recovery differs"
        assert second.damage is Damage.NONE


def test_a_file_that_is_zeros_from_anywhere_on_gives_its_whole_frames() -> None:
    disk = small_journal(closed=False)
    whole = disk.read_bytes(FIRST)
    ends = frame_ends()
    for size in range(FILE_HEADER_BYTES, content_bytes(disk, FIRST) + 1):
        cut = FaultyFilesystem()
        cut.put(FIRST, whole[:size] + bytes(len(whole) - size))
        payloads, report = recover(cut)
        # A frame whose last bytes are zeros is whole without them.
        assert PAYLOADS[: sum(end <= size for end in ends)] == payloads[: sum(end <= size for end in ends)]
        assert payloads == PAYLOADS[: len(payloads)]
        assert report.damage in {Damage.NONE, Damage.TORN_TAIL}


@pytest.mark.parametrize("closed", [True, False])
def test_every_flipped_bit_is_detected(closed: bool) -> None:
    disk = small_journal(closed)
    whole = disk.read_bytes(FIRST)
    ends = frame_ends()
    for bit in range(8 * len(whole)):
        damaged = FaultyFilesystem()
        damaged.put(FIRST, whole)
        damaged.flip_bit(FIRST, bit)
        before = damaged.read_bytes(FIRST)
        payloads, report = recover(damaged)
        byte = bit // 8
        if byte < FILE_HEADER_BYTES:
            expected: list[bytes] = []
        else:
            expected = PAYLOADS[: sum(end <= byte for end in ends)]
        assert payloads == expected, f"bit {bit}"
        assert report.damage is not Damage.NONE, f"bit {bit}"
        assert report.bytes_cut > 0
        assert report.reason
        kept = damaged.read_bytes(report.kept_aside[0])
        assert kept
        assert kept in before
        # What is certain to have been promised is reported so. After a clean end that is everything.
        if closed and byte < ends[-1]:
            assert report.damage is Damage.CORRUPTION, f"bit {bit}"
        again, second = recover(damaged)
        assert (again, second.damage) == (payloads, Damage.NONE), f"bit {bit}: the second recovery differs"


def test_a_damaged_turn_that_was_not_yet_durable_is_a_torn_tail() -> None:
    disk = FaultyFilesystem()
    harness = JournalHarness(disk).started()
    harness.commit(b"durable")
    end = content_bytes(disk, FIRST)
    # Two turns that are only written: the disk may have the second without the first.
    harness.submit(b"first", sync=False)
    last = harness.submit(b"second", sync=False)
    harness.pump_until(lambda: harness.journal.written_sequence >= last)
    torn = disk.copy()
    harness.close()
    torn.flip_bit(FIRST, 8 * (end + 20))
    payloads, report = recover(torn)
    assert (payloads, report.damage) == ([b"durable"], Damage.TORN_TAIL)


def test_a_damaged_file_before_another_is_corruption_and_both_are_kept_aside() -> None:
    disk = FaultyFilesystem()
    harness = JournalHarness(disk, file_bytes=512).started()
    for number in range(3):
        harness.commit(b"a%d" % number, b"b%d" % number)
        harness.journal.roll()
    harness.close()
    disk.flip_bit(SECOND, 8 * (content_bytes(disk, SECOND) - 1))
    payloads, report = recover(disk)
    assert payloads == [b"a0", b"b0", b"a1"]
    assert report.damage is Damage.CORRUPTION
    assert (report.last_file, report.next_file) == (1, 2)
    assert len(report.kept_aside) == 3
    # The next journal continues without a gap, and recovery finds the good part and what is new.
    harness = JournalHarness(disk, file_number=report.next_file)
    harness.commit(b"new")
    harness.close()
    payloads, report = recover(disk)
    assert (payloads, report.damage) == ([b"a0", b"b0", b"a1", b"new"], Damage.NONE)


def test_a_missing_file_is_corruption() -> None:
    disk = FaultyFilesystem()
    harness = JournalHarness(disk, file_bytes=512).started()
    for number in range(3):
        harness.commit(b"%d" % number)
        harness.journal.roll()
    harness.close()
    disk.remove(SECOND)
    payloads, report = recover(disk)
    assert (payloads, report.damage, report.next_file) == ([b"0"], Damage.CORRUPTION, 1)
    assert "missing" in report.reason
    assert recover(disk)[1].damage is Damage.NONE


def test_files_before_the_first_are_left_alone() -> None:
    disk = small_journal()
    disk.put(file_path(FOLDER, 0), b"damaged, and no longer wanted")
    payloads, report = recover(disk, 1)
    assert (payloads, report.damage, report.next_file) == ([], Damage.NONE, 1)
    assert disk.exists(FIRST)


def test_a_file_that_was_only_just_being_made_is_not_missed() -> None:
    disk = small_journal()
    disk.put(SECOND, bytes(512))
    payloads, report = recover(disk)
    assert (payloads, report.damage, report.next_file) == (PAYLOADS, Damage.NONE, 1)


def test_a_file_of_another_journal_is_not_read() -> None:
    disk = small_journal()
    disk.put(SECOND, disk.read_bytes(FIRST))
    payloads, report = recover(disk)
    assert (payloads, report.damage) == (PAYLOADS, Damage.CORRUPTION)


def test_frames_of_another_file_do_not_verify() -> None:
    disk, other = small_journal(), small_journal()
    data = disk.read_bytes(FIRST)[:FILE_HEADER_BYTES] + other.read_bytes(FIRST)[FILE_HEADER_BYTES:]
    disk.put(FIRST, data)
    payloads, report = recover(disk)
    assert (payloads, report.damage) == ([], Damage.TORN_TAIL)


def test_a_newer_format_is_refused_and_left_as_it_is() -> None:
    disk = small_journal()
    data = disk.read_bytes(FIRST)
    header = data[:8] + struct.pack(">I", 3) + data[12:28]
    data = header + struct.pack(">I", crc32c.crc32c(header)) + data[32:]
    disk.put(FIRST, data)
    with pytest.raises(UnsupportedFormat, match="journal format 3"):
        recover(disk)
    assert disk.read_bytes(FIRST) == data
    assert disk.list(FOLDER) == [f"{0:020d}.journal"]


def test_a_length_beyond_the_file_takes_no_memory() -> None:
    disk = small_journal()
    data = disk.read_bytes(FIRST)
    for length in (0x7FFF_FFFF, 0xFFFF_FFFF, 64 * 1024 * 1024):
        disk.put(FIRST, data[:FILE_HEADER_BYTES] + struct.pack(">I", length) + data[FILE_HEADER_BYTES + 4 :])
        assert recover(disk)[0] == []


def test_a_torn_tail_is_cut_although_the_disk_is_full() -> None:
    disk = small_journal(closed=False)
    disk.flip_bit(FIRST, 8 * (content_bytes(disk, FIRST) - 1))
    disk.capacity_bytes = 0
    payloads, report = recover(disk)
    assert (payloads, report.damage, report.kept_aside) == (PAYLOADS[:3], Damage.TORN_TAIL, [])
    assert recover(disk)[1].damage is Damage.NONE


def test_what_was_recovered_is_durable() -> None:
    disk = FaultyFilesystem()
    harness = JournalHarness(disk).started()
    last = harness.submit(b"only in the system's memory", sync=False)
    harness.pump_until(lambda: harness.journal.written_sequence >= last)
    # The process is killed; the machine goes on.
    disk.fail("write", errno.EIO, times=1 << 30)
    disk.fail("sync", errno.EIO, times=0)
    assert recover(disk)[0] == [b"only in the system's memory"]
    disk.crash()
    assert recover(disk)[0] == [b"only in the system's memory"]


def test_frames_larger_than_a_read_come_out_whole() -> None:
    disk = FaultyFilesystem()
    harness = JournalHarness(disk).started()
    payloads = [b"x" * size for size in (1 << 20, 3, (1 << 20) - 9, 3_000_000, 0, 1)]
    for payload in payloads:
        harness.commit(payload)
    harness.close()
    assert recover(disk)[0] == payloads
