"""Producers with transactions, on a broker that lives on a disk of the test's own."""

from __future__ import annotations

from collections.abc import Callable

from millpond.broker.groups.offsets import CommitRequest, OffsetCommit
from millpond.broker.streams.partition import Partition
from millpond.broker.transactions.coordinator import ProducerIdentity, TransactionCoordinator
from millpond.storage.record_batch import BatchHeader, RecordReader
from tests.broker.life import Life
from tests.protocols.kafka.harness import batch_of

TOPIC = "log"
TRANSACTIONAL = 0x10


class Writer:
    """A producer. `life` gives the broker that lives at the time."""

    def __init__(self, life: Callable[[], Life], transactional_id: str = "x", timeout_ms: int = 60_000) -> None:
        self._life = life
        self.id = transactional_id
        self.timeout_ms = timeout_ms
        self._sequences: dict[int, int] = {}
        self.identity = ProducerIdentity(-1, -1)
        self.begin_anew()

    @property
    def coordinator(self) -> TransactionCoordinator:
        return self._life().vhost.transactions

    def begin_anew(self) -> None:
        """As a new process, which aborts what is open."""
        self.follow(self.coordinator.begin_producer(self.id, self.timeout_ms))

    def follow(self, identity: ProducerIdentity) -> None:
        if identity != self.identity:
            self._sequences = {}
        self.identity = identity

    def write(self, value: bytes, partition: int = 0, key: bytes | None = None) -> int:
        """Append a record in the open transaction, which begins if none is; its offset."""
        life = self._life()
        self.coordinator.add_partitions(self.id, self.identity, [(TOPIC, partition)])
        sequence = self._sequences.get(partition, 0)
        self._sequences[partition] = sequence + 1
        producer = (self.identity.producer_id, self.identity.epoch, sequence)
        now_ms = life.clock.wall_ms()
        batch = batch_of((key, value), timestamp_ms=now_ms, producer=producer, attributes=TRANSACTIONAL)
        return int(partition_of(life, partition).append(batch))

    def commit_offset(self, group: str, partition: int, offset: int) -> None:
        request = CommitRequest(group, (OffsetCommit(TOPIC, partition, offset),))
        assert not self.coordinator.commit_offsets(self.id, self.identity, request, True)

    def end(self, is_commit: bool, raises_epoch: bool = True) -> None:
        self.follow(self.coordinator.end(self.id, self.identity, is_commit, raises_epoch))


def partition_of(life: Life, number: int = 0) -> Partition:
    return life.vhost.topics.by_name[TOPIC].partitions[number]


def committed_values(life: Life, number: int = 0) -> list[bytes]:
    """What a reader of committed records is shown."""
    partition = partition_of(life, number)
    found: list[bytes] = []
    offset = int(partition.start_offset)
    while offset < partition.stable_end:
        batches = partition.read(offset, partition.stable_end, 1 << 20)
        if batches is None:
            life.pump_until(lambda: not partition.loading, "a read")
            continue
        for batch in batches:
            header = BatchHeader(batch.data)
            if not header.is_control and not partition.is_aborted(header):
                reader = RecordReader(batch.data)
                while reader.next():
                    found.append(reader.value or b"")
        if not batches:
            break
        offset = int(batches[-1].end_offset)
    return found


def offset_of(life: Life, group: str, partition: int) -> int:
    committed = life.vhost.groups.offsets.of(group).get(TOPIC, {}).get(partition)
    return -1 if committed is None else committed.offset
