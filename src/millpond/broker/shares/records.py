"""What the journal has of share groups.

A record is the payload of a SHARE change (`broker/records.py`), and of an entry in a checkpoint. Numbers and texts are
written as in `groups/records.py`.

    kind u8 | virtual host text | payload

    1 STARTED     group text | topic id bytes | partition i32 | start i64
                  The group begins, or begins anew, with this offset of the partition; what it had there is forgotten.
    2 RANGES      group text | topic id bytes | partition i32 | count i32 | ranges
                  range: first i64 | end i64 | state u8 | deliveries i32
                  The records of [first, end) are in this state, one range after the other.
    3 REWOUND     group text | topic id bytes | partition i32 | offset i64
                  The group begins with this offset again; what follows says in which state the records are.
    4 GROUP_GONE  group text
                  The group has no state of any partition any more.
    5 TOPIC_GONE  group text | topic id bytes
                  It has none of this topic's.
    6 CONFIGURED  group text | count i32 | (name text, value text) each
                  The group's own configuration is this.
    7 CLEARED     The virtual host is new: what earlier records say of one with this name is no longer so.

Source of the states' numbers: `delivery_state.py`. ACQUIRED stands for what was in somebody's hands, and is available
after a restart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from millpond.base.errors import CorruptData
from millpond.broker.groups.records import RecordReader, RecordWriter
from millpond.broker.shares.delivery_state import DELIVERIES_MAX, STATES

TOPIC_ID_BYTES: Final = 16
_OFFSET_MAX: Final = 1 << 62

# Of a partition: the topic's id and the partition's number.
Place = tuple[bytes, int]
Range = tuple[int, int, int, int]


def _read_place(data: RecordReader) -> Place:
    topic_id = data.bytes()
    if len(topic_id) != TOPIC_ID_BYTES:
        raise CorruptData("a topic's id in a share group's record has a wrong length")
    partition = data.i32()
    if partition < 0:
        raise CorruptData("a partition in a share group's record is negative")
    return topic_id, partition


def _write_place(out: RecordWriter, place: Place) -> None:
    out.bytes(place[0])
    out.i32(place[1])


def _read_offset(data: RecordReader) -> int:
    offset = data.i64()
    if not 0 <= offset <= _OFFSET_MAX:
        raise CorruptData("an offset in a share group's record is none")
    return offset


class ShareRecord:
    """A change of what is durable of share groups."""

    kind: ClassVar[int]

    def write(self, out: RecordWriter) -> None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Started(ShareRecord):
    kind: ClassVar[int] = 1
    group: str
    place: Place
    start: int

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)
        _write_place(out, self.place)
        out.i64(self.start)

    @classmethod
    def read(cls, data: RecordReader) -> Started:
        return cls(data.text(), _read_place(data), _read_offset(data))


@dataclass(frozen=True, slots=True)
class Ranges(ShareRecord):
    kind: ClassVar[int] = 2
    group: str
    place: Place
    ranges: tuple[Range, ...]

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)
        _write_place(out, self.place)
        out.i32(len(self.ranges))
        for first, end, state, count in self.ranges:
            out.i64(first)
            out.i64(end)
            out.u8(state)
            out.i32(count)

    @classmethod
    def read(cls, data: RecordReader) -> Ranges:
        group, place = data.text(), _read_place(data)
        ranges: list[Range] = []
        for _ in range(data.count()):
            first, end, state, count = _read_offset(data), _read_offset(data), data.u8(), data.i32()
            if first >= end or state not in STATES or not 0 <= count <= DELIVERIES_MAX:
                raise CorruptData("a range in a share group's record is none")
            ranges.append((first, end, state, count))
        return cls(group, place, tuple(ranges))


@dataclass(frozen=True, slots=True)
class Rewound(ShareRecord):
    kind: ClassVar[int] = 3
    group: str
    place: Place
    offset: int

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)
        _write_place(out, self.place)
        out.i64(self.offset)

    @classmethod
    def read(cls, data: RecordReader) -> Rewound:
        return cls(data.text(), _read_place(data), _read_offset(data))


@dataclass(frozen=True, slots=True)
class GroupGone(ShareRecord):
    kind: ClassVar[int] = 4
    group: str

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)

    @classmethod
    def read(cls, data: RecordReader) -> GroupGone:
        return cls(data.text())


@dataclass(frozen=True, slots=True)
class TopicGone(ShareRecord):
    kind: ClassVar[int] = 5
    group: str
    topic_id: bytes

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)
        out.bytes(self.topic_id)

    @classmethod
    def read(cls, data: RecordReader) -> TopicGone:
        return cls(data.text(), data.bytes())


@dataclass(frozen=True, slots=True)
class Configured(ShareRecord):
    kind: ClassVar[int] = 6
    group: str
    configs: tuple[tuple[str, str], ...]

    def write(self, out: RecordWriter) -> None:
        out.text(self.group)
        out.i32(len(self.configs))
        for name, value in self.configs:
            out.text(name)
            out.text(value)

    @classmethod
    def read(cls, data: RecordReader) -> Configured:
        group = data.text()
        return cls(group, tuple([(data.text(), data.text()) for _ in range(data.count())]))


@dataclass(frozen=True, slots=True)
class Cleared(ShareRecord):
    kind: ClassVar[int] = 7

    def write(self, out: RecordWriter) -> None:
        """There is nothing more to say."""

    @classmethod
    def read(cls, _data: RecordReader) -> Cleared:
        return cls()


_READERS: Final[dict[int, Callable[[RecordReader], ShareRecord]]] = {
    Started.kind: Started.read,
    Ranges.kind: Ranges.read,
    Rewound.kind: Rewound.read,
    GroupGone.kind: GroupGone.read,
    TopicGone.kind: TopicGone.read,
    Configured.kind: Configured.read,
    Cleared.kind: Cleared.read,
}


def encode_record(vhost: str, record: ShareRecord) -> bytes:
    """The record's bytes, for the journal or a checkpoint."""
    out = RecordWriter()
    out.u8(record.kind)
    out.text(vhost)
    record.write(out)
    return out.value()


def decode_record(payload: bytes) -> tuple[str, ShareRecord]:
    """The virtual host and the record. CorruptData where it is none."""
    data = RecordReader(payload)
    kind = data.u8()
    read = _READERS.get(kind)
    if read is None:
        raise CorruptData(f"a share group's record of the unknown kind {kind}")
    vhost = data.text()
    record = read(data)
    data.check_end()
    return vhost, record
