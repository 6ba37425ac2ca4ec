"""AMQP field values as JSON text, without loss.

    value                         JSON
    None, bool, int, str          as themselves
    float                         a number with a fraction or an exponent; {"$float": "nan"} where it is not finite
    bytes                         {"$bytes": base64}
    bytearray                     {"$bytearray": base64}
    Decimal                       {"$decimal": "1.10"}
    datetime                      {"$time": ISO 8601, with its offset where it has one}
    list, tuple                   array
    dict                          object; {"$table": object} where it has one key that begins with "$"

Keys are sorted and the text is ASCII: equal values have equal texts, so that a text can be part of a primary key.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from millpond.base import limits
from millpond.base.errors import CorruptData, LimitExceeded

_encoder: Final = json.JSONEncoder(allow_nan=False, check_circular=False, sort_keys=True, separators=(",", ":"))


def encode(value: Any) -> str:
    """The text of a field value.

    Raises LimitExceeded where tables and arrays are nested deeper than `limits.FIELD_VALUE_DEPTH_MAX`, and TypeError
    for a value that is none of AMQP's.
    """
    if value == {} and type(value) is dict:
        return "{}"
    return _encoder.encode(_tagged(value, 0))


def decode(text: object) -> Any:
    """The field value of a text. Raises CorruptData where `encode` did not write it."""
    if text == "{}":
        return {}
    try:
        return _untagged(json.loads(text))  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, InvalidOperation, RecursionError) as error:
        raise CorruptData(f"the catalog holds a field value that does not decode: {error}") from error


def decode_table(text: object) -> dict[str, Any]:
    """The table of a text. Raises CorruptData where it is anything else."""
    value = decode(text)
    if not isinstance(value, dict):
        raise CorruptData("the catalog holds arguments that are not a table")
    return value


def _tagged(value: Any, depth: int) -> Any:
    if depth > limits.FIELD_VALUE_DEPTH_MAX:
        raise LimitExceeded(f"arguments nested deeper than {limits.FIELD_VALUE_DEPTH_MAX}")
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"$float": str(value)}
        case bytearray():
            return {"$bytearray": b64encode(value).decode()}
        case bytes():
            return {"$bytes": b64encode(value).decode()}
        case Decimal():
            return {"$decimal": str(value)}
        case datetime():
            return {"$time": value.isoformat()}
        case list() | tuple():
            return [_tagged(item, depth + 1) for item in value]
        case Mapping():
            table = {str(key): _tagged(item, depth + 1) for key, item in value.items()}
            return {"$table": table} if len(table) == 1 and next(iter(table)).startswith("$") else table
    raise TypeError(f"{type(value).__name__} is no AMQP field value")


def _untagged(value: Any) -> Any:
    if isinstance(value, list):
        return [_untagged(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        key, content = next(iter(value.items()))
        if key == "$table":
            return {name: _untagged(item) for name, item in content.items()} if isinstance(content, dict) else _bad(key)
        if key.startswith("$"):
            return _TAGS[key](content) if isinstance(content, str) else _bad(key)
    return {name: _untagged(item) for name, item in value.items()}


def _bad(key: str) -> Any:
    raise ValueError(f"{key} has a value of the wrong type")


_TAGS: Final[dict[str, Callable[[str], Any]]] = {
    "$float": float,
    "$bytes": lambda text: b64decode(text, validate=True),
    "$bytearray": lambda text: bytearray(b64decode(text, validate=True)),
    "$decimal": Decimal,
    "$time": datetime.fromisoformat,
}
