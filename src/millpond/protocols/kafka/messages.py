"""Requests and responses by way of kio, which has Kafka's own message definitions, one class a version.

A response is written down once, as a tree of plain values under the names of the newest version, and each version takes
from it what it has: an int for an error code or a duration, bytes for a UUID, a list of trees for an array. What a
tree leaves out is the field's default, or nothing (0, "", None, []).

Importing kio takes a moment, and each message is imported when it comes for the first time.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import io
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from millpond.base.errors import SyntaxFault
from millpond.protocols.kafka.request_check import checked_request

Tree = Mapping[str, object]

_Convert = Callable[[Any], Any]
_EPOCH: Final = dt.datetime.fromtimestamp(0, dt.UTC)

_Read = Callable[[Any, int], tuple[Any, int]]

# Of each (api key, version): how to read the request, and its definition, which knows whether its header is flexible.
_readers: Final[dict[tuple[int, int], tuple[_Read, Any]]] = {}
_writers: Final[dict[tuple[int, int], tuple[_Convert, Callable[[Any, Any], None], bool]]] = {}


def warm_up() -> None:
    """Import what every client needs, so that the first of them does not wait for it. May be called on a thread."""
    for key, version in ((18, 3), (3, 12), (2, 7), (10, 4), (22, 4)):
        _reader(key, version)
        _writer(key, version)


def decode_request(api_key: int, version: int, data: bytes, position: int, end: int) -> Any:
    """The request in `data` from behind the client id on. Raises SyntaxFault."""
    from kio.serial.errors import SerialError

    read, schema = _readers.get((api_key, version)) or _reader(api_key, version)
    body = data[position:end]
    try:
        start = _after_tags(body) if schema.__flexible__ else 0
        # What follows is ignored, as Kafka does: librdkafka sends a byte too many when it asks for all topics.
        request, _ = read(checked_request(schema, body, start), 0)
    except (SerialError, ValueError, LookupError, OverflowError, TypeError) as error:
        raise SyntaxFault(f"a request of api key {api_key}, version {version}, cannot be read: {error}") from None
    return request


def encode_response(api_key: int, version: int, tree: Tree) -> tuple[bytes, bool]:
    """The response's body, and whether its header is flexible."""
    build, write, flexible = _writers.get((api_key, version)) or _writer(api_key, version)
    buffer = io.BytesIO()
    write(buffer, build(tree))
    return buffer.getvalue(), flexible


def _after_tags(body: bytes) -> int:
    """Where the body begins behind the tagged fields of its header."""
    from millpond.protocols.kafka.wire import WireReader

    reader = WireReader(body, 0, len(body), True)
    reader.skip_tags()
    return int(reader.position)


def _reader(api_key: int, version: int) -> tuple[_Read, Any]:
    from kio.index import load_request_schema
    from kio.serial import entity_reader

    schema: Any = load_request_schema(api_key, version)
    found = _readers[api_key, version] = (entity_reader(schema), schema)
    return found


def _writer(api_key: int, version: int) -> tuple[_Convert, Callable[[Any, Any], None], bool]:
    from kio.index import load_response_schema
    from kio.serial import entity_writer

    schema: Any = load_response_schema(api_key, version)
    found = _writers[api_key, version] = (_builder(schema), entity_writer(schema), schema.__flexible__)
    return found


# --- From trees to kio's classes --------------------------------------------------------------------------------------


def _builder(schema: Any) -> _Convert:
    """What makes an instance of one of kio's classes from a tree."""
    hints = typing.get_type_hints(schema)
    plan: list[tuple[str, _Convert, Any, bool]] = []
    for field in dataclasses.fields(schema):
        convert, nothing = _conversion(hints[field.name], field.metadata.get("kafka_type"))
        has_default = field.default is not dataclasses.MISSING
        plan.append((field.name, convert, field.default if has_default else nothing, has_default))

    def build(tree: Tree) -> Any:
        values = {}
        for name, convert, default, _ in plan:
            value = tree.get(name, _MISSING)
            values[name] = default if value is _MISSING else convert(value)
        return schema(**values)

    return build


_MISSING: Final = object()


def _conversion(hint: Any, kafka_type: str | None) -> tuple[_Convert, Any]:
    """How a plain value becomes one of the field's type, and what stands for nothing."""
    optional = False
    if typing.get_origin(hint) in {types.UnionType, typing.Union}:
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
        optional = True
    convert: _Convert
    nothing: Any
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        convert, nothing = _items(_conversion(item, kafka_type)[0]), ()
    elif dataclasses.is_dataclass(hint):
        convert, nothing = _builder(hint), None
    elif kafka_type == "error_code":
        convert = _error_code
        nothing = _error_code(0)
    elif kafka_type is not None and kafka_type.startswith("timedelta"):
        convert, nothing = _duration, dt.timedelta(0)
    elif kafka_type is not None and kafka_type.startswith("datetime"):
        convert, nothing = _time, None
    elif kafka_type == "uuid":
        convert, nothing = _uuid, None
        optional = False
    else:
        convert, nothing = _same, _NOTHING.get(kafka_type or "", 0)
    if not optional:
        return convert, nothing
    return _unless_none(convert), None


_NOTHING: Final[dict[str, object]] = {"string": "", "bytes": b"", "records": None, "bool": False, "float64": 0.0}


def _same(value: Any) -> Any:
    return value


def _items(convert: _Convert) -> _Convert:
    def build(values: Iterable[Any]) -> Any:
        return tuple(map(convert, values))

    return build


def _unless_none(convert: _Convert) -> _Convert:
    def build(value: Any) -> Any:
        return None if value is None else convert(value)

    return build


def _error_code(value: int) -> Any:
    from kio.schema.errors import ErrorCode

    return ErrorCode(value)


def _duration(value_ms: int) -> dt.timedelta:
    return dt.timedelta(milliseconds=value_ms)


def _time(value_ms: int) -> dt.datetime:
    # -1 is a time like any other to kio where a field must not be None, and elsewhere it writes it for None.
    return _EPOCH + dt.timedelta(milliseconds=value_ms)


def _uuid(value: bytes | None) -> uuid.UUID | None:
    return None if value is None or value == bytes(16) else uuid.UUID(bytes=value)
