"""Logs: what is appended is read back by place, offset and time; damage is cut or refused, never served."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path

import pytest

from millpond.base.errors import CorruptData, StorageError, StorageFailed
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.base.filesystem import Filesystem, MemoryFilesystem, OsFilesystem
from millpond.storage.file_pool import FilePool
from millpond.storage.log import BatchPlace, Log
from millpond.storage.record_batch import BatchBuilder, BatchHeader, RecordReader

FOLDER = "/data/log"


def batch_of(base_offset: int, count: int, value: bytes = b"value", timestamp_ms: int = 1000) -> bytes:
    builder = BatchBuilder()
    for delta in range(count):
        builder.append(delta, timestamp_ms + delta, b"", value, b"")
    return builder.finish(base_offset, count - 1)


def append(log: Log, count: int = 3, value: bytes = b"value", gap: int = 0, timestamp_ms: int = 1000) -> BatchPlace:
    base = log.end_offset + gap
    batch = batch_of(base, count, value, timestamp_ms)
    return log.append(batch, base, base + count - 1, timestamp_ms + count - 1)


def open_log(filesystem: Filesystem, end_offset: int | None = None, segment_bytes: int = 400) -> Log:
    log = Log(filesystem, FOLDER, segment_bytes)
    log.open(end_offset)
    return log


def filled(filesystem: Filesystem, batches: int = 10, segment_bytes: int = 400) -> Log:
    log = open_log(filesystem, None, segment_bytes)
    for number in range(batches):
        append(log, value=b"%d" % number, timestamp_ms=1000 * number)
    log.sync()
    return log


def offsets(log: Log, start: int = 0) -> list[tuple[int, int, int]]:
    return [entry[:3] for entry in log.places_from(start)]


def names(filesystem: Filesystem, suffix: str) -> list[str]:
    return [name for name in filesystem.list(FOLDER) if name.endswith(suffix)]


@pytest.fixture
def disk() -> FaultyFilesystem:
    return FaultyFilesystem()


# --- Appending and reading -----------------------------------------------------------------------------------------


def test_batches_are_read_back_by_place(disk: FaultyFilesystem) -> None:
    log = open_log(disk)
    places = [append(log, value=b"%d" % number) for number in range(10)]
    for number, place in enumerate(places):
        assert log.read(place, 3 * number) == batch_of(3 * number, 3, b"%d" % number)
    assert (log.start_offset, log.end_offset) == (0, 30)
    assert len({place.segment_base for place in places}) > 1
    assert log.size_bytes == sum(place.length for place in places)


def test_a_log_is_the_same_after_it_was_opened_again(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    entries = list(log.places_from(0))
    log.close()
    again = open_log(disk)
    assert list(again.places_from(0)) == entries
    assert (again.start_offset, again.end_offset, again.size_bytes) == (0, 30, log.size_bytes)
    append(again)
    assert offsets(again, 29) == [(27, 29, 3), (30, 32, 3)]


def test_a_gap_is_filled_with_a_batch_without_records(disk: FaultyFilesystem) -> None:
    log = open_log(disk)
    append(log)
    place = append(log, gap=1000)
    assert offsets(log) == [(0, 2, 3), (3, 1002, 0), (1003, 1005, 3)]
    assert BatchHeader(log.read(place, 1003)).base_offset == 1003
    assert log.find(500) is not None
    log.close()
    assert offsets(open_log(disk)) == [(0, 2, 3), (3, 1002, 0), (1003, 1005, 3)]


def test_a_gap_too_large_for_a_batch_begins_a_segment(disk: FaultyFilesystem) -> None:
    log = open_log(disk)
    append(log)
    append(log, gap=1 << 40)
    start = (1 << 40) + 3
    assert offsets(log) == [(0, 2, 3), (start, start + 2, 3)]
    assert log.find(start - 1) is None
    log.close()
    assert open_log(disk).end_offset == start + 3


def test_a_batch_longer_than_a_segment_has_one_of_its_own(disk: FaultyFilesystem) -> None:
    log = open_log(disk)
    append(log)
    place = append(log, value=b"x" * 5000)
    append(log)
    assert place.position == 0
    assert len(log.read(place)) > 5000
    assert len(names(disk, ".log")) == 3


def test_a_batch_that_does_not_follow_is_refused(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    with pytest.raises(ValueError, match="cannot follow"):
        log.append(batch_of(29, 1), 29, 29, 0)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 14, 15, 29])
def test_the_batch_of_an_offset_is_found(disk: FaultyFilesystem, offset: int) -> None:
    log = filled(disk)
    entry = log.find(offset)
    assert entry is not None
    assert entry[0] == offset // 3 * 3
    assert offsets(log, offset)[0][0] == offset // 3 * 3


def test_no_batch_is_found_outside(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    assert log.find(30) is None
    assert offsets(log, 30) == []
    log.trim_before(20)
    assert log.find(0) is None
    assert offsets(log, 0)[0][0] == log.start_offset


def test_the_first_record_not_older_than_a_time_is_found() -> None:
    log = filled(MemoryFilesystem(), batches=50, segment_bytes=2000)
    for number in range(50):
        assert log.find_timestamp(1000 * number) == 3 * number
        assert log.find_timestamp(1000 * number + 1) == 3 * number + 1
        assert log.find_timestamp(1000 * number - 500) == 3 * number
    assert log.find_timestamp(49_003) is None


def test_times_that_go_back_do_not_hide_records() -> None:
    log = open_log(MemoryFilesystem(), segment_bytes=1 << 20)
    choose = random.Random(7)
    times = [choose.randrange(1000) for _ in range(300)]
    for timestamp_ms in times:
        append(log, count=1, value=b"x" * 100, timestamp_ms=timestamp_ms)
    for wanted_ms in range(0, 1000, 7):
        expected = next((offset for offset, time_ms in enumerate(times) if time_ms >= wanted_ms), None)
        assert log.find_timestamp(wanted_ms) == expected


def test_the_index_finds_what_a_scan_finds() -> None:
    filesystem = MemoryFilesystem()
    log = filled(filesystem, batches=2000, segment_bytes=50_000)
    log.close()
    again = open_log(filesystem, segment_bytes=50_000)
    for offset in range(0, 6000, 37):
        entry = again.find(offset)
        assert entry is not None
        assert entry[0] <= offset <= entry[1]


def test_a_log_is_kept_on_the_machines_file_system(tmp_path: Path) -> None:
    filesystem = OsFilesystem()
    folder = str(tmp_path / "logs" / "q")
    log = Log(filesystem, folder, 400)
    log.open(None)
    places = [append(log, value=b"%d" % number) for number in range(10)]
    log.close()
    again = Log(filesystem, folder, 400)
    assert again.open(30, checked_from=0).reasons == []
    for number, place in enumerate(places):
        assert again.read(place, 3 * number) == batch_of(3 * number, 3, b"%d" % number)
    again.delete()
    assert os.listdir(tmp_path / "logs") == []


# --- Trimming and retention ----------------------------------------------------------------------------------------


def test_trimming_deletes_whole_segments_below(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    first = log.find(0)
    segments = len(names(disk, ".log"))
    freed = log.trim_before(14)
    assert freed > 0
    assert len(names(disk, ".log")) < segments
    assert 0 < log.start_offset <= 14
    assert offsets(log)[-1] == (27, 29, 3)
    assert first is not None
    with pytest.raises(StorageError, match="trimmed"):
        log.read(first[3])
    assert log.trim_before(14) == 0


def test_a_log_trimmed_empty_continues_at_its_end(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    log.trim_before(30)
    assert (log.start_offset, log.end_offset, log.size_bytes) == (30, 30, 0)
    assert disk.list(FOLDER) == []
    append(log)
    log.close()
    assert offsets(open_log(disk, 33)) == [(30, 32, 3)]


def test_an_empty_log_begins_where_the_checkpoint_says(disk: FaultyFilesystem) -> None:
    log = open_log(disk, 77)
    assert (log.start_offset, log.end_offset) == (77, 77)


def test_retention_by_time_keeps_segments_with_younger_messages(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    assert log.retain(20_000, -1, -1) == 0
    assert log.retain(9000, 9000, -1) == 0
    log.retain(10_000, 6000, -1)
    # All from second four on are there, and so is what shares a segment with them.
    assert 0 < log.start_offset <= 12
    log.retain(1_000_000, 0, -1)
    assert offsets(log), "the active segment stays"


def test_retention_by_size_keeps_at_least_that_much(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    size = log.size_bytes
    log.retain(0, -1, size - 1)
    assert log.size_bytes == size
    log.retain(0, -1, size // 2)
    assert size // 2 <= log.size_bytes < size


def test_retention_leaves_what_is_needed(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    log.retain(1_000_000, 0, -1, needed_from=12)
    assert 0 < log.start_offset <= 12
    assert 12 in {offset for base, last, _ in offsets(log) for offset in range(base, last + 1)}
    log.retain(1_000_000, 0, -1, needed_from=30)
    assert log.start_offset > 12


def test_retention_after_opening_reads_the_ages_from_the_indexes(disk: FaultyFilesystem) -> None:
    filled(disk).close()
    log = open_log(disk)
    log.retain(10_000, 6000, -1)
    assert 0 < log.start_offset <= 12


def test_a_damaged_segment_does_not_stay_for_ever(disk: FaultyFilesystem) -> None:
    filled(disk).close()
    for path in names(disk, ".index"):
        disk.remove(f"{FOLDER}/{path}")
    disk.flip_bit(f"{FOLDER}/{0:020d}.log", 8 * 70)
    log = open_log(disk)
    log.retain(10_000, 1000, -1)
    assert log.start_offset > 0


def test_a_deleted_log_leaves_nothing(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    disk.put(f"{FOLDER}/{0:020d}.log.corrupt", b"kept")
    log.delete()
    assert not disk.exists(FOLDER)
    fresh = open_log(disk)
    place = append(fresh, value=b"fresh")
    fresh.close()
    assert RecordReader(open_log(disk).read(place)).next()


# --- Durability ----------------------------------------------------------------------------------------------------


def test_a_sync_touches_only_what_was_written(disk: FaultyFilesystem) -> None:
    log = filled(disk, segment_bytes=1 << 20)
    counts = disk.counts.copy()
    log.sync()
    assert disk.counts == counts
    append(log)
    log.sync()
    assert disk.counts["sync"] == counts["sync"] + 1
    assert disk.counts["sync_folder"] == counts["sync_folder"]


def test_what_was_synced_survives_a_power_cut(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    append(log)
    disk.crash()
    assert offsets(open_log(disk))[-1] == (27, 29, 3)


def test_a_failed_sync_is_never_followed_by_a_good_one(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    append(log)
    disk.fail("sync", errno.EIO)
    for _ in range(3):
        with pytest.raises(StorageFailed):
            log.sync()


def test_a_failed_sync_while_closing_an_idle_file_is_not_forgotten(disk: FaultyFilesystem) -> None:
    files = FilePool(disk, files_max=2)
    logs = [Log(disk, f"/data/{number}", 1000, files) for number in range(6)]
    for log in logs:
        log.open(0)
    append(logs[0])
    disk.fail("sync", errno.EIO)
    for log in logs[1:]:
        append(log)
    with pytest.raises(StorageFailed):
        logs[0].sync()
    for log in logs[1:]:
        log.sync()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("segment_bytes", [1, 400, 1 << 20])
def test_a_failed_append_leaves_the_log_as_it_was(disk: FaultyFilesystem, code: int, segment_bytes: int) -> None:
    log = open_log(disk, segment_bytes=segment_bytes)
    expected: list[tuple[int, int, int]] = []
    for number in range(12):
        disk.fail("write", code)
        with pytest.raises(OSError, match=r"space|Input"):
            append(log, count=2, value=b"failed" * 20, gap=number % 3)
        disk.heal()
        assert offsets(log) == expected
        append(log, count=1, value=b"%d" % number)
        expected.append((number, number, 1))
        assert offsets(log) == expected
    log.close()
    again = Log(disk, FOLDER, segment_bytes)
    report = again.open(None, checked_from=0)
    assert (offsets(again), report.lost, report.reasons) == (expected, [], [])


@pytest.mark.parametrize("seed", range(300))
def test_a_segment_that_could_not_be_begun_does_not_come_back(seed: int) -> None:
    disk = FaultyFilesystem(seed)
    log = open_log(disk, segment_bytes=1000)
    append(log, count=1)
    log.sync()
    # A gap that large takes a new segment.
    base = 1 + (1 << 31)
    disk.fail("write", errno.ENOSPC)
    with pytest.raises(OSError, match="space"):
        log.append(BatchBuilder().finish(base, 0), base, base, -1)
    disk.heal()
    # By now smaller gaps are due, which the first segment takes, and its offsets go beyond.
    append(log, count=1, gap=1 << 30)
    append(log, count=1, gap=1 << 30)
    append(log, count=1, gap=1 << 30)
    log.sync()
    expected, end_offset = offsets(log), log.end_offset
    disk.crash(keeps_some=True)
    again = Log(disk, FOLDER, 1000)
    report = again.open(end_offset, checked_from=0)
    assert (offsets(again), report.lost) == (expected, [])


def test_an_index_of_what_was_cut_hides_nothing(disk: FaultyFilesystem) -> None:
    log = open_log(disk, None, 1000)
    append(log, 3)
    append(log, 3, b"x" * 150)
    append(log, 3, b"x" * 150)
    assert names(disk, ".index") == [f"{0:020d}.index"]
    log.sync()
    log.close()
    # As after a power cut: the segment was complete, and most of it is gone.
    log = open_log(disk, 3, 1000)
    append(log, 3)
    append(log, 1)
    disk.fail("open", errno.ENOSPC, path=".index")
    append(log, 3, b"x" * 300)
    offset, found = 0, []
    while offset < log.end_offset:
        run = log.read_run(offset, 1)
        found += [BatchHeader(batch).base_offset for batch in run.batches]
        assert not run.damage
        offset = run.next_offset
    assert found == [0, 3, 6, 7]


def test_many_logs_keep_few_files_open(disk: FaultyFilesystem) -> None:
    files = FilePool(disk, files_max=16)
    logs = [Log(disk, f"/data/{number}", 1000, files) for number in range(200)]
    for log in logs:
        log.open(0)
        append(log)
    assert disk.open_files <= 16
    for log in logs:
        assert offsets(log) == [(0, 2, 3)]
    for log in logs:
        log.sync()
    assert disk.open_files <= 16
    disk.crash()
    for number in range(200):
        log = Log(disk, f"/data/{number}", 1000, FilePool(disk, files_max=1))
        assert log.open(3).lost == []


def test_places_are_read_by_other_threads_while_the_log_grows() -> None:
    filesystem = MemoryFilesystem()
    log = Log(filesystem, FOLDER, 5000, FilePool(filesystem, files_max=2))
    log.open(0)
    places: list[BatchPlace] = []
    errors: list[Exception] = []
    is_done = threading.Event()

    def read() -> None:
        choose = random.Random(1)
        while not is_done.is_set():
            if places:
                number = choose.randrange(len(places))
                try:
                    log.read(places[number], 3 * number)
                except (StorageError, OSError) as error:
                    errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    places.extend(append(log, value=b"x" * 50) for _ in range(1500))
    is_done.set()
    for thread in threads:
        thread.join()
    assert errors == []


# --- Damage --------------------------------------------------------------------------------------------------------


def test_a_segment_cut_anywhere_gives_its_whole_batches() -> None:
    disk = FaultyFilesystem()
    log = open_log(disk, segment_bytes=1 << 20)
    places = [append(log, value=b"%d" % number) for number in range(4)]
    append(log, gap=5)
    log.close()
    path = f"{FOLDER}/{0:020d}.log"
    whole = disk.read_bytes(path)
    expected = offsets(log)
    ends = [0, *(entry[3].position + entry[3].length for entry in log.places_from(0))]
    assert len(expected) == 6
    for size in range(places[1].position, len(whole) + 1):
        for end_offset in (None, log.end_offset):
            cut = FaultyFilesystem()
            cut.put(path, whole[:size])
            again = Log(cut, FOLDER, 1 << 20)
            report = again.open(end_offset)
            good = sum(end <= size for end in ends) - 1
            assert offsets(again) == expected[:good], f"cut at {size}"
            assert report.bytes_cut == size - ends[good]
            assert bool(report.kept_aside) == (report.bytes_cut > 0)
            if end_offset is not None and report.bytes_cut > 0:
                assert report.lost == [(report.end_offset, end_offset)]
            append(again)
            again.close()
            assert open_log(cut).end_offset == report.end_offset + 3


def test_every_flipped_bit_of_the_last_segment_is_cut() -> None:
    disk = FaultyFilesystem()
    log = open_log(disk, segment_bytes=1 << 20)
    for number in range(3):
        append(log, count=2, value=b"%d" % number)
    log.close()
    path = f"{FOLDER}/{0:020d}.log"
    whole = disk.read_bytes(path)
    expected = offsets(log)
    starts = [entry[3].position for entry in log.places_from(0)]
    for bit in range(8 * len(whole)):
        damaged = FaultyFilesystem()
        damaged.put(path, whole)
        damaged.flip_bit(path, bit)
        again = Log(damaged, FOLDER, 1 << 20)
        report = again.open(6)
        good = sum(start <= bit // 8 for start in starts) - 1
        assert offsets(again) == expected[:good], f"bit {bit}"
        assert report.lost == [(2 * good, 6)]
        assert report.reasons
        assert len(damaged.read_bytes(report.kept_aside[0])) == report.bytes_cut == len(whole) - starts[good]


def test_every_flipped_bit_of_a_complete_segment_and_its_index_is_detected() -> None:
    disk = FaultyFilesystem()
    log = open_log(disk, segment_bytes=600)
    for number in range(8):
        append(log, count=2, value=b"%d" % number, timestamp_ms=100 * number)
    log.close()
    segment, index = f"{FOLDER}/{0:020d}.log", f"{FOLDER}/{0:020d}.index"
    truth = {entry[0]: log.read(entry[3]) for entry in log.places_from(0)}
    entries = list(log.places_from(0))
    for path in (segment, index):
        for bit in range(8 * len(disk.read_bytes(path))):
            damaged = disk.copy()
            damaged.flip_bit(path, bit)
            again = Log(damaged, FOLDER, 600)
            assert again.open(log.end_offset).lost == []
            served: dict[int, bytes] = {}
            is_detected = False
            for entry in entries:
                try:
                    served[entry[0]] = again.read(entry[3], entry[0])
                except CorruptData:
                    is_detected = True
            assert served.items() <= truth.items(), f"bit {bit} of {path}"
            assert is_detected == (path == segment)
            try:
                assert list(again.places_from(0)) == entries or path == segment
                assert again.find_timestamp(300) == 6
            except CorruptData:
                assert path == segment


def test_a_damaged_segment_that_is_checked_is_cut_and_later_ones_stay(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    second = log.find(3)
    following = next(entry for entry in log.places_from(0) if entry[3].segment_base > 0)
    log.close()
    assert second is not None
    disk.flip_bit(f"{FOLDER}/{0:020d}.log", 8 * (second[3].position + 65))
    again = Log(disk, FOLDER, 400)
    report = again.open(30, checked_from=0)
    assert report.lost == [(3, following[0])]
    assert offsets(again)[:2] == [(0, 2, 3), following[:3]]
    assert offsets(again)[-1] == (27, 29, 3)
    assert report.end_offset == 30


def test_what_is_beyond_the_checkpoint_is_cut(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    log.close()
    for end_offset in (30, 27, 15, 3, 0):
        again = Log(disk, FOLDER, 400)
        report = again.open(end_offset)
        assert (again.end_offset, report.lost, report.kept_aside) == (end_offset, [], [])
        assert sum(last - base + 1 for base, last, _ in offsets(again)) == end_offset
        again.close()
    assert disk.list(FOLDER) == []


def test_an_end_within_a_batch_is_reported_as_lost(disk: FaultyFilesystem) -> None:
    filled(disk).close()
    log = Log(disk, FOLDER, 400)
    report = log.open(29)
    assert (log.end_offset, report.lost) == (27, [(27, 29)])


def test_a_missing_index_is_made_again(disk: FaultyFilesystem) -> None:
    log = filled(disk)
    log.close()
    expected = {name: disk.read_bytes(f"{FOLDER}/{name}") for name in names(disk, ".index")}
    assert expected
    for name in expected:
        disk.remove(f"{FOLDER}/{name}")
    again = open_log(disk)
    assert offsets(again) == offsets(log)
    assert {name: disk.read_bytes(f"{FOLDER}/{name}") for name in names(disk, ".index")} == expected


def test_an_index_that_cannot_be_written_costs_only_time(disk: FaultyFilesystem) -> None:
    disk.fail("open", errno.ENOSPC, times=1000, path=".index")
    log = filled(disk)
    assert offsets(log, 14)[0] == (12, 14, 3)
    log.close()
    assert offsets(open_log(disk), 14)[0] == (12, 14, 3)


@pytest.mark.parametrize(
    "place", [BatchPlace(0, -1, 10), BatchPlace(0, 0, -1), BatchPlace(0, 0, 1 << 40), BatchPlace(0, 1 << 40, 10)]
)
def test_a_place_that_cannot_be_is_corrupt(disk: FaultyFilesystem, place: BatchPlace) -> None:
    with pytest.raises(CorruptData):
        filled(disk).read(place)


def test_a_batch_at_another_offset_than_expected_is_not_served(disk: FaultyFilesystem) -> None:
    log = open_log(disk)
    place = append(log)
    with pytest.raises(CorruptData, match="not that of offset 5"):
        log.read(place, 5)
