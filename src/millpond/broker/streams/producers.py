"""Idempotent producers of a partition: who has appended what last, so that a batch sent again is not appended again.

A producer numbers its records within a partition, from 0, and from 0 again after 2^31 - 1. Its next batch must begin
with the number that follows the last one; of the latest batches it is remembered where they are, and a batch that is
one of them is answered as it was then. A new epoch of the producer begins at 0 and shuts the older ones out.

A producer that is not known (it is new here, or was idle for so long that it is forgotten) may begin with any number.

Source: Apache Kafka, KIP-98 and KIP-360.
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
        # The latest, the oldest first; never empty but for a moment.
        self.batches: list[ProducedBatch] = []


@final
class Producers:
    """The producers of one partition."""

    def __init__(self) -> None:
        # The one that appended last comes last.
        self.known: Final[dict[int, Producer]] = {}

    def judge(self, batch: BatchHeader) -> i64:
        """APPEND, DUPLICATE, OUT_OF_ORDER or FENCED."""
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

    def appended(self, batch: BatchHeader, base_offset: i64, now_ms: i64) -> None:
        """Remember a batch that has been appended, or that recovery has found. One that is remembered already changes
        nothing."""
        producer_id = int(batch.producer_id)
        producer = self.known.pop(producer_id, None)
        if producer is None:
            producer = Producer(batch.producer_id, batch.producer_epoch)
            if len(self.known) >= PRODUCERS_PER_PARTITION_MAX:
                # The one that has been idle for longest.
                del self.known[next(iter(self.known))]
        self.known[producer_id] = producer
        batches = producer.batches
        if batches and base_offset <= batches[len(batches) - 1].base_offset:
            return
        if batch.producer_epoch != producer.epoch:
            producer.epoch = batch.producer_epoch
            batches.clear()
        elif len(batches) == PRODUCER_BATCHES_REMEMBERED:
            del batches[0]
        batches.append(ProducedBatch(batch.base_sequence, _last_sequence(batch), base_offset, batch.max_timestamp_ms))
        producer.seen_ms = now_ms

    def forget_idle(self, now_ms: i64) -> None:
        """Forget those that have appended nothing for long."""
        while self.known:
            producer = next(iter(self.known.values()))
            if producer.seen_ms >= now_ms - PRODUCER_IDLE_MS:
                break
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
            write_i32_be(writer, i32(len(producer.batches)))
            for batch in producer.batches:
                write_i32_be(writer, i32(batch.first))
                write_i32_be(writer, i32(batch.last))
                write_i64_be(writer, batch.base_offset)
                write_i64_be(writer, batch.timestamp_ms)
        return writer.getvalue()


def _last_sequence(batch: BatchHeader) -> i64:
    return (batch.base_sequence + batch.last_offset_delta) & (_SEQUENCES - 1)
