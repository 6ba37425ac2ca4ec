"""What is durable of consumer groups: values that never change, and the records that the journal has of their changes.

A record is the payload of a GROUP change (`broker/records.py`), and of an entry in a checkpoint. All numbers are
big-endian; a text or a byte string is its length as i32, -1 where there is none, and its bytes.

    kind u8 | virtual host text | payload

    1 HEAD              group text | state u8 | generation i32 | since ms i64 | protocol type text | protocol text
                        | leader text
    2 MEMBER            group text | member id text | instance id text | client id text | client host text
                        | session timeout ms i32 | rebalance timeout ms i32 | protocol count i32
                        | (name text, metadata bytes) each | assignment bytes
    3 MEMBER_REMOVED    group text | member id text
    4 ASSIGNED          group text | since ms i64 | count i32 | (member id text, assignment bytes) each
                        The group is stable; who is not among them has nothing assigned.
    5 OFFSETS           group text | count i32 | offsets
                        offset: topic text | partition i32 | offset i64 | leader epoch i32 | committed ms i64
                        | expires ms i64, -1 for the group's own time | metadata text
    6 OFFSETS_DELETED   group text | count i32 | (topic text, partition i32) each
    7 GROUP_DELETED     group text
    8 TOPIC_DELETED     topic text
                        No group of the virtual host has an offset of it any more.
    9 CLEARED           The virtual host is new: what earlier records say of one with this name is no longer so.
    10 to 14            See `modern_records.py`: groups whose assignment the broker decides.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final

from millpond.base.errors import CorruptData

# The names under which Apache Kafka tells a group's state.
EMPTY: Final = "Empty"
PREPARING_REBALANCE: Final = "PreparingRebalance"
COMPLETING_REBALANCE: Final = "CompletingRebalance"
STABLE: Final = "Stable"
# Of a group that is not there. No group has this state.
DEAD: Final = "Dead"

STATES: Final = (EMPTY, PREPARING_REBALANCE, COMPLETING_REBALANCE, STABLE)

# What a protocol takes besides its name and metadata.
PROTOCOL_BYTES: Final = 64

_U8: Final = Struct(">B")
_I32: Final = Struct(">i")
_I64: Final = Struct(">q")


class RecordWriter:
    """Collects a record's fields."""

    def __init__(self) -> None:
        self._data: Final = bytearray()

    def u8(self, value: int) -> None:
        self._data.append(value)

    def i32(self, value: int) -> None:
        self._data.extend(_I32.pack(value))

    def i64(self, value: int) -> None:
        self._data.extend(_I64.pack(value))

    def bytes(self, value: builtins.bytes | None) -> None:
        self.i32(-1 if value is None else len(value))
        self._data.extend(value or b"")

    def text(self, value: str | None) -> None:
        self.bytes(None if value is None else value.encode("utf-8", "surrogateescape"))

    def value(self) -> builtins.bytes:
        return bytes(self._data)


class RecordReader:
    """Reads a record's fields, never beyond its end."""

    def __init__(self, data: bytes) -> None:
        self._data: Final = data
        self._position = 0

    def u8(self) -> int:
        return self._number(_U8)

    def i32(self) -> int:
        return self._number(_I32)

    def i64(self) -> int:
        return self._number(_I64)

    def _number(self, layout: Struct) -> int:
        end = self._position + layout.size
        if end > len(self._data):
            raise CorruptData("a group's record is cut short")
        value: int = layout.unpack_from(self._data, self._position)[0]
        self._position = end
        return value

    def optional_bytes(self) -> builtins.bytes | None:
        length = self.i32()
        if length == -1:
            return None
        end = self._position + length
        if length < 0 or end > len(self._data):
            raise CorruptData("a text in a group's record is longer than the record")
        value = self._data[self._position : end]
        self._position = end
        return value

    def bytes(self) -> builtins.bytes:
        value = self.optional_bytes()
        if value is None:
            raise CorruptData("a field is missing in a group's record")
        return value

    def optional_text(self) -> str | None:
        value = self.optional_bytes()
        return None if value is None else value.decode("utf-8", "surrogateescape")

    def text(self) -> str:
        return self.bytes().decode("utf-8", "surrogateescape")

    def count(self) -> int:
        """A number of things to follow: never more than there are bytes."""
        count = self.i32()
        if not 0 <= count <= len(self._data) - self._position:
            raise CorruptData("a group's record says it has more than it can have")
        return count

    def check_end(self) -> None:
        if self._position != len(self._data):
            raise CorruptData("a group's record is longer than what it says")


@dataclass(frozen=True, slots=True)
class GroupHead:
    """A group apart from its members and offsets."""

    state: str = EMPTY
    generation: int = 0
    # What the members are ("consumer", "connect"); None for a group that only ever had offsets.
    protocol_type: str | None = None
    # The assignment strategy that the members have in common in this generation.
    protocol: str | None = None
    # The member that assigns partitions to all.
    leader: str | None = None
    # When it came into this state.
    since_ms: int = 0


@dataclass(frozen=True, slots=True)
class MemberState:
    """What is durable of a member."""

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    # (name, metadata), the preferred one first.
    protocols: tuple[tuple[str, bytes], ...]
    assignment: bytes = b""

    @property
    def size(self) -> int:
        """What it takes, in bytes."""
        protocols = sum(len(name) + len(metadata) + PROTOCOL_BYTES for name, metadata in self.protocols)
        return protocols + len(self.assignment) + len(self.client_id) + len(self.instance_id or "")


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    """How far a group has come in a partition."""

    offset: int
    # The leader's epoch of the last record that was read; -1 where the client did not tell.
    leader_epoch: int = -1
    metadata: str = ""
    committed_ms: int = 0
    # When it expires, where the client said so; -1 otherwise.
    expires_ms: int = -1


class Record(ABC):
    """A change, in full: applying it again changes nothing more."""

    __slots__ = ()
    kind: ClassVar[int]

    @abstractmethod
    def write(self, out: RecordWriter) -> None:
        """The payload."""


@dataclass(frozen=True, slots=True)
class HeadChanged(Record):
    kind: ClassVar[int] = 1
    group: str
    head: GroupHead

    def write(self, out: RecordWriter) -> None:
        head = self.head
        out.text(self.group)
        out.u8(STATES.index(head.state))
        out.i32(head.generation)
        out.i64(head.since_ms)
        out.text(head.protocol_type)
        out.text(head.protocol)
        out.text(head.leader)

    @classmethod
    def read(cls, data: RecordReader) -> HeadChanged:
        group, state = data.text(), data.u8()
        if state >= len(STATES):
            raise CorruptData(f"a group has the unknown state {state}")
        generation, since_ms = data.i32(), data.i64()
        protocol_type, protocol, leader = data.optional_text(), data.optional_text(), data.optional_text()
        return cls(group, GroupHead(STATES[state], generation, protocol_type, protocol, leader, since_ms))


@dataclass(frozen=True, slots=True)
class MemberChanged(Record):
    kind: ClassVar[int] = 2
    group: str
    member: MemberState

    def write(self, out: RecordWriter) -> None:
        member = self.member
        out.text(self.group)
        out.text(member.member_id)
        out.text(member.instance_id)
        out.text(member.client_id)
        out.text(member.client_host)
        out.i32(member.session_timeout_ms)
        out.i32(member.rebalance_timeout_ms)
        out.i32(len(member.protocols))
        for name, metadata in member.protocols:
            out.text(name)
            out.bytes(metadata)
        out.bytes(member.assignment)

    @classmethod
    def read(cls, data: RecordReader) -> MemberChanged:
        group, member_id, instance_id = data.text(), data.text(), data.optional_text()
        client_id, client_host = data.text(), data.text()
        session_timeout_ms, rebalance_timeout_ms = data.i32(), data.i32()
        protocols = tuple([(data.text(), data.bytes()) for _ in range(data.count())])
        state = MemberState(
            member_id, instance_id, client_id, client_host, session_timeout_ms, rebalance_timeout_ms, protocols,
            data.bytes(),
        )  # fmt: skip
        return cls(group, state)


@dataclass(frozen=True, slots=True)
class MemberRemoved(Record):
    kind: ClassVar[int] = 3
    group: str
    member_id: str

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)
        out.text(self.member_id)

    @classmethod
    def read(cls, data: RecordReader) -> MemberRemoved:
        return cls(data.text(), data.text())


@dataclass(frozen=True, slots=True)
class Assigned(Record):
    kind: ClassVar[int] = 4
    group: str
    since_ms: int
    assignments: tuple[tuple[str, bytes], ...]

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)
        out.i64(self.since_ms)
        out.i32(len(self.assignments))
        for member_id, assignment in self.assignments:
            out.text(member_id)
            out.bytes(assignment)

    @classmethod
    def read(cls, data: RecordReader) -> Assigned:
        group, since_ms = data.text(), data.i64()
        return cls(group, since_ms, tuple([(data.text(), data.bytes()) for _ in range(data.count())]))


@dataclass(frozen=True, slots=True)
class OffsetsCommitted(Record):
    kind: ClassVar[int] = 5
    group: str
    offsets: tuple[tuple[str, int, CommittedOffset], ...]

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)
        out.i32(len(self.offsets))
        for topic, partition, committed in self.offsets:
            out.text(topic)
            out.i32(partition)
            out.i64(committed.offset)
            out.i32(committed.leader_epoch)
            out.i64(committed.committed_ms)
            out.i64(committed.expires_ms)
            out.text(committed.metadata)

    @classmethod
    def read(cls, data: RecordReader) -> OffsetsCommitted:
        group = data.text()
        offsets: list[tuple[str, int, CommittedOffset]] = []
        for _ in range(data.count()):
            topic, partition, offset, leader_epoch = data.text(), data.i32(), data.i64(), data.i32()
            committed_ms, expires_ms, metadata = data.i64(), data.i64(), data.text()
            committed = CommittedOffset(offset, leader_epoch, metadata, committed_ms, expires_ms)
            offsets.append((topic, partition, committed))
        return cls(group, tuple(offsets))


@dataclass(frozen=True, slots=True)
class OffsetsDeleted(Record):
    kind: ClassVar[int] = 6
    group: str
    places: tuple[tuple[str, int], ...]

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)
        out.i32(len(self.places))
        for topic, partition in self.places:
            out.text(topic)
            out.i32(partition)

    @classmethod
    def read(cls, data: RecordReader) -> OffsetsDeleted:
        group = data.text()
        return cls(group, tuple([(data.text(), data.i32()) for _ in range(data.count())]))


@dataclass(frozen=True, slots=True)
class GroupDeleted(Record):
    kind: ClassVar[int] = 7
    group: str

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)

    @classmethod
    def read(cls, data: RecordReader) -> GroupDeleted:
        return cls(data.text())


@dataclass(frozen=True, slots=True)
class TopicDeleted(Record):
    kind: ClassVar[int] = 8
    topic: str

    def write(self, out: RecordWriter) -> None:
        out.text(self.topic)

    @classmethod
    def read(cls, data: RecordReader) -> TopicDeleted:
        return cls(data.text())


@dataclass(frozen=True, slots=True)
class Cleared(Record):
    kind: ClassVar[int] = 9

    def write(self, out: RecordWriter) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, _data: RecordReader) -> Cleared:
        return cls()


# Those of `modern_records.py` are put in there.
READERS: Final[dict[int, Callable[[RecordReader], Record]]] = {
    HeadChanged.kind: HeadChanged.read,
    MemberChanged.kind: MemberChanged.read,
    MemberRemoved.kind: MemberRemoved.read,
    Assigned.kind: Assigned.read,
    OffsetsCommitted.kind: OffsetsCommitted.read,
    OffsetsDeleted.kind: OffsetsDeleted.read,
    GroupDeleted.kind: GroupDeleted.read,
    TopicDeleted.kind: TopicDeleted.read,
    Cleared.kind: Cleared.read,
}


def encode_record(vhost: str, record: Record) -> bytes:
    """The record's bytes, for the journal or a checkpoint."""
    out = RecordWriter()
    out.u8(record.kind)
    out.text(vhost)
    record.write(out)
    return out.value()


def decode_record(payload: bytes) -> tuple[str, Record]:
    """The virtual host and the record. CorruptData where it is none."""
    data = RecordReader(payload)
    kind = data.u8()
    read = READERS.get(kind)
    if read is None:
        raise CorruptData(f"a group's record of the unknown kind {kind}")
    vhost = data.text()
    record = read(data)
    data.check_end()
    return vhost, record
