"""What is looked at of a request before kio reads it.

kio takes memory for as many items as an array says that it has, and where there is not so much the process ends. It
also reads null for arrays that must not be null, and refuses tagged fields that it does not know: KIP-482 wants them
ignored, so that a newer client can say more to an older broker. So each request is gone through once by its definition.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Final

from millpond.base.errors import SyntaxFault
from millpond.base.limits import KAFKA_REQUEST_ITEMS_MAX
from millpond.protocols.kafka.wire import WireReader

_SIZES: Final = {
    "bool": 1, "int8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "float64": 8, "uuid": 16,
    "error_code": 2, "timedelta_i32": 4, "timedelta_i64": 8, "datetime_i64": 8,
}  # fmt: skip


class _Walk:
    """One way through a request, with what was found out so far."""

    def __init__(self, body: bytes, position: int, flexible: bool) -> None:
        self.reader: Final = WireReader(body, position, len(body), flexible)
        self._body: Final = body
        self._items_left = KAFKA_REQUEST_ITEMS_MAX
        # What is kept of the request, up to where that is known.
        self._parts: list[bytes] = []
        self._kept_until = position

    def count(self) -> int:
        """The number of an array's items; -1 for null."""
        count = int(self.reader.count())
        self._items_left -= count
        if self._items_left < 0:
            raise SyntaxFault(f"a request of more than {KAFKA_REQUEST_ITEMS_MAX} items")
        return count

    def skip_tags(self, known: set[int]) -> None:
        """Pass over tagged fields, and leave out those that are not known."""
        reader = self.reader
        start = int(reader.position)
        count = int(reader.varint())
        if count == 0:
            return
        kept: list[bytes] = []
        for _ in range(count):
            field_start = int(reader.position)
            tag = int(reader.varint())
            reader.skip(reader.varint())
            if tag in known:
                kept.append(self._body[field_start : int(reader.position)])
        if len(kept) < count:
            # No definition has so many that their number would take a second byte; each is there once.
            if len(kept) > len(known):
                raise SyntaxFault("a tagged field that is there twice")
            self._parts += (self._body[self._kept_until : start], bytes([len(kept)]), *kept)
            self._kept_until = int(reader.position)

    def kept(self) -> bytes:
        return b"".join([*self._parts, self._body[self._kept_until :]])


# Passes over one value.
_Step = Callable[[_Walk], None]

_entities: Final[dict[Any, _Step]] = {}


def checked_request(schema: Any, body: bytes, position: int = 0) -> bytes:
    """What of a request, from `position` on, one of kio's classes can read. SyntaxFault where it is not what the class
    says."""
    walk = _Walk(body, position, schema.__flexible__)
    (_entities.get(schema) or _entity(schema))(walk)
    return walk.kept()


def _entity(schema: Any) -> _Step:
    found = _entities.get(schema)
    if found is not None:
        return found
    hints = typing.get_type_hints(schema)
    steps: list[_Step] = []
    tags: set[int] = set()
    for field in dataclasses.fields(schema):
        if "tag" in field.metadata:
            tags.add(field.metadata["tag"])
        else:
            steps.append(_value(hints[field.name], field.metadata.get("kafka_type")))
    has_tags = schema.__flexible__

    def step(walk: _Walk) -> None:
        for one in steps:
            one(walk)
        if has_tags:
            walk.skip_tags(tags)

    _entities[schema] = step
    return step


def _value(hint: Any, kafka_type: str | None) -> _Step:
    is_nullable = typing.get_origin(hint) in {types.UnionType, typing.Union}
    if is_nullable:
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is tuple:
        return _array(_value(typing.get_args(hint)[0], kafka_type), is_nullable)
    if dataclasses.is_dataclass(hint):
        return _nullable(_entity(hint)) if is_nullable else _entity(hint)
    if kafka_type in _SIZES:
        return _fixed(_SIZES[kafka_type])
    return _text if kafka_type == "string" else _bytes


def _array(item: _Step, is_nullable: bool) -> _Step:
    def step(walk: _Walk) -> None:
        count = walk.count()
        if count < 0 and not is_nullable:
            raise SyntaxFault("null where an array is needed")
        for _ in range(count):
            item(walk)

    return step


def _nullable(entity: _Step) -> _Step:
    def step(walk: _Walk) -> None:
        if walk.reader.int8() >= 0:
            entity(walk)

    return step


def _fixed(size: int) -> _Step:
    def step(walk: _Walk) -> None:
        walk.reader.skip(size)

    return step


def _text(walk: _Walk) -> None:
    reader = walk.reader
    size = int(reader.varint()) - 1 if reader.flexible else int(reader.int16())
    if size != -1:
        reader.skip(size)


def _bytes(walk: _Walk) -> None:
    size = int(walk.reader.size_of_bytes())
    if size != -1:
        walk.reader.skip(size)
