"""Partitions with Kafka's cleanup policies: what is compacted, rolled and deleted when, and records found by their
time."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from millpond.base.limits import CHECKPOINT_SETTLED_MS, SEGMENT_QUIET_MS, STREAM_CHECK_INTERVAL_MS
from millpond.broker.streams.partition import Partition
from millpond.storage.batch_rewrite import plain_batch, recompressed
from millpond.storage.record_batch import BatchBuilder, BatchHeader, RecordReader
from tests.broker.life import Life, log_of, small_streams
from tests.broker.test_streams import Lives, finish_writes
from tests.storage.batches import produced_by

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_streams(monkeypatch)


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    lives = Lives(tmp_path)
    yield lives
    lives.life.abandon()


def compacted(life: Life, name: str = "s", **attributes: object) -> Partition:
    """A stream's partition with the policy of a compacted topic."""
    partition = log_of(life.declare_stream(name) if life.vhost.find_queue(name) is None else life.stream(name))
    partition.segment_ms = DAY_MS
    partition.segment_bytes = 1024
    partition.compacts = True
    partition.deletes = False
    partition.min_cleanable_dirty_ratio = 0.01
    for attribute, value in attributes.items():
        setattr(partition, attribute, value)
    return partition


def put(
    life: Life, partition: Partition, *records: tuple[bytes | None, bytes | None], codec: int = 0, age_ms: int = 0
) -> int:
    """Append a batch; the offset of its first record."""
    builder = BatchBuilder()
    now_ms = life.clock.wall_ms() - age_ms
    for delta, (key, value) in enumerate(records):
        builder.append_with_headers(delta, now_ms, key, value, [])
    batch = recompressed(builder.finish(0, len(records) - 1), codec)
    offset = int(partition.append(batch))
    life.turn.touch()
    life.end_turn()
    life.pump()
    return offset


def records_of(life: Life, partition: Partition) -> list[tuple[int, bytes | None, bytes | None]]:
    """(offset, key, value) of each record, as a reader gets them that begins with the first offset."""
    found: list[tuple[int, bytes | None, bytes | None]] = []
    offset = int(partition.start_offset)
    while offset < partition.durable_end:
        batches = partition.read(offset, partition.durable_end, 1 << 20)
        if batches is None:
            partition.load(offset)
            life.pump_until(lambda: not partition.loading, "a read")
            continue
        if not batches:
            break
        for batch in batches:
            reader = RecordReader(plain_batch(batch.data))
            while reader.next():
                if reader.offset >= offset:
                    found.append((int(reader.offset), reader.key, reader.value))
        offset = int(batches[-1].end_offset)
    return found


def flush(life: Life, partition: Partition) -> None:
    """Have the log take all of it."""
    life.settle_down()
    life.broker.streams.write(partition, everything=True)
    finish_writes(life)


def pass_time(life: Life, duration_ms: int) -> None:
    """Time passes, and the house is kept at its end."""
    life.clock.advance(duration_ms)
    life.turn.now_ms = life.clock.wall_ms()
    life.broker.streams.keep_house()
    life.pump_until(lambda: not life.broker.streams.cleaner.is_running, "compaction")
    finish_writes(life)


def compact(life: Life, partition: Partition) -> None:
    """Make a checkpoint, and have compaction do what it can."""
    flush(life, partition)
    life.checkpoint()
    pass_time(life, STREAM_CHECK_INTERVAL_MS)


def fill(life: Life, partition: Partition, count: int = 200, keys: int = 10, codec: int = 0) -> dict[bytes, bytes]:
    latest: dict[bytes, bytes] = {}
    for number in range(count):
        key, value = b"key-%d" % (number % keys), b"%d of %d" % (number, partition.end_offset)
        put(life, partition, (key, value), codec=codec)
        latest[key] = value
    return latest


# --- Compaction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [0, 4])
def test_the_latest_value_of_each_key_stays(lives: Lives, codec: int) -> None:
    life = lives.life
    partition = compacted(life)
    latest = fill(life, partition, codec=codec)
    compact(life, partition)
    cleaned_end = int(partition.cleaned_end)
    assert 0 < cleaned_end <= partition.end_offset == 200
    found = records_of(life, partition)
    assert len([record for record in found if record[0] < cleaned_end]) <= 10
    assert {key: value for _, key, value in found} == latest
    assert [record[0] for record in found] == sorted({record[0] for record in found})


def test_what_is_compacted_is_the_same_after_a_restart(lives: Lives) -> None:
    life = lives.life
    latest = fill(life, compacted(life))
    partition = log_of(life.stream("s"))
    compact(life, partition)
    life.checkpoint()
    cleaned_end, found = int(partition.cleaned_end), records_of(life, partition)
    for restart in (lives.stop, lives.cut_power):
        life = restart()
        partition = compacted(life)
        assert partition.cleaned_end == cleaned_end
        assert records_of(life, partition) == found
        assert {key: value for _, key, value in found} == latest
        passes = life.broker.streams.cleaner.passes_total
        pass_time(life, STREAM_CHECK_INTERVAL_MS)
        assert life.broker.streams.cleaner.passes_total == passes


def test_a_power_cut_after_compaction_and_before_the_next_checkpoint_loses_nothing(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life)
    latest = fill(life, partition)
    compact(life, partition)
    latest |= fill(life, partition, 30, 3)
    flush(life, partition)
    life = lives.cut_power()
    partition = compacted(life)
    assert partition.end_offset == 230
    assert {key: value for _, key, value in records_of(life, partition)} == latest


def test_nothing_is_compacted_without_a_checkpoint_and_one_is_asked_for(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life)
    fill(life, partition)
    flush(life, partition)
    completed = life.checkpointer.completed_total
    # Less than what makes a checkpoint due by itself.
    life.broker.streams.check_interval_ms = STREAM_CHECK_INTERVAL_MS // 2
    pass_time(life, STREAM_CHECK_INTERVAL_MS // 2)
    assert partition.cleaned_end == 0
    assert life.broker.streams.checkpoint_wanted
    life.clock.advance(CHECKPOINT_SETTLED_MS)
    life.turn.touch()
    life.pump_until(lambda: life.checkpointer.completed_total > completed, "a checkpoint")
    pass_time(life, STREAM_CHECK_INTERVAL_MS)
    assert partition.cleaned_end > 0


def test_a_topic_that_nobody_writes_to_any_more_is_compacted_after_its_segment_time(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life, segment_ms=HOUR_MS, segment_bytes=1 << 20)
    for number in range(20):
        put(life, partition, (b"key", b"%d" % number))
    life.settle_down()
    for _ in range(5):
        pass_time(life, HOUR_MS)
        life.turn.touch()
        life.settle_down()
    assert partition.cleaned_end == 20
    assert [record[2] for record in records_of(life, partition)] == [b"19"]


def test_compaction_waits_until_enough_is_new(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life, min_cleanable_dirty_ratio=0.5)
    for number in range(100):
        put(life, partition, (b"key-%d" % number, b"x" * 100))
    compact(life, partition)
    cleaned_end = int(partition.cleaned_end)
    assert cleaned_end > 50
    for number in range(40):
        put(life, partition, (b"key-%d" % number, b"y" * 100))
    compact(life, partition)
    assert partition.cleaned_end == cleaned_end
    for number in range(100):
        put(life, partition, (b"key-%d" % number, b"z" * 100))
    compact(life, partition)
    assert partition.cleaned_end > 200


def test_what_is_dirty_for_too_long_is_compacted_however_little_it_is(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life, min_cleanable_dirty_ratio=0.99, max_compaction_lag_ms=HOUR_MS)
    fill(life, partition, 100, 100)
    pass_time(life, HOUR_MS // 2)
    partition.cleaned_end = 50
    compact(life, partition)
    assert partition.cleaned_end == 50
    pass_time(life, HOUR_MS)
    compact(life, partition)
    assert partition.cleaned_end == 100


def test_what_is_younger_than_the_lag_is_left_alone(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life, min_compaction_lag_ms=HOUR_MS)
    fill(life, partition, 100, 2)
    pass_time(life, HOUR_MS // 2)
    fill(life, partition, 100, 2)
    compact(life, partition)
    assert partition.cleaned_end == 0
    pass_time(life, HOUR_MS // 2 + 1)
    cleaned_end = int(partition.cleaned_end)
    assert 0 < cleaned_end <= 100
    assert [record[0] for record in records_of(life, partition) if record[0] >= cleaned_end] == [
        *range(cleaned_end, 200)
    ]


def test_a_deletion_goes_when_it_has_been_kept_long_enough(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life, delete_retention_ms=HOUR_MS)
    put(life, partition, (b"gone", b"value"))
    put(life, partition, (b"gone", None))
    fill(life, partition, 60)
    compact(life, partition)
    assert (1, b"gone", None) in records_of(life, partition)
    assert (0, b"gone", b"value") not in records_of(life, partition)
    pass_time(life, HOUR_MS // 2)
    fill(life, partition, 60)
    compact(life, partition)
    assert (1, b"gone", None) in records_of(life, partition)
    pass_time(life, HOUR_MS // 2)
    fill(life, partition, 60)
    compact(life, partition)
    assert b"gone" not in {record[1] for record in records_of(life, partition)}


def test_the_last_batch_of_an_idempotent_producer_stays_in_the_log(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life)
    builder = BatchBuilder()
    for sequence in range(2):
        builder.append_with_headers(0, life.clock.wall_ms(), b"key-0", b"x", [])
        partition.append(produced_by(builder.finish(0, 0), 7, 0, sequence))
    fill(life, partition)
    compact(life, partition)
    assert not [record for record in records_of(life, partition) if record[0] < 2]
    log = life.broker.streams.log(partition).opened()
    headers = [BatchHeader(log.read(place)) for _, _, _, place in log.places_from(0)]
    assert [(header.base_offset, header.producer_id) for header in headers if header.producer_id >= 0] == [(1, 7)]


def test_deleting_a_stream_while_it_is_compacted_leaves_nothing(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life)
    fill(life, partition)
    flush(life, partition)
    life.checkpoint()
    folder = life.store.log_folder(int(partition.log_id), True)
    life.clock.advance(STREAM_CHECK_INTERVAL_MS)
    life.broker.streams.keep_house()
    life.vhost.delete_queue(life.stream("s"), False, False)
    life.store.delete_logs()
    life.store.delete_logs()
    life.pump_until(lambda: not life.broker.streams.cleaner.is_running and not life.disk.list(folder), "deletion")
    assert not life.disk.exists(folder)


def test_trimming_while_it_is_compacted_is_safe(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life)
    fill(life, partition, 300)
    flush(life, partition)
    life.checkpoint()
    life.clock.advance(STREAM_CHECK_INTERVAL_MS)
    life.broker.streams.keep_house()
    partition.trim_before(150)
    life.end_turn()
    life.pump_until(lambda: not life.broker.streams.cleaner.is_running, "compaction")
    finish_writes(life)
    found = records_of(life, partition)
    assert found[0][0] >= 150
    assert [record[0] for record in found][-10:] == [*range(290, 300)]


def test_a_stop_does_not_wait_for_compaction(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life)
    latest = fill(life, partition, 300)
    flush(life, partition)
    life.checkpoint()
    life.clock.advance(STREAM_CHECK_INTERVAL_MS)
    life.broker.streams.keep_house()
    life = lives.stop()
    assert {key: value for _, key, value in records_of(life, compacted(life))} == latest


def test_after_a_full_disk_compaction_rests_and_is_tried_again(lives: Lives, caplog: pytest.LogCaptureFixture) -> None:
    life = lives.life
    partition = compacted(life)
    latest = fill(life, partition)
    flush(life, partition)
    life.checkpoint()
    lives.disk.fail("write", errno.ENOSPC, path=".cleaned", times=1000)
    pass_time(life, STREAM_CHECK_INTERVAL_MS)
    assert "was not compacted to its end" in caplog.text
    assert partition.cleaned_end == 0
    lives.disk.heal()
    passes = life.broker.streams.cleaner.passes_total
    pass_time(life, STREAM_CHECK_INTERVAL_MS)
    assert life.broker.streams.cleaner.passes_total == passes
    for _ in range(15):
        pass_time(life, STREAM_CHECK_INTERVAL_MS)
    assert partition.cleaned_end > 0
    assert {key: value for _, key, value in records_of(life, partition)} == latest


def test_a_damaged_segment_is_told_once_and_does_not_stop_compaction(
    lives: Lives, caplog: pytest.LogCaptureFixture
) -> None:
    life = lives.life
    partition = compacted(life)
    fill(life, partition)
    flush(life, partition)
    life.checkpoint()
    base = life.broker.streams.log(partition).opened().sealed_segments()[1].base_offset
    lives.disk.flip_bit(f"{life.store.log_folder(int(partition.log_id), True)}/{base:020d}.log", 8 * 90)
    pass_time(life, STREAM_CHECK_INTERVAL_MS)
    assert partition.cleaned_end > base
    fill(life, partition)
    compact(life, partition)
    assert partition.cleaned_end > 200
    assert caplog.text.count("is damaged, and is not compacted") == 1


def test_readers_see_what_is_left_and_not_what_was_in_memory(lives: Lives) -> None:
    life = lives.life
    life.broker.streams.tail_bytes_max = 1 << 20
    partition = compacted(life)
    latest = fill(life, partition)
    life.settle_down()
    assert len(records_of(life, partition)) == 200
    compact(life, partition)
    assert len([record for record in records_of(life, partition) if record[0] < partition.cleaned_end]) <= 10
    assert {key: value for _, key, value in records_of(life, partition)} == latest
    life.check_counts()


def test_readers_are_not_told_that_what_was_compacted_is_lost(lives: Lives, caplog: pytest.LogCaptureFixture) -> None:
    life = lives.life
    partition = compacted(life)
    fill(life, partition, 300, 2)
    compact(life, partition)
    partition.drop_written(0)
    reads = life.broker.streams.reads_total
    records_of(life, partition)
    assert "lost" not in caplog.text
    # What is empty between records costs no reads of its own.
    assert life.broker.streams.reads_total - reads <= 12


@pytest.mark.parametrize("seed", range(50_000, 50_030))
def test_whatever_happens_the_latest_value_of_each_key_is_there(lives: Lives, seed: int) -> None:
    print(f"seed {seed}")
    choose = random.Random(seed)
    lives.disk.random.seed(seed)
    life = lives.life
    partition = compacted(life, delete_retention_ms=HOUR_MS)
    written: dict[int, tuple[bytes, bytes | None]] = {}
    for _ in range(choose.randrange(3, 8)):
        for _ in range(choose.randrange(20, 120)):
            batch = [
                (b"key-%d" % choose.randrange(15), None if choose.random() < 0.1 else b"%d" % choose.randrange(10_000))
                for _ in range(choose.randrange(1, 4))
            ]
            offset = put(life, partition, *batch, codec=choose.choice([0, 0, 3]))
            written |= {offset + delta: record for delta, record in enumerate(batch)}
        life.settle_down()
        match choose.randrange(4):
            case 0:
                compact(life, partition)
            case 1:
                life.checkpoint()
            case 2:
                flush(life, partition)
        for _ in range(choose.randrange(3)):
            pass_time(life, choose.choice([STREAM_CHECK_INTERVAL_MS, HOUR_MS]))
        if choose.random() < 0.5:
            life.clock.advance(STREAM_CHECK_INTERVAL_MS)
            life.broker.streams.keep_house()
            clock = life.clock
            if choose.random() < 0.3:
                life = lives.stop(clock=clock)
            else:
                life = lives.cut_power(choose.random() < 0.7, clock=clock)
            partition = compacted(life, delete_retention_ms=HOUR_MS)
        assert partition.end_offset == len(written)
        found = records_of(life, partition)
        assert [record[0] for record in found] == sorted({record[0] for record in found})
        assert all(written[offset] == (key, value) for offset, key, value in found)
        expected = {key: value for _, (key, value) in sorted(written.items()) if value is not None}
        for _, (key, value) in sorted(written.items()):
            if value is None:
                expected.pop(key, None)
            else:
                expected[key] = value
        latest: dict[bytes | None, bytes | None] = {key: value for _, key, value in found}
        assert {key: value for key, value in latest.items() if value is not None} == expected


# --- Retention and rolling ------------------------------------------------------------------------------------------


def topic(life: Life, **attributes: object) -> Partition:
    """A stream's partition with the policy of a topic that is not compacted."""
    return compacted(life, **{"compacts": False, "deletes": True, "segment_bytes": 1 << 20, **attributes})


def segments(life: Life, partition: Partition) -> list[int]:
    """Base offsets."""
    folder = life.store.log_folder(int(partition.log_id), True)
    return [int(name[:20]) for name in life.disk.list(folder) if name.endswith(".log")]


def test_a_segment_is_complete_when_a_record_is_too_much_younger_than_its_first(lives: Lives) -> None:
    life = lives.life
    partition = topic(life, segment_ms=HOUR_MS)
    put(life, partition, (b"a", b"1"), age_ms=3 * HOUR_MS)
    put(life, partition, (b"a", b"1"), age_ms=2 * HOUR_MS)
    put(life, partition, (b"a", b"1"), age_ms=2 * HOUR_MS - 1)
    put(life, partition, (b"a", b"1"), age_ms=2 * HOUR_MS - 5)
    flush(life, partition)
    assert segments(life, partition) == [0, 2]


def test_a_segment_is_complete_when_it_is_too_old_although_nothing_comes(lives: Lives) -> None:
    life = lives.life
    partition = topic(life, segment_ms=HOUR_MS)
    put(life, partition, (b"a", b"1"))
    life.settle_down()
    pass_time(life, HOUR_MS)
    assert segments(life, partition) == []
    pass_time(life, STREAM_CHECK_INTERVAL_MS)
    assert segments(life, partition) == [0]
    pass_time(life, SEGMENT_QUIET_MS)
    put(life, partition, (b"a", b"2"), age_ms=HOUR_MS)
    flush(life, partition)
    assert segments(life, partition) == [0, 1]


def test_records_that_were_old_when_they_came_do_not_make_tiny_segments(lives: Lives) -> None:
    """What another cluster had for years is copied here with its timestamps."""
    life = lives.life
    partition = topic(life, segment_ms=HOUR_MS)
    for _ in range(10):
        put(life, partition, (b"a", b"1"), age_ms=30 * DAY_MS)
        flush(life, partition)
        pass_time(life, STREAM_CHECK_INTERVAL_MS)
    assert segments(life, partition) == [0]


def test_a_topic_that_nobody_writes_to_becomes_empty(lives: Lives) -> None:
    life = lives.life
    partition = topic(life, age_max_ms=HOUR_MS)
    for number in range(20):
        put(life, partition, (b"a", b"%d" % number))
    life.settle_down()
    pass_time(life, HOUR_MS)
    assert partition.start_offset == 0
    pass_time(life, STREAM_CHECK_INTERVAL_MS)
    assert (partition.start_offset, partition.end_offset) == (20, 20)
    assert segments(life, partition) == []
    assert records_of(life, partition) == []
    assert put(life, partition, (b"a", b"more")) == 20
    life.settle_down()
    life = lives.cut_power()
    partition = topic(life)
    assert partition.end_offset >= partition.start_offset == 20


def test_a_segment_with_something_young_stays(lives: Lives) -> None:
    life = lives.life
    partition = topic(life, age_max_ms=HOUR_MS)
    put(life, partition, (b"a", b"1"), age_ms=2 * HOUR_MS)
    put(life, partition, (b"a", b"2"))
    flush(life, partition)
    pass_time(life, STREAM_CHECK_INTERVAL_MS)
    assert len(records_of(life, partition)) == 2


def test_without_the_policy_nothing_is_deleted(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life, age_max_ms=1, bytes_max=1)
    latest = fill(life, partition)
    flush(life, partition)
    pass_time(life, HOUR_MS)
    assert partition.start_offset == 0
    assert {key: value for _, key, value in records_of(life, partition)} == latest


def test_both_policies_act_together(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life, deletes=True, age_max_ms=HOUR_MS)
    fill(life, partition, 100, 2)
    pass_time(life, HOUR_MS // 2)
    latest = fill(life, partition, 100, 2)
    compact(life, partition)
    assert partition.cleaned_end > 100
    assert {key: value for _, key, value in records_of(life, partition)} == latest
    pass_time(life, HOUR_MS + STREAM_CHECK_INTERVAL_MS)
    pass_time(life, STREAM_CHECK_INTERVAL_MS)
    assert (partition.start_offset, partition.end_offset) == (200, 200)


def test_retention_by_size_takes_the_last_segment_where_nothing_may_stay(lives: Lives) -> None:
    life = lives.life
    partition = topic(life, bytes_max=0)
    put(life, partition, (b"a", b"1"))
    flush(life, partition)
    pass_time(life, STREAM_CHECK_INTERVAL_MS)
    assert partition.start_offset == 1


# --- Records by their time ------------------------------------------------------------------------------------------


def find(life: Life, partition: Partition, timestamp_ms: int) -> tuple[int, int]:
    found: list[tuple[int, int]] = []
    life.broker.streams.find_record_at(partition, timestamp_ms, lambda offset, time_ms: found.append((offset, time_ms)))
    life.pump_until(lambda: bool(found), "a search")
    return found[0]


def newest(life: Life, partition: Partition) -> tuple[int, int]:
    found: list[tuple[int, int]] = []
    life.broker.streams.find_newest(partition, lambda offset, time_ms: found.append((offset, time_ms)))
    life.pump_until(lambda: bool(found), "a search")
    return found[0]


def put_times(life: Life, partition: Partition, times: list[int], codec: int = 0) -> None:
    builder = BatchBuilder()
    for delta, time_ms in enumerate(times):
        builder.append_with_headers(delta, time_ms, b"key", b"value" * 5, [])
    partition.append(recompressed(builder.finish(0, len(times) - 1), codec))
    life.turn.touch()


def test_an_empty_partition_has_no_record_of_any_time(lives: Lives) -> None:
    partition = topic(lives.life)
    assert find(lives.life, partition, 0) == newest(lives.life, partition) == (-1, -1)


@pytest.mark.parametrize("seed", range(60_000, 60_010))
def test_records_are_found_by_their_time_wherever_they_are(lives: Lives, seed: int) -> None:
    print(f"seed {seed}")
    choose = random.Random(seed)
    life = lives.life
    partition = topic(life, segment_bytes=1024, segment_ms=DAY_MS * 100)
    times: list[int] = []
    for number in range(150):
        batch = [number * 10 + choose.randrange(40) for _ in range(choose.randrange(1, 5))]
        put_times(life, partition, batch, choose.randrange(5))
        times += batch
        if choose.random() < 0.05:
            life.settle_down()
    life.settle_down()
    if choose.random() < 0.3:
        flush(life, partition)
        partition.drop_written(0)
    start = 0
    if choose.random() < 0.6:
        start = choose.randrange(len(times))
        partition.trim_before(start)
        finish_writes(life)
    for wanted_ms in range(-1, 1600, 13):
        expected = next(
            ((offset, time_ms) for offset, time_ms in enumerate(times) if offset >= start and time_ms >= wanted_ms),
            (-1, -1),
        )
        assert find(life, partition, wanted_ms) == expected, wanted_ms
    largest = max(times[start:])
    assert newest(life, partition) == (times.index(largest, start), largest)


def test_records_that_are_not_durable_are_not_found(lives: Lives) -> None:
    life = lives.life
    partition = topic(life)
    put_times(life, partition, [10])
    life.settle_down()
    put_times(life, partition, [20])
    assert partition.durable_end == 1
    assert find(life, partition, 15) == (-1, -1)
    assert newest(life, partition) == (0, 10)
    life.settle_down()
    assert find(life, partition, 15) == newest(life, partition) == (1, 20)


def test_a_batch_that_lies_about_its_times_hides_none_behind_it(lives: Lives) -> None:
    life = lives.life
    partition = topic(life)
    builder = BatchBuilder()
    builder.append_with_headers(0, 10, b"key", b"value", [])
    liar = builder.finish(0, 0)
    liar = produced_by(liar[:35] + (1 << 40).to_bytes(8, "big") + liar[43:], -1, -1, -1)
    for _ in range(50):
        partition.append(liar)
    put_times(life, partition, [500])
    for everything in (False, True):
        life.settle_down()
        if everything:
            flush(life, partition)
            partition.drop_written(0)
        assert find(life, partition, 400) == (50, 500)
        assert newest(life, partition)[0] in (0, 50)


def test_records_are_found_behind_damage(lives: Lives) -> None:
    life = lives.life
    partition = topic(life, segment_bytes=1024)
    for number in range(100):
        put_times(life, partition, [number])
    flush(life, partition)
    partition.drop_written(0)
    base = segments(life, partition)[1]
    lives.disk.flip_bit(f"{life.store.log_folder(int(partition.log_id), True)}/{base:020d}.log", 8 * 90)
    assert find(life, partition, base)[0] > base
    assert find(life, partition, 99) == newest(life, partition) == (99, 99)


def test_the_newest_record_is_found_after_compaction(lives: Lives) -> None:
    life = lives.life
    partition = compacted(life)
    put(life, partition, (b"key-0", b"x"), age_ms=-HOUR_MS)
    put(life, partition, (b"unique", b"x"), age_ms=-HOUR_MS // 2)
    fill(life, partition)
    compact(life, partition)
    offset, time_ms = newest(life, partition)
    assert offset == 1
    assert find(life, partition, time_ms) == (1, time_ms)
    assert find(life, partition, time_ms + 1) == (-1, -1)
