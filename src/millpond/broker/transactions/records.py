"""What is durable of transactions, and the records that the journal has of their changes.

A record is the payload of a TRANSACTION change (`broker/records.py`), and of an entry in a checkpoint. Numbers and
texts are as in `groups/records.py`.

    kind u8 | virtual host text | payload

    1 HEAD        transactional id text | producer id i64 | epoch i32 | previous producer id i64 | last epoch i32
                  | timeout ms i32 | state u8 | raises epochs u8 | started ms i64 | updated ms i64
                  In any state but Ongoing, the transaction's partitions, groups and offsets are gone.
    2 PARTITIONS  transactional id text | count i32 | (topic text, partition i32) each
                  They are part of the transaction now.
    3 GROUP       transactional id text | group text
                  So is the group.
    4 OFFSETS     transactional id text | group text | count i32 | offsets as in a group's record OFFSETS
                  What becomes of the group's offsets when the transaction is committed.
    5 FORGOTTEN   transactional id text
    6 CLEARED     The virtual host is new: what earlier records say of one with this name is no longer so.

That a transaction is committed takes no state of its own: the markers in its partitions, its groups' offsets and its
new state are one turn, which the journal has as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from millpond.base.errors import CorruptData
from millpond.broker.groups.records import CommittedOffset, OffsetsCommitted, Record, RecordReader, RecordWriter

# The names under which Apache Kafka tells a transaction's state.
EMPTY: Final = "Empty"
ONGOING: Final = "Ongoing"
COMPLETE_COMMIT: Final = "CompleteCommit"
COMPLETE_ABORT: Final = "CompleteAbort"
STATES: Final = (EMPTY, ONGOING, COMPLETE_COMMIT, COMPLETE_ABORT)

# (topic, partition)
Place = tuple[str, int]
Places = tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class TransactionHead:
    """A transactional id apart from what its open transaction has."""

    producer_id: int
    epoch: int
    timeout_ms: int
    state: str = EMPTY
    # Whose successor the producer id is, because that had no epochs left; -1 where there is none.
    previous_producer_id: int = -1
    # The epoch before this one, for who asks again because the answer was lost; -1 where nobody may.
    last_epoch: int = -1
    # Each end of a transaction raises the epoch (KIP-890): its producer is of the kind that takes it from the answer.
    raises_epochs: bool = False
    # When the transaction began; -1 where there was none yet.
    started_ms: int = -1
    updated_ms: int = 0


@dataclass(frozen=True, slots=True)
class HeadChanged(Record):
    kind: ClassVar[int] = 1
    transactional_id: str
    head: TransactionHead

    def write(self, out: RecordWriter) -> None:
        head = self.head
        out.text(self.transactional_id)
        out.i64(head.producer_id)
        out.i32(head.epoch)
        out.i64(head.previous_producer_id)
        out.i32(head.last_epoch)
        out.i32(head.timeout_ms)
        out.u8(STATES.index(head.state))
        out.u8(1 if head.raises_epochs else 0)
        out.i64(head.started_ms)
        out.i64(head.updated_ms)

    @classmethod
    def read(cls, data: RecordReader) -> HeadChanged:
        transactional_id, producer_id, epoch = data.text(), data.i64(), data.i32()
        previous_producer_id, last_epoch, timeout_ms, state = data.i64(), data.i32(), data.i32(), data.u8()
        if state >= len(STATES):
            raise CorruptData(f"a transaction has the unknown state {state}")
        raises_epochs, started_ms = data.u8() == 1, data.i64()
        head = TransactionHead(
            producer_id, epoch, timeout_ms, STATES[state], previous_producer_id, last_epoch, raises_epochs, started_ms,
            data.i64(),
        )  # fmt: skip
        return cls(transactional_id, head)


@dataclass(frozen=True, slots=True)
class PartitionsAdded(Record):
    kind: ClassVar[int] = 2
    transactional_id: str
    places: Places

    def write(self, out: RecordWriter) -> None:
        out.text(self.transactional_id)
        out.i32(len(self.places))
        for topic, partition in self.places:
            out.text(topic)
            out.i32(partition)

    @classmethod
    def read(cls, data: RecordReader) -> PartitionsAdded:
        transactional_id = data.text()
        return cls(transactional_id, tuple([(data.text(), data.i32()) for _ in range(data.count())]))


@dataclass(frozen=True, slots=True)
class GroupAdded(Record):
    kind: ClassVar[int] = 3
    transactional_id: str
    group: str

    def write(self, out: RecordWriter) -> None:
        out.text(self.transactional_id)
        out.text(self.group)

    @classmethod
    def read(cls, data: RecordReader) -> GroupAdded:
        return cls(data.text(), data.text())


@dataclass(frozen=True, slots=True)
class OffsetsAdded(Record):
    kind: ClassVar[int] = 4
    transactional_id: str
    group: str
    offsets: tuple[tuple[str, int, CommittedOffset], ...]

    def write(self, out: RecordWriter) -> None:
        out.text(self.transactional_id)
        OffsetsCommitted(self.group, self.offsets).write(out)

    @classmethod
    def read(cls, data: RecordReader) -> OffsetsAdded:
        transactional_id, committed = data.text(), OffsetsCommitted.read(data)
        return cls(transactional_id, committed.group, committed.offsets)


@dataclass(frozen=True, slots=True)
class Forgotten(Record):
    kind: ClassVar[int] = 5
    transactional_id: str

    def write(self, out: RecordWriter) -> None:
        out.text(self.transactional_id)

    @classmethod
    def read(cls, data: RecordReader) -> Forgotten:
        return cls(data.text())


@dataclass(frozen=True, slots=True)
class Cleared(Record):
    kind: ClassVar[int] = 6

    def write(self, out: RecordWriter) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, _data: RecordReader) -> Cleared:
        return cls()


_READERS: Final[dict[int, Callable[[RecordReader], Record]]] = {
    HeadChanged.kind: HeadChanged.read,
    PartitionsAdded.kind: PartitionsAdded.read,
    GroupAdded.kind: GroupAdded.read,
    OffsetsAdded.kind: OffsetsAdded.read,
    Forgotten.kind: Forgotten.read,
    Cleared.kind: Cleared.read,
}


def decode_record(payload: bytes) -> tuple[str, Record]:
    """The virtual host and the record. CorruptData where it is none."""
    data = RecordReader(payload)
    kind = data.u8()
    read = _READERS.get(kind)
    if read is None:
        raise CorruptData(f"a transaction's record of the unknown kind {kind}")
    vhost = data.text()
    record = read(data)
    data.check_end()
    return vhost, record
