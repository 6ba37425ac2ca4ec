"""Idempotent producers of a partition: who has appended what last, so that a batch sent again is not appended again.

A producer numbers its records within a partition, from 0, and from 0 again after 2^31 - 1. Its next batch must begin
with the number that follows the last one; of the latest batches it is remembered where they are, and a batch that is
one of them is answered as it was then. A new epoch of the producer begins at 0 and shuts the older ones out.

A producer that is not known (it is new here, or was idle for so long that it is forgotten) may begin with any number.

A producer's transactional batches belong to its open transaction, until a marker ends that. The marker's epoch counts
as the producer's: so one that was fenced, or whose epoch its coordinator has raised, is shut out here too.

Source: Apache Kafka, KIP-98, KIP-360 and KIP-890.
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import BytesWriter, write_i32_be, write_i64_be
from mypy_extensions import i32, i64, mypyc_attr

from millpond.base.limits import PRODUCER_BATCHES_REMEMBERED, PRODUCER_IDLE_MS, PRODUCERS_PER_PARTITION_MAX
from millpond.storage.record_batch import BatchHeader

# What is to be done with a batch.
APPEND: Final = 0
DUPLICATE: Final = 1
OUT_OF_ORDER: Final = 2
FENCED: Final = 3
# It is not transactional, and its producer has a transaction open.
OUTSIDE_TRANSACTION: Final = 4

_SEQUENCES: Final = 1 << 31


@final
@mypyc_attr(acyclic=True)
class ProducedBatch:
    """A batch of a producer: its numbers from `first` to `last`, and where it is."""

    def __init__(self, first: i64, last: i64, base_offset: i64, timestamp_ms: i64) -> None:
        self.first: Final[i64] = first
        self.last: Final[i64] = last
        self.base_offset: Final[i64] = base_offset
        self.timestamp_ms: Final[i64] = timestamp_ms


@final
class Producer:
    """What is known of one producer. `seen_ms` is when it last appended something."""

    def __init__(self, producer_id: i64, epoch: i64) -> None:
        self.producer_id: Final[i64] = producer_id
        self.epoch: i64 = epoch
        self.seen_ms: i64 = 0
        # The latest of this epoch, the oldest first. None where a marker has brought the epoch.
        self.batches: list[ProducedBatch] = []
        # Where its open transaction begins; -1 where it has none.
        self.transaction_start: i64 = -1
        # That of the latest marker; -1 where there was none.
        self.coordinator_epoch: i64 = -1


@final
class Producers:
    """The producers of one partition."""

    def __init__(self) -> None:
        # The one that appended last comes last.
        self.known: Final[dict[int, Producer]] = {}

    def judge(self, batch: BatchHeader) -> i64:
        """What is to be done with a producer's batch: APPEND, DUPLICATE, or a reason to refuse it."""
        producer = self.known.get(int(batch.producer_id))
        if producer is None:
            return APPEND
        if batch.producer_epoch < producer.epoch:
            return FENCED
        first = batch.base_sequence
        if batch.producer_epoch > producer.epoch:
            return APPEND if first == 0 else OUT_OF_ORDER
        if self.duplicate(batch) is not None:
            return DUPLICATE
        if producer.transaction_start >= 0 and not batch.is_transactional:
            return OUTSIDE_TRANSACTION
        if not producer.batches:
            return APPEND if first == 0 else OUT_OF_ORDER
        last = producer.batches[len(producer.batches) - 1].last
        return APPEND if first == (last + 1) & (_SEQUENCES - 1) else OUT_OF_ORDER

    def duplicate(self, batch: BatchHeader) -> ProducedBatch | None:
        """The remembered batch that this is."""
        producer = self.known.get(int(batch.producer_id))
        if producer is None or producer.epoch != batch.producer_epoch:
            return None
        last = _last_sequence(batch)
        for produced in producer.batches:
            if produced.first == batch.base_sequence and produced.last == last:
                return produced
        return None

    def is_in_transaction(self, producer_id: i64, epoch: i64) -> bool:
        """Whether the producer has a transaction open, in this epoch."""
        producer = self.known.get(int(producer_id))
        return producer is not None and producer.transaction_start >= 0 and producer.epoch == epoch

    def _latest(self, producer_id: i64, epoch: i64) -> Producer:
        """The producer, which from now on is the one that appended last."""
        producer = self.known.pop(int(producer_id), None)
        if producer is None:
            producer = Producer(producer_id, epoch)
            if len(self.known) >= PRODUCERS_PER_PARTITION_MAX:
                self._forget_one()
        self.known[int(producer_id)] = producer
        return producer

    def _forget_one(self) -> None:
        """The one that has been idle for longest, and has no transaction open."""
        for producer_id, producer in self.known.items():
            if producer.transaction_start < 0:
                del self.known[producer_id]
                return

    def appended(self, batch: BatchHeader, base_offset: i64, now_ms: i64) -> bool:
        """Remember a batch that has been appended, or that recovery has found. One that is remembered already changes
        nothing. Whether it begins a transaction."""
        producer = self._latest(batch.producer_id, batch.producer_epoch)
        batches = producer.batches
        if batches and base_offset <= batches[len(batches) - 1].base_offset:
            return False
        if batch.producer_epoch != producer.epoch:
            producer.epoch = batch.producer_epoch
            batches.clear()
        elif len(batches) == PRODUCER_BATCHES_REMEMBERED:
            del batches[0]
        batches.append(ProducedBatch(batch.base_sequence, _last_sequence(batch), base_offset, batch.max_timestamp_ms))
        producer.seen_ms = now_ms
        if batch.is_transactional and producer.transaction_start < 0:
            producer.transaction_start = base_offset
            return True
        return False

    def ended(self, marker: BatchHeader, coordinator_epoch: i64, now_ms: i64) -> i64:
        """A marker has been appended, or found by recovery. Where the transaction began that it ends; -1 where there
        was none."""
        producer = self._latest(marker.producer_id, marker.producer_epoch)
        first_offset = producer.transaction_start
        producer.transaction_start = -1
        producer.coordinator_epoch = coordinator_epoch
        if marker.producer_epoch > producer.epoch:
            producer.epoch = marker.producer_epoch
            producer.batches.clear()
        producer.seen_ms = now_ms
        return first_offset

    def forget_idle(self, now_ms: i64) -> None:
        """Forget those that have appended nothing for long, and have no transaction open."""
        idle: list[Producer] = []
        for producer in self.known.values():
            if producer.seen_ms >= now_ms - PRODUCER_IDLE_MS:
                break
            if producer.transaction_start < 0:
                idle.append(producer)
        for producer in idle:
            del self.known[int(producer.producer_id)]

    def restore(self, producer: Producer) -> None:
        """A producer that a checkpoint knew."""
        self.known[int(producer.producer_id)] = producer

    def encoded(self) -> bytes:
        """All of them, as a checkpoint keeps them; `broker/snapshot.py` has the layout."""
        writer = BytesWriter()
        write_i32_be(writer, i32(len(self.known)))
        for producer in self.known.values():
            write_i64_be(writer, producer.producer_id)
            write_i32_be(writer, i32(producer.epoch))
            write_i64_be(writer, producer.seen_ms)
            write_i64_be(writer, producer.transaction_start)
            write_i32_be(writer, i32(producer.coordinator_epoch))
            write_i32_be(writer, i32(len(producer.batches)))
            for batch in producer.batches:
                write_i32_be(writer, i32(batch.first))
                write_i32_be(writer, i32(batch.last))
                write_i64_be(writer, batch.base_offset)
                write_i64_be(writer, batch.timestamp_ms)
        return writer.getvalue()


def _last_sequence(batch: BatchHeader) -> i64:
    return (batch.base_sequence + batch.last_offset_delta) & (_SEQUENCES - 1)
