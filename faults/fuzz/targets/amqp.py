"""AMQP's methods, field tables and properties."""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal

from faults.fuzz.targets.target import target
from millpond.base.errors import PeerError
from millpond.broker.message import Address, Message
from millpond.broker.streams.message_records import MessageRecord
from millpond.broker.streams.record_messages import RecordMessages
from millpond.protocols.amqp import field_table
from millpond.protocols.amqp.methods import METHODS, decode_method, encode_method
from millpond.protocols.amqp.properties import (
    BasicProperties,
    encode_properties,
    fitting_properties,
    parse_properties,
)
from millpond.storage.record_batch import BatchBuilder
from tests.protocols.amqp.hostile import fuzzing

_SEEDS_OF_EACH = 3
_FRAME_BYTES = 4096


def _methods() -> list[bytes]:
    chance = random.Random(1)
    return [
        encode_method(fuzzing.random_method(chance, kind)) for kind in METHODS.values() for _ in range(_SEEDS_OF_EACH)
    ]


def _tables() -> list[bytes]:
    every_type: dict[str, object] = {
        "text": "é", "yes": True, "number": -(1 << 63), "large": (1 << 64) - 1, "fraction": 1.5,
        "money": Decimal("-1.50"),
        "bytes": b"\xff\x00", "time": dt.datetime(2020, 1, 1, tzinfo=dt.UTC), "nothing": None,
        "list": [1, "two", [3.0, {"four": b"5"}]], "table": {"a": {"b": {"c": []}}}, "": "", "\udcff": "\udcff",
    }  # fmt: skip
    # The letters that are read and never written.
    others = b"".join(
        b"\x01" + letter + letter + bytes(size)
        for letter, size in ((b"b", 1), (b"B", 1), (b"s", 2), (b"u", 2), (b"I", 4), (b"i", 4), (b"L", 8), (b"f", 4))
    )
    nested = b""
    for _ in range(60):
        nested = b"\x01aF" + len(nested).to_bytes(4, "big") + nested
    chance = random.Random(2)
    return [
        field_table.encode_table(every_type),
        len(others).to_bytes(4, "big") + others,
        len(nested).to_bytes(4, "big") + nested,
        *[field_table.encode_table(fuzzing.random_table(chance)) for _ in range(8)],
    ]


def _properties() -> list[bytes]:
    chance = random.Random(3)
    full = encode_properties(
        content_type="text/plain", content_encoding="gzip", headers={"CC": ["a", "b"], "BCC": ["c"], "x-delay": 5},
        delivery_mode=2, priority=9, correlation_id="c", reply_to="amq.rabbitmq.reply-to", expiration="60000",
        message_id="m", timestamp=1_700_000_000, type="t", user_id="guest", app_id="a",
    )  # fmt: skip
    return [b"\0\0", full, *[fuzzing.random_properties(chance) for _ in range(12)]]


@target("amqp-method", _methods, PeerError)
def read_method(data: bytes) -> object:
    """The payload of a method frame."""
    method = decode_method(data)
    encoded = encode_method(method)
    # Not compared with the input: several letters of field tables are read that are never written, and "not a number"
    # is not equal to itself.
    assert encode_method(decode_method(encoded)) == encoded, "what is encoded is not decoded to the same"
    return encoded


@target("amqp-table", _tables, PeerError)
def read_table(data: bytes) -> object:
    """A field table, which is both walked over and decoded: the two must agree."""
    try:
        end = field_table.content_end(data, 0, len(data))
        field_table.check_entries(data, 4, end, 0)
        is_sound = end == len(data)
    except PeerError:
        is_sound = False
    try:
        table = field_table.decode_table(data)
    except PeerError:
        assert not is_sound, "a table that is walked over without fault cannot be decoded"
        raise
    assert is_sound, "a table is decoded that cannot be walked over"
    encoded = field_table.encode_table(table)
    assert field_table.encode_table(field_table.decode_table(encoded)) == encoded
    return encoded


@target("amqp-properties", _properties, PeerError)
def read_properties(data: bytes) -> object:
    """A message's properties, and all that is done with them on its way."""
    properties = parse_properties(data)
    shown = [properties.described(), properties.headers(), properties.persistent, properties.priority]
    assert parse_properties(properties.raw).described().keys() == properties.described().keys()
    changed = properties.replaced({"x-death": [{"count": 1}], "x-gone": None}, False)
    assert changed.headers()["x-death"] == [{"count": 1}]
    assert changed.expiration_ms == -1
    again = parse_properties(changed.raw)
    assert again.raw == changed.replaced({}, True).raw
    if properties.reply_to() is not None:
        assert properties.with_reply_to("somewhere").reply_to() == "somewhere"
    fitting = fitting_properties(properties, _FRAME_BYTES)
    assert isinstance(fitting, BasicProperties)
    parse_properties(fitting.raw)
    return shown, changed.raw, fitting.raw, _as_record(properties)


def _as_record(properties: BasicProperties) -> object:
    """What a stream has of such a message, which must come back as it was."""
    record = MessageRecord()
    record.of(Message(Address("e", "k"), properties, b"body", 1_700_000_000_000))
    builder = BatchBuilder()
    builder.append_encoded(0, record.timestamp_ms, record.key, record.value, record.headers)
    reader = RecordMessages("a target")
    assert reader.open(builder.finish(0, 0))
    assert reader.next(), "a message that became a record is none any more"
    assert reader.message.properties.raw == properties.raw
    assert reader.message.address.exchange == "e"
    return record.key, record.value, int(record.timestamp_ms), record.headers
