"""What is durable of groups whose assignment the broker decides: consumer groups of KIP-848, and share groups.

The records go on where those of `records.py` end, and are written as they are. Partitions are told by the 16 bytes of
their topic's id, so that a topic that is made again is another one.

    10 MODERN_HEAD      group text | type u8 (1 consumer, 2 share) | group epoch i32 | assignment epoch i32
                        | topics hash i64 | since ms i64
                        The group is of this type from now on; classic members that it had are gone.
    11 MODERN_MEMBER    group text | member id text | instance id text | rack id text | client id text
                        | client host text | rebalance timeout ms i32 | topic count i32 | topic text each
                        | pattern text | assignor text | session timeout ms i32, -1 for a member of the new protocol
                        | protocol count i32 | (name text, metadata bytes) each
    12 CURRENT          group text | member id text | member epoch i32 | previous epoch i32 | state u8
                        | assigned partitions | partitions being revoked
    13 TARGET           group text | member id text | partitions
    14 PATTERN          group text | pattern text | count i32 | topic text each
                        What the pattern matched when it was looked at last.

    partitions          topic count i32 | (topic id bytes | count i32 | partition i32 each) each

A member goes by MEMBER_REMOVED. HEAD makes a group classic again: members and assignments of these kinds are gone then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

from millpond.base.errors import CorruptData
from millpond.broker.groups.records import PROTOCOL_BYTES, READERS, Record, RecordReader, RecordWriter

# The types of groups, by the names under which Apache Kafka lists them.
CLASSIC: Final = "classic"
CONSUMER: Final = "consumer"
SHARE: Final = "share"

TYPES: Final = (CLASSIC, CONSUMER, SHARE)

# Where a member is on its way to its target: there; giving partitions up; waiting for others to give theirs up.
SETTLED: Final = 0
REVOKING: Final = 1
AWAITING: Final = 2

_TOPIC_ID_BYTES: Final = 16

# Partitions by their topic's id. Never changed once made.
Assignment = Mapping[bytes, frozenset[int]]

NOTHING: Final[Assignment] = {}


@dataclass(frozen=True, slots=True)
class ModernHead:
    """A group apart from its members."""

    type: str
    # Grows with every change of members' subscriptions, or of the topics that they read.
    epoch: int = 0
    # That of the group when the partitions were shared out last.
    assignment_epoch: int = 0
    # Of what is known of the topics: another one means another epoch.
    topics_hash: int = 0
    # When this epoch began.
    since_ms: int = 0


@dataclass(frozen=True, slots=True)
class ClassicPart:
    """What a member that speaks the classic protocol says besides."""

    session_timeout_ms: int
    # (name, metadata), the preferred one first.
    protocols: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class ModernMemberState:
    """What a member says of itself."""

    member_id: str
    instance_id: str | None = None
    rack_id: str | None = None
    client_id: str = ""
    client_host: str = ""
    rebalance_timeout_ms: int = -1
    topics: tuple[str, ...] = ()
    # Besides these topics, those whose names match.
    pattern: str | None = None
    assignor: str | None = None
    classic: ClassicPart | None = None

    @property
    def size(self) -> int:
        """What it takes, in bytes."""
        texts = (self.instance_id, self.rack_id, self.client_id, self.pattern)
        size = sum(map(len, self.topics)) + sum(len(text) for text in texts if text)
        if self.classic is not None:
            size += sum(len(name) + len(metadata) + PROTOCOL_BYTES for name, metadata in self.classic.protocols)
        return size


@dataclass(frozen=True, slots=True)
class CurrentAssignment:
    """What a member has, and on its way to its target assignment, how far it has come."""

    epoch: int = 0
    previous_epoch: int = 0
    state: int = SETTLED
    assigned: Assignment = field(default_factory=dict)
    # It was told to give these up, and has not said that it has.
    revoking: Assignment = field(default_factory=dict)


def _write_assignment(out: RecordWriter, assignment: Assignment) -> None:
    out.i32(len(assignment))
    for topic_id, partitions in assignment.items():
        out.bytes(topic_id)
        out.i32(len(partitions))
        for partition in sorted(partitions):
            out.i32(partition)


def _read_assignment(data: RecordReader) -> Assignment:
    assignment: dict[bytes, frozenset[int]] = {}
    for _ in range(data.count()):
        topic_id = data.bytes()
        if len(topic_id) != _TOPIC_ID_BYTES:
            raise CorruptData("a topic's id in a group's record is not one")
        assignment[topic_id] = frozenset([data.i32() for _ in range(data.count())])
    return assignment


def _write_texts(out: RecordWriter, texts: tuple[str, ...]) -> None:
    out.i32(len(texts))
    for text in texts:
        out.text(text)


def _read_texts(data: RecordReader) -> tuple[str, ...]:
    return tuple([data.text() for _ in range(data.count())])


@dataclass(frozen=True, slots=True)
class ModernHeadChanged(Record):
    kind: ClassVar[int] = 10
    group: str
    head: ModernHead

    def write(self, out: RecordWriter) -> None:
        head = self.head
        out.text(self.group)
        out.u8(TYPES.index(head.type))
        out.i32(head.epoch)
        out.i32(head.assignment_epoch)
        out.i64(head.topics_hash)
        out.i64(head.since_ms)

    @classmethod
    def read(cls, data: RecordReader) -> ModernHeadChanged:
        group, kind = data.text(), data.u8()
        if not 1 <= kind < len(TYPES):
            raise CorruptData(f"a group has the unknown type {kind}")
        return cls(group, ModernHead(TYPES[kind], data.i32(), data.i32(), data.i64(), data.i64()))


@dataclass(frozen=True, slots=True)
class ModernMemberChanged(Record):
    kind: ClassVar[int] = 11
    group: str
    member: ModernMemberState

    def write(self, out: RecordWriter) -> None:
        member, classic = self.member, self.member.classic
        out.text(self.group)
        out.text(member.member_id)
        out.text(member.instance_id)
        out.text(member.rack_id)
        out.text(member.client_id)
        out.text(member.client_host)
        out.i32(member.rebalance_timeout_ms)
        _write_texts(out, member.topics)
        out.text(member.pattern)
        out.text(member.assignor)
        out.i32(-1 if classic is None else classic.session_timeout_ms)
        out.i32(0 if classic is None else len(classic.protocols))
        for name, metadata in () if classic is None else classic.protocols:
            out.text(name)
            out.bytes(metadata)

    @classmethod
    def read(cls, data: RecordReader) -> ModernMemberChanged:
        group, member_id, instance_id, rack_id = data.text(), data.text(), data.optional_text(), data.optional_text()
        client_id, client_host, rebalance_timeout_ms = data.text(), data.text(), data.i32()
        topics, pattern, assignor = _read_texts(data), data.optional_text(), data.optional_text()
        session_timeout_ms = data.i32()
        protocols = tuple([(data.text(), data.bytes()) for _ in range(data.count())])
        classic = ClassicPart(session_timeout_ms, protocols) if session_timeout_ms >= 0 else None
        state = ModernMemberState(
            member_id, instance_id, rack_id, client_id, client_host, rebalance_timeout_ms, topics, pattern, assignor,
            classic,
        )  # fmt: skip
        return cls(group, state)


@dataclass(frozen=True, slots=True)
class CurrentChanged(Record):
    kind: ClassVar[int] = 12
    group: str
    member_id: str
    current: CurrentAssignment

    def write(self, out: RecordWriter) -> None:
        current = self.current
        out.text(self.group)
        out.text(self.member_id)
        out.i32(current.epoch)
        out.i32(current.previous_epoch)
        out.u8(current.state)
        _write_assignment(out, current.assigned)
        _write_assignment(out, current.revoking)

    @classmethod
    def read(cls, data: RecordReader) -> CurrentChanged:
        group, member_id, epoch, previous_epoch, state = data.text(), data.text(), data.i32(), data.i32(), data.u8()
        if state > AWAITING:
            raise CorruptData(f"a member has the unknown state {state}")
        assigned, revoking = _read_assignment(data), _read_assignment(data)
        return cls(group, member_id, CurrentAssignment(epoch, previous_epoch, state, assigned, revoking))


@dataclass(frozen=True, slots=True)
class TargetChanged(Record):
    kind: ClassVar[int] = 13
    group: str
    member_id: str
    target: Assignment

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)
        out.text(self.member_id)
        _write_assignment(out, self.target)

    @classmethod
    def read(cls, data: RecordReader) -> TargetChanged:
        return cls(data.text(), data.text(), _read_assignment(data))


@dataclass(frozen=True, slots=True)
class PatternResolved(Record):
    kind: ClassVar[int] = 14
    group: str
    pattern: str
    topics: tuple[str, ...]

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)
        out.text(self.pattern)
        _write_texts(out, self.topics)

    @classmethod
    def read(cls, data: RecordReader) -> PatternResolved:
        return cls(data.text(), data.text(), _read_texts(data))


ModernRecord = ModernHeadChanged | ModernMemberChanged | CurrentChanged | TargetChanged | PatternResolved

READERS.update(
    {
        ModernHeadChanged.kind: ModernHeadChanged.read,
        ModernMemberChanged.kind: ModernMemberChanged.read,
        CurrentChanged.kind: CurrentChanged.read,
        TargetChanged.kind: TargetChanged.read,
        PatternResolved.kind: PatternResolved.read,
    }
)
