"""What Kafka's consumers tell each other inside the metadata and assignments of a group.

To the coordinator of a classic group these are opaque, but for two questions: which topics a member reads, so that
their offsets are not deleted under it, and which partitions it was given, for operators. Where the broker assigns
partitions to such members, it reads and writes them in full:

    subscription  version i16 | topic count i32 | (length i16, topic) each | user data bytes
                  | from 1 on: owned partitions | from 2 on: generation i32 | from 3 on: rack id
    assignment    version i16 | assigned partitions | user data bytes
    partitions    topic count i32 | (length i16, topic, partition count i32, partition i32 each) each
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

PROTOCOL_TYPE: Final = "consumer"

_I16: Final = Struct(">h")
_I32: Final = Struct(">i")


class _Senseless(Exception):
    """These bytes are nothing of the kind."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data: Final = data
        self._position = 0

    def number(self, layout: Struct) -> int:
        end = self._position + layout.size
        if end > len(self._data):
            raise _Senseless
        value: int = layout.unpack_from(self._data, self._position)[0]
        self._position = end
        return value

    def text(self) -> str:
        length = self.number(_I16)
        end = self._position + length
        if length < 0 or end > len(self._data):
            raise _Senseless
        value = self._data[self._position : end].decode("utf-8", "surrogateescape")
        self._position = end
        return value

    def skip_bytes(self) -> None:
        length = self.number(_I32)
        self._position += max(0, length)
        if self._position > len(self._data):
            raise _Senseless

    def partitions(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for _ in range(self.count()):
            partitions = found.setdefault(self.text(), [])
            partitions += [self.number(_I32) for _ in range(self.count())]
        return found

    def count(self) -> int:
        count = self.number(_I32)
        if not 0 <= count <= len(self._data) - self._position:
            raise _Senseless
        return count


def subscribed_topics(metadata: bytes) -> list[str] | None:
    """The topics of a subscription; None where it is not one."""
    reader = _Reader(metadata)
    try:
        if reader.number(_I16) < 0:
            return None
        return [reader.text() for _ in range(reader.count())]
    except _Senseless:
        return None


def assigned_partitions(assignment: bytes) -> dict[str, list[int]] | None:
    """The partitions of an assignment by their topics; None where it is not one. Nothing at all is nothing assigned."""
    if not assignment:
        return {}
    reader = _Reader(assignment)
    try:
        if reader.number(_I16) < 0:
            return None
        return reader.partitions()
    except _Senseless:
        return None


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a consumer says of itself."""

    version: int
    topics: tuple[str, ...]
    # What it has and goes on reading while the group rebalances.
    owned: dict[str, list[int]]


def read_subscription(metadata: bytes) -> Subscription | None:
    """A whole subscription; None where it is not one."""
    reader = _Reader(metadata)
    try:
        version = reader.number(_I16)
        if version < 0:
            return None
        topics = tuple([reader.text() for _ in range(reader.count())])
        reader.skip_bytes()
        return Subscription(version, topics, reader.partitions() if version >= 1 else {})
    except _Senseless:
        return None


def write_assignment(version: int, assigned: dict[str, list[int]]) -> bytes:
    """An assignment as the broker makes it: without user data."""
    written = bytearray(_I16.pack(version) + _I32.pack(len(assigned)))
    for topic, partitions in assigned.items():
        name = topic.encode("utf-8", "surrogateescape")
        written += _I16.pack(len(name)) + name + _I32.pack(len(partitions))
        for partition in partitions:
            written += _I32.pack(partition)
    return bytes(written + _I32.pack(-1))
