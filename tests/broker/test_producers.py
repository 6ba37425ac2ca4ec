"""Idempotent producers of a partition: what is appended, what was there already, and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from crc32c import crc32c

from millpond.base.clock import ManualClock
from millpond.base.faulty_filesystem import FaultyFilesystem
from millpond.base.limits import PRODUCER_BATCHES_REMEMBERED, PRODUCER_IDLE_MS, PRODUCERS_PER_PARTITION_MAX
from millpond.broker.streams.partition import Partition
from millpond.broker.streams.producers import APPEND, DUPLICATE, FENCED, OUT_OF_ORDER, Producers
from millpond.storage.record_batch import BatchBuilder, BatchHeader
from tests.broker.life import Life, copy_catalog

PRODUCER = 7
SEQUENCES = 1 << 31


def numbered(first: int, count: int = 1, *, epoch: int = 0, producer: int = PRODUCER) -> bytes:
    """A batch as an idempotent producer sends it."""
    builder = BatchBuilder()
    for delta in range(count):
        builder.append_with_headers(delta, 1_000, None, b"value", [])
    batch = bytearray(builder.finish(0, count - 1))
    batch[43:57] = struct.pack(">qhi", producer, epoch, first)
    batch[17:21] = struct.pack(">I", crc32c(bytes(batch[21:])))
    return bytes(batch)


class Log:
    """Appends as a broker does, and counts offsets."""

    def __init__(self) -> None:
        self.producers = Producers()
        self.end = 0
        self.now_ms = 1

    def send(self, batch: bytes) -> int:
        header = BatchHeader(batch)
        outcome = self.producers.judge(header)
        if outcome == APPEND:
            self.producers.appended(header, self.end, self.now_ms)
            self.end += header.last_offset_delta + 1
        return outcome


@pytest.fixture
def log() -> Log:
    return Log()


def test_batches_in_order_are_appended(log: Log) -> None:
    assert [log.send(numbered(0, 3)), log.send(numbered(3, 2)), log.send(numbered(5))] == [APPEND] * 3


def test_a_batch_that_was_sent_again_is_known_with_its_place(log: Log) -> None:
    log.send(numbered(0, 3))
    log.send(numbered(3, 2))
    again = numbered(3, 2)
    assert log.send(again) == DUPLICATE
    duplicate = log.producers.duplicate(BatchHeader(again))
    assert duplicate is not None
    assert duplicate.base_offset == 3


def test_the_latest_five_batches_are_known(log: Log) -> None:
    for number in range(PRODUCER_BATCHES_REMEMBERED + 1):
        log.send(numbered(number))
    assert log.send(numbered(1)) == DUPLICATE
    assert log.send(numbered(0)) == OUT_OF_ORDER


def test_a_gap_is_refused(log: Log) -> None:
    log.send(numbered(0))
    assert log.send(numbered(2)) == OUT_OF_ORDER


def test_part_of_a_batch_that_was_appended_is_no_duplicate_of_it(log: Log) -> None:
    log.send(numbered(0, 3))
    assert log.send(numbered(0, 2)) == OUT_OF_ORDER


def test_a_producer_that_is_not_known_begins_anywhere(log: Log) -> None:
    assert log.send(numbered(41)) == APPEND
    assert log.send(numbered(42)) == APPEND


def test_a_new_epoch_begins_at_zero_and_shuts_out_the_old_one(log: Log) -> None:
    log.send(numbered(0))
    assert log.send(numbered(1, epoch=1)) == OUT_OF_ORDER
    assert log.send(numbered(0, epoch=1)) == APPEND
    assert log.send(numbered(1, epoch=0)) == FENCED


def test_numbers_go_on_at_zero_after_the_last_one(log: Log) -> None:
    log.send(numbered(SEQUENCES - 2, 4))
    assert log.send(numbered(2)) == APPEND


def test_an_idle_producer_is_forgotten(log: Log) -> None:
    log.send(numbered(0))
    log.producers.forget_idle(log.now_ms + PRODUCER_IDLE_MS)
    assert PRODUCER in log.producers.known
    log.producers.forget_idle(log.now_ms + PRODUCER_IDLE_MS + 1)
    assert PRODUCER not in log.producers.known


def test_of_too_many_producers_the_one_idle_for_longest_is_forgotten(log: Log) -> None:
    for producer in range(PRODUCERS_PER_PARTITION_MAX):
        log.send(numbered(0, producer=producer))
    log.send(numbered(1, producer=0))
    log.send(numbered(0, producer=PRODUCERS_PER_PARTITION_MAX))
    assert len(log.producers.known) == PRODUCERS_PER_PARTITION_MAX
    assert 0 in log.producers.known
    assert 1 not in log.producers.known


class Disk:
    """A partition of a broker that is killed now and then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = FaultyFilesystem(1)
        self.clock = ManualClock()
        self.lives = 0
        self.life = Life(self.disk, folder / "0", clock=self.clock)
        self.life.vhost.declare_queue("s", True, False, False, {"x-queue-type": "stream"}, None)

    @property
    def partition(self) -> Partition:
        partition = self.life.stream("s").partition
        assert partition is not None
        return partition

    def restart(self, *, checkpointed: bool) -> None:
        if checkpointed:
            self.life.stop()
        else:
            self.life.settle_down()
            self.life.abandon()
        self.lives += 1
        copy_catalog(self.folder / str(self.lives - 1), self.folder / str(self.lives))
        self.life = Life(self.disk, self.folder / str(self.lives), clock=self.clock)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    yield disk
    disk.life.abandon()


@pytest.mark.parametrize("checkpointed", [True, False])
def test_producers_are_known_after_a_restart(disk: Disk, checkpointed: bool) -> None:
    disk.partition.append(numbered(0, 3))
    disk.partition.append(numbered(3, 2))
    disk.restart(checkpointed=checkpointed)
    producers = disk.partition.producers
    assert producers.judge(BatchHeader(numbered(0, 3))) == DUPLICATE
    duplicate = producers.duplicate(BatchHeader(numbered(3, 2)))
    assert duplicate is not None
    assert (duplicate.base_offset, disk.partition.end_offset) == (3, 5)
    assert producers.judge(BatchHeader(numbered(5))) == APPEND
    assert producers.judge(BatchHeader(numbered(6))) == OUT_OF_ORDER


def test_a_producer_that_has_been_idle_for_long_is_forgotten_by_the_broker(disk: Disk) -> None:
    disk.partition.append(numbered(0))
    disk.clock.advance(PRODUCER_IDLE_MS + 60_000)
    disk.life.broker.streams.keep_house()
    assert not disk.partition.producers.known
