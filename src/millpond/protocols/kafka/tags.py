"""Tagged fields that are not known, taken out of a request.

KIP-482 wants them ignored, so that a newer client can say more to an older broker; kio refuses them. No client that
there is today sends any, so this may take its time, and each request is first read as it is.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Final

from millpond.base.errors import SyntaxFault
from millpond.base.limits import KAFKA_UNKNOWN_TAGS_BYTES_MAX
from millpond.protocols.kafka.wire import WireReader

# Passes over one value.
_Pass = Callable[["_Copy"], None]

_SIZES: Final = {
    "bool": 1, "int8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "float64": 8, "uuid": 16,
    "error_code": 2, "timedelta_i32": 4, "timedelta_i64": 8, "datetime_i64": 8,
}  # fmt: skip

_entities: Final[dict[Any, _Pass]] = {}


class _Copy:
    """What is read, and the parts of it that are kept."""

    def __init__(self, data: bytes) -> None:
        self.reader: Final = WireReader(data, 0, len(data), True)
        self._parts: list[bytes] = []
        self._kept_until = 0

    def keep(self) -> None:
        """Keep what has been read since the last part that was kept or left out."""
        position = int(self.reader.position)
        self._parts.append(self.reader.data[self._kept_until : position])
        self._kept_until = position

    def leave_out(self, instead: bytes = b"") -> None:
        """Have this in the place of what has been read since then."""
        self._parts.append(instead)
        self._kept_until = int(self.reader.position)

    def all(self) -> bytes:
        return b"".join(self._parts) + self.reader.data[self._kept_until :]


def without_unknown_tags(schema: Any, body: bytes) -> bytes:
    """A request of one of kio's flexible classes without what the class does not know. SyntaxFault."""
    if len(body) > KAFKA_UNKNOWN_TAGS_BYTES_MAX:
        raise SyntaxFault("a request with unknown tagged fields that is too large to be looked through")
    copy = _Copy(body)
    _entity(schema)(copy)
    return copy.all()


def _entity(schema: Any) -> _Pass:
    found = _entities.get(schema)
    if found is not None:
        return found
    hints = typing.get_type_hints(schema)
    passes: list[_Pass] = []
    tags: set[int] = set()
    for field in dataclasses.fields(schema):
        if "tag" in field.metadata:
            tags.add(field.metadata["tag"])
        else:
            passes.append(_value(hints[field.name], field.metadata.get("kafka_type")))

    def pass_over(copy: _Copy) -> None:
        for one in passes:
            one(copy)
        _pass_tags(copy, tags)

    _entities[schema] = pass_over
    return pass_over


def _pass_tags(copy: _Copy, known: set[int]) -> None:
    reader = copy.reader
    copy.keep()
    kept: list[bytes] = []
    count = reader.varint()
    while count > 0:
        count -= 1
        start = int(reader.position)
        tag = int(reader.varint())
        reader.skip(reader.varint())
        if tag in known:
            kept.append(reader.data[start : int(reader.position)])
    # There are never as many as would take a second byte.
    copy.leave_out(bytes([min(len(kept), 127)]) + b"".join(kept[:127]))


def _value(hint: Any, kafka_type: str | None) -> _Pass:
    is_nullable = typing.get_origin(hint) in {types.UnionType, typing.Union}
    if is_nullable:
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is tuple:
        return _array(_value(typing.get_args(hint)[0], kafka_type))
    if dataclasses.is_dataclass(hint):
        return _nullable(_entity(hint)) if is_nullable else _entity(hint)
    if kafka_type in _SIZES:
        return _fixed(_SIZES[kafka_type])
    return _sized


def _array(item: _Pass) -> _Pass:
    def pass_over(copy: _Copy) -> None:
        for _ in range(copy.reader.count()):
            item(copy)

    return pass_over


def _nullable(entity: _Pass) -> _Pass:
    def pass_over(copy: _Copy) -> None:
        if copy.reader.int8() >= 0:
            entity(copy)

    return pass_over


def _fixed(size: int) -> _Pass:
    def pass_over(copy: _Copy) -> None:
        copy.reader.skip(size)

    return pass_over


def _sized(copy: _Copy) -> None:
    size = copy.reader.size_of_bytes()
    copy.reader.skip(max(0, int(size)))
