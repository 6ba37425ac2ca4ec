"""A stream's log and the queue in front of it: offsets, durability, memory, recovery, retention and damage."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millpond.base.errors import CorruptData, PeerError
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.base.limits import KAFKA_BATCH_BYTES_MAX, STREAM_READS_MAX
from millpond.broker import checkpoint
from millpond.broker.streams.partition import placed
from millpond.broker.streams.stream_queue import StreamQueue
from millpond.broker.streams.subscription import Subscription, interval_ms
from millpond.storage.record_batch import BatchBuilder, BatchHeader, check_batch
from tests.broker.life import KIB, MIB, Inbox, Life, PlainProperties, copy_catalog, log_of, small_streams


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_streams(monkeypatch)


class Lives:
    """One disk, and one broker on it after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = FaultyFilesystem(1)
        self.number = 0
        self.catalog = folder / "catalog-0"
        self.life = Life(self.disk, self.catalog)

    def cut_power(self, keeps_some: bool = False, **options: Any) -> Life:
        """What was durable is there in the next life; with `keeps_some`, also some of what was on its way."""
        old, self.number = self.life, self.number + 1
        self.catalog = self.folder / f"catalog-{self.number}"
        with self.disk.guard:
            disk = self.disk.copy_for_crash()
        old.copy_durable_catalog(self.catalog)
        old.abandon()
        disk.crash(keeps_some)
        self.disk = disk
        self.life = Life(disk, self.catalog, **options)
        return self.life

    def stop(self, **options: Any) -> Life:
        """A clean stop, and another start."""
        self.life.stop()
        self.number += 1
        catalog = self.folder / f"catalog-{self.number}"
        copy_catalog(self.catalog, catalog)
        self.catalog = catalog
        self.life = Life(self.disk, catalog, **options)
        return self.life


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    lives = Lives(tmp_path)
    yield lives
    lives.life.abandon()


def fill(life: Life, name: str, numbers: range, size: int = 0, per_turn: int = 10) -> None:
    for number in numbers:
        life.publish("", name, number, size=size, persistent=False)
        if number % per_turn == per_turn - 1:
            life.end_turn()
            life.pump()
    finish_writes(life)


def finish_writes(life: Life) -> None:
    """Until the writing thread has done all that it was asked for."""
    life.settle_down()
    done: list[object] = []
    life.store.run_on_writer(lambda: None, done.append)
    life.pump_until(lambda: bool(done))


def numbered(numbers: range) -> list[tuple[int, int]]:
    return [(number, number) for number in numbers]


# --- Appending and reading ------------------------------------------------------------------------------------------


def test_messages_get_consecutive_offsets_and_stay_for_every_consumer(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    fill(life, "s", range(100))
    for _ in range(3):
        assert life.replay(stream) == numbered(range(100))
    assert stream.ready == 100


def test_a_consumer_is_shown_only_what_is_durable(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    inbox = Inbox(stream, 10, offset="first")
    stream.add_consumer(inbox)
    life.publish("", "s", 1)
    life.end_turn()
    assert log_of(stream).end_offset == 1
    if log_of(stream).durable_end == 0:
        assert not inbox.received
    life.pump_until(lambda: bool(inbox.received))
    assert log_of(stream).durable_end == 1


def test_a_consumer_makes_the_journal_sync_what_it_waits_for(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    stream.add_consumer(Inbox(stream, 10))
    life.end_turn()
    assert not life.ledger.sync_wanted
    life.publish("", "s", 1)
    life.end_turn()
    life.pump_until(lambda: log_of(stream).durable_end == 1)


def test_a_message_counts_as_something_that_a_commit_must_cover(lives: Lives) -> None:
    life = lives.life
    life.declare_stream("s")
    life.settle_down()
    assert not life.ledger.has_changes()
    life.publish("", "s", 1)
    assert life.ledger.has_changes()


def test_an_opaque_batch_gets_its_offsets_and_keeps_its_checksum(lives: Lives) -> None:
    life = lives.life
    log = log_of(life.declare_stream("s"))
    builder = BatchBuilder()
    for number in range(3):
        builder.append_with_headers(number, 1000 + number, b"key", b"value", [(b"a", b"b")])
    batch = placed(builder.finish(77, 2), 77)
    assert log.append(batch) == 0
    assert log.append(batch) == 3
    life.end_turn()
    life.settle_down()
    found = log.read(0, log.durable_end, MIB)
    assert found is not None
    assert [(int(part.base_offset), int(part.end_offset)) for part in found] == [(0, 3), (3, 6)]
    for part in found:
        check_batch(part.data)
        assert BatchHeader(part.data).base_offset == part.base_offset
    assert found[1].data[12:] == batch[12:]


def test_a_record_of_another_protocol_is_a_message_among_others(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    builder = BatchBuilder()
    builder.append_with_headers(0, 1000, None, b"4 of another protocol", [])
    log_of(stream).append(builder.finish(0, 0))
    life.publish("", "s", 5)
    life.settle_down()
    assert life.replay(stream) == [(0, 4), (1, 5)]


@pytest.mark.usefixtures("small")
def test_what_is_in_the_log_is_read_back_by_any_number_of_consumers(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    fill(life, "s", range(500), size=100)
    log = log_of(stream)
    assert log.hot_bytes < 4 * KIB, "all but the newest has left memory"
    inboxes = [Inbox(stream, 1 + number * 7, offset="first") for number in range(8)]
    for inbox in inboxes:
        stream.add_consumer(inbox)

    def all_have_all() -> bool:
        for inbox in inboxes:
            for entry in inbox.take():
                stream.settle(entry)
        life.end_turn()
        return all(len(inbox.received) == 500 for inbox in inboxes)

    life.pump_until(all_have_all)
    assert all(inbox.received == numbered(range(500)) for inbox in inboxes)
    life.settle_down()
    life.check_counts()


@pytest.mark.usefixtures("small")
def test_memory_is_bounded_however_much_is_published_and_replayed(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    highest = 0
    reader = Inbox(stream, 5, offset="first")
    stream.add_consumer(reader)
    for number in range(3000):
        life.publish("", "s", number, size=100)
        if number % 10 == 9:
            life.end_turn()
            life.pump_until(lambda: log_of(stream).unwritten_bytes < 4 * KIB and not log_of(stream).has_pending)
            for entry in reader.take():
                stream.settle(entry)
            highest = max(highest, int(life.memory.used))
    life.settle_down()
    # Eleven times as much was published. What is on its way to the disk and the cache of reads are all there is.
    assert highest < 60 * KIB
    assert life.replay(stream, prefetch=50) == numbered(range(3000))


def test_memory_pressure_sends_to_the_log_what_is_only_in_memory(tmp_path: Path) -> None:
    life = Life(FaultyFilesystem(1), tmp_path / "catalog", budget=100 * KIB)
    stream = life.declare_stream("s")
    fill(life, "s", range(300), size=200)
    # Far less than what makes a write worth while.
    assert log_of(stream).written_end > 0
    assert life.memory.used < 100 * KIB
    assert life.replay(stream) == numbered(range(300))
    life.abandon()


# --- Where consumers begin, and what they want ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "first"),
    [("first", 0), ("last", 90), ("next", 100), (0, 0), (37, 37), (99, 99), ("1h", 0), (150, 150)],
)
@pytest.mark.parametrize("is_written", [False, True])
def test_a_consumer_begins_where_it_says(lives: Lives, offset: object, first: int, is_written: bool) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    fill(life, "s", range(100))
    if is_written:
        life.broker.streams.write(log_of(stream), everything=True)
        life.settle_down()
        log_of(stream).drop_written(0)
    inbox = Inbox(stream, 1000, offset=offset)
    stream.add_consumer(inbox)
    life.pump_until(lambda: len(inbox.received) == max(0, 100 - first))
    fill(life, "s", range(100, 200))
    life.pump_until(lambda: len(inbox.received) == 200 - first)
    assert inbox.received == numbered(range(first, 200))


@pytest.mark.parametrize("is_written", [False, True])
def test_a_consumer_begins_at_a_time(lives: Lives, is_written: bool) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    for number in range(10):
        life.publish("", "s", number)
        life.settle_down()
        life.clock.advance(60_000)
    if is_written:
        life.broker.streams.write(log_of(stream), everything=True)
        life.settle_down()
        log_of(stream).drop_written(0)
    life.turn.now_ms = life.clock.wall_ms()
    assert life.replay(stream, offset="3m") == numbered(range(7, 10))
    assert life.replay(stream, offset="1D") == numbered(range(10))
    assert life.replay(stream, offset="1s") == []


def test_an_interval_has_one_unit() -> None:
    assert [interval_ms(text) for text in ("1Y", "1M", "2D", "3h", "4m", "5s")] == [
        31_536_000_000, 2_592_000_000, 172_800_000, 10_800_000, 240_000, 5_000,
    ]  # fmt: skip
    assert {interval_ms(text) for text in ("", "h", "0h", "1", "1d", "1H", " 1h", "1h\n", "-1h", "1.5h", "٣h")} == {-1}


@pytest.mark.parametrize("value", ["sometime", "", "1w", -1, 1.5, True, [1], {"a": 1}, 1 << 63, b"first"])
def test_an_offset_that_makes_no_sense_is_refused(value: object) -> None:
    with pytest.raises(PeerError, match="invalid arg 'x-stream-offset' for queue"):
        Subscription({"x-stream-offset": value}, "queue 's' in vhost '/'", 0)


def filtered(value: str | None) -> PlainProperties:
    return PlainProperties(True, -1, {} if value is None else {"x-stream-filter-value": value})


@pytest.mark.parametrize(
    ("wanted", "unfiltered", "expected"),
    [
        ("red", False, [0, 3, 6]),
        (["red", "blue"], False, [0, 2, 3, 5, 6, 8]),
        ("red", True, [0, 1, 3, 4, 6, 7]),
        ([], False, []),
        ("green", False, []),
        (["red", 7, None], False, [0, 3, 6]),
        (12, False, list(range(9))),
    ],
)
def test_a_filter_lets_through_exactly_what_it_names(
    lives: Lives, wanted: object, unfiltered: bool, expected: list[int]
) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    for number in range(9):
        value = ("red", None, "blue")[number % 3]
        life.publish("", "s", number, properties=filtered(value))
        if number % 2:
            life.end_turn()
    life.settle_down()
    received = life.replay(stream, filter=wanted, match_unfiltered=unfiltered)
    assert received == [(number, number) for number in expected]


def test_a_filter_that_finds_nothing_for_long_lets_other_work_be_done(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    for number in range(300):
        life.publish("", "s", number, properties=filtered("red" if number == 299 else "blue"))
        life.end_turn()
    life.settle_down()
    assert life.replay(stream, filter="red") == [(299, 299)]


def test_a_filter_of_very_many_values_is_as_exact(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    for number in range(50):
        life.publish("", "s", number, properties=filtered(f"value-{number}"))
        life.end_turn()
    life.settle_down()
    wanted = [f"value-{number}" for number in range(40, 10_000)]
    assert life.replay(stream, filter=wanted) == numbered(range(40, 50))


# --- Settling -------------------------------------------------------------------------------------------------------


def test_acknowledgements_only_make_room(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    inbox = Inbox(stream, 3, offset="first")
    stream.add_consumer(inbox)
    fill(life, "s", range(10))
    assert [number for number, _ in inbox.received] == [0, 1, 2]
    first, second, third = inbox.take()
    stream.settle(first)
    stream.reject(second)
    stream.give_back([third], False)
    life.settle_down()
    assert [number for number, _ in inbox.received] == list(range(6)), "nothing comes twice"
    assert stream.ready == 10


def test_what_a_consumer_holds_does_not_hold_messages_in_memory(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    inbox = Inbox(stream, 1000, offset="first")
    stream.add_consumer(inbox)
    fill(life, "s", range(100), size=1000)
    assert len(inbox.entries) == 100
    assert all(not entry.message.body for entry in inbox.entries)


# --- Ends of lives --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("way", ["power cut", "clean stop"])
@pytest.mark.parametrize("checkpoints", [0, 2])
def test_everything_is_there_in_the_next_life(lives: Lives, way: str, checkpoints: int) -> None:
    lives.life.declare_stream("s")
    for number in range(3):
        life = lives.life
        stream = life.stream("s")
        for part in range(2):
            start = number * 200 + part * 100
            fill(life, "s", range(start, start + 100), size=60)
            if part < checkpoints:
                life.checkpoint()
        life = lives.cut_power() if way == "power cut" else lives.stop()
        stream = life.stream("s")
        assert life.stream_contents(stream) == numbered(range((number + 1) * 200))
        assert life.replay(stream) == numbered(range((number + 1) * 200))
        life.check_counts()


def test_a_checkpoint_carries_a_little_forward_and_writes_what_is_more(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CARRY_FORWARD_BYTES", 2 * KIB)
    life = lives.life
    little, much = life.declare_stream("little"), life.declare_stream("much")
    fill(life, "little", range(5))
    fill(life, "much", range(200), size=100)
    life.checkpoint()
    assert log_of(little).written_end == 0
    assert log_of(much).written_end == 200
    # A second one finds the same, and the first journal files are gone.
    life.checkpoint()
    life = lives.cut_power()
    assert life.replay(life.stream("little")) == numbered(range(5))
    assert life.replay(life.stream("much")) == numbered(range(200))


def test_a_stream_that_was_deleted_leaves_nothing(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    fill(life, "s", range(300), size=100)
    life.broker.streams.write(log_of(stream), everything=True)
    life.settle_down()
    folder = f"/data/queues/{int(stream.log_id)}"
    assert life.disk.exists(folder)
    inbox = Inbox(stream, 10, offset="first")
    stream.add_consumer(inbox)
    life.vhost.delete_queue(stream, False, False)
    assert inbox.cancelled
    assert life.memory.used == 0
    life.store.delete_logs()
    life.store.delete_logs()
    life.store.run_on_writer(lambda: None, lambda error: life.turn.touch())
    life.pump_until(lambda: not life.disk.exists(folder))
    assert life.declare_stream("s").ready == 0


@pytest.mark.usefixtures("small")
def test_a_full_disk_loses_nothing_and_is_tried_again(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    fill(life, "s", range(10), size=100)
    lives.disk.fail("write", errno.ENOSPC, nth=1, times=3)
    fill(life, "s", range(10, 200), size=100)
    lives.disk.heal()
    life.broker.streams.keep_house()
    life.settle_down()
    assert log_of(stream).written_end > 0
    life.checkpoint()
    assert life.replay(stream) == numbered(range(200))
    life = lives.cut_power()
    assert life.replay(life.stream("s")) == numbered(range(200))


# --- Retention ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_what_is_too_much_goes_by_whole_segments(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s", max_length_bytes=8 * KIB, stream_max_segment_size_bytes=2 * KIB)
    fill(life, "s", range(1000), size=100)
    log = log_of(stream)
    # When a segment was full, much of what followed was not durable yet.
    life.broker.streams.retain(log)
    finish_writes(life)
    start = int(log.start_offset)
    assert 500 < start < 1000
    assert life.replay(stream) == numbered(range(start, 1000))
    assert stream.ready == 1000 - start
    # Each life knows where the stream begins.
    life = lives.cut_power()
    assert life.replay(life.stream("s")) == numbered(range(int(log_of(life.stream("s")).start_offset), 1000))
    life = lives.stop()
    assert log_of(life.stream("s")).start_offset >= start


@pytest.mark.usefixtures("small")
def test_what_is_too_old_goes_although_nothing_is_published(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s", max_age="1h", stream_max_segment_size_bytes=2 * KIB)
    fill(life, "s", range(300), size=100)
    life.broker.streams.keep_house()
    life.settle_down()
    assert log_of(stream).start_offset == 0
    life.clock.advance(3_700_000)
    life.turn.now_ms = life.clock.wall_ms()
    life.broker.streams.keep_house()
    life.pump_until(lambda: log_of(stream).start_offset > 200)
    # The segment that is written to stays.
    assert log_of(stream).start_offset < 300


@pytest.mark.usefixtures("small")
def test_what_is_not_durable_does_not_push_out_what_is(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s", max_length_bytes=4 * KIB, stream_max_segment_size_bytes=2 * KIB)
    fill(life, "s", range(40), size=100)
    log = log_of(stream)
    start = int(log.start_offset)
    for number in range(40, 400):
        life.publish("", "s", number, size=100)
        if number % 5 == 4:
            life.end_turn()
    # The log has them all before the journal has.
    while log.written_end < 400 or log.writes_under_way > 0:
        life.broker.streams.write(log, everything=True)
        life.posted.get(timeout=20)()
        if log.durable_end < 400:
            assert log.start_offset == start
        life.end_turn()
    finish_writes(life)
    life.broker.streams.retain(log)
    finish_writes(life)
    assert log.start_offset > 300


@pytest.mark.usefixtures("small")
def test_other_settings_act_at_once(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s", stream_max_segment_size_bytes=2 * KIB)
    fill(life, "s", range(300), size=100)
    assert log_of(stream).start_offset == 0
    stream.topic.configure({"retention.bytes": str(4 * KIB), "segment.bytes": str(2 * KIB)})
    finish_writes(life)
    start = int(log_of(stream).start_offset)
    assert 200 < start < 300
    assert life.replay(stream) == numbered(range(start, 300))


@pytest.mark.usefixtures("small")
def test_a_consumer_whose_messages_are_deleted_goes_on_with_the_first_that_is_left(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    fill(life, "s", range(300), size=100)
    inbox = Inbox(stream, 10, offset="first")
    stream.add_consumer(inbox)
    life.pump_until(lambda: len(inbox.received) == 10)
    log_of(stream).trim_before(250)
    life.settle_down()

    def has_all() -> bool:
        for entry in inbox.take():
            stream.settle(entry)
        life.end_turn()
        return inbox.received[-1] == (299, 299)

    life.pump_until(has_all)
    offsets = [offset for offset, _ in inbox.received]
    assert offsets == sorted(set(offsets))
    assert set(range(250, 300)) <= set(offsets)
    assert len(offsets) < 200


@pytest.mark.usefixtures("small")
def test_records_that_were_deleted_stay_so_in_the_next_life(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    fill(life, "s", range(300), size=100)
    log_of(stream).trim_before(123)
    life.settle_down()
    assert life.replay(stream) == numbered(range(123, 300))
    life = lives.cut_power()
    assert life.replay(life.stream("s")) == numbered(range(123, 300))
    life.checkpoint()
    life = lives.cut_power()
    stream = life.stream("s")
    log_of(stream).trim_before(300)
    life.settle_down()
    life = lives.cut_power()
    assert life.stream("s").ready == 0
    fill(life, "s", range(300, 320))
    assert life.replay(life.stream("s")) == numbered(range(300, 320))


# --- Damage ---------------------------------------------------------------------------------------------------------


def segments(life: Life, stream: StreamQueue) -> list[str]:
    folder = f"/data/queues/{int(stream.log_id)}"
    return [f"{folder}/{name}" for name in sorted(life.disk.list(folder)) if name.endswith(".log")]


def damage(life: Life, path: str, position: int, data: bytes) -> None:
    file = life.disk.open(path, False)
    file.pwrite(position, data)
    file.close()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("position", "data"),
    [(700, b"\xff" * 8), (8, b"\x7f\xff\xff\xff"), (0, b"\x01"), (16, b"\x09"), (0, b"\x00" * 2000)],
)
@pytest.mark.parametrize("segment", [0, 2])
def test_readers_pass_over_what_is_damaged_and_get_all_the_rest(
    lives: Lives, position: int, data: bytes, segment: int, caplog: pytest.LogCaptureFixture
) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    fill(life, "s", range(400), size=100, per_turn=2)
    life.broker.streams.write(log_of(stream), everything=True)
    life.settle_down()
    life.broker.streams.relieve()
    paths = segments(life, stream)
    assert len(paths) > 4
    damage(life, paths[segment], position, data)
    received = life.replay(stream)
    assert received == sorted(set(received))
    assert all(offset == number for offset, number in received), "never garbage"
    lost = set(range(400)) - {offset for offset, _ in received}
    following = int(paths[segment + 1].rpartition("/")[2].removesuffix(".log"))
    base = int(paths[segment].rpartition("/")[2].removesuffix(".log"))
    assert lost
    assert lost <= set(range(base, following)), "only of that segment"
    assert len(lost) < 40
    assert "is damaged" in caplog.text
    assert "are lost" in caplog.text


@pytest.mark.usefixtures("small")
def test_a_segment_that_is_gone_is_passed_over(lives: Lives, caplog: pytest.LogCaptureFixture) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    fill(life, "s", range(400), size=100)
    life.broker.streams.write(log_of(stream), everything=True)
    life.checkpoint()
    life.broker.streams.relieve()
    paths = segments(life, stream)
    following = int(paths[2].rpartition("/")[2].removesuffix(".log"))
    base = int(paths[1].rpartition("/")[2].removesuffix(".log"))
    life = lives.cut_power()
    life.disk.remove(paths[1])
    caplog.clear()
    received = life.replay(life.stream("s"))
    assert received == numbered(range(base)) + numbered(range(following, 400))
    assert f"offsets {base} to {following - 1} of stream 's-0' are lost" in caplog.text


@pytest.mark.usefixtures("small")
def test_a_log_that_lost_its_end_goes_on_after_it(lives: Lives, caplog: pytest.LogCaptureFixture) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    fill(life, "s", range(400), size=100)
    life.broker.streams.write(log_of(stream), everything=True)
    life.checkpoint()
    path = segments(life, stream)[-1]
    life = lives.cut_power()
    damage(life, path, 0, b"\xff" * 4)
    base = int(path.rpartition("/")[2].removesuffix(".log"))
    stream = life.stream("s")
    fill(life, "s", range(400, 500), size=100)
    assert life.replay(stream) == numbered(range(base)) + numbered(range(400, 500))
    assert "are lost" in caplog.text
    life.checkpoint()
    life = lives.cut_power()
    assert life.replay(life.stream("s")) == numbered(range(base)) + numbered(range(400, 500))


def test_what_neither_log_nor_journal_have_is_passed_over(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    fill(life, "s", range(20))
    log = log_of(stream)
    life.broker.streams.write(log, everything=True)
    finish_writes(life)
    # As after the loss of the journal files between a checkpoint and what follows.
    log._restored_end = 50
    log.restored()
    assert life.replay(stream) == numbered(range(20))
    fill(life, "s", range(50, 60))
    assert life.replay(stream) == numbered(range(20)) + numbered(range(50, 60))


@pytest.mark.usefixtures("small")
def test_without_a_checkpoint_the_log_says_what_there_is(lives: Lives) -> None:
    life = lives.life
    stream = life.declare_stream("s")
    fill(life, "s", range(400), size=100)
    life.broker.streams.write(log_of(stream), everything=True)
    life.checkpoint()
    fill(life, "s", range(400, 450), size=100)
    for name in life.disk.list("/data/checkpoints"):
        path = f"/data/checkpoints/{name}"
        damage(life, path, 20, b"\xff")
    life = lives.cut_power()
    assert life.replay(life.stream("s")) == numbered(range(450))


def test_a_batch_that_a_frame_puts_elsewhere_is_not_believed(lives: Lives) -> None:
    log = log_of(lives.life.declare_stream("s"))
    builder = BatchBuilder()
    builder.append(0, 0, b"", b"", b"")
    with pytest.raises(CorruptData):
        log.restore_batch(builder.finish(3, 0), 4)


def test_a_batch_longer_than_its_frame_is_not_believed(lives: Lives) -> None:
    log = log_of(lives.life.declare_stream("s"))
    builder = BatchBuilder()
    builder.append(0, 0, b"", b"", b"")
    with pytest.raises(CorruptData):
        log.append(builder.finish(0, 0)[:40])
    assert log.end_offset == 0


@pytest.mark.usefixtures("small")
def test_reads_that_wait_behind_those_of_a_deleted_stream_are_made(lives: Lives) -> None:
    life = lives.life
    kept, gone = life.declare_stream("kept"), life.declare_stream("gone")
    for name in ("kept", "gone"):
        fill(life, name, range(100), size=100)
    finish_writes(life)
    for log in map(log_of, (kept, gone)):
        log.drop_written(0)
    for offset in range(3 * STREAM_READS_MAX):
        log_of(gone).load(offset)
    log_of(kept).load(0)
    life.vhost.delete_queue(gone, False, False)
    life.pump_until(lambda: log_of(kept).batch_at(0) is not None, "the read")


# --- Large batches in the journal -------------------------------------------------------------------------------------


def batch_of_size(size: int) -> bytes:
    """A record batch of about so many bytes."""
    builder = BatchBuilder()
    builder.append_with_headers(0, 1_000, None, bytes(size), [])
    return builder.finish(0, 0)


def test_the_largest_batch_follows_much_else_of_its_turn(lives: Lives) -> None:
    life = lives.life
    small, large = life.declare_stream("small"), life.declare_stream("large")
    piece = batch_of_size(60 * KIB)
    pieces = 10 * MIB // len(piece)
    for _ in range(pieces):
        log_of(small).append(piece)
    log_of(large).append(batch_of_size(KAFKA_BATCH_BYTES_MAX - KIB))
    log_of(small).append(piece)
    life.settle_down()
    life = lives.cut_power()
    assert log_of(life.stream("small")).end_offset == pieces + 1
    assert log_of(life.stream("large")).end_offset == 1
