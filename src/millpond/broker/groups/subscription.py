"""What Kafka's consumers tell each other inside the metadata and assignments of a group.

To the coordinator these are opaque, but for two questions: which topics a member reads, so that their offsets are not
deleted under it, and which partitions it was given, for operators. Both are prefixes of every version of the format:

    subscription  version i16 | topic count i32 | (length i16, topic) each | ...
    assignment    version i16 | topic count i32 | (length i16, topic, partition count i32, partition i32 each) | ...
"""

from __future__ import annotations

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
        assigned: dict[str, list[int]] = {}
        for _ in range(reader.count()):
            partitions = assigned.setdefault(reader.text(), [])
            partitions += [reader.number(_I32) for _ in range(reader.count())]
        return assigned
    except _Senseless:
        return None
