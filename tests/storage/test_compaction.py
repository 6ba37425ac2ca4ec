"""Compaction: the last record of each key stays, with its offset; nothing else may change, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
from collections.abc import Callable

import pytest

from millpond.base.errors import CorruptData
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.base.filesystem import Filesystem, MemoryFilesystem
from millpond.storage.batch_rewrite import plain_batch, recompressed
from millpond.storage.compaction import Compaction, CompactionSettings, plan_compaction
from millpond.storage.log import Log
from millpond.storage.record_batch import DELETE_HORIZON, BatchBuilder, BatchHeader, RecordReader
from tests.storage.batches import produced_by

FOLDER = "/data/log"
NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
SEED_BASE = 40_000

Record = tuple[int, int, bytes | None, bytes | None]


def nothing() -> None:
    pass


def open_log(filesystem: Filesystem, end_offset: int | None = None, segment_bytes: int = 600) -> Log:
    log = Log(filesystem, FOLDER, segment_bytes)
    log.open(end_offset)
    return log


def batch_of(
    base_offset: int, records: list[tuple[bytes | None, bytes | None]], timestamp_ms: int = 1000, codec: int = 0
) -> bytes:
    builder = BatchBuilder()
    for delta, (key, value) in enumerate(records):
        builder.append_with_headers(delta, timestamp_ms + delta, key, value, [])
    return recompressed(builder.finish(base_offset, len(records) - 1), codec)


def append(log: Log, *records: tuple[bytes | None, bytes | None], timestamp_ms: int = 1000, codec: int = 0) -> None:
    append_batch(log, batch_of(log.end_offset, list(records), timestamp_ms, codec))


def append_batch(log: Log, batch: bytes) -> None:
    header = BatchHeader(batch)
    log.append(batch, int(header.base_offset), int(header.last_offset), int(header.max_timestamp_ms))


def batches_of(log: Log) -> list[bytes]:
    """All batches, those without records as well; checks that they tile the offsets."""
    expected = log.start_offset
    found: list[bytes] = []
    for base_offset, last_offset, _, place in log.places_from(log.start_offset):
        assert base_offset == expected
        expected = last_offset + 1
        found.append(log.read(place, base_offset))
    assert expected == log.end_offset
    return found


def records_of(log: Log) -> list[Record]:
    """(offset, timestamp, key, value) of each record."""
    found: list[Record] = []
    for batch in batches_of(log):
        reader = RecordReader(plain_batch(batch))
        while reader.next():
            found.append((int(reader.offset), int(reader.timestamp_ms), reader.key, reader.value))
    return found


def compact(
    log: Log,
    first_dirty: int = 0,
    end_offset: int = 1 << 62,
    now_ms: int = NOW_MS,
    *,
    delete_retention_ms: int = DAY_MS,
    kept: frozenset[int] = frozenset(),
    damaged: set[int] | None = None,
    pause: Callable[[], None] = nothing,
    slots: int = 1 << 16,
) -> int:
    """Compact what is complete; where that ended."""
    settings = CompactionSettings(delete_retention_ms, 0, 1 << 62, 0.0)
    damaged = set() if damaged is None else damaged
    while True:
        plan = plan_compaction(log.sealed_segments(), first_dirty, end_offset, now_ms, settings)
        compaction = Compaction(log.files, log.folder, plan, kept, damaged, pause, slots)
        compaction.index(now_ms, delete_retention_ms)
        for group in compaction.groups(log.segment_bytes):
            cleaned = compaction.clean(group)
            if cleaned is not None:
                log.replace(group, cleaned)
        first_dirty = compaction.end_offset
        if first_dirty >= plan.end_offset:
            return first_dirty


def latest(records: list[Record], end_offset: int) -> list[Record]:
    """What compaction of all before `end_offset` leaves, deletions included."""
    last = {key: offset for offset, _, key, _ in records if offset < end_offset}
    return [record for record in records if record[0] >= end_offset or (record[2] and last[record[2]] == record[0])]


@pytest.fixture
def disk() -> FaultyFilesystem:
    return FaultyFilesystem()


# --- What stays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", range(5))
def test_the_last_record_of_each_key_stays_at_its_offset(codec: int) -> None:
    log = open_log(MemoryFilesystem(), segment_bytes=2000)
    choose = random.Random(codec)
    for number in range(200):
        records = [(b"key-%d" % choose.randrange(20), b"%d" % number) for _ in range(choose.randrange(1, 5))]
        append(log, *records, timestamp_ms=1000 * number, codec=codec)
    log.roll()
    before = records_of(log)
    size = log.size_bytes
    assert compact(log) == log.end_offset
    assert records_of(log) == latest(before, log.end_offset)
    assert len(records_of(log)) == 20
    assert log.size_bytes < size
    assert all(
        BatchHeader(batch).attributes & 7 == codec for batch in batches_of(log) if BatchHeader(batch).record_count
    )


def test_the_active_segment_is_left_alone() -> None:
    log = open_log(MemoryFilesystem())
    for number in range(30):
        append(log, (b"key", b"%d" % number))
    before = records_of(log)
    end = compact(log)
    assert 0 < end < 30
    assert records_of(log) == latest(before, end)
    append(log, (b"key", b"more"))
    assert records_of(log)[-1][3] == b"more"


def test_nothing_is_cleaned_that_a_checkpoint_does_not_know() -> None:
    log = open_log(MemoryFilesystem())
    for number in range(60):
        append(log, (b"key", b"%d" % number))
    log.roll()
    before = records_of(log)
    end = compact(log, end_offset=31)
    assert 0 < end <= 31
    assert records_of(log) == latest(before, end)


def test_records_without_a_key_go() -> None:
    log = open_log(MemoryFilesystem())
    append(log, (None, b"a"), (b"key", b"b"), (None, b"c"))
    append(log, (None, b"d"))
    log.roll()
    compact(log)
    assert [record[3] for record in records_of(log)] == [b"b"]
    assert log.end_offset == 4


def test_an_empty_key_and_an_empty_value_are_a_key_and_a_value() -> None:
    log = open_log(MemoryFilesystem())
    append(log, (b"", b"old"), (b"key", b""), (b"", b"new"))
    log.roll()
    compact(log)
    assert [record[2:] for record in records_of(log)] == [(b"key", b""), (b"", b"new")]


def test_a_batch_that_loses_records_keeps_what_its_producer_says() -> None:
    log = open_log(MemoryFilesystem())
    batch = produced_by(batch_of(0, [(b"a", b"1"), (b"b", b"1")], 5000, codec=1), 77, 3, 12)
    append_batch(log, batch)
    append(log, (b"a", b"2"))
    log.roll()
    compact(log)
    header = BatchHeader(batches_of(log)[0])
    assert (header.base_offset, header.last_offset, header.record_count) == (0, 1, 1)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (77, 3, 12)
    assert header.attributes & 7 == 1
    assert header.max_timestamp_ms == 5001
    assert records_of(log)[0] == (1, 5001, b"b", b"1")


def test_the_last_batch_of_a_producer_stays_without_its_records() -> None:
    log = open_log(MemoryFilesystem())
    append_batch(log, produced_by(batch_of(0, [(b"a", b"1")]), 77, 0, 0))
    append_batch(log, produced_by(batch_of(1, [(b"a", b"2")]), 77, 0, 1))
    append(log, (b"a", b"3"))
    log.roll()
    compact(log, kept=frozenset([1]))
    first, second, third = [BatchHeader(batch) for batch in batches_of(log)]
    assert (first.record_count, first.producer_id) == (0, -1)
    assert (second.record_count, second.producer_id, second.base_sequence) == (0, 77, 1)
    assert second.max_timestamp_ms == 1000
    assert third.record_count == 1
    # Once its producer is forgotten it goes.
    append(log, (b"b", b"1"))
    log.roll()
    compact(log, first_dirty=3)
    assert [BatchHeader(batch).producer_id for batch in batches_of(log)] == [-1, -1, -1]
    assert BatchHeader(batches_of(log)[0]).last_offset == 1


def test_neighbours_become_one_segment_and_a_gap_one_batch() -> None:
    log = open_log(MemoryFilesystem(), segment_bytes=600)
    for number in range(300):
        append(log, (b"key-%d" % (number % 3), b"%d" % number))
    log.roll()
    assert log.segment_count > 10
    compact(log)
    for start in range(300, 318, 6):
        for number in range(start, start + 6):
            append(log, (b"key-%d" % (number % 3), b"%d" % number))
        log.roll()
        compact(log, first_dirty=start)
    assert log.segment_count <= 2
    assert [record[0] for record in records_of(log)] == [315, 316, 317]
    assert [BatchHeader(batch).record_count for batch in batches_of(log)].count(0) <= 2


def test_what_has_nothing_to_lose_is_not_written_again(disk: FaultyFilesystem) -> None:
    log = open_log(disk)
    for number in range(40):
        append(log, (b"key-%d" % number, b"x" * 50))
    log.roll()
    log.sync()
    renames = disk.counts["rename"]
    before = {name: disk.read_bytes(f"{FOLDER}/{name}") for name in disk.list(FOLDER)}
    compact(log)
    assert disk.counts["rename"] == renames
    assert {name: disk.read_bytes(f"{FOLDER}/{name}") for name in disk.list(FOLDER)} == before


def test_more_keys_than_can_be_remembered_take_several_passes() -> None:
    log = open_log(MemoryFilesystem(), segment_bytes=5000)
    choose = random.Random(5)
    for number in range(400):
        append(log, *((b"key-%d" % choose.randrange(150), b"%d" % number) for _ in range(3)))
    log.roll()
    before = records_of(log)
    assert compact(log, slots=64) == log.end_offset
    assert records_of(log) == latest(before, log.end_offset)


def test_a_batch_with_more_keys_than_can_be_remembered_is_cleaned_in_parts() -> None:
    log = open_log(MemoryFilesystem(), segment_bytes=5000)
    append(log, *((b"key-%d" % number, b"old") for number in range(100)))
    append(log, *((b"key-%d" % number, b"new") for number in range(100)))
    log.roll()
    compact(log, slots=16)
    assert [record[3] for record in records_of(log)] == [b"new"] * 100


def test_times_of_records_are_what_they_were() -> None:
    log = open_log(MemoryFilesystem(), segment_bytes=4000)
    choose = random.Random(8)
    for number in range(100):
        value = None if choose.random() < 0.3 else b"%d" % number
        keys = [(b"key-%d" % choose.randrange(30), value) for _ in range(3)]
        append(log, *keys, timestamp_ms=choose.choice([0, 1, NOW_MS, NOW_MS * 100]), codec=choose.randrange(5))
    log.roll()
    before = records_of(log)
    compact(log)
    assert records_of(log) == latest(before, log.end_offset)
    for batch in batches_of(log):
        header = BatchHeader(batch)
        times = [record[1] for record in records_of(log) if header.base_offset <= record[0] <= header.last_offset]
        assert not times or max(times) == header.max_timestamp_ms


# --- Deletions ------------------------------------------------------------------------------------------------------


def dirty(log: Log) -> int:
    """Give compaction a reason to come by; where the new part begins."""
    start = log.end_offset
    append(log, (b"other", b"%d" % start))
    log.roll()
    return start


@pytest.mark.parametrize("codec", [0, 3])
def test_a_deletion_goes_after_its_time_and_not_before(codec: int) -> None:
    log = open_log(MemoryFilesystem())
    append(log, (b"a", b"1"), (b"b", b"1"), codec=codec)
    append(log, (b"a", None), (b"c", b"1"), timestamp_ms=2000, codec=codec)
    log.roll()
    compact(log, now_ms=NOW_MS, delete_retention_ms=1000)
    assert records_of(log) == [(1, 1001, b"b", b"1"), (2, 2000, b"a", None), (3, 2001, b"c", b"1")]
    batch = next(batch for batch in batches_of(log) if BatchHeader(batch).base_offset == 2)
    assert BatchHeader(batch).attributes & DELETE_HORIZON
    assert BatchHeader(batch).base_timestamp_ms == NOW_MS + 1000
    assert BatchHeader(batch).max_timestamp_ms == 2001
    compact(log, dirty(log), now_ms=NOW_MS + 999, delete_retention_ms=5)
    assert (2, 2000, b"a", None) in records_of(log)
    compact(log, dirty(log), now_ms=NOW_MS + 1000, delete_retention_ms=5)
    assert [record[2] for record in records_of(log)] == [b"b", b"c", b"other"]
    assert (3, 2001, b"c", b"1") in records_of(log)


def test_a_deletion_stays_while_something_older_may_be_in_a_damaged_segment(disk: FaultyFilesystem) -> None:
    log = open_log(disk, segment_bytes=150)
    append(log, (b"a", b"1" * 50))
    append(log, (b"a", None), (b"b", b"x" * 50))
    append(log, (b"c", b"1" * 50))
    log.roll()
    log.sync()
    compact(log, now_ms=NOW_MS, delete_retention_ms=0)
    disk.flip_bit(f"{FOLDER}/{0:020d}.log", 8 * 40)
    # An index would be made of the damaged segment.
    damaged: set[int] = set()
    compact(log, dirty(log), now_ms=NOW_MS + 10_000, damaged=damaged)
    assert damaged == {0}
    found = [record for record in _readable(log) if record[2] == b"a"]
    assert found == [(1, 1000, b"a", None)]


def _readable(log: Log) -> list[Record]:
    """The records of all that verifies."""
    found: list[Record] = []
    offset = log.start_offset
    while offset < log.end_offset:
        run = log.read_run(offset, 1)
        for batch in run.batches:
            reader = RecordReader(plain_batch(batch))
            while reader.next():
                found.append((int(reader.offset), int(reader.timestamp_ms), reader.key, reader.value))
        offset = max(run.next_offset, offset + 1)
    return found


# --- What must not hurt ---------------------------------------------------------------------------------------------


def test_a_damaged_segment_is_left_as_it_is(disk: FaultyFilesystem) -> None:
    log = open_log(disk)
    for number in range(60):
        append(log, (b"key-%d" % (number % 2), b"%d" % number))
    log.roll()
    log.sync()
    base = log.sealed_segments()[2].base_offset
    path = f"{FOLDER}/{base:020d}.log"
    disk.flip_bit(path, 8 * 100)
    content = disk.read_bytes(path)
    damaged: set[int] = set()
    assert compact(log, damaged=damaged) == 60
    assert damaged == {base}
    assert disk.read_bytes(path) == content
    assert _readable(log)[-2:] == [(58, 1000, b"key-0", b"58"), (59, 1000, b"key-1", b"59")]
    assert [record[0] for record in _readable(log) if record[0] < base] == []


def test_a_batch_whose_records_make_no_sense_is_left_as_it_is() -> None:
    log = open_log(MemoryFilesystem(), segment_bytes=5000)
    append(log, (b"a", b"1"))
    senseless = produced_by(batch_of(1, [(b"a", b"x" * 100)]), -1, -1, -1, records=b"\xff" * 100)
    append_batch(log, senseless)
    append(log, (b"a", b"2"))
    log.roll()
    compact(log)
    assert senseless in batches_of(log)
    with pytest.raises(CorruptData):
        records_of(log)
    assert [BatchHeader(batch).record_count for batch in batches_of(log)] == [0, 1, 1]


def test_a_full_disk_leaves_the_log_as_it_was(disk: FaultyFilesystem) -> None:
    log = open_log(disk)
    for number in range(60):
        append(log, (b"key-%d" % (number % 2), b"%d" % number))
    log.roll()
    log.sync()
    before = records_of(log)
    disk.fail("write", errno.ENOSPC, path=".cleaned", times=100)
    with pytest.raises(OSError, match="No space"):
        compact(log)
    disk.heal()
    assert records_of(log) == before
    assert not [name for name in disk.list(FOLDER) if name.endswith((".cleaned", ".swap"))]
    compact(log)
    assert records_of(log) == latest(before, 60)


@pytest.mark.parametrize("operation", ["rename", "sync_folder", "remove", "sync", "open"])
@pytest.mark.parametrize("nth", range(1, 8))
def test_whatever_fails_the_log_goes_on_and_is_whole_when_opened_again(
    disk: FaultyFilesystem, operation: str, nth: int
) -> None:
    log = open_log(disk)
    for number in range(60):
        append(log, (b"key-%d" % (number % 7), b"%d" % number))
    log.roll()
    log.sync()
    before = records_of(log)
    disk.fail(operation, errno.EIO, nth=nth)
    with contextlib.suppress(OSError):
        compact(log)
    disk.heal()
    assert latest(records_of(log), 60) == latest(before, 60)
    append(log, (b"key-0", b"new"))
    log.sync()
    again = open_log(disk, 61)
    assert latest(records_of(again), 61) == latest([*before, (60, 1000, b"key-0", b"new")], 61)
    compact(again)
    assert not [name for name in disk.list(FOLDER) if name.endswith((".cleaned", ".swap"))]
    assert latest(records_of(open_log(disk, 61)), 61) == latest(records_of(again), 61)


def test_segments_that_are_trimmed_meanwhile_are_not_replaced(disk: FaultyFilesystem) -> None:
    log = open_log(disk)
    for number in range(90):
        append(log, (b"key-%d" % (number % 2), b"%d" % number))
    log.roll()
    calls = 0

    def trim() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            log.trim_before(40)

    compact(log, pause=trim)
    assert log.start_offset > 0
    assert [record[0] for record in records_of(log)][-2:] == [88, 89]
    assert records_of(open_log(disk, 90)) == records_of(log)
    assert not [name for name in disk.list(FOLDER) if name.endswith(".cleaned")]


def test_a_segment_that_replaced_others_is_trimmed_like_any(disk: FaultyFilesystem) -> None:
    log = open_log(disk)
    for number in range(60):
        append(log, (b"key-%d" % number, b"x"), (b"key", b"x"))
    log.roll()
    log.sync()
    # It keeps its first name.
    disk.fail("remove", errno.EIO, times=1000)
    with contextlib.suppress(OSError):
        compact(log)
    disk.heal()
    assert [name for name in disk.list(FOLDER) if name.endswith(".swap")]
    log.trim_before(log.end_offset)
    assert disk.list(FOLDER) == [] or log.start_offset == log.end_offset
    assert records_of(log) == []
    assert records_of(open_log(disk, 120)) == []


def test_readers_find_the_same_while_segments_are_replaced() -> None:
    log = open_log(MemoryFilesystem(), segment_bytes=2000)
    guard = threading.Lock()
    for number in range(600):
        append(log, (b"key-%d" % (number % 50), b"%d" % number), (b"unique-%d" % number, b"%d" % number))
    log.roll()
    failures: list[BaseException] = []
    stop = threading.Event()
    unique = {number * 2 + 1: b"%d" % number for number in range(600)}

    def read() -> None:
        choose = random.Random(1)
        try:
            while not stop.is_set():
                offset = choose.randrange(1200)
                with guard:
                    run = log.read_run(offset, 4000)
                assert not run.damage
                found = {}
                for batch in run.batches:
                    reader = RecordReader(batch)
                    while reader.next():
                        found[int(reader.offset)] = reader.value
                expected = {at: value for at, value in unique.items() if offset <= at < run.next_offset}
                assert {at: value for at, value in found.items() if at in expected} == expected
        except BaseException as error:  # noqa: BLE001  (told by the test's thread)
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    settings = CompactionSettings(DAY_MS, 0, 1 << 62, 0.0)
    try:
        for _ in range(5):
            with guard:
                plan = plan_compaction(log.sealed_segments(), 0, 1 << 62, NOW_MS, settings)
            compaction = Compaction(log.files, log.folder, plan, frozenset(), set(), nothing)
            compaction.index(NOW_MS, DAY_MS)
            for group in compaction.groups(8000):
                cleaned = compaction.clean(group)
                if cleaned is not None:
                    with guard:
                        assert log.replace(group, cleaned)
            with guard:
                append(log, (b"key-1", b"again"), (b"another", b"x"))
                log.roll()
    finally:
        stop.set()
        reader.join()
    assert not failures, failures[0]


# --- Crashes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(SEED_BASE, SEED_BASE + 150))
def test_a_power_cut_at_any_point_loses_nothing(seed: int) -> None:
    print(f"seed {seed}")
    choose = random.Random(seed)
    disk = FaultyFilesystem(seed)
    log = open_log(disk, 0, choose.choice([400, 1500, 6000]))
    appended: list[Record] = []
    cleaned_end = 0
    for _ in range(choose.randrange(2, 6)):
        for _ in range(choose.randrange(1, 60)):
            records: list[tuple[bytes | None, bytes | None]] = [
                (b"key-%d" % choose.randrange(12), b"%d" % choose.randrange(1000))
                for _ in range(choose.randrange(1, 4))
            ]
            base = log.end_offset
            append(log, *records, timestamp_ms=base, codec=choose.choice([0, 0, 1, 4]))
            appended += [(base + delta, base + delta, *record) for delta, record in enumerate(records)]
        if choose.random() < 0.5:
            log.roll()
        # A checkpoint.
        log.sync()
        checkpointed = log.end_offset
        crashes: list[FaultyFilesystem] = []
        countdown = choose.randrange(1, 60)

        def maybe_crash() -> None:
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                crashes.append(disk.copy_for_crash())  # noqa: B023  (called in this round only)

        watched = Watched(disk, maybe_crash)
        log._filesystem = watched  # type: ignore[misc]
        cleaned_end = compact(log, cleaned_end, checkpointed, pause=maybe_crash, slots=choose.choice([16, 1 << 10]))
        log._filesystem = disk  # type: ignore[misc]
        for crashed in [*crashes, disk.copy_for_crash()]:
            crashed.crash(keeps_some=choose.random() < 0.7)
            again = Log(crashed, FOLDER, 1500)
            report = again.open(checkpointed, checked_from=choose.choice([0, None]))
            assert report.lost == []
            assert report.reasons == []
            found = records_of(again)
            assert latest(found, checkpointed) == latest(appended, checkpointed)
            assert set(found) <= set(appended)
            assert again.end_offset == checkpointed
            assert not [name for name in crashed.list(FOLDER) if name.endswith((".cleaned", ".swap"))]
            # What an index says is true of the segment that is there now.
            for record in latest(found, checkpointed):
                assert again.find_record(record[1], record[0], 1 << 20)[:2] == (record[0], record[1])
        assert latest(records_of(log), checkpointed) == latest(appended, checkpointed)
        if choose.random() < 0.4:
            disk.crash()
            log = Log(disk, FOLDER, log.segment_bytes)
            log.open(checkpointed)


class Watched(Filesystem):
    """Has something called before each change of a name."""

    def __init__(self, disk: FaultyFilesystem, before: Callable[[], None]) -> None:
        self._disk = disk
        self._before = before
        for name in ("open", "list", "exists", "mkdirs", "free_bytes", "lock"):
            setattr(self, name, getattr(disk, name))

    def remove(self, path: str) -> None:
        self._before()
        self._disk.remove(path)

    def rename(self, path: str, to: str) -> None:
        self._before()
        self._disk.rename(path, to)

    def sync_folder(self, folder: str) -> None:
        self._before()
        self._disk.sync_folder(folder)


Watched.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
